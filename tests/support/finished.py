"""One finished pipeline for all tests of audits and commands; each test works on a copy of it.

DVC, git, the records and MLflow's tracker are real; what the stages would compute is made here.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from ruamel.yaml import YAML

from regrpo.core import files
from regrpo.core.dvc import declared_outputs, path_of
from regrpo.core.pipeline import record_path
from regrpo.tracking.address import sqlite_uri
from tests.support.audited import at_home
from tests.support.projects import ROOT, commit, make_project, run, run_pipeline
from tests.support.releases import write_facts
from tests.support.tracked import write_results

MAIN = '''\
def main() -> None:
    """Bring what a test made beforehand, and log the curves in it."""
    import csv
    import shutil

    with stage_run.stage({stage!r}, Params) as run:
        for path in {outputs!r}:
            made = Path({folder!r}, path)
            if made.is_dir():
                shutil.copytree(made, path, dirs_exist_ok=True)
            else:
                shutil.copyfile(made, path)
        history = run.reports / "history.csv"
        for row in csv.DictReader(history.open()) if history.exists() else ():
            step = int(row.pop("step"))
            run.log({{name: float(value) for name, value in row.items() if value}}, step)


if __name__ == "__main__":
    main()
'''
HISTORIES = {
    "sft": "step,loss,learning_rate\n5,0.9,0.001\n10,0.5,0.0\n",
    "grpo": "step,reward,reward_std,dev_accuracy\n0,,,0.25\n1,0.5,0.25,\n2,0.75,0.125,0.75\n",
}


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database without a run, to be copied: making it takes seconds."""
    from sqlalchemy import Engine, event

    event.listen(Engine, "connect", wait_for_no_disk)
    return made_once(tmp_path_factory, "store", make_store) / "mlflow.db"


def wait_for_no_disk(connection: Any, _: object) -> None:
    """MLflow commits every value by itself, and each time SQLite waits for the disk."""
    if isinstance(connection, sqlite3.Connection):
        with contextlib.suppress(sqlite3.Error):  # no database at all
            connection.execute("pragma synchronous = off")


def make_store(root: Path) -> None:
    import mlflow

    mlflow.MlflowClient(sqlite_uri(root / "mlflow.db")).search_experiments()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A finished pipeline, made once for all of pytest's processes; nothing changes it."""
    make = partial(finish, store=empty_store)
    return made_once(tmp_path_factory, "audit", make) / "finished"


def made_once(
    tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]
) -> Path:
    """A folder of that name that one of pytest's processes fills, for all of them."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    root = root / name
    with FileLock(f"{root}.lock"):
        if not Path(f"{root}.whole").exists():
            root.mkdir(exist_ok=True)
            make(root)
            Path(f"{root}.whole").touch()
    return root


def finish(root: Path, store: Path) -> None:
    """A finished pipeline: results committed, pushed to the remote beside it, told to MLflow."""
    folder = make_project(root / "finished")
    shutil.copyfile(store, folder / "mlflow.db")
    run(folder, "dvc", "remote", "add", "-q", "-d", "store", "../remote")
    stages: dict[str, Any] = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    write_results(root / "made")
    write_facts(root / "made")
    for stage, declared in stages.items():
        outputs = {path_of(out) for out in declared_outputs(declared)} - {record_path(stage)}
        for path in outputs:
            _fill(root / "made", stage, path)
        script = folder / f"stages/{stage}.py"
        head = script.read_text().partition("def main()")[0]
        script.write_text(
            head + MAIN.format(stage=stage, outputs=sorted(outputs), folder=str(root / "made"))
        )
    commit(folder, "stages that bring what was made")
    # MLflow keeps a row's artifact folder in mind as long as its process lives: copies have others.
    run_pipeline(folder)
    run(folder, "dvc", "push", "-q")
    # Two hundred tests copy it, and most of its files were bytecode and git's loose objects.
    run(folder, "git", "gc", "-q")
    for bytecode in list(folder.rglob("__pycache__")):
        shutil.rmtree(bytecode)


def make_alone(root: Path) -> Path:
    """A finished pipeline outside of pytest, for benchmarks; returns its folder."""
    store = root / "store"
    store.mkdir()
    make_store(store)
    finish(root, store / "mlflow.db")
    return root / "finished"


def _fill(made: Path, stage: str, path: str) -> None:
    """Make an output that the reports in `made` do not have yet."""
    target = made / path
    if path.startswith("models/"):
        target.mkdir(parents=True)
        for name in ("config.json", "tokenizer.json"):
            (target / name).write_text("{}")
        (target / "model.safetensors").write_text(f"the weights of {stage}")
        if stage == "grpo":
            (target / "adapter").mkdir()
            (target / "adapter/adapter_model.safetensors").write_text("what was merged")
    elif path == "data/selected":
        target.mkdir()
        shutil.copyfile(made / "data/prepared/train.parquet", target / "train.parquet")
    elif target.name == "history.csv":
        target.write_text(HISTORIES[stage])
    elif path == "reports/select/metrics.json":
        shares = dict.fromkeys(("always_right", "always_wrong", "inside", "mean_pass_rate"))
        files.write_json(target, {"questions": 4, "kept": 4} | shares)
    elif target.name == "metrics.json" and not target.exists():
        files.write_json(target, {"loss": 0.5})
    elif not target.exists():
        target.write_text(f'{{"made by": "{stage}"}}')


@pytest.fixture
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what an outer DVC or MLflow set in the environment."""
    for name in list(os.environ):
        if name.startswith(("DVC_", "MLFLOW_", "REGRPO_")):
            monkeypatch.delenv(name)


@pytest.fixture
def copy(
    finished: Path, tmp_path: Path, undisturbed: None, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A copy of it at another path, with a remote of its own; the current folder."""
    shutil.copytree(finished.parent / "remote", tmp_path / "remote")
    shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def told(copy: Path) -> Path:
    """The copy, whose MLflow store finds its artifacts here."""
    at_home(copy)
    return copy
