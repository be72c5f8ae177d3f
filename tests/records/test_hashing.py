"""Bytes are hashed as DVC and as the records hash them, each file once."""

from __future__ import annotations

import hashlib
import io
import os
import sqlite3
from pathlib import Path
from typing import Any

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


def test_a_remote_leaves_no_database_of_dvc_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def watched(*arguments: Any, **options: Any) -> sqlite3.Connection:
        opened.append(connect(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", watched)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    digest = hashlib.md5(b"rows").hexdigest()
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text(
        "[core]\n    no_scm = true\n    remote = store\n"
        f"['remote \"store\"']\n    url = {tmp_path / 'store'}\n"
    )
    kept = tmp_path / "store/files/md5" / digest[:2] / digest[2:]
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"rows")
    assert hashing.Remote(tmp_path, None).read(digest) == b"rows"
    assert opened, "DVC opens databases of its own"
    for connection in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            connection.execute("select 1")


@pytest.mark.parametrize("size", [0, 1, hashing.CHUNK, 3 * hashing.CHUNK + 7])
def test_a_stream_hashes_as_the_bytes_do(size: int) -> None:
    data = os.urandom(size)
    whole = hashing.of_bytes(data)
    assert hashing.of_stream(io.BytesIO(data), md5=True) == whole
    assert hashing.of_stream(io.BytesIO(data), md5=False) == hashing.Digest(whole.sha256, size)
