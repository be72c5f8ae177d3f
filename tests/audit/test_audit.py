"""Planted faults, each found by name; fault-free pipelines, none accused.

What cannot be checked, said so.

One miniature pipeline is made for the module; each test works on a copy of it.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from regrpo import cli
from regrpo.audit import audit
from regrpo.core import files
from regrpo.core.dvc import folder_md5
from regrpo.core.errors import CannotCheck
from regrpo.core.pipeline import stage_key
from regrpo.core.profiles import STAGES
from regrpo.evaluate.results import parse_metrics
from regrpo.records import graph, hashing, stage_run
from regrpo.records.find import Finder, revisions, workspace
from regrpo.tracking import rows
from regrpo.tracking.lookup import Lookup
from tests.support.projects import commit, edit_yaml, make_project, run

Result = dict[str, Any]
MODEL = "models/grpo/model.safetensors"
SMALL = {
    "prepare": {"eval": 24, "dev": 12, "sft": 0.6},
    "validate": {"min_rows": 10},
    "sft": {
        "max_steps": 10,
        "per_device_train_batch_size": 16,
        "warmup_steps": 5,
        "logging_steps": 10,
        "threads": 1,
    },
    "grpo": {
        "max_steps": 2,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "warmup_steps": 1,
        "dev_every": 1,
        "sample_every": 1,
        "threads": 1,
        "weight_decay": 0.1,
    },
    "evaluate": {"batch_size": 24, "bootstrap": 200, "threads": 1, "tasks": ["heldout"]},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pipeline: results committed, pushed to a local remote, told to MLflow."""
    folder = make_project(tmp_path_factory.mktemp("audit") / "finished", SMALL)
    run(folder, "dvc", "repro")
    run(folder, "python", "-m", "regrpo.cli", "sync")
    run(folder, "dvc", "remote", "add", "-q", "-d", "store", "../remote")
    commit(folder, "results")
    run(folder, "dvc", "push", "-q")
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it at another path, with a remote of its own; the current folder."""
    for name in [name for name in os.environ if name.startswith(("DVC_", "MLFLOW_", "REGRPO_"))]:
        monkeypatch.delenv(name)
    shutil.copytree(finished.parent / "remote", tmp_path / "remote")
    shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def audited(target: str | None = None, mlflow: bool = False, **options: Any) -> Result:
    place = Finder(Path.cwd(), Lookup() if mlflow else None).find(target)
    return audit.audit(place, mlflow=mlflow, **options)


def found(result: Result, what: str = "faults") -> set[tuple[str, str | None, str]]:
    return {(one["kind"], one["stage"], one["path"]) for one in result[what]}


# --- how faults are planted -----------------------------------------------------------------------


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


def edit_lock(stage: str, edit: Callable[[dict[str, Any]], None]) -> None:
    content = lock()
    edit(content["stages"][stage])
    with Path("dvc.lock").open("w") as f:
        YAML(typ="safe").dump(content, f)


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


def sql(command: str, *values: object) -> None:
    with contextlib.closing(sqlite3.connect("mlflow.db")) as db, db:
        assert db.execute(command, values).rowcount > 0


def run_id(stage: str) -> str:
    return str(files.read_json(Path(f"reports/{stage}/run.json"))[0]["mlflow_run_id"])


def row_id() -> str:
    with contextlib.closing(sqlite3.connect("mlflow.db")) as db:
        return str(
            db.execute("select run_uuid from tags where key = 'regrpo.pipeline_key'").fetchone()[0]
        )


def append(path: str, text: str = "\n# another line\n") -> None:
    with Path(path).open("a") as f:
        f.write(text)


def set_out(stage: str, path: str, **values: object) -> None:
    edit_lock(
        stage, lambda entry: next(o for o in entry["outs"] if o["path"] == path).update(values)
    )


def set_dep(stage: str, path: str, **values: object) -> None:
    edit_lock(
        stage, lambda entry: next(d for d in entry["deps"] if d["path"] == path).update(values)
    )


def dirty(record: dict[str, Any]) -> None:
    record["code"] |= {"dirty": True, "diff_sha256": "0" * 64}


def other_hash(kind: str, path: str) -> Callable[[dict[str, Any]], None]:
    def edit(record: dict[str, Any]) -> None:
        next(item for item in record[kind] if item["path"] == path)["sha256"] = "0" * 64

    return edit


def other_code(folder: str, name: str) -> Callable[[dict[str, Any]], None]:
    """Another hash for one file of an input folder, the folder's own hash kept right."""

    def edit(record: dict[str, Any]) -> None:
        item = next(item for item in record["inputs"] if item["path"] == folder)
        item["files"][name] = "0" * 64
        item["sha256"] = files.sha256_json(item["files"])

    return edit


def unpinned(section: str, revision: object) -> Callable[[], None]:
    """A hub source with a branch name, consistent in profile, dvc.lock and run.json alike."""

    def plant() -> None:
        source = {"kind": "hub", "repo": "somebody/something", "license": "MIT"}
        source |= {} if revision is None else {"revision": revision}
        edit_yaml(Path("params.yaml"), {section: {"source": source}})
        edit_lock(
            section, lambda entry: entry["params"]["params.yaml"][section].update(source=source)
        )

        def edit(record: dict[str, Any]) -> None:
            record["parameters"]["params.yaml"][section]["source"] = source
            record["key"] = stage_key(lock()["stages"][section])

        edit_record(section, edit)

    return plant


def rewrite_listing() -> None:
    path = listing_of("models/sft")
    path.chmod(0o644)
    path.write_text(path.read_text().replace("model.safetensors", "weights.safetensors"))


def other_digit() -> None:
    """One digit of an MD5 in a cached listing, which then names an object that is not there."""
    path = listing_of("data/prepared")
    text = path.read_text()
    at = text.index('"md5": "') + len('"md5": "')
    path.chmod(0o644)
    path.write_text(text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :])


def add_metric(stage: str, key: str, value: float) -> None:
    sql(
        "update latest_metrics set value = ? where run_uuid = ? and key = ?",
        value,
        run_id(stage),
        key,
    )


