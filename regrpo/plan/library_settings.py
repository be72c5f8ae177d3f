"""What a profile passes on to libraries.

Their own configurations, and values that they take and fail on in training.

The configurations are TRL's own, made from the stages' own settings (Params.trainer_settings);
nothing needs a GPU.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib.util
import inspect
import operator
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from regrpo.core.errors import CannotCheck
from regrpo.core.library import library_class, library_fields
from regrpo.core.settings import nearest
from regrpo.plan.findings import Finding, one_line, one_of, unchecked, warning, wrong
from regrpo.plan.parse_errors import LIMITS, in_yaml, library_default, library_name

CHOICES: dict[str, tuple[str, ...]] = {
    "loss_type": ("grpo", "dr_grpo", "dapo", "bnpo", "cispo", "sapo", "luspo", "vespo"),
    "scale_rewards": ("group", "batch", "none"),
    "importance_sampling_level": ("token", "sequence"),
    "multi_objective_aggregation": ("sum_then_normalize", "normalize_then_sum"),
    "vllm_mode": ("colocate", "server"),
    "vllm_model_impl": ("vllm", "transformers"),
    "vllm_importance_sampling_mode": (
        "token_truncate",
        "token_mask",
        "sequence_truncate",
        "sequence_mask",
    ),
}
"""What TRL 1.16 compares with in training (trl/trainer/grpo_trainer.py).

SFTConfig states its own `choices`.
"""
COUNTS = (
    "num_iterations",
    "steps_per_generation",
    "generation_batch_size",
    "per_device_eval_batch_size",
    "num_generations_eval",
    "vllm_tensor_parallel_size",
    "vllm_max_model_length",
    "max_length",
    "ref_model_sync_steps",
    "dataset_num_proc",
    "torch_empty_cache_steps",
)
FROM_0 = (
    "weight_decay",
    "adam_epsilon",
    "max_grad_norm",
    "warmup_steps",
    "epsilon",
    "epsilon_high",
    "vllm_server_timeout",
    "dataloader_num_workers",
)
SHARES = ("min_p", "top_entropy_quantile", "ref_model_mixup_alpha", "label_smoothing_factor")
RANGES: dict[str, dict[str, float]] = {
    **{key: {"ge": 1} for key in COUNTS},
    **{key: {"ge": 0} for key in FROM_0},
    **{key: {"ge": 0, "le": 1} for key in SHARES},
    **{key: {"ge": 0, "lt": 1} for key in ("adam_beta1", "adam_beta2")},
    **{key: {"ge": 1, "le": 65535} for key in ("vllm_server_port", "vllm_group_port")},
    **{key: {"gt": 0} for key in ("num_train_epochs", "repetition_penalty")},
    "top_p": {"gt": 0, "le": 1},
    "top_k": {"ge": -1},
}
"""Of numbers that are looked at in training only, by torch's optimizers or transformers' logits processors, say."""
DTYPES = ("auto", "float32", "bfloat16", "float16")
"""trl/trainer/utils.py, create_model_from_path."""
FILES = ("accelerator_config", "fsdp_config", "deepspeed")
"""Fields that may name a file where others of their type must be mappings."""
ENGINE = (
    "gpu_memory_utilization",
    "enforce_eager",
    "max_num_seqs",
    "max_num_batched_tokens",
    "enable_prefix_caching",
    "enable_chunked_prefill",
    "kv_cache_dtype",
    "cpu_offload_gb",
    "load_format",
    "disable_custom_all_reduce",
)
"""vLLM's EngineArgs that are usual, for a machine without vLLM."""


def numbers(stage: str, section: Any) -> Iterator[Finding]:
    """Numbers out of range, and text for mappings: nothing can be reckoned with them."""
    mappings = set(library_class(section.library)._VALID_DICT_FIELDS) - set(FILES)
    for key, value in section.passed_through.items():
        if key in mappings and isinstance(value, str) and not value.startswith("{"):
            yield wrong(
                f"{stage}.{key}",
                f"must be a mapping; found {value!r}",
                "leave it out, or {name: value}",
            )
        if isinstance(value, int | float):
            yield from within(
                f"{stage}.{key}", value, RANGES.get(key, {}), library_default(type(section), key)
            )


