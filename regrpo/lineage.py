"""What dvc.lock, dvc.yaml and the committed records say: stage keys, inputs and outputs, in a workspace or at a git revision."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regrpo.files import sha256_json
from regrpo.params import STAGES, read_yaml

LOCK = Path("dvc.lock")
CODE = ("stages", "regrpo", "custom", "dvc.yaml", "pyproject.toml", "constraints.txt")
"""What counts as code: what a "dirty" flag looks at (DVC itself rewrites params.yaml and the reports)."""


def git(*arguments: str, env: dict[str, str] | None = None) -> str | None:
    """git's output in the current folder, stripped; None where git says no (no repository, no commit, no such object)."""
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, env=env)
    return done.stdout.strip() if done.returncode == 0 else None


def stage_key(entry: dict[str, Any]) -> str:
    """SHA-256 over a dvc.lock entry's command, dependency hashes and parameters: what "the same stage" means.

    Outputs are no part of it, so it is known before the stage runs.
    """
    return sha256_json(
        {
            "cmd": entry["cmd"],
            "deps": sorted([dep["path"], dep["md5"]] for dep in entry.get("deps", [])),
            "params": entry.get("params", {}),
        }
    )


def pipeline_key(lock: dict[str, Any]) -> str | None:
    """SHA-256 over the keys of all stages; None where dvc.lock does not hold every stage yet."""
    stages = lock.get("stages", {})
    return sha256_json({name: stage_key(stages[name]) for name in STAGES}) if set(STAGES) <= set(stages) else None


def entry_now(stage: str) -> dict[str, Any]:
    """The dvc.lock entry (without outs) that DVC will write for `stage` from what lies in the workspace now."""
    declared = read_yaml(Path("dvc.yaml"))["stages"][stage]
    profile = str(read_yaml(Path("params.yaml"))["profile"])
    section = (read_yaml(Path(profile)) or {}).get(stage)
    return {
        "cmd": declared["cmd"],
        "deps": [{"path": path, "md5": dvc_md5(Path(path))} for path in declared["deps"]],
        "params": {profile: {stage: section}},
    }


def dvc_md5(path: Path) -> str:
    """DVC's own hash: a file's MD5, or for a folder the MD5 of its sorted listing, ending in `.dir`.

    An identity within the pipeline, not a protection: records hold SHA-256 besides.
    """
    if path.is_file():
        with path.open("rb") as f:
            return hashlib.file_digest(f, "md5").hexdigest()
    listing = [{"md5": dvc_md5(file), "relpath": file.relative_to(path).as_posix()} for file in files_in(path)]
    listing.sort(key=lambda item: item["relpath"].split("/"))
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def files_in(path: Path) -> Iterator[Path]:
    """The files that DVC sees at a path: itself, or all below a folder that .dvcignore does not exclude."""
    from pathspec import GitIgnoreSpec

    if path.is_file():
        yield path
        return
    ignore_file = Path(".dvcignore")
    ignored = GitIgnoreSpec.from_lines(ignore_file.read_text().splitlines() if ignore_file.exists() else [])
    for file in sorted(path.rglob("*")):
        if file.is_file() and not ignored.match_file(file.as_posix()):
            yield file


def dvc_root() -> Path:
    """The root of the repository that the user sees, also from DVC's temporary experiment workspaces."""
    import os

    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


@dataclass(frozen=True)
class Snapshot:
    """The committed side of a pipeline: dvc.lock, params and `cache: false` files of a folder, or of a git revision in it."""

    root: Path
    revision: str | None = None

    def read(self, path: str | Path) -> bytes | None:
        """A file's bytes; None where it is not there."""
        if self.revision is None:
            file = self.root / path
            return file.read_bytes() if file.is_file() else None
        done = subprocess.run(
            ["git", "-C", str(self.root), "show", f"{self.revision}:{path}"], capture_output=True, check=False
        )
        return done.stdout if done.returncode == 0 else None

    def json(self, path: str | Path) -> Any:
        """A JSON file's content; None where it is not there."""
        data = self.read(path)
        return None if data is None else json.loads(data)

    def lock(self) -> dict[str, Any]:
        """dvc.lock; empty where there is none."""
        from ruamel.yaml import YAML

        data = self.read(LOCK)
        return (YAML(typ="safe").load(data.decode()) if data else None) or {"stages": {}}

    def params(self) -> dict[str, Any]:
        """Each stage's section as dvc.lock recorded it."""
        sections: dict[str, Any] = {}
        for entry in self.lock()["stages"].values():
            for values in entry.get("params", {}).values():
                sections |= values
        return sections

    def record(self, stage: str) -> dict[str, Any] | None:
        """A stage's run.json; None where there is none."""
        record = self.json(f"reports/{stage}/run.json")
        return record if isinstance(record, dict) else None
