"""What people look at in MLflow: a row's headline, curves, tables, texts, data, models.

An experiment's sweep.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from regrpo.audit import mlflow_rules
from regrpo.core import files
from regrpo.core.pipeline import Snapshot
from regrpo.tracking import follower, rows, views
from tests.support import tracked
from tests.support.pipelines import commit
from tests.support.stores import DEAD, artifacts, only, runs

if TYPE_CHECKING:
    from regrpo.tracking.writer import Store


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, database: str) -> Iterator[Store]:
    """The store after one whole pipeline was told to it.

    Tests only look, the last tells it again.
    """
    folder = tmp_path_factory.mktemp("pipeline")
    with tracked.repository(folder, database):
        tracked.write_results(folder)
        tracked.tell(folder, "one", DEAD)
        opened = follower._open_store()
        assert follower.sync_once(opened).failures == []
        yield opened


def test_a_row_has_headline_curves_tables_description_datasets_and_models(pipeline: Store) -> None:
    store, row = pipeline, only(pipeline, kind="pipeline")
    assert {
        "headline/grpo": 0.75,
        "headline/sft": 0.5,
        "GRPO/dev_accuracy": 0.75,
    }.items() <= row.data.metrics.items()
    rewards = store.client.get_metric_history(row.info.run_id, "GRPO/reward")
    assert [(point.step, point.value) for point in rewards] == [
        (step, step / 8) for step in range(1, 9)
    ]
    assert row.data.tags["regrpo.headline"] == "50.0 % → 75.0 %, +25.0 points [+5.0, +45.0]"
    assert [name for name in row.data.tags if name.startswith("regrpo.output.")] == [
        "regrpo.output.models/grpo"
    ]
    assert {"evaluate/samples.json", "grpo/samples.json", "outputs.json"} < artifacts(store, row)
    note = row.data.tags["mlflow.note.content"]
    assert note.startswith("**Result:** 50.0 % → 75.0 %")
    assert f"/runs/{row.info.run_id}/artifacts/evaluate/samples.json?" in note
    assert f"/runs/{only(store, stage='grpo').info.run_id}?" in note
    assert "4 of 4 questions of heldout" in note
    used = {one.dataset.name: one for one in row.inputs.dataset_inputs}
    assert {name: one.tags[0].value for name, one in used.items()} == {
        "sft.parquet": "training",
        "train.parquet": "training",
        "dev.parquet": "validation",
        "eval.parquet": "evaluation",
    }
    assert json.loads(used["eval.parquet"].dataset.profile) == {"num_rows": 4}
    assert json.loads(used["eval.parquet"].dataset.schema)["mlflow_colspec"] == [
        {"name": "id", "type": "string"},
        {"name": "question", "type": "string"},
        {"name": "source_row", "type": "long"},
    ]
    assert len(store.client.get_run(row.info.run_id).outputs.model_outputs) == 3


def test_evaluated_models_have_their_scores_on_the_dataset_they_were_asked(pipeline: Store) -> None:
    store = pipeline
    scores = {
        model.name: [(one.value, one.dataset_name) for one in model.metrics if one.key == "heldout"]
        for model in store.client.search_logged_models([store.experiment_id])
    }
    asked = "eval.parquet"
    assert scores == {
        "tiny-sums-base": [(0.0, asked)],
        "tiny-sums-sft": [(0.5, asked)],
        "tiny-sums-grpo": [(0.75, asked)],
    }
    evaluate = only(store, stage="evaluate")
    assert evaluate.data.metrics["heldout"] == 0.75
    assert len(store.client.get_run(evaluate.info.run_id).inputs.model_inputs) == 3


def test_told_again_after_a_kill_nothing_is_there_twice(pipeline: Store, tmp_path: Path) -> None:
    store, root = pipeline, Path(os.environ["DVC_ROOT"])

    def state() -> list[Any]:
        row, stages = only(store, kind="pipeline"), runs(store, kind="stage")
        table = files.read_json(
            Path(
                store.client.download_artifacts(
                    row.info.run_id, "evaluate/samples.json", str(tmp_path)
                )
            )
        )
        history = {
            (run.info.run_name, name): len(store.client.get_metric_history(run.info.run_id, name))
            for run in (row, *stages)
            for name in run.data.metrics
        }
        held = [store.client.get_run(run.info.run_id) for run in (row, *stages)]
        models = [
            (run.info.run_name, len(run.outputs.model_outputs), len(run.inputs.model_inputs))
            for run in held
        ]
        return [len(table["data"]), history, sorted(models)]

    before = state()
    for journal in (root / ".regrpo" / "journal").iterdir():
        notes = files.read_json(journal / "mlflow.json")
        files.write_json(
            journal / "mlflow.json", {key: value for key, value in notes.items() if key != "ended"}
        )
        (journal / "sent").unlink()
    assert follower.sync_once(store).failures == []
    assert state() == before


def test_an_experiment_of_a_queue_names_its_sweep_and_what_it_changes(
    root: Path, store: Store
) -> None:
    profile = {"profile": "params.yaml"} | tracked.SECTIONS
    tracked.write_results(root)
    files.write_json(root / "params.yaml", profile)
    files.write_json(root / "dvc.lock", {})
    commit(root)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run([*git, "add", "params.yaml"], check=True)
    subprocess.run([*git, "commit", "-qm", "profile"], check=True)
    baseline = subprocess.run(
        ["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    changed = tracked.SECTIONS | {"grpo": {"seed": 3, "learning_rate": 1e-4}}
    for number, name in enumerate(("lr-2", "lively-one")):
        sections = changed if name == "lr-2" else tracked.SECTIONS
        tracked.tell(
            root, name, [2**22 + 5 + number, 1.0], sections, experiment=name, baseline=baseline
        )
        commit(root, f"refs/exps/{baseline[:2]}/{baseline[2:]}/{name}")
    assert follower.sync_once(store).failures == []
    swept, plain = (
        only(store, kind="pipeline", sweep="lr"),
        only(store, kind="pipeline", experiment="lively-one"),
    )
    assert swept.data.tags["regrpo.changed"] == "grpo.learning_rate=0.0001 grpo.seed=3"
    assert (
        "**Changed:** `grpo.learning_rate=0.0001 grpo.seed=3`"
        in swept.data.tags["mlflow.note.content"]
    )
    assert (swept.info.run_name, swept.info.status) == ("lr-2", "FINISHED")
    assert not {"regrpo.sweep", "regrpo.changed"} & set(plain.data.tags)
    assert {run.info.run_name for run in runs(store, stage="grpo")} == {
        "grpo lr-2",
        "grpo lively-one",
    }


@pytest.mark.parametrize(
    ("name", "sweep"),
    [
        ("lr-1", "lr"),
        ("lr-rate-12", "lr-rate"),
        ("lively-one", None),
        ("lr1", None),
        ("-1", None),
        ("lr-1a", None),
        (None, None),
    ],
)
def test_only_a_name_with_a_number_is_of_a_sweep(
    root: Path, name: str | None, sweep: str | None
) -> None:
    tags = rows.experiment_tags(name, None, "params.yaml", {}, root)
    assert tags.get("regrpo.sweep") == sweep


def test_what_an_experiment_changes_is_told_against_its_own_profile(root: Path) -> None:
    first = {"profile": "params.yaml", "grpo": {"seed": 0, "lora": {"r": 8}}}
    files.write_json(root / "params.yaml", first)
    files.write_json(root / "other.yaml", {"grpo": {"seed": 5}})
    (root / "broken.yaml").write_text("grpo: [")
    baseline = Snapshot(root)
    assert rows.changed(baseline, "params.yaml", {"grpo": {"seed": 0, "lora": {"r": 8}}}) == ""
    assert rows.changed(baseline, "params.yaml", {"grpo": {"seed": 1, "lora": None}}) == (
        "grpo.lora=null grpo.lora.r=null grpo.seed=1"
    )
    assert rows.changed(baseline, "other.yaml", {"grpo": {"seed": 5}}) == "profile=other.yaml"
    assert rows.changed(baseline, "broken.yaml", {"grpo": {"seed": 5}}) is None
    assert rows.changed(baseline, "gone.yaml", {"grpo": {"seed": 5}}) is None


def test_a_row_may_lack_what_only_says_the_result_again(root: Path) -> None:
    expected = {"headline/grpo": 0.5, "grpo.steps": 8.0}
    assert mlflow_rules._told(expected, {"grpo.steps": 8.0}) == {"grpo.steps": 8.0}
    assert mlflow_rules._told(expected, {"headline/grpo": 0.9}) == expected


def test_make_ui_prints_addresses_that_open_the_saved_view(root: Path, store: Store) -> None:
    command = [
        sys.executable,
        "-m",
        "regrpo.tracking.follower",
        "--addresses",
        "http://127.0.0.1:5000",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split() for line in done.stdout.splitlines())
    assert lines == views.addresses("http://127.0.0.1:5000", store.experiment_id)
    assert views.SHARED + views.KEY in store.client.get_experiment(store.experiment_id).tags
