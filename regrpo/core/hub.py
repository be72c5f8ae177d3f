"""What users bring: a path under data/raw/ or models/raw/, or a hub repository at a commit."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from regrpo.core import files
from regrpo.core.errors import (
    CannotCheck,
    Refused,
    RegrpoError,
    causes,
    class_and_message,
    parsing,
)

RAW_MODELS = Path("models/raw")
BROUGHT = (Path("data/raw"), RAW_MODELS, Path("custom"))
"""The folders of what people bring."""
KEPT = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "chat_template.jinja",
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""The files that a model is made of; nothing else of a folder is taken."""
PICKLED = ("*.bin", "*.pt", "*.pth")
MOST_PARTS, MOST = 10_000, 2**27
"""Layers, heads or experts of a model, and any other size of its: what no model comes near to."""
SIZE = re.compile("layer|head|expert|dim|size|width|position|vocab|window|length|rank")
"""Words in the names of sizes; other numbers may be any (`rope_theta: 1000000000`)."""
NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model", "dim"),
    "vocabulary": ("vocab_size",),
    "intermediate": ("intermediate_size", "n_inner", "ffn_dim", "d_ff"),
}
"""How architectures name their sizes."""
PAIRS = (("vocabulary", "hidden"), ("layers", "hidden"), ("hidden", "intermediate"))
"""Sizes whose product no causal language model has fewer weights than."""
UNREACHABLE = {
    "OfflineModeIsEnabled",
    "LocalEntryNotFoundError",
    "ConnectionError",
    "TransportError",
}
"""Classes of errors, at the hub or in its HTTP library, that mean that there is no way to it."""


def file_under(folder: Path, name: str, key: str) -> Path:
    """The path of `name` under `folder`.

    Raises Refused for a path that leaves the folder and for what is no regular file there,
    CannotCheck for one that is not there.
    """
    path = folder / name
    leaves = Path(name).is_absolute() or ".." in Path(name).parts
    # DVC hashes a linked file by its content, wherever that lies, but no files of a linked folder.
    if path.is_dir() and not path.resolve().is_relative_to(folder.resolve()):
        leaves = True
    if leaves:
        raise Refused(
            key,
            expected=f"a path under {folder}/",
            found=name,
            remedy=f"Bring it in first: `cp -r {name} {folder}/`, "
            f"then name it relative to {folder}/.",
        )
    if not path.exists():
        raise CannotCheck(
            key,
            expected=f"a file or folder at {path}",
            found="nothing there",
            remedy=f"Copy it to {path}, or `dvc pull` if it is tracked.",
        )
    require_regular(path, folder)
    return path


def require_regular(path: Path, folder: Path) -> None:
    """Refuse what is no regular file inside a brought `folder`, before it is opened or copied.

    A link may lead to a file inside the folder or to an object of DVC's cache.
    """
    for file in _all_under(path):
        found = _irregular(file, folder)
        if found:
            raise Refused(
                str(file),
                expected=f"regular files inside {folder}/",
                found=found,
                remedy="Copy the file itself there, or remove it.",
            )


def require_brought() -> None:
    """Refuse what is no regular file in any of the folders that people bring things into."""
    for folder in BROUGHT:
        require_regular(folder, folder)


def _all_under(path: Path) -> Iterator[Path]:
    """The path and all below it; links are not followed."""
    if os.path.lexists(path):
        yield path
    for parent, folders, names in os.walk(path):
        for name in sorted(folders + names):
            yield Path(parent, name)


def _irregular(file: Path, folder: Path) -> str | None:
    """What a path is, if it is neither a folder nor a regular file inside `folder`."""
    if not _is_utf8(file.name):
        return "a name that is not UTF-8"
    mode = file.lstat().st_mode
    if stat.S_ISLNK(mode):
        return _leaving(file, folder)
    kinds = {stat.S_ISFIFO: "a FIFO", stat.S_ISSOCK: "a socket"}
    for is_kind, what in kinds.items():
        if is_kind(mode):
            return what
    return None if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else "a device"


def _leaving(link: Path, folder: Path) -> str | None:
    """Where a link leads, if that is no file or folder inside `folder`."""
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # nothing there, or links in a circle
        return f"a link to {link.readlink()}, where nothing is"
    is_cached = target.parts[-4:-2] == ("files", "md5") and target.is_file()
    if target.is_relative_to(folder.resolve()) or is_cached:
        return None
    return f"a link to {link.readlink()}, which leads out of it"


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_safetensors(folder: Path) -> None:
    """Refuse a folder without weights as safetensors; pickled ones are named."""
    if list(folder.glob("*.safetensors")):
        return
    pickled = [file.name for pattern in PICKLED for file in sorted(folder.glob(pattern))]
    raise Refused(
        str(folder),
        expected="weights as *.safetensors",
        found=f"pickled weights ({', '.join(pickled)})" if pickled else "no weights",
        remedy="Save the model again with `save_pretrained` (safetensors); a pickle can run code.",
    )


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file of the model's. Raises Refused for one that holds no object."""
    with parsing(path, "a JSON object", "Bring the file again, whole."):
        content = files.read_json(path)
        if not isinstance(content, dict):
            raise ValueError(type(content).__name__)
    return content


