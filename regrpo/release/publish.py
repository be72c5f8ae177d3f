"""A released folder, verified and put onto the Hugging Face hub, or what that would be."""

from __future__ import annotations

from pathlib import Path

from regrpo.core import files
from regrpo.core.errors import Refused
from regrpo.core.files import Json
from regrpo.core.text import some
from regrpo.release import hub
from regrpo.release import signature as signatures
from regrpo.release.layout import ABOUT, CARD, SIGNATURE, SUMS
from regrpo.release.release import tell_mlflow
from regrpo.release.verify import read_sums, verify


def publish(
    folder: Path,
    repo_id: str,
    *,
    public_key: Path | None = None,
    send: bool = False,
    private: bool = False,
    mlflow: bool = True,
) -> Json:
    """Verify a released folder, and with `send` make it one commit of a repository on the hub.

    Its signature goes with it, as model.sig. Raises Refused for a name that the hub would refuse, a
    folder that is not whole, a card that names another repository, and as `hub.upload` does.
    Returns what `verify` does and {repo_id, sizes (bytes by file), metadata, commit, url, removed};
    the last three are None in a dry run.
    """
    hub.require_repo_id(repo_id)
    result = verify(folder, public_key=public_key)
    paths = {name: folder / name for name in sorted([*read_sums(folder / SUMS), SUMS])}
    signature = signatures.find(folder)
    if signature.is_file():
        paths[SIGNATURE] = signature
    about = files.read_json(folder / ABOUT)
    named = about["repo_id"]
    if named not in (None, repo_id):
        raise Refused(
            f"{folder / CARD}, quick start",
            expected=repo_id,
            found=named,
            remedy=f"Publish it there, or release it again with --repo-id {repo_id}.",
        )
    if named is None:
        result["notes"].append(
            "the card's quick start loads the folder it is in: "
            f"a release with --repo-id {repo_id} has one that loads it from the hub"
        )
    result |= {
        "repo_id": repo_id,
        "sizes": {name: path.stat().st_size for name, path in paths.items()},
        "metadata": hub.card_metadata((folder / CARD).read_text(encoding="utf-8")),
        "commit": None,
        "url": None,
        "removed": None,
    }
    if send:
        message = f"{about['model']}, pipeline {about['pipeline_key'][:12]}"
        result |= hub.upload(folder, paths, repo_id, message, private=private)
        if result["removed"]:
            result["notes"].append(f"no part of the release, removed: {some(result['removed'])}")
        if mlflow:
            pinned = f"{repo_id}@{result['commit']}"
            tags = {"regrpo.release": result["sha256"], "regrpo.release.hub": pinned}
            key = about["pipeline_key"]
            result["notes"] += tell_mlflow(about["model"], key, tags, folder / SUMS)
    return result
