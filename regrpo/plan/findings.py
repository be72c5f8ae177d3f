"""What `regrpo check` and `regrpo plan` find, and for what a profile is planned."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from regrpo.core.errors import Refused, RegrpoError

GIB = 2**30
WIDTH = 100
"""Columns of the terminal that findings are printed for."""
UNBROKEN = "\0"
"""Stands for a space at which no line is broken."""
TRAINED = ("sft", "grpo")
EXTRA = "pip install -c constraints.txt -e '.[cuda]'"


Level = Literal["wrong", "warning", "needed", "unchecked"]
TITLES: dict[Level, str] = {
    "wrong": "Wrong",
    "warning": "Warnings",
    "needed": "Needed on the machine that trains",
    "unchecked": "Not checked",
}


@dataclass(frozen=True)
class Finding:
    """Something about a key of the profile, why, and a value (or command) that would do.

    `level`: wrong (it will fail), warning, needed (on the target machine), unchecked (could not be
    known here).
    """

    level: Level
    key: str
    why: str
    would_do: str


Findings = Iterator[Finding]
Settings = Mapping[str, Any]
Sections = Mapping[str, Any]
"""The sections of a profile that parse, by name."""
wrong = partial(Finding, "wrong")
warning = partial(Finding, "warning")
needed = partial(Finding, "needed")
unchecked = partial(Finding, "unchecked")


def of_error(error: RegrpoError, level: Level | None = None) -> Finding:
    """An error as a finding, in one line; without a level, wrong or unchecked by its class."""
    why = short_message(f"expected {error.expected}; found {error.found}", 400)
    by_class: Level = "wrong" if isinstance(error, Refused) else "unchecked"
    return Finding(level or by_class, error.where, why, error.remedy.removesuffix("."))


def short_message(error: object, length: int = 200) -> str:
    """A library's message in one line of at most so many characters, without its full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    if len(text) > length:
        return f"{text[:length].rpartition(' ')[0]} …"
    return text.removesuffix(".")


def lines(findings: Iterable[Finding], level: Level) -> list[str]:
    """The findings of a level for a terminal, under their title. Returns [] if there are none."""
    text = []
    for one in findings:
        if one.level == level:
            text += item(f"{one.key}: {one.why}. Would do: {one.would_do}")
    return [TITLES[level], *text, ""] if text else []


def item(text: str) -> list[str]:
    """One entry of a list, wrapped."""
    return wrapped(text, "  - ")


def wrapped(text: str, first: str) -> list[str]:
    """Lines of at most WIDTH columns, the further ones as far in as `first`.

    What stands in backticks is one word, however long: a command is to be copied.
    """
    rest = " " * len(first)
    lines = textwrap.wrap(
        re.sub("`[^`]*`", lambda code: code[0].replace(" ", UNBROKEN), text),
        WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace(UNBROKEN, " ") for line in lines]


@dataclass(frozen=True)
class Target:
    """Where a profile is to run: the card's name, bytes of memory of one card, and how many.

    `gpus` is None for as many as the profile launches.
    """

    gpu: str
    memory: int
    gpus: int | None = None
    stated: bool = False
    """Whether the command line names a GPU: `device: auto` then means it."""
    here: bool = False
    """Whether this machine has it, so that what is missing is missing now."""
    taken: int = 0
    """Bytes that other processes hold of its memory; `memory` is what they leave."""

    def device(self, section: Any) -> Literal["cpu", "cuda"]:
        """The device that a section means on this target."""
        if section.device == "auto":
            return "cuda" if self.stated or self.here else "cpu"
        return "cuda" if section.device == "cuda" else "cpu"

    def is_used_by(self, sections: Iterable[Any]) -> bool:
        """Whether one of the sections runs on the GPU."""
        return any(self.device(one) == "cuda" for one in sections if hasattr(one, "device"))

    def processes(self, section: Any) -> int:
        """Processes that train together: what --gpus says, else what the profile launches."""
        return self.gpus or int(section.processes)


@dataclass(frozen=True)
class Trained:
    """A training stage whose settings its library accepts."""

    name: str
    section: Any
    """The stage's `Params`."""
    config: Any
    """TRL's configuration, built from it."""
    device: Literal["cpu", "cuda"]
    processes: int
    spread: str
    """How the model is spread: DDP, FSDP1, FSDP2 or ZeRO-<stage>."""

    @property
    def optimizer(self) -> str:
        return str(getattr(self.config.optim, "value", self.config.optim))

    @property
    def model_arguments(self) -> dict[str, Any]:
        return dict(self.config.model_init_kwargs or {})

    @property
    def uses_vllm(self) -> bool:
        return self.name == "grpo" and bool(self.config.use_vllm)


def size(text: str) -> int:
    """Bytes of "80GiB", "24 GB" or "80" (GiB). Raises Refused for anything else."""
    from pydantic import ByteSize, TypeAdapter, ValidationError

    # A bare number would be bytes to pydantic; nobody means bytes of a GPU.
    with_unit = f"{text}GiB" if text.strip().isdecimal() else text
    try:
        value = TypeAdapter(ByteSize).validate_python(with_unit)
    except ValidationError:
        value = ByteSize(0)
    # pydantic reads as far as it can: "1.2.3GB" is a byte to it.
    if value < 2**20:
        raise Refused(
            "--gpu-memory",
            expected="a size as 80GiB",
            found=text,
            remedy="Write a number and GiB or GB.",
        )
    return int(value)
