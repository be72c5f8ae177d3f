"""Each check: its fault is planted once, and named by check, split and row."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from regrpo.core.answers.integers import ExactInt
from regrpo.core.answers.protocol import NO_ROW
from regrpo.core.errors import Refused
from regrpo.core.text import one_line
from regrpo.core.verifiers import get_verifier
from regrpo.inputs import gate
from regrpo.inputs.checks import CHECKS, VERIFIED
from tests.support.splits import Splits, failed, row


def changed(split: str, index: int, **values: Any) -> Callable[[Splits], None]:
    return lambda splits: splits[split][index].update(values)


def asks(split: str, index: int, question: str, **extra: Any) -> Callable[[Splits], None]:
    def plant(splits: Splits) -> None:
        splits[split][index] = row(split, index, question, **extra)

    return plant


def good() -> Splits:
    """Fifteen rows a split; no two questions share their terms."""
    numbers = {"sft": 10, "train": 20, "dev": 30, "eval": 40}
    return {
        name: [row(name, i, f"{number}+{i}=") for i in range(15)]
        for name, number in numbers.items()
    }


FAULTS: dict[str, tuple[Callable[[Splits], None], dict[tuple[str, str], list[str]]]] = {
    "no id": (changed("train", 1, id=None), {("id_present", "train"): ["null"]}),
    "blank id": (changed("train", 2, id=" "), {("id_present", "train"): [" "]}),
    "id twice": (
        changed("train", 9, id="train-0"),
        {("id_unique", "train"): ["train-0", "train-0"]},
    ),
    "id in two splits": (
        changed("train", 3, id="eval-3"),
        {("id_disjoint", "train"): ["eval-3"], ("id_disjoint", "eval"): ["eval-3"]},
    ),
    "empty question": (asks("sft", 2, "  "), {("not_empty", "sft"): ["sft-2"]}),
    "null question": (changed("sft", 3, question=None), {("not_empty", "sft"): ["sft-3"]}),
    "empty prompt": (changed("sft", 4, prompt=""), {("not_empty", "sft"): ["sft-4"]}),
    "null prompt": (changed("sft", 9, prompt=None), {("not_empty", "sft"): ["sft-9"]}),
    "a prompt of 17 tokens": (
        changed("eval", 0, prompt="1" * 16),
        {("prompt_length", "eval"): ["eval-0"]},
    ),
    "a question twice": (
        asks("train", 10, "20+6="),
        {("question_unique", "train"): ["train-10", "train-6"]},
    ),
    "a question twice, spelled otherwise": (
        asks("train", 8, "２0+7="),
        {("question_unique_normalised", "train"): ["train-7", "train-8"]},
    ),
    "a variant in eval": (
        asks("eval", 9, "1+40="),
        {("class_unique", "eval"): ["eval-1", "eval-9"]},
    ),
    "a variant in train": (asks("train", 5, "4+20="), {}),
    "an eval question in train": (
        asks("train", 11, "40+2="),
        {("disjoint", "train"): ["train-11"], ("disjoint", "eval"): ["eval-2"]},
    ),
    "an eval question in sft, spelled otherwise": (
        asks("sft", 5, "４0+4="),
        {("disjoint_normalised", "sft"): ["sft-5"], ("disjoint_normalised", "eval"): ["eval-4"]},
    ),
    "a variant of a dev question in train": (
        asks("train", 12, "2+30="),
        {("disjoint_canonical", "train"): ["train-12"], ("disjoint_canonical", "dev"): ["dev-2"]},
    ),
    "a replacement character": (
        changed("dev", 1, prompt="30\ufffd1="),
        {("valid_unicode", "dev"): ["dev-1"]},
    ),
    "a noncharacter": (
        changed("dev", 9, prompt="\U0001ffff"),
        {("valid_unicode", "dev"): ["dev-9"]},
    ),
    "decomposed letters": (changed("dev", 3, prompt="e\u0301"), {("nfc", "dev"): ["dev-3"]}),
    "a carriage return": (
        changed("dev", 4, prompt="30+4=\r"),
        {("no_control_characters", "dev"): ["dev-4"]},
    ),
    "an escape sequence": (
        changed("dev", 10, id="\x1b[2J"),
        {("no_control_characters", "dev"): ["\x1b[2J"]},
    ),
    "newline and tab": (changed("dev", 5, prompt="30\t+5\n="), {}),
    "an answer in words": (
        changed("train", 13, answer="twenty"),
        {("answer_parses", "train"): ["train-13"]},
    ),
    "no answer": (changed("train", 4, answer=None), {("answer_parses", "train"): ["train-4"]}),
    "a solution that ends elsewhere": (
        changed("sft", 6, solution="<answer>5</answer>"),
        {("solution_scores_1", "sft"): ["sft-6"]},
    ),
    "no solution": (changed("sft", 7, solution=None), {}),
    "a prompt that holds its answer": (
        changed("train", 14, prompt="<answer>34</answer>"),
        {("echo_scores_0", "train"): ["train-14"]},
    ),
}
"""Each in rows of its own, so that all are planted at once: the gate takes a second a time."""


def test_planted_faults_are_named_by_check_split_and_row_and_nothing_else_is(
    check: Callable[..., gate.Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with a few rows looked at together as with all."""
    splits = good()
    expected: dict[tuple[str, str], list[str]] = {}
    for plant, named in FAULTS.values():
        plant(splits)
        for accused, ids in named.items():
            expected[accused] = sorted(expected.get(accused, []) + ids)
    verdict = check(splits)
    found = failed(verdict)
    assert {accused: sorted(ids) for accused, ids in found.items()} == expected
    assert verdict.as_json()["passed"] is False
    lines = verdict.message().splitlines()
    for (name, split), rows in found.items():
        (line,) = (
            line for line in lines if line.startswith(f"  {name} in {split}, {len(rows)} failed: ")
        )
        assert all(one_line(identity) in line for identity in rows)
        assert lines[lines.index(line) + 1].strip().removesuffix(".") == CHECKS[
            name
        ].remedy.removesuffix(".")
    kept = verdict.failure_table()
    assert list(kept.columns) == ["check", "split", "id", "value"]
    assert [f"{r.check} {r.split} {r.id}" for r in kept.itertuples()] == [
        f"{check} {split} {identity}" for (check, split), ids in found.items() for identity in ids
    ]
    monkeypatch.setattr(gate, "BATCH", 8)
    assert check(splits) == verdict


