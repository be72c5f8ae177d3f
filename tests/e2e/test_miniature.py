"""The real pipeline at miniature scale: each stage a real process under DVC, MLflow included."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from regrpo.core.profiles import STAGES, read_yaml
from tests.support.projects import MODEL_FILES, edit_yaml, make_project, run, run_pipeline
from tests.support.results import outputs, rows


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature project after `dvc repro` and `regrpo sync`, results committed."""
    folder = make_project(tmp_path_factory.mktemp("e2e") / "first")
    run_pipeline(folder)
    return folder


STATUS = """\
import json, pathlib, sys
from dvc.repo import Repo
found = []
for name, text in json.loads(pathlib.Path(sys.argv[1]).read_text()):
    path = pathlib.Path(name)
    before = path.read_text() if path.exists() else None
    path.write_text(text)
    with Repo() as repo:
        found.append(list(repo.status()))
    path.unlink() if before is None else path.write_text(before)
print(json.dumps(found))
"""


def changed_stages(folder: Path, changes: list[tuple[str, str]]) -> list[set[str]]:
    """The stages that `dvc repro` would run after each change alone: (path, its text).

    Those downstream of a changed stage are not counted. One process asks DVC for all of them.
    """
    asked = folder.parent / "changes.json"
    asked.write_text(json.dumps(changes))
    said = run(folder, "python", "-c", STATUS, str(asked)).stdout
    return [set(stages) for stages in json.loads(said)]


def test_every_stage_ran_and_left_its_record(finished: Path) -> None:
    lock = read_yaml(finished / "dvc.lock")["stages"]
    assert set(lock) == set(STAGES)
    for stage in STAGES:
        [record] = json.loads((finished / f"reports/{stage}/run.json").read_text())
        assert record["schema_version"] == 1
        assert record["stage"] == stage
        declared = {out["path"] for out in lock[stage]["outs"]} - {f"reports/{stage}/run.json"}
        assert {out["path"] for out in record["outputs"]} == declared
        text = json.dumps(record)
        assert str(finished) not in text
        assert os.uname().nodename not in text


def test_models_hold_model_files_only_and_no_pickle(finished: Path) -> None:
    for model in ("base", "sft", "grpo"):
        assert {file.name for file in (finished / "models" / model).iterdir()} == MODEL_FILES


