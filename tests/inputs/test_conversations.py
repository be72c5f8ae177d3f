"""Chat turns: the shapes in which they come, the prompts they become, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from regrpo.core.errors import Refused
from regrpo.inputs.conversations import UnreadableRow, ask, turns_in
from tests.support.prepared import Rows, refusal, splits

SYSTEM = {"role": "system", "content": "Be brief."}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def asked(turns: Any, count: int = 20, **extra: Any) -> Rows:
    """Rows whose column `messages` is `turns` with {n} filled in."""
    rows = []
    for number in range(count):
        text = json.dumps(turns).replace("{n}", str(number))
        rows.append({"messages": json.loads(text), "answer": number} | extra)
    return rows


def prepared(rows: Rows, **changes: Any) -> Rows:
    """All splits' rows, read as chat."""
    found = splits(rows, columns={"question": "messages"}, prompt_style="chat", **changes)
    return [row for split in found.values() for row in split]


PARTS = [{"type": "text", "text": "Add "}, {"type": "text", "text": "1 to {n}."}]


@pytest.mark.parametrize(
    "turns",
    [
        [SYSTEM, user("Add 1 to {n}.")],
        json.dumps([SYSTEM, user("Add 1 to {n}.")]),
        str([SYSTEM, user("Add 1 to {n}.")]),
        [SYSTEM | {"name": None}, {"role": "user", "content": PARTS, "tool_calls": None}],
        [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "Add 1 to {n}."},
        ],
        [{"role": "developer", "content": "Be brief."}, user("Add 1 to {n}.")],
        {"role": ["system", "user"], "content": ["Be brief.", "Add 1 to {n}."]},
    ],
    ids=["list", "json", "python", "parts", "sharegpt", "developer", "columns"],
)
def test_a_conversation_is_a_prompt_whose_last_turn_is_the_question(turns: Any) -> None:
    for row in prepared(asked(turns)):
        question = f"Add 1 to {row['source_row']}."
        assert row["question"] == question
        assert row["prompt"] == [SYSTEM, user(question)]
        assert (row["answer"], row["solution"]) == (str(row["source_row"]), None)


def test_earlier_turns_stay_and_make_the_same_words_another_question() -> None:
    turns = [user("Take {n}."), assistant("Taken."), user("Add 1.")]
    rows = prepared(asked(turns))
    assert len({row["question"] for row in rows}) == len(rows) == 20
    row = rows[0]
    assert row["prompt"] == [user(f"Take {row['source_row']}."), *turns[1:]]
    assert row["question"] == (
        f"user: Take {row['source_row']}.\n\nassistant: Taken.\n\nuser: Add 1."
    )


def test_the_template_is_around_the_last_turn_and_the_rows_own_system_prompt_wins() -> None:
    changes = {"prompt_template": "Q: {question}", "system_prompt": "Think."}
    turns = [user("Take {n}."), assistant("{question}"), user("Add {question}.")]
    row = prepared(asked(turns), **changes)[0]
    assert row["prompt"] == [
        {"role": "system", "content": "Think."},
        user(f"Take {row['source_row']}."),
        assistant("{question}"),
        user("Q: Add {question}."),
    ]
    row = prepared(asked([SYSTEM, user("Take {n}.")]), **changes)[0]
    assert row["prompt"][0] == SYSTEM


def test_an_assistants_last_turn_is_the_solution_if_no_column_holds_one() -> None:
    turns = [user("Add 1 to {n}."), assistant("<answer>{n}</answer>")]
    row = prepared(asked(turns))[0]
    assert row["solution"] == f"<answer>{row['source_row']}</answer>"
    assert row["prompt"] == [user(f"Add 1 to {row['source_row']}.")]
    assert prepared(asked(turns, solution="own"))[0]["solution"] == "own"
    # TRL's prompt and completion
    completion = asked(turns[:1], solution=[assistant("completed")])
    assert prepared(completion)[0]["solution"] == "completed"


def test_a_gold_answer_inside_a_column_is_named_by_its_path() -> None:
    """As verl's data have it."""
    rows = asked([user("Add 1 to {n}.")], reward_model={"style": "rule", "ground_truth": "7"})
    columns = {"question": "messages", "answer": "reward_model.ground_truth"}
    found = splits(rows, columns=columns, prompt_style="chat")
    assert {row["answer"] for split in found.values() for row in split} == {"7"}
    message = refusal(rows, columns=columns | {"answer": "reward_model.truth"}, prompt_style="chat")
    assert "no reward_model.truth among messages, answer, reward_model" in message


@pytest.mark.parametrize(
    ("turns", "found"),
    [
        ([user("Add."), {"role": "tool", "content": "3"}], "a turn by 'tool'"),
        ([user("Add."), assistant("3"), SYSTEM], "chat turns that do not end with a user's"),
        ([SYSTEM], "chat turns that do not end with a user's"),
        ([assistant("Hello.")], "chat turns that do not end with a user's"),
        ([{"role": "user", "content": None}], "a turn by user without text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "a turn by user without text"),
        ([user("Add."), assistant("") | {"tool_calls": [{}]}], "a turn that calls tools"),
        ('[{"role": "user", "content": "cut', "text that begins as chat turns and is no JSON"),
    ],
)
def test_turns_that_cannot_be_taken_are_refused_with_how_to_flatten_them(
    turns: Any, found: str
) -> None:
    columns = {"question": "messages"}
    message = refusal([{"messages": turns}], columns=columns, prompt_style="chat")
    assert message.startswith("data/raw/train.jsonl, line 1: expected a row in format question_ans")
    assert f"found {found}" in message
    assert "Flatten it before: one text a row, as row['question'] = row['messages']" in message


def test_what_a_profile_lacks_for_conversations_is_named() -> None:
    rows = asked([user("Add 1 to {n}.")])
    assert "as {question: messages}" in refusal(rows, prompt_style="chat")
    assert "Set prepare.prompt_style: chat" in refusal(rows, columns={"question": "messages"})
    message = refusal(rows, format="gsm8k", columns={"question": "messages", "answer": "messages"})
    assert "Set prepare.format: question_answer, and prepare.columns" in message


def test_text_and_numbers_are_no_conversation() -> None:
    for value in (None, "user: Add 1.", 7, [], [1], ["text"], {"text": "a"}, '["role"]'):
        assert turns_in(value) is None
    with pytest.raises(UnreadableRow):
        ask([SYSTEM])
    with pytest.raises(Refused, match="holds dict instead of text"):
        splits([{"question": {"text": "a"}}])
