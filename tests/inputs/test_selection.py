"""Which questions go on to grpo: the band, its control, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from regrpo.core.errors import Refused
from regrpo.core.profiles import parse_section
from regrpo.inputs.selection import Selection, chosen, require_enough, summary

RATES = [0.0, 0.25, 1.0, 0.5, 0.0, 0.75, 1.0, 0.875, 0.2, 0.8]


def rows(count: int = len(RATES)) -> list[dict[str, Any]]:
    """Questions whose column `level` is low for the first half."""
    return [{"id": f"q{n}", "level": "low" if n < count / 2 else "high"} for n in range(count)]


def band(**changes: Any) -> Selection:
    return parse_section(Selection, {"seed": 0, "samples": 8} | changes, "select")


def test_the_questions_of_the_band_go_on_in_their_order_both_ends_included() -> None:
    assert chosen(rows(), RATES, band()) == [1, 3, 5, 8, 9]
    assert chosen(rows(), RATES, band(low=0.0, high=0.2)) == [0, 4, 8]
    assert chosen(rows(), RATES, band(low=0.0, high=1.0)) == list(range(10))


def test_the_control_holds_as_many_whatever_their_rates_are() -> None:
    draws = {tuple(chosen(rows(), RATES, band(choose="random", seed=n))) for n in range(20)}
    assert {len(draw) for draw in draws} == {5}
    assert len(draws) > 10, "another seed is another draw"
    assert set().union(*draws) == set(range(10)), "no question is left out by its rate"
    assert all(list(draw) == sorted(draw) for draw in draws)
    again = chosen(rows(), RATES, band(choose="random", seed=3))
    assert again == chosen(rows(), RATES, band(choose="random", seed=3))


def test_a_stratified_control_holds_as_many_of_each_value_as_the_band() -> None:
    every = rows()
    for seed in range(20):
        control = band(choose="random", seed=seed, stratify="level")
        levels = [every[place]["level"] for place in chosen(every, RATES, control)]
        assert (levels.count("low"), levels.count("high")) == (2, 3)


def test_the_shares_are_of_all_questions() -> None:
    assert summary(RATES, 5, band()) == {
        "questions": 10,
        "kept": 5,
        "always_right": 0.2,
        "always_wrong": 0.2,
        "inside": 0.5,
        "mean_pass_rate": 0.5375,
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"low": 0.9}, r"`low`: 0\.9 is above `high` \(0\.8\)"),
        ({"low": -0.1}, r"`low`: .*greater than or equal to 0; found -0\.1"),
        ({"high": 1.5}, r"`high`: .*less than or equal to 1; found 1\.5"),
        ({"samples": 1}, r"`samples`: 1 answers give no rate from 0\.2 to 0\.8 \(would do: 8"),
        ({"samples": -1}, r"`samples`: .*greater than or equal to 0"),
        ({"samples": 0, "choose": "random"}, r"`choose`: random needs `samples`"),
        ({"choose": "hard"}, r"`choose`: input should be 'band' or 'random'"),
    ],
)
def test_a_band_that_can_hold_nothing_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        band(**changes)


def test_one_answer_does_where_the_band_has_an_end_that_it_can_reach() -> None:
    assert chosen(rows(3), [0.0, 1.0, 0.0], band(samples=1, low=0.0, high=0.5)) == [0, 2]


def test_a_band_with_too_few_questions_is_refused_with_one_that_holds_enough() -> None:
    rates = [0.0] * 4 + [0.125] * 3 + [0.5] * 2 + [0.875] * 3 + [1.0] * 8
    require_enough(rates, 2, "a step takes 2", band())
    with pytest.raises(Refused) as refused:
        require_enough(rates, 6, "a step takes 6", band())
    assert str(refused.value) == (
        "select.low and select.high: expected a band that holds at least 6 questions (a step takes "
        "6); found 2 of 20 from 0.2 to 0.8 (8 are always right, 4 always wrong). low: 0.075, high: "
        "0.925 hold 8; or bring more data."
    )
    with pytest.raises(Refused, match=r"low: 0\.0, high: 1\.0 hold 20"):
        require_enough(rates, 9, "a step takes 9", band())
