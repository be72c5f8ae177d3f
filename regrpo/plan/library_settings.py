"""What a profile passes on to libraries, judged by the libraries themselves.

Their objects are built as the stages will build them: TRL's configuration, torch's optimizer,
transformers' processors of logits and its model on the meta device. Nothing needs a GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from regrpo.core.errors import CannotCheck
from regrpo.core.library import constructor_parameters, library_class, library_fields
from regrpo.core.settings import nearest
from regrpo.plan.findings import Finding, one_line, one_of, unchecked, warning, wrong
from regrpo.plan.parse_errors import library_default

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
REFUSALS = (ValueError, TypeError, AttributeError, KeyError, OSError, ZeroDivisionError)
"""What the libraries raise of settings that they do not take."""


def unusable(stage: str, section: Any) -> Iterator[Finding]:
    """Values with which nothing else can be reckoned."""
    mappings = set(library_class(section.library)._VALID_DICT_FIELDS) - set(FILES)
    for key, value in section.passed_through.items():
        if key in mappings and isinstance(value, str) and not value.startswith("{"):
            why = f"must be a mapping; found {value!r}"
            yield wrong(f"{stage}.{key}", why, "leave it out, or {name: value}")
        if key in COUNTS and isinstance(value, int) and value < 1:
            yield wrong(f"{stage}.{key}", f"must be at least 1; found {value}", "at least 1")


def used_in_training(stage: str, section: Any, base: Any) -> Iterator[Finding]:
    """Values that the trainer's configuration takes and training fails on.

    `base` is the model's configuration, or None while it is not known.
    """
    yield from _choices(stage, section)
    yield from _optimizer(stage, section)
    passed = section.passed_through
    arguments = passed.get("model_init_kwargs")
    if isinstance(arguments, dict) and base is not None:
        yield from _model_arguments(f"{stage}.model_init_kwargs", arguments, base)
    if stage == "grpo":
        yield from _sampling(passed)
        yield from _generation_arguments(passed)


def _choices(stage: str, section: Any) -> Iterator[Finding]:
    fields = {field.name: field for field in dataclasses.fields(library_class(section.library))}
    for key, value in section.passed_through.items():
        known = fields[key].metadata.get("choices") or CHOICES.get(key, ())
        if known and isinstance(value, str) and value not in known:
            why = f"{value!r} is none of {', '.join(known)}"
            yield wrong(f"{stage}.{key}", why, one_of(value, known))


def _optimizer(stage: str, section: Any) -> Iterator[Finding]:
    """torch's AdamW with the profile's numbers, one at a time."""
    import torch

    def adamw(**settings: Any) -> None:
        torch.optim.AdamW([torch.zeros(1)], **settings)

    takers: dict[str, Callable[[Any], object]] = {
        "adam_beta1": lambda value: adamw(betas=(value, 0.999)),
        "adam_beta2": lambda value: adamw(betas=(0.9, value)),
        "adam_epsilon": lambda value: adamw(eps=value),
        "weight_decay": lambda value: adamw(weight_decay=value),
    }
    yield from _taken(stage, section.passed_through, takers)


def _sampling(passed: Mapping[str, Any]) -> Iterator[Finding]:
    """transformers' processors of logits with the profile's numbers."""
    from transformers import generation

    takers: dict[str, Callable[[Any], object]] = {
        "min_p": generation.MinPLogitsWarper,
        "repetition_penalty": generation.RepetitionPenaltyLogitsProcessor,
    }
    if passed.get("top_p") != 1:  # TRL's defaults, for which no processor is made
        takers["top_p"] = generation.TopPLogitsWarper
    if passed.get("top_k") not in (0, -1):
        takers["top_k"] = generation.TopKLogitsWarper
    yield from _taken("grpo", passed, takers)


def _taken(
    stage: str, passed: Mapping[str, Any], takers: Mapping[str, Callable[[Any], object]]
) -> Iterator[Finding]:
    for key, taker in takers.items():
        if passed.get(key) is None:
            continue
        try:
            taker(passed[key])
        except REFUSALS as error:
            why = f"{one_line(error)}; found {passed[key]}"
            yield wrong(f"{stage}.{key}", why, "leave it out")


def _model_arguments(key: str, given: Mapping[str, Any], base: Any) -> Iterator[Finding]:
    """transformers' own from_pretrained, without weights and on the meta device."""
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
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
    disable_progress_bars()
    try:
        kind.from_pretrained(None, **passed)
    except ImportError:  # of a package, which is judged with the others
        return
    except REFUSALS as error:
        yield _by_name(key, given, " ".join(str(error).split()))
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
        enable_progress_bars()


def _by_name(key: str, given: Mapping[str, Any], text: str) -> Finding:
    """A library's refusal of one of several arguments, by the one that it names."""
    named = [name for name in given if re.search(rf"\b{name}\b", text)]
    if not named:
        return wrong(key, one_line(text), "leave it out")
    name = named[0]
    if "unexpected keyword argument" in text:
        return _unknown(f"{key}.{name}", "from_pretrained", MODEL_ARGUMENTS)
    quoted = re.findall(r"[\"'=](\w+)[\"']", text)
    near = nearest(given[name], [word for word in quoted if word != given[name]])
    why = f"{one_line(text)}; found {given[name]!r}"
    return wrong(f"{key}.{name}", why, near or "leave it out")


