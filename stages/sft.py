"""sft: a supervised warm start, so that grpo has something to reinforce.

TRL's SFTTrainer, the loss on completions only. Reads models/base/ with its source.json,
data/prepared/sft.parquet, dataset.json and the gate's verdict; writes models/sft/ and reports/sft/
{history.csv,metrics.json}. `max_steps: 0` passes the base through. Run it by hand:
python -m stages.sft
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from regrpo.core import conversation, files, hardware, processes, tokenizers, verifiers
from regrpo.core.settings import Problem, Training, invalid
from regrpo.records import stage_run
from regrpo.train import curriculum, launch, worker
from regrpo.train.curriculum import Curriculum

BASE = Path("models/base")
OUT = Path("models/sft")
DATA = Path("data/prepared")
SOURCE = Path("reports/base_model/source.json")


class Params(Curriculum):
    owned: ClassVar[dict[str, str]] = Training.owned | {
        "completion_only_loss": "the loss is on completions only",
        "eos_token": "a text ends with the base's own (source.json)",
        "train_sampling_strategy": "a curriculum keeps its order, anything else is shuffled by "
        "sft.seed",
    }
    max_prompt_tokens: int | None = Field(default=None, gt=0)  # null = prepare's

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


def train(run: stage_run.Run[Params]) -> None:
    import numpy as np
    from datasets import disable_progress_bars
    from trl import SFTConfig, SFTTrainer

    from regrpo.train import callbacks, saving, trainers

    params = run.params
    device = trainers.set_up("sft", params)
    disable_progress_bars()
    dataset, source = files.read_json(DATA / "dataset.json"), files.read_json(SOURCE)
    cutter = conversation.Cutter(dataset, BASE, params.max_prompt_tokens)
    file = files.ParquetFile(DATA / "sft.parquet")
    curriculum.require_rows(file)
    examples = curriculum.Examples(verifiers.of_dataset(dataset), file.path)
    history = callbacks.History("sft", ("loss", "mean_token_accuracy"), run.log)
    folder = run.checkpoint_folder(device)
    with trainers.resumable("sft", params, folder) as checkpoint, trainers.scratch(folder) as own:
        batches = map(examples.of, cutter.batches(file))
        pool = trainers.mapped(own / "examples", batches, examples.schema(file.schema))
        shown, order = np.arange(0, len(pool), 2), None  # the worked solutions
        if params.curriculum:
            # Those that are drawn, tokenized once each, then laid out in their order.
            shown, order = np.unique(params.draw_order(file.num_rows), return_inverse=True)
        with trainers.refuse_on(ImportError, "sft"):
            trainer = SFTTrainer(
                args=SFTConfig(output_dir=str(folder), **params.trainer_settings(device)),
                train_dataset=pool.select(shown),
                # NaN and infinity end it: the losses that are logged leave them out.
                callbacks=[history, callbacks.RequireHealth(history, "warn", "")],
                **trainers.model_arguments("sft", params, BASE),
            )
        lengths = list(map(len, trainer.train_dataset["input_ids"]))
        notes = curriculum.require_left(len(shown), lengths, params)
        tokenizers.require_window(source, max(lengths), "sft.max_length")
        if params.curriculum and examples.unsolved:
            alone = "rows have no solution, and show their answer alone in every phase"
            notes.append(f"curriculum: {examples.unsolved} of {file.num_rows} {alone}")
        if processes.is_main():
            print("".join(f"sft: {note}\n" for note in notes), end="", flush=True)
        if order is not None:
            trainer.train_dataset = trainer.train_dataset.select(order)
        trainers.fit(trainer, checkpoint, {"history": history}, params.launch)
        trainers.require_steps("sft", trainer.state)
        # grpo, vLLM and whoever loads the model read there where a completion ends.
        stops = conversation.stop_tokens(source, dataset["prompt_style"])
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


def pass_through(run: stage_run.Run[Params]) -> None:
    """No warm start: the base goes on as it is."""
    with files.replacing(OUT) as folder:
        shutil.copytree(BASE, folder)
        style = files.read_json(DATA / "dataset.json")["prompt_style"]
        conversation.write_stops(folder, conversation.stop_tokens(files.read_json(SOURCE), style))
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
