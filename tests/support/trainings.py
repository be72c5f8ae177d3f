"""What sft and grpo need to train in this process.

A section of the default profile, and a run that records nothing.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from regrpo.core import profiles
from tests.support.projects import MINIATURE, ROOT

PROFILE = profiles.read_profile(ROOT / "params.yaml")


def section(model: Any, name: str, **changes: Any) -> Any:
    return profiles.parse_section(
        model, {**PROFILE[name], **MINIATURE.get(name, {}), **changes}, name
    )


def run_for(values: Any, stage: str) -> Any:
    reports = Path("reports") / stage
    reports.mkdir(parents=True, exist_ok=True)
    folder = Path(".checkpoints") / stage
    return SimpleNamespace(
        params=values,
        reports=reports,
        log=lambda values, step: None,
        checkpoint_folder=lambda device: folder,
    )
