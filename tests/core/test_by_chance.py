"""Whatever a verifier, a profile or a text for people is given: a value, or an error of ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="of the extra dev")

from hypothesis import assume, example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from regrpo.core import text
from regrpo.core.answers.integers import parse_int
from regrpo.core.answers.protocol import Verifier
from regrpo.core.pipeline import parse_lock
from regrpo.core.profiles import STAGES, parse_section, parse_yaml, read_profile
from regrpo.core.verifiers import VERIFIERS
from stages import base_model, evaluate, grpo, model_card, prepare, select, sft, validate
from tests.support.chance import BY_CHANCE, damaged, json_values, read_or_refused, texts
from tests.support.projects import ROOT

PARAMS = {
    "prepare": prepare.Params,
    "base_model": base_model.Params,
    "validate": validate.Params,
    "sft": sft.Params,
    "select": select.Params,
    "grpo": grpo.Params,
    "evaluate": evaluate.Params,
    "model_card": model_card.Params,
}
DEFAULT = (ROOT / "params.yaml").read_bytes()
LOCK = (ROOT / "dvc.lock").read_bytes()
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table").enable("strikethrough")

INTEGERS = [VERIFIERS["exact_int"], VERIFIERS["final_number"]]
verifiers = pytest.mark.parametrize("verifier", INTEGERS, ids=lambda one: one.name)


@verifiers
@BY_CHANCE
@given(completion=texts, answer=st.one_of(st.none(), texts, st.integers().map(str)))
def test_no_completion_breaks_a_verifier_and_none_without_the_answer_scores(
    verifier: Verifier, completion: str, answer: str | None
) -> None:
    assert isinstance(verifier.is_formatted(completion), bool)
    score = verifier.score(completion, answer)
    assert score in (0.0, 1.0)
    if score:
        assert answer is not None
        gold = parse_int(answer)
        written = re.findall(r"[-+]?[0-9][0-9,]*", completion)
        assert gold in [int(number.replace(",", "")) for number in written if len(number) < 1000]


@verifiers
@BY_CHANCE
@given(answer=st.one_of(texts, st.integers().map(str), st.integers().map("{:,}".format)))
def test_a_gold_answer_that_can_be_parsed_scores_and_its_wrong_one_does_not(
    verifier: Verifier, answer: str
) -> None:
    assume(verifier.can_parse(answer))
    assert verifier.score(verifier.render(answer), answer) == 1
    assert verifier.is_formatted(verifier.render(answer.strip()))
    assert verifier.score(verifier.render(verifier.wrong(answer)), answer) == 0
    both = verifier.render(answer) + "\n" + verifier.render(verifier.wrong(answer))
    assert verifier.score(both, answer) == 0
    assert verifier.score("", answer) == 0


@BY_CHANCE
@given(written=texts, limit=st.integers(1, 40))
def test_text_of_others_controls_no_terminal(written: str, limit: int) -> None:
    shown = text.one_line(written, limit)
    assert len(shown) <= limit
    assert all(character.isprintable() for character in shown)
    lines = text.visible(written, limit)
    assert len(lines) <= limit
    assert all(character.isprintable() for character in lines.replace("\n", ""))
    shown.encode()
    lines.encode()


@BY_CHANCE
@given(written=texts)
@example(written="[a](javascript:x)")
@example(written="a\n\n# b")
def test_text_of_others_is_no_markup_on_the_card(written: str) -> None:
    paragraph = MARKDOWN.render(f"Source: {text.prose(written)} end")
    assert re.findall(r"<[^>]*>", paragraph) == ["<p>", "</p>"]
    cell = MARKDOWN.render(f"| a | b |\n|---|---|\n| {text.code(written)} | end |\n")
    assert re.sub(r"<code>.*?</code>", "", cell, flags=re.DOTALL).count("<td>") == 2
    assert not re.search(r"<(?!/?(?:table|thead|tbody|tr|th|td|code)\b)", cell)
    block = MARKDOWN.render(f"{text.fence(text.visible(written))}\n\nend\n")
    assert re.findall(r"<[^>]*>", block) == ["<pre>", "<code>", "</code>", "</pre>", "<p>", "</p>"]


@BY_CHANCE
@given(data=st.one_of(st.binary(max_size=60), texts.map(lambda t: t.encode(errors="replace"))))
def test_any_bytes_are_yaml_or_refused(data: bytes) -> None:
    with read_or_refused("x.yaml"):
        parse_yaml(data, "x.yaml")


@BY_CHANCE
@given(data=damaged(DEFAULT))
def test_a_damaged_profile_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(data)
    with read_or_refused(str(path)):
        profile = read_profile(path)
        for stage, params in PARAMS.items():
            parse_section(params, profile[stage], f"{path}: {stage}")


WHOLE = parse_yaml(DEFAULT, "params.yaml")


def test_the_stages_of_these_tests_are_all() -> None:
    assert set(PARAMS) == set(STAGES)


@BY_CHANCE
@given(
    stage=st.sampled_from(STAGES),
    key=st.integers(0, 30),
    unknown=texts,
    value=json_values,
    new=st.booleans(),
)
def test_a_section_with_any_value_is_parsed_or_refused(
    stage: str, key: int, unknown: str, value: Any, new: bool
) -> None:
    section = WHOLE[stage]
    name = unknown if new else list(section)[key % len(section)]
    with read_or_refused("mine.yaml"):
        parse_section(PARAMS[stage], section | {name: value}, "mine.yaml")


@BY_CHANCE
@given(section=json_values, stage=st.sampled_from(STAGES))
def test_a_section_that_is_anything_is_parsed_or_refused(section: Any, stage: str) -> None:
    with read_or_refused("mine.yaml"):
        parse_section(PARAMS[stage], section, "mine.yaml")


@BY_CHANCE
@given(data=st.one_of(st.binary(max_size=30), damaged(LOCK)))
def test_a_damaged_dvc_lock_is_read_or_named(data: bytes) -> None:
    with read_or_refused("dvc.lock"):
        parse_lock(data)
