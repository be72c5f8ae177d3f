"""What dvc.lock and the records say.

Stage keys, inputs and outputs, in a workspace or at a git revision.
"""

from __future__ import annotations

import copy
import functools
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regrpo.core.dvc import cache_folder, dvc_root, md5_of
from regrpo.core.files import sha256_json
from regrpo.core.profiles import STAGES

LOCK = Path("dvc.lock")


CODE = ("stages", "regrpo", "custom", "dvc.yaml", "pyproject.toml", "constraints.txt")
"""What counts as code.

What a "dirty" flag looks at (DVC itself rewrites params.yaml and the reports).
"""


def stage_key(entry: dict[str, Any]) -> str:
    """SHA-256 over a dvc.lock entry's command, dependency hashes and parameters.

    What "the same stage" means.

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
    return (
        sha256_json({name: stage_key(stages[name]) for name in STAGES})
        if set(STAGES) <= set(stages)
        else None
    )


@dataclass(frozen=True)
class Snapshot:
    """A pipeline's committed side.

    Dvc.lock, params and uncached files of a folder, or of a git revision in it.
    """

    root: Path
    revision: str | None = None

    def read(self, path: str | Path) -> bytes | None:
        """A file's bytes; None where it is not there."""
        if self.revision is None:
            file = self.root / path
            return file.read_bytes() if file.is_file() else None
        command = ["git", "-C", str(self.root), "show", f"{self.revision}:./{path}"]
        done = subprocess.run(command, capture_output=True, check=False)
        return done.stdout if done.returncode == 0 else None

    def output(self, path: str) -> bytes | None:
        """A single-file output's bytes, from the repository's DVC cache where it is not here.

        None where neither is.
        """
        if (data := self.read(path)) is not None:
            return data
        entries = (out for entry in self.lock()["stages"].values() for out in entry.get("outs", []))
        md5 = next((out["md5"] for out in entries if out["path"] == path), "")
        cached = cache_folder(dvc_root()) / md5[:2] / md5[2:]
        return cached.read_bytes() if md5 and cached.is_file() else None

    def json(self, path: str | Path) -> Any:
        """A JSON file's content; None where it is not there."""
        data = self.read(path)
        return None if data is None else json.loads(data)

    def lock(self) -> dict[str, Any]:
        """dvc.lock; empty where there is none."""
        return copy.deepcopy(_parsed(self.read(LOCK) or b""))

    def params(self) -> dict[str, Any]:
        """Each stage's section as dvc.lock recorded it."""
        sections: dict[str, Any] = {}
        for entry in self.lock()["stages"].values():
            for values in entry.get("params", {}).values():
                sections |= values
        return sections

    def profile(self) -> str:
        """The path of the profile that dvc.lock's parameters came from (of the last stage's, should they differ)."""
        profiles = [
            path for entry in self.lock()["stages"].values() for path in entry.get("params", {})
        ]
        return profiles[-1] if profiles else ""

    def record(self, stage: str) -> dict[str, Any] | None:
        """The one element of a stage's run.json; None where there is none."""
        content = self.json(f"reports/{stage}/run.json")
        return content[0] if isinstance(content, list) and content else None

    def holds(self, stage: str, run: str) -> bool:
        """Whether dvc.lock and run.json are here as that run of the stage left them."""
        record, entry = self.record(stage), self.lock()["stages"].get(stage)
        return bool(record and entry and record["run"] == run and record["key"] == stage_key(entry))

    def pipeline_key(self) -> str | None:
        """The pipeline's key where this is one whole pipeline.

        None where a stage is missing, altered or of another.

        dvc.lock must hold every stage, each run.json be the one that dvc.lock knows (MD5) and have
        its entry's key, and every input that a stage records be what the stage that makes it
        recorded as its output (SHA-256).
        """
        lock = self.lock()
        if (key := pipeline_key(lock)) is None:
            return None
        made: dict[str, str] = {}
        read: list[tuple[str, str]] = []
        for stage in STAGES:
            entry, path = lock["stages"][stage], f"reports/{stage}/run.json"
            data, record = self.read(path), self.record(stage)
            known = {out["path"]: out["md5"] for out in entry.get("outs", [])}
            if (
                data is None
                or record is None
                or known.get(path) != md5_of(data)
                or record["key"] != stage_key(entry)
            ):
                return None
            for out in record["outputs"]:
                made[out["path"]] = out["sha256"]
                made |= {
                    f"{out['path']}/{name}": digest for name, digest in out.get("files", {}).items()
                }
            read += [(item["path"], item["sha256"]) for item in record["inputs"]]
        return key if all(made.get(path, digest) == digest for path, digest in read) else None


@functools.lru_cache(maxsize=256)
def _parsed(lock: bytes) -> dict[str, Any]:
    """dvc.lock's content.

    Parsing takes a tenth of a second, and a command asks for the same one twenty times.
    """
    from ruamel.yaml import YAML

    return YAML(typ="safe").load(lock.decode()) or {"stages": {}}