def _unknown(key: str, taker: str, known: Iterable[str]) -> Finding:
    name = key.rpartition(".")[2]
    return wrong(key, f"is no argument of {taker}", nearest(name, known) or "leave it out")


def _generation_arguments(passed: Mapping[str, Any]) -> Iterator[Finding]:
    from transformers import GenerationConfig

    key, given = "grpo.generation_kwargs", passed.get("generation_kwargs")
    if not isinstance(given, dict):
        return
    if not passed.get("use_vllm"):
        usual = GenerationConfig()
        for name in usual.update(**given):  # what it has no use for
            yield _unknown(f"{key}.{name}", "transformers' GenerationConfig", usual.to_dict())
    elif importlib.util.find_spec("vllm") is None:
        why = "vLLM's SamplingParams takes them, and vLLM is not here"
        yield unchecked(key, why, "pip install vllm, and plan again")
    else:
        try:
            importlib.import_module("vllm").SamplingParams(**given)
        except REFUSALS as error:
            yield wrong(key, one_line(error), "leave it out")


# --- lm-eval's models -----------------------------------------------------------------------------


def evaluation(section: Any, base: Any) -> Iterator[Finding]:
    """evaluate.model_args against what lm-eval's backend takes and passes on."""
    key, given = "evaluate.model_args", section.model_args
    if section.backend == "vllm":
        yield from _share_of_the_gpu(key, given)
        yield from _arguments_of_vllm(key, given)
    elif base is not None:
        own = constructor_parameters("lm_eval.models.huggingface:HFLM")
        others = {name: value for name, value in given.items() if name not in own}
        yield from _model_arguments(key, others, base)


def _share_of_the_gpu(key: str, given: Mapping[str, Any]) -> Iterator[Finding]:
    share = given.get("gpu_memory_utilization", 0.9)
    key = f"{key}.gpu_memory_utilization"
    if isinstance(share, bool) or not isinstance(share, int | float):
        yield wrong(key, f"must be a number; found {share!r}", "0.9 (vLLM's own)")
    elif not 0 < share <= 1:
        why = f"must be more than 0 and at most 1; found {share}"
        yield wrong(key, why, "0.9 (vLLM's own)")


def _arguments_of_vllm(key: str, given: Mapping[str, Any]) -> Iterator[Finding]:
    own = constructor_parameters("lm_eval.models.vllm_causallms:VLLM") | {"gpu_memory_utilization"}
    engine: Mapping[str, Any] = {}
    with contextlib.suppress(CannotCheck):  # without vLLM
        engine = library_fields("vllm.engine.arg_utils:EngineArgs")
    for name in given:
        if name in own or name in engine:
            continue
        if engine or nearest(name, own, alike=0.9):  # a slip of the pen
            yield _unknown(f"{key}.{name}", "lm-eval's vllm backend", {*own, *engine})
        else:
            why = "vLLM's EngineArgs takes it or not, and vLLM is not here"
            yield unchecked(f"{key}.{name}", why, "plan where vLLM is installed")


# --- the configurations that the stages will use --------------------------------------------------


def build(stage: str, section: Any, device: str) -> tuple[Any | None, list[Finding]]:
    """TRL's own configuration, from the stage's own settings, or None if TRL refuses them.

    It is made as on a CPU, so that no GPU is asked for: bf16 on a GPU is judged with the hardware,
    a backend asks for the other processes, and deepspeed's package is judged with the others.
    """
    settings = section.trainer_settings(device) | {"use_cpu": True}
    for name in ("tf32", "ddp_backend", "deepspeed"):
        settings.pop(name, None)
    kind = library_class(section.library)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            config = kind(output_dir=f"models/{stage}", **settings)
    except (*REFUSALS, ImportError) as error:
        return None, [_of_library(stage, section, kind, " ".join(str(error).split()))]
    deprecated = [
        warning(stage, one_line(one.message), "see the library's own words")
        for one in caught
        if issubclass(one.category, FutureWarning) and "deprecated" in str(one.message)
    ]
    return config, deprecated


def _of_library(stage: str, section: Any, kind: Any, text: str) -> Finding:
    """A configuration's refusal, by the key that it names, or whose value it names."""
    passed = section.passed_through
    for key, value in passed.items():
        if isinstance(value, str) and text.startswith(f"{value} is not a valid"):
            near = nearest(value, re.findall(r"'([^']+)'", text))
            return wrong(f"{stage}.{key}", text.partition(",")[0], near or "leave it out")
    fields = [field.name for field in dataclasses.fields(kind)]
    named = [name for name in fields if re.search(rf"\b{name}\b", text)]
    named.sort(key=lambda name: name not in passed)  # what the profile says comes first
    if not named:
        return wrong(stage, one_line(text, 300), "leave it out")
    default = library_default(type(section), named[0])
    would_do = f"leave it out ({default})" if default else "leave it out"
    return wrong(f"{stage}.{named[0]}", one_line(text, 300), would_do)
