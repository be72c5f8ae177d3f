"""Profiles: one YAML file with a section per stage, parsed whole, every key known by name."""

from __future__ import annotations

import re
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.settings import PassThrough, Problem, Section, nearest

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


def read_profile(path: Path, needed: tuple[str, ...] = SECTIONS) -> dict[str, Any]:
    """A whole profile: a mapping of exactly SECTIONS (besides `profile:`), or of those `needed`.

    Raises Refused for a missing or unknown section.
    """
    profile = read_yaml(path)
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
    return typing.cast("dict[str, Any]", profile)


def parse_section(model: type[S], values: object, where: str) -> S:
    """A section as its `Params` model. Raises Refused that names every wrong key and why."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise Refused(
            where,
            expected="known keys with values of the right type and range",
            found="; ".join(map(str, find_problems(model, values, error))),
            remedy="Correct it in the profile (or in the -S argument).",
        ) from None


def find_problems(model: type[Section], values: Any, error: ValidationError) -> list[Problem]:
    """What pydantic refuses of a section, one problem a key, in the words of a profile."""
    found: dict[str, Problem] = {}
    for one in error.errors():
        for problem in _problems(model, values, one):
            known = found.get(problem.key)
            found[problem.key] = _either(known, problem) if known else problem
    if issubclass(model, PassThrough) and isinstance(values, dict):
        # Its own validator does not run as long as one of our keys is wrong.
        extras = {key: value for key, value in values.items() if isinstance(key, str)}
        for problem in model.problems_of_extras(extras):
            found.setdefault(problem.key, problem)
    return list(found.values())


def _problems(model: type[Section], values: Any, one: Any) -> list[Problem]:
    """The problems of one of pydantic's errors."""
    path = _path(one, values)
    if one["type"] == "settings":  # raised by `invalid`: keys from the validated section on
        prefix = "".join(f"{part}." for part in path)
        return [
            Problem(f"{prefix}{key}".removesuffix("."), why, would_do)
            for key, why, would_do in one["ctx"]["problems"]
        ]
    key = ".".join(map(str, path))
    if one["type"] == "missing":
        return [Problem(key, "is missing")]
    if one["type"] == "extra_forbidden":
        owner = _owner(model, path, values)
        near = nearest(path[-1], owner.model_fields) or f"one of {', '.join(owner.model_fields)}"
        return [Problem(key, "unknown key", near)]
    if one["type"].startswith("union_tag"):
        context = one["ctx"]
        kinds = context.get("expected_tags", "the kinds that params.yaml names beside it")
        why = f"names none of the kinds; found {context.get('tag', 'none')!r}"
        return [Problem(f"{key}.kind", why, kinds.replace("'", ""))]
    return [Problem(key, _reason(one))]


def _path(one: Any, values: Any) -> list[Any]:
    """An error's keys and indices, without pydantic's names for the branches of a union."""
    path = []
    for part in one["loc"]:
        if (isinstance(values, dict) and part in values) or isinstance(values, list):
            values = values[part]
            path.append(part)
    if one["type"] == "missing":
        path.append(one["loc"][-1])
    return path


def _reason(one: Any) -> str:
    text = one["msg"].removeprefix("Value error, ")
    text = re.sub(r"a valid dictionary( or [\w ]+)?", "a mapping", text)
    text = text[0].lower() + text[1:]
    if one["type"] == "value_error" or isinstance(one["input"], (dict, list, BaseModel)):
        return text
    return f"{text}; found {one['input']!r}"


def _either(first: Problem, second: Problem) -> Problem:
    """What two branches of a union say of one value."""
    why, _, found = first.why.partition("; found ")
    other = second.why.partition("; found ")[0].removeprefix("input should be ")
    return Problem(first.key, f"{why} or {other}; found {found}", first.would_do)


def _owner(model: type[BaseModel], path: list[Any], values: Any) -> type[BaseModel]:
    """The model whose field the path's last part should be; sections lie in sections and lists."""
    for part in path[:-1]:
        values = values[part]
        field = model.model_fields.get(str(part))
        kind = values.get("kind") if isinstance(values, dict) else None
        for one in _models(field.annotation if field else None):
            kinds = one.model_fields.get("kind")
            if kinds is None or kind in typing.get_args(kinds.annotation):
                model = one
    return model


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections in an annotation, as in `dict[str, Classifier] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    inner: list[type[BaseModel]] = []
    for part in typing.get_args(annotation):
        inner += _models(part)
    return inner
