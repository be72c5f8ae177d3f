"""One training in a process of its own, and what its seconds went to.

    python benchmarks/training_case.py sft|grpo stage|SETTINGS.json FILE [--began T] [--until A]

`stage` runs the project's stage in the working directory, SETTINGS.json bare_trl.py by these
settings. FILE gets the seconds of `imports` (from T, as time.time() says it, the moment at which
the process was started), `load` (model and tokenizer), `rows` (read, tokenized, the trainer made),
`train` (trainer.train() alone) and `save`, of `train` and `save` those on a processor too; and of
bare_trl.py `dev`, each dev accuracy with its step and the seconds from the beginning of train(). At
an accuracy of A it stops.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

TRAINERS = {"sft": "SFTTrainer", "grpo": "GRPOTrainer"}
STARTS = {"sft": "models/base", "grpo": "models/sft"}
"""The model folder from which each starts."""


class Reached(BaseException):
    """Raised at the accuracy that was waited for.

    A BaseException, lest a handler of errors take it for one.
    """


class Clock:
    """Seconds by name; what lies inside another counts for the outer one."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.taken: dict[str, float] = {}
        self.processor: dict[str, float] = {}
        """The same in seconds of this process on a processor, which others do not lengthen."""
        self.open = False
        self.marks: dict[str, float] = {}
        """The moments at which the work and train() began."""
        self.dev: list[dict[str, float]] = []

    @contextlib.contextmanager
    def counting(self, name: str) -> Iterator[None]:
        if self.open:
            yield
            return
        self.open, began, used = True, time.time(), time.process_time()
        try:
            yield
        finally:
            self.open = False
            self.taken[name] = self.taken.get(name, 0.0) + time.time() - began
            used = time.process_time() - used
            self.processor[name] = self.processor.get(name, 0.0) + used

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Count what a function, method or class method takes."""
        found = owner.__dict__.get(method) or getattr(owner, method)
        is_of_class = isinstance(found, classmethod)
        function = found.__func__ if is_of_class else found

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            self.marks.setdefault(name, time.time())
            with self.counting(name):
                return function(*arguments, **named)

        setattr(owner, method, classmethod(timed) if is_of_class else timed)

    def seconds(self) -> dict[str, float]:
        """What was counted; `rows` is what lies before train() and is not loading."""
        before = self.marks["train"] - self.marks["work"]
        loaded = self.taken.get("load", 0.0)
        return self.taken | {"rows": before - loaded}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=TRAINERS)
    parser.add_argument("work")
    parser.add_argument("file", type=Path)
    parser.add_argument("--began", type=float, default=time.time())
    parser.add_argument("--until", type=float, default=2.0)
    arguments = parser.parse_args()
    clock = Clock(arguments.began)
    work = imported(arguments.stage, arguments.work, clock, arguments.until)
    clock.taken["imports"] = time.time() - clock.began
    with contextlib.suppress(Reached):
        work()
    found = {"seconds": clock.seconds(), "processor": clock.processor, "dev": clock.dev}
    arguments.file.write_text(json.dumps(found))


def imported(stage: str, work: str, clock: Clock, until: float) -> Callable[[], object]:
    """Import all that the work needs, and have its parts counted; returns the work."""
    import trl
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    trainer = getattr(trl, TRAINERS[stage])
    if work == "stage":
        from regrpo.train import saving

        # The stage's own imports, which it makes later.
        for name in ("callbacks", "curves", "generation", "trainers"):
            importlib.import_module(f"regrpo.train.{name}")
        module = importlib.import_module(f"stages.{stage}")
        begin(module, clock)
        clock.watch(saving, "save_model", "save")
        run = module.main
    else:
        import bare_trl

        begin(bare_trl, clock)
        watch_dev(bare_trl.DevAccuracy, clock, until)
        clock.watch(trainer, "save_model", "save")
        settings = json.loads(Path(work).read_text())
        run = functools.partial(bare_trl.train, stage, settings)
    clock.watch(trainer, "train", "train")
    for owner in (PreTrainedModel, PreTrainedTokenizerBase):
        clock.watch(owner, "from_pretrained", "load")
    return run


def begin(module: Any, clock: Clock) -> None:
    """Note when a module's train() is called: what a stage does before is its frame's."""
    train = module.train

    def noted(*arguments: Any) -> None:
        clock.marks["work"] = time.time()
        train(*arguments)

    module.train = noted


def watch_dev(callback: Any, clock: Clock, until: float) -> None:
    """Keep each dev accuracy with its time; end the training at the one that is waited for."""
    measure = callback.measure

    def noted(self: Any, args: Any, state: Any, **parts: Any) -> None:
        measure(self, args, state, **parts)
        found = dict(state.log_history[-1])
        clock.dev.append(found | {"seconds": time.time() - clock.marks["train"]})
        if found["dev_accuracy"] >= until:
            raise Reached

    callback.measure = noted


def bare_settings(
    stage: str, params: Any, device: str, answer: str, dev: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What bare_trl.py reads: what the stage gives TRL, by the paths of a workspace.

    `params` are the stage's, `answer` and `dev` as bare_trl.py describes them.
    """
    return {
        "model": STARTS[stage],
        "data": "data/prepared/sft.parquet" if stage == "sft" else "data/selected/train.parquet",
        "answer": answer,
        "threads": params.threads,
        "lora": params.lora and params.lora.model_dump(),
        "dev": dev,
        "trainer": {"output_dir": f"models/{stage}"} | params.trainer_settings(device),
    }


if __name__ == "__main__":
    main()
