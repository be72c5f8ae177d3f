"""The four splits: what is left out, what is left in, and what is where."""

from __future__ import annotations

import pytest

from regrpo.inputs.formats import Format, get_format, normalise, words_only
from tests.support.prepared import Rows, ids, news, questions, refusal, splits


def by_class(rows: Rows, form: Format) -> set[str]:
    return {form.canonical(row["question"]) for row in rows}


def test_the_splits_share_no_class_hold_every_row_once_and_dev_and_eval_one_per_class() -> None:
    train = [
        {"question": f"{a}+{b}+{c}=", "answer": str(a + b + c)}
        for a in range(6)
        for b in range(6)
        for c in range(6)
    ]
    made = splits(train, format="chain_sum", eval=10, dev=5, sft=0.6)
    form = get_format("chain_sum")
    classes = {name: by_class(rows, form) for name, rows in made.items()}
    assert sum(map(len, classes.values())) == len(set().union(*classes.values())) == 56
    assert (
        (len(made["eval"]), len(made["dev"]))
        == (10, 5)
        == (len(classes["eval"]), len(classes["dev"]))
    )
    assert len(classes["sft"]) == round(0.6 * 41)
    every = [row["source_row"] for rows in made.values() for row in rows]
    assert len(every) == len(set(every))
    assert made == splits(train, format="chain_sum", eval=10, dev=5, sft=0.6)
    assert made != splits(train, format="chain_sum", eval=10, dev=5, sft=0.6, seed=2)


@pytest.mark.parametrize("seed", range(8))
def test_repeats_and_leaks_of_brought_data_reach_the_gate_wherever_they_are_put(seed: int) -> None:
    train = questions(20)
    train[3] |= {"id": "train-2"}
    train += [questions(20)[5], {"question": "WHAT IS 7 + 1?", "answer": "8"}]
    made = splits(train, questions(1) + questions(1), eval=2, dev=8, seed=seed)
    assert sum(map(len, made.values())) == 24
    assert sorted(made["eval"], key=str)[0]["question"] in [
        row["question"] for row in made["sft"] + made["train"] + made["dev"]
    ]
    made = splits(train, eval=8, dev=8, seed=seed)  # every row is in eval or dev as often as not
    assert ids([row for rows in made.values() for row in rows]).count("train-2") == 2
    asked = [normalise(row["question"]) for rows in made.values() for row in rows]
    assert asked.count("what is 5 + 1?") == asked.count("what is 7 + 1?") == 2


@pytest.mark.parametrize("seed", range(8))
def test_dropping_duplicates_keeps_the_first_of_each_and_no_variant_of_an_eval_question(
    seed: int,
) -> None:
    train = questions(20) + questions(5) + [{"question": "WHAT IS  7 + 1?", "answer": "8"}]
    made = splits(
        train,
        [*questions(2), {"question": "what is 1+1", "answer": "2"}],
        eval=2,
        drop_duplicates=True,
        seed=seed,
    )
    assert ids(made["eval"]) == ["eval-0", "eval-1"]
    rest = ids(made["sft"] + made["train"] + made["dev"])
    assert rest == sorted(f"train-{i}" for i in range(2, 20))


def test_rows_that_are_added_to_a_source_move_no_question_from_evaluation_to_training() -> None:
    before, after = (splits(questions(count), eval=40, dev=20) for count in (400, 404))
    trained = {
        name: set(ids(made["sft"] + made["train"]))
        for name, made in (("before", before), ("after", after))
    }
    assert not set(ids(before["eval"])) & trained["after"], "20 questions of dev lie between"
    assert len(set(ids(before["dev"])) & trained["after"]) <= 4, "no more than came"


def test_more_rows_than_are_held_at_once_are_split_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*questions(40), *questions(3)]
    expected = splits(rows, rows[:6])
    monkeypatch.setattr("regrpo.inputs.splits.BATCH", 7)
    assert splits(rows, rows[:6]) == expected


def test_a_question_of_evaluation_in_other_digits_is_dropped_from_training() -> None:
    made = splits(
        [*questions(20), {"question": "\uff11+2=", "answer": "3"}],
        [{"question": "1+2=", "answer": "3"}],
        eval=1,
        dev=2,
        drop_duplicates=True,
    )
    assert [
        row["question"]
        for rows in made.values()
        for row in rows
        if row["answer"] == "3" and "+2=" in row["question"]
    ] == ["1+2="]


def test_a_source_with_too_few_questions_for_the_profile_is_refused_with_the_numbers() -> None:
    assert "prepare.eval: expected a number of questions" in refusal(questions(20), eval=None)
    message = refusal(questions(8))
    assert message.startswith("prepare: expected at least 9 classes of questions")
    assert "found 8. Lower prepare.eval or prepare.dev" in message
    assert (
        "prepare.eval: expected at least 4 questions in the source's evaluation part; found 2"
        in refusal(
            questions(20), [{"question": "a", "answer": "1"}, {"question": "b", "answer": "1"}]
        )
    )
    assert "prepare.source.train: expected at least one row" in refusal([])
    assert len(splits(questions(9), sft=0.0)["sft"]) == 0
    assert [len(rows) for rows in splits(questions(9), sft=0.01).values()] == [1, 1, 3, 4]


def test_articles_that_differ_in_punctuation_alone_are_one_class() -> None:
    again = [
        one | {"id": f"{one['id']}-again", "text": one["text"].upper().replace(".", " !")}
        for one in news(20)
    ]
    found = splits([*news(20), *again], format="xlsum", drop_duplicates=True)
    classes = {name: {words_only(row["question"]) for row in rows} for name, rows in found.items()}
    assert not classes["eval"] & classes["train"]
    assert not classes["dev"] & (classes["train"] | classes["sft"] | classes["eval"])


def test_grpo_gets_no_more_prompts_than_asked_for() -> None:
    every, some = splits(questions(40))["train"], splits(questions(40), train=5)["train"]
    assert some == every[:5]
    assert len(every) > 5
