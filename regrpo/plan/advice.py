"""What would make a stage fit that does not: changes of the profile, found by trying each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from regrpo.plan.memory import Generation, Training, optimizer_bytes
from regrpo.plan.model_shape import Shape, on_all_linears
from regrpo.plan.workload import Workload

TWENTIETHS = range(18, 1, -1)
"""Of a GPU's memory for vLLM."""
ORDER = (
    "per_device_train_batch_size",
    "steps_per_generation",
    "generation_batch_size",
    "activation_checkpointing",
    "vllm_enable_sleep_mode",
    "lora",
    "optim",
    "max_completion_length",
    "max_length",
    "vllm_gpu_memory_utilization",
)
"""Changes in the order of how little they cost."""
Candidate = tuple[dict[str, Any], Workload]
"""Keys of a stage's section with new values, and the work that is left with them."""


def advise(shape: Shape, work: Workload) -> dict[str, Any]:
    """For a stage that does not fit: its largest term, and what would make it fit.

    `changes` are single changes that do, the mildest of each kind, or else as many together as it
    takes, or [] if nothing helps: {keys: {key: value}, total: bytes} each.
    """
    worst = max(work.phases(shape), key=lambda phase: phase.total)
    changes = list(_alone(shape, work).values()) or _together(shape, work)
    return {
        "stage": work.name,
        "phase": worst.name,
        "largest": worst.largest,
        "changes": [
            {
                "keys": {f"{work.name}.{key}": value for key, value in keys.items()},
                "total": changed.totals(shape)[0],
            }
            for keys, changed in changes
        ],
    }


def _alone(shape: Shape, work: Workload) -> dict[tuple[str, ...], Candidate]:
    """Single changes that make it fit, the mildest of each kind."""
    fitting: dict[tuple[str, ...], Candidate] = {}
    for keys, changed in _candidates(shape, work):
        if tuple(keys) not in fitting and changed.totals(shape)[0] <= work.limit:
            fitting[tuple(keys)] = (keys, changed)
    return fitting


def _together(shape: Shape, work: Workload) -> list[Candidate]:
    """Changes that make it fit together, one of each kind in their order."""
    keys: dict[str, Any] = {}
    for name in ORDER:
        options = [one for one in _candidates(shape, work) if name in one[0]]
        if not options:
            continue
        fitting = [one for one in options if one[1].totals(shape)[0] <= work.limit]
        least = min(options, key=lambda one: one[1].totals(shape))
        changes, changed = fitting[0] if fitting else least
        # the largest phase, or where that stays the next one
        if changed.totals(shape) < work.totals(shape):
            keys, work = keys | changes, changed
        if work.totals(shape)[0] <= work.limit:
            return [(keys, work)]
    return []


def _candidates(shape: Shape, work: Workload) -> Iterator[Candidate]:
    """Every single change, the mildest of a kind first."""
    train, generate = work.train, work.generate
    if train is None:
        assert generate
        yield from _evaluating(work, generate)
        return
    yield from _smaller_batches(work, train)
    if generate and generate.vllm is None:
        yield from _fewer_at_once(work, train, generate)
    yield from _ways_to_train(shape, work, train)
    if generate and generate.vllm:
        if not generate.sleeps:
            yield {"vllm_enable_sleep_mode": True}, _generating(work, sleeps=True)
        for share in _smaller_shares(generate.vllm):
            yield {"vllm_gpu_memory_utilization": share}, _generating(work, vllm=share)
    yield from _shorter(work, train)


def _training(work: Workload, **changes: Any) -> Workload:
    assert work.train
    return replace(work, train=replace(work.train, **changes))


def _generating(work: Workload, **changes: Any) -> Workload:
    assert work.generate
    return replace(work, generate=replace(work.generate, **changes))


def _smaller_shares(share: float) -> list[float]:
    return [n / 20 for n in TWENTIETHS if n / 20 < share]


def _evaluating(work: Workload, generate: Generation) -> Iterator[Candidate]:
    if generate.vllm is not None:
        for share in _smaller_shares(generate.vllm):
            yield {"model_args.gpu_memory_utilization": share}, _generating(work, vllm=share)
        return
    for batch in range(generate.sequences - 1, 0, -1):
        yield {"batch_size": batch}, _generating(work, sequences=batch)


def _smaller_batches(work: Workload, train: Training) -> Iterator[Candidate]:
    """Smaller batches with the same effective batch, and as many completions generated at once."""
    whole = train.batch * train.accumulate
    for batch in range(train.batch - 1, 0, -1):
        if whole % batch:
            continue
        keys = {
            "per_device_train_batch_size": batch,
            "gradient_accumulation_steps": whole // batch,
        }
        if work.generate and work.generate.stated:
            if work.generate.sequences % batch:
                continue
            if work.generate.stated == "steps_per_generation":
                keys["steps_per_generation"] = work.generate.sequences // batch
        yield keys, _training(work, batch=batch, accumulate=whole // batch)


def _fewer_at_once(work: Workload, train: Training, generate: Generation) -> Iterator[Candidate]:
    """Fewer completions generated at once, in whole batches and groups."""
    key = generate.stated or "steps_per_generation"
    for steps in range(generate.sequences // train.batch - 1, 0, -1):
        at_once = steps * train.batch
        if at_once % generate.group:
            continue
        value = steps if key == "steps_per_generation" else at_once * train.processes
        yield {key: value}, _generating(work, sequences=at_once, stated=key)


def _ways_to_train(shape: Shape, work: Workload, train: Training) -> Iterator[Candidate]:
    if not train.checkpointing:
        yield {"activation_checkpointing": True}, _training(work, checkpointing=True)
    if train.adapter is None:
        adapter = on_all_linears(shape, 16)
        yield {"lora": "{r: 16, lora_alpha: 32}"}, _training(work, adapter=adapter)
    if optimizer_bytes(train.optimizer) > 2:
        yield {"optim": "adamw_bnb_8bit"}, _training(work, optimizer="adamw_bnb_8bit")


def _shorter(work: Workload, train: Training) -> Iterator[Candidate]:
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
