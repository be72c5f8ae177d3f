"""What a profile passes on to libraries, judged by the libraries themselves.

Their objects are built as the stages will build them: TRL's configuration, torch's optimizer,
transformers' processors of logits and its model on the meta device. Nothing needs a GPU.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

from regrpo.core.library import constructor_parameters, library_class
from regrpo.core.settings import nearest
from regrpo.plan.findings import Finding, Findings, Settings, short_message, warning, wrong

CHOICES: dict[str, tuple[str, ...]] = {
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_mode": ("colocate", "server"),
    "vllm_model_impl": ("vllm", "transformers"),
}
"""GRPOConfig takes any text for these; TRL 1.16's trainer fails on others, after sft has run."""
COUNTS = (
    "num_iterations",
    "steps_per_generation",
    "generation_batch_size",
    "vllm_tensor_parallel_size",
    "vllm_max_model_length",
    "max_length",
)
"""Numbers by which TRL and regrpo divide or multiply before anything looks at them."""
FILES = ("accelerator_config", "fsdp_config", "deepspeed")
"""Fields that may name a file; others of their type must be mappings."""
MODEL_ARGUMENTS = ("attn_implementation", "dtype", "quantization_config", "use_kernels")
"""Usual arguments of from_pretrained that its signature hides: what a misspelled one may mean."""
NO_TOP_K = (0, -1)
"""For these TRL makes no processor of logits."""
REFUSALS = (ValueError, TypeError, AttributeError, KeyError, OSError, ZeroDivisionError)
"""What the libraries raise of settings that they do not take."""


def unusable(stage: str, section: Any) -> Findings:
    """Values with which nothing else can be reckoned."""
    mappings = set(library_class(section.library)._VALID_DICT_FIELDS) - set(FILES)
    for key, value in section.passed_through.items():
        if key in mappings and isinstance(value, str) and not value.startswith("{"):
            why = f"must be a mapping; found {value!r}"
            yield wrong(f"{stage}.{key}", why, "leave it out, or {name: value}")
        if key in COUNTS and isinstance(value, int) and value < 1:
            yield wrong(f"{stage}.{key}", f"must be at least 1; found {value}", "at least 1")


def used_in_training(stage: str, section: Any, base: Any) -> Findings:
    """Values that the trainer's configuration takes and training fails on.

    `base` is the model's configuration, or None while it is not known.
    """
    passed = section.passed_through
    yield from _choices(stage, section)
    yield from _refused_numbers(stage, passed)
    if stage == "grpo":
        yield from _generation_arguments(passed)
    arguments = passed.get("model_init_kwargs")
    if isinstance(arguments, dict) and base is not None:
        yield from _model_arguments(f"{stage}.model_init_kwargs", arguments, base)


def _choices(stage: str, section: Any) -> Findings:
    fields = {field.name: field for field in dataclasses.fields(library_class(section.library))}
    for key, value in section.passed_through.items():
        known = fields[key].metadata.get("choices") or CHOICES.get(key, ())
        if known and isinstance(value, str) and value not in known:
            names = ", ".join(known)
            would_do = nearest(value, known) or f"one of {names}"
            yield wrong(f"{stage}.{key}", f"{value!r} is none of {names}", would_do)


def _refused_numbers(stage: str, passed: Settings) -> Findings:
    """Numbers that torch's AdamW or transformers' processors of logits refuse, in their words.

    sft and grpo make these after their data are ready.
    """
    import torch
    from transformers import generation

    adamw = partial(torch.optim.AdamW, [torch.zeros(1)])
    takers: dict[str, Callable[[Any], object]] = {
        "adam_beta1": lambda value: adamw(betas=(value, 0.999)),
        "adam_beta2": lambda value: adamw(betas=(0.9, value)),
        "adam_epsilon": lambda value: adamw(eps=value),
        "weight_decay": lambda value: adamw(weight_decay=value),
        "min_p": generation.MinPLogitsWarper,
        "repetition_penalty": generation.RepetitionPenaltyLogitsProcessor,
        "top_p": generation.TopPLogitsWarper,
        "top_k": generation.TopKLogitsWarper,
    }
    for key, taker in takers.items():
        value = passed.get(key)
        if value is None or (key == "top_k" and value in NO_TOP_K):
            continue
        try:
            taker(value)
        except REFUSALS as error:
            why = f"{short_message(error)}; found {value}"
            yield wrong(f"{stage}.{key}", why, "leave it out")


