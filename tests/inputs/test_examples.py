"""From a source's rows to examples and prompts: what is read, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from regrpo.core.errors import Refused
from tests.support import stand_ins
from tests.support.prepared import news, params, questions, refusal, splits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dev": 0}, "`dev`: input should be greater than 0; found 0"),
        ({"sft": 1.0}, "`sft`: input should be less than 1"),
        ({"eval": "many"}, "`eval`: input should be a valid integer"),
        ({"drop_duplicate": True}, "would do: drop_duplicates"),
        ({"prompt_template": "Question:"}, "`prompt_template`"),
        (
            {"prompt_template": "{question} {question}", "max_prompt_tokens": 9},
            "must hold {question} once",
        ),
        ({"columns": {"questoin": "q"}}, "questoin"),
        ({"source": {"kind": "ftp"}}, "`source.kind`"),
    ],
)
def test_a_wrong_parameter_is_refused_by_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused) as caught:
        params(**changes)
    assert message in str(caught.value)
    assert str(caught.value).startswith("params.yaml: prepare: ")


@pytest.mark.parametrize(
    ("row", "form", "parts"),
    [
        (
            {"prompt": "1 + 1?", "gold": "2"},
            "question_answer",
            ["no question among prompt, gold", "prepare.columns"],
        ),
        (
            {"question": "1+1="},
            "gsm8k",
            ["columns question, answer (format gsm8k)", "no answer among question"],
        ),
        (
            {"question": None},
            "question_answer",
            ["column question holds null instead of text", "Mend the row"],
        ),
        ({"question": 7}, "question_answer", ["column question holds int instead of text"]),
        (
            {"question": "a", "answer": [1]},
            "question_answer",
            ["column answer holds list instead of text"],
        ),
        ({"question": "a\ud800"}, "question_answer", ["surrogates not allowed", "Mend the row"]),
        (
            {"question": "a", "id": "\udfff"},
            "question_answer",
            ["surrogates not allowed", "Mend the row"],
        ),
        ({"question": "four + 5", "answer": "9"}, "chain_sum", ["not a chain of sums: 'four + 5'"]),
        ({"question": "4+5-7=", "answer": "3"}, "chain_sum", ["answer 3, but 4+5-7= is 2"]),
    ],
)
def test_a_row_that_the_format_cannot_read_is_refused_by_file_and_line(
    row: Any, form: str, parts: list[str]
) -> None:
    good = {"question": "1+1=", "answer": "2"}
    message = refusal([good, row], format=form)
    assert message.startswith("data/raw/train.jsonl, line 2: expected ")
    assert [part for part in parts if part not in message] == [], message


def test_columns_of_another_name_are_mapped_and_a_mapped_column_must_be_there() -> None:
    rows = [
        {"nr": i, "q": row["question"], "gold": i + 1, "answer": "not this"}
        for i, row in enumerate(questions(20))
    ]
    mapping = {"id": "nr", "question": "q", "answer": "gold"}
    made = [row for rows in splits(rows, columns=mapping).values() for row in rows]
    assert sorted((int(row["id"]), row["answer"]) for row in made) == [
        (i, str(i + 1)) for i in range(20)
    ]
    message = refusal(rows, columns=mapping | {"solution": "working"})
    assert "line 1" in message
    assert "no working among nr, q, gold, answer" in message


def test_a_prompt_is_text_from_the_template_or_messages_and_the_question_is_never_a_template() -> (
    None
):
    rows = [{"question": f"{{question}} {{0}} %s {i}", "answer": "1"} for i in range(20)]
    made = splits(rows, prompt_template="Q: {question}\nA: ")["train"][0]
    assert made["prompt"] == f"Q: {made['question']}\nA: "
    made = splits(rows, prompt_style="chat", system_prompt="Be brief.")["train"][0]
    assert made["prompt"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": made["question"]},
    ]
    assert "prepare.system_prompt: expected no system prompt" in refusal(
        rows, system_prompt="Be brief."
    )


def test_an_article_is_the_question_and_its_summary_the_reference() -> None:
    template = "Summarise:\n{question}\nSummary:"
    found = splits(news(30), format="xlsum", prompt_template=template)
    row = found["train"][0]
    source = next(one for one in news(30) if one["id"] == row["id"])
    assert (row["question"], row["answer"], row["solution"]) == (
        source["text"],
        source["summary"],
        source["summary"],
    )
    assert row["prompt"] == f"Summarise:\n{source['text']}\nSummary:"


def test_an_article_is_text_and_nothing_in_it_is_filled_in_or_run() -> None:
    text = "{question} {summary} {0.__class__} %s ${HOME} {{ 7 * 7 }}"
    rows = [one | {"text": f"{text} {index}"} for index, one in enumerate(news(20))]
    found = splits(rows, format="xlsum", prompt_template="{title}: {question}")
    assert all(row["prompt"] == "{title}: " + row["question"] for row in found["train"])
    assert all(row["question"].startswith(text) for row in found["train"])


def test_a_row_without_its_summary_is_refused_by_its_place() -> None:
    told = refusal([*news(5), stand_ins.xlsum_row(5) | {"summary": None}], format="xlsum")
    assert told.startswith(
        "data/raw/train.jsonl, line 6: expected a row in format xlsum; found column summary holds"
    )


def test_cells_that_are_too_long_are_refused_with_their_rows() -> None:
    rows = questions(30)
    for number in (3, 7, *range(9, 30)):
        rows[number] |= {"question": "x" * 51, "unread": "y" * 1000}
    message = refusal(rows, max_cell_characters=50)
    assert message.startswith(
        "prepare.max_cell_characters: expected at most 50 characters in a cell; found "
        "data/raw/train.jsonl, line 4: question of 51, data/raw/train.jsonl, line 8: question"
    )
    assert "line 27" in message
    assert "line 28" not in message
    assert message.endswith("Shorten or remove them, or raise it.")


def test_a_cell_counts_with_all_that_it_holds_and_an_unread_one_not_at_all() -> None:
    turns = [{"role": "user", "content": "x" * 20}, {"role": "assistant", "content": "y" * 20}]
    rows = [{"inner": {"q": turns}, "unread": "z" * 1000}] * 30
    columns = {"question": "inner.q"}
    message = refusal(rows, columns=columns, prompt_style="chat", max_cell_characters=60)
    assert "line 1: inner of 76" in message
    with pytest.raises(Refused, match="classes of questions"):
        splits(rows, columns=columns, prompt_style="chat", max_cell_characters=76)
