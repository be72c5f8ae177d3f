"""The card as a release has it, from the real template, and licences."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from regrpo.release.handover import license_conflict, license_text, notice, release_card
from tests.support.cards import records, reports, the_card

__all__ = ["reports"]
ABOUT: dict[str, Any] = {
    "repo_id": None,
    "packages": {"transformers": "5.23.0", "torch": "2.13.0"},
    "adapter": False,
    "profile": "params.yaml",
    "audit": {"verdict": "complete", "findings": []},
}


def test_the_real_card_points_into_the_folder(reports: Path) -> None:
    card = release_card(the_card(), ABOUT)
    assert "`pip install torch==2.13.0 transformers==5.23.0`" in card
    assert 'model="."' in card
    links = [link for link in re.findall(r"\]\(([^)]+)\)", card) if "://" not in link]
    assert links == ["reports/evaluate/comparison.png", "reports/grpo/curves.png"]
    assert card.index("## This folder") < card.index("## Lineage")


def test_an_adapter_is_named_where_it_lies(reports: Path) -> None:
    records(grpo={"lora": {"r": 4}})
    card = release_card(the_card(), ABOUT | {"adapter": True})
    assert "the adapter itself is `adapter`" in card
    assert "in `adapter/`" in card


def test_findings_of_the_audit_stand_before_the_quick_start_and_are_no_markup(
    reports: Path,
) -> None:
    audit = {"verdict": "broken", "findings": ["code, sft: <b>*uncommitted*"]}
    card = release_card(the_card(), ABOUT | {"audit": audit})
    assert card.index("(broken, 1 finding)") < card.index("## Quick start")
    assert r"- code, sft: &lt;b&gt;\*uncommitted\*" in card


@pytest.mark.parametrize(
    ("model", "base", "is_warned"),
    [
        ("apache-2.0", "gemma", True),
        ("mit", "llama3.2", True),
        ("gemma", "gemma", False),
        ("Apache-2.0", "apache-2.0", False),
        ("cc-by-4.0", "MIT", False),
    ],
)
def test_a_licence_that_the_bases_may_not_allow_is_warned_of_by_both_names(
    model: str, base: str, is_warned: bool
) -> None:
    warning = license_conflict(model, base)
    assert (warning is not None) == is_warned
    if warning:
        assert model in warning
        assert base in warning


def test_notice_names_base_and_data_and_holds_no_other_lines() -> None:
    model = {"model_name": "sums", "author": "me", "license": "apache-2.0"}
    base = {
        "source": "folder",
        "published_as": "google/gemma",
        "revision": "a1",
        "license": "gemma",
    }
    dataset = {"source": "file\nLicence: MIT", "revision": "b2", "license": "CC-BY-4.0"}
    said = notice(model, base, dataset)
    assert "google/gemma, revision a1. Licence: gemma." in said
    assert "file Licence: MIT, revision b2. Licence: CC-BY-4.0." in said
    assert "may not allow the other name" in said


def test_a_licence_without_its_text_is_named_with_a_place() -> None:
    assert license_text("apache-2.0", "Apache License\n…") == "Apache License\n…"
    assert "licensed under: gemma" in license_text("gemma", "Apache License")
