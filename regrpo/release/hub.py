"""The Hugging Face hub: the names that it takes, a card's metadata, and one commit of a folder.

The login is huggingface_hub's own (`hf auth login`, or HF_TOKEN): no token is read or passed here.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from regrpo.core.errors import (
    CannotCheck,
    Refused,
    RegrpoError,
    causes,
    class_and_message,
    first_line,
    parsing,
    system_refusal,
)
from regrpo.core.files import Json
from regrpo.core.hub import UNREACHABLE
from regrpo.core.text import some
from regrpo.release.layout import AROUND, CARD

AGAIN = "Nothing was committed: publish again, and what was uploaded is not sent twice."
GITATTRIBUTES = ".gitattributes"
"""The hub's own, which says what it keeps as large files."""


def require_repo_id(repo_id: str) -> None:
    """Raise Refused for what is no OWNER/NAME that the hub takes."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
        owner, _, name = repo_id.partition("/")
        if not owner or not name:
            raise HFValidationError(f"no owner and name: {repo_id!r}")
    except HFValidationError as error:
        raise Refused(
            "--repo-id",
            expected="OWNER/NAME, as the hub takes it",
            found=str(error).partition("\n")[0].rstrip("."),
            remedy="Letters, digits, - _ and . are allowed, 96 at most.",
        ) from error


def card_metadata(card: str) -> Json:
    """A card's metadata. Raises Refused for what huggingface_hub does not take as such."""
    from huggingface_hub import ModelCard

    with parsing(CARD, "metadata as huggingface_hub takes it", "Make the release again."):
        metadata: Json = ModelCard(card).data.to_dict()
        if not metadata:
            raise ValueError("none")
        return metadata


def upload(
    folder: Path, paths: Mapping[str, Path], repo_id: str, message: str, *, private: bool
) -> Json:
    """Make a model repository hold the files `paths` and no others, by one commit.

    The repository is made if there is none. The hub's hashes of that commit are compared with those
    in the folder. Raises Refused where the hub refuses login, rights or metadata, CannotCheck for
    all else that goes wrong on the way. Returns {commit, url, removed: what was there besides}.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

    # By plain LFS, which every hub speaks, a commit is one and needs no package besides.
    constants.HF_HUB_DISABLE_XET = True
    api = HfApi()
    with _asking(repo_id), warnings.catch_warnings():
        # The evaluation's samples are Parquet; huggingface_hub asks whether that is intended.
        warnings.filterwarnings("ignore", "It seems that you are about to commit a data file")
        api.create_repo(repo_id, private=private, exist_ok=True)
        removed = sorted(set(api.list_repo_files(repo_id)) - {GITATTRIBUTES, *paths})
        operations = [CommitOperationDelete(name, is_folder=False) for name in removed]
        added = [CommitOperationAdd(name, path) for name, path in paths.items()]
        done = api.create_commit(repo_id, [*operations, *added], commit_message=message)
        compared = api.verify_repo_checksums(repo_id, revision=done.oid, local_dir=folder)
    differing = [one["path"] for one in compared.mismatches] + compared.extra_paths
    differing = [name for name in differing if name not in AROUND]
    if differing:
        raise Refused(
            f"{repo_id}, commit {done.oid}",
            expected="the files of the folder",
            found=f"other bytes or none of {some(differing)}",
            remedy="Do not hand this commit on: look at the repository, then publish again.",
        )
    url = f"{api.endpoint}/{repo_id}/tree/{done.oid}"
    return {"commit": done.oid, "url": url, "removed": removed}


@contextlib.contextmanager
def _asking(repo_id: str) -> Iterator[None]:
    """The boundary around the hub: what it or the way to it refuses becomes one line."""
    try:
        yield
    except RegrpoError:
        raise
    except Exception as error:  # huggingface_hub raises a class of its own for each kind of failure
        raise system_refusal(error) or _failure(error, repo_id) from error


def _failure(error: Exception, repo_id: str) -> RegrpoError:
    owner = repo_id.partition("/")[0]
    statuses = [getattr(getattr(one, "response", None), "status_code", 0) for one in causes(error)]
    classes = {base.__name__ for one in causes(error) for base in type(one).__mro__}
    where = f"the hub ({repo_id})"
    if 401 in statuses:
        return Refused(
            where,
            expected="a login",
            found="none, or a token that the hub does not know (401)",
            remedy="`hf auth login`, or set HF_TOKEN.",
        )
    if 403 in statuses:
        return Refused(
            where,
            expected=f"a login that may write to {owner}",
            found="one that may not (403)",
            remedy=f"Log in with a token that has write access to {owner} (`hf auth login`).",
        )
    if isinstance(error, ValueError):  # what it says of the card's metadata
        found = " ".join(str(error).split())
        return Refused(where, expected="what the hub takes", found=found, remedy="Mend that.")
    if classes & UNREACHABLE:
        return CannotCheck(
            where,
            expected="a way to it",
            found=f"none ({class_and_message(error)})",
            remedy=f"Check the network (and that HF_HUB_OFFLINE is not set). {AGAIN}",
        )
    found = first_line(error).rstrip(".")
    if error.__cause__ is not None:  # of a file's upload the first line names the file
        found += f" ({class_and_message(error.__cause__)})"
    return CannotCheck(where, expected="an upload", found=found, remedy=AGAIN)
