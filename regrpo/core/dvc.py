"""What DVC itself would say: its hashes, its root, its configuration, what its cache holds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from regrpo.core.errors import CannotCheck
from regrpo.core.files import Json
from regrpo.core.profiles import read_yaml


def entry_now(stage: str) -> Json:
    """The dvc.lock entry (without outs) that DVC will write for `stage` as things are now."""
    declared = read_yaml(Path("dvc.yaml"))["stages"][stage]
    profile = str(read_yaml(Path("params.yaml"))["profile"])
    section = (read_yaml(Path(profile)) or {}).get(stage)
    return {
        "cmd": declared["cmd"],
        "deps": [{"path": path, "md5": dvc_md5(Path(path))} for path in declared["deps"]],
        "params": {profile: {stage: section}},
    }


def path_of(declared: Any) -> str:
    """The path in an entry of dvc.yaml's lists: a string, or one path's mapping to its options."""
    if isinstance(declared, Mapping):
        return str(next(iter(declared)))
    return str(declared)


def declared_outputs(stage: Json) -> list[Any]:
    """The entries under `outs:`, `metrics:` and `plots:` of a stage in dvc.yaml (see `path_of`)."""
    return [entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind) or []]


# --- hashes ---------------------------------------------------------------------------------------


def md5_of(data: bytes) -> str:
    """MD5 in hex. It identifies within the pipeline, no more: records hold SHA-256 too."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def dvc_md5(path: Path) -> str:
    """DVC's own hash of what lies at a path: a file's MD5, or a folder's (`folder_md5`)."""
    if path.is_file():
        with path.open("rb") as f:
            return hashlib.file_digest(f, "md5").hexdigest()
    return folder_md5({file.relative_to(path).as_posix(): dvc_md5(file) for file in files_in(path)})


def folder_md5(files: Mapping[str, str]) -> str:
    """DVC's hash of a folder: the MD5 of its sorted listing, and `.dir`; `files` is {name: MD5}."""
    listing = [{"md5": md5, "relpath": name} for name, md5 in sorted(files.items())]
    return md5_of(json.dumps(listing, sort_keys=True).encode()) + ".dir"


def parse_listing(data: bytes) -> dict[str, str] | None:
    """{name: MD5} of a `.dir` object's bytes. Returns None if they are no such listing."""
    try:
        return {str(item["relpath"]): str(item["md5"]) for item in json.loads(data)}
    except (ValueError, TypeError, KeyError):
        return None


def files_in(path: Path) -> Iterator[Path]:
    """The files that DVC sees at a path: itself, or what .dvcignore lets through of a folder."""
    from pathspec import GitIgnoreSpec

    if path.is_file():
        yield path
        return
    ignore_file = Path(".dvcignore")
    lines = ignore_file.read_text().splitlines() if ignore_file.exists() else []
    ignored = GitIgnoreSpec.from_lines(lines)
    for file in sorted(path.rglob("*")):
        if file.is_file() and not ignored.match_file(file.as_posix()):
            yield file


# --- the repository and its cache -----------------------------------------------------------------


def dvc_root() -> Path:
    """The root of the user's repository, also from DVC's temporary experiment workspaces."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def state_folder(*inner: str) -> Path:
    """A folder in .regrpo/ of the user's repository, or that itself; it is made if it is new.

    Nobody else may enter .regrpo/: journals hold the code's changes and what servers answered.
    """
    top = dvc_root() / ".regrpo"
    top.mkdir(mode=0o700, exist_ok=True)
    if top.stat().st_mode & 0o077:
        with contextlib.suppress(PermissionError):  # another user's, or a file system without modes
            top.chmod(0o700)
    folder = top.joinpath(*inner)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def dvc_config(root: Path) -> Json:
    """DVC's configuration of the repository at `root`, as DVC reads it.

    Raises CannotCheck if it cannot be read.
    """
    from dvc.config import Config
    from dvc.exceptions import DvcException

    try:
        return dict(Config(str(root / ".dvc")))
    except (DvcException, ValueError, OSError) as error:
        raise CannotCheck(
            ".dvc/config",
            expected="DVC's configuration",
            found=f"a broken one ({' '.join(str(error).split())[:120]})",
            remedy="Mend it (or .dvc/config.local), or restore it with git.",
        ) from error


def cache_folder(root: Path) -> Path:
    """Where DVC's cache of the repository at `root` keeps its objects."""
    configured = dvc_config(root).get("cache", {}).get("dir")
    return Path(configured or root / ".dvc" / "cache") / "files" / "md5"


def object_path(cache: Path, md5: str) -> Path:
    """Where the object of this MD5 lies in a cache (or a remote, which DVC lays out alike)."""
    return cache / md5[:2] / md5[2:]


def read_object(cache: Path, md5: str) -> bytes | None:
    """An object's bytes. Returns None if it is not there, or not what its name says."""
    path = object_path(cache, md5)
    if not md5 or not path.is_file():
        return None
    data = path.read_bytes()
    return data if md5_of(data) == md5.removesuffix(".dir") else None


def read_object_inside(cache: Path, folder: str, name: str) -> bytes | None:
    """A file of a folder output, whose MD5 is `folder`. Returns None as `read_object` does."""
    listing = parse_listing(read_object(cache, folder) or b"")
    return read_object(cache, (listing or {}).get(name, ""))
