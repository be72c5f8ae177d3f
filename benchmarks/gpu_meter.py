"""What a training takes, seen from outside: seconds and memory by phase.

    python benchmarks/gpu_meter.py sft|grpo FILE     run the stage here, write FILE (JSON)

`Meter.watch` wraps methods of TRL's trainers, so that regrpo's stages and a bare TRL script are
measured alike and neither knows. It works on CUDA and on a CPU.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LOADING, SAVING, OTHER = "loading", "saving", "other"
GENERATION, SCORING, TRAINING = "generation", "log-probabilities", "loss and backward"
SYNC, OPTIMIZER = "weight sync", "optimizer"
METHODS = {
    "_generate": GENERATION,
    "_calculate_rewards": "rewards",
    "_get_per_token_logps_and_entropies": SCORING,
    "training_step": TRAINING,
    "_prepare_inputs": OTHER,
}
"""Methods of a trainer and their phases; `other` is what a step does besides."""
STEP = (GENERATION, SYNC, "rewards", SCORING, TRAINING, OPTIMIZER, OTHER)
"""The phases of a step, in their order."""
NUMBERS = ("loss", "grad_norm", "entropy", "reward", "num_tokens", "completions/mean_length")
"""What is kept of the last step's log: two trainings that do the same agree in it."""


class TrainingEnded(BaseException):
    """Raised after the last step, so that nothing is saved.

    A BaseException, lest a handler of errors take it for one.
    """


class Phases:
    """Seconds and memory by phase; what lies inside a phase counts for itself alone.

    On CUDA a change of phase waits until the device has done what it was given.
    """

    def __init__(self, device: str) -> None:
        self.on_cuda = device.startswith("cuda")
        self.open = [LOADING]
        self.since = time.perf_counter()
        self.seconds: dict[str, float] = defaultdict(float)
        self.peaks: dict[str, int] = defaultdict(int)
        """Bytes that torch had allocated at most; on a CPU none."""
        self.used: dict[str, int] = defaultdict(int)
        """Bytes in use at the end of a phase: of the whole device, or of this process's memory."""
        self.reserved = 0

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self.enter(name)
        try:
            yield
        finally:
            self.leave()

    def enter(self, name: str) -> None:
        self.note()
        self.open.append(name)

    def leave(self) -> None:
        self.note()
        self.open.pop()

    def become(self, name: str) -> None:
        """From now on, what is inside no phase counts as `name`."""
        self.note()
        self.open[0] = name

    def take_seconds(self) -> dict[str, float]:
        """The seconds since this was last called, by phase."""
        self.note()
        taken = dict(self.seconds)
        self.seconds.clear()
        return taken

    def note(self) -> None:
        """Count what has passed since the last call for the phase that is open."""
        import psutil
        import torch

        name = self.open[-1]
        used = 0
        if self.on_cuda:
            torch.cuda.synchronize()
            self.peaks[name] = max(self.peaks[name], torch.cuda.max_memory_allocated())
            self.reserved = max(self.reserved, torch.cuda.max_memory_reserved())
            torch.cuda.reset_peak_memory_stats()
            free, total = torch.cuda.mem_get_info()
            used = total - free
        else:
            used = psutil.Process().memory_info().rss
        self.used[name] = max(self.used[name], used)
        now = time.perf_counter()
        self.seconds[name] += now - self.since
        self.since = now

    def memory(self) -> dict[str, Any]:
        """Bytes: the allocator's peaks, what the process has on the device besides, host memory."""
        from regrpo.core.errors import peak_memory

        self.note()
        outside = (GENERATION, LOADING, SAVING)
        training = [peak for name, peak in self.peaks.items() if name not in outside]
        return {
            "allocated_train": max(training, default=0),
            "allocated_generate": self.peaks.get(GENERATION, 0),
            "allocated_load": self.peaks.get(LOADING, 0),
            "allocated_save": self.peaks.get(SAVING, 0),
            "reserved": self.reserved,
            "context": context_bytes() if self.on_cuda else 0,
            "used": dict(self.used),
            "host_peak": peak_memory(),
        }


