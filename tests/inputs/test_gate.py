"""The gate: each fault planted once, and named by check, split and row."""

import dataclasses
import json
import random
import re
import shutil
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regrpo.core import files
from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.tokenizers import character_tokenizer
from regrpo.core.verifiers import VERIFIERS, Verifier
from regrpo.inputs import expectations, gate, scratch_db
from regrpo.inputs.checks import CHECKS, VERIFIED, Prompt
from regrpo.inputs.duplicates import CHAINS, Repeats, spellings
from regrpo.inputs.formats import get_format
from stages import validate
from tests.support.projects import run

Rows = list[dict[str, Any]]
Splits = dict[str, Rows]
CANONICAL = get_format("chain_sum").canonical
EXACT = VERIFIERS["exact_int"]
LIMITS = gate.Limits(prompt_tokens=16, rows=3)
HOSTILE = '\x1b[31m\u202e{{ 7*7 }}<b>"><script>alert(1)</script><img src=x onerror=alert(1)>&lt;'


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the gate needs of a base model: tokenizer and window."""
    folder = tmp_path_factory.mktemp("base")
    character_tokenizer(["<answer>", "</answer>"]).save_pretrained(folder)
    (folder / "config.json").write_text('{"max_position_embeddings": 64}')
    return folder


@pytest.fixture(scope="module")
def count(base: Path) -> Callable[[Sequence[Prompt]], list[int]]:
    return validate.token_counter(base)


def row(split: str, index: int, question: str, **extra: Any) -> dict[str, Any]:
    total = str(eval(question.rstrip("="))) if re.fullmatch(r"[-+0-9]+=", question) else "1"
    made = {
        "id": f"{split}-{index}",
        "prompt": question,
        "question": question,
        "answer": total,
        "source_row": index,
    }
    return made | {"solution": f"<think>1</think><answer>{total}</answer>"} | extra


def good() -> Splits:
    """Four rows a split; no two questions share their terms."""
    names = ("sft", "train", "dev", "eval")
    return {
        name: [row(name, i, f"{number}+{i}=") for i in range(4)]
        for number, name in zip((10, 20, 30, 40), names, strict=True)
    }


def table(rows: Rows, chat: bool = False) -> pa.Table:
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    columns: dict[str, pa.DataType] = dict.fromkeys(
        ("id", "prompt", "question", "answer", "solution"), pa.string()
    )
    columns |= {"source_row": pa.int64()} | ({"prompt": pa.list_(message)} if chat else {})
    return pa.Table.from_pylist(rows, schema=pa.schema(list(columns.items())))


@pytest.fixture(scope="module")
def check(count: Callable[..., list[int]]) -> Callable[..., gate.Verdict]:
    def run_gate(
        splits: Splits,
        verifier: Verifier | None = EXACT,
        limits: gate.Limits = LIMITS,
        chat: bool = False,
    ) -> gate.Verdict:
        tables = {name: table(rows, chat) for name, rows in splits.items()}
        return gate.check(tables, CANONICAL, verifier, count, limits)

    return run_gate


def failed(verdict: gate.Verdict) -> dict[tuple[str, str], list[str]]:
    return {
        (one.check, one.split): [failure["id"] for failure in one.failures]
        for one in verdict.failed
    }


def test_good_data_passes_every_check_in_every_split_without_a_word(
    check: Callable[..., gate.Verdict], capfd: pytest.CaptureFixture[str]
) -> None:
    verdict = check(good())
    assert failed(verdict) == {}
    report = verdict.as_json()
    assert (report["passed"], report["failed_checks"]) == (True, 0)
    assert report["rows"] == dict.fromkeys(("sft", "train", "dev", "eval"), 4)
    run_on: dict[str, list[str]] = {}
    for one in report["checks"]:
        run_on.setdefault(one["check"], []).append(one["split"])
        assert one["expectation"].startswith("expect_")
        assert (one["failed"], one["passed"]) == (0, True)
    assert list(run_on) == list(CHECKS)
    assert {
        name for name, splits in run_on.items() if splits != ["sft", "train", "dev", "eval"]
    } == {"class_unique"}
    assert run_on["class_unique"] == ["dev", "eval"]
    assert len(verdict.failure_table()) == 0
    assert check(good()) == verdict
    assert capfd.readouterr() == ("", "")


def changed(split: str, index: int, **values: Any) -> Callable[[Splits], None]:
    return lambda splits: splits[split][index].update(values)


def asks(split: str, index: int, question: str, **extra: Any) -> Callable[[Splits], None]:
    def plant(splits: Splits) -> None:
        splits[split][index] = row(split, index, question, **extra)

    return plant


FAULTS: dict[str, tuple[Callable[[Splits], None], dict[tuple[str, str], list[str]]]] = {
    "too few rows": (
        lambda splits: splits["dev"].__delitem__(slice(2, None)),
        {("row_count", "dev"): ["dev"]},
    ),
    "no id": (changed("train", 1, id=None), {("id_present", "train"): ["null"]}),
    "blank id": (changed("train", 1, id=" "), {("id_present", "train"): [" "]}),
    "id twice": (
        changed("train", 1, id="train-0"),
        {("id_unique", "train"): ["train-0", "train-0"]},
    ),
    "id in two splits": (
        changed("train", 1, id="eval-3"),
        {("id_disjoint", "train"): ["eval-3"], ("id_disjoint", "eval"): ["eval-3"]},
    ),
    "empty question": (asks("sft", 2, "  "), {("not_empty", "sft"): ["sft-2"]}),
    "null question": (changed("sft", 2, question=None), {("not_empty", "sft"): ["sft-2"]}),
    "empty prompt": (changed("sft", 2, prompt=""), {("not_empty", "sft"): ["sft-2"]}),
    "null prompt": (changed("sft", 2, prompt=None), {("not_empty", "sft"): ["sft-2"]}),
    "a prompt of 17 tokens": (
        changed("eval", 0, prompt="1" * 16),
        {("prompt_length", "eval"): ["eval-0"]},
    ),
    "a question twice": (
        asks("train", 3, "20+0="),
        {("question_unique", "train"): ["train-0", "train-3"]},
    ),
    "a question twice, spelled otherwise": (
        asks("train", 3, "２0+0="),
        {("question_unique_normalised", "train"): ["train-0", "train-3"]},
    ),
    "a variant in eval": (
        asks("eval", 3, "1+40="),
        {("class_unique", "eval"): ["eval-1", "eval-3"]},
    ),
    "a variant in train": (asks("train", 3, "1+20="), {}),
    "an eval question in train": (
        asks("train", 3, "40+2="),
        {("disjoint", "train"): ["train-3"], ("disjoint", "eval"): ["eval-2"]},
    ),
    "an eval question in sft, spelled otherwise": (
        asks("sft", 3, "４0+2="),
        {("disjoint_normalised", "sft"): ["sft-3"], ("disjoint_normalised", "eval"): ["eval-2"]},
    ),
    "a variant of a dev question in train": (
        asks("train", 3, "2+30="),
        {("disjoint_canonical", "train"): ["train-3"], ("disjoint_canonical", "dev"): ["dev-2"]},
    ),
    "a replacement character": (
        changed("dev", 1, prompt="30\ufffd1="),
        {("valid_unicode", "dev"): ["dev-1"]},
    ),
    "a noncharacter": (
        changed("dev", 1, prompt="\U0001ffff"),
        {("valid_unicode", "dev"): ["dev-1"]},
    ),
    "decomposed letters": (changed("dev", 1, prompt="e\u0301"), {("nfc", "dev"): ["dev-1"]}),
    "a carriage return": (
        changed("dev", 1, prompt="30+1=\r"),
        {("no_control_characters", "dev"): ["dev-1"]},
    ),
    "an escape sequence": (
        changed("dev", 1, id="\x1b[2J"),
        {("no_control_characters", "dev"): ["\x1b[2J"]},
    ),
    "newline and tab": (changed("dev", 1, prompt="30\t+1\n="), {}),
    "an answer in words": (
        changed("train", 2, answer="twenty"),
        {("answer_parses", "train"): ["train-2"]},
    ),
    "no answer": (changed("train", 2, answer=None), {("answer_parses", "train"): ["train-2"]}),
    "a solution that ends elsewhere": (
        changed("sft", 2, solution="<answer>5</answer>"),
        {("solution_scores_1", "sft"): ["sft-2"]},
    ),
    "no solution": (changed("sft", 2, solution=None), {}),
    "a prompt that holds its answer": (
        changed("train", 1, prompt="<answer>21</answer>"),
        {("echo_scores_0", "train"): ["train-1"]},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_named_by_check_split_and_row_and_nothing_else_is(
    check: Callable[..., gate.Verdict], fault: str
) -> None:
    plant, expected = FAULTS[fault]
    splits = good()
    plant(splits)
    concerned = {split for _, split in expected} | {
        name for name, rows in good().items() if splits[name] != rows
    }
    verdict = check(
        {name: rows for name, rows in splits.items() if name in concerned}
    )  # each split costs 0.2 s
    assert failed(verdict) == expected
    assert verdict.as_json()["passed"] is (not expected)
    lines = verdict.message().splitlines()
    for (name, split), rows in expected.items():
        (line,) = (
            line for line in lines if line.startswith(f"  {name} in {split}, {len(rows)} failed: ")
        )
        assert all(gate.shown(identity) in line for identity in rows)
        assert lines[lines.index(line) + 1].strip().removesuffix(".") == CHECKS[
            name
        ].remedy.removesuffix(".")
    told = [f"{check} {split} {i}" for (check, split), rows in expected.items() for i in rows]
    kept = verdict.failure_table()
    assert list(kept.columns) == ["check", "split", "id", "value"]
    assert [f"{r.check} {r.split} {r.id}" for r in kept.itertuples()] == told


def test_a_verdict_does_not_depend_on_the_rows_that_are_looked_at_together(
    count: Callable[..., list[int]],
) -> None:
    splits: Splits = {name: [] for name in good()}
    splits["sft"] = [row("sft", 90, "1+90=", prompt=None), row("sft", 91, "1+91=", prompt="1" * 30)]
    for plant, _ in FAULTS.values():
        planted = good()
        plant(planted)
        for name, rows in planted.items():
            splits[name] += rows
    tables = {name: table(rows) for name, rows in splits.items()}
    whole, other = (
        gate.check(tables, CANONICAL, EXACT, count, LIMITS, batch_rows=rows)
        for rows in (scratch_db.BATCH, 35)
    )
    assert {one.check for one in whole.failed} > {
        "id_unique",
        "disjoint_canonical",
        "question_unique",
        "answer_parses",
    }
    assert other == whole


def test_great_expectations_own_pages_show_a_fault_wherever_it_lies(
    count: Callable[..., list[int]], tmp_path: Path
) -> None:
    splits = good()
    splits["train"][3]["answer"] = "?"
    tables = {name: table(rows) for name, rows in splits.items()}
    gate.check(tables, CANONICAL, EXACT, count, LIMITS, tmp_path, batch_rows=2)
    assert (tmp_path / "index.html").read_text().count("fa-times text-danger") == 1
    first, failing = sorted((tmp_path / "validations/train").rglob("*.html"))
    assert ("fa-times" in first.read_text(), "fa-times" in failing.read_text()) == (False, True)


def test_what_the_table_does_not_hold_is_counted_and_said(
    check: Callable[..., gate.Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expectations, "KEPT", 30)
    verdict = check({"train": [row("train", i, f"{100 + i}+1=", answer="?") for i in range(50)]})
    assert (verdict.failed[0].failed, len(verdict.failure_table())) == (50, 30)
    dataset = dict.fromkeys(
        ("source", "license", "format", "verifier", "prompt_style", "revision"), "a"
    )
    assert "The first 20; the first 30 are in failures.parquet." in validate.page(
        verdict, dataset, LIMITS
    )


def expected_repeats(
    splits: Splits, canonical: Callable[[str], str]
) -> dict[tuple[str, int], dict[str, Any]]:
    """What `Repeats` must find, with all rows in memory."""
    told: dict[tuple[str, int], dict[str, Any]] = {
        (name, i): {} for name in splits for i in range(len(splits[name]))
    }
    spelled = spellings(canonical)
    for column, chain in CHAINS.items():
        places: dict[tuple[str, str], dict[str, str]] = {}
        shown: dict[tuple[str, str, str], list[int]] = {}
        for split, rows in splits.items():
            for index, one in enumerate(rows):
                keys = {
                    name: spelled[name](one[column])
                    for name in chain
                    if (one[column] or "").strip()
                }
                for depth, (name, text) in enumerate(keys.items()):
                    places.setdefault((name, text), {}).setdefault(split, str(one["id"]))
                    finer = list(keys.items())[:depth]
                    if not any(
                        (split, n, t) in shown and shown[split, n, t][0] < index for n, t in finer
                    ):
                        shown.setdefault((split, name, text), []).append(index)
                    else:
                        shown.setdefault((split, name, text), [index])
                        told[split, index][f"{name}_hidden"] = True
        for split, rows in splits.items():
            for index, one in enumerate(rows):
                leaks = False
                for name in chain if (one[column] or "").strip() else ():
                    text = spelled[name](one[column])
                    hidden = told[split, index].pop(f"{name}_hidden", False)
                    told[split, index][f"{name}_again"] = (
                        not hidden and len(shown[split, name, text]) > 1
                    )
                    others = [f"{s} {i}" for s, i in places[name, text].items() if s != split]
                    told[split, index][f"{name}_elsewhere"] = (
                        "also " + ", ".join(others) if others and not leaks else None
                    )
                    leaks = leaks or bool(others)
    return told


@pytest.mark.parametrize("seed", range(20))
def test_repeats_are_found_on_disk_as_they_would_be_in_memory(seed: int) -> None:
    draw = random.Random(seed)
    questions = [
        "1+2=",
        "2+1=",
        "1 + 2=",
        "1+2 =",
        "3+4=",
        "4+3=",
        "9+9=",
        "",
        " ",
        None,
        "ＡＢ",
        "ab",
        "a b.",
    ]
    splits = {
        name: [
            {
                "id": draw.choice(["a", "b", "c", None, " ", f"{name}-{i}"]),
                "question": draw.choice(questions),
            }
            for i in range(draw.randrange(12))
        ]
        for name in ("sft", "train", "dev", "eval")
    }
    with scratch_db.database() as database:
        repeats = Repeats(database, CANONICAL)
        for name, rows in splits.items():
            for start in range(0, max(len(rows), 1), 5):
                repeats.add(name, start, rows[start : start + 5])
        repeats.settle()
        found = {name: repeats.of(name, 0, len(rows)) for name, rows in splits.items()}
    for (name, index), told in expected_repeats(splits, CANONICAL).items():
        assert {k: v for k, v in found[name].get(index, {}).items() if v} == {
            k: v for k, v in told.items() if v
        }


def test_an_empty_sft_split_is_allowed_and_an_empty_train_split_is_not(
    check: Callable[..., gate.Verdict],
) -> None:
    assert failed(check({"sft": [], "train": []})) == {("row_count", "train"): ["train"]}


class Lenient(Verifier):
    """The verifier's faults that the self-test is there to find."""

    def score(self, completion: str, answer: str | None) -> float:
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
        }[self.name]


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
    verdict = check({"train": train}, Lenient(**dataclasses.asdict(EXACT) | {"name": fault}))
    assert {one.check for one in verdict.failed} == found
    assert all(one.failed == 4 for one in verdict.failed)


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


