"""The sections of a profile; of one that does not parse, each wrong key and what would do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from regrpo.core.library import library_defaults
from regrpo.core.profiles import DEFAULT_PROFILE, find_problems, read_yaml
from regrpo.core.settings import MISSING, Section
from regrpo.plan.findings import Finding, short_message, wrong


def parse(
    values: Mapping[str, Any], models: Mapping[str, type[Section]]
) -> tuple[dict[str, Any], list[Finding]]:
    """The sections that parse, and what is wrong with the others that are there."""
    sections: dict[str, Any] = {}
    findings: list[Finding] = []
    for stage, model in models.items():
        if stage not in values:
            continue
        try:
            sections[stage] = model.model_validate(values[stage])
        except ValidationError as error:
            findings += explain(stage, model, values[stage], error)
        except (TypeError, AttributeError) as error:  # a validator met what it was not made for
            why = f"cannot be read: {short_message(error)}"
            findings.append(wrong(stage, why, "text for keys, and no null for a number"))
    return sections, findings


def explain(stage: str, model: type[Section], values: Any, error: ValidationError) -> list[Finding]:
    """Each wrong key of a section, why, and what would do: the nearest name, or an example."""
    findings = []
    for key, why, would_do in find_problems(error):
        path = key.split(".") if key else []
        path.insert(0, stage)
        would_do = would_do or _example(path, _at({stage: values}, path))
        would_do = would_do or _library_default(model, key)
        last = "add it" if why == MISSING else "leave it out"
        findings.append(wrong(".".join(path), why, would_do or last))
    return findings


def _example(path: list[str], given: Any) -> str:
    """The value of a shipped profile at a path, where that is another one than the given, or ""."""
    for profile in (DEFAULT_PROFILE, *sorted(Path("profiles").glob("*.yaml"))):
        value = _at(read_yaml(profile), path)
        # The profile that is checked may itself be a shipped one.
        if value not in (None, given):
            return f"{short_message(_in_yaml(value), 100)}, as in {profile}"
    return ""


def _at(values: Any, path: list[str]) -> Any:
    """The value at a path of keys. Returns None if there is none."""
    for part in path:
        if not isinstance(values, dict):
            return None
        values = values.get(part)
    return values


def _library_default(model: type[Section], key: str) -> str:
    """A library's own default for a key that passes through to it, with its name, or ""."""
    library = str(getattr(model, "library", ""))
    default = library_defaults(library).get(key) if library else None
    if default is None:
        return ""
    return f"{_in_yaml(default)} ({library.rpartition(':')[2]}'s own)"


def _in_yaml(value: Any) -> str:
    """A value as a profile has it, in one line."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str).replace('"', "")