class Meter:
    """One training: its phases, its steps and its last numbers."""

    def __init__(self, device: str) -> None:
        self.phases = Phases(device)
        self.steps: list[dict[str, float]] = []
        """Seconds by phase of each step; from the end of one to the end of the next."""
        self.loading = 0.0
        self.numbers: dict[str, float] = {}
        self.weights = ""

    def watch(self, trainer_class: Any, saves: bool) -> None:
        """Measure what trainers of this class do; without `saves`, leave train() at its end."""
        from transformers import TrainerCallback
        from trl.generation import vllm_generation

        meter, train = self, trainer_class.train

        class Clock(TrainerCallback):
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                meter.phases.become(OTHER)
                meter.loading = sum(meter.phases.take_seconds().values())

            def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
                meter.phases.enter(OPTIMIZER)

            def on_optimizer_step(self, *_: Any, **__: Any) -> None:
                meter.phases.leave()

            def on_step_end(self, *_: Any, **__: Any) -> None:
                meter.steps.append(meter.phases.take_seconds())

        def measured_train(trainer: Any, *arguments: Any, **named: Any) -> None:
            trainer.add_callback(Clock())
            if not saves:
                trainer.args.save_strategy = type(trainer.args.save_strategy)("no")
            train(trainer, *arguments, **named)
            meter.phases.become(SAVING)
            meter._remember(trainer)
            if not saves:
                raise TrainingEnded

        trainer_class.train = measured_train
        for name, phase in METHODS.items():
            if hasattr(trainer_class, name):
                self._time(trainer_class, name, phase)
        self._time(vllm_generation.VLLMGeneration, "sync_weights", SYNC)
        if hasattr(vllm_generation, "LLM"):  # while its engine is awake
            self._time(vllm_generation.LLM, "generate", GENERATION)

    def _time(self, owner: Any, name: str, phase: str) -> None:
        import torch

        method = getattr(owner, name)

        @functools.wraps(method)
        def timed(*arguments: Any, **named: Any) -> Any:
            if phase == SCORING and torch.is_grad_enabled():  # the loss's own forward
                return method(*arguments, **named)
            with self.phases.phase(phase):
                return method(*arguments, **named)

        setattr(owner, name, timed)

    def _remember(self, trainer: Any) -> None:
        self.weights = str(next(trainer.model.parameters()).dtype)
        logged = [row for row in trainer.state.log_history if "loss" in row]
        for name in NUMBERS:
            if logged and name in logged[-1]:
                self.numbers[name] = float(logged[-1][name])

    def times(self) -> dict[str, Any]:
        """Seconds a step and its phases: medians without the first step, which compiles."""
        wholes = [sum(step.values()) for step in self.steps]
        phases = {}
        for name in STEP:
            seconds = [step.get(name, 0.0) for step in self.steps]
            phases[name] = round(statistics.median_high(seconds[1:] or seconds), 4)
        return {
            "loading_seconds": round(self.loading, 1),
            "steps": [round(seconds, 3) for seconds in wholes],
            "step_seconds": round(statistics.median_high(wholes[1:] or wholes), 4),
            "first_step_seconds": round(wholes[0], 3),
            "phases": phases,
        }


def context_bytes() -> int:
    """What this process has on the device beyond torch's allocator.

    By NVML; where that fails, all that is in use less torch's, right only if the GPU is ours alone.
    """
    import torch

    reserved = torch.cuda.memory_reserved()
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid() and process.usedGpuMemory:
                return int(process.usedGpuMemory) - reserved
    except Exception as error:  # without the package, its library or the right to ask
        print(f"NVML: {error}", file=sys.stderr)
    free, total = torch.cuda.mem_get_info()
    return int(total - free - reserved)


def mfu(config: Any, tokens: float, sequence: int, adapter: bool, card: str) -> float | None:
    """Model FLOPs utilization in percent of so many trained tokens a second in bf16.

    PaLM (arXiv:2204.02311, appendix B): the arithmetic of forward and backward, by TRL's count,
    over the card's dense peak, by TRL's table. Frozen weights have no gradient: with an adapter two
    thirds of it. What checkpointing computes again does not count. None for a card whose peak is
    not known.
    """
    from trl.trainer.utils import compute_flops_per_token, compute_mfu, get_peak_flops

    peak = get_peak_flops(card, "bfloat16")
    if peak is None:
        return None
    flops = compute_flops_per_token(config, sequence)
    return round(compute_mfu(flops * 2 // 3 if adapter else flops, tokens, 1, peak), 2)


def main() -> None:
    """Run a stage of the project in the working directory under the meter."""
    stage, file = sys.argv[1:]
    sys.path.insert(0, str(Path.cwd()))
    import trl

    from regrpo.core import hardware, profiles

    section = profiles.read_profile(profiles.active_profile())[stage]
    meter = Meter(hardware.find_device(section.get("device", "auto")))
    meter.watch({"sft": trl.SFTTrainer, "grpo": trl.GRPOTrainer}[stage], saves=True)
    importlib.import_module(f"stages.{stage}").main()
    result = meter.times() | meter.phases.memory() | {"numbers": meter.numbers}
    Path(file).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
