"""What `regrpo plan` finds, and for what it plans."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from regrpo.core.errors import Refused, RegrpoError
from regrpo.core.settings import nearest

GIB = 2**30
TRAINED = ("sft", "grpo")
EXTRA = "pip install -c constraints.txt -e '.[cuda]'"


@dataclass(frozen=True)
class Finding:
    """`level`.

    Wrong (it will fail), warning, needed (on the target machine), unchecked (could not be known
    here).
    """

    level: Literal["wrong", "warning", "needed", "unchecked"]
    key: str
    why: str
    would_do: str


wrong = partial(Finding, "wrong")
warning = partial(Finding, "warning")
needed = partial(Finding, "needed")
unchecked = partial(Finding, "unchecked")


def of_error(
    error: RegrpoError, profile: Path, level: Literal["wrong", "needed"] = "wrong"
) -> Finding:
    """A refusal as a finding: without the profile's name, in one line."""
    why = f"expected {error.expected}; found {error.found}"
    return Finding(
        level,
        error.where.removeprefix(f"{profile}: "),
        one_line(why, 400),
        error.remedy.removesuffix("."),
    )


def one_line(error: object, length: int = 200) -> str:
    """A library's message in one line of at most so many characters, without its full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    return (
        text.removesuffix(".") if len(text) <= length else f"{text[:length].rpartition(' ')[0]} …"
    )


def one_of(given: object, known: Iterable[str]) -> str:
    """The known name that is most like what was given, else all of them."""
    names = list(known)
    return nearest(given, names) or f"one of {', '.join(names)}"


@dataclass(frozen=True)
class Target:
    """Where it is to run: the card's name, bytes of memory of one, how many (None.

    As many as the profile launches).
    """

    gpu: str
    memory: int
    gpus: int | None = None
    stated: bool = False
    """Whether the command line names a GPU: `device: auto` then means it."""
    here: bool = False
    """Whether this machine has it, so that what is missing is missing now."""

    def device(self, wanted: str) -> Literal["cpu", "cuda"]:
        return (
            "cuda"
            if wanted == "cuda" or (wanted == "auto" and (self.stated or self.here))
            else "cpu"
        )


def world(section: Any, target: Target) -> int:
    """Processes that train together: what the profile launches, or what --gpus says."""
    return target.gpus or int(getattr(section, "processes", 1))


def size(text: str) -> int:
    """Bytes of "80GiB", "24 GB" or "80" (GiB). Raises Refused otherwise."""
    match = re.fullmatch(r"\s*([\d.]+)\s*(GiB|GB|G|MiB|MB)?\s*", text, re.IGNORECASE)
    units = {"gib": GIB, "g": GIB, "gb": 10**9, "mib": 2**20, "mb": 10**6}
    try:
        value = float(match[1]) * units[(match[2] or "GiB").lower()] if match else 0
    except ValueError:
        value = 0
    if value <= 0:
        raise Refused(
            "--gpu-memory",
            expected="a size as 80GiB",
            found=text,
            remedy="Write a number and GiB or GB.",
        )
    return int(value)
