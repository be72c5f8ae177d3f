"""A sweep through DVC's queue with two workers, and what DVC shows of two experiments of it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from ruamel.yaml import YAML

from tests.support.projects import commit, make_project, run

pytestmark = pytest.mark.slow
SMALL = {
    "prepare": {"eval": 24, "dev": 12, "sft": 0.6},
    "validate": {"min_rows": 10},
    "sft": {"max_steps": 150, "warmup_steps": 5, "logging_steps": 10},
    # Completions of a model this young are all wrong: a second reward gives each step something to
    # learn from.
    "grpo": {
        "max_steps": 6,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "warmup_steps": 1,
        "dev_every": 2,
        "sample_every": 2,
        "reward_funcs": {"exact_answer": 1.0, "length_penalty": 0.5},
    },
    "evaluate": {"batch_size": 24, "bootstrap": 200, "tasks": ["heldout", "heldout_sampled"]},
}
SWEEP = ("-S", "grpo.learning_rate=1e-4,1e-2", "-S", "grpo.seed=range(0,2)")
NAMES = ("lr-1", "lr-2", "lr-3", "lr-4")
KEPT = ("prepare", "base_model", "validate", "sft", "select")
"""What no experiment of the sweep needs to run."""


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two by two, and a baseline that MLflow was told nothing of.

    MLflow's database is made under the queue.
    """
    folder = make_project(tmp_path_factory.mktemp("sweep") / "project", SMALL)
    run(folder, "dvc", "repro", REGRPO_TRACKING="off")
    commit(folder, "results")
    assert not (folder / "mlflow.db").exists()
    run(folder, "dvc", "exp", "run", "--queue", "-n", "lr", *SWEEP)
    assert run(folder, "git", "status", "--porcelain").stdout == "", (
        "queueing leaves the workspace as it was"
    )
    try:
        run(folder, "dvc", "queue", "start", "-j", "2")
        wait_until(lambda: statuses(folder).keys() >= set(NAMES) and not left_to_do(folder), 1200)
    finally:
        stop_queue(folder)
    run(folder, "python", "-m", "regrpo.cli", "sync")
    return folder


def statuses(folder: Path) -> dict[str, str]:
    """{experiment: what `dvc queue status` says of it}"""
    lines = [line.split() for line in run(folder, "dvc", "queue", "status").stdout.splitlines()]
    return {
        words[1]: words[-1]
        for words in lines
        if len(words) >= 4 and words[-1] in ("Queued", "Running", "Success", "Failed")
    }


def left_to_do(folder: Path) -> bool:
    return bool({"Queued", "Running"} & set(statuses(folder).values()))


