"""Reward functions by name, each guarded.

What TRL calls with prompts, completions and the data's columns.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from regrpo.core import processes
from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.verifiers import Verifier

if TYPE_CHECKING:
    import pandas as pd

    from regrpo.train.classifiers import Judge

OURS = ("exact_answer", "answer_format", "length_penalty")
"""The names of our own rewards."""
RewardFunc = Callable[..., Sequence[float | None]]
"""TRL's signature: (prompts, completions, completion_ids, **columns) → one value a completion.

None: not applicable.
"""


def text_of(completion: str | list[dict[str, str]]) -> str:
    """A completion's text, plain or the last chat message's content."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def exact_answer(verifier: Verifier) -> RewardFunc:
    """1 where the completion states the gold answer and no other (see regrpo.core.verifiers), else 0."""

    def exact_answer(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
        return [
            verifier.score(text_of(one), gold)
            for one, gold in zip(completions, answer, strict=True)
        ]

    return exact_answer


def answer_format(verifier: Verifier) -> RewardFunc:
    """1 where the whole completion is in the asked format, else 0, whatever it answers."""

    def answer_format(completions: list[Any], **_: Any) -> list[float]:
        return [float(verifier.is_formatted(text_of(one))) for one in completions]

    return answer_format


def length_penalty(max_completion_length: int) -> RewardFunc:
    """Minus the completion's length as a share of the limit.

    0 (empty) to -1 (at the limit), in tokens.
    """

    def length_penalty(completion_ids: list[list[int]], **_: Any) -> list[float]:
        return [-len(ids) / max_completion_length for ids in completion_ids]

    return length_penalty


def classified(judge: Judge) -> RewardFunc:
    """What a classifier thinks of the completion.

    P(positive labels) − P(negative labels), -1 to 1.
    """

    def classifier(completions: list[Any], **_: Any) -> list[float]:
        return judge.values([text_of(one) for one in completions])

    return classifier


def get_reward(
    name: str,
    verifier: Verifier | None,
    max_completion_length: int,
    judges: Mapping[str, Judge] = MappingProxyType({}),
) -> RewardFunc:
    """The reward function of that name.

    A classifier's, ours, `custom.<module>:<function>`, or one of trl.rewards.

    Raises Refused for a name there is not, or for a reward that needs a verifier where the data has
    none.
    """
    if name in judges:
        return guarded(name, classified(judges[name]))
    if name in ("exact_answer", "answer_format"):
        if verifier is None:
            raise Refused(
                f"grpo.reward_funcs: {name}",
                expected="a dataset with a verifier",
                found="verifier none",
                remedy="Use a reward that needs no gold answer, or a format that has a verifier.",
            )
        return guarded(name, (exact_answer if name == "exact_answer" else answer_format)(verifier))
    if name == "length_penalty":
        return guarded(name, length_penalty(max_completion_length))
    return guarded(name, _custom(name) if ":" in name else _from_trl(name))


def is_known(name: str) -> bool:
    """Whether a reward of that name is there, as far as the source text tells (nothing is imported)."""
    import ast
    import importlib.util
    from pathlib import Path

    if name in OURS:
        return True
    module, colon, function = name.partition(":")
    if colon:
        sources = (
            [Path(*module.split(".")).with_suffix(".py")] if module.startswith("custom.") else []
        )
    else:
        spec = importlib.util.find_spec("trl")
        places = spec.submodule_search_locations or [] if spec else []
        sources = [file for place in places for file in Path(place, "rewards").glob("*.py")]
        function = name
    trees = (
        ast.parse(file.read_text(encoding="utf-8", errors="replace"))
        for file in sources
        if file.exists()
    )
    return any(
        getattr(node, "name", None) == function or _binds(node, function)
        for tree in trees
        for node in tree.body
    )


def _binds(node: Any, name: str) -> bool:
    """Whether a top-level import or assignment binds the name."""
    bound = [alias.asname or alias.name for alias in getattr(node, "names", [])]
    bound += [getattr(target, "id", None) for target in getattr(node, "targets", [])]
    return name in bound


def _custom(name: str) -> RewardFunc:
    module_name, _, function = name.partition(":")
    if not module_name.startswith("custom."):
        raise Refused(
            f"grpo.reward_funcs: {name}",
            expected="custom.<module>:<function>",
            found=name,
            remedy="Put the function into custom/, which DVC watches.",
        )
    try:
        found = getattr(importlib.import_module(module_name), function)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise CannotCheck(
            f"grpo.reward_funcs: {name}",
            expected=f"a function {function} in {module_name.replace('.', '/')}.py",
            found=str(error),
            remedy="Correct the name or the module.",
        ) from error
    return found  # type: ignore[no-any-return]


def _from_trl(name: str) -> RewardFunc:
    from trl import rewards

    found = getattr(rewards, name, None)
    if not inspect.isfunction(found) or "completions" not in inspect.signature(found).parameters:
        usable = [n for n in dir(rewards) if n.endswith("_reward")]
        raise Refused(
            f"grpo.reward_funcs: {name}",
            expected=f"{', '.join(OURS)}, custom.<module>:<function> or one of TRL's ({', '.join(usable)})",
            found=name,
            remedy="Correct the name.",
        )
    return found


def guarded(name: str, function: RewardFunc) -> RewardFunc:
    """The same function under the profile's name, refusing (by name) an exception, a wrong count, NaN and infinity."""

    @functools.wraps(function)
    def reward(*args: Any, **kwargs: Any) -> list[float | None]:
        def refuse(found: str, cause: Exception | None = None) -> Refused:
            error = Refused(
                f"grpo.reward_funcs: {name}",
                expected=f"{len(kwargs['completions'])} finite numbers or None, one a completion",
                found=found,
                remedy="Mend the reward function and run `dvc repro` again.",
            )
            error.__cause__ = cause
            return error

        try:
            values = list(function(*args, **kwargs))
        except Refused:
            raise
        except Exception as error:  # the user's own code may raise anything
            raise refuse(f"{type(error).__name__}: {error}", error) from error
        if len(values) != len(kwargs["completions"]):
            raise refuse(f"{len(values)} values")
        for index, value in enumerate(values):
            if value is not None and not (isinstance(value, numbers.Real) and math.isfinite(value)):
                raise refuse(
                    f"{value!r} for completion {index}: {text_of(kwargs['completions'][index])[:80]!r}"
                )
        return [None if value is None else float(value) for value in values]

    reward.__name__ = name.rpartition(":")[2]
    return reward


class Samples:
    """Completions with their rewards, kept from the reward functions' own calls every `every` optimizer steps.

    Keeps the first two groups of `group` completions of a call, and counts the prompts of all calls. Of several
    processes each is called with its share of a batch; the first groups of the whole batch are kept.
    """

    def __init__(self, weights: list[float], every: int, group: int) -> None:
        self.weights, self.every, self.kept = weights, every, 2 * group
        self.group, self.prompts_seen = group, 0
        self._rows: dict[tuple[int, int], dict[str, Any]] = {}
        self._names: list[str] = []

    def watching(self, functions: list[RewardFunc]) -> list[RewardFunc]:
        """The same functions, watched."""
        self._names = [function.__name__ for function in functions]
        return [
            self._watched(function, first=index == 0) for index, function in enumerate(functions)
        ]

    def _watched(self, function: RewardFunc, first: bool) -> RewardFunc:
        @functools.wraps(function)
        def watched(**kwargs: Any) -> Sequence[float | None]:
            values = function(**kwargs)
            step = kwargs["trainer_state"].global_step
            self.prompts_seen += len(values) * processes.world_size() // self.group if first else 0
            if step % self.every == 0:
                here = [
                    (self._row(kwargs, step, index), values[index])
                    for index in range(len(values))[: self.kept]
                ]
                for index, (row, value) in enumerate(processes.gathered(here)[: self.kept]):
                    self._rows.setdefault((step, index), row)[function.__name__] = value
            return values

        return watched

    def _row(self, kwargs: dict[str, Any], step: int, index: int) -> dict[str, Any]:
        columns = {
            name: kwargs[name][index] if name in kwargs else None for name in ("id", "answer")
        }
        prompt, completion = kwargs["prompts"][index], kwargs["completions"][index]
        return {
            "step": step,
            "prompt": text_of(prompt),
            "completion": text_of(completion),
            **columns,
        }

    def state(self) -> dict[str, Any]:
        """What was kept so far, for a checkpoint."""
        return {
            "rows": [[*key, row] for key, row in self._rows.items()],
            "prompts_seen": self.prompts_seen,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on after what a checkpoint kept."""
        self._rows = {(step, index): row for step, index, row in state["rows"]}
        self.prompts_seen = state["prompts_seen"]

    def frame(self) -> pd.DataFrame:
        """Columns step, id, prompt, completion, answer, reward (the weighted sum), one per reward function."""
        import pandas as pd

        rows = []
        for _, row in sorted(self._rows.items()):
            values = [row.get(name) for name in self._names]
            reward = sum(
                weight * value
                for weight, value in zip(self.weights, values, strict=True)
                if value is not None
            )
            rows.append({**row, "reward": float(reward)})
        columns = ["step", "id", "prompt", "completion", "answer", "reward", *self._names]
        return pd.DataFrame(rows, columns=columns)
