"""Reward functions by name, each guarded; and samples of the completions that they saw."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from regrpo.core import processes
from regrpo.core.answers.protocol import Verifier
from regrpo.core.custom import loading
from regrpo.core.errors import Refused
from regrpo.core.settings import Problem, invalid
from regrpo.train import custom_code

if TYPE_CHECKING:
    import pandas as pd

    from regrpo.train.classifiers import Judge

OURS = ("exact_answer", "answer_format", "length_penalty")
"""The names of our own rewards."""
COLUMNS = ("step", "id", "prompt", "completion", "answer", "reward")
"""Columns of samples.parquet; one per reward function follows, by its name."""
RewardFunc = Callable[..., Sequence[float | None]]
"""TRL's signature: (prompts, completions, completion_ids, **columns) → one value a completion.

None: not applicable.
"""


def require_own_names(names: Iterable[str], classifiers: Iterable[str]) -> None:
    """Raise a validator's error for a reward whose name is taken, or a classifier without a weight.

    TRL logs a reward, and samples.parquet holds it, by its function's name.
    """
    functions = [name.rpartition(":")[2] for name in names]
    taken = {name for name in functions if functions.count(name) > 1 or name in COLUMNS}
    if taken:
        listed = ", ".join(sorted(taken))
        why = f"{listed} is taken; give the function a name of its own"
        raise invalid(Problem("reward_funcs", why))
    ours = set(classifiers) & set(OURS)
    if ours:
        listed = ", ".join(sorted(ours))
        why = f"{listed} is a reward of ours; give it a name of its own"
        raise invalid(Problem("classifiers", why))
    unused = set(classifiers) - set(names)
    if unused:
        listed = ", ".join(sorted(unused))
        raise invalid(Problem("classifiers", f"{listed} has no weight in `reward_funcs`"))


def get_reward(
    name: str,
    verifier: Verifier | None,
    max_completion_length: int,
    judges: Mapping[str, Judge] = MappingProxyType({}),
) -> RewardFunc:
    """The reward function of that name: a classifier's, ours, custom.<module>:<function> or TRL's.

    Raises Refused for a name there is not, and for a reward that needs a verifier if the data has
    none.
    """
    function: RewardFunc
    if name in judges:
        function = functools.partial(judged, judges[name])
    elif name in ("exact_answer", "answer_format"):
        if verifier is None:
            raise Refused(
                f"grpo.reward_funcs: {name}",
                expected="a dataset with a verifier",
                found="verifier none",
                remedy="Use a reward that needs no gold answer, or a format that has a verifier.",
            )
        chosen = exact_answer if name == "exact_answer" else answer_format
        function = functools.partial(chosen, verifier)
    elif name == "length_penalty":
        function = functools.partial(length_penalty, max_completion_length)
    elif ":" in name:
        function = _custom(name)
    else:
        function = _from_trl(name)
    return guarded(name, function)


def exact_answer(
    verifier: Verifier, completions: list[Any], answer: list[str], **columns: Any
) -> list[float]:
    """1 if the completion states a gold answer and no other (regrpo.core.verifiers), else 0."""
    scores = []
    for completion, gold, row in zip(completions, answer, _rows(columns, answer), strict=True):
        scores.append(verifier.score(text_of(completion), gold, row))
    return scores


def answer_format(verifier: Verifier, completions: list[Any], **columns: Any) -> list[float]:
    """1 if the whole completion is in the asked format, else 0, whatever it answers."""
    formed = []
    for completion, row in zip(completions, _rows(columns, completions), strict=True):
        formed.append(float(verifier.is_formatted(text_of(completion), row)))
    return formed


def _rows(columns: Mapping[str, Any], each: Sequence[Any]) -> list[dict[str, Any]]:
    """The data's rows again, of the columns that TRL passes, one for each completion."""
    lists = {name: values for name, values in columns.items() if isinstance(values, list)}
    return [{name: values[index] for name, values in lists.items()} for index in range(len(each))]


def length_penalty(
    max_completion_length: int, completion_ids: list[list[int]], **_: Any
) -> list[float]:
    """Minus the completion's share of the limit in tokens: 0 (empty) to -1 (at the limit)."""
    return [-len(ids) / max_completion_length for ids in completion_ids]