def test_tokens_are_counted_as_the_trainers_feed_them(
    base: Path, count: Callable[..., list[int]], tmp_path: Path
) -> None:
    assert count(["1+1=", "", "<answer>"]) == [5, 1, 2]  # <bos> and one a character or tag
    rendered = [
        "<bos>",
        "<start_of_turn>",
        *"user\n1",
        "<end_of_turn>",
        "\n",
        "<start_of_turn>",
        *"model\n",
    ]
    assert count([[{"role": "user", "content": "1"}]]) == [len(rendered)]
    assert count([]) == []
    folder = shutil.copytree(base, tmp_path / "base")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no system role') }}")
    with pytest.raises(
        Refused,
        match=r"chat template: expected to render the prompts; .*no system role\. Set prepare",
    ):
        validate.token_counter(folder)([[{"role": "user", "content": "1"}]])


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"text_config": {"max_position_embeddings": 32}}, 32),
        ({}, None),
    ],
)
def test_the_window_is_read_from_the_models_configuration(
    tmp_path: Path, config: Any, found: int | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert validate.window(tmp_path) == found


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda t: t.drop_columns(["solution"]),
            {"solution": "expected string, found no such column"},
        ),
        (
            lambda t: t.append_column("extra", pa.array([1] * 4)),
            {"extra": "expected no such column, found int64"},
        ),
        (
            lambda t: t.set_column(3, "answer", pa.array([1] * 4)),
            {"answer": "expected string, found int64"},
        ),
        (
            lambda t: t.set_column(1, "prompt", pa.array([["1+1="]] * 4)),
            {"prompt": "expected string, found list<item: string>"},
        ),
    ],
)
def test_another_schema_is_refused_by_column_before_the_rows_are_looked_at(
    count: Callable[..., list[int]], change: Callable[[pa.Table], pa.Table], told: dict[str, str]
) -> None:
    tables = {name: table(rows) for name, rows in good().items()}
    tables["train"] = change(tables["train"])
    verdict = gate.check(tables, CANONICAL, EXACT, count, LIMITS)
    assert {one.check for one in verdict.outcomes} == {"schema"}
    assert [(one.check, one.split) for one in verdict.failed] == [("schema", "train")]
    assert {failure["id"]: failure["value"] for failure in verdict.failed[0].failures} == told