def test_training_leaves_the_tokenizer_as_it_is(finished: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (
            len(
                {
                    (finished / "models" / model / name).read_bytes()
                    for model in ("base", "sft", "grpo")
                }
            )
            == 1
        ), name


def test_mlflow_has_one_finished_parent_and_a_finished_run_per_stage(finished: Path) -> None:
    parents, stages = rows(finished, "pipeline"), rows(finished, "stage")
    [parent] = parents
    assert (parent["name"], parent["status"]) == (
        f"regrpo-chain-sum {parent['regrpo.pipeline_key'][:12]}",
        "FINISHED",
    )
    assert sorted(one["regrpo.stage"] for one in stages) == sorted(STAGES)
    assert {one["status"] for one in stages} == {"FINISHED"}
    assert {one["mlflow.parentRunId"] for one in stages} == {parents[0]["id"]}
    for one in stages:
        [record] = json.loads((finished / f"reports/{one['regrpo.stage']}/run.json").read_text())
        assert record["mlflow_run_id"] == one["id"]
        assert record["key"] == one["regrpo.key"]


def test_the_reward_curve_is_in_mlflow_step_by_step(finished: Path) -> None:
    run_id = next(one["id"] for one in rows(finished, "stage") if one["regrpo.stage"] == "grpo")
    with contextlib.closing(sqlite3.connect(finished / "mlflow.db")) as db, db:
        steps = [
            step
            for (step,) in db.execute(
                "select step from metrics where run_uuid = ? and key = 'reward' order by step",
                (run_id,),
            )
        ]
    assert steps == [1, 2, 3, 4]


def test_a_second_repro_runs_nothing(finished: Path) -> None:
    said = run(finished, "dvc", "repro").stdout
    assert "Running stage" not in said
    assert "up to date" in said


def test_the_stage_key_is_what_dvc_lock_says(finished: Path) -> None:
    from regrpo.core.pipeline import stage_key

    lock = read_yaml(finished / "dvc.lock")["stages"]
    for stage in STAGES:
        assert json.loads((finished / f"reports/{stage}/run.json").read_text())[0][
            "key"
        ] == stage_key(lock[stage])


@pytest.mark.slow  # make repro and .ci/same_bytes.py say it of the default each time
def test_the_same_bytes_from_another_path_without_observers(finished: Path, tmp_path: Path) -> None:
    """Determinism, and the observers' law: records and tracking change no other output."""
    other = make_project(tmp_path / "some other path", with_git=False)
    (other / "bare.py").write_text(
        "import contextlib, importlib, sys, types\n"
        "from pathlib import Path\n"
        "observers = types.ModuleType('regrpo.records.stage_run')\n"
        "class Run:\n"
        "    def __class_getitem__(cls, item): return cls\n"
        "    def __init__(self, stage, values):\n"
        "        self.stage, self.params, self.reports = stage, values, Path('reports') / stage\n"
        "        self.reports.mkdir(parents=True, exist_ok=True)\n"
        "    def log(self, values, step=0): pass\n"
        "    def attach(self, path, name=None): pass\n"
        "    def checkpoint_folder(self, device): return Path('.checkpoints') / self.stage\n"
        "@contextlib.contextmanager\n"
        "def stage(name, model):\n"
        "    from regrpo.core import profiles\n"
        "    section = profiles.read_profile(profiles.active_profile())[name]\n"
        "    yield Run(name, profiles.parse_section(model, section, name))\n"
        "observers.stage, observers.Run = stage, Run\n"
        "import regrpo.records\n"
        "sys.modules['regrpo.records.stage_run'] = regrpo.records.stage_run = observers\n"
        "importlib.import_module('stages.' + sys.argv[1]).main()\n"
    )
    for stage in STAGES[:-1]:
        run(other, "python", "bare.py", stage)
        shutil.copyfile(
            finished / f"reports/{stage}/run.json", other / f"reports/{stage}/run.json"
        )  # the card reads it
    run(other, "python", "bare.py", "model_card")
    assert outputs(other) == outputs(finished)


def test_what_a_change_runs_again(finished: Path, tmp_path: Path) -> None:
    """Each change of the list touches exactly what uses it."""
    folder = tmp_path / "clone"
    shutil.copytree(finished, folder, symlinks=True)
    run(folder, "dvc", "checkout", "--force")

    def commented(path: str) -> str:
        return (folder / path).read_text() + "\n# a comment\n"

    def edited(section: str, **values: Any) -> str:
        profile = tmp_path / "params.yaml"
        shutil.copyfile(folder / "params.yaml", profile)
        edit_yaml(profile, {section: values})
        return profile.read_text()

    parameters = (folder / "params.yaml").read_text()
    changes: list[tuple[str, str, set[str]]] = [
        ("params.yaml", parameters, set()),
        ("params.yaml", commented("params.yaml"), set()),
        ("params.yaml", edited("grpo", learning_rate=1e-4), {"grpo"}),
        ("params.yaml", edited("evaluate", tasks=["heldout"]), {"evaluate"}),
        ("data/raw/mine.jsonl", '{"question": "1+1"}\n', {"prepare"}),
    ]
    code = {
        "regrpo/tracking/follower.py": set(),
        "regrpo/records/stage_run.py": set(),
        "regrpo/core/text.py": set(STAGES),
        "regrpo/train/rewards.py": {"validate", "sft", "grpo"},
        "regrpo/inputs/gate.py": {"prepare", "base_model", "validate"},
        "custom/rewards.py": {"validate", "grpo", "evaluate"},
        "custom/formats.py": {"prepare", "validate", "grpo", "evaluate"},
        "custom/verifiers.py": set(STAGES) - {"base_model"},
        "stages/eval_tasks/heldout.yaml": {"evaluate"},
    }
    changes += [(path, commented(path), stages) for path, stages in code.items()]
    found = changed_stages(folder, [(path, text) for path, text, _ in changes])
    assert found == [stages for _, _, stages in changes]


@pytest.mark.slow
def test_experiments_have_their_rows_in_the_same_store(finished: Path) -> None:
    """In the workspace, in a temporary folder, and restored wholly from cache."""
    done = run(finished, "dvc", "exp", "run", "-n", "short", "-S", "grpo.max_steps=3")
    ran = [
        line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")
    ]
    assert ran == ["grpo", "evaluate", "model_card"]
    run(finished, "git", "checkout", "-q", "--", ".")
    run(finished, "dvc", "checkout", "--force")
    run(finished, "dvc", "exp", "run", "--temp", "-n", "apart", "-S", "grpo.max_steps=2")
    run(finished, "dvc", "exp", "run", "-n", "again", "-S", "grpo.max_steps=3")
    run(finished, "python", "-m", "regrpo.cli", "sync")
    parents = {one["name"]: one for one in rows(finished, "pipeline")}
    [plain] = set(parents) - {"short", "apart", "again"}
    assert plain.startswith("regrpo-chain-sum ")
    assert parents["short"]["regrpo.changed"] == "grpo.max_steps=3"
    assert {one["status"] for one in parents.values()} == {"FINISHED"}
    assert (
        parents["again"]["regrpo.pipeline_key"]
        == parents["short"]["regrpo.pipeline_key"]
        != parents["apart"]["regrpo.pipeline_key"]
    )
    with contextlib.closing(sqlite3.connect(finished / "mlflow.db")) as db, db:
        steps = dict(
            db.execute(
                "select name, value from params join runs using (run_uuid) "
                "where key = 'grpo.max_steps' and name in ('short', 'apart', 'again')"
            )
        )
    assert steps == {"short": "3", "apart": "2", "again": "3"}
    assert not {one["status"] for one in rows(finished, "stage")} & {"RUNNING"}
    run(finished, "git", "checkout", "-q", "--", ".")
    run(finished, "dvc", "checkout", "--force")


def test_dvc_reads_metrics_plots_and_the_graph(finished: Path) -> None:
    metrics = json.loads(run(finished, "dvc", "metrics", "show", "--json").stdout)
    shown = metrics[""]["data"]
    assert "reports/evaluate/metrics.json" in shown
    assert "reports/grpo/metrics.json" in shown
    page = run(finished, "dvc", "plots", "show", "-o", "plots").stdout
    assert (finished / "plots/index.html").exists(), page
    shutil.rmtree(finished / "plots")
    assert "grpo" in run(finished, "dvc", "dag").stdout


@pytest.mark.slow
def test_a_failing_gate_stops_training_and_leaves_the_lock_of_what_follows(
    finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "clone"
    shutil.copytree(finished, folder, symlinks=True)
    before = read_yaml(folder / "dvc.lock")["stages"]
    (folder / "data/raw/mine.jsonl").write_text(
        "".join(
            json.dumps({"id": "same", "question": f"{a}+{b}+{c}=", "answer": str(a + b + c)}) + "\n"
            for a in range(5)
            for b in range(5)
            for c in range(5)
        )
    )
    edit_yaml(
        folder / "params.yaml",
        {
            "prepare": {
                "source": {"kind": "local", "train": "mine.jsonl", "license": "CC0-1.0"},
                "drop_duplicates": False,
                "eval": 10,
                "dev": 10,
            }
        },
    )
    done = run(folder, "dvc", "repro", check=False)
    assert done.returncode != 0
    assert "same" in done.stderr
    assert "validate" in done.stderr
    after = read_yaml(folder / "dvc.lock")["stages"]
    assert {stage: after[stage] for stage in STAGES[2:]} == {
        stage: before[stage] for stage in STAGES[2:]
    }
    run(folder, "git", "checkout", "-q", "--", ".")
    run(folder, "dvc", "checkout", "--force")
    assert outputs(folder) == outputs(finished)