def judged(judge: Judge, completions: list[Any], **_: Any) -> list[float]:
    """A classifier's P(positive labels) − P(negative labels) of the completion, -1 to 1."""
    return judge.values([text_of(one) for one in completions])


def text_of(completion: str | list[dict[str, str]]) -> str:
    """A completion's text, plain or the last chat message's content."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


@functools.cache
def of_trl() -> dict[str, list[str]]:
    """TRL's rewards by name, each with the time limits that its source sets (nothing is imported).

    Its other functions make a reward of settings, or are no rewards.
    """
    spec = importlib.util.find_spec("trl")
    places = (spec and spec.submodule_search_locations) or []
    found = {}
    for place in places:
        for source in sorted(Path(place, "rewards").glob("*.py")):
            for node in ast.parse(source.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.FunctionDef) and _takes_completions(node):
                    arguments = [one for one in ast.walk(node) if isinstance(one, ast.keyword)]
                    names = {one.arg for one in arguments if one.arg and "timeout" in one.arg}
                    found[node.name] = sorted(names)
    return found


def _takes_completions(function: ast.FunctionDef) -> bool:
    return any(one.arg == "completions" for one in function.args.args)


def require_no_clock(name: str) -> None:
    """Raise Refused for a reward of TRL's that gives 0 where its time has run out."""
    limits = of_trl().get(name)
    if limits:
        raise Refused(
            f"grpo.reward_funcs: {name}",
            expected="a reward that is the same on a busy machine",
            found=f"one that gives 0 when its time runs out ({', '.join(limits)}, in TRL's source)",
            remedy="Take exact_answer with prepare.verifier: math, which is bounded by size "
            "(`pip install 'regrpo[math]'`).",
        )


def _custom(name: str) -> RewardFunc:
    where = f"grpo.reward_funcs: {name}"
    if not name.startswith("custom."):
        raise Refused(
            where,
            expected="custom.<module>:<function>",
            found=name,
            remedy="Put the function into custom/, which DVC watches.",
        )
    found: RewardFunc = loading.load(name, where)
    return found


def _from_trl(name: str) -> RewardFunc:
    if name not in of_trl():
        usable = ", ".join(known for known, limits in of_trl().items() if not limits)
        ours = ", ".join(OURS)
        raise Refused(
            f"grpo.reward_funcs: {name}",
            expected=f"{ours}, custom.<module>:<function> or one of TRL's ({usable})",
            found=name,
            remedy="Correct the name.",
        )
    require_no_clock(name)
    from trl import rewards

    found: RewardFunc = getattr(rewards, name)
    return found


def guarded(name: str, function: RewardFunc) -> RewardFunc:
    """The same function under the profile's name, awaitable if it was.

    Refuses, by that name, whatever it raises, a wrong count of values, and a value that is no
    finite number.
    """
    reward: RewardFunc
    # TRL awaits what it is given if that is a coroutine function itself.
    if custom_code.is_async(function):

        @functools.wraps(function)
        async def reward(**kwargs: Any) -> list[float | None]:
            with _refuse_raised(name, kwargs["completions"]):
                values = list(await function(**kwargs))  # type: ignore[misc]
            return _numbers(name, values, kwargs["completions"])
    else:

        @functools.wraps(function)
        def reward(**kwargs: Any) -> list[float | None]:
            with _refuse_raised(name, kwargs["completions"]):
                values = list(function(**kwargs))
            return _numbers(name, values, kwargs["completions"])

    reward.__name__ = name.rpartition(":")[2]
    return reward


@contextlib.contextmanager
def _refuse_raised(name: str, completions: list[Any]) -> Iterator[None]:
    try:
        yield
    except Refused:
        raise
    except loading.RAISED as error:
        raise _refusal(name, len(completions), loading.describe(error)) from error


def _numbers(name: str, values: list[Any], completions: list[Any]) -> list[float | None]:
    """One number or None a completion, as Python's own: tensors, NumPy's and bools become floats.

    Raises Refused for a wrong count, text, NaN, infinity and what `float` does not take.
    """
    if len(values) != len(completions):
        raise _refusal(name, len(completions), f"{len(values)} values")
    numbers: list[float | None] = []
    for index, value in enumerate(values):
        number = _number(value)
        if value is not None and number is None:
            text = text_of(completions[index])[:80]
            found = f"{' '.join(repr(value).split()):.200} for completion {index}: {text!r}"
            raise _refusal(name, len(completions), found)
        numbers.append(number)
    return numbers


