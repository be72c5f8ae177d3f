"""What users bring: a path under data/raw/ or models/raw/, or a hub repository at a commit.

No pickled weights.

Every way in which the hub fails is told in one line, with what to do about it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from regrpo.core.errors import CannotCheck, Refused, RegrpoError

RAW_MODELS = Path("models/raw")
KEPT = (
    *(
        "config.json",
        "generation_config.json",
        "*.safetensors",
        "*.safetensors.index.json",
        "chat_template.jinja",
    ),
    *("tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
)
"""The files that a model is made of; nothing else of a folder is taken."""


def file_under(folder: Path, name: str, key: str) -> Path:
    """The path of `name` under `folder`.

    Raises Refused for a path that leaves it or is not there.
    """
    path = folder / name
    # A linked file is hashed by its content, wherever that lies; the files of a linked folder are
    # not.
    leaves = Path(name).is_absolute() or ".." in Path(name).parts
    if leaves or (path.is_dir() and not path.resolve().is_relative_to(folder.resolve())):
        raise Refused(
            key,
            expected=f"a path under {folder}/",
            found=name,
            remedy=f"Bring it in first: `cp -r {name} {folder}/`, then name it relative to {folder}/.",
        )
    if not path.exists():
        raise CannotCheck(
            key,
            expected=f"a file or folder at {path}",
            found="nothing there",
            remedy=f"Copy it to {path}, or `dvc pull` if it is tracked.",
        )
    return path


def require_safetensors(folder: Path) -> None:
    """Refused for a folder without weights as safetensors, pickled ones named."""
    if not list(folder.glob("*.safetensors")):
        pickled = [
            file.name
            for pattern in ("*.bin", "*.pt", "*.pth")
            for file in sorted(folder.glob(pattern))
        ]
        raise Refused(
            f"{folder}",
            expected="weights as *.safetensors",
            found=f"pickled weights ({', '.join(pickled)})" if pickled else "no weights",
            remedy="Save the model again with `save_pretrained` (safetensors); a pickle can run code.",
        )


def is_commit(revision: str) -> bool:
    """Whether it is a commit's whole name, and no branch's or tag's."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def require_commit(repo: str, revision: str, kind: str, key: str, ask: bool = True) -> None:
    """Refuse a branch or tag name, with the command that prints its commit.

    With `ask`, the hub is asked for it too.

    `kind` is "model" or "dataset".
    """
    if is_commit(revision):
        return
    found = repr(revision)
    if ask:
        from huggingface_hub import HfApi

        try:
            found += f", which now points to {HfApi().repo_info(repo, repo_type=kind, revision=revision).sha}"
        except (
            Exception
        ) as error:  # any failure to ask the hub leaves the same refusal, without the commit
            found += f" (the hub could not be asked for its commit: {type(error).__name__})"
    raise Refused(
        key,
        expected=f"a commit of {kind} {repo}, 40 hex digits, so that the same bytes come back",
        found=found,
        remedy=f"Write the sha that `hf {kind}s info {repo} --revision {revision} --expand sha` prints there.",
    )


def snapshot(repo: str, revision: str, key: str) -> Path:
    """The folder of a hub model's files (KEPT) at a commit, in the hub's cache.

    Raises as the two functions around.
    """
    from huggingface_hub import snapshot_download

    require_commit(repo, revision, "model", f"{key}.revision")
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(KEPT)))
    except Exception as error:  # the hub's client raises a different class for each kind of failure
        instead = f"copy the folder to {RAW_MODELS}/ and name it there"
        raise hub_failure(error, repo, revision, "model", key, instead) from error


def hub_failure(
    error: Exception, repo: str, revision: str, kind: str, key: str, instead: str
) -> RegrpoError:
    """What a failed request to the hub means; `instead` says how to do without it."""
    from huggingface_hub import errors, get_token

    page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repo}"
    chain = list(_causes(error))
    told = f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}"

    def is_a(*classes: type[BaseException]) -> bool:
        return any(isinstance(one, classes) for one in chain)

    # Its HTTP library changes with the hub client's version: known by its class's name.
    unreachable = any(
        base.__name__ == "TransportError" for one in chain for base in type(one).__mro__
    )
    if is_a(errors.GatedRepoError):
        access = "a login that was not granted access" if get_token() else "no login"
        found, remedy = (
            f"a gated {kind} and {access}",
            f"Accept its licence at {page}, then `hf auth login`",
        )
    elif is_a(errors.RevisionNotFoundError):
        found, remedy = "no such commit there", f"Take one from {page}/commits/main"
    elif is_a(errors.RepositoryNotFoundError):
        found, remedy = (
            f"no such {kind}, or a private one",
            f"Look at {page}; log in to see it (`hf auth login`)",
        )
    elif (
        is_a(errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError, ConnectionError)
        or unreachable
    ):
        found, remedy = (
            f"no way to the hub ({told})",
            "Check the network (and that HF_HUB_OFFLINE is not set)",
        )
    else:
        found, remedy = told, "Check network, access and licence (`hf auth login`)"
    where = f"{key}: {repo} at {revision[:12]}"
    return CannotCheck(
        where, expected="its files from the hub", found=found, remedy=f"{remedy}, or {instead}."
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
