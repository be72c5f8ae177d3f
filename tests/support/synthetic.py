"""Finished pipelines without training.

A repository of git, dvc.lock, records, reports and cache objects that fit.

What stages would have made is made up from their keys; the reports and answers that a comparison
reads are real files.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from regrpo.core.dvc import declared_outputs, md5_of, object_path, path_of
from regrpo.core.files import canonical_json, sha256_json
from regrpo.core.pipeline import stage_key
from regrpo.core.profiles import STAGES, read_yaml
from regrpo.evaluate import stats
from tests.support.projects import ROOT

Json = dict[str, Any]
ROLES = {
    "heldout": "headline",
    "heldout_sampled": "sampled",
    "heldout_format": "format",
    "heldout_answer_prefilled": "control",
    "heldout_reasoning_prefilled": "control",
}
FEW_FILES = {"regrpo/train": ("rewards.py",), "regrpo/report/card.py": ()}
"""Code that stands for all of it, and for a folder the files that records list."""
PACKAGES = {"torch": "2.13.0", "trl": "1.16.0"}
SPLITS = ("dataset.json", "dev.parquet", "eval.parquet", "sft.parquet", "train.parquet")


DECLARED = read_yaml(ROOT / "dvc.yaml")["stages"]
PROFILE = read_yaml(ROOT / "params.yaml")


def git(root: Path, *arguments: str, data: bytes | None = None) -> str:
    command = [
        "git",
        "-C",
        str(root),
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@example.invalid",
        *arguments,
    ]
    return (
        subprocess.run(command, input=data, capture_output=True, check=True).stdout.decode().strip()
    )


def make_repository(root: Path) -> Path:
    """An empty repository of this pipeline: dvc.yaml, params.yaml, DVC without a run."""
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc/config").write_text("[core]\n    analytics = false\n")
    (root / ".gitignore").write_text(".dvc/cache\n.dvc/tmp\nsamples.parquet\nmlflow.db\n.regrpo\n")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copyfile(ROOT / name, root / name)
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "start")
    return root


# --- answers --------------------------------------------------------------------------------------


def questions(count: int, first: int = 0) -> pd.DataFrame:
    """`count` questions from a number on: id, prompt, answer."""
    numbers = range(first, first + count)
    return pd.DataFrame(
        {
            "id": [f"eval-{n}" for n in numbers],
            "prompt": [f"{n}+1=" for n in numbers],
            "answer": [f"{n + 1}" for n in numbers],
        }
    )


def evaluation(
    values: Mapping[str, Sequence[float]],
    asked: pd.DataFrame | None = None,
    *,
    say: str | None = None,
    headline: str | None = "heldout",
    verifier: str = "exact_int",
    version: float = 1.0,
) -> tuple[Json, pd.DataFrame]:
    """metrics.json and samples: a value per question and task for the model grpo.

    Base is all wrong.
    """
    tasks: Json = {}
    frames = []
    for task, of_task in values.items():
        x = np.asarray(of_task, dtype=float)
        kind = stats.kind_of(x.tolist())
        own = (asked if asked is not None else questions(len(x))).iloc[: len(x)]
        said = own["answer"].where(x == 1, "wrong") if say is None else say
        for model, held in (("base", np.zeros(len(x))), ("grpo", x)):
            frames.append(own.assign(task=task, model=model, value=held, completion=said))
        scores = {
            model: stats.estimate(held.tolist(), kind, resamples=100, seed=0).model_dump()
            for model, held in (("base", np.zeros(len(x))), ("grpo", x))
        }
        metric, role = "format" if "format" in task else "accuracy", ROLES.get(task, "custom")
        about = {
            "description": task,
            "metric": metric,
            "kind": kind,
            "n": len(x),
            "role": role,
            "version": version,
        }
        tasks[task] = about | {"models": scores, "pairs": {}}
    samples = pd.concat(frames, ignore_index=True)[
        ["task", "model", "id", "prompt", "completion", "answer", "value"]
    ]
    return {"headline": headline, "verifier": verifier, "tasks": tasks, "gain": None}, samples


def right(share: float, n: int = 300, seed: int = 0) -> list[float]:
    """`n` binary values of which about a share is 1.

    Smaller shares are parts of larger ones of the same seed.
    """
    return (np.random.default_rng(seed).random(n) < share).astype(float).tolist()


# --- runs -----------------------------------------------------------------------------------------


def write_run(
    root: Path,
    answers: tuple[Json, pd.DataFrame],
    params: Mapping[str, Any] | None = None,
    *,
    packages: Mapping[str, str] = PACKAGES,
    code: Mapping[str, str] | None = None,
    revision: str | None = None,
    diff: str | None = None,
    until: str = "model_card",
    with_samples: bool = True,
    day: int = 1,
    history: str | None = None,
    ids: str = "",
    full: bool = False,
) -> dict[str, str]:
    """Leave the workspace as a run with these answers would, up to a stage.

    Returns each stage's run id.

    `params` are {"section.key": value}; `code` other contents of code files; `ids` sets runs of
    equal inputs apart; `full` gives dvc.lock the length and form that DVC gives it (slow to read
    and write).
    """
    profile = copy.deepcopy({stage: PROFILE[stage] for stage in STAGES})
    for name, value in (params or {}).items():
        section, _, key = name.partition(".")
        profile[section][key] = value
    metrics, samples = answers
    lock: Json = {"schema": "2.0", "stages": {}}
    made: dict[str, tuple[str, str]] = {}
    names: dict[str, str] = {}
    long = {"hash": "md5", "size": 1} if full else {}
    commit = revision or git(root, "rev-parse", "HEAD")
    for stage in STAGES[: STAGES.index(until) + 1]:
        declared = DECLARED[stage]
        kept = [
            path
            for path in declared["deps"]
            if full or not path.startswith("regrpo/") or path in FEW_FILES
        ]
        inner = {path: _files(path, code or {}) for path in kept}
        deps = {}
        for path in kept:
            content = (code or {}).get(path, path) + "".join(inner[path].values())
            deps[path] = made.get(path) or _hashes(content)
        entry: Json = {
            "cmd": declared["cmd"],
            "deps": [{"path": path, "md5": md5} | long for path, (md5, _) in deps.items()],
            "params": {"params.yaml": {stage: profile[stage]}},
        }
        key = stage_key(entry)
        told = sha256_json(
            [key, samples.to_json() if stage in ("evaluate", "model_card") else "", ids]
        )
        outs = [path_of(out) for out in declared_outputs(declared)]
        contents = _contents(stage, metrics, samples, history)
        outputs = []
        for path in outs:
            if path.endswith("run.json"):
                continue
            data = contents.get(path)
            if data is not None:
                made[path] = md5_of(data), hashlib.sha256(data).hexdigest()
                _write(root, path, data, cached=path.endswith(".parquet"), here=with_samples)
            else:
                made[path] = _hashes(f"{told} {path}")
            item: Json = {"path": path, "sha256": made[path][1], "size": 1}
            if path == "data/prepared":
                splits = {name: _hashes(f"{told} {name}") for name in SPLITS}
                item["files"] = {name: sha256 for name, (_, sha256) in splits.items()}
                made |= {f"{path}/{name}": pair for name, pair in splits.items()}
            if path == "data/selected":
                rows = made["data/prepared/train.parquet"]
                item["files"] = {"train.parquet": rows[1]}
                made[f"{path}/train.parquet"] = rows
            outputs.append(item)
        names[stage] = told[:32]
        facts = {"packages": dict(packages), "python": "3.11.7", "system": "Linux x86_64"}
        record = {
            "schema_version": 1,
            "stage": stage,
            "run": names[stage],
            "key": key,
            "command": declared["cmd"],
            "parameters": entry["params"],
            "outputs": outputs,
            "inputs": [
                {"path": path, "sha256": sha256, "size": 1, "files": inner[path] or None}
                for path, (_, sha256) in deps.items()
            ],
            "code": {"revision": commit, "dirty": diff is not None, "diff_sha256": diff},
            "environment": facts | {"sha256": sha256_json(facts)},
            "mlflow_run_id": None,
            "started": f"2026-01-{day:02}T00:0{STAGES.index(stage)}:00+00:00",
            "ended": f"2026-01-{day:02}T00:0{STAGES.index(stage)}:30+00:00",
        }
        data = canonical_json([record]).encode()
        made[f"reports/{stage}/run.json"] = md5_of(data), hashlib.sha256(data).hexdigest()
        _write(root, f"reports/{stage}/run.json", data)
        entry["outs"] = [{"path": path, "md5": made[path][0]} | long for path in outs]
        lock["stages"][stage] = entry
    if not full:
        (root / "dvc.lock").write_text(json.dumps(lock))
        return names
    stream = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(lock, stream)
    (root / "dvc.lock").write_text(stream.getvalue())
    return names


def _contents(
    stage: str, metrics: Json, samples: pd.DataFrame, history: str | None
) -> dict[str, bytes]:
    if stage == "evaluate":
        stream = io.BytesIO()
        samples.to_parquet(stream, index=False)
        return {
            "reports/evaluate/metrics.json": json.dumps(metrics).encode(),
            "reports/evaluate/samples.parquet": stream.getvalue(),
        }
    if stage == "grpo":
        told = (
            history
            or "step,reward,completions/mean_length,dev_accuracy\n"
            "0,,,0.2\n1,0.3,5.5,\n2,0.5,6.5,0.6\n"
        )
        return {
            "reports/grpo/health.json": b'{"verdict": "healthy"}',
            "reports/grpo/history.csv": told.encode(),
        }
    if stage == "prepare":
        counts = {name.partition(".")[0]: {"rows": 300, "classes": 300} for name in SPLITS[1:]}
        return {"reports/prepare/metrics.json": json.dumps(counts).encode()}
    if stage == "base_model":
        return {
            "reports/base_model/source.json": b'{"source": "made from scratch", '
            b'"revision": "seed 0", "parameters": 1}'
        }
    return {}


def _write(root: Path, path: str, data: bytes, cached: bool = False, here: bool = True) -> None:
    targets = [] if cached and not here else [root / path]
    if cached and here:
        targets.append(object_path(root / ".dvc/cache/files/md5", md5_of(data)))
    for target in targets:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def _files(folder: str, code: Mapping[str, str]) -> dict[str, str]:
    """{name: SHA-256} of the files in a folder of code."""
    paths = {name: f"{folder}/{name}" for name in FEW_FILES.get(folder, ())}
    return {name: _hashes(code.get(path, path))[1] for name, path in paths.items()}


def _hashes(text: str) -> tuple[str, str]:
    """(MD5, SHA-256) of a file that nobody made."""
    return md5_of(text.encode()), hashlib.sha256(text.encode()).hexdigest()


def commit(root: Path, message: str = "run") -> str:
    """Commit the workspace; the commit."""
    git(root, "add", "-A")
    git(root, "commit", "-q", "--allow-empty", "-m", message)
    return git(root, "rev-parse", "HEAD")


def experiment(
    root: Path, name: str, answers: tuple[Json, pd.DataFrame], params: Any = None, **more: Any
) -> dict[str, str]:
    """A run as a DVC experiment of HEAD; the workspace goes back to HEAD."""
    names = write_run(root, answers, params, **more)
    head = git(root, "rev-parse", "HEAD")
    git(root, "add", "-A")
    commit_id = git(root, "commit-tree", "-p", head, "-m", name, git(root, "write-tree"))
    git(root, "update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", commit_id)
    git(root, "reset", "-q", "--hard", "HEAD")
    return names
