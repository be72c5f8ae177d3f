"""Bytes are hashed as DVC and as the records hash them, each file once."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from regrpo.core.dvc import dvc_md5
from regrpo.core.pipeline import Snapshot
from regrpo.records import hashing, stage_run


def test_a_folder_listing_hashes_as_dvc_and_the_records_hash_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.txt", "inner/a.txt", "inner.txt"):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text(name)
    listing = hashing.Tree(Snapshot(tmp_path)).listing("out")
    assert listing is not None
    assert hashing.path_hashes("out", listing) == (
        stage_run.fingerprint("out")["sha256"],
        dvc_md5(Path("out")),
    )


def test_hard_links_are_read_once_and_both_hashed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    os.link(tmp_path / "a", tmp_path / "b")
    one = hashing.of_files({tmp_path / "a": False, tmp_path / "b": True, tmp_path / "gone": True})
    assert one[tmp_path / "a"] == one[tmp_path / "b"] == hashing.of_bytes(b"x" * 3_000_000)
    assert isinstance(one[tmp_path / "gone"], FileNotFoundError)


@pytest.mark.parametrize("size", [0, 1, hashing.CHUNK, 3 * hashing.CHUNK + 7])
def test_a_stream_hashes_as_the_bytes_do(size: int) -> None:
    data = os.urandom(size)
    whole = hashing.of_bytes(data)
    assert hashing.of_stream(io.BytesIO(data), md5=True) == whole
    assert hashing.of_stream(io.BytesIO(data), md5=False) == hashing.Digest(whole.sha256, size)
