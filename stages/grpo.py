"""grpo: group relative policy optimization (Shao et al.

2024, arXiv:2402.03300, section 4) with TRL's GRPOTrainer.

Reads models/sft/, data/prepared/{train,dev}.parquet, dataset.json, custom/ and the gate's verdict;
writes models/grpo/ and
reports/grpo/{history.csv,metrics.json,health.json,samples.parquet,curves.png}.  By hand: python -m
stages.grpo
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from regrpo.core import files, hardware, processes, prompts
from regrpo.core.errors import Refused
from regrpo.core.settings import Problem, Training, invalid
from regrpo.core.verifiers import get_verifier
from regrpo.records import stage_run
from regrpo.train import doctor, launch, rewards
from regrpo.train.classifiers import Classifier, ClassifierName, load_all
from regrpo.train.early_stopping import EarlyStopping

SFT, OUT = Path("models/sft"), Path("models/grpo")
DATA = Path("data/prepared")


class Params(Training):
    library = "trl.trainer.grpo_config:GRPOConfig"
    owned: ClassVar[dict[str, str]] = Training.owned | {
        "reward_weights": "the weights stand in grpo.reward_funcs",
        "remove_unused_columns": "rewards need the data's columns",
    }
    reward_funcs: dict[str, float] = Field(min_length=1)
    classifiers: dict[ClassifierName, Classifier] = Field(default={})
    doctor: Literal["warn", "stop"] = "warn"
    dev_every: int = Field(ge=0)
    sample_every: int = Field(gt=0)
    max_steps: int = Field(gt=0)
    num_generations: int = Field(ge=2)
    max_completion_length: int = Field(gt=0)
    beta: float = Field(default=0.0, ge=0)
    temperature: float = Field(default=1.0, gt=0)
    early_stopping: EarlyStopping | None = None

    @model_validator(mode="after")
    def _rewards_have_names_of_their_own(self) -> Self:
        """TRL logs, and samples.parquet stores, a reward under its function's name."""
        names = [name.rpartition(":")[2] for name in self.reward_funcs]
        taken = {"step", "id", "prompt", "completion", "answer", "reward"}
        if clash := sorted({name for name in names if names.count(name) > 1 or name in taken}):
            why = f"{', '.join(clash)} is taken; give the function a name of its own"
            raise invalid(Problem("reward_funcs", why))
        if clash := sorted(set(self.classifiers) & set(rewards.OURS)):
            why = f"{', '.join(clash)} is a reward of ours; give it a name of its own"
            raise invalid(Problem("classifiers", why))
        if unused := sorted(set(self.classifiers) - set(self.reward_funcs)):
            why = f"{', '.join(unused)} has no weight in `reward_funcs`"
            raise invalid(Problem("classifiers", why))
        return self

    @model_validator(mode="after")
    def _kl_is_logged(self) -> Self:
        if self.early_stopping and self.early_stopping.kl_ceiling is not None and not self.beta:
            why = "needs `beta` above 0: TRL measures `kl` only then"
            # 0.04: Shao et al. 2024, section 4.2
            raise invalid(Problem("early_stopping.kl_ceiling", why, "beta: 0.04"))
        return self

    @model_validator(mode="after")
    def _groups_divide(self) -> Self:
        if problem := self.group_problem(self.processes):
            raise invalid(problem)
        return self

    def group_problem(self, processes: int) -> Problem | None:
        """What is wrong if the completions generated at once are not whole batches and groups."""
        at_once = self.per_device_train_batch_size * processes  # completions of one micro-step
        stated = self.passed_through.get("generation_batch_size")
        completions = stated or at_once * self.generation_steps
        shape = f"per_device_train_batch_size {self.per_device_train_batch_size}"
        if processes > 1:
            shape += f" × {processes} processes"
        if completions % at_once:
            why = f"({completions}) must be a multiple of {at_once} ({shape})"
            whole = -(-completions // at_once) * at_once
            return Problem("generation_batch_size", why, str(whole))
        if completions % self.num_generations:
            why = (
                f"({self.num_generations}) must divide the completions generated at once, "
                f"{completions} ({shape} × {completions // at_once})"
            )
            return Problem("num_generations", why, _group_sizes(completions, self.num_generations))
        return None

    @model_validator(mode="after")
    def _dev_needs_whole_models(self) -> Self:
        if self.dev_every and self.launch and self.launch.config:
            why = "0 under `launch.config`, since no process may hold a whole model"
            raise invalid(Problem("dev_every", why, "0"))
        return self

    @property
    def generation_steps(self) -> int:
        """Micro-steps that use one generation's completions."""
        at_once = self.per_device_train_batch_size * self.processes
        asked = (self.passed_through.get("generation_batch_size") or 0) // at_once
        return (
            self.passed_through.get("steps_per_generation")
            or asked
            or self.gradient_accumulation_steps
        )

    @property
    def cycle(self) -> int:
        """One generation's use: TRL does not save its buffer of completions."""
        micro_steps = math.lcm(
            self.generation_steps * self.passed_through.get("num_iterations", 1),
            self.gradient_accumulation_steps,
        )
        return micro_steps // self.gradient_accumulation_steps

    def trainer_settings(self, device: str) -> dict[str, Any]:
        return super().trainer_settings(device) | {
            "reward_weights": list(self.reward_funcs.values())
        }


def _group_sizes(completions: int, near: int) -> str:
    """The divisors of the completions generated at once that are next to a group size."""
    divisors = [n for n in range(2, completions + 1) if completions % n == 0]
    below = [n for n in divisors if n < near][-1:]
    above = [n for n in divisors if n > near][:1]
    return " or ".join(map(str, below + above)) or "none: raise per_device_train_batch_size"


def summary(steps: int, history: Any, prompts: int) -> dict[str, Any]:
    """metrics.json: the first and last ten logged steps' reward, dev accuracy before and after."""
    return {
        "steps": steps,
        "reward_first": history.mean("reward", slice(None, 10)),
        "reward_last": history.mean("reward", slice(-10, None)),
        "dev_accuracy_first": history.mean("dev_accuracy", slice(None, 1)),
        "dev_accuracy_last": history.mean("dev_accuracy", slice(-1, None)),
        "completion_length_last": history.mean("completions/mean_length", slice(-10, None)),
        "prompts_seen": prompts,
    }


def check_health(params: Params) -> Any:
    """A look at the history after each logged step.

    NaN and infinity stop the run, other rules where asked for.
    """

    def check(rows: list[dict[str, float]]) -> None:
        health = doctor.examine(rows)
        if health["verdict"] == "fatal" or (params.doctor == "stop" and health["fired"]):
            rule = next(rule for rule in health["rules"] if rule["verdict"] == "fired")
            raise Refused(
                f"grpo, step {rule['steps'][-1]}",
                expected="a healthy run (the doctor's rules, reports/grpo/health.json)",
                found=rule["what"],
                remedy=f"Change {rule['change']}.",
            )

    return check


def train(run: stage_run.Run[Params]) -> None:
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from regrpo.train import callbacks as callbacks_module
    from regrpo.train import checkpoints, curves, resuming, sharding

    params = run.params
    device = hardware.find_device(params.device)
    hardware.require_bf16("grpo", params.wants_bf16, device)
    if params.passed_through.get("use_vllm"):
        hardware.require_vllm("grpo.use_vllm", "use_vllm: false", device)
    turned_on = hardware.set_up(
        params.seed, params.threads, params.deterministic and device == "cuda"
    )
    dataset = files.read_json(DATA / "dataset.json")
    verifier, cut = get_verifier(dataset["verifier"]), prompts.Cutter(dataset, SFT)
    judges = load_all(params.classifiers, "grpo", device)
    functions = [
        rewards.get_reward(name, verifier, params.max_completion_length, judges)
        for name in params.reward_funcs
    ]
    samples = rewards.Samples(
        list(params.reward_funcs.values()), params.sample_every, params.num_generations
    )
    history = callbacks_module.History(
        "grpo", ("reward", "dev_accuracy", "completions/mean_length"), run.log, check_health(params)
    )
    callbacks = [history]
    if params.dev_every and not verifier:
        print("grpo: no dev accuracy (dev_every): the data has no verifier", flush=True)
    elif params.dev_every and verifier:
        dev = cut.rows(files.read_rows(DATA / "dev.parquet"))
        callbacks.insert(
            0,
            callbacks_module.DevAccuracy(
                dev, verifier, params.dev_every, params.max_completion_length, history
            ),
        )
    if params.early_stopping:
        callbacks.append(callbacks_module.Stopper(params.early_stopping, history))
    try:
        with (
            checkpoints.held(run.checkpoint_folder(device)) as folder,
            callbacks_module.told_as_refusal("grpo"),
        ):
            with callbacks_module.told_as_refusal("grpo", ImportError):
                trainer = GRPOTrainer(
                    model=str(SFT),
                    reward_funcs=samples.watching(functions),
                    args=GRPOConfig(output_dir=str(folder), **params.trainer_settings(device)),
                    train_dataset=Dataset.from_list(
                        cut.rows(files.read_rows(DATA / "train.parquet"))
                    ),
                    processing_class=AutoTokenizer.from_pretrained(SFT),
                    peft_config=params.lora.config() if params.lora else None,
                    quantization_config=params.quantization.config("grpo")
                    if params.quantization
                    else None,
                    callbacks=callbacks,
                )
            callbacks_module.quiet(trainer)
            resuming.fit(trainer, folder, {"history": history, "samples": samples}, params.launch)
            callbacks_module.save(
                trainer.model, trainer.processing_class, OUT, SFT, sharding.whole_state(trainer)
            )
    finally:  # a run that was stopped leaves its evidence
        if processes.is_main():
            history.write_csv(run.reports / "history.csv")
            files.write_json(run.reports / "health.json", doctor.examine(history.rows))
            files.write_parquet(run.reports / "samples.parquet", samples.frame())
    if not processes.is_main():
        return
    metrics = summary(trainer.state.global_step, history, samples.prompts_seen)
    verdict = params.early_stopping.verdict(history.rows) if params.early_stopping else None
    metrics["stopped_early"] = verdict if verdict and verdict["step"] < params.max_steps else None
    metrics["classifiers"] = {name: judge.facts for name, judge in judges.items()}
    metrics["deterministic"] = [f"{name}={value}" for name, value in turned_on.items()]
    files.write_json(run.reports / "metrics.json", metrics)
    curves.draw(history.rows, run.reports / "curves.png")


def main() -> None:
    if processes.is_worker():
        return launch.work(Params, train)
    with stage_run.stage("grpo", Params) as run:
        launch.run(train, run)
        health = files.read_json(run.reports / "health.json")
        for rule in health["rules"]:
            if rule["verdict"] == "fired":
                first, last = rule["steps"][0], rule["steps"][-1]
                print(
                    f"grpo: the doctor warns: {rule['what']} (steps {first} to {last}); change {rule['change']}"
                )


if __name__ == "__main__":
    main()
