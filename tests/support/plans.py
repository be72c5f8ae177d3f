"""Targets, sections and small architectures to plan with."""

from __future__ import annotations

from typing import Any

from regrpo.plan.findings import Target

HERE = Target("A100", 80 * 2**30)

GEMMA = "profiles/gemma-3-1b-pt.yaml"

SCRATCH = {"kind": "scratch", "license": "MIT", "tokenizer": {"kind": "characters"}}

HUB = {"kind": "hub", "repo": "a/b", "revision": "0" * 40, "license": "MIT"}

GYM = {"kind": "reasoning_gym", "task": "chain_sum", "size": 32000, "license": "MIT"}

GLOO = {"processes": 2, "backend": "gloo"}

SERVER = {"use_vllm": True, "vllm_mode": "server", "vllm_max_model_length": None}

VLLM = {"device": "cuda", "use_vllm": True, "vllm_gpu_memory_utilization": 0.3}

SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
}


def small_config(architecture: str, layers: int) -> Any:
    import transformers

    sizes = {**SIZES, "num_hidden_layers": layers}
    if architecture == "Gemma3Text":
        sizes["layer_types"] = ["full_attention"] * layers  # type: ignore[assignment]
    return getattr(transformers, f"{architecture}Config")(**sizes)