def test_a_message_shows_the_first_20_of_many_rows_and_the_table_keeps_them_all(
    check: Callable[..., gate.Verdict],
) -> None:
    verdict = check({"train": [row("train", i, f"{100 + i}+1=", answer="?") for i in range(50)]})
    first, remedy = verdict.message().splitlines()
    assert first.startswith(
        "  answer_parses in train, 50 failed: train-0 (source row 0: '?'); train-1 ("
    )
    assert first.endswith("train-19 (source row 19: '?'); and 30 more")
    assert first.count("source row") == 20
    assert remedy.strip() == CHECKS["answer_parses"].remedy.removesuffix(".")
    assert list(verdict.failure_table()["id"]) == [f"train-{i}" for i in range(50)]


def test_an_expectation_that_cannot_be_evaluated_is_no_pass(
    check: Callable[..., gate.Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    import great_expectations.expectations as gxe

    monkeypatch.setattr(
        gate, "suite", lambda *_: {"nfc": gxe.ExpectColumnValuesToBeNull(column="no_such_column")}
    )
    with pytest.raises(
        CannotCheck,
        match=r"nfc in sft: expected Great Expectations to evaluate expect_column_values_to_be",
    ):
        check(good())


class Page(HTMLParser):
    """Collects the tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_hostile_text_is_markup_nowhere_in_the_report_and_controls_no_terminal(
    check: Callable[..., gate.Verdict],
) -> None:
    dataset = {
        "source": "a",
        "license": "MIT",
        "format": "chain_sum",
        "verifier": "exact_int",
        "prompt_style": "text",
        "revision": "r",
    }
    clean = Page(validate.page(check(good()), dataset, LIMITS))
    splits = good()
    for name in ("id", "question", "prompt", "answer", "solution"):
        splits["train"][0][name] = HOSTILE
    verdict = check(splits)
    hostile = validate.page(verdict, dict.fromkeys(dataset, HOSTILE), LIMITS)
    parsed = Page(hostile)
    assert parsed.tags - clean.tags == {"section", "h3", "bdi"}
    assert not parsed.tags & {"script", "img"}
    assert parsed.attributes <= clean.attributes
    assert '{{ 7*7 }}<b>"><script>alert(1)</script><img src=x onerror=alert(1)>&lt;' in parsed.text
    for text in (hostile, verdict.message()):
        assert not set(text) & {"\x1b", "\u202e"}
        assert "\\x1b[31m\\u202e" in text
    for loaded in ("http:", "https:", "@import", "url(", " src=", "<link"):
        assert loaded not in validate.page(check(good()), dataset, LIMITS)


def test_great_expectations_own_pages_go_to_the_folder_that_is_asked_for(
    count: Callable[..., list[int]], tmp_path: Path
) -> None:
    gate.check(
        {name: table(rows) for name, rows in good().items()},
        CANONICAL,
        EXACT,
        count,
        LIMITS,
        tmp_path / "docs",
    )
    assert (tmp_path / "docs/index.html").exists()
    assert (
        len(list((tmp_path / "docs/validations").rglob("*.html"))) == 12
    )  # schema, row count and rows of four splits


@pytest.mark.parametrize("damage", ["truncated", "not UTF-8", "missing"])
def test_a_split_that_cannot_be_read_is_refused_by_file_and_remedy(
    tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "train.parquet"
    if damage == "not UTF-8":
        pq.write_table(
            pa.table({"question": pa.array([b"\xff"], pa.binary()).view(pa.string())}), path
        )
    elif damage == "truncated":
        pq.write_table(table(good()["train"]), path)
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        Refused,
        match=r"train\.parquet: expected a whole Parquet file with UTF-8 text; found .*dvc checkout",
    ):
        sum(batch.num_rows for batch in validate.Parquet(path).to_batches(scratch_db.BATCH))


def test_the_stage_refuses_by_name_leaves_its_reports_and_passes_mended_data(
    project: Callable[..., Path], base: Path
) -> None:
    folder = project(
        {
            "prepare": {
                "source": {
                    "kind": "local",
                    "train": "train.jsonl",
                    "eval": "eval.jsonl",
                    "license": "MIT",
                },
                "format": "question_answer",
                "drop_duplicates": False,
                "eval": None,
                "dev": 4,
                "sft": 0.5,
            },
            "validate": {"max_prompt_tokens": 500, "min_rows": 4},
        },
        with_git=False,
    )
    shutil.copytree(base, folder / "models/base")
    rows = [{"question": f"{i}+1=", "answer": str(i + 1)} for i in range(20)]
    held_out = [{"question": f"{i}+2=", "answer": str(i + 2)} for i in (3, 4, 2, 5)]
    bad = [
        *rows,
        {"question": "1" * 80 + "+1=", "answer": "1"},
        {"question": "2+2=", "answer": "4"},
    ]

    def go(train: Rows) -> Any:
        for name, part in (("train", train), ("eval", held_out)):
            (folder / f"data/raw/{name}.jsonl").write_text(
                "".join(json.dumps(one) + "\n" for one in part)
            )
        run(folder, "python", "-m", "stages.prepare")
        return run(folder, "python", "-m", "stages.validate", check=False)

    done = go(bad)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "validate: data/prepared: expected every check to pass; found 3 of 90 failed:\n"
    )
    assert re.search(
        r"  prompt_length in \w+, 1 failed: train-20 \(source row 20: 84\)\n    Remove or shorten",
        done.stderr,
    )
    assert re.search(
        r"  disjoint in eval, 1 failed: eval-2 \(source row 2: also \w+ train-21\)\n", done.stderr
    )
    assert "Traceback" not in done.stderr
    reports = folder / "reports/validate"
    verdict = files.read_json(reports / "verdict.json")
    assert (verdict["passed"], verdict["failed_checks"]) == (False, 3)
    assert set(pq.read_table(reports / "failures.parquet")["id"].to_pylist()) == {
        "train-20",
        "train-21",
        "eval-2",
    }
    assert "The gate refused this data" in (reports / "report.html").read_text()
    assert not (reports / "run.json").exists()
    (journal,) = (folder / ".regrpo/journal").glob("*-validate")
    assert (journal / "files/data_docs/index.html").exists()
    assert files.read_json(journal / "closed.json")["status"] == "FAILED"

    done = go(rows)
    assert (done.returncode, done.stderr) == (0, "")
    assert files.read_json(reports / "verdict.json")["passed"] is True
    assert (reports / "run.json").exists()