FAULTS: dict[str, tuple[Callable[[], object], tuple[str, str | None, str], dict[str, Any]]] = {
    # a changed byte in an output, time and size kept
    "weights": (lambda: flip(MODEL), ("output", "grpo", MODEL), {}),
    "base weights": (
        lambda: flip("models/base/model.safetensors"),
        ("output", "base_model", "models/base/model.safetensors"),
        {},
    ),
    "prepared data": (
        lambda: flip("data/prepared/eval.parquet"),
        ("output", "prepare", "data/prepared/eval.parquet"),
        {},
    ),
    "card": (
        lambda: flip("reports/model_card/README.md"),
        ("output", "model_card", "reports/model_card/README.md"),
        {},
    ),
    "evaluation samples": (
        lambda: flip("reports/evaluate/samples.parquet"),
        ("output", "evaluate", "reports/evaluate/samples.parquet"),
        {},
    ),
    "reward history": (
        lambda: flip("reports/grpo/history.csv"),
        ("output", "grpo", "reports/grpo/history.csv"),
        {},
    ),
    # a changed byte in a cache object
    "cached weights": (lambda: flip(cached(MODEL)), ("cache", "grpo", MODEL), {}),
    "cached data": (
        lambda: flip(cached("data/prepared/train.parquet")),
        ("cache", "prepare", "data/prepared/train.parquet"),
        {},
    ),
    "cached listing": (rewrite_listing, ("cache", "sft", "models/sft"), {}),
    "digit of a cached listing": (other_digit, ("cache", "prepare", "data/prepared"), {}),
    "run-cache's metrics": (
        lambda: flip(cached("reports/grpo/metrics.json")),
        ("cache", "grpo", "reports/grpo/metrics.json"),
        {},
    ),
    # a changed byte on the remote
    "remote weights": (
        lambda: flip(cached(MODEL, "../remote/files/md5")),
        ("remote", "grpo", MODEL),
        {"remote": True},
    ),
    "remote samples": (
        lambda: flip(cached("reports/grpo/samples.parquet", "../remote/files/md5")),
        ("remote", "grpo", "reports/grpo/samples.parquet"),
        {"remote": "store"},
    ),
    # a missing or extra file
    "missing file": (
        lambda: Path("models/sft/tokenizer.json").unlink(),
        ("output", "sft", "models/sft/tokenizer.json"),
        {},
    ),
    "missing folder": (lambda: shutil.rmtree("models/grpo"), ("output", "grpo", "models/grpo"), {}),
    "missing report": (
        lambda: Path("reports/sft/metrics.json").unlink(),
        ("output", "sft", "reports/sft/metrics.json"),
        {},
    ),
    "missing record": (
        lambda: Path("reports/sft/run.json").unlink(),
        ("output", "sft", "reports/sft/run.json"),
        {},
    ),
    "extra file": (
        lambda: Path("models/grpo/extra.bin").write_text("x"),
        ("output", "grpo", "models/grpo/extra.bin"),
        {},
    ),
    "extra split": (
        lambda: Path("data/prepared/more.parquet").write_text("x"),
        ("output", "prepare", "data/prepared/more.parquet"),
        {},
    ),
    "dangling link": (
        lambda: Path("models/grpo/adapter.safetensors").symlink_to("nowhere"),
        ("output", "grpo", "models/grpo/adapter.safetensors"),
        {},
    ),
    "link to a folder": (
        lambda: Path("models/grpo/more").symlink_to("../base", target_is_directory=True),
        ("output", "grpo", "models/grpo/more"),
        {},
    ),
    "link to a file": (
        lambda: Path("models/grpo/other.safetensors").symlink_to("model.safetensors"),
        ("output", "grpo", "models/grpo/other.safetensors"),
        {},
    ),
    "pipe": (lambda: os.mkfifo("models/sft/pipe"), ("output", "sft", "models/sft/pipe"), {}),
    "renamed file": (
        lambda: Path("models/base/config.json").rename("models/base/conf.json"),
        ("output", "base_model", "models/base/conf.json"),
        {},
    ),
    # a dvc.lock that disagrees with a run.json
    "locked command": (
        lambda: edit_lock("sft", lambda e: e.update(cmd="python -m other")),
        ("lock", "sft", "dvc.lock: cmd"),
        {},
    ),
    "locked parameter": (
        lambda: edit_lock(
            "grpo", lambda e: e["params"]["params.yaml"]["grpo"].update(learning_rate=1.0)
        ),
        ("lock", "grpo", "dvc.lock: params.yaml: grpo.learning_rate"),
        {},
    ),
    "locked output": (
        lambda: set_out("sft", "reports/sft/history.csv", md5="0" * 32),
        ("lock", "sft", "dvc.lock: outs: reports/sft/history.csv"),
        {},
    ),
    "locked size": (
        lambda: set_out("grpo", "models/grpo", size=1),
        ("lock", "grpo", "dvc.lock: outs: models/grpo"),
        {},
    ),
    "locked number of files": (
        lambda: set_out("grpo", "models/grpo", nfiles=1),
        ("lock", "grpo", "dvc.lock: outs: models/grpo"),
        {},
    ),
    "locked size of a dependency": (
        lambda: set_dep("grpo", "models/sft", size=1),
        ("lock", "grpo", "dvc.lock: deps: models/sft"),
        {},
    ),
    "locked hash's name taken away": (
        lambda: edit_lock("sft", lambda e: e["outs"][0].pop("hash")),
        ("lock", "sft", "dvc.lock: outs: models/sft"),
        {},
    ),
    "dependency without its hash's name": (
        lambda: edit_lock("sft", lambda e: e["deps"][0].pop("hash")),
        ("lock", "sft", "dvc.lock: deps: data/prepared/dataset.json"),
        {},
    ),
    "locked hash's name": (
        lambda: set_dep("sft", "stages/sft.py", hash="sha1"),
        ("lock", "sft", "dvc.lock: deps: stages/sft.py"),
        {},
    ),
    "swapped output": (
        lambda: set_out(
            "sft",
            "models/sft",
            md5=listing_of("models/base").parent.name + listing_of("models/base").name,
        ),
        ("lock", "sft", "models/sft/model.safetensors"),
        {},
    ),
    "locked dependency": (
        lambda: set_dep("grpo", "models/sft", md5="0" * 32 + ".dir"),
        ("lock", "grpo", "dvc.lock: deps: models/sft"),
        {},
    ),
    "locked code": (
        lambda: set_dep("sft", "stages/sft.py", md5="0" * 32),
        ("lock", "sft", "dvc.lock: deps: stages/sft.py"),
        {},
    ),
    "lock without stage": (
        lambda: edit_whole_lock(lambda s: s.pop("grpo")),
        ("lock", "grpo", "dvc.lock"),
        {},
    ),
    "lock without output": (
        lambda: edit_lock("grpo", lambda e: e.update(outs=e["outs"][1:])),
        ("lock", "grpo", "dvc.lock: outs: models/grpo"),
        {},
    ),
    "record of other bytes": (
        lambda: edit_record(
            "evaluate", other_hash("outputs", "reports/evaluate/metrics.json"), hide=False
        ),
        ("lock", "evaluate", "reports/evaluate/run.json"),
        {},
    ),
    "forged output": (
        lambda: edit_record("evaluate", other_hash("outputs", "reports/evaluate/comparison.png")),
        ("output", "evaluate", "reports/evaluate/comparison.png"),
        {},
    ),
    "forged input": (
        lambda: edit_record("evaluate", other_hash("inputs", "models/sft")),
        ("chain", "evaluate", "models/sft"),
        {},
    ),
    "forged split": (
        lambda: edit_record("grpo", other_hash("inputs", "data/prepared/train.parquet")),
        ("chain", "grpo", "data/prepared/train.parquet"),
        {},
    ),
    "forged key": (
        lambda: edit_record("sft", lambda r: r.update(key="0" * 64)),
        ("lock", "sft", "reports/sft/run.json: key"),
        {},
    ),
    "another stage's record": (
        lambda: shutil.copy("reports/sft/run.json", "reports/grpo/run.json"),
        ("record", "grpo", "reports/grpo/run.json"),
        {},
    ),
    "forged environment": (
        lambda: edit_record("grpo", lambda r: r["environment"]["packages"].update(torch="1.0")),
        ("record", "grpo", "reports/grpo/run.json"),
        {},
    ),
    "declared command": (
        lambda: Path("dvc.yaml").write_text(
            Path("dvc.yaml").read_text().replace("stages.sft", "stages.sft2")
        ),
        ("pipeline", "sft", "dvc.yaml: cmd"),
        {},
    ),
    "declared output": (
        lambda: Path("dvc.yaml").write_text(
            Path("dvc.yaml")
            .read_text()
            .replace("      - models/sft\n    metrics", "      - models/new\n    metrics")
        ),
        ("pipeline", "sft", "dvc.yaml: outs: models/new"),
        {},
    ),
    "declared parameters": (
        lambda: Path("dvc.yaml").write_text(
            Path("dvc.yaml").read_text().replace("[sft]}]", "[sft, grpo]}]")
        ),
        ("pipeline", "sft", "dvc.yaml: params: params.yaml: grpo"),
        {},
    ),
    "unreadable parameters": (
        lambda: Path("params.yaml").write_text("a: [}"),
        ("input", None, "params.yaml"),
        {},
    ),
    # code that was not committed, or is not what git holds
    "dirty code": (lambda: edit_record("sft", dirty), ("code", "sft", "reports/sft/run.json"), {}),
    "dirty code of the gate": (
        lambda: edit_record("validate", dirty),
        ("code", "validate", "reports/validate/run.json"),
        {},
    ),
    "no revision": (
        lambda: edit_record("prepare", lambda r: r["code"].update(revision=None, dirty=None)),
        ("code", "prepare", "reports/prepare/run.json"),
        {},
    ),
    "code that git does not hold": (
        lambda: edit_record("grpo", other_code("regrpo/train", "rewards.py")),
        ("code", "grpo", "regrpo/train/rewards.py"),
        {},
    ),
    # inputs changed since
    "changed reward": (
        lambda: append("regrpo/train/rewards.py"),
        ("input", "grpo", "regrpo/train/rewards.py"),
        {},
    ),
    "changed custom": (
        lambda: append("custom/rewards.py"),
        ("input", "grpo", "custom/rewards.py"),
        {},
    ),
    "new custom file": (
        lambda: append("custom/new.py"),
        ("input", "evaluate", "custom/new.py"),
        {},
    ),
    "removed task": (
        lambda: Path("stages/eval_tasks/heldout.yaml").unlink(),
        ("input", "evaluate", "stages/eval_tasks/heldout.yaml"),
        {},
    ),
    "new raw data": (
        lambda: append("data/raw/mine.jsonl", "{}\n"),
        ("input", "prepare", "data/raw/mine.jsonl"),
        {},
    ),
    "changed parameter": (
        lambda: edit_yaml(Path("params.yaml"), {"grpo": {"beta": 0.5}}),
        ("input", "grpo", "params.yaml: grpo.beta"),
        {},
    ),
    "new parameter": (
        lambda: edit_yaml(Path("params.yaml"), {"sft": {"adam_beta1": 0.5}}),
        ("input", "sft", "params.yaml: sft.adam_beta1"),
        {},
    ),
    # an unpinned hub revision
    "branch of a model": (
        unpinned("base_model", "main"),
        ("hub", "base_model", "params.yaml: base_model.source.revision"),
        {},
    ),
    "no revision of data": (
        unpinned("prepare", None),
        ("hub", "prepare", "params.yaml: prepare.source.revision"),
        {},
    ),
    # the environment, where it is asked for
    "strict package": (
        lambda: edit_record("sft", lambda r: repackage(r, {"torch": "1.0"})),
        ("environment", None, "torch"),
        {"strict_env": True},
    ),
    "strict python": (
        lambda: edit_record("sft", lambda r: repackage(r, {}, python="2.7")),
        ("environment", None, "python"),
        {"strict_env": True},
    ),
}


