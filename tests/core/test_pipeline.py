"""A pipeline counts as one only if everything in it fits together; what does not fit is named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from regrpo.core.errors import CannotCheck
from regrpo.core.pipeline import Misfit, Snapshot, chain_misfits, load, misfits, record_path
from regrpo.core.profiles import STAGES
from tests.support.pipelines import commit, digest, record, write_pipeline, write_stage


def misfits_of(root: Path) -> list[Misfit]:
    snapshot = Snapshot(root)
    data = snapshot.record_bytes()
    return misfits(
        snapshot.lock(), data, {stage: json.loads(one)[0] for stage, one in data.items()}
    )


def drop_entry(root: Path) -> None:
    lock = json.loads((root / "dvc.lock").read_text())
    del lock["stages"]["grpo"]
    (root / "dvc.lock").write_text(json.dumps(lock))


def change_command(root: Path) -> None:
    text = (root / "dvc.lock").read_text()
    (root / "dvc.lock").write_text(text.replace("stages.grpo", "stages.other"))


def alter_record(root: Path) -> None:
    path = root / record_path("grpo")
    path.write_text(path.read_text().replace('"size": 9', '"size": 8'))


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda root: None, []),
        (drop_entry, [("grpo", "entry", "dvc.lock")]),
        (
            lambda root: (root / record_path("grpo")).unlink(),
            [("grpo", "record", record_path("grpo"))],
        ),
        (alter_record, [("grpo", "md5", record_path("grpo"))]),
        (change_command, [("grpo", "key", record_path("grpo"))]),
        (
            lambda root: write_stage(root, "sft", 1),
            [
                ("sft", "input", "data/prepared/train.parquet"),
                ("sft", "input", "models/base"),
                ("grpo", "input", "models/sft"),
                ("evaluate", "input", "models/sft"),
            ],
        ),
    ],
)
def test_what_does_not_fit_is_named(
    tmp_path: Path, spoil: Callable[[Path], object], expected: list[tuple[str, str, str]]
) -> None:
    write_pipeline(tmp_path)
    assert Snapshot(tmp_path).pipeline_key() is not None
    spoil(tmp_path)
    assert [(one.stage, one.kind, one.path) for one in misfits_of(tmp_path)] == expected
    assert (Snapshot(tmp_path).pipeline_key() is None) is bool(expected)


def test_a_broken_chain_names_the_maker_and_both_hashes() -> None:
    records = {stage: record(stage) for stage in STAGES} | {"sft": record("sft", 1)}
    (first, *_) = [one for one in chain_misfits(records) if one.stage == "grpo"]
    assert first == Misfit(
        "grpo", "input", "models/sft", digest("models/sft 1"), digest("models/sft 0"), "sft"
    )


def test_a_file_that_is_not_among_its_folders_is_no_output() -> None:
    maker = record("prepare")
    reader = record("sft") | {
        "inputs": [{"path": "data/prepared/extra.parquet", "sha256": "0" * 64}]
    }
    assert chain_misfits({"prepare": maker, "sft": reader}) == [
        Misfit("sft", "input", "data/prepared/extra.parquet", None, "0" * 64, "prepare")
    ]


def test_a_record_is_an_output_too() -> None:
    reader = record("model_card") | {"inputs": [{"path": record_path("sft"), "sha256": "0" * 64}]}
    records = {"sft": record("sft"), "model_card": reader}
    found = chain_misfits(records, {"sft": b"[]"})
    assert [(one.path, one.expected) for one in found] == [
        (record_path("sft"), hashlib.sha256(b"[]").hexdigest())
    ]
    assert chain_misfits(records) == []


def test_a_whole_pipeline_has_a_key_in_the_workspace_and_at_a_revision(tmp_path: Path) -> None:
    write_pipeline(tmp_path)
    key = Snapshot(tmp_path).pipeline_key()
    revision = commit(tmp_path)
    write_pipeline(tmp_path, 1)
    assert key is not None
    assert Snapshot(tmp_path, revision).pipeline_key() == key
    assert Snapshot(tmp_path).pipeline_key() not in (key, None)
    committed, here = load([Snapshot(tmp_path, revision), Snapshot(tmp_path)], ["dvc.lock"])
    assert committed.pipeline_key() == key != here.pipeline_key()


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "stages: {prepare: {outs: []}}",
        "stages: {prepare: {cmd: x, outs: [{path: 1, md5: a}]}}",
        "stages: {prepare: {cmd: x, params: {params.yaml: 3}}}",
        "- a list",
    ],
)
def test_a_lock_file_of_another_form_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "dvc.lock").write_text(content)
    with pytest.raises(
        CannotCheck, match="expected DVC's lock file; found a corrupted one"
    ) as caught:
        Snapshot(tmp_path).lock()
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_lock_file_has_no_stages(tmp_path: Path) -> None:
    assert Snapshot(tmp_path).lock() == {"stages": {}}
    assert Snapshot(tmp_path).pipeline_key() is None


def test_an_output_is_found_in_the_cache_that_dvc_is_told_to_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    digest = hashlib.md5(b"rows").hexdigest()
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[cache]\n    dir = ../elsewhere\n")
    (tmp_path / "dvc.lock").write_text(
        f"stages: {{sft: {{cmd: python, outs: [{{path: a.parquet, md5: {digest}}}]}}}}\n"
    )
    kept = tmp_path / "elsewhere/files/md5" / digest[:2] / digest[2:]
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"rows")
    assert Snapshot(tmp_path).output("a.parquet") == b"rows"
