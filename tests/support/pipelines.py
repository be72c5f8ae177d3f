"""Whole pipelines written by hand.

Dvc.lock, run.json and reports that fit together, without any training.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

from regrpo.core import files
from regrpo.core.pipeline import stage_key
from regrpo.core.profiles import STAGES

MAKES = {
    "prepare": ["data/prepared"],
    "base_model": ["models/base"],
    "sft": ["models/sft"],
    "grpo": ["models/grpo"],
}


READS = {
    "validate": ["data/prepared", "models/base"],
    "sft": ["data/prepared/train.parquet", "models/base"],
    "grpo": ["data/prepared/train.parquet", "models/sft"],
    "evaluate": ["models/base", "models/sft", "models/grpo"],
}


REPORTS = {
    "grpo": {
        "metrics.json": {"steps": 80, "reward_last": 0.9},
        "health.json": {"verdict": "healthy", "fired": 0},
    },
    "evaluate": {
        "metrics.json": {
            "headline": "heldout",
            "tasks": {
                "heldout": {
                    "metric": "accuracy",
                    "kind": "binary",
                    "n": 300,
                    "role": "headline",
                    "description": "held-out questions",
                    "models": {"grpo": {"value": 0.9, "ci95": [0.86, 0.93]}},
                    "pairs": {},
                }
            },
        }
    },
}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def record(stage: str, version: int = 0, **changes: Any) -> dict[str, Any]:
    """A run.json as regrpo.records.stage_run writes it, for content that depends on `version`."""
    entry = lock_entry(stage, version)
    outputs = [
        {
            "path": path,
            "sha256": digest(f"{path} {version}"),
            "size": 9,
            "files": {"train.parquet": digest(f"t {version}")},
        }
        for path in MAKES.get(stage, [])
    ]
    made = {
        out["path"]: out["sha256"]
        for name in MAKES
        for out in ([] if name == stage else _outputs(name, version))
    }
    made |= {"data/prepared/train.parquet": digest(f"t {version}")}
    return {
        "schema_version": 1,
        "stage": stage,
        "run": f"{stage}-{version}",
        "key": stage_key(entry),
        "command": entry["cmd"],
        "parameters": entry["params"],
        "inputs": [
            {"path": path, "sha256": made[path], "size": 9} for path in READS.get(stage, [])
        ],
        "outputs": outputs,
        "code": {"revision": "c" * 40, "dirty": True, "diff_sha256": digest("diff")},
        "environment": {"sha256": digest("environment")},
        "mlflow_run_id": None,
    } | changes


def _outputs(stage: str, version: int) -> list[dict[str, Any]]:
    return [{"path": path, "sha256": digest(f"{path} {version}")} for path in MAKES[stage]]


def lock_entry(stage: str, version: int = 0) -> dict[str, Any]:
    return {
        "cmd": f"python -m stages.{stage}",
        "deps": [
            {"path": path, "md5": digest(f"{path} {version}")[:32]} for path in READS.get(stage, [])
        ],
        "params": {
            "params.yaml": {stage: {"seed": version, "source": {"kind": "local", "names": ["a"]}}}
        },
    }


def write_stage(root: Path, stage: str, version: int = 0, **changes: Any) -> None:
    """What DVC and the stage leave: dvc.lock's entry, run.json and the reports."""
    folder = root / "reports" / stage
    files.write_json(folder / "run.json", [record(stage, version, **changes)])
    for name, report in REPORTS.get(stage, {}).items():
        files.write_json(folder / name, report)
    lock = (
        json.loads((root / "dvc.lock").read_text())
        if (root / "dvc.lock").exists()
        else {"stages": {}}
    )
    outs = [
        {"path": path, "md5": digest(f"{path} {version}")[:32]} for path in MAKES.get(stage, [])
    ]
    own = hashlib.md5((folder / "run.json").read_bytes()).hexdigest()
    lock["stages"][stage] = lock_entry(stage, version) | {
        "outs": [*outs, {"path": f"reports/{stage}/run.json", "md5": own}]
    }
    files.write_json(root / "dvc.lock", lock)  # JSON is YAML


def write_pipeline(root: Path, version: int = 0, **changes: Any) -> None:
    for stage in STAGES:
        write_stage(root, stage, version, **changes)


def commit(root: Path, *refs: str) -> str:
    """Commit everything in `root` (made a repository if it is none) and point `refs` at it.

    Returns the commit.
    """

    def git(*arguments: str) -> str:
        identity = [
            "-c",
            "user.name=t",
            "-c",
            "user.email=t@example.org",
            "-c",
            "core.hooksPath=/dev/null",
        ]
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=root, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    if not (root / ".git").exists():
        git("init", "-q")
    git("add", "-A", "dvc.lock", "reports")
    git("commit", "-q", "--allow-empty", "-m", "state")
    revision = git("rev-parse", "HEAD")
    for ref in refs:
        git("update-ref", ref, revision)
    return revision
