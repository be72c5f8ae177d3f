"""evaluate: lm-eval on base, sft and grpo, every difference with a paired interval and a test.

Reads models/{base,sft,grpo}/, the base's source.json, data/prepared/{eval.parquet,dataset.json},
stages/eval_tasks/ and custom/; writes reports/evaluate/{metrics.json,answers.json,
samples.parquet,comparison.png}. Run it by hand: python -m stages.evaluate
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from regrpo.core import conversation, files, hardware, verifiers
from regrpo.core.settings import Problem, Section, invalid
from regrpo.evaluate import harness, picture, stats, summary, tasks
from regrpo.evaluate.results import MODELS
from regrpo.evaluate.tasks import Task
from regrpo.records import stage_run
from regrpo.train.classifiers import Classifier, ClassifierName, Judge, load_all

if TYPE_CHECKING:
    import pandas as pd

DATASET, EVAL = Path("data/prepared/dataset.json"), Path("data/prepared/eval.parquet")
SOURCE = Path("reports/base_model/source.json")
TASKS = Path(__file__).parent / "eval_tasks"
OWNED = ("pretrained", "device", "dtype", "batch_size", "seed", "trust_remote_code")
"""Keys of `model_args` that other keys of the profile decide, or nobody."""
OWNED_IN_GENERATION = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_length", "until")
"""Keys of `gen_kwargs` that evaluate.max_gen_toks, the model's window and stop tokens decide."""


class Params(Section):
    seed: int = Field(ge=0, lt=2**32)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(gt=0)
    deterministic: bool = False
    tasks: list[str] = Field(min_length=1)
    max_gen_toks: int = Field(gt=0)
    batch_size: Annotated[int, Field(gt=0)] | Literal["auto"]
    limit: int | None = Field(default=None, gt=0)
    bootstrap: int = Field(ge=100)
    backend: Literal["hf", "vllm"] = "hf"
    model_args: dict[str, Any] = Field(default_factory=dict)
    # lm-eval's, for our tasks: {repetition_penalty: 1.2}. What the base came with is set aside.
    gen_kwargs: dict[str, Any] = Field(default_factory=dict)
    # One of the report's metrics; null is heldout, where it is among the tasks.
    headline: str | None = None
    classifiers: dict[ClassifierName, Classifier] = Field(default={})

    @field_validator("model_args", "gen_kwargs")
    @classmethod
    def _not_ours(cls, value: dict[str, Any], about: ValidationInfo) -> dict[str, Any]:
        owned = OWNED if about.field_name == "model_args" else OWNED_IN_GENERATION
        if taken := [key for key in owned if key in value]:
            raise ValueError(f"{', '.join(taken)}: set by regrpo")
        return value

    @model_validator(mode="after")
    def _headline_is_measured(self) -> Self:
        """Where all tasks are ours; what lm-eval's own measure shows when they are loaded."""
        ours = [(TASKS / f"{task}.yaml").exists() for task in self.tasks]
        if self.headline is None or not all(ours):
            return self
        if not any(f"{self.headline}_".startswith(f"{task}_") for task in self.tasks):
            why = f"{self.headline!r} is no task of `tasks`, nor `<task>_<metric>` of one"
            raise invalid(Problem("headline", why, " or ".join(self.tasks)))
        return self


