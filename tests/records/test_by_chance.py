"""Whatever a record or a journal holds: it is read, or named by an error of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="of the extra dev")

from hypothesis import given
from hypothesis import strategies as st

from regrpo.records.journal import damaged_folder, journal_folder, pending
from regrpo.records.record import parse_record
from tests.support.chance import BY_CHANCE, damaged, json_values, read_or_refused
from tests.support.pipelines import record
from tests.support.stores import open_journal

WHOLE = record("sft", run="sft-0")
WRITTEN = json.dumps([WHOLE]).encode()


@BY_CHANCE
@given(
    data=st.one_of(
        st.binary(max_size=40),
        damaged(WRITTEN),
        st.dictionaries(st.sampled_from(sorted(WHOLE)), json_values).map(
            lambda changes: json.dumps([WHOLE | changes]).encode()
        ),
    )
)
def test_a_damaged_record_is_read_or_named(data: bytes) -> None:
    with read_or_refused("reports/sft/run.json"):
        parsed, written = parse_record(data, "reports/sft/run.json")
        assert parsed.stage == written["stage"]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


@BY_CHANCE
@given(
    changes=st.dictionaries(
        st.sampled_from(
            ["process", "execution", "experiment", "baseline", "stage", "run", "entry"]
        ),
        json_values,
    ),
    closed=st.one_of(st.none(), json_values.map(lambda value: json.dumps(value).encode())),
    notes=st.one_of(st.none(), json_values.map(lambda value: json.dumps(value).encode())),
    metrics=st.one_of(
        st.none(), damaged(b'{"step": 1, "time": 1.0, "values": {"loss": 1.0}}\n' * 2)
    ),
)
def test_a_journal_of_any_content_is_read_or_set_aside(
    root: Path,
    changes: dict[str, Any],
    closed: bytes | None,
    notes: bytes | None,
    metrics: bytes | None,
) -> None:
    folder = open_journal(root).folder
    facts = json.loads((folder / "open.json").read_text())
    (folder / "open.json").write_text(json.dumps(facts | changes))
    written = {"closed.json": closed, "mlflow.json": notes, "metrics.jsonl": metrics}
    for name, content in written.items():
        if content is not None:
            (folder / name).write_bytes(content)
    journals = list(pending())
    assert len(journals) + len(list(damaged_folder().glob("*"))) >= 1
    for journal in journals:
        assert isinstance(journal.live, bool)
        assert journal.execution is None or len(journal.execution) == 32
        assert journal.closed is None or isinstance(journal.closed["status"], str)
        assert isinstance(journal.tracker_notes, dict)
        for rows, end in journal.metrics_from(0):
            assert all(isinstance(one["values"], dict) for one in rows)
            assert list(journal.metrics_from(end)) == []
        journal.mark_sent()
    assert journal_folder().is_dir()
