"""sft: a supervised warm start, so that grpo has something to reinforce.

TRL's SFTTrainer, the loss on completions only. Reads models/base/, data/prepared/sft.parquet,
dataset.json and the gate's verdict; writes models/sft/ and reports/sft/{history.csv,metrics.json}.
`max_steps: 0` passes the base through. Run it by hand: python -m stages.sft
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from regrpo.core import conversation, files, hardware, processes
from regrpo.core.errors import Refused
from regrpo.core.settings import Problem, Section, Training, invalid
from regrpo.core.verifiers import Verifier, get_verifier
from regrpo.records import stage_run
from regrpo.train import launch, worker

BASE = Path("models/base")
OUT = Path("models/sft")
DATA = Path("data/prepared")


class Phase(Section):
    """A share of the steps, and the share of its rows that show the reasoning before the answer."""

    share: float = Field(gt=0, le=1)
    worked: float = Field(ge=0, le=1)


class Params(Training):
    library = "trl.trainer.sft_config:SFTConfig"
    owned: ClassVar[dict[str, str]] = Training.owned | {
        "completion_only_loss": "the loss is on completions only",
        "eos_token": "a text ends with the base's own (source.json)",
        "train_sampling_strategy": "a curriculum keeps its order, anything else is shuffled by "
        "sft.seed",
    }
    curriculum: list[Phase] | None = None
    max_prompt_tokens: int | None = Field(default=None, gt=0)  # null = prepare's

    @model_validator(mode="after")
    def _phases_add_up(self) -> Self:
        if self.curriculum is not None:
            if abs(sum(phase.share for phase in self.curriculum) - 1) > 1e-9:
                raise invalid(Problem("curriculum", "the shares must add up to 1"))
            if self.max_steps < 0:
                raise invalid(Problem("max_steps", "a curriculum needs a number of steps"))
        return self

    @model_validator(mode="after")
    def _answers_have_room(self) -> Self:
        longest = self.passed_through.get("max_length", 1024)
        if self.max_prompt_tokens and longest is not None and self.max_prompt_tokens >= longest:
            why = f"must be below `max_length` ({longest}), where the answer's end is cut"
            raise invalid(Problem("max_prompt_tokens", why, f"at most {longest - 1}"))
        return self

    def trainer_settings(self, device: str) -> dict[str, Any]:
        settings = super().trainer_settings(device) | {"completion_only_loss": True}
        if self.curriculum:
            settings["train_sampling_strategy"] = "sequential"
        return settings


def examples(rows: list[dict[str, Any]], verifier: Verifier | None) -> list[dict[str, Any]]:
    """All rows twice, as TRL's prompt and completion: worked solutions, then bare answers.

    A row without a solution shows its answer both times; one without an answer that the verifier
    renders shows its solution both times.
    """
    worked, bare = [], []
    for row in rows:
        answer = row["solution"]
        if verifier and row["answer"] is not None:
            answer = verifier.render(row["answer"])
        solution = answer if row["solution"] is None else row["solution"]
        worked.append(example(row["prompt"], solution))
        bare.append(example(row["prompt"], answer))
    return worked + bare


def example(prompt: Any, text: str) -> dict[str, Any]:
    """Plain text after plain text, a message after messages."""
    if isinstance(prompt, str):
        return {"prompt": prompt, "completion": text}
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": text}]}


def draw_order(count: int, params: Params) -> list[int]:
    """Indices into the `examples` of `count` rows: by phase, with replacement, by sft.seed."""
    draw = random.Random(params.seed)  # noqa: S311  (a seeded order, no secret)
    batch = params.per_device_train_batch_size * params.gradient_accumulation_steps
    batch *= params.processes
    order: list[int] = []
    for phase in params.curriculum or []:
        for _ in range(round(phase.share * params.max_steps) * batch):
            row = draw.randrange(count)
            is_worked = draw.random() < phase.worked
            order.append(row if is_worked else count + row)
    # The phases' rounded steps may be some more than max_steps, or fewer: then the last ones again.
    missing = params.max_steps * batch - len(order)
    if missing < 0:
        return order[:missing]
    return order + order[len(order) - missing :]


def require_targets(rows: list[dict[str, Any]], verifier: Verifier | None) -> None:
    """Raises Refused for no rows, or a row without a solution or an answer to be rendered."""
    empty = []
    for row in rows:
        if row["solution"] is None and (verifier is None or row["answer"] is None):
            empty.append(str(row["id"]))
    if empty or not rows:
        found = "no rows (prepare.sft: 0)"
        if empty:
            found = f"none for {', '.join(empty[:20])}"
        raise Refused(
            f"{DATA / 'sft.parquet'}",
            expected="rows with a solution, or an answer that the verifier can render",
            found=found,
            remedy="Bring solutions, raise prepare.sft, or set sft.max_steps: 0.",
        )


def require_left(given: int, left: int, params: Params) -> None:
    """Raises Refused if TRL dropped every example, or some that the curriculum's order counts on.

    It drops those whose prompt alone fills `max_length`.
    """
    if left and (left == given or not params.curriculum):
        return
    raise Refused(
        "sft.max_length",
        expected="room for a prompt and the beginning of its answer",
        found=f"{given - left} of {given} examples whose prompt alone fills it"
        f" ({params.passed_through.get('max_length', 1024)} tokens)",
        remedy="Raise it, or bring shorter prompts (prepare.max_prompt_tokens cuts them).",
    )


def train(run: stage_run.Run[Params]) -> None:
    from datasets import Dataset, disable_progress_bars
    from trl import SFTConfig, SFTTrainer

    from regrpo.train import callbacks, saving, trainers

    params = run.params
    device = trainers.set_up("sft", params)
    disable_progress_bars()
    dataset = files.read_json(DATA / "dataset.json")
    cutter = conversation.Cutter(dataset, BASE, params.max_prompt_tokens)
    rows = cutter.rows(files.read_rows(DATA / "sft.parquet"))
    verifier = get_verifier(dataset["verifier"])
    require_targets(rows, verifier)
    pool = examples(rows, verifier)
    if not params.curriculum:
        pool = pool[: len(rows)]  # worked solutions only
    history = callbacks.History("sft", ("loss", "mean_token_accuracy"), run.log)
    folder = run.checkpoint_folder(device)
    with trainers.resumable("sft", params, folder) as checkpoint:
        with trainers.refuse_on(ImportError, "sft"):
            trainer = SFTTrainer(
                args=SFTConfig(output_dir=str(folder), **params.trainer_settings(device)),
                train_dataset=Dataset.from_list(pool),
                callbacks=[history],
                **trainers.model_arguments("sft", params, BASE),
            )
        left = len(trainer.train_dataset)
        require_left(len(pool), left, params)
        longest = max(map(len, trainer.train_dataset["input_ids"]))
        trainers.require_window(BASE, longest, "sft.max_length")
        # Tokenized once each, then laid out in the order of the curriculum.
        if params.curriculum:
            trainer.train_dataset = trainer.train_dataset.select(draw_order(len(rows), params))
        trainers.fit(trainer, checkpoint, {"history": history}, params.launch)
        trainers.require_steps("sft", trainer.state)
        # grpo, vLLM and whoever loads the model read there where a completion ends.
        stops = conversation.stop_tokens(BASE, dataset["prompt_style"])
        conversation.stop_at(trainer.model.generation_config, stops)
        saving.save_model(trainer, BASE, OUT)
    if not processes.is_main():
        return
    history.write_csv(run.reports / "history.csv")
    last = slice(-1, None)
    metrics = {
        "steps": trainer.state.global_step,
        "rows": round(trainer.state.epoch * len(trainer.train_dataset)),
        "deterministic": hardware.switches_on(),
        "loss": history.mean("loss", last),
        "mean_token_accuracy": history.mean("mean_token_accuracy", last),
    }
    files.write_json(run.reports / "metrics.json", metrics)
    if left < len(pool) and not params.passed_through.get("packing"):
        dropped = len(pool) - left
        print(
            f"sft: {dropped} of {len(pool)} examples taught nothing: their prompt fills max_length"
        )


def pass_through(run: stage_run.Run[Params]) -> None:
    """No warm start: the base goes on as it is."""
    with files.replacing(OUT) as folder:
        shutil.copytree(BASE, folder)
        conversation.write_stops(folder, files.read_json(DATA / "dataset.json")["prompt_style"])
    files.write_text(run.reports / "history.csv", "step,loss\n")
    metrics = {"steps": 0, "rows": 0, "deterministic": [], "loss": None}
    files.write_json(run.reports / "metrics.json", metrics | {"mean_token_accuracy": None})


def main() -> None:
    if processes.is_worker():
        return worker.work(Params, train)
    with stage_run.stage("sft", Params) as run:
        if run.params.max_steps == 0:
            pass_through(run)
        else:
            launch.run(train, run)


if __name__ == "__main__":
    main()