def edit_whole_lock(edit: Callable[[dict[str, Any]], object]) -> None:
    content = lock()
    edit(content["stages"])
    with Path("dvc.lock").open("w") as f:
        YAML(typ="safe").dump(content, f)


def never_ran(stage: str) -> None:
    edit_whole_lock(lambda stages: stages.pop(stage))
    Path(f"reports/{stage}/run.json").unlink()


def repackage(record: dict[str, Any], packages: dict[str, str], **facts: str) -> None:
    """Another environment in a record, its hash kept right."""
    there = record["environment"]
    there["packages"] |= packages
    there |= facts
    there["sha256"] = files.sha256_json(
        {key: value for key, value in there.items() if key != "sha256"}
    )


ALSO: dict[str, set[tuple[str, str | None, str]]] = {
    "cached weights": {("cache", "sft", "models/sft/model.safetensors")},
    "remote weights": {("remote", "sft", "models/sft/model.safetensors")},
    "renamed file": {("output", "base_model", "models/base/config.json")},
    "locked command": {
        ("lock", "sft", "reports/sft/run.json: key"),
        ("pipeline", "sft", "dvc.yaml: cmd"),
    },
    "locked parameter": {("lock", "grpo", "reports/grpo/run.json: key")},
    "swapped output": {
        ("lock", "evaluate", "dvc.lock: deps: models/sft"),
        ("lock", "grpo", "dvc.lock: deps: models/sft"),
        ("lock", "sft", "dvc.lock: outs: models/sft"),
    },
    "locked dependency": {("lock", "grpo", "reports/grpo/run.json: key")},
    "locked code": {("lock", "sft", "reports/sft/run.json: key")},
    "lock without output": {("pipeline", "grpo", "dvc.yaml: outs: models/grpo")},
    "record of other bytes": {
        ("chain", "model_card", "reports/evaluate/metrics.json"),
        ("chain", "model_card", "reports/evaluate/run.json"),
        ("lock", "evaluate", "reports/evaluate/metrics.json"),
        ("output", "evaluate", "reports/evaluate/metrics.json"),
    },
    "forged output": {
        ("chain", "model_card", "reports/evaluate/comparison.png"),
        ("lock", "evaluate", "reports/evaluate/comparison.png"),
    },
    "forged input": {("record", "evaluate", "reports/evaluate/run.json")},
    "declared output": {("pipeline", "sft", "dvc.yaml: outs: models/sft")},
    "code that git does not hold": {("input", "grpo", "regrpo/train/rewards.py")},
    "changed reward": {("input", "sft", "regrpo/train/rewards.py")},
    "changed custom": {("input", "evaluate", "custom/rewards.py")},
    "new custom file": {("input", "grpo", "custom/new.py")},
}
"""What else a planted fault makes untrue; nothing besides may be accused.

(Small sft and grpo weights can be equal.)
"""


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_named(copy: Path, name: str) -> None:
    plant, expected, options = FAULTS[name]
    plant()
    result = audited(**options)
    assert expected in found(result), [one["text"] for one in result["faults"]]
    if name != "another stage's record":  # nothing of that stage fits any more
        assert found(result) - {expected} <= ALSO.get(name, set())
    assert result["verdict"] == "broken"


