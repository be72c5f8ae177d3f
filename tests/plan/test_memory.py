"""The memory model against torch itself."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Any

import pytest

from regrpo.core.settings import Lora
from regrpo.plan import memory, model_shape, workload
from regrpo.plan.workload import CPU, CUDA, Generation, Training, Workload
from tests.support.plans import small_config
from tests.support.projects import ROOT


def _kept(
    architecture: str, layers: int, lora: Lora | None, autocast: bool, rows: int, tokens: int
) -> int:
    """Bytes that autograd keeps in the decoder's forward, parameters aside, by torch's hooks."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(small_config(architecture, layers))
    if lora:
        model = get_peft_model(model, lora.config())
        model.enable_input_require_grads()
    parameters = {one.untyped_storage().data_ptr() for one in model.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        place = tensor.untyped_storage().data_ptr()
        if place not in parameters:
            kept.setdefault(place, tensor.untyped_storage())
        return tensor

    decoder = model.get_base_model().model if lora else model.model
    mask = torch.ones(rows, tokens, dtype=torch.long)
    mask[0, :3] = 0
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        model.train()
        _out = decoder(
            input_ids=torch.full((rows, tokens), 5), attention_mask=mask, use_cache=False
        )
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("architecture", "lora", "autocast"),
    [
        ("Llama", None, False),
        ("Llama", None, True),
        ("Llama", Lora(r=8, lora_alpha=16), False),
        ("Llama", Lora(r=8, lora_alpha=16), True),
        ("Llama", Lora(r=8, lora_alpha=16, lora_dropout=0.1), False),
        ("Llama", Lora(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]), False),
        ("Gemma3Text", None, False),
        ("Gemma3Text", Lora(r=8, lora_alpha=16), True),
        ("Qwen2", Lora(r=8, lora_alpha=16), True),
        ("Qwen3", None, False),
    ],
)
def test_activations_are_what_torch_keeps_for_the_backward(
    architecture: str, lora: Lora | None, autocast: bool
) -> None:
    rows, tokens = 2, 64
    config = small_config(architecture, 2)
    shape = model_shape.read(config)
    adapter = model_shape.adapter(config, lora, "sft.lora") if lora else None
    work = Training(batch=rows, prompt=32, completion=32, autocast=autocast, adapter=adapter)
    kept = (
        _kept(architecture, 4, lora, autocast, rows, tokens)
        - _kept(architecture, 2, lora, autocast, rows, tokens)
    ) / 2
    if autocast:  # torch keeps its copies of the weights too, which are counted for themselves
        kept -= memory.casts(shape, work) / shape.layers + (adapter.parameters if adapter else 0)
    assert memory.activations_per_layer(shape, work) * rows * tokens == pytest.approx(
        kept, rel=0.02
    )


def test_memory_follows_what_each_setting_is_known_to_do() -> None:
    shape = model_shape.read(small_config("Llama", 2))
    work = Training(batch=4, prompt=32, completion=32)
    (full,) = memory.phases(shape, Workload("sft", CUDA, work, None, limit=0))
    assert full.terms["weights"] == 4 * shape.parameters
    assert full.terms["optimizer"] == 8 * shape.parameters

    def term(name: str, **changes: Any) -> int:
        return memory.resident(shape, dataclasses.replace(work, **changes))[name]

    adapter = model_shape.adapter(small_config("Llama", 2), Lora(r=8, lora_alpha=16), "sft.lora")
    assert model_shape.on_all_linears(shape, 8) == adapter
    assert term("optimizer", optimizer="paged_adamw_8bit") == 2 * shape.parameters
    assert term("optimizer", adapter=adapter) == 8 * adapter.parameters
    assert term("reference model", reference=True) == 4 * shape.parameters
    assert (
        term("reference model", reference=True, adapter=adapter) == 0
    )  # the adapter is switched off instead
    assert term("weights", weight_bytes=2) * 2 == term("weights")
    rest = 4 * (shape.parameters - shape.linear_parameters)  # embedding and norms
    assert term("weights", quantised=workload.QUANTISED_BYTES[8]) == shape.linear_parameters + rest
    assert (
        term("weights", quantised=workload.QUANTISED_BYTES[4.5])
        == round(shape.linear_parameters * 4.127 / 8) + rest
    )
    assert term("adapter", adapter=adapter, quantised=0.5) == 2 * adapter.parameters
    assert term("weights", processes=4, sharded=True) == shape.parameters
    assert term("gradients, DDP's buckets", processes=4) == 4 * shape.parameters
    larger = dataclasses.replace(work, batch=8)
    activations = []
    for one in (work, larger):
        terms = memory.training_terms(shape, Workload("sft", CPU, one, None, limit=0), one)
        activations.append(terms["activations"])
    assert activations[1] == 2 * activations[0]


