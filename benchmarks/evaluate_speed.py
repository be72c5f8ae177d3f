"""The stage evaluate beside one plain `lm_eval` command a model: the same tasks, models and batch.

    python benchmarks/evaluate_speed.py [--rounds 5] [--full]

Whole processes with their imports, on the default's questions (the first 30; --full: all 300). The
stage asks three models in one process, judges them with intervals and paired tests, and draws;
lm_eval starts three times. The greedy answers are compared: they are the same.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import timing
import workspace
from timing import Row

from regrpo.core import files, profiles
from regrpo.evaluate.results import MODELS

FEW = 30
"""Questions a task without --full."""
SAMPLED = "heldout_sampled"
"""Its answers hang on what was drawn before, which lm_eval does not begin anew for each task."""


def ask(folder: Path, model: str, section: dict[str, Any], out: Path) -> None:
    """One `lm_eval` command, as its documentation has it."""
    workspace.run(
        folder,
        *(sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"),
        *("--model_args", f"pretrained=models/{model}", "dtype=float32"),
        *("--include_path", "stages/eval_tasks", "--tasks", ",".join(section["tasks"])),
        *("--gen_kwargs", f"max_gen_toks={section['max_gen_toks']}"),
        *("--batch_size", str(section["batch_size"]), "--seed", str(section["seed"])),
        *(("--limit", str(section["limit"])) if section["limit"] else ()),
        *("--output_path", str(out / model), "--log_samples"),
        OMP_NUM_THREADS=str(section["threads"]),
    )


def answers(out: Path) -> dict[tuple[str, str, str], str]:
    """What lm_eval wrote down: the completion of (task, model, id)."""
    found = {}
    for path in out.rglob("samples_*.jsonl"):
        model = path.relative_to(out).parts[0]
        task = path.name.removeprefix("samples_").rpartition("_")[0]
        for line in path.read_text().splitlines():
            sample = json.loads(line)
            found[task, model, sample["doc"]["id"]] = sample["resps"][0][0]
    return found


def require_same(folder: Path, theirs: dict[tuple[str, str, str], str]) -> int:
    """How many greedy answers the stage and lm_eval have in common; RuntimeError if one differs."""
    same = 0
    for row in files.read_rows(folder / "reports/evaluate/samples.parquet"):
        key = (row["task"], row["model"], row["id"])
        if row["task"] == SAMPLED or key not in theirs:  # a task's further metrics have other names
            continue
        if theirs[key] != row["completion"]:
            raise RuntimeError(f"{key}: lm_eval {theirs[key]!r}, evaluate {row['completion']!r}")
        same += 1
    if not same:
        raise RuntimeError("lm_eval and evaluate have no question in common")
    return same


def measure(full: bool, rounds: int) -> list[Row]:
    folder = workspace.miniature()
    workspace.set_sections(folder, {"evaluate": {"limit": None if full else FEW}})
    section = profiles.read_profile(folder / "params.yaml")["evaluate"]
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)

        def plain() -> None:
            for model in MODELS:
                ask(folder, model, section, out)

        taken = timing.interleaved(
            {"evaluate": lambda: workspace.run_stage(folder, "evaluate"), "lm_eval": plain}, rounds
        )
        same = require_same(folder, answers(out))
    what = f"{len(MODELS)} models, {len(section['tasks'])} tasks, beside lm_eval's command a model"
    note = f"{same} greedy answers are the same"
    return [timing.compared("evaluate", what, taken["evaluate"], taken["lm_eval"], note=note)]


if __name__ == "__main__":
    raise SystemExit(timing.run_alone(measure, __doc__))
