"""Profiles: what is accepted, and how what is not is told."""

from pathlib import Path
from typing import Any

import pytest

from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.profiles import STAGES, parse_section, parse_yaml, read_profile, read_yaml
from stages import base_model, grpo, prepare, sft
from tests.support import hostile
from tests.support.projects import ROOT

PROFILE = read_profile(ROOT / "params.yaml")
JUDGE = {"path": "tox", "positive": ["ok"], "negative": ["bad"]}


def refusal(model: Any, values: dict[str, Any]) -> str:
    with pytest.raises(Refused) as caught:
        parse_section(model, values, "params.yaml: grpo")
    return str(caught.value)


def test_every_key_passed_through_by_the_profiles_is_taken_by_trl() -> None:
    from trl import GRPOConfig, SFTConfig

    params = parse_section(grpo.Params, PROFILE["grpo"], "grpo")
    assert (
        GRPOConfig(output_dir="unused", **params.trainer_settings("cpu")).max_completion_length
        == 14
    )
    params = parse_section(sft.Params, PROFILE["sft"], "sft")
    assert (
        SFTConfig(output_dir="unused", **params.trainer_settings("cpu")).max_steps
        == params.max_steps
    )


def test_a_misspelled_key_is_refused_with_the_nearest_known_one() -> None:
    assert "`lerning_rate`" in refusal(grpo.Params, {**PROFILE["grpo"], "lerning_rate": 1e-4})
    assert "would do: epsilon_high" in refusal(
        grpo.Params, {**PROFILE["grpo"], "epsilon_hihg": 0.3}
    )
    assert "`developement`: unknown key" in refusal(
        prepare.Params, {**PROFILE["prepare"], "developement": 3}
    )


def test_sft_reads_prompts_that_leave_room_for_the_answer() -> None:
    assert (
        parse_section(
            sft.Params, {**PROFILE["sft"], "max_prompt_tokens": 63}, "sft"
        ).max_prompt_tokens
        == 63
    )
    told = refusal(sft.Params, {**PROFILE["sft"], "max_prompt_tokens": 64})
    assert "`max_prompt_tokens`: must be below `max_length` (64)" in told


def test_a_key_that_regrpo_sets_itself_is_refused_with_the_reason() -> None:
    assert "`output_dir`: is set by regrpo: models/<stage>" in refusal(
        grpo.Params, {**PROFILE["grpo"], "output_dir": "/tmp"}
    )
    assert "never run" in refusal(sft.Params, {**PROFILE["sft"], "trust_remote_code": True})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("learning_rate", "fast", "`learning_rate`: input should be a valid number; found 'fast'"),
        ("learning_rate", -1.0, "`learning_rate`: input should be greater than 0; found -1.0"),
        ("max_steps", 2.5, "`max_steps`: input should be a valid integer"),
        ("num_generations", 1, "greater than or equal to 2"),
        ("epsilon", "small", "`epsilon`: input should be a valid number; found 'small'"),
        ("device", "tpu", "`device`: input should be 'auto', 'cpu' or 'cuda'; found 'tpu'"),
        (
            "num_generations",
            15,
            "`num_generations`: (15) must divide the completions generated at once, 256",
        ),
    ],
)
def test_a_wrong_type_range_or_division_is_told_by_key(key: str, value: object, words: str) -> None:
    assert words in refusal(grpo.Params, {**PROFILE["grpo"], key: value})


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("seed", -1, "greater than or equal to 0"),
        ("seed", 2**40, "less than 4294967296"),
        ("learning_rate", float("inf"), "finite number"),
        ("epsilon", float("nan"), "finite number"),
        ("save_only_model", True, "a resumed run must have everything"),
        ("logging_strategy", "epoch", "it would change what a step"),
        ("hub_token", "secret", "regrpo writes to the workspace only"),
        (
            "model_init_kwargs",
            {"config": {"trust_remote_code": True}},
            "code from a model repository is never run",
        ),
        ("reward_funcs", {"custom.a:reward": 1.0}, "reward is taken"),
        ("reward_funcs", {"custom.a:score": 1.0, "custom.b:score": 1.0}, "score is taken"),
    ],
)
def test_what_would_break_a_law_or_crash_later_is_refused_now(
    key: str, value: object, words: str
) -> None:
    assert words in refusal(grpo.Params, {**PROFILE["grpo"], key: value})


def test_every_unknown_key_is_told_at_once() -> None:
    said = refusal(grpo.Params, {**PROFILE["grpo"], "aaa": 1, "bbb": 2, "ccc": 3})
    assert all(f"`{key}`" in said for key in ("aaa", "bbb", "ccc"))


def test_a_misspelled_size_of_a_model_from_scratch_is_refused() -> None:
    source = PROFILE["base_model"]["source"]
    changed = {**source, "config": {**source["config"], "hiden_size": 64}}
    assert "hiden_size" in refusal(base_model.Params, {**PROFILE["base_model"], "source": changed})


def test_a_params_file_that_is_no_mapping_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regrpo.core.profiles import active_profile

    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("- a list\n")
    with pytest.raises(Refused, match="expected the path of a profile"):
        active_profile()


def test_curriculum_shares_must_add_up() -> None:
    assert "must add up to 1" in refusal(
        sft.Params, {**PROFILE["sft"], "curriculum": [{"share": 0.5, "worked": 1.0}]}
    )


