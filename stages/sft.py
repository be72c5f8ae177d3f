"""sft.

Supervised warm start, so that grpo has something to reinforce (TRL's SFTTrainer, completion-only
loss).

Reads models/base/, data/prepared/{sft.parquet,dataset.json} and the gate's verdict; writes
models/sft/ and reports/sft/{history.csv,metrics.json}.  `max_steps: 0` passes the base through.
Run it by hand: python -m stages.sft
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from regrpo.core import files, hardware, processes, prompts
from regrpo.core.errors import Refused
from regrpo.core.settings import Problem, Section, Training, invalid
from regrpo.core.verifiers import Verifier, get_verifier
from regrpo.records import stage_run
from regrpo.train import launch

BASE, OUT = Path("models/base"), Path("models/sft")
DATA = Path("data/prepared")


class Phase(Section):
    """A share of the steps, and the share of its rows that show the reasoning before the answer."""

    share: float = Field(gt=0, le=1)
    worked: float = Field(ge=0, le=1)


class Params(Training):
    library = "trl.trainer.sft_config:SFTConfig"
    owned: ClassVar[dict[str, str]] = Training.owned | {
        "completion_only_loss": "the loss is on completions only",
        "train_sampling_strategy": "a curriculum keeps its order, anything else is shuffled by sft.seed",
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
        order = {"train_sampling_strategy": "sequential"} if self.curriculum else {}
        return super().trainer_settings(device) | {"completion_only_loss": True} | order


def examples(rows: list[dict[str, Any]], verifier: Verifier | None) -> list[dict[str, Any]]:
    """Each row twice, as TRL's prompt and completion.

    With its worked solution, then with the bare answer.

    A row without a solution shows its answer both times; one without a verifier shows its solution
    both times.
    """

    def completion(row: dict[str, Any], worked: bool) -> Any:
        bare = verifier.render(row["answer"]) if verifier and row["answer"] is not None else None
        text = row["solution"] if (worked and row["solution"] is not None) or bare is None else bare
        return text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]

    return [
        {"prompt": row["prompt"], "completion": completion(row, worked)}
        for worked in (True, False)
        for row in rows
    ]


def draw_order(count: int, params: Params) -> list[int]:
    """Indices into `examples` of `count` rows, phase by phase, drawn with replacement by sft.seed."""
    draw = random.Random(params.seed)
    batch = (
        params.per_device_train_batch_size * params.gradient_accumulation_steps * params.processes
    )
    order: list[int] = []
    for phase in params.curriculum or []:
        for _ in range(round(phase.share * params.max_steps) * batch):
            order.append(draw.randrange(count) + (0 if draw.random() < phase.worked else count))
    missing = params.max_steps * batch - len(order)  # of rounding
    return order[:missing] if missing < 0 else order + order[len(order) - missing :]


def train(run: stage_run.Run[Params]) -> dict[str, Any]:
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from regrpo.train import callbacks, checkpoints, resuming, sharding

    params = run.params
    device = hardware.find_device(params.device)
    hardware.require_bf16("sft", params.wants_bf16, device)
    turned_on = hardware.set_up(
        params.seed, params.threads, params.deterministic and device == "cuda"
    )
    disable_progress_bars()
    dataset = files.read_json(DATA / "dataset.json")
    rows = prompts.Cutter(dataset, BASE, params.max_prompt_tokens).rows(
        files.read_rows(DATA / "sft.parquet")
    )
    verifier = get_verifier(dataset["verifier"])
    require_targets(rows, verifier)
    pool = examples(rows, verifier) if params.curriculum else examples(rows, verifier)[: len(rows)]
    history = callbacks.History("sft", ("loss", "mean_token_accuracy"), run.log)
    with (
        checkpoints.held(run.checkpoint_folder(device)) as folder,
        callbacks.told_as_refusal("sft"),
    ):
        with callbacks.told_as_refusal("sft", ImportError):
            trainer = SFTTrainer(
                model=str(BASE),
                args=SFTConfig(output_dir=str(folder), **params.trainer_settings(device)),
                train_dataset=Dataset.from_list(pool),
                processing_class=AutoTokenizer.from_pretrained(BASE),
                peft_config=params.lora.config() if params.lora else None,
                quantization_config=params.quantization.config("sft")
                if params.quantization
                else None,
                callbacks=[history],
            )
        if params.curriculum:  # tokenized once each, then laid out in the order of the curriculum
            trainer.train_dataset = trainer.train_dataset.select(draw_order(len(rows), params))
        callbacks.quiet(trainer)
        resuming.fit(trainer, folder, {"history": history}, params.launch)
        callbacks.save(
            trainer.model, trainer.processing_class, OUT, BASE, sharding.whole_state(trainer)
        )
    if processes.is_main():
        history.write_csv(run.reports / "history.csv")
    last = slice(-1, None)
    return {
        "steps": trainer.state.global_step,
        "rows": round(trainer.state.epoch * len(trainer.train_dataset)),
        "deterministic": [f"{name}={value}" for name, value in turned_on.items()],
        "loss": history.mean("loss", last),
        "mean_token_accuracy": history.mean("mean_token_accuracy", last),
    }


def pass_through(run: stage_run.Run[Params]) -> dict[str, Any]:
    """No warm start: the base goes on as it is."""
    with files.replacing(OUT) as folder:
        shutil.copytree(BASE, folder)
    files.write_text(run.reports / "history.csv", "step,loss\n")
    return {"steps": 0, "rows": 0, "loss": None, "mean_token_accuracy": None, "deterministic": []}


def require_targets(rows: list[dict[str, Any]], verifier: Verifier | None) -> None:
    """Refuse a split with nothing to learn.

    No rows, or a row without solution (and answer that a verifier renders).
    """
    empty = [
        row["id"]
        for row in rows
        if row["solution"] is None and (verifier is None or row["answer"] is None)
    ]
    if empty or not rows:
        raise Refused(
            f"{DATA / 'sft.parquet'}",
            expected="rows with a solution, or an answer that the verifier can render",
            found=f"none for {', '.join(map(str, empty[:20]))}"
            if empty
            else "no rows (prepare.sft: 0)",
            remedy="Bring solutions, raise prepare.sft, or set sft.max_steps: 0.",
        )


def main() -> None:
    if processes.is_worker():
        return launch.work(Params, train)
    with stage_run.stage("sft", Params) as run:
        metrics = launch.run(train, run) if run.params.max_steps else pass_through(run)
        files.write_json(run.reports / "metrics.json", metrics)


if __name__ == "__main__":
    main()
