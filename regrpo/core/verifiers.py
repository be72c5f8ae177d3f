"""What a correct answer is, for the reward, the gate's self-test and our lm-eval tasks alike.

Verifiers by name; each kind of answer is a module of regrpo.core.answers, or a class of
custom/verifiers.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from regrpo.core.answers.choice import Choice
from regrpo.core.answers.exact_text import ExactText
from regrpo.core.answers.expression import Math
from regrpo.core.answers.integers import ExactInt, FinalNumber
from regrpo.core.answers.number import Number
from regrpo.core.answers.protocol import Verifier
from regrpo.core.answers.reasoning_gym import ReasoningGym
from regrpo.core.custom.guard import verifier_kind
from regrpo.core.errors import Refused, entry
from regrpo.core.profiles import parse_section

NONE = "none"
"""The verifier name of a dataset without verifiable answers."""
KINDS: dict[str, type[Verifier]] = {
    kind.name: kind
    for kind in (ExactInt, FinalNumber, Number, Math, Choice, ExactText, ReasoningGym)
}
VERIFIERS = {name: kind() for name, kind in KINDS.items()}
"""Each with its default settings."""
WHERE = "prepare.verifier"
OWN = "custom."
"""How the names of the user's verifiers and formats begin."""


def get_verifier(name: str, settings: Mapping[str, Any] | None = None) -> Verifier | None:
    """The verifier of a name with its settings, None for "none".

    `custom.verifiers:<Name>` is the user's class, which is imported. Raises Refused for an unknown
    name, for what is no verifier, and for settings that the verifier does not have; CannotCheck
    where a package that it needs is missing.
    """
    kind: type[Verifier] | None
    if name.startswith(OWN):
        kind = verifier_kind(name, WHERE)
    else:
        kind = entry(KINDS | {NONE: None}, name, WHERE, "custom/verifiers.py (docs/rewards.md)")
    if kind is None:
        if settings:
            raise Refused(
                f"{WHERE}_settings",
                expected="none beside verifier: none",
                found=", ".join(map(str, settings)),
                remedy="Take them out, or name a verifier.",
            )
        return None
    verifier = kind(parse_section(kind.Settings, dict(settings or {}), f"{WHERE}_settings"))
    verifier.require_packages()
    return verifier


def of_dataset(dataset: Mapping[str, Any]) -> Verifier | None:
    """The verifier that dataset.json names, as prepare wrote it."""
    return get_verifier(dataset["verifier"], dataset.get("verifier_settings"))


def label(dataset: Mapping[str, Any]) -> str:
    """A dataset's verifier in words: its name, what its settings change, and a user's code."""
    settings = dict(dataset.get("verifier_settings") or {})
    if code := dataset.get("verifier_code"):
        settings["code"] = code[:12]
    changed = ", ".join(f"{key}: {value}" for key, value in sorted(settings.items()))
    name: str = dataset["verifier"]
    return f"{name} ({changed})" if changed else name
