"""A profile's numbers against each other, its data and its base."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regrpo.core import files, text
from regrpo.core.errors import Refused
from regrpo.core.profiles import DEFAULT_PROFILE, read_yaml
from regrpo.core.settings import nearest
from regrpo.plan import model_shape
from regrpo.plan.findings import (
    Findings,
    Sections,
    Target,
    short_message,
    unchecked,
    warning,
    wrong,
)

REPEATED = 50
"""Epochs beyond which a warning is due: what a model sees so often it learns by heart."""


def data(section: Any) -> Findings:
    """A generator's task and settings by its first row, and the splits against what it draws."""
    source = section.source
    if source.kind != "reasoning_gym":
        return
    from reasoning_gym.factory import DATASETS

    if source.task not in DATASETS:
        why = f"{source.task!r} is no task of reasoning-gym's"
        near = nearest(source.task, DATASETS) or "one of reasoning_gym.factory.DATASETS"
        yield wrong("prepare.source.task", why, near)
        return
    try:
        next(source.parts(section.seed)["train"])
    except Refused as error:
        taken = f"the fields of {DATASETS[source.task][1].__name__}"
        yield wrong("prepare.source.config", short_message(error.found), taken)
    if section.eval is None:
        why = "must be a number: reasoning-gym has no evaluation split"
        yield wrong("prepare.eval", why, "a tenth of the size, say")
    total = (section.eval or 0) + section.dev
    if total >= source.size:
        why = f"eval and dev take {total} questions, and {source.size} rows are drawn in all"
        yield wrong("prepare.source.size", why, f"more than {total}, or a smaller eval or dev")


def arithmetic(stage: str, section: Any) -> Findings:
    """The generation cycle, save points, schedules."""
    boundary = math.lcm(section.cycle, section.logging_steps)
    steps = section.save_steps
    if steps % boundary:
        above = steps - steps % boundary + boundary
        below = max(boundary, above - boundary)
        yield warning(
            f"{stage}.save_steps",
            f"{steps} is no multiple of {boundary} (generation cycle {section.cycle}, logging "
            f"{section.logging_steps}): checkpoints fall on every {above} steps",
            f"{above}, or {below}",
        )
    if stage == "grpo" and section.max_steps % section.cycle:
        yield warning(
            "grpo.max_steps",
            f"{section.max_steps} steps end inside a generation cycle of {section.cycle}: "
            "the last completions are not used up",
            f"{section.max_steps - section.max_steps % section.cycle + section.cycle}",
        )
    warmup = section.passed_through.get("warmup_steps", 0)
    if 0 < section.max_steps <= warmup:
        # It trains, as a trial of three steps has to; only not as the profile says.
        yield warning(
            f"{stage}.warmup_steps",
            f"{warmup} reach the last of {section.max_steps} steps: the learning rate never comes "
            "to what `learning_rate` says",
            f"at most {section.max_steps - 1}; {max(1, section.max_steps // 10)} is usual",
        )


def card(path: Path, sections: Sections) -> Findings:
    """The default profile's own words, where a copy of it has other data."""
    if path == DEFAULT_PROFILE or not {"prepare", "model_card"} <= sections.keys():
        return
    default = read_yaml(DEFAULT_PROFILE)
    if not {"prepare", "model_card"} <= default.keys():  # it only names the profile in use
        return
    given = sections["prepare"].source.model_dump(exclude_unset=True)
    if given == default["prepare"]["source"]:
        return
    for key in ("model_name", "purpose"):
        if getattr(sections["model_card"], key) == default["model_card"][key]:
            why = f"is still what {DEFAULT_PROFILE} says of its own model, whose data are others"
            yield warning(f"model_card.{key}", why, "what your model is, which its card says")


def processes(stage: str, section: Any, target: Target) -> Findings:
    """What --gpus says against what the profile launches."""
    planned, launched = target.processes(section), section.processes
    if planned == launched:
        return
    if target.device(section) == "cuda":
        starts = text.count(launched, "process", "processes")
        why = f"starts {starts}, and --gpus says {planned}"
        would_do = f"launch: {{processes: {planned}, backend: nccl}}, or --gpus {launched}"
        # One process uses one GPU of several; several find too few or leave some idle.
        yield (warning if launched == 1 else wrong)(f"{stage}.launch", why, would_do)
    if stage == "grpo" and (problem := section.group_problem(planned)):
        yield wrong(f"grpo.{problem.key}", problem.why, problem.would_do)


# --- lengths --------------------------------------------------------------------------------------


