"""A profile's numbers against each other, its data and its base."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from regrpo.core import files
from regrpo.core.errors import Refused
from regrpo.core.hub import is_commit
from regrpo.core.settings import nearest
from regrpo.plan import model_shape
from regrpo.plan.findings import Finding, Target, one_line, unchecked, warning, world, wrong
from regrpo.plan.parse_errors import groups


def data(section: Any) -> Iterator[Finding]:
    """A generator's task and settings, by its first row.

    The splits' counts against the rows that it draws.
    """
    if section.source.kind != "reasoning_gym":
        return
    from reasoning_gym.factory import DATASETS

    source = section.source
    if source.task not in DATASETS:
        why = f"{source.task!r} is no task of reasoning-gym's"
        yield wrong(
            "prepare.source.task",
            why,
            nearest(source.task, DATASETS) or "one of reasoning_gym.factory.DATASETS",
        )
        return
    try:
        next(source.parts(section.seed)["train"])
    except Refused as error:
        yield wrong(
            "prepare.source.config",
            one_line(error.found),
            f"the fields of {DATASETS[source.task][1].__name__}",
        )
    if section.eval is None:
        yield wrong(
            "prepare.eval",
            "must be a number: reasoning-gym has no evaluation split",
            "a tenth of the size, say",
        )
    asked = {"eval": section.eval or 0, "dev": section.dev}
    if (total := sum(asked.values())) >= source.size:
        largest = max(asked, key=lambda name: asked[name])
        yield wrong(
            f"prepare.{largest}",
            f"eval and dev take {total} questions, and {source.size} rows are drawn in all (prepare.source.size)",
            f"less than {max(2, asked[largest] - total + source.size)}, or a larger size",
        )


def arithmetic(stage: str, section: Any, target: Target) -> Iterator[Finding]:
    """Batches, groups, the generation cycle, save points, schedules."""
    processes = world(section, target)
    launched = int(getattr(section, "processes", 1))
    if processes != launched and target.device(section.device) == "cuda":
        yield Finding(
            "wrong" if launched > 1 else "warning",
            f"{stage}.launch",
            f"starts {launched} process{'es' * (launched > 1)}, and --gpus says {processes}",
            f"launch: {{processes: {processes}, backend: nccl}}, or --gpus {launched}",
        )
    if stage == "grpo":
        yield from _generation_arithmetic(section, processes)
    steps = section.save_steps
    boundary = math.lcm(section.cycle, section.logging_steps)
    if steps % boundary:
        kept = -(-steps // boundary) * boundary
        yield warning(
            f"{stage}.save_steps",
            f"{steps} is no multiple of {boundary} (generation cycle {section.cycle}, logging "
            f"{section.logging_steps}): checkpoints fall on every {kept} steps",
            f"{kept}, or {max(boundary, steps // boundary * boundary)}",
        )
    warmup = section.passed_through.get("warmup_steps", 0)
    if 0 < section.max_steps <= warmup:
        yield wrong(
            f"{stage}.warmup_steps",
            f"{warmup} reach the last of {section.max_steps} steps: the learning rate never comes to "
            "what `learning_rate` says",
            f"at most {section.max_steps - 1}; {max(1, section.max_steps // 10)} is usual",
        )
    if section.threads > (os.cpu_count() or 1) and target.device(section.device) == "cpu":
        yield warning(
            f"{stage}.threads",
            f"{section.threads} threads on {os.cpu_count()} cores",
            f"{os.cpu_count()}",
        )


def _generation_arithmetic(section: Any, processes: int) -> Iterator[Finding]:
    passed, batch = section.passed_through, section.per_device_train_batch_size
    stated = passed.get("generation_batch_size")
    if stated and stated % (batch * processes):
        up = -(-stated // (batch * processes)) * batch * processes
        yield wrong(
            "grpo.generation_batch_size",
            f"{stated} is no multiple of per_device_train_batch_size × processes ({batch} × {processes})",
            f"{up}",
        )
        return
    steps = passed.get("steps_per_generation") or section.gradient_accumulation_steps
    at_once = stated or batch * steps * processes
    if at_once % section.num_generations:
        yield wrong(
            "grpo.num_generations",
            f"{section.num_generations} does not divide the {at_once} completions generated at once "
            f"({batch} × {steps} × {processes} process{'es' * (processes > 1)})",
            groups(at_once, section.num_generations),
        )
    uses = (stated // (batch * processes) if stated else steps) * passed.get("num_iterations", 1)
    left = section.max_steps * section.gradient_accumulation_steps % uses
    if left:
        whole = -(-section.max_steps // section.cycle) * section.cycle
        yield warning(
            "grpo.max_steps",
            f"{section.max_steps} steps end inside a generation cycle of {section.cycle}: "
            "the last completions are not used up",
            f"{whole}",
        )
    shown = passed.get("per_device_eval_batch_size")
    compared = passed.get("num_generations_eval") or section.num_generations
    if shown and shown * processes % compared:
        unit = compared // math.gcd(compared, processes)
        yield wrong(
            "grpo.per_device_eval_batch_size",
            f"{shown} × {processes} must be divisible by the {compared} generations of an evaluation",
            f"{-(-shown // unit) * unit}, or leave it out",
        )


def lengths(sections: Mapping[str, Any], shape: model_shape.Shape | None) -> Iterator[Finding]:
    """Prompt and completion against the base's window, vLLM's, and each other."""
    if "validate" not in sections:
        return
    prompt = sections["validate"].max_prompt_tokens
    window = shape.window if shape else None
    if window and prompt >= window:
        yield wrong(
            "validate.max_prompt_tokens",
            f"{prompt} tokens leave nothing of the base's window of {window}",
            f"at most {window // 2}",
        )
        return
    asked = {}
    if "grpo" in sections:
        asked["grpo.max_completion_length"] = sections["grpo"].max_completion_length
    if "evaluate" in sections:
        asked["evaluate.max_gen_toks"] = sections["evaluate"].max_gen_toks
    for key, completion in asked.items():
        if window and prompt + completion > window:
            yield wrong(
                key,
                f"prompt and completion ({prompt} + {completion} = {prompt + completion} tokens) exceed "
                f"the base's window of {window}",
                f"at most {window - prompt}",
            )
    if "grpo" in sections:
        passed = sections["grpo"].passed_through
        limit, needed = (
            passed.get("vllm_max_model_length"),
            prompt + asked["grpo.max_completion_length"],
        )
        if limit and limit < needed:
            yield wrong(
                "grpo.vllm_max_model_length",
                f"{limit} tokens do not hold prompt and completion ({prompt} + {needed - prompt} = {needed})",
                f"{needed}",
            )
        elif limit and window and limit > window:
            yield wrong(
                "grpo.vllm_max_model_length",
                f"{limit} exceeds the base's window of {window}: vLLM refuses it",
                f"at most {window}",
            )
    if "sft" in sections and sections["sft"].max_steps:
        longest = sections["sft"].passed_through.get("max_length", 1024)
        prompt = sections["sft"].max_prompt_tokens or prompt
        if window and longest and longest > window:
            yield wrong(
                "sft.max_length",
                f"{longest} tokens exceed the base's window of {window}",
                f"at most {window}",
            )
        elif window and sections["sft"].max_prompt_tokens and prompt >= window:
            why = f"{prompt} tokens leave nothing of the base's window of {window}"
            yield wrong("sft.max_prompt_tokens", why, f"less than {window}")
        elif longest and longest < prompt:
            yield warning(
                "sft.max_length",
                f"{longest} tokens are fewer than a prompt may have ({prompt}): such rows "
                "keep no completion to learn from",
                f"{prompt} and the length of a solution",
            )


def rows_prepared(section: Any) -> dict[str, int]:
    """Rows per split, where data/prepared/ was made with these parameters; empty otherwise."""
    counts, record = Path("reports/prepare/metrics.json"), Path("reports/prepare/run.json")
    if not counts.exists() or not model_shape.was_made_with(section, record, "prepare"):
        return {}
    return {split: one["rows"] for split, one in files.read_json(counts).items()}


def epochs(
    sections: Mapping[str, Any], target: Target, rows: Mapping[str, int]
) -> Iterator[Finding]:
    """Steps against the rows that there are."""
    for stage, split in (("sft", "sft"), ("grpo", "train")):
        section = sections.get(stage)
        if section is None or section.max_steps <= 0:
            continue
        if split not in rows:
            yield unchecked(
                f"{stage}.max_steps",
                "epochs: rows unknown until prepare has run",
                "dvc repro prepare",
            )
            continue
        each = (
            section.per_device_train_batch_size
            * section.gradient_accumulation_steps
            * world(section, target)
        )
        per_row = section.num_generations if stage == "grpo" else 1
        if stage == "grpo" and rows[split] * per_row < each:
            fits = rows[split] * per_row // section.gradient_accumulation_steps
            yield wrong(
                "grpo.per_device_train_batch_size",
                f"a step needs {each // per_row} different prompts, and train has {rows[split]}",
                f"at most {fits // per_row * per_row}",
            )
        elif (
            seen := section.max_steps * each / per_row / max(1, rows[split])
        ) > 50 and not getattr(section, "curriculum", None):
            yield warning(
                f"{stage}.max_steps",
                f"{section.max_steps} steps see every row {seen:.0f} times",
                f"{math.ceil(10 * rows[split] * per_row / each)} for 10 epochs",
            )


def pins(sections: Mapping[str, Any]) -> Iterator[Finding]:
    """Revisions that are no commit: placeholders, which a run refuses."""
    for stage, section in sections.items():
        for key, value in _walk(section.model_dump(), stage):
            if key.endswith(".revision") and value is not None and not is_commit(str(value)):
                yield warning(
                    key,
                    f"{value!r} is a placeholder, no commit: the stage will refuse it",
                    "the 40 hex digits of a commit",
                )


def _walk(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _walk(one, f"{key}.{name}")
    else:
        yield key, value
