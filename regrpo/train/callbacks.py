"""What sft and grpo share around TRL's trainers.

The history, progress, dev accuracy, and saving without pickles.
"""

from __future__ import annotations

import contextlib
import csv
import io
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from regrpo.core import files, processes
from regrpo.core.errors import Refused
from regrpo.core.tokenizers import save as save_tokenizer
from regrpo.core.verifiers import Verifier
from regrpo.train import saving
from regrpo.train.early_stopping import EarlyStopping

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TIMINGS = (
    "step_time",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "epoch_time",
)
"""What TRL logs of the clock: it varies from run to run, so it goes to no deterministic output."""


class History(TrainerCallback):  # type: ignore[misc]  # transformers is untyped to mypy
    """Collects every logged metric but timings, shows progress, and passes each row on while the run goes.

    `check` is called with the rows so far after each logged step, and may raise.
    """

    def __init__(
        self,
        name: str,
        shown: tuple[str, ...],
        log: Callable[[Mapping[str, float], int], None],
        check: Callable[[list[dict[str, float]]], None] = lambda rows: None,
    ) -> None:
        self.name, self.shown, self.send, self.check = name, shown, log, check
        self.rows: list[dict[str, float]] = []
        self._last_shown = 0.0

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        values = {
            k: float(v)
            for k, v in (logs or {}).items()
            if k not in TIMINGS and isinstance(v, int | float | str)
        }
        if "loss" not in values:  # the closing summary, not a step
            return
        self.add(state.global_step, values)
        if state.is_world_process_zero:
            self._show(self.rows[-1], state)
            self.check(self.rows)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """The last step is logged, whatever logging_steps is."""
        if state.global_step >= state.max_steps:
            control.should_log = True
        return control

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of a step: into its row where it has one already, else into a new one."""
        if not self.rows or self.rows[-1]["step"] != step:
            self.rows.append({"step": float(step)})
        self.rows[-1] |= values
        self.send(values, step)

    def _show(self, row: dict[str, float], state: Any) -> None:
        last = state.global_step >= state.max_steps
        if not last and time.monotonic() - self._last_shown < 2:
            return
        self._last_shown = time.monotonic()
        values = "  ".join(f"{key} {row[key]:.3g}" for key in self.shown if key in row)
        print(f"{self.name}: step {state.global_step}/{state.max_steps}  {values}", flush=True)

    def state(self) -> list[dict[str, float]]:
        """The rows so far, for a checkpoint."""
        return self.rows

    def restore(self, state: list[dict[str, float]]) -> None:
        """Go on after these rows.

        They are shown again to whoever watches, so that the curve has no gap.
        """
        self.rows = state
        for row in state:
            self.send({key: value for key, value in row.items() if key != "step"}, int(row["step"]))

    def write_csv(self, path: Path) -> None:
        """`step`, then the metrics by name; repr of floats, so that no digit is lost."""
        names = ["step", *sorted({key for row in self.rows for key in row} - {"step"})]
        text = io.StringIO()
        writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "step": int(row["step"])} for row in self.rows)
        files.write_text(path, text.getvalue())

    def mean(self, metric: str, rows: slice = slice(None)) -> float | None:
        """Mean of a metric over the logged rows that hold it, rounded to 6 digits.

        None where none does.
        """
        values = [row[metric] for row in self.rows if metric in row][rows]
        return round(sum(values) / len(values), 6) if values else None


@contextlib.contextmanager
def random_states_kept() -> Iterator[None]:
    """Put every generator back where it was.

    What runs inside leaves the training as it would be without.
    """
    import numpy as np
    import torch

    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


class DevAccuracy(TrainerCallback):  # type: ignore[misc]
    """Greedy accuracy on dev every so many optimizer steps, as `dev_accuracy` in the history.

    Each process answers its share of the questions.
    """

    def __init__(
        self,
        rows: list[dict[str, Any]],
        verifier: Verifier,
        every: int,
        max_new_tokens: int,
        history: History,
    ) -> None:
        self.rows, self.verifier, self.every, self.max_new_tokens, self.history = (
            rows,
            verifier,
            every,
            max_new_tokens,
            history,
        )

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self._measure(0, kwargs["model"], kwargs["processing_class"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self._measure(state.global_step, kwargs["model"], kwargs["processing_class"])

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A run that was stopped early is measured where it ended."""
        last = self.history.rows[-1] if self.history.rows else {}
        if last.get("step") == state.global_step and "dev_accuracy" not in last:
            self._measure(state.global_step, kwargs["model"], kwargs["processing_class"])

    def _measure(
        self, step: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        mine = self.rows[processes.rank() :: processes.world_size()]
        texts = greedy(model, tokenizer, [row["prompt"] for row in mine], self.max_new_tokens)
        scores = [
            self.verifier.score(text, row["answer"]) for text, row in zip(texts, mine, strict=True)
        ]
        scores = processes.gathered(scores)
        self.history.add(step, {"dev_accuracy": sum(scores) / len(scores)})


class Stopper(TrainerCallback):  # type: ignore[misc]
    """Ends the run at the step that the rule names, on the history that came before it in the list of callbacks."""

    def __init__(self, rule: EarlyStopping, history: History) -> None:
        self.rule, self.history = rule, history

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if verdict := self.rule.verdict(self.history.rows):
            if not control.should_training_stop:
                print(
                    f"{self.history.name}: stopped at step {verdict['step']}: {verdict['reason']}",
                    flush=True,
                )
            control.should_training_stop = True
            control.should_save = False  # a run resumed from this very step would train one more
        return control


def greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Any],
    max_new_tokens: int,
) -> list[str]:
    """Greedy completions of plain or chat prompts, the model's mode and all random states left as they were."""
    import torch

    texts = [
        prompt if isinstance(prompt, str) else _render(tokenizer, prompt) for prompt in prompts
    ]
    was_training, completions = model.training, []
    model.eval()
    with random_states_kept(), torch.no_grad():
        for start in range(0, len(texts), 128):
            batch = tokenizer(
                texts[start : start + 128],
                return_tensors="pt",
                padding=True,
                padding_side="left",
                add_special_tokens=isinstance(prompts[0], str),
                return_token_type_ids=False,
            ).to(model.device)
            ids = model.generate(
                **batch,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                top_k=None,
                top_p=None,
                temperature=None,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                disable_compile=True,
            )
            completions += tokenizer.batch_decode(
                ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True
            )
    model.train(was_training)
    return completions


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def save(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    start: Path,
    state: dict[str, Any] | None = None,
) -> None:
    """A whole model folder: safetensors, config, tokenizer.

    LoRA merged, its adapter kept in `adapter/`. No pickle.

    `start` is the folder of the model that was trained; `state` takes the place of weights that lie
    in shards. Of several processes, the main one writes.
    """
    from peft import PeftModel

    if not processes.is_main():
        return
    with files.replacing(folder) as temporary:
        temporary.mkdir()
        if isinstance(model, PeftModel):
            saving.save(model, start, temporary / "adapter", folder / "adapter")
            model = saving.merge(model, start, temporary / "adapter")
        model.config.use_cache = True  # trainers turn it off; whoever loads the model generates
        model.save_pretrained(temporary, state_dict=state)
        save_tokenizer(tokenizer, temporary)


def quiet(trainer: Any) -> None:
    """Drop the trainer's own printing of each log line; History shows progress."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


@contextlib.contextmanager
def told_as_refusal(section: str, kind: type[Exception] = ValueError) -> Iterator[None]:
    """What TRL, PEFT or transformers say of a setting, told as a refusal of the section.

    ImportError, of a package that a setting needs, is for the trainer's making only: later ones are
    our faults.
    """
    try:
        yield
    except kind as error:
        raise Refused(
            section,
            expected="settings that the trainer accepts",
            found=" ".join(str(error).split())[:400],
            remedy="Correct them in the profile; a package that is missing may be in an extra (pyproject.toml).",
        ) from error
