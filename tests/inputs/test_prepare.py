"""From a source's rows to four splits.

What is read, what is refused, what is left out and what is left in.
"""

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from regrpo.core import files
from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.profiles import parse_section
from regrpo.inputs import scratch_db
from regrpo.inputs.formats import FORMATS, SPLITS, Format, get_format, normalise, words_only
from stages import prepare
from tests.support import stand_ins
from tests.support.projects import run

Rows = list[dict[str, Any]]


def params(**changes: Any) -> prepare.Params:
    values = {
        "seed": 1,
        "format": "question_answer",
        "source": {"kind": "local", "train": "train.jsonl", "license": "MIT"},
        "eval": 4,
        "dev": 3,
        "sft": 0.5,
    }
    return parse_section(prepare.Params, values | changes, "params.yaml: prepare")


def questions(count: int, **extra: Any) -> Rows:
    return [{"question": f"What is {i} + 1?", "answer": str(i + 1)} | extra for i in range(count)]


def placed(rows: Rows) -> Any:
    return ((f"data/raw/train.jsonl, line {line}", row) for line, row in enumerate(rows, start=1))


def splits(train: Rows, evaluation: Rows | None = None, /, **changes: Any) -> dict[str, Rows]:
    values = params(**changes)
    form = get_format(values.format)
    given = {"train": train} | ({} if evaluation is None else {"eval": evaluation})
    with scratch_db.database() as database:
        made = prepare.Splits(database, values, form)
        for part, rows in given.items():
            made.add(part, prepare.read_part(placed(rows), values, form, part))
        made.divide()
        found = {
            name: [prepare.prompted(row, values, form) for row in made.rows(name)]
            for name in SPLITS
        }
        assert {name: made.count(name)["rows"] for name in SPLITS} == {
            name: len(rows) for name, rows in found.items()
        }
        return found


def by_class(rows: Rows, form: Format) -> set[str]:
    return {form.canonical(row["question"]) for row in rows}


def ids(rows: Rows) -> list[str]:
    return sorted(row["id"] for row in rows)


def refusal(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(Refused) as caught:
        splits(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dev": 0}, "`dev`: input should be greater than 0, found 0"),
        ({"sft": 1.0}, "`sft`: input should be less than 1"),
        ({"eval": "many"}, "`eval`: input should be a valid integer"),
        ({"drop_duplicate": True}, "did you mean `drop_duplicates`"),
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


def test_each_shipped_format_reads_its_own_rows() -> None:
    gsm8k = FORMATS["gsm8k"].read(
        {"question": " How many? ", "answer": "2*600=<<2*600=1200>>1200\n#### 1,200"}
    )
    assert (gsm8k.question, gsm8k.answer, gsm8k.solution) == (
        "How many?",
        "1200",
        "2*600=1200\n#### 1,200",
    )
    assert FORMATS["gsm8k"].read({"question": "How many?", "answer": "1200"}).answer is None
    chain = FORMATS["chain_sum"].read(
        {"question": "State …", "answer": "2", "metadata": {"expression": "4 + 5 - 7"}}
    )
    assert (chain.question, chain.answer) == ("4+5-7=", "2")
    assert chain.solution == "<think>9</think><answer>2</answer>"
    assert (
        FORMATS["chain_sum"].read({"question": "4+5-7", "answer": "two"}).answer == "two"
    )  # the gate names it
    plain = FORMATS["question_answer"].read({"question": "1 + 1?", "answer": None})
    assert (plain.answer, plain.solution) == (None, None)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("What is 3 + 4?", "what is  3+4", True),
        ("What is 3 + 4?", "What is 3 - 4?", False),
        ("What is 5 - 3?", "What is 5, 3?", False),
        ("What is 5 * 3?", "What is 5 / 3?", False),
        ("What is 3.5?", "What is 35?", False),
        ("What is 5²?", "What is 52?", False),
        ("Sort 1 23", "Sort 12 3", False),
        ("A well-known sum", "a well known sum!", True),
        ("Ｗｈａｔ ｉｓ １？", "What is 1?", True),
        ("∑ ∞ ?", "∫ ∞ ?", False),
    ],
)
def test_running_text_is_one_class_exactly_where_it_asks_the_same(
    one: str, other: str, same: bool
) -> None:
    assert (words_only(one) == words_only(other)) is same
    if normalise(one) == normalise(other):
        assert same


def test_sums_are_one_class_exactly_where_their_terms_are_the_same() -> None:
    canonical = FORMATS["chain_sum"].canonical
    assert canonical("4+5-7=") == canonical("5+4-7=") == canonical(" 4 + 5 - 7 ")
    assert len({canonical(q) for q in ("4+5-7=", "4-5+7=", "4+5+7=", "4-0+1=", "4+0+1=")}) == 5


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


def test_a_mistake_of_ours_in_sql_is_no_full_disk() -> None:
    with (
        pytest.raises(sqlite3.OperationalError, match="no such column"),
        scratch_db.database() as database,
    ):
        database.execute("select nonsense")


