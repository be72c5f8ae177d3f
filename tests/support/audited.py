"""Audits of a finished pipeline, and how faults are planted in it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from regrpo import cli
from regrpo.audit import audit
from regrpo.core import files
from regrpo.core.dvc import folder_md5
from regrpo.core.pipeline import stage_key
from regrpo.core.profiles import STAGES
from regrpo.records import stage_run
from regrpo.records.find import Finder
from regrpo.tracking.lookup import Lookup

Result = dict[str, Any]
Named = tuple[str, str | None, str]
"""A finding's kind, stage and path."""
Fault = tuple[Callable[[], object], Named, dict[str, Any]]
"""How a fault is planted, the finding that has to name it, and the audit's options."""


MODEL = "models/grpo/model.safetensors"


def audited(target: str | None = None, mlflow: bool = False, **options: Any) -> Result:
    place = Finder(Path.cwd(), Lookup() if mlflow else None).find(target)
    return audit.audit(place, mlflow=mlflow, **options)


def found(result: Result, what: str = "faults") -> set[tuple[str, str | None, str]]:
    return {(one["kind"], one["stage"], one["path"]) for one in result[what]}


def assert_complete(result: Result) -> None:
    assert (result["faults"], result["unchecked"], result["verdict"]) == ([], [], "complete")


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    said = capsys.readouterr()
    return code, said.out, said.err


def flip(path: str | Path) -> None:
    """Change one bit in the middle; size and time of change stay."""
    path = Path(path)
    before, mode, data = path.stat(), path.stat().st_mode, bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_mtime_ns, path.stat().st_size) == (before.st_mtime_ns, before.st_size)


def md5_of(path: str | Path) -> str:
    return hashlib.md5(Path(path).read_bytes(), usedforsecurity=False).hexdigest()


def cached(path: str, folder: str = ".dvc/cache/files/md5") -> Path:
    """The object that holds a workspace file's bytes."""
    md5 = md5_of(path)
    return Path(folder) / md5[:2] / md5[2:]


def listing_of(path: str) -> Path:
    """The cache's `.dir` object of an output folder."""
    outs = (out for entry in lock()["stages"].values() for out in entry["outs"])
    md5 = next(out["md5"] for out in outs if out["path"] == path)
    return Path(".dvc/cache/files/md5") / md5[:2] / md5[2:]


def lock() -> dict[str, Any]:
    content: dict[str, Any] = YAML(typ="safe").load(Path("dvc.lock"))
    return content


def edit_whole_lock(edit: Callable[[dict[str, Any]], object]) -> None:
    content = lock()
    edit(content["stages"])
    Path("dvc.lock").write_text(json.dumps(content))  # JSON is YAML, and written in no time


def edit_lock(stage: str, edit: Callable[[dict[str, Any]], None]) -> None:
    edit_whole_lock(lambda stages: edit(stages[stage]))


def set_out(stage: str, path: str, **values: object) -> None:
    edit_lock(
        stage, lambda entry: next(o for o in entry["outs"] if o["path"] == path).update(values)
    )


def set_dep(stage: str, path: str, **values: object) -> None:
    edit_lock(
        stage, lambda entry: next(d for d in entry["deps"] if d["path"] == path).update(values)
    )


def edit_record(stage: str, edit: Callable[[dict[str, Any]], None], hide: bool = True) -> None:
    """Change a run.json.

    With `hide`, everything in dvc.lock and the next records that tells is forged to agree.
    """
    path = Path(f"reports/{stage}/run.json")
    before, (record,) = path.read_bytes(), files.read_json(path)
    edit(record)
    files.write_json(path, [record])
    if not hide:
        return
    text = (
        Path("dvc.lock")
        .read_text()
        .replace(hashlib.md5(before, usedforsecurity=False).hexdigest(), md5_of(path))
    )
    Path("dvc.lock").write_text(text)
    set_out(stage, path.as_posix(), size=path.stat().st_size)
    old, new = hashlib.sha256(before).hexdigest(), files.sha256(path)
    for reader in STAGES:
        other = Path(f"reports/{reader}/run.json")
        if reader != stage and old in (text := other.read_text()):
            forged = json.loads(text.replace(old, new))
            forged[0]["key"] = stage_key(lock()["stages"][reader])
            was = md5_of(other)
            files.write_json(other, forged)
            Path("dvc.lock").write_text(Path("dvc.lock").read_text().replace(was, md5_of(other)))
            set_out(reader, other.as_posix(), size=other.stat().st_size)


def forge_raw_data() -> None:
    """Forge dvc.lock and records as if prepare had read what lies in data/raw now."""
    read = stage_run.fingerprint("data/raw")
    md5s = {name: md5_of(f"data/raw/{name}") for name in read["files"]}
    set_dep("prepare", "data/raw", md5=folder_md5(md5s), size=read["size"], nfiles=len(md5s))
    key = stage_key(lock()["stages"]["prepare"])

    def forge(record: dict[str, Any]) -> None:
        (raw,) = (item for item in record["inputs"] if item["path"] == "data/raw")
        raw.update(read)
        record["key"] = key

    edit_record("prepare", forge)


def append(path: str, text: str = "\n# another line\n") -> None:
    with Path(path).open("a") as f:
        f.write(text)


def run_id(stage: str) -> str:
    return str(files.read_json(Path(f"reports/{stage}/run.json"))[0]["mlflow_run_id"])


def row_id() -> str:
    with contextlib.closing(sqlite3.connect("mlflow.db")) as db:
        return str(
            db.execute("select run_uuid from tags where key = 'regrpo.pipeline_key'").fetchone()[0]
        )


def at_home(folder: Path) -> None:
    """Let a copied MLflow store find its artifacts beside it."""
    from mlflow.tracking._tracking_service import utils

    utils._artifact_repos_cache.clear()  # by run id alone: another copy's, of an earlier test
    artifacts = (folder / "mlartifacts").as_uri()
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as db, db:
        for table, column in (("runs", "artifact_uri"), ("experiments", "artifact_location")):
            for (uri,) in db.execute(f"select distinct {column} from {table}").fetchall():
                if "mlartifacts" in uri:
                    moved = f"{artifacts}{uri.partition('mlartifacts')[2]}"
                    db.execute(f"update {table} set {column} = ? where {column} = ?", (moved, uri))


def other_hash(kind: str, path: str) -> Callable[[dict[str, Any]], None]:
    def edit(record: dict[str, Any]) -> None:
        next(item for item in record[kind] if item["path"] == path)["sha256"] = "0" * 64

    return edit


def require_found(fault: Fault, also: set[Named]) -> None:
    """Plant a fault; the audit names it and accuses nothing besides that and `also`."""
    plant, expected, options = fault
    plant()
    result = audited(**options)
    assert expected in found(result), [one["text"] for one in result["faults"]]
    accused = found(result) - {expected}
    assert accused <= also, accused - also
    assert result["verdict"] == "broken"
