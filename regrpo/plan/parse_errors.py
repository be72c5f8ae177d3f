"""A section that does not parse.

Each wrong key as the profile writes it, why, and a value that would do.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from regrpo.core.library import library_class
from regrpo.core.profiles import DEFAULT_PROFILE, read_yaml
from regrpo.core.settings import PassThrough, nearest
from regrpo.plan.findings import Finding, wrong

Keys = list[Any]
"""Keys and indices from a section down to a value."""
WORDS = {
    "bool": "true or false",
    "int": "a whole number",
    "number": "a number",
    "float": "a number",
    "str": "text",
    "list": "a list",
    "dict": "a mapping",
}
LIMITS = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}
EXAMPLES = {"beta": "0.04"}
"""Where no shipped profile has one: Shao et al. 2024 (arXiv:2402.03300), section 4.2."""


def explain(
    stage: str, model: type[BaseModel], values: Any, error: ValidationError
) -> list[Finding]:
    """Each wrong key of a section, why, and a value that would do.

    The limit, the nearest name, or an example.
    """
    found: dict[str, list[Finding]] = {}
    for one in error.errors():
        for finding in _of(stage, model, values, one):
            found.setdefault(finding.key, []).append(finding)
    if issubclass(model, PassThrough) and isinstance(
        values, dict
    ):  # not looked at where a field of ours is wrong
        for key, value in values.items():
            if (
                isinstance(key, str)
                and key not in model.model_fields
                and (problem := model._problem(key, value))
            ):
                for finding in _of_validator(stage, model, [], problem, values):
                    found.setdefault(finding.key, [finding])
    return [_together(each) for each in found.values()]


def _together(branches: list[Finding]) -> Finding:
    """What the branches of a union say of one value, in one finding."""
    reasons = [
        one.why.partition("; found ")[0].removeprefix("input should be ") for one in branches[1:]
    ]
    why, found, given = branches[0].why.partition("; found ")
    return wrong(
        branches[0].key,
        " or ".join([why, *reasons]) + found + given,
        "; or ".join(dict.fromkeys(one.would_do for one in branches)),
    )


def _of(stage: str, model: type[BaseModel], values: Any, one: Any) -> Iterator[Finding]:
    path = _path(one, values)
    text = one["msg"].removeprefix("Value error, ")
    if one["type"] == "value_error":
        yield from _of_validator(stage, model, path, text, values)
        return
    if one["type"].startswith("union_tag"):
        path = [*path, "kind"]
    yield wrong(_key(stage, path), _reason(one, text), _instead(stage, model, path, one, values))


def _key(stage: str, path: Keys) -> str:
    return ".".join([stage, *map(str, path)])


def _path(one: Any, values: Any) -> Keys:
    """An error's place without pydantic's names for the branches of a union, which are no keys of a profile."""
    path: Keys = []
    for part in one["loc"]:
        if _has(values, part):
            values = values[part]
            path.append(part)
    return [*path, one["loc"][-1]] if one["type"] == "missing" else path


def _has(values: Any, part: Any) -> bool:
    if isinstance(values, list):
        return isinstance(part, int) and part < len(values)
    return isinstance(values, Mapping) and part in values


def _reason(one: Any, text: str) -> str:
    if one["type"] == "missing":
        return "is missing"
    if one["type"] == "extra_forbidden":
        return "is no key of this section"
    if one["type"].startswith("union_tag"):
        return f"names none of the kinds; found {one.get('ctx', {}).get('tag', 'none')!r}"
    text = re.sub(r"a valid dictionary( or [\w ]+)?", "a mapping", text)
    given = one.get("input")
    shown = "" if isinstance(given, dict | list | BaseModel) else f"; found {given!r}"
    return f"{text[0].lower()}{text[1:]}{shown}"


def _instead(stage: str, model: type[BaseModel], path: Keys, one: Any, values: Any) -> str:
    owner = _owner(model, path, values)
    context = one.get("ctx") or {}
    if one["type"] == "extra_forbidden":
        names = ", ".join(owner.model_fields)
        return nearest(path[-1], owner.model_fields) or (
            "leave it out" if owner is model else f"one of {names}"
        )
    for name in ("expected", "expected_tags"):
        if name in context:
            return str(context[name]).replace("'", "")
    field = owner.model_fields.get(str(path[-1])) if path else None
    words = next(
        (f"{words} {context[name]}" for name, words in LIMITS.items() if name in context), None
    )
    words = words or (f"what matches {context['pattern']}" if "pattern" in context else None)
    if one["type"] == "missing" and field:
        words = " or ".join(map(str, _literals(field.annotation))) or _in_words(
            str(field.annotation)
        )
    words = words or _in_words(one["type"]) or _in_words(one["msg"])
    example = _shipped(stage, path, values)
    if words or example:
        return ", ".join(filter(None, [words, example]))
    return (
        "leave it out" if field and not field.is_required() else f"what {DEFAULT_PROFILE} has there"
    )


def _owner(model: type[BaseModel], path: Keys, values: Any) -> type[BaseModel]:
    """The model whose field the path's last part is (or should be).

    Sections lie in sections, lists and mappings.
    """
    for part in path[:-1]:
        values = values[part]
        field = model.model_fields.get(str(part))
        inner = _models(field.annotation) if field else []
        if inner:
            kind = values.get("kind") if isinstance(values, Mapping) else None
            model = next((one for one in inner if kind in _kinds(one)), inner[0])
    return model


def _models(annotation: Any) -> list[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [one for part in typing.get_args(annotation) for one in _models(part)]


def _kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    return (
        typing.get_args(model.model_fields["kind"].annotation)
        if "kind" in model.model_fields
        else ()
    )


def _literals(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()


def _in_words(kind: str) -> str | None:
    """What a type asks for.

    An annotation, "input should be a valid boolean", or pydantic's code "float_type".
    """
    return next(
        (words for name, words in WORDS.items() if re.search(rf"(valid |\b){name}", kind)), None
    )


# --- what validators of whole sections say: they name their keys in backticks ---------------------


def _of_validator(
    stage: str, model: type[BaseModel], path: Keys, text: str, values: Any
) -> Iterator[Finding]:
    for part in re.split(r"; (?=`)", text):
        name = (re.match(r"`([\w.]+)`", part) or ["", ""])[1]
        steps = name.split(".") if name else []
        whole = [*path, *(steps[1:] if path and steps[:1] == path[-1:] else steps)]
        plain = (
            re.sub(r"^`[\w.]+`(, `[\w.]+`)*:? ?", "", part)
            .removesuffix("?)")
            .partition(" (did you mean")[0]
        )
        yield wrong(_key(stage, whole), plain, _whole(stage, model, whole, part, values))


def _whole(stage: str, model: type[BaseModel], path: Keys, text: str, values: Any) -> str:
    """A value for a key that a validator refuses, from what it says."""
    if near := re.search(r"did you mean `([\w.]+)`", text):
        return near[1]
    if completions := re.search(r"generated at once, (\d+)", text):
        return groups(int(completions[1]), int(re.findall(r"\d+", text)[0]))
    if multiple := re.search(r"\((\d+)\) must be a multiple of (\d+)", text):
        return str(-(-int(multiple[1]) // int(multiple[2])) * int(multiple[2]))
    if divides := re.search(r"\((\d+)\) must divide (\w+) \((\d+)", text):
        return f"{divides[2]}: {-(-int(divides[3]) // int(divides[1])) * int(divides[1])}"
    if needs := re.search(r"needs `(\w+)(: \w+)?`", text):
        return f"{needs[1]}{needs[2] or ': ' + (EXAMPLES.get(needs[1]) or _shipped(stage, [needs[1]], {}) or '…')}"
    if only := re.match(r"`[\w.]+`: (\d+) under", text):
        return only[1]
    if "set by regrpo" in text or "refused" in text or "neither ours" in text:
        return "leave it out"
    if example := _shipped(stage, path, values, (DEFAULT_PROFILE,)):
        return example
    if (default := library_default(model, str(path[-1]) if path else "")) is not None:
        return f"{in_yaml(default)} ({library_name(model)}'s own)"
    return _in_words(text) or ("leave it out" if _at(values, path) is not None else "name it")


def _at(values: Any, path: Keys) -> Any:
    for part in path:
        values = values[part] if _has(values, part) else None
    return values


def _shipped(
    stage: str, path: Keys, values: Any, profiles: tuple[Path, ...] | None = None
) -> str | None:
    """A shipped profile's value for a key, unless that is the one given.

    The default profile's first.
    """
    for profile in profiles or (DEFAULT_PROFILE, *sorted(Path("profiles").glob("*.yaml"))):
        value = _at(read_yaml(profile), [stage, *path]) if profile.exists() else None
        if value not in (None, _at(values, path)):
            shown = in_yaml(value)
            return f"{shown}, as in {profile}" if len(shown) <= 100 else f"as in {profile}"
    return None


def in_yaml(value: Any) -> str:
    """A value as a profile has it, in one line."""
    return (
        value
        if isinstance(value, str)
        else json.dumps(value, ensure_ascii=False, default=str).replace('"', "")
    )


def library_name(model: type[BaseModel]) -> str:
    """The name of the configuration class that a section passes its keys to."""
    return str(getattr(model, "library", "")).rpartition(":")[2]


def library_default(model: type[BaseModel], key: str) -> Any:
    """The library's own default for a key; None where there is none."""
    library = getattr(model, "library", None)
    for field in dataclasses.fields(library_class(library)) if library else ():
        if field.name == key and field.default is not dataclasses.MISSING:
            return field.default
    return None


def groups(at_once: int, near: int) -> str:
    """The group sizes next to what was asked for that divide the completions generated at once."""
    divisors = [n for n in range(2, at_once + 1) if at_once % n == 0]
    next_to = [
        max((n for n in divisors if n < near), default=None),
        min((n for n in divisors if n > near), default=None),
    ]
    return (
        " or ".join(str(n) for n in next_to if n)
        or f"none divides {at_once}: raise per_device_train_batch_size"
    )