def test_scientific_notation_is_a_number_as_dvc_reads_it(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("rate: 1e-4\n")
    assert read_yaml(tmp_path / "p.yaml") == {"rate": 1e-4}


def test_a_missing_or_unknown_section_is_named(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text().replace("\ngrpo:", "\ngrop:")
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(Refused, match=r"missing: grpo; unknown: grop"):
        read_profile(tmp_path / "p.yaml")
    text = (ROOT / "params.yaml").read_text().replace("\npromote:", "\npromot:")
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(Refused, match=r"missing: promote; unknown: promot"):
        read_profile(tmp_path / "p.yaml")


def test_a_profile_of_a_commit_before_the_rule_of_promotion_can_still_be_read(
    tmp_path: Path,
) -> None:
    text = (ROOT / "params.yaml").read_text()
    (tmp_path / "p.yaml").write_text(text[: text.index("\npromote:")])
    assert set(STAGES) <= set(read_profile(tmp_path / "p.yaml", needed=STAGES))
    with pytest.raises(Refused, match="missing: promote"):
        read_profile(tmp_path / "p.yaml")


def test_a_profile_that_is_not_there_or_no_yaml_is_told(tmp_path: Path) -> None:
    with pytest.raises(CannotCheck, match="no such file"):
        read_profile(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1\n")
    with pytest.raises(Refused, match="expected YAML"):
        read_profile(tmp_path / "bad.yaml")


def test_yaml_makes_no_python_objects(tmp_path: Path) -> None:
    (tmp_path / "evil.yaml").write_text("a: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(Refused):
        read_yaml(tmp_path / "evil.yaml")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classifiers": {"tox": JUDGE}}, "`classifiers`: tox has no weight in `reward_funcs`"),
        (
            {"classifiers": {"exact_answer": JUDGE}},
            "`classifiers`: exact_answer is a reward of ours",
        ),
        ({"classifiers": {"Tox!": JUDGE}, "reward_funcs": {"Tox!": 1.0}}, "`classifiers.Tox!"),
        (
            {"classifiers": {"reward": JUDGE}, "reward_funcs": {"reward": 1.0}},
            "`reward_funcs`: reward is taken",
        ),
        (
            {"classifiers": {"tox": JUDGE | {"label": "x"}}, "reward_funcs": {"tox": 1.0}},
            "unknown key",
        ),
    ],
)
def test_a_classifier_has_a_name_of_its_own_and_a_weight(
    changes: dict[str, Any], words: str
) -> None:
    assert words in refusal(grpo.Params, PROFILE["grpo"] | changes)


def aliases(form: str, levels: int = 9) -> bytes:
    """Nine aliases of nine aliases of …: 9⁹ values in a few lines."""
    lines = ["a0: &a0 {x: 1}" if form == "<<" else "a0: &a0 [x, x, x]"]
    for level in range(1, levels):
        before = ", ".join([f"*a{level - 1}"] * 9)
        inner = f"{{<<: [{before}]}}" if form == "<<" else f"[{before}]"
        lines.append(f"a{level}: &a{level} {inner}")
    return "\n".join(lines).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (aliases("list"), "at most 50,000 values, aliases"),
        (aliases("<<"), "at most 50,000 values, aliases"),
        (b"a: &a [*a]", "one level of a value in itself; found *a in &a"),
        (b"a: " + b"[" * 3000, "50 levels of nesting"),
        (b"a: " + b"{a: " * 3000, "50 levels of nesting"),
        (b"- " * 60_000, "50 levels of nesting"),
        (b"[" * 1_000_000, "131,072 bytes; found 1,000,000"),
        (b"a: 0x" + b"f" * 100_000, "integers of 64 bits; found one of 400,000"),
        (b"a: " + b"9" * 100_000, "found Exceeds the limit (4300 digits)"),
        (b"? 99999999999999999999\n: 1", "integers of 64 bits"),
        (b"a: !" + b"!" * 50_000, "expected YAML; found"),
        (b"a: " + b"&a " * 40_000, "expected YAML; found"),
        (b'a: "\\e]0;pwned\\a', "expected YAML; found"),
        (b"\xff\xfe", "can't decode byte 0xff"),
    ],
    ids=lambda part: str(part[:25]),
)
def test_yaml_that_would_take_long_is_refused_at_once_in_a_short_line(
    content: bytes, message: str
) -> None:
    said = hostile.ended(lambda: parse_yaml(content, "profiles/x.yaml"), 5, 2**29)
    assert said.startswith("profiles/x.yaml: expected YAML")
    assert message in said
    assert len(said) < 1000
    assert "\n" not in said


def test_aliases_that_stand_for_little_are_read_and_count_each_time() -> None:
    content = b"a: &a {x: 1}\nb: *a\nc: &c [*a, *a]\nd: {<<: *a, y: *c}\n"
    assert parse_yaml(content, "x.yaml")["d"] == {"x": 1, "y": [{"x": 1}, {"x": 1}]}


def test_of_thousands_of_wrong_keys_the_first_are_named() -> None:
    wrong = {f"key_{number}": number for number in range(5000)}
    for model in (sft.Params, prepare.Params):
        message = refusal(model, wrong)
        assert "`key_0`: " in message
        assert "`key_30`" not in message
        assert len(message) < 5000
