"""A section that does not parse: each wrong key, why, and a value that would do."""

from __future__ import annotations

import json
import typing
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from regrpo.core.library import library_defaults
from regrpo.core.profiles import DEFAULT_PROFILE, find_problems, read_yaml
from regrpo.core.settings import Section
from regrpo.plan.findings import Finding, wrong

LONGEST_EXAMPLE = 100
"""Characters; of a longer value only the profile is named."""


def explain(stage: str, model: type[Section], values: Any, error: ValidationError) -> list[Finding]:
    """Each wrong key of a section, why, and what would do: the nearest name, or an example."""
    findings = []
    for key, why, would_do in find_problems(model, values, error):
        path = key.split(".") if key else []
        would_do = would_do or _example(stage, model, path, values)
        findings.append(wrong(".".join([stage, *path]), why, would_do))
    return findings


def _example(stage: str, model: type[Section], path: list[str], values: Any) -> str:
    """A shipped profile's value for a key, else its default, else the values that its type names."""
    given = _at(values, path)
    for profile in (DEFAULT_PROFILE, *sorted(Path("profiles").glob("*.yaml"))):
        value = _at(read_yaml(profile), [stage, *path])
        if value not in (None, given):
            shown = in_yaml(value)
            named = f"as in {profile}"
            return f"{shown}, {named}" if len(shown) <= LONGEST_EXAMPLE else named
    field = model.model_fields.get(path[0]) if path else None
    if field is None:
        own = library_default(model, ".".join(path))
        return own or "leave it out"
    if len(path) > 1:
        return " or ".join(_literals(field.annotation, path[1])) or "leave it out"
    return f"what {DEFAULT_PROFILE} has there" if field.is_required() else "leave it out"


def _at(values: Any, path: list[str]) -> Any:
    """The value at a path of keys. Returns None if there is none."""
    for part in path:
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _literals(annotation: Any, name: str) -> list[str]:
    """The values that a field of a nested section may have, if its type lists them."""
    for section in typing.get_args(annotation):
        field = getattr(section, "model_fields", {}).get(name)
        if field and typing.get_origin(field.annotation) is typing.Literal:
            return list(map(str, typing.get_args(field.annotation)))
    return []


def in_yaml(value: Any) -> str:
    """A value as a profile has it, in one line."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str).replace('"', "")


def library_default(model: type[Section], key: str) -> str | None:
    """The default for a key of the library that a section passes through to, with its name."""
    library = str(getattr(model, "library", ""))
    default = library_defaults(library).get(key) if library else None
    if default is None:
        return None
    return f"{in_yaml(default)} ({library.rpartition(':')[2]}'s own)"
