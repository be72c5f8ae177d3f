"""What looks on while TRL trains: the history, dev accuracy, and what ends a run early."""

from __future__ import annotations

import contextlib
import csv
import io
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transformers import TrainerCallback

from regrpo.core import files, processes
from regrpo.core.answers.protocol import Verifier
from regrpo.core.errors import Refused
from regrpo.core.settings import Launch
from regrpo.train import doctor, generation, sharding
from regrpo.train.doctor import EarlyStopping

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from regrpo.train.rewards import Samples

TIMINGS = (
    "step_time",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "epoch_time",
)
"""What TRL logs of the clock: it varies from run to run, so it goes to no deterministic output."""
SECONDS_BETWEEN_LINES = 2.0
PROMPTS_AT_ONCE = 128


@dataclass(eq=False)
class History(TrainerCallback):  # type: ignore[misc]  # transformers is untyped to mypy
    """Collects every logged metric but timings, sends each on, and prints the `shown` ones."""

    stage: str
    shown: tuple[str, ...]
    send: Callable[[Mapping[str, float], int], None]
    rows: list[dict[str, float]] = field(default_factory=list)
    last_shown: float = 0.0

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        values = {}
        for name, value in (logs or {}).items():
            if name not in TIMINGS and isinstance(value, int | float | str):
                values[name] = float(value)
        # A reward function that was None for every completion has no mean.
        for name in [name for name in values if name.startswith("rewards/")]:
            if math.isnan(values[name]):
                del values[name]
        # TRL's closing summary has no loss, and is no step.
        if "loss" not in values:
            return
        self.add(state.global_step, values)
        if state.is_world_process_zero:
            self._show(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """The last step is logged, whatever logging_steps is."""
        if state.global_step >= state.max_steps:
            control.should_log = True
        return control

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of a step: into its row if it has one already, else into a new one."""
        if not self.rows or self.rows[-1]["step"] != step:
            self.rows.append({"step": float(step)})
        self.rows[-1] |= values
        self.send(values, step)

    def _show(self, state: Any) -> None:
        is_last = state.global_step >= state.max_steps
        if not is_last and time.monotonic() - self.last_shown < SECONDS_BETWEEN_LINES:
            return
        self.last_shown = time.monotonic()
        row = self.rows[-1]
        values = "  ".join(f"{key} {row[key]:.3g}" for key in self.shown if key in row)
        print(f"{self.stage}: step {state.global_step}/{state.max_steps}  {values}", flush=True)

    def state(self) -> list[dict[str, float]]:
        """The rows so far, for a checkpoint."""
        return self.rows

    def restore(self, state: list[dict[str, float]]) -> None:
        """Go on after these rows, and send them again: the watched curve has no gap."""
        self.rows = state
        for row in state:
            values = dict(row)
            step = int(values.pop("step"))
            self.send(values, step)

    def write_csv(self, path: Path) -> None:
        """`step`, then the metrics by name; repr of floats, so that no digit is lost."""
        metrics: set[str] = set()
        for row in self.rows:
            metrics |= row.keys()
        names = ["step", *sorted(metrics - {"step"})]
        text = io.StringIO()
        writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "step": int(row["step"])} for row in self.rows)
        files.write_text(path, text.getvalue())

    def mean(self, metric: str, rows: slice) -> float | None:
        """Mean of a metric over these of the rows that hold it, to 6 digits; None if none does."""
        values = [row[metric] for row in self.rows if metric in row][rows]
        if not values:
            return None
        return round(sum(values) / len(values), 6)


@dataclass(eq=False)
class DevAccuracy(TrainerCallback):  # type: ignore[misc]
    """Greedy accuracy on dev every so many optimizer steps, as `dev_accuracy` in the history.

    Each process answers its share of the questions. Stands before the history in the list of
    callbacks, so that a step's measurement is in its row when that is logged.
    """

    rows: list[dict[str, Any]]
    verifier: Verifier
    every: int
    max_new_tokens: int
    history: History

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        # A resumed run has this measurement in its history already.
        if state.global_step == 0:
            self._measure(0, **kwargs)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step = state.global_step
        if step % self.every == 0 or step == state.max_steps:
            self._measure(step, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A run that was stopped early is measured where it ended."""
        if not self.history.rows:
            return
        last = self.history.rows[-1]
        if last["step"] == state.global_step and "dev_accuracy" not in last:
            self._measure(state.global_step, **kwargs)

    def _measure(self, step: int, model: Any, processing_class: Any, **_: Any) -> None:
        mine = self.rows[processes.rank() :: processes.world_size()]
        prompts = [row["prompt"] for row in mine]
        texts = greedy(model, processing_class, prompts, self.max_new_tokens)
        scores = []
        for text, row in zip(texts, mine, strict=True):
            scores.append(self.verifier.score(text, row["answer"], row))
        scores = processes.gathered(scores)
        self.history.add(step, {"dev_accuracy": sum(scores) / len(scores)})


@dataclass(eq=False)
class SettleSamples(TrainerCallback):  # type: ignore[misc]
    """Has the kept completions of all processes put together once an optimizer step."""

    samples: Samples

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.samples.settle()


@dataclass(eq=False)
class RequireHealth(TrainerCallback):  # type: ignore[misc]
    """Shows the doctor each logged step: NaN and infinity end the run, every rule under "stop"."""

    history: History
    mode: Literal["warn", "stop"]
    main_reward: str

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        rows = self.history.rows
        if self.mode == "warn":
            # NaN and infinity are seen in the row that has them; the others were looked at before.
            rows = rows[-1:]
        health = doctor.examine(rows, self.main_reward)
        if health["verdict"] == "fatal" or (self.mode == "stop" and health["fired"]):
            rule = next(rule for rule in health["rules"] if rule["verdict"] == "fired")
            name = self.history.stage
            raise Refused(
                f"{name}, step {rule['steps'][-1]}",
                expected="a healthy run, by the doctor's rules",
                found=rule["what"],
                remedy=f"Change {rule['change']}.",
            )


@dataclass(eq=False)
class StopEarly(TrainerCallback):  # type: ignore[misc]
    """Ends the run at the step that the rule names; among the callbacks it follows the history."""

    rule: EarlyStopping
    history: History

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        verdict = self.rule.verdict(self.history.rows)
        if verdict is None:
            return control
        if not control.should_training_stop:
            step, reason = verdict["step"], verdict["reason"]
            print(f"{self.history.stage}: stopped at step {step}: {reason}", flush=True)
        control.should_training_stop = True
        # A run resumed from a checkpoint of this very step would train one more.
        control.should_save = False
        return control


@dataclass(eq=False)
class RequireRequestedSharding(TrainerCallback):  # type: ignore[misc]
    """Refuses, before the first step, processes, a backend or a sharding that `launch` did not ask.

    accelerate was seen to train plain DDP where FSDP was asked for, without a word.
    """

    trainer: Any
    launch: Launch

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        import torch.distributed

        launch = self.launch
        backend = "none"
        if torch.distributed.is_initialized():
            backend = torch.distributed.get_backend()
        how = sharding.actual(self.trainer.model_wrapped)
        expected = f"{launch.processes} processes, {launch.backend}, {sharding.requested(launch)}"
        found = f"{args.world_size} processes, {backend}, {how}"
        if found != expected:
            remedy = "Nothing was trained. Correct launch in the profile"
            if launch.config:
                remedy += f", or {launch.config}"
            raise Refused("launch", expected=expected, found=found, remedy=f"{remedy}.")
        if how == "DDP":
            # torch's own argument, which transformers cannot pass on. The buffers are constants
            # (rotary frequencies).
            self.trainer.model_wrapped.forward_sync_buffers = False


def watchers(
    params: Any, history: History, samples: Samples, dev: list[dict[str, Any]], verifier: Any
) -> list[Any]:
    """grpo's callbacks in their order: each looks at what those before it have recorded.

    `params` are the stage's, `dev` the rows to be measured on, none where that is not wanted.
    """
    chosen: list[Any] = []
    if dev:
        length = params.max_completion_length
        chosen.append(DevAccuracy(dev, verifier, params.dev_every, length, history))
    elif params.dev_every:
        print("grpo: no dev accuracy (dev_every): the data has no verifier", flush=True)
    chosen += [SettleSamples(samples), history]
    chosen.append(RequireHealth(history, params.doctor, params.main_reward))
    if params.early_stopping:
        chosen.append(StopEarly(params.early_stopping, history))
    return chosen


def greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Any],
    max_new_tokens: int,
) -> list[str]:
    """Greedy completions of plain or chat prompts; the model's mode and all random states stay."""
    unset = {"top_k": None, "top_p": None, "temperature": None}
    settings = {"max_new_tokens": max_new_tokens, "do_sample": False} | unset
    was_training = model.training
    completions: list[str] = []
    model.eval()
    with random_states_kept():
        for batch in generation.complete(model, tokenizer, prompts, PROMPTS_AT_ONCE, **settings):
            completions += batch
    model.train(was_training)
    return completions


@contextlib.contextmanager
def random_states_kept() -> Iterator[None]:
    """Put every generator back: what runs inside leaves the training as it would be without."""
    import numpy as np
    import torch

    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
