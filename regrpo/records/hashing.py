"""Bytes read in full and hashed, in a workspace, a git revision, DVC's cache or a DVC remote.

Nothing here looks at a modification time or at what DVC remembers.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from regrpo.core.dvc import files_in, folder_md5, md5_of
from regrpo.core.errors import CannotCheck, class_and_message, first_line
from regrpo.core.files import sha256_json
from regrpo.core.git import git
from regrpo.core.pipeline import Snapshot

CHUNK = 2**20
"""Bytes read at once."""


@dataclass(frozen=True)
class Digest:
    """What was found in one file: SHA-256 and size in bytes, and MD5 where it was asked for."""

    sha256: str
    size: int
    md5: str | None = None


def of_stream(stream: IO[bytes], md5: bool = True) -> Digest:
    """Read a stream to its end once."""
    sha256, other, size = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    while chunk := stream.read(CHUNK):
        sha256.update(chunk)
        if md5:
            other.update(chunk)
        size += len(chunk)
    return Digest(sha256.hexdigest(), size, other.hexdigest() if md5 else None)


def of_bytes(data: bytes) -> Digest:
    """Both hashes of bytes in memory."""
    return Digest(hashlib.sha256(data).hexdigest(), len(data), md5_of(data))


def of_files(wanted: Mapping[Path, bool]) -> dict[Path, Digest | OSError]:
    """Hash files ({path: whether MD5 too}) on every core, the largest first.

    An unreadable one gives its error. Names of one inode (DVC's hard links) are read once.
    """
    found: dict[Path, Digest | OSError] = {}
    inodes: dict[tuple[int, int, int], list[Path]] = {}
    for path in wanted:
        try:
            stat = path.stat()
        except OSError as error:
            found[path] = error
            continue
        inodes.setdefault((stat.st_size, stat.st_dev, stat.st_ino), []).append(path)

    def digest(names: list[Path]) -> Digest | OSError:
        try:
            with names[0].open("rb", buffering=0) as stream:
                return of_stream(stream, md5=any(wanted[name] for name in names))
        except OSError as error:
            return error

    largest_first = [inodes[inode] for inode in sorted(inodes, reverse=True)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for names, result in zip(largest_first, pool.map(digest, largest_first), strict=True):
            found |= dict.fromkeys(names, result)
    return found


def folder_sha256(files: Mapping[str, str]) -> str:
    """What run.json calls a folder's SHA-256: that of its {name: SHA-256}."""
    return sha256_json(dict(files))


class Tree:
    """The files of a workspace, or of a git revision in it, as DVC sees them there."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._known: dict[str, Digest] = {}

    def names(self, path: str) -> list[str] | None:
        """The files at a path, from the root. Returns None if there is nothing."""
        if self.snapshot.revision is None:
            if not Path(path).exists():
                return None
            return [file.as_posix() for file in files_in(Path(path))]
        command = ("-C", str(self.snapshot.root), "ls-tree", "-r", "-z", "--name-only")
        listed = git(*command, self.snapshot.revision, "--", path)
        names = (listed or "").rstrip("\0").split("\0")
        seen = [name for name in names if name == path or not self._ignored.match_file(name)]
        return seen if listed else None

    @cached_property
    def _ignored(self) -> Any:
        from pathspec import GitIgnoreSpec

        lines = (self.snapshot.read(".dvcignore") or b"").decode().splitlines()
        return GitIgnoreSpec.from_lines(lines)

    def listing(self, path: str) -> dict[str, Digest] | None:
        """{file: Digest} at a path (with both hashes). Returns None if there is nothing."""
        names = self.names(path)
        if names is None:
            return None
        unknown = [name for name in names if name not in self._known]
        for name, data in self.snapshot.read_all(unknown).items():
            self._known[name] = of_bytes(data)
        return {name: self._known[name] for name in names if name in self._known}


def path_hashes(path: str, listing: Mapping[str, Digest]) -> tuple[str, str]:
    """(SHA-256, MD5) of a path as run.json and dvc.lock spell them, from the files there."""
    if set(listing) == {path}:
        return listing[path].sha256, str(listing[path].md5)
    inner = {name[len(path) + 1 :]: digest for name, digest in listing.items()}
    return (
        folder_sha256({name: digest.sha256 for name, digest in inner.items()}),
        folder_md5({name: str(digest.md5) for name, digest in inner.items()}),
    )


class Remote:
    """A DVC remote, read through DVC's own file systems.

    Raises CannotCheck where there is none of that name.
    """

    def __init__(self, root: Path, name: str | None) -> None:
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        try:
            with Repo(str(root)) as repo:  # only its databases are closed
                self._odb: Any = repo.cloud.get_remote_odb(name)
        except (DvcException, OSError) as error:
            raise CannotCheck(
                f"remote {name or '(default)'}",
                expected="a DVC remote to read from",
                found=first_line(error).rstrip("."),
                remedy="Add one with `dvc remote add -d NAME URL`, or audit without --remote.",
            ) from error

    def read(self, md5: str) -> bytes | None:
        """A small object's bytes (a folder's listing); None if it is not there."""
        data: bytes | None = self._try(md5, lambda stream: stream.read())
        return data

    def digests(self, wanted: Iterable[str]) -> dict[str, Digest | None]:
        """{MD5: what was found under that name}; None if there is nothing."""
        names = sorted(set(wanted))
        with ThreadPoolExecutor(8) as pool:
            found = pool.map(lambda md5: self._try(md5, of_stream), names)
            return dict(zip(names, found, strict=True))

    def _require_bucket(self) -> None:
        """S3 tells of a missing object and of a missing bucket alike."""
        bucket = self._odb.path.partition("/")[0]
        try:
            if self._odb.fs.protocol == "s3":
                self._odb.fs.fs.ls(bucket)
        except FileNotFoundError as error:
            raise CannotCheck(
                "remote",
                expected=f"the bucket {bucket}",
                found="none of that name",
                remedy="Make it, or correct the remote's address.",
            ) from error
        except OSError:  # one who may read objects need not be allowed to list them
            return

    def _try(self, md5: str, use: Callable[[IO[bytes]], Any]) -> Any:
        try:
            with self._odb.fs.open(self._odb.oid_to_path(md5), "rb") as stream:
                return use(stream)
        except FileNotFoundError:
            self._require_bucket()
            return None
        except Exception as error:  # every file system has exceptions of its own
            raise CannotCheck(
                "remote",
                expected=f"object {md5} to be readable",
                found=class_and_message(error),
                remedy="Check the remote's address and credentials, or audit without --remote.",
            ) from error
