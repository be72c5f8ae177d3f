"""Files that cannot be read as they are: one line that names file, line or row, and what to do."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regrpo.core.errors import CannotCheck, Refused, RegrpoError
from regrpo.inputs import sources
from tests.support import stand_ins

GOOD = b'{"question": "1+1=", "answer": "2"}\n'


def read(folder: Path, name: str, content: bytes) -> list[tuple[str, dict[str, Any]]]:
    (folder / name).write_bytes(content)
    return list(sources.local_rows(folder / name))


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.jsonl", b"", ["a.jsonl: ", "an empty file", "Bring the data in again"]),
        (
            "a.jsonl",
            GOOD + b'{"question": "1+',
            ["a.jsonl, line 2", "Unterminated string", "Mend or remove"],
        ),
        (
            "a.jsonl",
            GOOD + GOOD + b'{"question" 1}\n' + GOOD,
            ["a.jsonl, line 3", "at column 13", "Mend or remove"],
        ),
        ("a.jsonl", GOOD + b"[1, 2]\n", ["a.jsonl, line 2", "a JSON object; found list"]),
        (
            "a.jsonl",
            GOOD + b'{"question": "\xff"}\n',
            ["a.jsonl, line 2", "byte 0xff at column 15", "as UTF-8"],
        ),
        (
            "a.jsonl",
            GOOD + b'{"question": "\0"}\n',
            ["a.jsonl, line 2", "a NUL byte", "without it"],
        ),
        ("a.jsonl", b"\xef\xbb\xbf" + GOOD, ["a.jsonl, line 1", "a byte-order mark", "sed -i"]),
        ("a.jsonl", GOOD.decode().encode("utf-16"), ["a.jsonl, line 1", "UTF-16", "iconv"]),
        ("a.jsonl", b"[" * 100_000, ["a.jsonl, line 1", "recursion"]),
        ("a.jsonl", b'{"answer": ' + b"9" * 5000 + b"}", ["a.jsonl, line 1", "4300 digits"]),
        ("a.json", b'[{"question": 1},\n {"question": }]', ["a.json, line 2", "Expecting value"]),
        ("a.json", GOOD, ["a.json: ", "a JSON list of objects; found dict"]),
        ("a.json", b'[{"question": 1}, 2]', ["a.json, row 1", "a JSON object; found int"]),
        ("a.json", b"[\n\xff]", ["a.json, line 2", "byte 0xff"]),
        (
            "a.csv",
            b"question,answer\n1+1=,2\n1+2=,3,4\n",
            ["a.csv, line 3", "2 fields", "found 3", "Quote fields"],
        ),
        ("a.csv", b"question,answer\n1+1=\n", ["a.csv, line 2", "2 fields", "found 1"]),
        (
            "a.csv",
            b'question,answer\n1+1=,2\n"1+2=,3\n',
            ["a.csv, line 3", "unexpected end of data"],
        ),
        ("a.csv", b"question,question\n1+1=,2\n", ["a.csv, line 1", "each column once", "Rename"]),
        ("a.csv", b"\xef\xbb\xbfquestion,answer\n1+1=,2\n", ["a.csv, line 1", "a byte-order mark"]),
        ("a.parquet", b"PAR1 and no more", ["a.parquet: ", "Parquet", "Write it again"]),
        (
            "a.txt",
            GOOD,
            ["a.txt", "ending in .jsonl, .json, .csv, .parquet; found .txt", "Convert"],
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_name_place_and_remedy(
    tmp_path: Path, name: str, content: bytes, parts: list[str]
) -> None:
    with pytest.raises(Refused) as refusal:
        read(tmp_path, name, content)
    message = str(refusal.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == [], message


def test_every_kind_of_file_gives_the_same_rows_and_its_own_places(tmp_path: Path) -> None:
    rows = [{"question": "1+1=", "answer": "2"}, {"question": 'say "1,\n2"', "answer": "3"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "b.parquet")
    contents = {
        "a.jsonl": "\n".join(map(json.dumps, rows)).encode(),
        "b.json": json.dumps(rows).encode(),
        "a.csv": b'question,answer\r\n1+1=,2\r\n\r\n"say ""1,\n2""",3\r\n',
        "b.parquet": (tmp_path / "b.parquet").read_bytes(),
    }
    places = {"a.jsonl": "line 2", "b.json": "row 1", "a.csv": "line 5", "b.parquet": "row 1"}
    for name, content in contents.items():
        found = read(tmp_path, name, content)
        assert [row for _, row in found] == rows, name
        assert found[1][0] == f"{tmp_path / name}, {places[name]}"


@pytest.fixture
def parquet(tmp_path: Path) -> bytes:
    pq.write_table(
        pa.table({"question": [f"{i}+1=" for i in range(10_000)]}), tmp_path / "whole.parquet"
    )
    return (tmp_path / "whole.parquet").read_bytes()