def within(
    key: str, value: float, limits: Mapping[str, float], usual: Any = None
) -> Iterator[Finding]:
    """A finding where a number breaks its limits (`ge`, `gt`, `le`, `lt`)."""
    if not all(getattr(operator, name)(value, limit) for name, limit in limits.items()):
        words = " and ".join(f"{LIMITS[name]} {limit}" for name, limit in limits.items())
        yield wrong(
            key,
            f"must be {words}; found {value}",
            words if usual is None else f"{words}; usual is {usual}",
        )


def names(stage: str, section: Any, base: Any) -> Iterator[Finding]:
    """Names that TRL and transformers look up in training only.

    `base` is the model's configuration, if it is known.
    """
    fields = {field.name: field for field in dataclasses.fields(library_class(section.library))}
    for key, value in section.passed_through.items():
        known = fields[key].metadata.get("choices") or CHOICES.get(key, ())
        if known and isinstance(value, str) and value not in known:
            yield wrong(
                f"{stage}.{key}", f"{value!r} is none of {', '.join(known)}", one_of(value, known)
            )
    given = section.passed_through.get("model_init_kwargs")
    if isinstance(given, dict):
        yield from _model_arguments(f"{stage}.model_init_kwargs", given, base)
    given = section.passed_through.get("generation_kwargs")
    if isinstance(given, dict):
        yield from _generation_arguments(section, given)


