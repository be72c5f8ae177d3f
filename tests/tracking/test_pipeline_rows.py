"""A pipeline as one row of MLflow's table: values, curves, tables, files, data and models."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from regrpo.core import files
from regrpo.core.pipeline import Snapshot
from regrpo.core.profiles import STAGES
from regrpo.tracking import passes
from tests.support import tracked
from tests.support.pipelines import commit, digest, write_pipeline, write_stage
from tests.support.stores import DEAD, artifacts, finished_journal, only, open_journal, runs

if TYPE_CHECKING:
    from regrpo.tracking.store import Store


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, database: str) -> Iterator[Store]:
    """The store after a pass over one whole pipeline: tests only look, or make the pass again."""
    folder = tmp_path_factory.mktemp("pipeline")
    with tracked.repository(folder, database):
        tracked.write_results(folder)
        tracked.write_journals(folder, "one", DEAD)
        opened = passes.open_store()
        assert passes.sync_once(opened).failures == []
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
    assert "4 of 4 questions of heldout" in note
    used = {one.dataset.name: one for one in row.inputs.dataset_inputs}
    assert {name: one.tags[0].value for name, one in used.items()} == {
        "sft.parquet": "training",
        "train.parquet": "training",
        "dev.parquet": "validation",
        "eval.parquet": "evaluation",
    }
    source = json.loads(used["eval.parquet"].dataset.source)
    assert source == {"uri": "data/prepared/eval.parquet"}
    assert json.loads(used["eval.parquet"].dataset.profile) == {"num_rows": 4}
    assert json.loads(used["eval.parquet"].dataset.schema)["mlflow_colspec"] == [
        {"name": "id", "type": "string"},
        {"name": "question", "type": "string"},
        {"name": "source_row", "type": "long"},
    ]
    assert len(store.client.get_run(row.info.run_id).outputs.model_outputs) == 3


def test_evaluated_models_have_their_scores_on_the_dataset_they_were_asked(pipeline: Store) -> None:
    store, asked = pipeline, "eval.parquet"
    scores = {}
    for model in store.client.search_logged_models([store.experiment_id]):
        found = [one for one in model.metrics if one.key in ("heldout", "asked")]
        scores[model.name] = [(one.key, one.value, one.dataset_name) for one in found]
    assert scores == {
        "tiny-sums-base": [("heldout", 0.0, asked)],
        "tiny-sums-sft": [("heldout", 0.5, asked)],
        "tiny-sums-grpo": [("heldout", 0.75, asked)],
    }
    evaluate = only(store, stage="evaluate")
    assert evaluate.data.metrics["heldout"] == 0.75, "a run shows its last model's"
    assert len(store.client.get_run(evaluate.info.run_id).inputs.model_inputs) == 3


def held(store: Store, folder: Path) -> dict[str, Any]:
    """How much every run of the store holds: points of metrics, data, models, rows of a table."""
    found: dict[str, Any] = {}
    for run in runs(store):
        run_id, name = run.info.run_id, run.info.run_name
        whole = store.client.get_run(run_id)
        found[f"{name}: datasets"] = len(whole.inputs.dataset_inputs)
        found[f"{name}: models read"] = len(whole.inputs.model_inputs)
        found[f"{name}: models made"] = len(whole.outputs.model_outputs)
        for metric in run.data.metrics:
            history = store.client.get_metric_history(run_id, metric)
            found[f"{name}: {metric}"] = len(history)
    row = only(store, kind="pipeline").info.run_id
    table = store.client.download_artifacts(row, "evaluate/samples.json", str(folder))
    found["table"] = len(files.read_json(Path(table))["data"])
    return found


def test_written_again_after_a_kill_nothing_is_there_twice(pipeline: Store, tmp_path: Path) -> None:
    before = held(pipeline, tmp_path)
    for journal in Path(os.environ["DVC_ROOT"]).glob(".regrpo/journal/*"):
        notes = files.read_json(journal / "mlflow.json")
        notes.pop("ended")
        files.write_json(journal / "mlflow.json", notes)
        (journal / "sent").unlink()
    assert passes.sync_once(pipeline).failures == []
    assert held(pipeline, tmp_path) == before


def test_a_finished_execution_is_one_row_with_the_whole_pipeline(root: Path, store: Store) -> None:
    write_pipeline(root)
    # Restored: no process ran in this execution.
    write_stage(root, "prepare", mlflow_run_id="the run that made it")
    (root / "reports" / "grpo" / "curves.png").write_bytes(b"png")
    for stage in STAGES[1:]:
        finished_journal(root, stage, execution=DEAD)
    passes.sync_once(store)

    row = only(store, kind="pipeline")
    key = str(Snapshot(root).pipeline_key())
    assert (row.info.run_name, row.info.status) == (f"pipeline {key[:12]}", "FINISHED")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs(store, kind="stage")} == {
        row.info.run_id
    }
    assert {f"{stage}.seed" for stage in STAGES} <= set(row.data.params)
    assert row.data.metrics == {
        "headline/grpo": 0.9,
        "grpo.steps": 80.0,
        "grpo.reward_last": 0.9,
        "grpo.health.fired": 0.0,
        "evaluate.heldout.n": 300.0,
        "evaluate.heldout.grpo": 0.9,
        "evaluate.heldout.grpo.ci95_low": 0.86,
        "evaluate.heldout.grpo.ci95_high": 0.93,
    }
    expected = {
        "regrpo.pipeline_key": key,
        "regrpo.stage.prepare": "the run that made it",
        "regrpo.stage.grpo": "grpo-0",
        "regrpo.output.models/grpo": digest("models/grpo 0"),
        "regrpo.health": "healthy",
        "regrpo.complete": "true",
    }
    assert expected.items() <= row.data.tags.items()
    assert artifacts(store, row) == {"grpo/curves.png", "outputs.json"}
    models = store.client.search_logged_models([store.experiment_id])
    assert {model.name: model.tags["regrpo.sha256"] for model in models} == {
        f"Tiny-1-5-{name}": digest(f"models/{name} 0") for name in ("base", "sft", "grpo")
    }


def test_an_execution_that_failed_shows_nothing_of_an_earlier_one(root: Path, store: Store) -> None:
    write_pipeline(root)
    failed = open_journal(root, "grpo", execution=DEAD, run="another")
    failed.close("FAILED", None)
    passes.sync_once(store)
    row = only(store, complete="false")
    assert (row.info.status, row.data.metrics) == ("FAILED", {})
    assert row.data.tags["regrpo.stage.grpo"] == only(store, run="another").info.run_id
    assert "regrpo.pipeline_key" not in row.data.tags


def test_an_experiment_of_a_queue_names_its_sweep_and_what_it_changes(
    root: Path, store: Store
) -> None:
    profile = {"profile": "params.yaml"} | tracked.SECTIONS
    tracked.write_results(root)
    files.write_json(root / "params.yaml", profile)
    files.write_json(root / "dvc.lock", {})
    commit(root)
    subprocess.run(["git", "add", "params.yaml"], check=True)
    baseline = commit(root)
    changed = tracked.SECTIONS | {"grpo": {"seed": 3, "learning_rate": 1e-4}}
    for number, name in enumerate(("lr-2", "lively-one")):
        sections = changed if name == "lr-2" else tracked.SECTIONS
        tracked.write_journals(
            root, name, [2**22 + 5 + number, 1.0], sections, experiment=name, baseline=baseline
        )
        commit(root, f"refs/exps/{baseline[:2]}/{baseline[2:]}/{name}")
    assert passes.sync_once(store).failures == []
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
