"""Profiles: one YAML file with a section per stage, parsed whole, every key known by name."""

from __future__ import annotations

import copy
import functools
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from regrpo.core.errors import CannotCheck, Refused, parsing
from regrpo.core.files import Json
from regrpo.core.settings import Problem, Section

S = typing.TypeVar("S", bound=Section)
DEFAULT_PROFILE = Path("params.yaml")
STAGES = ("prepare", "base_model", "validate", "sft", "select", "grpo", "evaluate", "model_card")
"""The stages in running order; also the sections of a profile and the folders of reports/."""
SECTIONS = (*STAGES, "promote")
"""The sections of a profile: one per stage, and the rule of `regrpo promote`, which none reads."""

YAML_DEPTH = 50
"""Levels of nesting in a YAML file; ours have 7."""


class Limits(NamedTuple):
    """What a YAML file holds at most."""

    bytes: int
    values: int


BY_HAND = Limits(2**17, 50_000)
"""A profile or dvc.yaml; ours have 16,000 bytes."""
BY_DVC = Limits(2**24, 5_000_000)
"""dvc.lock, which repeats every section of the profile and names each dependency and output."""


def read_yaml(path: Path, limits: Limits = BY_HAND) -> Any:
    """A YAML file (see `parse_yaml`). Raises CannotCheck if there is none."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise CannotCheck(str(path), expected="a YAML file", found=found, remedy="Check the name.")
    return parse_yaml(path.read_bytes(), str(path), limits)


def parse_yaml(data: bytes, where: str, limits: Limits = BY_HAND) -> Any:
    """YAML 1.2, read as DVC reads it (`1e-4` is a number), safe types only.

    Raises Refused, which names `where`, if it is no such text, or one that takes long to read.
    """
    return copy.deepcopy(_parse(data, where, limits))


@functools.lru_cache(maxsize=32)
def _parse(data: bytes, where: str, limits: Limits) -> Any:
    """Kept: a profile takes 30 ms, dvc.lock 160, and a stage asks for the same text five times."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    with parsing(where, "YAML", "Mend the file."):
        if len(data) > limits.bytes:
            raise _too_much(where, f"{limits.bytes:,} bytes", f"{len(data):,}")
        text = data.decode("utf-8")
        yaml = YAML(typ="safe", pure=True)
        yaml.parser.get_event = _Bounded(yaml.parser.get_event, where, limits.values)
        try:
            content = yaml.load(text)
        except YAMLError as error:  # says the line and column on a line of its own
            raise ValueError(" ".join(str(error).split())[:300]) from error
        _require_numbers(content, where)
    return content


class _Bounded:
    """A parser's next event, before anything is made of it.

    Refuses nesting without end, and aliases (`*a`) that stand for more than a file may hold: a few
    lines of aliases of aliases are billions of values for whoever goes through them.
    """

    def __init__(self, next_event: Callable[[], Any], where: str, most: int) -> None:
        self.next_event = next_event
        self.where = where
        self.most = most
        self.sizes: dict[str, int] = {}
        self.open_nodes = [("", 0)]

    def __call__(self) -> Any:
        event = self.next_event()
        kind = type(event).__name__
        anchor = str(getattr(event, "anchor", None))
        if kind in ("MappingStartEvent", "SequenceStartEvent"):
            self.open_nodes.append((anchor, 1))
            if len(self.open_nodes) > YAML_DEPTH:
                raise _too_much(self.where, f"{YAML_DEPTH} levels of nesting", "more")
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            self._add(*self.open_nodes.pop())
        elif kind == "AliasEvent":
            if any(anchor == name for name, _ in self.open_nodes):
                found = f"*{anchor} in &{anchor}"
                raise _too_much(self.where, "one level of a value in itself", found)
            self._add(anchor, self.sizes.get(anchor, 1))
        elif kind == "ScalarEvent":
            self._add(anchor, 1)
        return event

    def _add(self, anchor: str, size: int) -> None:
        """Count a value, with all that is in it, to the one around it."""
        self.sizes[anchor] = size
        name, so_far = self.open_nodes[-1]
        self.open_nodes[-1] = (name, so_far + size)
        if so_far + size > self.most:
            found = f"{self.most:,} values, aliases (`*{anchor}`) included"
            raise _too_much(self.where, found, "more")


def _require_numbers(content: Any, where: str) -> None:
    """Refuse integers that no setting takes, and that Python does not even print."""
    left = [content]
    while left:
        one = left.pop()
        if isinstance(one, dict):
            left += one.keys()
            left += one.values()
        elif isinstance(one, list | set | tuple):
            left += one
        elif isinstance(one, int) and one.bit_length() > 64:
            raise _too_much(where, "integers of 64 bits", f"one of {one.bit_length():,}")


def _too_much(where: str, expected: str, found: str) -> Refused:
    return Refused(
        where, expected=f"YAML of at most {expected}", found=found, remedy="Shorten the file."
    )


def active_profile() -> Path:
    """The profile that params.yaml names (`profile:`); what `-S profile=…` changes."""
    content = read_yaml(DEFAULT_PROFILE)
    profile = content.get("profile") if isinstance(content, dict) else content
    if not isinstance(profile, str) or Path(profile).is_absolute() or ".." in Path(profile).parts:
        raise Refused(
            f"{DEFAULT_PROFILE}: profile",
            expected="the path of a profile inside the repository",
            found=repr(profile),
            remedy=f"Write `profile: {DEFAULT_PROFILE}` or one of profiles/.",
        )
    return Path(profile)


def read_profile(path: Path, needed: tuple[str, ...] = SECTIONS) -> Json:
    """A whole profile: a mapping of exactly SECTIONS (besides `profile:`), or of those `needed`.

    Raises Refused for a missing or unknown section.
    """
    profile = read_yaml(path)
    require_sections(profile, path, needed)
    return typing.cast("Json", profile)


def require_sections(profile: Any, path: Path, needed: tuple[str, ...] = SECTIONS) -> None:
    """Refuse what `read_profile` refuses."""
    found = set(profile) - {"profile"} if isinstance(profile, dict) else set()
    wrong = {
        "missing": sorted(set(needed) - found),
        "unknown": sorted(map(str, found - set(SECTIONS))),
    }
    named = [f"{what}: {', '.join(names)}" for what, names in wrong.items() if names]
    if named:
        raise Refused(
            str(path),
            expected=f"one section per stage, and promote ({', '.join(SECTIONS)})",
            found="; ".join(named),
            remedy="Start from a copy of params.yaml.",
        )


def parse_section(model: type[S], values: object, where: str) -> S:
    """A section as its `Params` model. Raises Refused that names every wrong key and why."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise Refused(
            where,
            expected="known keys with values of the right type and range",
            found="; ".join(map(str, find_problems(error))),
            remedy="Correct it in the profile (or in the -S argument).",
        ) from None


def find_problems(error: ValidationError) -> list[Problem]:
    """What a section refuses, one problem a key."""
    problems: list[Problem] = []
    for one in error.errors():
        problems += one["ctx"]["problems"]  # Section raises no other errors than `invalid`
    return problems