def test_vllm_sleeps_while_the_policy_trains_only_where_it_is_told_to() -> None:
    shape, room = model_shape.read(small_config("Llama", 2)), 10 * 2**30
    work = Training(batch=4, prompt=32, completion=32)
    awake = Generation(4, 32, 32, vllm=0.5)
    grpo = Workload("grpo", CUDA, work, awake, room)
    training, generating = memory.phases(shape, grpo)
    assert training.terms["vLLM"] == generating.terms["vLLM"] == room // 2
    asleep = dataclasses.replace(awake, sleeps=True)
    training, generating = memory.phases(shape, dataclasses.replace(grpo, generate=asleep))
    assert "vLLM" not in training.terms
    assert generating.terms["vLLM"] == room // 2


def test_a_cpus_stage_is_loaded_trained_and_saved_and_a_gpus_trained() -> None:
    shape = model_shape.read(small_config("Llama", 2))
    train = Training(batch=4, prompt=32, completion=32)
    names = []
    for device in (CPU, CUDA):
        work = Workload("grpo", device, train, Generation(4, 32, 32), limit=0)
        names.append([phase.name.partition(", ")[2] for phase in memory.phases(shape, work)])
    assert names == [["load", "train", "generate", "save"], ["train", "generate"]]


def test_what_a_cpus_malloc_keeps_is_of_every_layer_checkpointed_or_not() -> None:
    shape = model_shape.read(small_config("Llama", 8))
    whole = Training(batch=64, prompt=64, completion=64)
    kept = []
    for device in (CPU, CUDA):
        for train in (whole, dataclasses.replace(whole, checkpointing=True)):
            work = Workload("sft", device, train, None, limit=0)
            kept.append(memory.training_terms(shape, work, train)["allocator"])
    on_cpu, checkpointed_on_cpu, on_gpu, checkpointed_on_gpu = kept
    assert on_cpu == checkpointed_on_cpu
    assert on_gpu > 3 * checkpointed_on_gpu


def test_after_training_a_cpu_holds_what_its_malloc_keeps() -> None:
    shape = model_shape.read(small_config("Llama", 8))
    train = Training(batch=64, prompt=64, completion=64)
    work = Workload("grpo", CPU, train, Generation(64, 64, 64), limit=0)
    _, training, generating, saving = memory.phases(shape, work)
    small_blocks = training.terms["activations"] + training.terms["allocator"]
    assert saving.terms["allocator"] == small_blocks
    assert generating.total == saving.total, "its blocks fit into those"


def test_a_tokenizer_weighs_by_its_words_and_loading_it_leaves_room_for_small_blocks() -> None:
    shape = dataclasses.replace(model_shape.read(small_config("Llama", 2)), vocabulary=262_144)
    train = Training(batch=1, prompt=8, completion=8, tokenizers=2)
    work = Workload("sft", CPU, train, None, limit=0)
    loading, training, _ = memory.phases(shape, work)
    words = 262_144
    assert loading.terms["tokenizers"] == 2 * words * CPU.tokenizer
    assert loading.terms["allocator"] == words * CPU.loading
    small_blocks = training.terms["activations"] + training.terms["allocator"]
    assert small_blocks == words * CPU.loading


def test_weights_are_mapped_unless_they_are_saved_in_another_type() -> None:
    shape = model_shape.read(small_config("Llama", 2))
    halved = dataclasses.replace(shape, stored_bytes=2)
    train = Training(batch=1, prompt=8, completion=8)
    sft, grpo = (Workload(name, CPU, train, None, limit=0) for name in ("sft", "grpo"))
    grpo = dataclasses.replace(grpo, generate=Generation(1, 8, 8))
    assert "weights" not in memory.phases(shape, sft)[0].terms
    assert memory.phases(halved, sft)[0].terms["weights"] == 4 * shape.parameters
    assert "weights" not in memory.phases(halved, grpo)[0].terms, "sft saved them as trained"


@pytest.mark.slow
def test_predicted_peaks_are_within_a_fifth_of_measured_ones() -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/plan_memory.py", "--cases", "sft-full-2,sft-lora-gemma"],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
