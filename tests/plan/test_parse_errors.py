"""A section that does not parse: key, reason, and an example."""

from __future__ import annotations

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from regrpo.commands import plan as command
from tests.support.plans import HERE
from tests.support.projects import edit_yaml


@pytest.mark.parametrize("section", ["sft", "grpo", "prepare"])
def test_a_section_that_is_none_is_told_as_that(here: Path, section: str) -> None:
    profile = YAML(typ="safe").load((here / "params.yaml").read_text())
    with (here / "mine.yaml").open("w") as f:
        YAML(typ="safe").dump(profile | {section: None}, f)
    found = [
        one for one in command.make(Path("mine.yaml"), HERE)["findings"] if one["level"] == "wrong"
    ]
    (one,) = found
    assert (one["key"], one["why"]) == (section, "input should be a mapping; found None")
    assert one["would_do"].endswith("as in params.yaml")


def test_the_default_profile_is_no_example_for_what_is_wrong_in_itself(here: Path) -> None:
    edit_yaml(here / "params.yaml", {"sft": {"learning_rate": "fast"}})
    (wrong,) = [
        one
        for one in command.make(Path("params.yaml"), HERE)["findings"]
        if one["level"] == "wrong"
    ]
    assert wrong["would_do"] == "0.0002, as in profiles/gemma-3-1b-pt.yaml"


def test_a_key_that_is_missing_is_told_with_the_default_profiles_value(here: Path) -> None:
    yaml = YAML()
    profile = yaml.load((here / "params.yaml").read_text())
    steps = profile["sft"].pop("max_steps")
    with (here / "mine.yaml").open("w") as f:
        yaml.dump(profile, f)
    told = command.make(Path("mine.yaml"), HERE)
    assert told["findings"][0] | {"level": "wrong"} == {
        "level": "wrong",
        "key": "sft.max_steps",
        "why": "is missing",
        "would_do": f"{steps}, as in params.yaml",
    }