Planted = tuple[str | None, str, Any, Any]
"""(stage, what is accused, what the files say, what MLflow says)."""


def of_run(stage: str, what: str, recorded: Any, now: Any) -> Planted:
    return stage, f"MLflow run {run_id(stage)}: {what}", recorded, now


def of_row(what: str, recorded: Any, now: Any) -> Planted:
    return None, f"MLflow row {row_id()}: {what}", recorded, now


def code_of(stage: str) -> str:
    return str(files.read_json(Path(f"reports/{stage}/run.json"))[0]["code"]["revision"])


def output_sha(stage: str, path: str) -> str:
    (record,) = files.read_json(Path(f"reports/{stage}/run.json"))
    return str(next(out["sha256"] for out in record["outputs"] if out["path"] == path))


def accuracy() -> float:
    return float(
        files.read_json(Path("reports/evaluate/metrics.json"))["tasks"]["heldout"]["models"][
            "grpo"
        ]["value"]
    )


def headline() -> str:
    evaluation = parse_metrics(Path("reports/evaluate/metrics.json").read_bytes())
    return rows.headline_tags(evaluation)["regrpo.headline"]


def shown(stage: str, metric: str, step: int) -> float:
    """A cell of history.csv."""
    with Path(f"reports/{stage}/history.csv").open() as f:
        return next(float(row[metric]) for row in csv.DictReader(f) if row["step"] == str(step))


def drop_curve(stage: str, metric: str) -> None:
    for table in ("metrics", "latest_metrics"):
        sql(f"delete from {table} where run_uuid = ? and key = ?", run_id(stage), metric)


def kept(stage: str, name: str) -> Path:
    (path,) = Path("mlartifacts").glob(f"**/{run_id(stage)}/artifacts/{name}")
    return path


def set_param(run: str, name: str, value: str) -> None:
    sql("update params set value = ? where run_uuid = ? and key = ?", value, run, name)


def set_tag(run: str, name: str, value: str) -> None:
    sql("update tags set value = ? where run_uuid = ? and key = ?", value, run, name)


def set_latest(run: str, name: str, value: float) -> None:
    sql("update latest_metrics set value = ? where run_uuid = ? and key = ?", value, run, name)


def forge_artifact() -> None:
    content = files.read_json(kept("sft", "run.json"))
    content["environment"]["packages"]["torch"] = "1.0"
    files.write_json(kept("sft", "run.json"), content)


