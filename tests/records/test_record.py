"""A record is read as it was written, or refused in one line that says what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regrpo.core.errors import CannotCheck
from regrpo.core.pipeline import Snapshot, record_path
from regrpo.core.profiles import STAGES
from regrpo.records.record import parse_record, read_records
from tests.support import synthetic
from tests.support.synthetic import evaluation, make_repository, right, write_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository whose workspace holds a finished run."""
    root = make_repository(tmp_path / "repository")
    write_run(root, evaluation({"heldout": right(0.5, 20)}))
    return root


def written(root: Path) -> dict[str, Any]:
    (record,) = json.loads((root / record_path("sft")).read_bytes())
    assert isinstance(record, dict)
    return record


def test_a_record_is_read_as_model_and_as_written(root: Path) -> None:
    data = (root / record_path("sft")).read_bytes()
    record, content = parse_record(data, "sft")
    assert content == written(root)
    assert (record.stage, record.run) == ("sft", content["run"])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda record: "[{", "corrupted"),
        (lambda record: [], "no list of one record"),
        (lambda record: record, "no list of one record"),
        (lambda record: [record | {"schema_version": 99}], "found schema_version 99"),
        (lambda record: [record | {"inputs": 3}], "inputs"),
        (
            lambda record: [
                record | {"outputs": [{"path": "../x", "sha256": "0" * 64, "size": 1}]}
            ],
            "a path inside the repository",
        ),
        (lambda record: [{}], "schema_version"),
    ],
)
def test_what_is_no_record_is_refused_in_one_line(
    root: Path, spoil: Callable[[dict[str, Any]], Any], words: str
) -> None:
    content = spoil(written(root))
    data = content if isinstance(content, str) else json.dumps(content)
    with pytest.raises(CannotCheck, match=r"^here: ") as caught:
        parse_record(data.encode(), "here")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_records_of_a_finished_run_are_those_that_its_lock_file_knows(root: Path) -> None:
    revision = synthetic.commit(root)
    records = read_records(Snapshot(root, revision))
    assert list(records) == list(STAGES)
    assert records["sft"] == written(root)


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        (record_path("sft"), lambda data: data.replace(b'"size":1', b'"size":2'), "it was altered"),
        (record_path("sft"), lambda data: data[:50], "found a corrupted one"),
        ("dvc.lock", lambda data: b"{", "expected DVC's lock file; found a corrupted one"),
    ],
)
def test_a_run_that_is_not_whole_is_refused(
    root: Path, path: str, change: Callable[[bytes], bytes], words: str
) -> None:
    (root / path).write_bytes(change((root / path).read_bytes()))
    with pytest.raises(CannotCheck, match=words):
        read_records(Snapshot(root))


def test_results_that_were_never_committed_are_refused(root: Path) -> None:
    with pytest.raises(CannotCheck, match="found none of prepare, base_model, "):
        read_records(Snapshot(root, "HEAD"))