def _number(value: Any) -> float | None:
    """The finite number that `float` makes of a value; None if it makes none, and of text."""
    if isinstance(value, str | bytes | bytearray):
        return None
    if hasattr(value, "detach"):  # torch warns of a number that asks for its gradient
        value = value.detach()
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return number if math.isfinite(number) else None


def _refusal(name: str, count: int, found: str) -> Refused:
    return Refused(
        f"grpo.reward_funcs: {name}",
        expected=f"{count} finite numbers or None, one a completion",
        found=found,
        remedy="Mend the reward function and run `dvc repro` again.",
    )


@dataclass
class Samples:
    """Completions with their rewards, kept from the reward functions' own calls.

    Of every `every`-th optimizer step the first two groups of `group` completions are kept, and the
    prompts of all calls are counted. Of several processes each is called with its share of a batch;
    the first groups of the whole batch are kept.
    """

    weights: list[float]
    every: int
    group: int
    prompts_seen: int = 0
    rows: dict[tuple[int, int], dict[str, Any]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    noted: list[tuple[dict[str, Any], str, float | None]] = field(default_factory=list)
    """What this process saw since the last `settle`: row, reward function, value."""

    def watching(self, functions: list[RewardFunc]) -> list[RewardFunc]:
        """The same functions, watched."""
        self.names = [function.__name__ for function in functions]
        first, *others = functions
        # The prompts are counted once, not by each function.
        return [self._watched(first, True), *(self._watched(one, False) for one in others)]

    def _watched(self, function: RewardFunc, counts: bool) -> RewardFunc:
        watched: RewardFunc
        if custom_code.is_async(function):

            @functools.wraps(function)
            async def watched(**kwargs: Any) -> Sequence[float | None]:
                values: Sequence[float | None] = await function(**kwargs)  # type: ignore[misc]
                self._note(function.__name__, counts, kwargs, values)
                return values
        else:

            @functools.wraps(function)
            def watched(**kwargs: Any) -> Sequence[float | None]:
                values = function(**kwargs)
                self._note(function.__name__, counts, kwargs, values)
                return values

        return watched

    def _note(
        self, name: str, counts: bool, batch: Mapping[str, Any], values: Sequence[float | None]
    ) -> None:
        step = batch["trainer_state"].global_step
        if counts:
            self.prompts_seen += len(values) * processes.world_size() // self.group
        if step % self.every == 0:
            for index, value in enumerate(values[: 2 * self.group]):
                self.noted.append((self._row(batch, step, index), name, value))

    def _row(self, batch: Mapping[str, Any], step: int, index: int) -> dict[str, Any]:
        return {
            "step": step,
            "id": batch["id"][index],
            "prompt": text_of(batch["prompts"][index]),
            "completion": text_of(batch["completions"][index]),
            "answer": batch["answer"][index],
        }

    def settle(self) -> None:
        """Keep what was noted; every process calls it, at the end of each optimizer step.

        Not in the call itself: rewards that are awaited end in another order in each process.
        """
        if not self.noted:
            return
        counts: Counter[tuple[int, str]] = Counter()
        for row, name, value in processes.gathered(self.noted):
            index = counts[row["step"], name]
            counts[row["step"], name] += 1
            if index < 2 * self.group:
                self.rows.setdefault((row["step"], index), row)[name] = value
        self.noted.clear()

    def state(self) -> dict[str, Any]:
        """What was kept so far, for a checkpoint."""
        rows = [[*key, row] for key, row in self.rows.items()]
        return {"rows": rows, "prompts_seen": self.prompts_seen}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on after what a checkpoint kept."""
        self.rows = {(step, index): row for step, index, row in state["rows"]}
        self.prompts_seen = state["prompts_seen"]

    def frame(self) -> pd.DataFrame:
        """COLUMNS, and one per reward function; `reward` is the weighted sum of their values."""
        import pandas as pd

        # A step that raised was not settled; several processes would have to meet for it.
        if processes.world_size() == 1:
            self.settle()
        rows = []
        for _, row in sorted(self.rows.items()):
            reward = 0.0
            for weight, name in zip(self.weights, self.names, strict=True):
                value = row.get(name)
                if value is not None:
                    reward += weight * value
            rows.append({**row, "reward": reward})
        return pd.DataFrame(rows, columns=[*COLUMNS, *self.names])
