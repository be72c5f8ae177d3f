"""What would make a stage fit that does not: changes of the profile, found by trying each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from regrpo.core.files import Json
from regrpo.plan.memory import optimizer_bytes, phases, vllm_does_not_start
from regrpo.plan.model_shape import Shape, on_all_linears
from regrpo.plan.workload import Generation, Training, Workload

NEVER_FITS = 10**18
Option = tuple[Json, Workload]
"""Keys of a stage's section with new values, and the work that is left with them."""
Options = Iterator[Option]


def advise(shape: Shape, work: Workload) -> Json:
    """For a stage that does not fit: its largest term, and what would make it fit.

    `changes` are single changes that do, the mildest of each kind, or else as many together as it
    takes, or [] if nothing helps: {keys: {key: value}, total: bytes} each.
    """
    worst = max(phases(shape, work), key=lambda phase: phase.total)
    changes = []
    for keys, changed in _alone(shape, work) or _together(shape, work):
        named = {f"{work.name}.{key}": value for key, value in keys.items()}
        changes.append({"keys": named, "total": _peaks(shape, changed)[0]})
    return {
        "stage": work.name,
        "phase": worst.name,
        "largest": worst.largest,
        "changes": changes,
    }


def _alone(shape: Shape, work: Workload) -> list[Option]:
    """Single changes that make it fit, the mildest of each kind."""
    best = [_best(shape, options) for options in _by_kind(shape, work).values()]
    return [option for option in best if _fits(shape, option[1])]


def _together(shape: Shape, work: Workload) -> list[Option]:
    """Changes that make it fit together, one of each kind as far as needed."""
    keys: Json = {}
    for kind in _by_kind(shape, work):
        options = _by_kind(shape, work).get(kind, [(keys, work)])
        changes, changed = _best(shape, options)
        # the largest phase, or where that stays the next one
        if _peaks(shape, changed) < _peaks(shape, work):
            keys, work = keys | changes, changed
        if _fits(shape, work):
            return [(keys, work)]
    return []


def _by_kind(shape: Shape, work: Workload) -> dict[tuple[str, ...], list[Option]]:
    """Every single change, by the keys that it sets."""
    kinds: dict[tuple[str, ...], list[Option]] = {}
    for option in _options(shape, work):
        kinds.setdefault(tuple(option[0]), []).append(option)
    return kinds


def _best(shape: Shape, options: list[Option]) -> Option:
    """The mildest that fits, or the one that leaves least."""
    for option in options:
        if _fits(shape, option[1]):
            return option
    return min(options, key=lambda option: _peaks(shape, option[1]))


def _fits(shape: Shape, work: Workload) -> bool:
    return _peaks(shape, work)[0] <= work.limit


def _peaks(shape: Shape, work: Workload) -> list[int]:
    """Bytes of the phases, the largest first."""
    if vllm_does_not_start(shape, work):
        return [NEVER_FITS]
    return sorted((phase.total for phase in phases(shape, work)), reverse=True)


# --- the changes ----------------------------------------------------------------------------------


def _options(shape: Shape, work: Workload) -> Options:
    """Every single change: kinds in the order of how little they cost, each from the mildest on."""
    train, generate = work.train, work.generate
    if train is None:
        assert generate  # noqa: S101  (tells mypy a type, checks no input)
        yield from _of_generation(work, generate)
        return
    yield from _smaller_batches(work, train)
    if generate and generate.vllm is None:
        yield from _fewer_at_once(work, train, generate)
    if not train.checkpointing:
        yield {"activation_checkpointing": True}, _training(work, checkpointing=True)
    if generate and generate.vllm and not generate.sleeps:
        yield {"vllm_enable_sleep_mode": True}, _generating(work, sleeps=True)
    if train.adapter is None:
        adapter = on_all_linears(shape, 16)
        yield {"lora": "{r: 16, lora_alpha: 32}"}, _training(work, adapter=adapter)
    if optimizer_bytes(train.optimizer) > 2:
        yield {"optim": "adamw_bnb_8bit"}, _training(work, optimizer="adamw_bnb_8bit")
    yield from _shorter(work, train)
    if generate and generate.vllm:
        yield from _smaller_shares("vllm_gpu_memory_utilization", work, generate.vllm)


def _of_generation(work: Workload, generate: Generation) -> Options:
    """A smaller share of the GPU for vLLM, or fewer questions at once."""
    if generate.vllm is not None:
        yield from _smaller_shares("model_args.gpu_memory_utilization", work, generate.vllm)
        return
    for batch in range(generate.sequences // generate.group - 1, 0, -1):
        yield {"batch_size": batch}, _generating(work, sequences=batch * generate.group)


def _smaller_shares(key: str, work: Workload, share: float) -> Options:
    """In twentieths of the GPU."""
    for twentieths in range(math.ceil(share * 20) - 1, 1, -1):
        yield {key: twentieths / 20}, _generating(work, vllm=twentieths / 20)


def _smaller_batches(work: Workload, train: Training) -> Options:
    """Smaller batches with the same effective batch, and as many completions generated at once."""
    whole = train.batch * train.accumulate
    generate = work.generate
    at_once = generate.sequences if generate and generate.stated else 0
    for batch in range(train.batch - 1, 0, -1):
        if whole % batch or at_once % batch:
            continue
        keys = {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": whole // batch,
        }
        if generate and generate.stated == "steps_per_generation":
            keys["steps_per_generation"] = at_once // batch
        yield keys, _training(work, batch=batch, accumulate=whole // batch)


def _fewer_at_once(work: Workload, train: Training, generate: Generation) -> Options:
    """Fewer completions generated at once, in whole batches and groups."""
    key = generate.stated or "steps_per_generation"
    for steps in range(generate.sequences // train.batch - 1, 0, -1):
        at_once = steps * train.batch
        if at_once % generate.group == 0:
            value = steps if key == "steps_per_generation" else at_once * train.processes
            yield {key: value}, _generating(work, sequences=at_once, stated=key)


def _shorter(work: Workload, train: Training) -> Options:
    """Shorter sequences, in steps of 32 tokens."""
    longest = train.completion if work.generate else train.tokens
    for length in range((longest - 1) // 32 * 32, train.shortest, -32):
        if work.generate:
            shorter = _generating(_training(work, completion=length), completion=length)
            yield {"max_completion_length": length}, shorter
        else:
            prompt = min(train.prompt, length // 2)
            shorter = _training(work, prompt=prompt, completion=length - prompt)
            yield {"max_length": length}, shorter


def _training(work: Workload, **changes: Any) -> Workload:
    assert work.train  # noqa: S101  (tells mypy a type, checks no input)
    return replace(work, train=replace(work.train, **changes))


def _generating(work: Workload, **changes: Any) -> Workload:
    assert work.generate  # noqa: S101  (tells mypy a type, checks no input)
    return replace(work, generate=replace(work.generate, **changes))