def require_sizes(config: Mapping[str, Any], where: str, stored: int | None = None) -> None:
    """Refuse a configuration whose sizes would take all memory, before a model is made of it.

    `stored` is how many weights the files hold; none of PAIRS may need more. Raises Refused with
    the numbers.
    """
    for part in (config, *(one for one in config.values() if isinstance(one, Mapping))):
        for key, value in part.items():
            is_count = any(word in str(key) for word in ("layer", "head", "expert"))
            is_width = any(word in str(key) for word in ("dim", "size"))
            most = MOST_PARTS if is_count and not is_width else MOST
            if SIZE.search(str(key)) and isinstance(value, int) and abs(value) > most:
                raise _too_large(f"{where}: {key}", f"at most {most:,}", f"{value:,}")
        if stored is not None:
            _require_stored(part, where, stored)


def _require_stored(config: Mapping[str, Any], where: str, stored: int) -> None:
    sizes = {}
    for name, keys in NAMES.items():
        for key in keys:
            if isinstance(config.get(key), int):
                sizes[name] = (key, config[key])
    for one, other in PAIRS:
        if one in sizes and other in sizes:
            (key, size), (second, factor) = sizes[one], sizes[other]
            if size * factor > stored:
                found = f"{size:,} × {factor:,}, which needs {size * factor:,}"
                expected = f"sizes that fit the {stored:,} weights that its files hold"
                raise _too_large(f"{where}: {key}, {second}", expected, found)


def _too_large(where: str, expected: str, found: str) -> Refused:
    return Refused(
        where,
        expected=expected,
        found=found,
        remedy="Bring the configuration that belongs to the weights.",
    )


def is_commit(revision: str) -> bool:
    """Whether it is a commit's whole name, and no branch's or tag's."""
    return re.fullmatch(r"[0-9a-f]{40}", revision) is not None


def require_commit(repo: str, revision: str, kind: str, key: str, ask: bool = True) -> None:
    """Refuse a branch or tag name, with the command that prints its commit.

    `kind` is "model" or "dataset". With `ask`, the hub is asked which commit it is now.
    """
    if is_commit(revision):
        return
    found = repr(revision)
    if ask:
        from huggingface_hub import HfApi

        try:
            commit = HfApi().repo_info(repo, repo_type=kind, revision=revision).sha
            found += f", which now points to {commit}"
        except Exception as error:  # whatever fails, the refusal is the same without the commit
            problem = type(error).__name__
            found += f" (the hub could not be asked for its commit: {problem})"
    command = f"hf {kind}s info {repo} --revision {revision} --expand sha"
    raise Refused(
        key,
        expected=f"a commit of {kind} {repo}, 40 hex digits, so that the same bytes come back",
        found=found,
        remedy=f"Write the sha that `{command}` prints there.",
    )


def snapshot(repo: str, revision: str, key: str) -> Path:
    """The folder of a hub model's files (KEPT) at a commit, in the hub's cache.

    Raises Refused for a revision that is no commit, CannotCheck if the hub does not give them.
    """
    from huggingface_hub import snapshot_download

    require_commit(repo, revision, "model", f"{key}.revision")
    try:
        # An adapter is recognised by its own file; Mistral's second copy of the weights is large.
        wanted, unwanted = [*KEPT, "adapter_config.json"], ["consolidated*"]
        return Path(
            snapshot_download(
                repo, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted
            )
        )
    except Exception as error:  # the hub's client raises a different class for each kind of failure
        instead = f"copy the folder to {RAW_MODELS}/ and name it there"
        raise hub_failure(error, repo, revision, "model", key, instead) from error


def hub_failure(
    error: Exception, repo: str, revision: str, kind: str, key: str, instead: str
) -> RegrpoError:
    """What a failed request to the hub means; `instead` says how to do without it."""
    found, remedy = _meaning(error, repo, kind)
    return CannotCheck(
        f"{key}: {repo} at {revision[:12]}",
        expected="its files from the hub",
        found=found,
        remedy=f"{remedy}, or {instead}.",
    )


def _meaning(error: Exception, repo: str, kind: str) -> tuple[str, str]:
    """What was found, and what to do about it."""
    from huggingface_hub import get_token

    page = f"https://huggingface.co/{repo}"
    if kind == "dataset":
        page = f"https://huggingface.co/datasets/{repo}"
    # By name, as the HTTP library underneath changes with the version of the hub's client.
    classes = {base.__name__ for cause in causes(error) for base in type(cause).__mro__}
    # Before RepositoryNotFoundError, of which it is a kind.
    if "GatedRepoError" in classes:
        access = "a login that was not granted access" if get_token() else "no login"
        return (
            f"a gated {kind} and {access}",
            f"Accept its licence at {page}, then `hf auth login`",
        )
    if "RevisionNotFoundError" in classes:
        return "no such commit there", f"Take one from {page}/commits/main"
    if "RepositoryNotFoundError" in classes:
        return (
            f"no such {kind}, or a private one",
            f"Look at {page}; log in to see it (`hf auth login`)",
        )
    if classes & UNREACHABLE:
        return (
            f"no way to the hub ({class_and_message(error)})",
            "Check the network (and that HF_HUB_OFFLINE is not set)",
        )
    return class_and_message(error), "Check network, access and licence (`hf auth login`)"
