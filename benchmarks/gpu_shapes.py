"""profiles/gemma-3-1b-pt.yaml at true size, without its weights: memory and time beside the plan.

    python benchmarks/gpu_shapes.py make           a base of random weights, profile variants
    python benchmarks/gpu_shapes.py plan           `regrpo plan --json`, in plan-VARIANT.json
    python benchmarks/gpu_shapes.py run [CASE ...] a few optimizer steps of each case: cases.json
    python benchmarks/gpu_shapes.py table          what was measured beside what was planned

Run it in the root of a copy of the project: it writes into models/raw/, profiles/ and the root.
Cases are STAGE-VARIANT: the stage's own train() with the variant's own settings, on sequences of
exactly the lengths that the plan counts with. Changed are only the number of steps and the fixed
length of completions, and nothing is saved. At the end of a case's name, -real takes the rows that
prepare left in data/prepared/, -saved saves the model, and -bare trains by bare_trl.py instead.
evaluate-VARIANT asks the model that sft-lora-saved left. SHORT=1 makes everything tiny, DEVICE=cpu
leaves the GPU out; CASE_SECONDS and ALL_SECONDS limit one case and all of them.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from base_facts import write_base_facts

ROOT = Path.cwd()
SOURCE = Path("profiles/gemma-3-1b-pt.yaml")
RAW = Path("models/raw/gemma-random")
BASE = Path("base.json")
"""What reports/base_model/source.json would say of them."""
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
VLLM = {"gpu_memory_utilization": 0.3, "max_model_len": 1024}
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
VARIANTS: dict[str, Changes] = {  # as the profile's own comments write them
    "lora": {},
    "deterministic": {"sft": {"deterministic": True}, "grpo": {"deterministic": True}},
    "vllm": {
        "grpo": {
            "use_vllm": True,
            "vllm_mode": "colocate",
            "vllm_gpu_memory_utilization": VLLM["gpu_memory_utilization"],
            "vllm_max_model_length": VLLM["max_model_len"],
        },
        "evaluate": {"backend": "vllm", "model_args": VLLM},
    },
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
    "evaluate": {"max_gen_toks": 16},
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
    sys.path.insert(0, str(ROOT))
    write_base_facts(RAW, BASE, "random weights")


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
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))  # noqa: S106  (a token of text)
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    core.decoder = decoders.Fuse()
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",  # noqa: S106  (a token of text)
        eos_token="<eos>",  # noqa: S106  (a token of text)
        bos_token="<bos>",  # noqa: S106  (a token of text)
        unk_token="<unk>",  # noqa: S106  (a token of text)
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
    """`regrpo plan --json` of every variant."""
    sys.path.insert(0, str(ROOT))
    from regrpo.commands import plan as command
    from regrpo.core.errors import RegrpoError

    for variant in VARIANTS:
        try:
            target = command.find_target(None, None, None)
            content = command.make(profile_of(variant), target)
        except RegrpoError as error:
            print(f"plan {variant}: {error}")
        else:
            plan_of(variant).write_text(json.dumps(content, indent=1))


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
    command = [sys.executable, str(Path(__file__).with_name("gpu_case.py")), name]
    return subprocess.Popen(  # noqa: S603  (no shell, and the command is ours)
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
    )


def result_of(name: str, process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    """Let a started case go; its result, or its last words where it takes longer or fails."""
    assert process.stdout  # noqa: S101  (tells mypy a type, checks no input)
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
    for title, phase in planned_phases(stage, variant).items():
        name = title.partition(", ")[2] or "generate"  # all that evaluate does
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
        f"{seconds(result.get('train_seconds')):>13} "
        f"{seconds(result.get('plan_train_seconds')):>6} "
        f"{seconds(result['generate_seconds']):>9} "
        f"{seconds(result.get('plan_generate_seconds')):>6} "
        f"{result.get('tokens_per_second_trained') or 0:>8,}"
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