IN_MLFLOW: dict[str, tuple[Callable[[], object], Callable[[], Planted]]] = {
    "parameter": (
        lambda: set_param(run_id("grpo"), "grpo.learning_rate", "1"),
        lambda: of_run("grpo", "params grpo.learning_rate", "0.0003", "1"),
    ),
    "parameter taken away": (
        lambda: sql("delete from params where run_uuid = ? and key = 'sft.seed'", run_id("sft")),
        lambda: of_run("sft", "params sft.seed", "0", None),
    ),
    "parameter added": (
        lambda: sql(
            "insert into params (run_uuid, key, value) values (?, 'sft.made_up', '1')",
            run_id("sft"),
        ),
        lambda: of_run("sft", "params sft.made_up", None, "1"),
    ),
    "parameter of the row": (
        lambda: set_param(row_id(), "grpo.learning_rate", "1"),
        lambda: of_row("params grpo.learning_rate", "0.0003", "1"),
    ),
    "metric": (
        lambda: set_latest(run_id("evaluate"), "heldout.grpo", 0.99),
        lambda: of_run("evaluate", "metric heldout.grpo", accuracy(), 0.99),
    ),
    "metric taken away": (
        lambda: drop_curve("grpo", "health.fired"),
        lambda: of_run("grpo", "metric health.fired", 0.0, None),
    ),
    "metric of the row": (
        lambda: set_latest(row_id(), "evaluate.heldout.grpo", 0.99),
        lambda: of_row("metric evaluate.heldout.grpo", accuracy(), 0.99),
    ),
    "headline of the row": (
        lambda: set_latest(row_id(), "headline/grpo", 0.99),
        lambda: of_row("metric headline/grpo", accuracy(), 0.99),
    ),
    "headline of the row in words": (
        lambda: set_tag(row_id(), "regrpo.headline", "99 %"),
        lambda: of_row("tags regrpo.headline", headline(), "99 %"),
    ),
    "latest value of a curve": (
        lambda: set_latest(run_id("grpo"), "reward_std", 0.99),
        lambda: of_run("grpo", "metric reward_std", shown("grpo", "reward_std", 2), 0.99),
    ),
    "hash": (
        lambda: set_tag(run_id("grpo"), "regrpo.output.models/grpo", "x"),
        lambda: of_run(
            "grpo", "tags regrpo.output.models/grpo", output_sha("grpo", "models/grpo"), "x"
        ),
    ),
    "hash taken away": (
        lambda: sql(
            "delete from tags where run_uuid = ? and key = 'regrpo.output.data/prepared'",
            run_id("prepare"),
        ),
        lambda: of_run(
            "prepare",
            "tags regrpo.output.data/prepared",
            output_sha("prepare", "data/prepared"),
            None,
        ),
    ),
    "hash of the logged model": (
        lambda: sql(
            "update logged_model_tags set tag_value = 'x' where tag_key = 'regrpo.sha256' and tag_value = ?",
            output_sha("grpo", "models/grpo"),
        ),
        lambda: of_run(
            "grpo", "logged model: tags regrpo.sha256", output_sha("grpo", "models/grpo"), "x"
        ),
    ),
    "commit": (
        lambda: set_tag(run_id("sft"), "mlflow.source.git.commit", "x"),
        lambda: of_run("sft", "tags mlflow.source.git.commit", code_of("sft"), "x"),
    ),
    "status": (
        lambda: sql("update runs set status = 'FAILED' where run_uuid = ?", run_id("sft")),
        lambda: of_run("sft", "status", "FINISHED", "FAILED"),
    ),
    "artifact": (
        lambda: flip(kept("grpo", "curves.png")),
        lambda: of_run(
            "grpo",
            "artifact curves.png",
            output_sha("grpo", "reports/grpo/curves.png"),
            files.sha256(kept("grpo", "curves.png")),
        ),
    ),
    "record": (
        forge_artifact,
        lambda: of_run(
            "sft",
            "artifact run.json: environment.packages.torch",
            stage_run.environment()["packages"]["torch"],
            "1.0",
        ),
    ),
}


def at_home(folder: Path) -> None:
    """Let a copied MLflow store find its artifacts beside it."""
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as db, db:
        for table, column in (("runs", "artifact_uri"), ("experiments", "artifact_location")):
            for (uri,) in db.execute(f"select distinct {column} from {table}").fetchall():
                if "mlartifacts" in uri:
                    moved = f"file://{folder}/mlartifacts{uri.split('mlartifacts', 1)[1]}"
                    db.execute(f"update {table} set {column} = ? where {column} = ?", (moved, uri))


@pytest.fixture
def told(copy: Path) -> Path:
    """The copy, whose MLflow store finds its artifacts here."""
    at_home(copy)
    return copy