def _generation_arguments(passed: Settings) -> Findings:
    """What transformers' GenerationConfig has no use for; vLLM has names of its own."""
    from transformers import GenerationConfig

    given = passed.get("generation_kwargs")
    if not isinstance(given, dict) or passed.get("use_vllm"):
        return
    usual = GenerationConfig()
    for name in usual.update(**given):
        near = nearest(name, usual.to_dict()) or "leave it out"
        why = "is no argument of transformers' GenerationConfig"
        yield wrong(f"grpo.generation_kwargs.{name}", why, near)


def _model_arguments(key: str, given: Settings, base: Any) -> Findings:
    """transformers' own from_pretrained, without weights and on the meta device."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    kind = AutoModelForCausalLM._model_mapping[type(base)]
    passed = {}
    for name, value in given.items():
        # What is an attribute of the configuration is set there.
        if name in ("dtype", "torch_dtype") or not hasattr(base, name):
            passed[name] = value
    passed |= {"device_map": "meta", "config": base, "state_dict": {}}
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # it reports that no weights were loaded
    logging.disable_progress_bar()
    try:
        kind.from_pretrained(None, **passed)
    except ImportError:  # of a package, which is judged with the others
        return
    except REFUSALS as error:
        yield _refusal(key, given, error)
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def _refusal(key: str, given: Settings, error: Exception) -> Finding:
    """A library's refusal of one of several settings, by the one that it names, or whose value."""
    text = " ".join(str(error).split())
    for name, value in given.items():
        if not re.search(rf"\b{name}\b", text) and not text.startswith(f"{value} is not a valid"):
            continue
        if "unexpected keyword argument" in text:
            near = nearest(name, MODEL_ARGUMENTS) or "leave it out"
            return wrong(f"{key}.{name}", "is no argument of from_pretrained", near)
        # The library quotes what it would take, and often what it was given.
        quoted = set(re.findall(r"[\"'=](\w+)[\"']", text)) - {value}
        why = f"{short_message(text)}; found {value!r}"
        return wrong(f"{key}.{name}", why, nearest(value, quoted) or "leave it out")
    return wrong(key, short_message(text, 300), "leave it out")


# --- lm-eval's models -----------------------------------------------------------------------------


def evaluation(section: Any, base: Any) -> Findings:
    """evaluate.model_args against what lm-eval's backend takes and passes on."""
    key, given = "evaluate.model_args", section.model_args
    if section.backend == "vllm":
        yield from _arguments_of_vllm(key, given)
    elif base is not None:
        own = constructor_parameters("lm_eval.models.huggingface:HFLM")
        others = {name: value for name, value in given.items() if name not in own}
        yield from _model_arguments(key, others, base)


def _arguments_of_vllm(key: str, given: Settings) -> Findings:
    """The share of the GPU, and names that differ from a known one by a slip of the pen."""
    share = given.get("gpu_memory_utilization", 0.9)
    if not isinstance(share, int | float) or not 0 < share <= 1:
        why = f"must be a number above 0 and at most 1; found {share!r}"
        yield wrong(f"{key}.gpu_memory_utilization", why, "0.9 (vLLM's own)")
    # Other names may be vLLM's own, which is not needed here.
    own = constructor_parameters("lm_eval.models.vllm_causallms:VLLM") | {"gpu_memory_utilization"}
    for name in given.keys() - own:
        if near := nearest(name, own, alike=0.9):
            yield wrong(f"{key}.{name}", "is no argument of lm-eval's vllm backend", near)


# --- the configurations that the stages will use --------------------------------------------------


def build(stage: str, section: Any, device: str) -> tuple[Any | None, list[Finding]]:
    """TRL's own configuration, from the stage's own settings, or None if TRL refuses them.

    It is made as on a CPU, so that no GPU is asked for: bf16 on a GPU is judged with the hardware,
    a backend asks for the other processes, and deepspeed's package is judged with the others.
    """
    settings = section.trainer_settings(device) | {"use_cpu": True}
    for name in ("tf32", "ddp_backend", "deepspeed"):
        settings.pop(name, None)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            config = library_class(section.library)(output_dir=f"models/{stage}", **settings)
    except (*REFUSALS, ImportError) as error:
        # Of several settings that are named, the one that stands in the profile is to blame.
        return None, [_refusal(stage, section.passed_through | settings, error)]
    deprecated = []
    for one in caught:
        if issubclass(one.category, FutureWarning) and "deprecated" in str(one.message):
            deprecated.append(
                warning(stage, short_message(one.message), "see the library's own words")
            )
    return config, deprecated
