"""Reward functions by name, and the guard around them."""

import ast
import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.verifiers import VERIFIERS
from regrpo.train.rewards import Samples, get_reward, guarded, of_trl

EXACT = VERIFIERS["exact_int"]


def test_exact_answer_rewards_the_gold_answer_and_nothing_else() -> None:
    reward = get_reward("exact_answer", EXACT, 16)
    completions = [
        "<think>9</think><answer>2</answer>",
        "<answer>3</answer>",
        "2",
        "<answer>2</answer><answer>3</answer>",
        "",
    ]
    assert reward(completions=completions, answer=["2"] * 5) == [1.0, 0.0, 0.0, 0.0, 0.0]


def test_exact_answer_reads_chat_completions() -> None:
    reward = get_reward("exact_answer", EXACT, 16)
    assert reward(
        completions=[[{"role": "assistant", "content": "<answer>-4</answer>"}]], answer=["-4"]
    ) == [1.0]


def test_answer_format_asks_for_the_form_only() -> None:
    reward = get_reward("answer_format", EXACT, 16)
    completions = [
        "<think>9</think><answer>99</answer>",
        "well: <answer>2</answer>",
        "<answer>two</answer>",
    ]
    assert reward(completions=completions, answer=["2"] * 3) == [1.0, 0.0, 0.0]


def test_length_penalty_is_minus_the_share_of_the_limit() -> None:
    assert get_reward("length_penalty", None, 8)(
        completions=["a", "b"], completion_ids=[[1] * 2, [1] * 8]
    ) == [
        -0.25,
        -1.0,
    ]


def test_a_reward_of_trl_is_found_by_its_name() -> None:
    reward = get_reward("think_format_reward", None, 8)
    good, bad = "<think>\nhm\n</think>\n2", "2"
    assert reward(
        completions=[[{"role": "assistant", "content": text}] for text in (good, bad)]
    ) == [1.0, 0.0]


def test_no_reward_of_trl_is_offered_whose_score_a_clock_decides() -> None:
    offered = [name for name, limits in of_trl().items() if not limits]
    assert offered == ["think_format_reward"]
    for name in ("accuracy_reward", "reasoning_accuracy_reward"):
        with pytest.raises(
            Refused, match=rf"{name}.*parsing_timeout, timeout_seconds.*regrpo\[math"
        ):
            get_reward(name, EXACT, 16)


def test_no_reward_of_trl_that_is_offered_needs_a_package_of_its_own() -> None:
    needy = set()
    trl = importlib.util.find_spec("trl")
    assert trl
    assert trl.origin
    for source in Path(trl.origin).parent.glob("rewards/*.py"):
        for function in ast.parse(source.read_text()).body:
            if isinstance(function, ast.FunctionDef) and "_available()" in ast.unparse(function):
                needy.add(function.name)
    assert needy == {name for name, limits in of_trl().items() if limits}


@pytest.mark.parametrize(
    "name",
    [
        "exact",
        "get_cosine_scaled_reward",
        "parse",
        "os:system",
        "custom.rewards:nothing",
        "custom.nothing:f",
    ],
)
def test_an_unknown_reward_is_refused_by_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    with pytest.raises((Refused, CannotCheck), match=name.replace(".", r"\.")):
        get_reward(name, EXACT, 16)


def test_the_shipped_example_of_a_custom_reward_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    reward = get_reward("custom.rewards:short_thought", EXACT, 16)
    assert reward.__name__ == "short_thought"
    assert reward(
        completions=["<think>9</think>", "no thought", "<think>" + "9" * 30 + "</think>"]
    ) == [1.0, None, 0.0]


@pytest.mark.parametrize(
    ("values", "found"),
    [([1.0], "1 values"), ([1.0, math.nan], "nan"), ([1.0, math.inf], "inf"), ([1.0, "2"], "'2'")],
)
def test_a_reward_with_a_wrong_count_or_value_is_refused(values: list[float], found: str) -> None:
    with pytest.raises(Refused, match=f"mine.*found {found}"):
        guarded("mine", lambda completions, **_: values)(completions=["a", "b"])


def test_a_reward_that_raises_is_refused_with_its_own_message() -> None:
    def broken(completions: list[str], **_: object) -> list[float]:
        raise KeyError("anwser")

    with pytest.raises(Refused, match=r"custom\.rewards:broken.*KeyError: 'anwser'"):
        guarded("custom.rewards:broken", broken)(completions=["a"])


def test_none_means_not_applicable() -> None:
    assert guarded("mine", lambda completions, **_: [None, 1])(completions=["a", "b"]) == [
        None,
        1.0,
    ]


def test_a_reward_without_a_verifier_is_refused_where_one_is_needed() -> None:
    with pytest.raises(Refused, match="verifier none"):
        get_reward("exact_answer", None, 16)


def test_samples_keep_two_groups_with_the_weighted_reward() -> None:
    samples = Samples([1.0, 0.5], every=10, group=2)
    one, two = (
        guarded(name, lambda completions, v=value, **_: [v] * len(completions))
        for name, value in (("one", 1.0), ("two", -2.0))
    )
    batch = {
        "prompts": list("ppqqrr"),
        "completions": list("abcdef"),
        "answer": list("123456"),
        "id": list("uvwxyz"),
    }
    for step in (0, 5, 10):
        for function in samples.watching([one, two]):
            function(**batch, trainer_state=SimpleNamespace(global_step=step))
    frame = samples.frame()
    assert list(frame.columns) == [
        "step",
        "id",
        "prompt",
        "completion",
        "answer",
        "reward",
        "one",
        "two",
    ]
    assert frame["step"].tolist() == [0] * 4 + [10] * 4
    assert set(frame["reward"]) == {0.0}
    assert samples.prompts_seen == 9
