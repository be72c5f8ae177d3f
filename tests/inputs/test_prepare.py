"""The prepare stage: what it writes, and that it writes the same bytes again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from regrpo.core import files
from regrpo.core.profiles import parse_section, read_profile
from stages import prepare
from tests.support.prepared import Rows, params, questions
from tests.support.projects import run


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
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = {"kind": "local", "train": "train.jsonl", "license": "MIT"}
    section = {
        "source": source,
        "format": "question_answer",
        "eval": 4,
        "dev": 3,
        "drop_duplicates": False,
    }
    folder = project({"prepare": section, "validate": {"min_rows": 3}}, with_git=False)
    raw = folder / "data/raw/train.jsonl"
    raw.write_text("".join(json.dumps(row) + "\n" for row in questions(20)))
    monkeypatch.chdir(folder)
    prepare.prepare(parse_section(prepare.Params, read_profile(Path("params.yaml"))["prepare"], ""))
    before = {file.name: files.sha256(file) for file in (folder / "data/prepared").iterdir()}
    raw.write_text(raw.read_text() + '{"question": "cut')
    done = run(folder, "python", "-m", "stages.prepare", check=False)
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(
        "prepare: data/raw/train.jsonl, line 21: expected one JSON object; "
        "found Unterminated string"
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
    folder = project(with_git=False)
    # blocks of 1,024 bytes: room for the records, not for the rows
    command = "ulimit -f 16; exec python -m stages.prepare"
    done = run(folder, "bash", "-c", command, check=False, REGRPO_TRACKING="off")
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2
    assert line.startswith("prepare: disk: expected room on the disk; found ")
    assert not (folder / "data/prepared").exists()


def test_where_prompts_are_cut_is_told_to_every_stage(
    written: Callable[..., dict[str, str]],
) -> None:
    written(questions(20), prompt_template="Q: {question}\nA:", max_prompt_tokens=32)
    dataset = files.read_json(prepare.OUT / "dataset.json")
    assert (dataset["max_prompt_tokens"], dataset["prompt_template"]) == (32, "Q: {question}\nA:")


def test_a_choice_shows_its_options_and_several_answers_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data/raw").mkdir(parents=True)
    rows = []
    for number in range(8):
        towns = ["Paris", f"Town {number}", "Nice"]
        rows.append({"question": f"Which is {number}?", "choices": towns, "answer": ["1", "2"]})
    Path("data/raw/x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    params = prepare.Params(
        format="question_answer",
        source={"kind": "local", "train": "x.jsonl", "license": "MIT"},
        verifier="choice",
        verifier_settings={"options": "choices"},
        several_answers=True,
        prompt_template="{question}\n{options}\n",
        seed=0,
        eval=2,
        dev=2,
        sft=0.5,
    )
    prepare.prepare(params.model_copy(update={"verifier_settings": {"options": "choices"}}))
    (row, *_) = files.read_rows(Path("data/prepared/eval.parquet"))
    number = row["question"][-2]
    assert row["prompt"] == f"Which is {number}?\nA. Paris\nB. Town {number}\nC. Nice\n"
    assert row["options"] == ["Paris", f"Town {number}", "Nice"]
    assert row["golds"] == ["1", "2"]
    dataset = files.read_json(Path("data/prepared/dataset.json"))
    assert dataset["keep"] == ["golds", "options"]
    assert dataset["verifier_settings"] == {"options": "choices"}
