"""grpo: group relative policy optimization (Shao et al. 2024, arXiv:2402.03300, section 4).

TRL's GRPOTrainer. Reads models/sft/, the base's source.json, data/selected/train.parquet,
data/prepared/dev.parquet, dataset.json, custom/ and the gate's verdict; writes models/grpo/ and
reports/grpo/{history.csv,metrics.json,health.json,samples.parquet,curves.png}. Run it by hand:
python -m stages.grpo
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from regrpo.core import conversation, files, hardware, processes, verifiers
from regrpo.core.settings import Problem, Training, invalid
from regrpo.records import stage_run
from regrpo.train import custom_code, doctor, launch, rewards, worker
from regrpo.train.classifiers import Classifier, ClassifierName, load_all
from regrpo.train.doctor import EarlyStopping
from regrpo.train.groups import Grouped

SFT = Path("models/sft")
OUT = Path("models/grpo")
DATA = Path("data/prepared")
TRAIN = Path("data/selected/train.parquet")
SOURCE = Path("reports/base_model/source.json")


class Params(Grouped):
    owned: ClassVar[dict[str, str]] = Training.owned | {
        "reward_weights": "the weights stand in grpo.reward_funcs",
        "remove_unused_columns": "rewards need the data's columns",
        "chat_template_kwargs": "gate, sft and evaluate render alike: write them into "
        "base_model.chat_template",
    }
    reward_funcs: dict[str, float] = Field(min_length=1)
    classifiers: dict[ClassifierName, Classifier] = Field(default={})
    doctor: Literal["warn", "stop"] = "warn"
    dev_every: int = Field(ge=0)
    sample_every: int = Field(gt=0)
    max_steps: int = Field(gt=0)
    max_completion_length: int = Field(gt=0)
    beta: float = Field(default=0.0, ge=0)
    temperature: float = Field(default=1.0, gt=0)
    early_stopping: EarlyStopping | None = None

    @model_validator(mode="after")
    def _rewards_have_names_of_their_own(self) -> Self:
        rewards.require_own_names(self.reward_funcs, self.classifiers)
        return self

    @model_validator(mode="after")
    def _kl_is_logged(self) -> Self:
        if self.early_stopping and self.early_stopping.kl_ceiling is not None and not self.beta:
            why = "needs `beta` above 0: TRL measures `kl` only then"
            # 0.04: Shao et al. 2024, section 4.2
            raise invalid(Problem("early_stopping.kl_ceiling", why, "beta: 0.04"))
        return self

    @model_validator(mode="after")
    def _requests_have_no_seed(self) -> Self:
        if "seed" in (self.passed_through.get("generation_kwargs") or {}):
            why = "makes the answers of a group alike; `seed` is the section's"
            raise invalid(Problem("generation_kwargs.seed", why, "leave it out"))
        return self

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        problem = self.group_problem(self.processes)
        if problem:
            raise invalid(problem)
        return self

    @model_validator(mode="after")
    def _dev_needs_whole_models(self) -> Self:
        if self.dev_every and self.launch and self.launch.config:
            why = "0 under `launch.config`, since no process may hold a whole model"
            raise invalid(Problem("dev_every", why, "0"))
        return self

    @property
    def main_reward(self) -> str:
        """The name by which TRL logs the reward of the greatest weight, the first of equals."""
        heaviest = max(self.reward_funcs, key=lambda name: self.reward_funcs[name])
        return heaviest.rpartition(":")[2]

    def trainer_settings(self, device: str) -> dict[str, Any]:
        weights = list(self.reward_funcs.values())
        return super().trainer_settings(device) | {"reward_weights": weights}


def stop_early(params: Params, history: Any) -> dict[str, Any] | None:
    """Where and why early stopping ended the training before its last step, if it did."""
    if not params.early_stopping:
        return None
    verdict: dict[str, Any] | None = params.early_stopping.verdict(history.rows)
    if verdict and verdict["step"] < params.max_steps:
        return verdict
    return None


def summary(params: Params, history: Any, steps: int) -> dict[str, Any]:
    """The first and last ten logged steps' reward, dev accuracy before and after, an early stop."""
    first_ten, last_ten = slice(None, 10), slice(-10, None)
    return {
        "steps": steps,
        "reward_first": history.mean("reward", first_ten),
        "reward_last": history.mean("reward", last_ten),
        "dev_accuracy_first": history.mean("dev_accuracy", slice(None, 1)),
        "dev_accuracy_last": history.mean("dev_accuracy", slice(-1, None)),
        "completion_length_last": history.mean("completions/mean_length", last_ten),
        "stopped_early": stop_early(params, history),
    }