def lengths(sections: Sections, shape: model_shape.Shape | None) -> Findings:
    """Prompt and completion against the base's window, vLLM's, and each other."""
    if "validate" not in sections:
        return
    prompt = sections["validate"].max_prompt_tokens
    window = shape.window if shape and shape.window else math.inf
    if prompt >= window:
        why = f"{prompt} tokens leave nothing of the base's window of {window}"
        yield wrong("validate.max_prompt_tokens", why, f"at most {window // 2}")
        return
    for stage, key in (("grpo", "max_completion_length"), ("evaluate", "max_gen_toks")):
        if stage in sections:
            yield from _completion(f"{stage}.{key}", prompt, getattr(sections[stage], key), window)
    if "grpo" in sections:
        yield from _vllm_window(sections["grpo"], prompt, window)
    if "sft" in sections and sections["sft"].max_steps:
        yield from _of_sft(sections["sft"], prompt, window)


def _completion(key: str, prompt: int, completion: int, window: float) -> Findings:
    parts = f"{prompt} + {completion} = {prompt + completion} tokens"
    if prompt + completion > window:
        why = f"prompt and completion ({parts}) exceed the base's window of {window}"
        yield wrong(key, why, f"at most {window - prompt}")


def _vllm_window(grpo: Any, prompt: int, window: float) -> Findings:
    key, limit = "grpo.vllm_max_model_length", grpo.passed_through.get("vllm_max_model_length")
    completion = grpo.max_completion_length
    needed = prompt + completion
    if limit and limit < needed:
        parts = f"{prompt} + {completion} = {needed}"
        yield wrong(key, f"{limit} tokens do not hold prompt and completion ({parts})", f"{needed}")
    elif limit and limit > window:
        why = f"{limit} exceeds the base's window of {window}: vLLM refuses it"
        yield wrong(key, why, f"at most {window}")


def _of_sft(sft: Any, prompt: int, window: float) -> Findings:
    longest = sft.passed_through.get("max_length", 1024) or math.inf
    own = sft.max_prompt_tokens or 0
    if math.inf > longest > window:
        why = f"{longest} tokens exceed the base's window of {window}"
        yield wrong("sft.max_length", why, f"at most {window}")
    elif own >= window:
        why = f"{own} tokens leave nothing of the base's window of {window}"
        yield wrong("sft.max_prompt_tokens", why, f"less than {window}")
    elif longest < (own or prompt):
        yield warning(
            "sft.max_length",
            f"{longest} tokens are fewer than a prompt may have ({own or prompt}): such rows keep "
            "no completion to learn from",
            f"{own or prompt} and the length of a solution",
        )


# --- rows -----------------------------------------------------------------------------------------


def rows_prepared(section: Any) -> dict[str, Any]:
    """What prepare says of each split, if data/prepared/ was made with these parameters."""
    counts, record = Path("reports/prepare/metrics.json"), Path("reports/prepare/run.json")
    if counts.exists() and model_shape.was_made_with(section, record, "prepare"):
        return dict(files.read_json(counts))
    return {}


def rows_selected(section: Any, prepared: Mapping[str, Any]) -> dict[str, Any]:
    """What select says of grpo's rows, if it ran with these parameters; prepare, if it is idle."""
    counts, record = Path("reports/select/metrics.json"), Path("reports/select/run.json")
    if section is None or not section.samples:
        return dict(prepared.get("train", {}))
    if counts.exists() and model_shape.was_made_with(section, record, "select"):
        return {"rows": files.read_json(counts)["kept"]}
    return {}


def epochs(sections: Sections, target: Target) -> Findings:
    """Steps against the rows that there are."""
    splits = rows_prepared(sections["prepare"]) if "prepare" in sections else {}
    selected = rows_selected(sections.get("select"), splits)
    for stage, split in (("sft", splits.get("sft")), ("grpo", selected)):
        if stage not in sections or sections[stage].max_steps <= 0:
            continue
        if split:
            yield from _epochs(stage, sections[stage], target, split["rows"])
        else:
            maker = "select" if stage == "grpo" and splits else "prepare"
            why = f"epochs: rows unknown until {maker} has run"
            yield unchecked(f"{stage}.max_steps", why, f"dvc repro {maker}")


def _epochs(stage: str, section: Any, target: Target, rows: int) -> Findings:
    accumulate = section.gradient_accumulation_steps
    of_a_step = section.per_device_train_batch_size * accumulate * target.processes(section)
    per_row = getattr(section, "num_generations", 1)
    if stage == "grpo" and rows * per_row < of_a_step:
        most = rows * per_row // accumulate // per_row * per_row
        why = f"a step needs {of_a_step // per_row} different prompts, and train has {rows}"
        yield wrong("grpo.per_device_train_batch_size", why, f"at most {most}")
        return
    seen = section.max_steps * of_a_step / per_row / max(1, rows)
    if seen > REPEATED and not getattr(section, "curriculum", None):
        why = f"{section.max_steps} steps see every row {seen:.0f} times"
        of_ten = math.ceil(10 * rows * per_row / of_a_step)
        yield warning(f"{stage}.max_steps", why, f"{of_ten} for 10 epochs")
