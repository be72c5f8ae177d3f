"""The benchmarks of training: what they count, compare and fit; TRL alone ends in the same bits."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import projects
from tests.support.trainings import run_for, section, warmed_up

BENCHMARKS = projects.ROOT / "benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a script of benchmarks/, its neighbours beside it, as when it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_the_law_is_a_line_or_a_power_whichever_fits(module: Any) -> None:
    laws = module("laws")
    line = laws.fit([10, 20, 40], [1.1, 1.2, 1.4])
    assert line.power == 1
    assert line.start == pytest.approx(1.0)
    assert line.factor == pytest.approx(0.01)
    assert line.sentence("completions") == "1 s + 10 ms × completions (R² 1.000)"
    curve = laws.fit([1, 2, 4], [3.0, 12.0, 48.0])
    assert curve.power == pytest.approx(2.0)
    assert curve.sentence("tokens") == "3 s × (tokens)^2.00 (R² 1.000)"
    assert laws.fit([1, 2, 3], [1.0, 5.0, 2.0]).r2 < 0.3, "no law"
    with pytest.raises(ValueError, match="three points"):
        laws.fit([1, 2], [1.0, 2.0])


def test_a_growth_row_says_the_law_and_how_much_the_largest_takes(module: Any) -> None:
    seconds = [[0.1, 0.1], [0.2, 0.2], [0.4, 0.5]]
    row = module("step_time").law_row("completions", [32, 64, 128], seconds)
    assert row.what == "grpo step, 4 times as many completions"
    assert (row.min, row.max, row.unit) == (4.0, 5.0, "times as long")
    assert row.note.endswith(", 32 to 128")


def test_what_lies_inside_another_part_counts_for_the_outer_one(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = module("training_case")
    now = SimpleNamespace(time=lambda: 0.0, process_time=lambda: now.time() / 2)
    monkeypatch.setattr(case, "time", now)

    def passing(seconds: float) -> None:
        moment = now.time() + seconds
        now.time = lambda: moment

    class Trainer:
        def save_model(self) -> None:
            passing(2.0)

        def train(self) -> None:
            passing(10.0)
            self.save_model()

        @classmethod
        def from_pretrained(cls) -> Trainer:
            passing(3.0)
            return cls()

    clock = case.Clock(0.0)
    for method, name in (("train", "train"), ("save_model", "save"), ("from_pretrained", "load")):
        clock.watch(Trainer, method, name)
    clock.marks["work"] = 0.0
    trainer = Trainer.from_pretrained()
    passing(1.0)
    trainer.train()
    trainer.save_model()
    assert clock.seconds() == {"load": 3.0, "train": 12.0, "save": 2.0, "rows": 1.0}
    assert clock.processor == {"load": 1.5, "train": 6.0, "save": 1.0}


def test_dev_is_noted_with_its_time_and_ends_the_run_it_was_waited_for(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = module("training_case")
    monkeypatch.setattr(case, "time", SimpleNamespace(time=lambda: 7.0))
    clock = case.Clock(0.0)
    clock.marks["train"] = 5.0

    class Dev:
        def measure(self, args: Any, state: Any, **parts: Any) -> None:
            state.log_history.append({"step": 1, "dev_accuracy": parts["accuracy"]})

    case.watch_dev(Dev, clock, 0.8)
    state = SimpleNamespace(log_history=[])
    Dev().measure(None, state, accuracy=0.5)
    with pytest.raises(case.Reached):
        Dev().measure(None, state, accuracy=0.9)
    assert [(row["dev_accuracy"], row["seconds"]) for row in clock.dev] == [(0.5, 2.0), (0.9, 2.0)]


def test_defaults_get_as_many_completions_and_dev_as_often(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    defaults = module("defaults")
    config = SimpleNamespace(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    trl = SimpleNamespace(SFTConfig=None, GRPOConfig=lambda **_: config)
    monkeypatch.setitem(sys.modules, "trl", trl)
    trainer = {"output_dir": "bare", "seed": 1, "use_cpu": True, "max_steps": 10}
    trainer |= {"per_device_train_batch_size": 64, "learning_rate": 3e-4, "report_to": "none"}
    settings = {"trainer": trainer, "dev": {"data": "dev.parquet", "every": 5}, "threads": 1}
    made = defaults.by_defaults("grpo", settings)
    assert made["trainer"]["max_steps"] == 80, "of 4 × 2 completions each"
    assert made["dev"] == {"data": "dev.parquet", "every": 40}
    assert "learning_rate" not in made["trainer"]
    assert made["trainer"]["seed"] == 1
    assert settings["dev"]["every"] == 5


def test_settings_that_do_not_get_there_have_no_ratio(module: Any) -> None:
    defaults = module("defaults")
    last = {"step": 20, "dev_accuracy": 0.9}
    reached = {"seconds": 30.0, "trained": 30.0, "dev": last}
    other = reached | {
        "seconds": None,
        "trained": 400.0,
        "dev": {"step": 2560, "dev_accuracy": 0.3},
    }
    row = defaults.row_of("grpo", lambda: reached, lambda: other, 5)
    assert (row.ours, row.peer, row.ratio, row.rounds) == (30.0, None, None, 1)
    assert "TRL's defaults: not reached: 0.30 after 2,560 steps and 400 s" in row.note
    both = defaults.row_of("grpo", lambda: reached, lambda: reached | {"seconds": 60.0}, 3)
    assert (both.ratio, both.rounds) == (0.5, 3)


def test_the_whole_process_is_itemised(
    module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    training, workspace = module("training"), module("workspace")
    items = {"imports": 4.0, "load": 1.0, "rows": 2.0, "train": 20.0, "save": 0.5}

    def run(folder: Path, *command: str, **variables: str) -> str:
        slower = 1.1 if command[3] == "stage" else 1.0
        seconds = items | {"train": items["train"] * slower}
        found = {"seconds": seconds, "processor": {"train": 19.0}, "dev": []}
        (folder / "case.json").write_text(json.dumps(found))
        return ""

    monkeypatch.setattr(workspace, "run", run)
    monkeypatch.setattr(training, "write_bare_settings", lambda folder, stage: f"{stage}.json")
    monkeypatch.setattr(training, "require_same_weights", lambda folder, stage: None)
    rows = {row.what: row for row in training.stage_rows(tmp_path, "sft", "sft", 2)}
    assert rows["sft: trainer.train()"].ratio == pytest.approx(1.1)
    assert module("timing").holds(rows["sft: trainer.train()"]) is False
    assert rows["sft, tracking on and off: trainer.train()"].ratio == pytest.approx(1.0)
    assert (rows["sft: rows"].ours, rows["sft: rows"].peer) == (2.0, 2.0)
    assert set(training.ITEMS) == set(items) - {"train"} | {"rest"}


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_trl_alone_ends_in_the_stages_weights(
    module: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
    stage: str,
) -> None:
    training = module("training")
    folder = tmp_path_factory.mktemp("bare") / "copy"
    shutil.copytree(warmed_up(tmp_path_factory), folder)
    shutil.copyfile(projects.ROOT / "params.yaml", folder / "params.yaml")
    steps = projects.MINIATURE[stage] | {"max_steps": 4, "save_steps": 2, "logging_steps": 1}
    projects.edit_yaml(folder / "params.yaml", {stage: steps})
    monkeypatch.chdir(folder)
    stages = training.MODULES[stage]
    stages.train(run_for(section(stages.Params, stage, **steps), stage))
    settings = json.loads(Path(training.write_bare_settings(folder, stage)).read_text())
    module("bare_trl").train(stage, settings)
    training.require_same_weights(folder, stage)
    checkpoints = sorted(path.name for path in Path("bare").glob("checkpoint-*"))
    assert checkpoints == ["checkpoint-2", "checkpoint-4"]
    shutil.copytree(training.STARTS[stage], "bare", dirs_exist_ok=True)
    with pytest.raises(RuntimeError, match="other weights"):
        training.require_same_weights(folder, stage)