def test_a_truncated_parquet_is_refused(tmp_path: Path, parquet: bytes) -> None:
    with pytest.raises(
        Refused, match=r"cut\.parquet: expected a whole Parquet file .* Write it again"
    ):
        read(tmp_path, "cut.parquet", parquet[: len(parquet) // 2])


def test_a_parquet_with_a_damaged_page_is_refused(tmp_path: Path, parquet: bytes) -> None:
    damaged = parquet[:50] + b"\xff" * 5000 + parquet[5050:]
    with pytest.raises(Refused, match=r"bad\.parquet"):
        read(tmp_path, "bad.parquet", damaged)


def test_text_in_a_parquet_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    raw = pa.array([b"1+1=", b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"question": raw}), tmp_path / "raw.parquet")
    with pytest.raises(Refused, match=r"raw\.parquet, from row 0: .*UTF-8 text; found .*UTF8"):
        list(sources.local_rows(tmp_path / "raw.parquet"))


@pytest.mark.parametrize("name", ["/etc/hosts", "../secret.jsonl", "sub/../../secret.jsonl"])
def test_a_path_outside_the_raw_folder_is_refused_with_the_command_that_brings_it_in(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(Refused, match=r"prepare\.source\.train: expected a path under .*cp -r"):
        sources.file_under(tmp_path, name, "prepare.source.train")


def test_a_linked_folder_is_refused_and_a_linked_file_is_read(tmp_path: Path) -> None:
    (raw := tmp_path / "raw").mkdir()
    (cache := tmp_path / "cache").mkdir()
    (cache / "a.jsonl").write_bytes(GOOD)
    (raw / "a.jsonl").symlink_to(cache / "a.jsonl")
    (raw / "folder").symlink_to(cache)
    assert len(list(sources.local_rows(sources.file_under(raw, "a.jsonl", "key")))) == 1
    with pytest.raises(Refused, match="a path under"):
        sources.file_under(raw, "folder", "key")


def test_a_missing_file_cannot_be_checked_and_the_message_says_where_it_belongs(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        CannotCheck,
        match=r"prepare\.source\.eval: expected a file or folder at .*none\.jsonl.*Copy it to",
    ):
        sources.file_under(tmp_path, "none.jsonl", "prepare.source.eval")


def test_a_branch_name_is_refused_and_its_commit_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    import huggingface_hub

    commit = "e53f048856ff4f594e959d75785d2c2d37b678ee"
    monkeypatch.setattr(
        huggingface_hub.HfApi, "repo_info", lambda *_, **__: SimpleNamespace(sha=commit)
    )
    sources.require_commit("openai/gsm8k", commit, "dataset", "key")
    with pytest.raises(
        Refused,
        match=rf"key: expected a commit of dataset openai/gsm8k, 40 hex .*"
        rf"'main', which now points to {commit}",
    ):
        sources.require_commit("openai/gsm8k", "main", "dataset", "key")


def hub(repo: str, revision: str, data_dir: str | None = None) -> sources.Hub:
    return sources.Hub(kind="hub", repo=repo, revision=revision, data_dir=data_dir, license="MIT")


def test_a_hub_source_without_network_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub\nat all")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", offline)
    with pytest.raises(CannotCheck) as refusal:
        list(hub("openai/gsm8k", "e53f048856ff4f594e959d75785d2c2d37b678ee").rows("train"))
    message = str(refusal.value)
    assert message.startswith(
        "prepare.source: openai/gsm8k at e53f048856ff: expected its files from the hub"
    )
    assert "no way to the hub (ConnectionError: Couldn't reach the Hub)" in message
    assert "copy the files of split 'train' to data/raw/" in message
    assert "\n" not in message
    with pytest.raises(
        Refused, match=r"'main' \(the hub could not be asked for its commit: ConnectionError\)"
    ):
        list(hub("openai/gsm8k", "main").rows("train"))


@pytest.mark.parametrize(
    ("task", "config"),
    [("no_such_task", {}), ("chain_sum", {"min_term": 3}), ("chain_sum", {"min_terms": -1})],
)
def test_a_generator_or_setting_there_is_not_is_refused(task: str, config: dict[str, Any]) -> None:
    source = sources.ReasoningGym(
        kind="reasoning_gym", task=task, size=10, config=config, license="MIT"
    )
    with pytest.raises(
        RegrpoError, match=rf"prepare\.source: expected a reasoning-gym task .*{task}"
    ):
        list(source.rows(seed=0))


@pytest.mark.parametrize(
    "layout", ["ukrainian/{split}/0000.parquet", "ukrainian/xlsum-{split}.parquet"]
)
def test_a_parquet_conversion_is_read_by_its_folder(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both layouts that the hub's conversions have had.

    Other configurations lie beside it and are left alone.
    """
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    stand_ins.xlsum(tmp_path, train=6, evaluation=3)
    for language in ("ukrainian", "welsh"):
        for split in ("train", "test"):
            target = tmp_path / "repo" / layout.replace("ukrainian", language).format(split=split)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(tmp_path / f"{split}.parquet", target)
    source = hub(str(tmp_path / "repo"), "f" * 40, data_dir="ukrainian")
    train = [row for _, row in source.rows("train")]
    assert train == [stand_ins.xlsum_row(index) for index in range(6)]
    assert len(list(source.rows("test"))) == 3