def test_a_split_of_fewer_rows_than_wanted_is_named_alone(
    check: Callable[..., gate.Verdict],
) -> None:
    verdict = check({"dev": good()["dev"][:2]})
    assert failed(verdict) == {("row_count", "dev"): ["dev"]}
    assert "  row_count in dev, 1 failed: " in verdict.message()


class Lenient(ExactInt):
    """The verifier's faults that the self-test is there to find."""

    fault = ""

    def score(self, completion: str, answer: str | None, row: Any = NO_ROW) -> float:
        numbers = re.findall(r"\d+", completion)
        return {
            "never": 0.0,
            "always": 1.0,
            "any number": float(bool(numbers)),
            "gold anywhere": float(answer in numbers),
            "first": float(numbers[:1] == [answer]),
            "the sum": float(
                completion.endswith("=") or self.extract(completion) == int(answer or 0)
            ),
        }[self.fault]


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("never", {"gold_scores_1", "solution_scores_1"}),
        ("always", {"wrong_scores_0", "empty_scores_0", "echo_scores_0", "contradiction_scores_0"}),
        ("any number", {"wrong_scores_0", "echo_scores_0", "contradiction_scores_0"}),
        ("gold anywhere", {"contradiction_scores_0"}),
        ("first", {"solution_scores_1", "contradiction_scores_0"}),
        ("the sum", {"echo_scores_0"}),
    ],
)
def test_a_verifier_that_pays_for_the_wrong_thing_is_refused_on_every_row(
    check: Callable[..., gate.Verdict], fault: str, found: set[str]
) -> None:
    train = [row("train", i, f"20+{i + 2}=") for i in range(4)]
    lenient = Lenient()
    lenient.fault = fault
    verdict = check({"train": train}, lenient)
    assert {one.check for one in verdict.failed} == found
    assert all(one.failed == 4 for one in verdict.failed)


OWN = """from regrpo.core.answers.protocol import NO_ROW, Verifier
class Own(Verifier):
    def parse(self, text, row=NO_ROW): return int(text) if text.isdecimal() else None
    def wrong(self, answer, row=NO_ROW): return str(int(answer) + 1)
"""