def write_evidence(
    run: stage_run.Run[Params], history: Any, samples: Any, keep: Sequence[str]
) -> None:
    """Write curves, the doctor's verdict and samples, with the columns that prepare kept."""
    import pandas as pd

    if not processes.is_main():
        return
    history.write_csv(run.reports / "history.csv")
    health = doctor.examine(history.rows, run.params.main_reward)
    health["shortfalls"] = doctor.shortfalls(history.rows, samples.names)
    files.write_json(run.reports / "health.json", health)
    schema = files.ParquetFile(TRAIN).schema
    fields = [schema.field(name) for name in keep]
    frame = samples.frame()
    kept = files.find_rows(TRAIN, set(frame["id"]), keep) if keep else {}
    for name in keep:
        # As objects: pandas would make floats of integers beside a None.
        frame[name] = pd.Series([kept[id][name] for id in frame["id"]], dtype=object)
    files.write_parquet(run.reports / "samples.parquet", frame, fields)


def train(run: stage_run.Run[Params]) -> None:
    from regrpo.train import callbacks, curves, generation, saving, trainers

    # TRL imports vLLM where it is installed, be it one that this torch cannot load.
    with trainers.refuse_on(RuntimeError, "grpo"):
        from trl import GRPOConfig, GRPOTrainer
    params = run.params
    device = trainers.set_up("grpo", params)
    if params.passed_through.get("use_vllm"):
        hardware.require_vllm("grpo.use_vllm", "use_vllm: false", device)
    dataset = files.read_json(DATA / "dataset.json")
    verifier = verifiers.of_dataset(dataset)
    cutter = conversation.Cutter(dataset, SFT)
    judges = load_all(params.classifiers, "grpo", device)
    length, weights = params.max_completion_length, params.reward_funcs
    file, dev = files.ParquetFile(TRAIN), []
    if params.dev_every and verifier:
        dev = cutter.rows(files.read_rows(DATA / "dev.parquet"))
    params.require_prompts(file.num_rows)
    arguments = trainers.model_arguments("grpo", params, SFT)
    tokenizer = arguments["processing_class"]
    functions = {name: rewards.get_reward(name, verifier, length, judges) for name in weights}
    # As validate did: one that was restored has not seen a reward that was changed since.
    encode = partial(tokenizer.encode, add_special_tokens=False)
    _, first = next(file.batches(2))
    with callbacks.random_states_kept():
        notes = custom_code.try_out(functions, verifier, cutter.rows(first), encode)
    for note in notes:
        print(f"grpo: reward_funcs: {note}", flush=True)
    keep = dataset.get("keep", ())
    samples = rewards.Samples(list(weights.values()), params.sample_every, params.num_generations)
    shown = ("reward", "dev_accuracy", "completions/mean_length")
    history = callbacks.History("grpo", shown, run.log)
    looking_on = callbacks.watchers(params, history, samples, dev, verifier)
    folder = run.checkpoint_folder(device)
    with trainers.resumable("grpo", params, folder) as checkpoint, trainers.scratch(folder) as own:
        rows = trainers.mapped(own / "rows", cutter.batches(file), file.schema)
        prompts = itertools.chain(rows["prompt"], (row["prompt"] for row in dev))
        key = "grpo.max_completion_length"
        trainers.require_room(files.read_json(SOURCE), tokenizer, prompts, length, key)
        try:
            with trainers.refuse_on(ImportError, "grpo"), generation.seeded(params, checkpoint):
                trainer = GRPOTrainer(
                    reward_funcs=samples.watching(list(functions.values())),
                    args=GRPOConfig(output_dir=str(folder), **params.trainer_settings(device)),
                    train_dataset=rows,
                    callbacks=looking_on,
                    **arguments,
                )
            parts = {"history": history, "samples": samples}
            trainers.fit(trainer, checkpoint, parts, params.launch)
            trainers.require_steps("grpo", trainer.state, bool(stop_early(params, history)))
            saving.save_model(trainer, SFT, OUT)
        except BaseException:
            # A run that was stopped leaves its evidence, if it can.
            with contextlib.suppress(Exception):
                write_evidence(run, history, samples, keep)
            raise
    if not processes.is_main():
        return
    write_evidence(run, history, samples, keep)
    metrics = summary(params, history, trainer.state.global_step)
    metrics["prompts_seen"] = samples.prompts_seen
    metrics["classifiers"] = {name: judge.facts for name, judge in judges.items()}
    metrics["deterministic"] = hardware.switches_on()
    files.write_json(run.reports / "metrics.json", metrics)
    curves.draw(history.rows, run.reports / "curves.png")


def main() -> None:
    if processes.is_worker():
        return worker.work(Params, train)
    with stage_run.stage("grpo", Params) as run:
        launch.run(train, run)
        health = files.read_json(run.reports / "health.json")
        for line in doctor.lines(health):
            print(f"grpo: {line}")


if __name__ == "__main__":
    main()