def answers(
    params: Params,
    found: list[Task],
    judges: Mapping[str, Judge],
    dataset: Mapping[str, Any],
    device: str,
) -> pd.DataFrame:
    """Every model asked every task: one row per (task, model, question), sorted.

    Questions of the data have the columns that prepare kept.
    """
    import pandas as pd

    style, keep = dataset["prompt_style"], dataset.get("keep", ())
    stops = conversation.stop_tokens(files.read_json(SOURCE), style)
    kept = {}
    for row in files.read_rows(EVAL):
        kept[row["id"]] = {name: row[name] for name in keep}
    rows = []
    for model in MODELS:
        hardware.set_up(params.seed, params.threads, params.deterministic and device == "cuda")
        lm = harness.load_model(
            Path("models") / model,
            backend=params.backend,
            device=device,
            batch_size=params.batch_size,
            seed=params.seed,
            model_args=params.model_args,
            stops=stops,
        )
        for task in found:
            # Sampled answers are drawn alike for every model.
            hardware.set_up(params.seed, params.threads)
            asked = harness.ask(
                task,
                lm,
                chat=style == "chat",
                max_gen_toks=params.max_gen_toks,
                limit=params.limit,
                seed=params.seed,
                decoding=harness.decoding_by(params.backend, stops),
                gen_kwargs=params.gen_kwargs,
                kept=kept,
            )
            asked += tasks.judged(task, asked, judges)
            rows += [{"model": model, **row} for row in asked]
            values = [row["value"] for row in asked if row["task"] == task.metrics[0].key]
            mean, n = sum(values) / len(values), len(values)
            print(f"evaluate: {model:4} {task.name} {mean:.3f} ({n} questions)", flush=True)
        # One model's memory is given back before the next is loaded.
        del lm
        gc.collect()
    columns = ["task", "model", "id", "prompt", "completion", "answer", "value"]
    frame = pd.DataFrame(rows, columns=columns)
    for name in keep:
        # As objects: pandas would make floats of integers beside a None.
        frame[name] = pd.Series([row.get(name) for row in rows], dtype=object)
    return frame.sort_values(columns[:3], ignore_index=True)


def memory_changes(params: Params) -> list[str]:
    """What in the section lowers the evaluation's peak, the mildest first."""
    changes = ["a lower max_gen_toks", "device: cpu"]
    if params.batch_size == "auto":
        return ["batch_size: 1", *changes]
    if params.batch_size > 1:
        return [f"batch_size: {params.batch_size // 2}", *changes]
    return changes


def main() -> None:
    with stage_run.stage("evaluate", Params) as run, harness.surroundings():
        params, dataset = run.params, files.read_json(DATASET)
        device = hardware.find_device(params.device, "evaluate.device")
        if params.backend == "vllm":
            hardware.require_vllm("evaluate.backend", "backend: hf", device)
        judges = load_all(params.classifiers, "evaluate", device)
        found = [
            tasks.with_judges(task, judges)
            for task in tasks.find_tasks(params.tasks, dataset["verifier"])
        ]
        headline = summary.find_headline(found, params.headline)
        with hardware.refuse_full_memory("evaluate", memory_changes(params)):
            samples = answers(params, found, judges, dataset, device)
        drawn = {"resamples": params.bootstrap, "seed": params.seed}
        scored = summary.summarise(samples, found, headline, **drawn)
        gain = summary.split_gain(samples, **drawn) if headline == summary.HEADLINE else None
        metrics = {
            "headline": headline,
            "classifiers": {name: judge.facts for name, judge in judges.items()},
            "verifier": verifiers.label(dataset),
            "tasks": stats.rounded(scored),
            "gain": stats.rounded(gain),
        }
        if switches := hardware.switches_on():
            metrics["deterministic"] = switches
        binary = [name for name, task in scored.items() if task["kind"] == "binary"]
        answered = files.canonical_json(summary.list_answers(samples))
        files.write_text(run.reports / "answers.json", f"{answered}\n")
        correct = samples["value"].eq(1).where(samples["task"].isin(binary))
        samples["correct"] = correct.astype("boolean")  # missing where nothing is right or wrong
        schema = files.ParquetFile(EVAL).schema
        fields = [schema.field(name) for name in dataset.get("keep", ())]
        files.write_parquet(run.reports / "samples.parquet", samples, fields)
        picture.draw(metrics, run.reports / "comparison.png")
        files.write_json(run.reports / "metrics.json", metrics)
        scores = {}
        for name, task in scored.items():
            for model, estimate in task["models"].items():
                scores[f"{name}/{model}"] = estimate["value"]
        run.log(scores)


if __name__ == "__main__":
    main()