@pytest.mark.parametrize(
    ("method", "found"),
    [
        ("", set()),
        ("equal(self, gold, found): return gold >= found", {"wrong_scores_0"}),
        ("equal(self, gold, found): return gold <= found", {"wrong_scores_0"}),
        ("equal(self, gold, found): return True", {"wrong_scores_0"}),
        ("equal(self, gold, found): return False", None),
        (
            "wrong(self, answer, row=NO_ROW): return answer",
            {"wrong_scores_0", "contradiction_scores_0"},
        ),
        (
            "score(self, completion, answer, row=NO_ROW):\n"
            "        return completion.endswith('=') or super().score(completion, answer, row)",
            {"echo_scores_0"},
        ),
        (
            "extract(self, completion, row=NO_ROW):\n"
            "        return self.parse(completion.rpartition('<answer>')[2].partition('<')[0])",
            {"contradiction_scores_0"},
        ),
    ],
)
def test_a_verifier_of_ones_own_goes_through_the_same_self_test(
    check: Callable[..., gate.Verdict],
    custom: Callable[..., None],
    method: str,
    found: set[str] | None,
) -> None:
    custom(OWN + f"    def {method}\n" * bool(method), "verifiers")
    verifier = get_verifier("custom.verifiers:Own")
    train = [row("train", i, f"20+{i + 2}=") for i in range(4)]
    if found is None:
        with pytest.raises(Refused, match=r"Own, row train-0: expected wrong to give an answer th"):
            check({"train": train}, verifier)
        return
    verdict = check({"train": train}, verifier)
    assert {one.check for one in verdict.failed} == found
    assert all(one.failed == 4 for one in verdict.failed)


def test_a_verifier_of_ones_own_that_raises_ends_the_gate_with_its_name_and_the_row(
    check: Callable[..., gate.Verdict], custom: Callable[..., None]
) -> None:
    raising = OWN.replace("else None", "else (1 // (text != 'twenty')) and None")
    custom(raising, "verifiers")
    train = [row("train", i, f"20+{i}=") for i in range(4)]
    train[2]["solution"] = "<answer>twenty</answer>"
    with pytest.raises(Refused) as caught:
        check({"train": train}, get_verifier("custom.verifiers:Own"))
    assert str(caught.value) == (
        "prepare.verifier: custom.verifiers:Own, row train-2: expected extract to give a value, or "
        "None; found custom/verifiers.py, line 3: ZeroDivisionError: integer division or modulo by "
        "zero for '<answer>twenty</answer>'. Mend custom/verifiers.py and run `dvc repro` again."
    )


def test_without_a_verifier_its_checks_are_not_applicable_and_answers_may_be_null(
    check: Callable[..., gate.Verdict],
) -> None:
    splits = good()
    splits["train"][0] |= {"answer": None, "solution": None}
    verdict = check({"train": splits["train"]}, None)
    assert not verdict.failed
    names = {
        "answer_parses",
        *(name for name in CHECKS if CHECKS[name].holds.startswith("self-test")),
    }
    assert len(names) == 7
    assert names == set(VERIFIED) == set(verdict.as_json()["not_applicable"])
    assert not {one.check for one in verdict.outcomes} & names


def test_chat_prompts_are_counted_and_checked_as_messages(
    check: Callable[..., gate.Verdict],
) -> None:
    rows = [
        one | {"prompt": [{"role": "user", "content": one["prompt"]}]} for one in good()["train"]
    ]
    roomy = gate.Limits(prompt_tokens=30, rows=3)
    assert failed(check({"train": rows}, limits=roomy, chat=True)) == {}
    rows[0]["prompt"] = [
        {"role": "system", "content": "e\u0301"},
        {"role": "user", "content": "20+0="},
    ]
    rows[1]["prompt"][0]["content"] = " "
    rows[2]["prompt"][0]["content"] = "9" * 20
    rows[3]["prompt"] = []
    assert failed(check({"train": rows}, limits=roomy, chat=True)) == {
        ("not_empty", "train"): ["train-1", "train-3"],
        ("prompt_length", "train"): ["train-0", "train-2"],
        ("nfc", "train"): ["train-0"],
    }
