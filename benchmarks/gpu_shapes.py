"""profiles/gemma-3-1b-pt.yaml at true size, without its weights: memory and time beside the plan.

    python benchmarks/gpu_shapes.py make           a base of random weights, profile variants
    python benchmarks/gpu_shapes.py plan           `regrpo plan --json`, in plan-VARIANT.json
    python benchmarks/gpu_shapes.py run [CASE ...] a few optimizer steps of each case: cases.json
    python benchmarks/gpu_shapes.py table          what was measured beside what was planned

Run it in the root of a copy of the project: it writes into models/raw/, profiles/ and the root.
Cases are STAGE-VARIANT: the stage's own train() with the variant's own settings, on sequences of
exactly the lengths that the plan counts with; with -real at the end, on the rows that prepare left
in data/prepared/. Changed are only the number of steps and the fixed length of completions, and
nothing is saved. SHORT=1 makes everything tiny, DEVICE=cpu leaves the GPU out; CASE_SECONDS and
ALL_SECONDS limit one case and all of them.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
import types
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path.cwd()
SOURCE = Path("profiles/gemma-3-1b-pt.yaml")
RAW = Path("models/raw/gemma-random")
RESULTS, LOG = Path("cases.json"), Path("cases.log")
PARAMETERS = 999_885_952
CASES = (
    "sft-lora",
    "grpo-lora",
    "sft-full",
    "grpo-full",
    "sft-nf4",
    "grpo-nf4",
    "sft-lora-real",
)
STEPS = {"sft": 6, "grpo": 3}
DEVICE = os.environ.get("DEVICE", "cuda")
SHORT = bool(os.environ.get("SHORT"))

Changes = Mapping[str, Mapping[str, Any]]
"""Sections of a profile with new values; a value of REMOVED takes the key away."""
REMOVED = object()
SHARED: Changes = {
    "prepare": {
        "source": {"kind": "local", "train": "train.jsonl", "eval": "test.jsonl", "license": "MIT"}
    },
    "base_model": {"source": {"kind": "local", "path": RAW.name, "license": "gemma"}},
    "grpo": {
        "use_vllm": False,
        "vllm_mode": REMOVED,
        "vllm_gpu_memory_utilization": REMOVED,
        "vllm_max_model_length": REMOVED,
    },
    "evaluate": {
        "backend": "hf",
        "tasks": [
            "heldout",
            "heldout_sampled",
            "heldout_answer_prefilled",
            "heldout_reasoning_prefilled",
        ],
    },
}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
VARIANTS: dict[str, Changes] = {  # as the profile's own comments write them
    "lora": {},
    "full": {
        "sft": {"lora": None, "learning_rate": 1.0e-5, "optim": "adamw_torch_fused"},
        "grpo": {"lora": None, "learning_rate": 1.0e-6, "optim": "adamw_torch_fused"},
    },
    "nf4": {
        "sft": {
            "quantization": NF4,
            "optim": "paged_adamw_8bit",
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 8,
        },
        "grpo": {
            "quantization": NF4,
            "optim": "paged_adamw_8bit",
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 16,
        },
    },
}
WITHOUT_GPU: Changes = {
    "sft": {"device": DEVICE, "bf16": False},
    "grpo": {"device": DEVICE, "bf16": False},
    "evaluate": {"device": DEVICE},
}
TINY: Changes = {
    "validate": {"max_prompt_tokens": 48, "min_rows": 4},
    "sft": {"max_length": 96, "per_device_train_batch_size": 2},
    "grpo": {
        "max_completion_length": 16,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 2,
    },
}
TINY_MODEL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "head_dim": 32,
    "vocab_size": 4096,
    "query_pre_attn_scalar": 32,
    "sliding_window": 64,
}


def main() -> None:
    command, *names = sys.argv[1:] or ["help"]
    if command == "make":
        make()
    elif command == "plan":
        plan()
    elif command == "case" and names:
        case(names[0])
    elif command == "run":
        run(names or list(CASES))
    elif command == "table":
        table()
    else:
        sys.exit(__doc__)


# --- make: a base and its profiles ------------------------------------------------------------


def make() -> None:
    """Write the variants of the profile, and a model folder of random weights for them."""
    from ruamel.yaml import YAML

    for variant in VARIANTS:
        write_profile(variant)
    profile = YAML(typ="safe").load(SOURCE.read_text())
    make_base(profile["base_model"]["source"]["config"])


def write_profile(variant: str) -> None:
    from ruamel.yaml import YAML

    changes = [SHARED, VARIANTS[variant]]
    if DEVICE != "cuda":
        changes.append(WITHOUT_GPU)
    if SHORT:
        changes.append(TINY)
    yaml = YAML()
    yaml.width = 4096
    profile = yaml.load(SOURCE.read_text())
    for change in changes:
        for section, values in change.items():
            for key, value in values.items():
                if value is REMOVED:
                    profile[section].pop(key, None)
                else:  # a copy, else YAML writes what sft and grpo share as an alias
                    profile[section][key] = copy.deepcopy(value)
    with profile_of(variant).open("w") as file:
        yaml.dump(profile, file)


def profile_of(variant: str) -> Path:
    return Path(f"profiles/gemma-{variant}.yaml")


def make_base(stated: Mapping[str, Any]) -> None:
    """Random weights of the stated configuration, in bfloat16, made on the device.

    Exits where their number is not what gemma-3-1b-pt has.
    """
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    sizes = {name: value for name, value in stated.items() if name not in ("model_type", "dtype")}
    if SHORT:
        sizes |= TINY_MODEL
    config = Gemma3TextConfig(**sizes, pad_token_id=0, eos_token_id=1, bos_token_id=2)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(DEVICE):
        model = Gemma3ForCausalLM(config)
    count = sum(weights.numel() for weights in model.parameters())
    expected = "" if SHORT else f", expected {PARAMETERS:,}"
    print(f"{count:,} parameters, {config.vocab_size:,} words{expected}")
    if not SHORT and count != PARAMETERS:
        sys.exit("not the size that the profile's base has")
    model.save_pretrained(RAW)
    make_tokenizer(config.vocab_size).save_pretrained(RAW)


def make_tokenizer(size: int) -> Any:
    """Words, digits and marks of data/raw/*.jsonl as tokens of their own, as Gemma parts digits.

    Filled up to `size` with words that no text holds.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pattern = r"\s|\d|[^\W\d]+|[^\w\s]|_"
    words = words_of(sorted(Path("data/raw").glob("*.jsonl")), pattern)[:size]
    words += [f"<filler-{index}>" for index in range(size - len(words))]
    ids = {word: index for index, word in enumerate(words)}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
    )


def words_of(sources: Iterable[Path], pattern: str) -> list[str]:
    """The special tokens, then ASCII, then every word of the sources in the order of their rows."""
    import re

    letters = map(chr, range(32, 127))
    words = dict.fromkeys(["<pad>", "<eos>", "<bos>", "<unk>", *letters, "\n", "\t"])
    for source in sources:
        for line in source.read_text().splitlines():
            row = " ".join(map(str, json.loads(line).values()))
            words |= dict.fromkeys(re.findall(pattern, row))
    return list(words)


# --- plan -------------------------------------------------------------------------------------


def plan() -> None:
    """`regrpo plan --json` of every variant, all at once."""
    planning = {}
    for variant in VARIANTS:
        command = [sys.executable, "-m", "regrpo.cli", "plan", "--json"]
        planning[variant] = subprocess.Popen(
            [*command, "--profile", str(profile_of(variant))],
            stdout=plan_of(variant).open("w"),
            stderr=subprocess.PIPE,
            text=True,
        )
    for variant, process in planning.items():
        _, error = process.communicate()
        if process.returncode not in (0, 1):
            print(f"plan {variant}: exit code {process.returncode}: {error[-500:]}")


def plan_of(variant: str) -> Path:
    return Path(f"plan-{variant}.json")


def planned_phases(stage: str, variant: str) -> dict[str, dict[str, Any]]:
    """The plan's phases of a stage by name: terms, total, seconds a step. Empty without a plan."""
    try:
        content = json.loads(plan_of(variant).read_text())
    except (OSError, ValueError):
        return {}
    phases = {phase["phase"]: phase for phase in content["phases"]}
    return {name: phase for name, phase in phases.items() if name.split(",")[0] == stage}


# --- one case, in a process of its own --------------------------------------------------------


def case(name: str) -> None:
    """Import everything, say "ready", wait for a line on stdin, train, and print the result.

    While one case computes, the next one can thus import.
    """
    stage, variant, *rest = name.split("-")
    real = "real" in rest
    sys.path.insert(0, str(ROOT))
    import trl

    from regrpo.core import profiles
    from stages import grpo, sft

    module = {"sft": sft, "grpo": grpo}[stage]
    trainer = {"sft": trl.SFTTrainer, "grpo": trl.GRPOTrainer}[stage]
    section, lengths = settings_of(stage, profiles.read_profile(profile_of(variant)))
    params = profiles.parse_section(module.Params, section, name)
    prepare_folder(ROOT / "cases" / name, lengths, real)
    meter = Meter()
    meter.watch(trainer)
    run = types.SimpleNamespace(
        params=params,
        stage=stage,
        reports=Path("reports"),
        log=lambda values, step=0: None,
        checkpoint_folder=lambda device: Path("checkpoints"),
    )
    print("ready", flush=True)
    if sys.stdin.readline().strip() != "go":
        sys.exit(1)
    began = time.perf_counter()
    with contextlib.suppress(TrainingEnded):  # nothing is saved
        module.train(run)
    result = {"case": name, "seconds": round(time.perf_counter() - began, 1)}
    sequences = params.per_device_train_batch_size * params.gradient_accumulation_steps
    result |= meter.speeds(sequences, lengths, real) | meter.memory()
    result |= {"weights": meter.weights, "lengths": lengths, "sequences": sequences}
    print("RESULT " + json.dumps(result), flush=True)


def settings_of(stage: str, profile: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[int, int]]:
    """The stage's section for a few steps, and the tokens of its prompts and completions."""
    section = profile[stage] | {"max_steps": STEPS[stage], "logging_steps": 1}
    if stage == "grpo":
        completion = section["max_completion_length"]
        section |= {"generation_kwargs": {"min_new_tokens": completion}, "sample_every": 1000}
        return section, (profile["validate"]["max_prompt_tokens"], completion)
    half = section["max_length"] // 2  # the plan counts half of the window for each
    return section, (section["max_length"] - half, half)


def prepare_folder(folder: Path, lengths: tuple[int, int], real: bool) -> None:
    """Make `folder` the working directory: models of random weights, and data to train on."""
    for place in ("models", "data", "reports"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    for model in ("base", "sft"):
        (folder / "models" / model).symlink_to((ROOT / RAW).resolve())
    os.chdir(folder)
    if real:
        Path("data/prepared").symlink_to(ROOT / "data/prepared")
    else:
        write_rows(Path("data/prepared"), *lengths)


def write_rows(folder: Path, prompt: int, completion: int) -> None:
    """Rows of one comma a token; the tokenizer adds <bos> to the prompt, the trainer <eos>."""
    import pandas as pd

    folder.mkdir()
    texts = {"prompt": "," * (prompt - 1), "solution": "," * (completion - 1)}
    rows = [
        {"id": str(index), "question": "", "answer": "1", "source_row": index, **texts}
        for index in range(256)
    ]
    for split in ("sft", "train"):
        pd.DataFrame(rows).to_parquet(folder / f"{split}.parquet")
    (folder / "dataset.json").write_text(json.dumps({"verifier": "final_number"}))


class TrainingEnded(BaseException):
    """Raised after the last step: leaves the stage's train() before it saves.

    A BaseException, so that no handler of errors takes it for one.
    """


class Meter:
    """Peaks of memory, by phase, and seconds of one training. A peak on a CPU counts as 0."""

    def __init__(self) -> None:
        self.peaks = {"train": 0, "generate": 0}
        self.reserved = 0
        self.step_ends: list[float] = []
        self.generations: list[float] = []
        self.weights = ""

    def watch(self, trainer_class: Any) -> None:
        """Measure what trainers of this class do, and end their train() without saving."""
        from transformers import TrainerCallback

        meter, train = self, trainer_class.train

        class Clock(TrainerCallback):
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                meter.forget_peaks()  # loading has peaks of its own
                meter.step_ends.append(now())

            def on_step_end(self, *_: Any, **__: Any) -> None:
                meter.step_ends.append(now())

        def measured_train(trainer: Any, *arguments: Any, **named: Any) -> None:
            trainer.add_callback(Clock())
            trainer.args.save_strategy = type(trainer.args.save_strategy)("no")
            train(trainer, *arguments, **named)
            meter.take_peak("train")
            meter.weights = str(next(trainer.model.parameters()).dtype)
            raise TrainingEnded

        trainer_class.train = measured_train
        if hasattr(trainer_class, "_generate"):
            self.watch_generation(trainer_class)

    def watch_generation(self, trainer_class: Any) -> None:
        generate = trainer_class._generate

        def measured_generate(trainer: Any, *arguments: Any, **named: Any) -> Any:
            self.take_peak("train")
            began = now()
            completions = generate(trainer, *arguments, **named)
            self.generations.append(now() - began)
            self.take_peak("generate")
            return completions

        trainer_class._generate = measured_generate

    def take_peak(self, phase: str) -> None:
        """The highest since the last peak was taken belongs to `phase`."""
        import torch

        if DEVICE == "cuda":
            self.peaks[phase] = max(self.peaks[phase], torch.cuda.max_memory_allocated())
            self.reserved = max(self.reserved, torch.cuda.max_memory_reserved())
            torch.cuda.reset_peak_memory_stats()

    def forget_peaks(self) -> None:
        import torch

        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def memory(self) -> dict[str, int]:
        """Bytes: the allocator's peaks, and what the process has on the device besides."""
        return {
            "allocated_train": self.peaks["train"],
            "allocated_generate": self.peaks["generate"],
            "reserved": self.reserved,
            "context": context_bytes() if DEVICE == "cuda" else 0,
        }

    def speeds(self, sequences: int, lengths: tuple[int, int], real: bool) -> dict[str, Any]:
        """Seconds a step and tokens a second; the first step, which compiles, is left out."""
        ends = self.step_ends
        steps = [after - before for before, after in itertools.pairwise(ends)]
        step = statistics.median_high(steps[1:] or steps)
        generation = statistics.median_high(self.generations[1:] or self.generations or [0.0])
        tokens = trained = generated = None
        if not real:  # real rows have lengths of their own
            tokens = sequences * sum(lengths)
            trained = round(tokens / (step - generation))
        if generation:
            generated = round(sequences * lengths[1] / generation)
        return {
            "steps": [round(seconds, 3) for seconds in steps],
            "step_seconds": round(step, 3),
            "first_step_seconds": round(steps[0], 3),
            "generate_seconds": round(generation, 3),
            "train_seconds": round(step - generation, 3),
            "tokens_a_step": tokens,
            "tokens_per_second_trained": trained,
            "tokens_per_second_generated": generated,
        }


def now() -> float:
    """Seconds, once the device has done what it was given."""
    import torch

    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


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


# --- run: all cases, one after another --------------------------------------------------------


def run(names: list[str]) -> None:
    """Measure the cases; each result is printed and written to cases.json as it comes."""
    limit = float(os.environ.get("CASE_SECONDS", "150"))
    ends = time.monotonic() + float(os.environ.get("ALL_SECONDS", "330"))
    queue = deque(names)
    started: deque[tuple[str, Any]] = deque()
    results = []
    with LOG.open("w") as log:
        while queue or started:
            while queue and len(started) < 2:  # the next one imports while this one computes
                name = queue.popleft()
                started.append((name, start(name, log)))
            name, process = started.popleft()
            left = ends - time.monotonic()
            results.append(result_of(name, process, min(limit, left) if left > 15 else 0))
            RESULTS.write_text(json.dumps(results, indent=1))
            print(line_of(results[-1]), flush=True)


def start(name: str, log: Any) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, "case", name]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
    )


def result_of(name: str, process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    """Let a started case go; its result, or its last words where it takes longer or fails."""
    assert process.stdout
    try:
        if not seconds:
            raise subprocess.TimeoutExpired(name, 0)
        process.stdout.readline()  # "ready"
        text, _ = process.communicate("go\n", timeout=seconds)
    except (subprocess.TimeoutExpired, BrokenPipeError) as error:
        process.kill()
        process.communicate()
        return {"case": name, "failed": f"{type(error).__name__} ({last_words()})"}
    for line in text.splitlines():
        if line.startswith("RESULT "):
            return dict(json.loads(line.removeprefix("RESULT ")))
    return {"case": name, "failed": last_words()}


def last_words() -> str:
    """The last line of the log that names an error, else its last line."""
    lines = LOG.read_text(errors="replace").strip().splitlines()
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["nothing"])[-1][:300]


# --- table ------------------------------------------------------------------------------------


def table() -> None:
    """Print the results with the plan's numbers beside them, and write these to cases.json."""
    results = json.loads(RESULTS.read_text())
    for result in results:
        if "failed" not in result:
            add_plan(result)
    RESULTS.write_text(json.dumps(results, indent=1))
    print(HEAD, *map(line_of, results), sep="\n")


def add_plan(result: dict[str, Any]) -> None:
    """Add the plan's totals, terms and seconds; differences are relative to what was measured."""
    stage, variant, *_ = result["case"].split("-")
    planned = planned_phases(stage, variant)
    phases = {
        "train": planned.get(stage) or planned.get(f"{stage}, train"),
        "generate": planned.get(f"{stage}, generate"),
    }
    for name, phase in phases.items():
        if not phase:
            continue
        result[f"plan_{name}"] = phase["total"]
        result[f"plan_{name}_terms"] = phase["terms"]
        result[f"plan_{name}_seconds"] = phase["seconds_per_step"]
        measured = result[f"allocated_{name}"]
        if measured:
            whole = phase["total"] / (measured + result["context"])
            bare = (phase["total"] - phase["terms"].get("context", 0)) / measured
            result[f"difference_{name}"] = round(whole - 1, 4)
            result[f"difference_{name}_without_context"] = round(bare - 1, 4)


HEAD = (
    f"{'case':14} {'plan GB':>8} {'alloc+context':>13} {'diff':>7} | "
    f"{'gen plan':>8} {'alloc+ctx':>9} {'diff':>7} | {'reserved':>8} {'ctx':>5} | "
    f"{'s/step: train':>13} {'plan':>6} {'generate':>9} {'plan':>6} {'tok/s':>8}"
)


def line_of(result: Mapping[str, Any]) -> str:
    """One case as a line under HEAD."""
    name = result["case"]
    if "failed" in result:
        return f"{name:14} FAILED: {result['failed']}"
    memory = (
        f"{gigabytes(result.get('plan_train')):>8} {measured_gigabytes(result, 'train'):>13} "
        f"{percent(result.get('difference_train')):>7} | "
        f"{gigabytes(result.get('plan_generate')):>8} {measured_gigabytes(result, 'generate'):>9} "
        f"{percent(result.get('difference_generate')):>7} | "
        f"{gigabytes(result['reserved']):>8} {gigabytes(result['context']):>5}"
    )
    times = (
        f"{seconds(result['train_seconds']):>13} {seconds(result.get('plan_train_seconds')):>6} "
        f"{seconds(result['generate_seconds']):>9} "
        f"{seconds(result.get('plan_generate_seconds')):>6} "
        f"{result['tokens_per_second_trained'] or 0:>8,}"
    )
    return f"{name:14} {memory} | {times}"


def measured_gigabytes(result: Mapping[str, Any], phase: str) -> str:
    allocated = result[f"allocated_{phase}"]
    return gigabytes(allocated + result["context"]) if allocated else "-"


def gigabytes(size: int | None) -> str:
    return f"{size / 1e9:.2f}" if size else "-"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:+.1%}"


def seconds(took: float | None) -> str:
    return f"{took:.2f}" if took else "-"


if __name__ == "__main__":
    main()