def wait_until(holds: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it took too long"
        time.sleep(2)


def workers(folder: Path) -> list[psutil.Process]:
    """The queue's own processes of this project, by the ids that DVC wrote down."""
    found = []
    for file in (folder / ".dvc/tmp/exps/celery").glob("*.json"):
        with contextlib.suppress(psutil.NoSuchProcess, ValueError, KeyError):
            process = psutil.Process(json.loads(file.read_text())["pid"])
            if "queue-worker" in process.cmdline():
                found.append(process)
    return found


def stop_queue(folder: Path) -> None:
    """No worker is left alive, whatever happened."""
    run(folder, "dvc", "queue", "stop", "--kill", check=False)
    _, alive = psutil.wait_procs(workers(folder), timeout=60)
    for process in alive:
        process.kill()
    assert not alive


def stored(folder: Path, kind: str) -> list[dict[str, str]]:
    """MLflow's runs of a kind: name, status, tags and parameters."""
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as db:
        runs = {
            uuid: {"id": uuid, "name": name, "status": status}
            for uuid, name, status in db.execute("select run_uuid, name, status from runs")
        }
        for table in ("tags", "params"):
            for uuid, key, value in db.execute(f"select run_uuid, key, value from {table}"):
                runs[uuid][key] = value
    return [one for one in runs.values() if one.get("regrpo.kind") == kind]


def outputs(folder: Path, revision: str) -> dict[str, str]:
    """DVC's hash of each output of grpo and evaluate there, but the records of who ran when."""
    lock = YAML(typ="safe").load(run(folder, "git", "show", f"{revision}:dvc.lock").stdout)[
        "stages"
    ]
    outs = [out for stage in ("grpo", "evaluate") for out in lock[stage]["outs"]]
    return {out["path"]: out["md5"] for out in outs if not out["path"].endswith("run.json")}


def test_every_experiment_of_the_sweep_succeeded_and_ran_what_it_had_to(swept: Path) -> None:
    assert statuses(swept) == dict.fromkeys(NAMES, "Success")
    assert not workers(swept)
    for name in NAMES:
        log = run(swept, "dvc", "queue", "logs", name).stdout
        assert "Running stage 'grpo'" in log
        assert not [stage for stage in KEPT if f"Running stage '{stage}'" in log]


def test_mlflow_has_one_finished_row_per_experiment_and_nothing_is_running(swept: Path) -> None:
    rows = {one["name"]: one for one in stored(swept, "pipeline") if one.get("regrpo.experiment")}
    assert sorted(rows) == sorted(NAMES)
    assert len([one for one in stored(swept, "pipeline") if one.get("regrpo.experiment")]) == len(
        NAMES
    )
    settings = {(float(one["grpo.learning_rate"]), one["grpo.seed"]) for one in rows.values()}
    assert settings == {(rate, seed) for rate in (1e-4, 1e-2) for seed in ("0", "1")}
    assert len({one["regrpo.pipeline_key"] for one in rows.values()}) == len(NAMES)
    everything = [*stored(swept, "pipeline"), *stored(swept, "stage")]
    assert {one["status"] for one in everything} == {"FINISHED"}
    assert {one["regrpo.stage"] for one in stored(swept, "stage")} == {
        "grpo",
        "evaluate",
        "model_card",
    }
    parents = {one["id"]: name for name, one in rows.items()}
    assert sorted(
        parents[one["mlflow.parentRunId"]]
        for one in stored(swept, "stage")
        if one["regrpo.stage"] == "grpo"
    ) == [*NAMES]


def test_an_experiment_of_the_sweep_is_what_it_is_alone(swept: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(swept, alone, symlinks=True, ignore=shutil.ignore_patterns("exps"))
    shutil.rmtree(alone / ".dvc/cache/runs")  # nothing is to be restored
    run(
        alone,
        "dvc",
        "exp",
        "run",
        "--temp",
        "-n",
        "alone",
        "-S",
        "grpo.learning_rate=1e-2",
        "-S",
        "grpo.seed=1",
        REGRPO_TRACKING="off",
    )
    rows = {one["name"]: one for one in stored(swept, "pipeline")}
    twin = next(
        name
        for name in NAMES
        if (float(rows[name]["grpo.learning_rate"]), rows[name]["grpo.seed"]) == (0.01, "1")
    )
    found = {name: outputs(swept, ref(swept, name)) for name in NAMES}
    assert outputs(alone, ref(alone, "alone")) == found[twin]
    assert len({one["models/grpo"] for one in found.values()}) == len(NAMES), (
        "no two experiments made one model"
    )


def ref(folder: Path, name: str) -> str:
    [found] = [
        one
        for one in run(
            folder, "git", "for-each-ref", "--format=%(refname)", "refs/exps"
        ).stdout.split()
        if one.endswith(f"/{name}")
    ]
    return found


def test_plots_of_two_experiments_hold_their_series_and_no_step_that_was_not_logged(
    swept: Path,
) -> None:
    plots = json.loads(run(swept, "dvc", "plots", "diff", "lr-1", "lr-3", "--json").stdout)
    assert not plots.get("errors")
    columns = {
        "dev accuracy": "dev_accuracy",
        "reward of exact_answer": "rewards/exact_answer/mean",
        "reward spread": "reward_std",
        "groups without variance": "frac_reward_zero_std",
        "completion length": "completions/mean_length",
        "clipped completions": "completions/clipped_ratio",
        "entropy": "entropy",
        "gradient norm": "grad_norm",
        "warm start token accuracy": "mean_token_accuracy",
        "reports/grpo/history.csv": "reward",
        "reports/sft/history.csv": "loss",
    }
    assert columns.keys() < plots["data"].keys()
    for name, column in columns.items():
        [plot] = plots["data"][name]
        assert plot["revisions"] == ["lr-1", "lr-3"]
        spec = plot["content"] if isinstance(plot["content"], dict) else json.loads(plot["content"])
        assert spec["encoding"]["y"]["field"] == column
        assert spec["transform"] == [{"filter": {"not": {"field": column, "equal": ""}}}]
        for revision in ("lr-1", "lr-3"):
            drawn = [
                row
                for row in spec["data"]["values"]
                if row["rev"] == revision and row[column] != ""
            ]
            path = (
                "reports/sft/history.csv"
                if column in ("mean_token_accuracy", "loss")
                else "reports/grpo/history.csv"
            )
            written = csv.DictReader(
                io.StringIO(run(swept, "git", "show", f"{ref(swept, revision)}:{path}").stdout)
            )
            expected = [(row["step"], row[column]) for row in written if row[column]]
            assert [(row["step"], row[column]) for row in drawn] == expected
            assert expected
    for picture in ("reports/grpo/curves.png", "reports/evaluate/comparison.png"):
        assert [one["revisions"] for one in plots["data"][picture]] == [["lr-1"], ["lr-3"]]


def test_metrics_of_two_experiments_differ_where_their_reports_do(swept: Path) -> None:
    found = json.loads(run(swept, "dvc", "metrics", "diff", "lr-1", "lr-3", "--json").stdout)
    before, after = (
        json.loads(
            run(swept, "git", "show", f"{ref(swept, name)}:reports/grpo/metrics.json").stdout
        )
        for name in ("lr-1", "lr-3")
    )
    changed = {key for key in before if before[key] != after[key]}
    assert "completion_length_last" in changed
    assert found["reports/grpo/metrics.json"].keys() == changed
    for key in changed:
        assert (
            found["reports/grpo/metrics.json"][key]["old"],
            found["reports/grpo/metrics.json"][key]["new"],
        ) == (
            before[key],
            after[key],
        )
    assert not [
        path
        for path in found
        if path.startswith(("reports/prepare", "reports/base_model", "reports/sft"))
    ]


def test_the_table_of_experiments_shows_what_differs(swept: Path) -> None:
    """The very command of the README."""
    said = run(
        swept,
        "dvc",
        "exp",
        "show",
        "--csv",
        "--only-changed",
        "--drop",
        ".*(stderr|pairs|/)|State|Executor|Created",
    )
    rows = {
        row["Experiment"] or row["rev"]: row for row in csv.DictReader(io.StringIO(said.stdout))
    }
    assert rows.keys() >= set(NAMES)
    columns = set(rows["lr-1"])
    assert {"grpo.learning_rate", "grpo.seed", "completion_length_last"} <= columns
    assert not [
        name
        for name in columns
        if "stderr" in name or "pairs" in name or name.startswith(("prepare", "sft."))
    ]
    assert len(columns) < 25
    assert {(rows[name]["grpo.learning_rate"], rows[name]["grpo.seed"]) for name in NAMES} == {
        (rate, seed) for rate in ("0.0001", "0.01") for seed in ("0", "1")
    }
