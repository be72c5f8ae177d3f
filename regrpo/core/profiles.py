"""Profiles: one YAML file with a section per stage, parsed whole, every key known by name."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.files import Json
from regrpo.core.settings import Problem, Section

S = typing.TypeVar("S", bound=Section)
DEFAULT_PROFILE = Path("params.yaml")
STAGES = ("prepare", "base_model", "validate", "sft", "grpo", "evaluate", "model_card")
"""The stages in running order; also the sections of a profile and the folders of reports/."""
SECTIONS = (*STAGES, "promote")
"""The sections of a profile: one per stage, and the rule of `regrpo promote`, which none reads."""


def read_yaml(path: Path) -> Any:
    """A YAML file (see `parse_yaml`). Raises CannotCheck if there is none."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise CannotCheck(str(path), expected="a YAML file", found=found, remedy="Check the name.")
    return parse_yaml(path.read_bytes(), str(path))


def parse_yaml(data: bytes, where: str) -> Any:
    """YAML 1.2, read as DVC reads it (`1e-4` is a number), safe types only.

    Raises Refused, which names `where`, if it is no such text.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return YAML(typ="safe").load(data.decode("utf-8"))
    except (YAMLError, ValueError) as error:
        raise Refused(
            where,
            expected="YAML",
            found=" ".join(str(error).split())[:300],
            remedy="Mend the file.",
        ) from error


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