def test_a_full_disk_is_told_in_one_line() -> None:
    def fill() -> None:
        with scratch_db.database() as database:
            database.execute("pragma max_page_count = 8")
            made = prepare.Splits(database, params(), get_format("question_answer"))
            made.add(
                "train", prepare.read_part(placed(questions(2000)), params(), made.form, "train")
            )

    with pytest.raises(
        CannotCheck, match=r"room for the rows.*database or disk is full.*SQLITE_TMPDIR"
    ):
        fill()


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


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """Prepares local files in tmp_path and gives the SHA-256 of each file under data/prepared/."""
    monkeypatch.chdir(tmp_path)
    Path("data/raw").mkdir(parents=True)

    def write(rows: Rows, **changes: Any) -> dict[str, str]:
        Path("data/raw/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        prepare.prepare(params(**changes))
        return {file.name: files.sha256(file) for file in sorted(prepare.OUT.iterdir())}

    return write


def test_the_same_inputs_give_the_same_bytes_and_the_description_names_them(
    written: Callable[..., dict[str, str]],
) -> None:
    first = written(questions(20), prompt_style="chat")
    assert list(first) == [
        "dataset.json",
        "dev.parquet",
        "eval.parquet",
        "sft.parquet",
        "train.parquet",
    ]
    assert written(questions(20), prompt_style="chat") == first
    assert written(questions(21), prompt_style="chat") != first
    dataset = files.read_json(prepare.OUT / "dataset.json")
    assert (dataset["verifier"], dataset["prompt_style"], dataset["license"]) == (
        "exact_int",
        "chat",
        "MIT",
    )
    assert dataset["files"] == {"train.jsonl": files.sha256(Path("data/raw/train.jsonl"))}
    for name, split in dataset["splits"].items():
        table = pq.read_table(prepare.OUT / f"{name}.parquet")
        assert table.schema.names == [
            "id",
            "prompt",
            "question",
            "answer",
            "solution",
            "source_row",
        ]
        assert split["rows"] == table.num_rows == split["classes"]
        assert split["sha256"] == files.sha256(prepare.OUT / f"{name}.parquet")


def test_the_verifier_may_be_another_than_the_format_has(
    written: Callable[..., dict[str, str]],
) -> None:
    written(questions(20), verifier="none")
    assert files.read_json(prepare.OUT / "dataset.json")["verifier"] == "none"


def test_the_stage_tells_a_broken_line_in_one_line_and_leaves_nothing_half_written(
    project: Callable[..., Path],
) -> None:
    source = {"kind": "local", "train": "train.jsonl", "license": "MIT"}
    section = {
        "source": source,
        "format": "question_answer",
        "eval": 4,
        "dev": 3,
        "drop_duplicates": False,
    }
    folder = project({"prepare": section, "validate": {}}, with_git=False)
    raw = folder / "data/raw/train.jsonl"
    raw.write_text("".join(json.dumps(row) + "\n" for row in questions(20)))
    run(folder, "python", "-m", "stages.prepare")
    before = {file.name: files.sha256(file) for file in (folder / "data/prepared").iterdir()}
    raw.write_text(raw.read_text() + '{"question": "cut')
    done = run(folder, "python", "-m", "stages.prepare", check=False)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(
        "prepare: data/raw/train.jsonl, line 21: expected one JSON object; found Unterminated string"
    )
    assert {
        file.name: files.sha256(file) for file in (folder / "data/prepared").iterdir()
    } == before
    assert [file.name for file in (folder / "data").iterdir()] in (
        ["raw", "prepared"],
        ["prepared", "raw"],
    )


def test_a_disk_that_is_full_when_the_splits_are_written_is_one_line(
    project: Callable[..., Path],
) -> None:
    folder = project({"prepare": {}}, with_git=False)
    # blocks of 1,024 bytes: room for the records, not for the rows
    command = "ulimit -f 16; exec python -m stages.prepare"
    done = run(folder, "bash", "-c", command, check=False, REGRPO_TRACKING="off")
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2
    assert line.startswith("prepare: expected room on the disk; found ")
    assert not (folder / "data/prepared").exists()


def news(count: int, **changes: str) -> Rows:
    return [stand_ins.xlsum_row(index) | changes for index in range(count)]


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


def test_articles_that_differ_in_punctuation_alone_are_one_class() -> None:
    again = [
        one | {"id": f"{one['id']}-again", "text": one["text"].upper().replace(".", " !")}
        for one in news(20)
    ]
    found = splits([*news(20), *again], format="xlsum", drop_duplicates=True)
    classes = {name: {words_only(row["question"]) for row in rows} for name, rows in found.items()}
    assert not classes["eval"] & classes["train"]
    assert not classes["dev"] & (classes["train"] | classes["sft"] | classes["eval"])


def test_a_row_without_its_summary_is_refused_by_its_place() -> None:
    told = refusal([*news(5), stand_ins.xlsum_row(5) | {"summary": None}], format="xlsum")
    assert told.startswith(
        "data/raw/train.jsonl, line 6: expected a row in format xlsum; found column summary holds"
    )


def test_grpo_gets_no_more_prompts_than_asked_for() -> None:
    every, some = splits(questions(40))["train"], splits(questions(40), train=5)["train"]
    assert some == every[:5]
    assert len(every) > 5


def test_where_prompts_are_cut_is_told_to_every_stage(
    written: Callable[..., dict[str, str]],
) -> None:
    written(questions(20), prompt_template="Q: {question}\nA:", max_prompt_tokens=32)
    dataset = files.read_json(prepare.OUT / "dataset.json")
    assert (dataset["max_prompt_tokens"], dataset["prompt_template"]) == (32, "Q: {question}\nA:")