@pytest.fixture(scope="module")
def shared(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One copy for every fault in MLflow: a store at a path of its own takes seconds to open."""
    folder = tmp_path_factory.mktemp("told") / "copy"
    shutil.copytree(finished, folder, symlinks=True)
    at_home(folder)
    return folder


@pytest.fixture
def store(
    shared: Path, tmp_path: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The shared copy, put back afterwards: database through sqlite, files by copying."""
    monkeypatch.chdir(shared)
    with contextlib.closing(sqlite3.connect(tmp_path / "kept.db")) as kept:
        with contextlib.closing(sqlite3.connect("mlflow.db")) as db:
            db.backup(kept)
        yield shared
        with contextlib.closing(sqlite3.connect("mlflow.db")) as db:
            kept.backup(db)
    shutil.copyfile(copy / "dvc.lock", "dvc.lock")
    for folder in ("reports", "mlartifacts"):
        shutil.copytree(copy / folder, folder, dirs_exist_ok=True)


@pytest.mark.parametrize("name", IN_MLFLOW)
def test_an_mlflow_run_that_differs_from_the_files_is_named_and_nothing_else(
    store: Path, name: str
) -> None:
    plant, expected = IN_MLFLOW[name]
    plant()
    result = audited(mlflow=True)
    accused = [
        (one["kind"], one["stage"], one["path"], one["recorded"], one["found"])
        for one in result["faults"]
    ]
    assert accused == [("mlflow", *expected())]
    assert (result["verdict"], result["unchecked"]) == ("broken", [])


def test_a_copied_repository_is_audited_against_its_own_artifacts(copy: Path) -> None:
    """Its store still names the original's folder."""
    (mine,) = Path("mlartifacts").glob(f"**/{run_id('grpo')}/artifacts")
    flip(mine / "curves.png")
    assert found(audited(mlflow=True)) == {
        ("mlflow", "grpo", f"MLflow run {run_id('grpo')}: artifact curves.png")
    }
    (mine / "curves.png").unlink()
    (mine / "history.csv").unlink()
    result = audited(mlflow=True)
    assert found(result, "unchecked") == {
        ("mlflow", "grpo", f"MLflow run {run_id('grpo')}: artifacts")
    }
    assert "curves.png, history.csv" in result["unchecked"][0]["text"]


# --- nothing to find ------------------------------------------------------------------------------


def assert_complete(result: Result) -> None:
    assert (result["faults"], result["unchecked"], result["verdict"]) == ([], [], "complete")


def test_the_finished_pipeline_is_complete_everywhere(told: Path) -> None:
    result = audited(mlflow=True, remote=True)
    assert_complete(result)
    assert result["notes"] == []
    assert {one["place"] for one in result["artifacts"]} == {
        "workspace",
        "cache",
        "remote",
        "mlflow",
    }
    assert {one["verdict"] for one in result["artifacts"]} == {"ok"}
    assert [one["stage"] for one in result["stages"]] == list(STAGES)


def test_new_times_of_change_are_no_fault(copy: Path) -> None:
    for file in copy.rglob("*"):
        if file.is_file() and ".git" not in file.parts:
            os.utime(file, (1, 1))
    assert_complete(audited())


def test_a_clone_is_complete_once_pulled_and_says_before_what_it_lacks(
    copy: Path, tmp_path: Path
) -> None:
    run(tmp_path, "git", "clone", "-q", str(copy), "clone of another user")
    clone = tmp_path / "clone of another user"
    with contextlib.chdir(clone):
        before = audited()
        assert before["verdict"] == "not checkable"
        assert ("output", "grpo", "models/grpo") in found(before, "unchecked")
        assert all("dvc pull" in one["text"] for one in before["unchecked"])
        assert before["faults"] == []
        assert_complete(audited(remote=True))
        run(clone, "dvc", "pull", "-q")
        assert_complete(audited(remote=True))
        gone = audited(mlflow=True)
        assert gone["verdict"] == "not checkable"
        assert "--no-mlflow" in gone["unchecked"][0]["text"]
        assert not Path("mlflow.db").exists()


def test_a_clone_without_a_remote_is_not_told_to_pull(copy: Path, tmp_path: Path) -> None:
    run(tmp_path, "git", "clone", "-q", str(copy), "clone")
    with contextlib.chdir(tmp_path / "clone"):
        run(tmp_path / "clone", "dvc", "remote", "default", "--unset")
        assert all(
            "`dvc pull -r store`" in one["text"]
            for one in audited()["unchecked"]
            if one["kind"] == "output"
        )
        run(tmp_path / "clone", "dvc", "remote", "remove", "store")
        texts = [one["text"] for one in audited()["unchecked"] if one["kind"] == "output"]
        assert texts
        assert all("no remote" in text and "`dvc repro`" in text for text in texts)


def test_objects_that_were_only_fetched_are_checked_in_the_cache(copy: Path) -> None:
    for path in ("data/prepared", "models/base", "models/sft", "models/grpo"):
        shutil.rmtree(path)
    for path in (
        "reports/validate/failures.parquet",
        "reports/validate/report.html",
        "reports/grpo/samples.parquet",
        "reports/evaluate/samples.parquet",
        "reports/model_card/README.md",
    ):
        Path(path).unlink()
    assert_complete(audited())


def test_another_environment_is_a_note_package_by_package(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = stage_run.environment()
    there = here | {
        "packages": here["packages"] | {"torch": "9.9", "made-up": "1"},
        "cpu": "another",
    }
    monkeypatch.setattr(stage_run, "environment", lambda: there)
    result = audited()
    assert_complete(result)
    assert {one["path"] for one in result["notes"]} == {"torch", "made-up", "cpu"}
    assert audited(strict_env=True)["verdict"] == "broken"


def test_experiments_restored_and_applied_are_complete_and_traced(told: Path) -> None:
    first = {one["stage"]: one["run"] for one in audited()["stages"]}
    run(told, "dvc", "exp", "run", "-q", "-n", "short", "-S", "evaluate.bootstrap=300")
    run(told, "python", "-m", "regrpo.cli", "sync")
    ran = audited(mlflow=True)
    assert_complete(ran)
    made = {one["stage"]: one["run"] for one in ran["stages"]}
    assert {stage for stage in STAGES if made[stage] != first[stage]} == {"evaluate", "model_card"}
    traced = {one["stage"]: one["text"] for one in ran["notes"] if one["kind"] == "restored"}
    (uncommitted,) = (one for one in ran["notes"] if one["kind"] == "uncommitted")
    assert uncommitted["path"] == "dvc.lock, reports/evaluate/run.json, reports/model_card/run.json"
    assert set(traced) == set(STAGES) - {"evaluate", "model_card"}
    assert run_id("grpo") in traced["grpo"]
    run(told, "git", "checkout", "-q", "--", ".")
    run(told, "dvc", "checkout", "-q", "--force")
    assert_complete(audited("short"))
    run(
        told, "dvc", "exp", "run", "-q", "-n", "again", "-S", "evaluate.bootstrap=300"
    )  # from the run-cache
    restored = audited(mlflow=False)
    assert_complete(restored)
    assert {one["stage"]: one["run"] for one in restored["stages"]} == made
    run(told, "git", "checkout", "-q", "--", ".")
    run(told, "dvc", "exp", "apply", "-q", "short")
    assert_complete(audited())

    whole = graph.of_places([workspace(told), *revisions(told)])
    data = next(
        one["found"]
        for one in restored["artifacts"]
        if one["path"] == "data/prepared/train.parquet"
    )
    reached = graph.ask(whole, data[:12], Finder(told).find, "downstream")[0].runs
    assert {first["model_card"], made["model_card"], first["grpo"]} <= reached.keys()
    assert first["prepare"] not in reached
    for named in (made["model_card"], "short"):
        upstream, starts = graph.ask(whole, named, Finder(told).find, "upstream")
        assert starts == [made["model_card"]]
        assert set(upstream.runs) == set(made.values())


# --- what cannot be checked -----------------------------------------------------------------------


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize(
    "target", ["f" * 32, "no-such-experiment", "HEAD~99", "--help-me", "0" * 40]
)
def test_an_unknown_target_is_one_line(
    copy: Path, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    code, out, err = command(capsys, "audit", "--no-mlflow", "--", target)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert target in err


@pytest.mark.parametrize(
    ("plant", "told"),
    [
        (lambda: Path("reports/sft/run.json").write_text("[{"), "corrupted"),
        (lambda: Path("reports/sft/run.json").write_text("[]"), "no list of one record"),
        (
            lambda: edit_record("sft", lambda r: r.update(schema_version=99), hide=False),
            "newer regrpo",
        ),
        (lambda: edit_record("sft", lambda r: r.update(inputs=3), hide=False), "inputs"),
        (
            lambda: edit_record(
                "sft", lambda r: r["outputs"][0].update(path="../../etc"), hide=False
            ),
            "inside",
        ),
        (lambda: cached(MODEL).unlink(), "dvc fetch"),
        (lambda: listing_of("models/sft").unlink(), "dvc fetch"),
        (lambda: shutil.rmtree(".git"), "no git repository"),
        (lambda: never_ran("model_card"), "has not run"),
    ],
)
def test_what_is_missing_or_unreadable_is_not_checkable(
    copy: Path, capsys: pytest.CaptureFixture[str], plant: Callable[[], object], told: str
) -> None:
    plant()
    code, out, _ = command(capsys, "audit", "--no-mlflow")
    assert code == 2, out
    assert all(told in line for line in out.splitlines() if line.startswith("UNCHECKED")), out
    assert "UNCHECKED" in out


@pytest.mark.parametrize(
    ("plant", "told"),
    [
        (lambda: Path("dvc.lock").unlink(), "make repro"),
        (lambda: Path("dvc.lock").write_text("stages: [}"), "corrupted"),
        (lambda: set_out("sft", "models/sft", md5=5), "corrupted"),
        (lambda: Path("dvc.yaml").write_text("stages:"), "corrupted"),
        (lambda: Path("dvc.yaml").write_text("stages: {sft: }"), "corrupted"),
        (lambda: Path("dvc.yaml").write_text("stages: {sft: {outs: }}"), "corrupted"),
        (lambda: Path("dvc.yaml").write_text("stages: {sft: {outs: [{a: 1}]}}"), "corrupted"),
        (lambda: Path("dvc.yaml").write_text("stages: [}"), "corrupted"),
        (lambda: shutil.rmtree(".dvc"), ".dvc"),
    ],
)
def test_no_pipeline_is_one_line(
    copy: Path, capsys: pytest.CaptureFixture[str], plant: Callable[[], object], told: str
) -> None:
    plant()
    code, _, err = command(capsys, "audit", "--no-mlflow")
    assert (code, err.count("\n")) == (2, 1)
    assert told in err


def test_no_remote_and_a_remote_without_the_object_are_not_checkable(copy: Path) -> None:
    weights = "models/base/model.safetensors"
    cached(weights, "../remote/files/md5").unlink()
    result = audited(remote=True)
    assert found(result, "unchecked") == {("remote", "base_model", weights)}
    assert "dvc push" in result["unchecked"][0]["text"]
    run(copy, "dvc", "remote", "remove", "store")
    assert found(audited(remote=True), "unchecked") == {("remote", None, "remote (default)")}
    assert found(audited(remote="other"), "unchecked") == {("remote", None, "remote other")}


def test_what_no_hash_tells_of_is_noted(copy: Path) -> None:
    Path("reports/grpo/mine.txt").write_text("mine")
    Path("models/grpo/.DS_Store").write_text("hidden")
    Path("models/grpo/.gitignore").write_text("*.bin")
    Path("models/sft/empty/inner").mkdir(parents=True)
    shutil.move("models/base/config.json", copy.parent / "config.json")
    Path("models/base/config.json").symlink_to(copy.parent / "config.json")
    result = audited()
    assert_complete(result)
    assert found(result, "notes") == {
        ("output", "grpo", "reports/grpo/mine.txt"),
        ("output", "grpo", "models/grpo/.DS_Store"),
        ("output", "grpo", "models/grpo/.gitignore"),
        ("output", "sft", "models/sft/empty/inner"),
        ("output", "base_model", "models/base/config.json"),
    }


def test_dvcs_own_links_and_a_lock_without_sizes_are_nothing_to_tell_of(copy: Path) -> None:
    target = cached(MODEL).resolve()
    Path(MODEL).unlink()
    Path(MODEL).symlink_to(target)
    assert audited()["notes"] == []
    edit_whole_lock(
        lambda stages: [
            one.pop(key, None)
            for entry in stages.values()
            for one in [*entry["outs"], *entry["deps"]]
            for key in ("size", "nfiles")
        ]
    )
    assert (
        run(copy, "dvc", "status", DVC_SITE_CACHE_DIR=str(copy / "site"))
        .stdout.strip()
        .endswith("up to date.")
    )
    result = audited()
    assert_complete(result)
    assert found(result, "notes") == {("uncommitted", None, "dvc.lock")}
    assert audited("HEAD")["notes"] == []


def test_raw_data_that_git_does_not_hold_is_looked_for(copy: Path) -> None:
    raw = {
        "path": "data/raw",
        "size": 2,
        "files": {"mine.jsonl": hashlib.sha256(b"{}").hexdigest()},
    }
    raw["sha256"] = files.sha256_json(raw["files"])
    set_dep(
        "prepare",
        "data/raw",
        md5=folder_md5({"mine.jsonl": str(hashing.of_bytes(b"{}").md5)}),
        size=2,
        nfiles=1,
    )
    key = stage_key(lock()["stages"]["prepare"])
    edit_record("prepare", lambda record: (record["inputs"][0].update(raw), record.update(key=key)))
    missing = ("input", "prepare", "data/raw/mine.jsonl")
    assert missing in found(audited(), "unchecked")
    assert audited()["faults"] == []
    Path("data/raw/mine.jsonl").write_text("{}")
    assert audited()["unchecked"] == []
    run(copy, "git", "commit", "-q", "-m", "forged", "dvc.lock", "reports")
    assert missing not in found(audited("HEAD"), "unchecked")


def test_a_locked_or_broken_store_is_not_checkable(told: Path) -> None:
    Path("mlflow.db").write_bytes(b"no database at all" * 100)
    result = audited(mlflow=True)
    assert result["verdict"] == "not checkable"
    assert [one["kind"] for one in result["unchecked"]] == ["mlflow"]
    assert_complete(audited())


def test_another_repository_lacks_the_commit(copy: Path) -> None:
    shutil.rmtree(".git")
    run(copy, "git", "init", "-q")
    result = audited()
    assert result["verdict"] == "not checkable"
    assert found(result, "unchecked") == {
        ("code", stage, f"reports/{stage}/run.json") for stage in STAGES
    }


# --- records of other versions, targets, output ---------------------------------------------------


def test_a_run_is_found_by_its_ids_and_revisions_by_name(told: Path) -> None:
    assert audited(run_id("sft"))["target"] == "workspace"
    assert audited(run_id("sft")[:12])["target"] == "workspace"
    assert audited(row_id(), mlflow=True)["target"] == "workspace"
    assert_complete(audited("HEAD"))
    assert audited("main")["revision"] == run(told, "git", "rev-parse", "HEAD").stdout.strip()
    with pytest.raises(CannotCheck, match="no finished stage"):
        audited("HEAD~1")


def test_uncommitted_code_is_shown_from_the_journal(copy: Path) -> None:
    diff = "--- a/stages/sft.py\n+++ b/stages/sft.py\n+<script>print('uncommitted')</script>"
    journal = next(Path(".regrpo/journal").glob("*-sft/open.json"))
    files.write_json(journal, files.read_json(journal) | {"diff": diff})
    digest = files.sha256_text(diff)
    edit_record("sft", lambda record: record["code"].update(dirty=True, diff_sha256=digest))
    (fault,) = audited()["faults"]
    assert (fault["kind"], fault["found"]["diff"]) == ("code", diff)
    assert cli.main(["audit", "--no-mlflow", "--quiet", "--html", "page.html"]) == 1
    page = Path("page.html").read_text()
    assert "<svg" in page
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "://" not in page


def test_the_command_prints_only_what_matters_and_changes_nothing(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {
        f: (f.stat().st_mtime_ns, f.stat().st_size)
        for f in copy.rglob("*")
        if f.is_file() and ".dvc/tmp" not in str(f)
    }
    code, out, _ = command(capsys, "audit", "--no-mlflow")
    assert code == 0
    assert len(out.splitlines()) == len(STAGES) + 2, out
    assert command(capsys, "audit", "--no-mlflow", "--quiet") == (0, "", "")
    code, out, _ = command(capsys, "audit", "--no-mlflow", "--json", str(copy))
    assert json.loads(out)["verdict"] == "complete"
    after = {
        f: (f.stat().st_mtime_ns, f.stat().st_size)
        for f in copy.rglob("*")
        if f.is_file() and ".dvc/tmp" not in str(f)
    }
    assert after == before


def test_lineage_as_tree_mermaid_json_and_page(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = command(capsys, "lineage")
    assert (code, out.split()[0]) == (0, "model_card")
    assert all(stage in out for stage in STAGES)
    code, out, _ = command(capsys, "lineage", "models/sft/model.safetensors")
    assert (code, out.split()[0]) == (0, "sft")
    assert "evaluate" not in out
    code, out, _ = command(capsys, "lineage", "--mermaid", "models/sft")
    assert (code, out.splitlines()[0]) == (0, "flowchart LR")
    code, out, _ = command(capsys, "lineage", "--json", "--downstream", "models/grpo")
    assert [one["stage"] for one in json.loads(out)["runs"]] == ["evaluate", "model_card"]
    code, _, _ = command(capsys, "lineage", "--html", "page.html", run_id("grpo"))
    assert code == 0
    assert Path("page.html").read_text().count('<rect class="box') == 5
    code, _, err = command(capsys, "lineage", "--no-mlflow", "nothing-of-that-name")
    assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("name", ["audit", "lineage"])
def test_a_page_that_cannot_be_written_is_one_line_and_leaves_nothing(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def full(path: Path, text: str) -> None:
        with files.replacing(path) as temporary:
            temporary.write_text(text[:1000])
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "write_text", full)
    os.mkfifo("pipe")
    before = sorted(path for path in copy.rglob("*") if ".dvc/tmp" not in str(path))
    for target, told in {
        "no/such/folder/page.html": "no folder no/such/folder",
        "models": "found a folder",
        "dvc.yaml/page.html": "no folder dvc.yaml",
        "pipe": "no regular file",
        "x" * 300: "File name too long",
        "full.html": "No space left on device",
    }.items():
        code, out, err = command(capsys, name, "--no-mlflow", "--html", target)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert told in err
        assert sorted(path for path in copy.rglob("*") if ".dvc/tmp" not in str(path)) == before


def test_a_page_takes_the_place_of_an_older_one(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("page.html").write_text("older")
    assert command(capsys, "lineage", "--html", "page.html")[0] == 0
    assert "<svg" in Path("page.html").read_text()


BREAKAGES: dict[str, tuple[Callable[[], object], str]] = {
    "configuration": (
        lambda: Path(".dvc/config").write_text("[core\n"),
        ".dvc/config: expected DVC's configuration",
    ),
    "local configuration": (
        lambda: Path(".dvc/config.local").write_bytes(b"\xff\xfe"),
        "expected DVC's configuration",
    ),
    "no git": (lambda: shutil.rmtree(".git"), "git repository"),
    "no dvc.yaml": (lambda: Path("dvc.yaml").unlink(), "dvc.yaml"),
    "store": (
        lambda: Path("mlflow.db").write_bytes(b"no database at all" * 100),
        "file is not a database",
    ),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
@pytest.mark.parametrize("name", ["audit", "lineage", "sync", "reproduce"])
def test_a_broken_repository_is_one_line_and_nothing_changes(
    copy: Path, capfd: pytest.CaptureFixture[str], breakage: str, name: str
) -> None:
    plant, told = BREAKAGES[breakage]
    plant()
    # Lineage asks MLflow only about an id that no file holds.
    arguments = ["f" * 32] if (name, breakage) == ("lineage", "store") else []
    before = {
        path: path.read_bytes()
        for path in copy.rglob("*")
        if path.is_file() and ".regrpo" not in path.parts
    }
    assert cli.main([name, *arguments]) == 2
    said = capfd.readouterr()
    if name == "audit" and breakage in (
        "no git",
        "store",
    ):  # all else is checked, and this is what is missing
        lines = [line for line in said.out.splitlines() if line.startswith("UNCHECKED")]
        assert said.err == ""
    else:
        lines = said.err.splitlines()
        assert said.out == ""
    assert len(lines) == 1, said
    assert told in lines[0]
    after = {
        path: path.read_bytes()
        for path in copy.rglob("*")
        if path.is_file() and ".regrpo" not in path.parts
    }
    assert after == before