def _model_arguments(key: str, given: Mapping[str, Any], base: Any) -> Iterator[Finding]:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for name in ("dtype", "torch_dtype"):
        if name in given and given[name] not in (*DTYPES, None):
            yield wrong(
                f"{key}.{name}",
                f"{given[name]!r} is none of {', '.join(DTYPES)}",
                one_of(given[name], DTYPES),
            )
    attention, known = (
        given.get("attn_implementation"),
        ["eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()],
    )
    if (
        isinstance(attention, str) and attention not in known and "/" not in attention
    ):  # a kernel on the hub has one
        why = f"{attention!r} is none of {', '.join(known)}"
        yield wrong(f"{key}.attn_implementation", why, one_of(attention, known))
    if base is not None:
        accepted = _of_from_pretrained()
        yield from _unknown(
            key, [name for name in given if not hasattr(base, name)], accepted, "from_pretrained"
        )


def _of_from_pretrained() -> set[str]:
    """The arguments that from_pretrained takes, by its source.

    What is none goes to the configuration or the model.
    """
    from transformers import PreTrainedModel
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

    methods = (PreTrainedModel.from_pretrained, _BaseAutoModelClass.from_pretrained)
    source = "".join(map(inspect.getsource, methods))
    popped = re.findall(r'kwargs\.(?:pop|get)\(\s*"(\w+)"', source)
    ignored = [
        name
        for names in re.findall(r"for name in \[([^]]*)\]", source)
        for name in re.findall(r'"(\w+)"', names)
    ]
    return {*popped, *ignored, *inspect.signature(PreTrainedModel.from_pretrained).parameters}


def _unknown(key: str, given: Iterable[str], known: Iterable[str], taker: str) -> Iterator[Finding]:
    for name in given:
        if name not in known:
            yield wrong(
                f"{key}.{name}",
                f"is no argument of {taker}",
                nearest(name, known) or "leave it out",
            )


def _generation_arguments(section: Any, given: Mapping[str, Any]) -> Iterator[Finding]:
    from transformers import GenerationConfig

    key = "grpo.generation_kwargs"
    if not section.passed_through.get("use_vllm"):
        yield from _unknown(
            key, given, GenerationConfig().to_dict(), "transformers' GenerationConfig"
        )
    elif importlib.util.find_spec("vllm") is None:
        yield unchecked(
            key,
            "vLLM's SamplingParams takes them, and vLLM is not here",
            "pip install vllm, and plan again",
        )
    else:
        sampling = importlib.import_module("vllm").SamplingParams
        yield from _unknown(
            key, given, inspect.signature(sampling).parameters, "vLLM's SamplingParams"
        )


def evaluation(section: Any, base: Any) -> Iterator[Finding]:
    """evaluate.model_args against what lm-eval's backend takes and passes on."""
    key, given = "evaluate.model_args", section.model_args
    if section.backend == "vllm":
        engine: Mapping[str, Any] = {}
        with contextlib.suppress(CannotCheck):  # without vLLM
            engine = library_fields("vllm.engine.arg_utils:EngineArgs")
        known = _parameters("vllm_causallms.py", "VLLM") | {*engine, *ENGINE}
        share = given.get("gpu_memory_utilization", 0.9)
        if isinstance(share, int | float) and not isinstance(share, bool):
            yield from within(f"{key}.gpu_memory_utilization", share, {"gt": 0, "le": 1}, 0.9)
        else:
            yield wrong(
                f"{key}.gpu_memory_utilization",
                f"must be a number; found {share!r}",
                "0.9 (vLLM's own)",
            )
        for name in [name for name in given if name not in known]:
            near = nearest(name, known)
            if engine or nearest(name, known, 0.9):  # a slip of the pen
                yield wrong(
                    f"{key}.{name}",
                    "is no argument of lm-eval's vllm backend",
                    near or "leave it out",
                )
            else:
                why = "vLLM's EngineArgs takes it or not, and vLLM is not here"
                yield unchecked(
                    f"{key}.{name}",
                    why,
                    f"{near}, if that was meant; else plan where vLLM is installed"
                    if near
                    else "plan where vLLM is installed",
                )
    elif base is not None:
        mine = [name for name in given if not hasattr(base, name)]
        known = _parameters("huggingface.py", "HFLM") | _of_from_pretrained()
        yield from _unknown(key, mine, known, "lm-eval's hf backend")


def _parameters(file: str, owner: str) -> set[str]:
    """What the constructor of a model class of lm-eval's takes by name, read without importing it."""
    spec = importlib.util.find_spec("lm_eval")
    [place] = spec.submodule_search_locations if spec and spec.submodule_search_locations else [""]
    tree = ast.parse((Path(place) / "models" / file).read_text(encoding="utf-8"))
    [body] = [
        node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner
    ]
    [made] = [
        node.args for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    ]
    return {one.arg for one in (*made.args, *made.kwonlyargs)}


# --- the configurations that the stages will use --------------------------------------------------


def build(stage: str, section: Any, device: str) -> tuple[Any | None, list[Finding]]:
    """TRL's own configuration, from the stage's own settings, made as on a CPU so that no GPU is asked for.

    bf16 on a GPU is judged with the hardware; tf32 asks for the GPU, a backend for the other processes, deepspeed for
    its package, which is judged with the others.
    """
    settings = section.trainer_settings(device) | {"use_cpu": True}
    settings = {
        name: value
        for name, value in settings.items()
        if name not in ("tf32", "ddp_backend", "deepspeed")
    }
    kind = library_class(section.library)
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            config = kind(output_dir=f"models/{stage}", **settings)
    except (ValueError, TypeError, ImportError, AttributeError, KeyError, OSError) as error:
        return None, [_of_library(stage, section, kind, " ".join(str(error).split()))]
    return config, [
        warning(stage, one_line(one.message), "see the library's own words")
        for one in told
        if issubclass(one.category, FutureWarning) and "deprecated" in str(one.message)
    ]


def _of_library(stage: str, section: Any, kind: Any, text: str) -> Finding:
    """A configuration's refusal, by the key that it names, or whose value it names."""
    passed = section.passed_through
    fields = [field.name for field in dataclasses.fields(kind)]
    named = [name for name in fields if re.search(rf"\b{name}\b", text)]
    meant = [
        name
        for name, value in passed.items()
        if isinstance(value, str) and text.startswith(f"{value} is not a")
    ]
    key = next(iter([*meant, *(name for name in named if name in passed), *named]), None)
    default = library_default(type(section), key) if key else None
    if key in meant and (near := nearest(passed[key], re.findall(r"'([^']+)'", text))):
        return wrong(f"{stage}.{key}", text.partition(",")[0], near)
    own = (
        f" ({library_name(type(section))}'s default is {in_yaml(default)})"
        if default is not None
        else ""
    )
    return wrong(f"{stage}.{key}" if key else stage, one_line(text, 300), f"leave it out{own}")
