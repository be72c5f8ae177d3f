"""What DVC itself would say: its hashes, its root, its configuration, where its cache lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regrpo.core.errors import CannotCheck
from regrpo.core.profiles import read_yaml


def entry_now(stage: str) -> dict[str, Any]:
    """The dvc.lock entry (without outs) that DVC will write for `stage` from what lies in the workspace now."""
    declared = read_yaml(Path("dvc.yaml"))["stages"][stage]
    profile = str(read_yaml(Path("params.yaml"))["profile"])
    section = (read_yaml(Path(profile)) or {}).get(stage)
    return {
        "cmd": declared["cmd"],
        "deps": [{"path": path, "md5": dvc_md5(Path(path))} for path in declared["deps"]],
        "params": {profile: {stage: section}},
    }


def dvc_md5(path: Path) -> str:
    """DVC's own hash.

    A file's MD5, or for a folder the MD5 of its sorted listing, ending in `.dir`.

    An identity within the pipeline, not a protection: records hold SHA-256 besides.
    """
    if path.is_file():
        with path.open("rb") as f:
            return hashlib.file_digest(f, "md5").hexdigest()
    listing = [
        {"md5": dvc_md5(file), "relpath": file.relative_to(path).as_posix()}
        for file in files_in(path)
    ]
    listing.sort(key=lambda item: item["relpath"])
    return md5_of(json.dumps(listing, sort_keys=True).encode()) + ".dir"


def files_in(path: Path) -> Iterator[Path]:
    """The files that DVC sees at a path.

    Itself, or all below a folder that .dvcignore does not exclude.
    """
    from pathspec import GitIgnoreSpec

    if path.is_file():
        yield path
        return
    ignore_file = Path(".dvcignore")
    ignored = GitIgnoreSpec.from_lines(
        ignore_file.read_text().splitlines() if ignore_file.exists() else []
    )
    for file in sorted(path.rglob("*")):
        if file.is_file() and not ignored.match_file(file.as_posix()):
            yield file


def dvc_root() -> Path:
    """The root of the repository that the user sees, also from DVC's temporary experiment workspaces."""
    import os

    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def dvc_config(root: Path) -> dict[str, Any]:
    """DVC's configuration of the repository at `root`, as DVC reads it.

    Raises CannotCheck where it cannot be read.
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
    return (
        Path(dvc_config(root).get("cache", {}).get("dir") or root / ".dvc" / "cache")
        / "files"
        / "md5"
    )


def md5_of(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()
