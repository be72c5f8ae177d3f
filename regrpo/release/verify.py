"""Whether a released folder is whole: hashes, signature, and that all its parts say the same.

Needs Python's own library alone; a signature needs model-signing besides. What is looked at, in
this order: what release.json says; every file against SHA256SUMS; the signature; the card against
the run's; every file against the stages' records and the crate; the numbers of card and crate
against reports/evaluate/metrics.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from regrpo.core import files
from regrpo.core.errors import CannotCheck, Refused, parsing
from regrpo.core.files import Json, file_hashes
from regrpo.core.text import UNKNOWN, code, estimate, number
from regrpo.release import signature as signatures
from regrpo.release.handover import release_card
from regrpo.release.layout import (
    ABOUT,
    AROUND,
    CARD,
    CRATE,
    METRICS,
    RUN_CARD,
    SCHEMA_VERSION,
    SUMS,
    measured,
    released_path,
)

AGAIN = "Do not use it. Get the folder again from whoever made it."
MODELS = ("base", "sft", "grpo")
RESULT = re.compile(r"^ +- type: .*\n +value: (.+)\n +name: (.+)$", re.MULTILINE)
"""One result in the card's metadata, as the hub's library writes it."""


def verify(
    folder: Path,
    *,
    public_key: Path | None = None,
    certificates: Sequence[Path] = (),
    signature: Path | None = None,
) -> Json:
    """Verify a released folder; with a key or trusted certificates, its signature too.

    `signature` lies beside the folder by default. Raises Refused for the first thing that is wrong,
    CannotCheck for what is no release or a newer one's, and if model-signing is needed and missing.
    Returns {model, pipeline_key, files, bytes, sha256 (of SHA256SUMS), signature, notes}.
    """
    folder = folder.absolute()
    about = _read_about(folder)
    hashes = _verify_hashes(folder)
    beside = signature or signatures.find(folder)
    notes = list(about["audit"]["findings"])
    if public_key is not None or certificates:
        verifier = signatures.read_verifier(public_key, certificates)
        signatures.verify(verifier, folder, _existing(beside))
        signed = f"verified: {beside.name}"
    elif beside.exists():
        signed = f"not looked at: {beside.name} (name the key it should be of: --pubkey)"
    else:
        signed = "none"
    with parsing(folder.name, "the files of a release", AGAIN):
        card = (folder / CARD).read_text(encoding="utf-8")
        _verify_card(folder, card, about)
        _verify_records(folder, hashes)
        entities = files.read_json(folder / CRATE)["@graph"]
        _verify_crate(entities, hashes)
        _verify_numbers(files.read_json(folder / METRICS), card, entities)
    return {
        "model": about["model"],
        "pipeline_key": about["pipeline_key"],
        "files": len(hashes),
        "bytes": sum((folder / name).stat().st_size for name in hashes),
        "sha256": files.sha256(folder / SUMS),
        "signature": signed,
        "notes": notes,
    }


def _read_about(folder: Path) -> Json:
    """release.json. Raises CannotCheck for a newer one's, and where there is none."""
    path = folder / ABOUT
    if not path.is_file():
        raise CannotCheck(
            str(folder),
            expected="a folder that `regrpo release` made",
            found=f"no {ABOUT} in it" if folder.is_dir() else "no folder",
            remedy="Name such a folder; if it was one, get it again from whoever made it.",
        )
    with parsing(path, "what `regrpo release` writes", AGAIN):
        about: Json = files.read_json(path)
        version = int(about["schema_version"])
    if version > SCHEMA_VERSION:
        raise CannotCheck(
            str(path),
            expected=f"schema_version {SCHEMA_VERSION} or older",
            found=f"schema_version {version}",
            remedy="A newer regrpo made this release: verify with that one.",
        )
    return about


def _existing(beside: Path) -> Path:
    if not beside.is_file():
        raise Refused(
            str(beside),
            expected="the folder's signature",
            found="none: it is not signed, or the signature was taken away",
            remedy="Ask whoever made it, or name the signature with --signature.",
        )
    return beside


# --- bytes ----------------------------------------------------------------------------------------


def _verify_hashes(folder: Path) -> dict[str, str]:
    """{file: SHA-256} of all files, SHA256SUMS itself apart, each as that says."""
    listed = read_sums(folder / SUMS)
    found = []
    for path in sorted(folder.rglob("*")):
        if path.relative_to(folder).parts[0] in AROUND:
            continue
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise _wrong(path.relative_to(folder), "a file", "a link or something else")
        if path.is_file() and path != folder / SUMS:
            found.append(path.relative_to(folder).as_posix())
    for name in sorted(listed.keys() - set(found)):
        raise _wrong(name, "the file that SHA256SUMS lists", "none of that name")
    for name in sorted(set(found) - listed.keys()):
        raise _wrong(name, "no file that SHA256SUMS does not list", "one")
    with ThreadPoolExecutor() as pool:
        digests = dict(zip(found, pool.map(lambda n: files.sha256(folder / n), found), strict=True))
    for name, digest in digests.items():
        _require_equal(name, "SHA-256", listed[name], digest, SUMS)
    return digests


def read_sums(path: Path) -> dict[str, str]:
    """{file: SHA-256} of what SHA256SUMS lists."""
    if not path.is_file():
        raise _wrong(path.name, "the SHA-256 of every file", "no file of that name")
    listed = {}
    with parsing(path, "the SHA-256 of every file, as sha256sum writes it", AGAIN):
        for line in path.read_text(encoding="utf-8").splitlines():
            digest, _, name = line.partition("  ")
            if not re.fullmatch("[0-9a-f]{64}", digest) or not name:
                raise ValueError(f"the line {line!r}")
            listed[name] = digest
    return listed


def _verify_records(folder: Path, hashes: Mapping[str, str]) -> None:
    """Every file that a stage's record names is that file; every file of the run is named."""
    named = set()
    for path in sorted(folder.glob("reports/*/run.json")):
        where = path.relative_to(folder).as_posix()
        (record,) = files.read_json(path)
        for item in record["inputs"] + record["outputs"]:
            for source, digest in file_hashes(item).items():
                name = released_path(source)
                if name is not None and name in hashes:
                    named.add(name)
                    _require_equal(name, "SHA-256", digest, hashes[name], where)
    unnamed = [name for name in hashes if name.endswith(".safetensors") and name not in named]
    if unnamed:
        raise _wrong(unnamed[0], "weights that a stage's run.json lists", "others")


def _verify_crate(entities: Sequence[Json], hashes: Mapping[str, str]) -> None:
    """The crate gives the SHA-256 of every file but its own and SHA256SUMS."""
    listed = {}
    for entity in entities:
        if "File" in entity["@type"] and "sha256" in entity:
            listed[unquote(entity["@id"])] = entity["sha256"]
    for name, digest in hashes.items():
        if name != CRATE:
            _require_equal(name, "SHA-256", listed.get(name), digest, CRATE)


# --- what is said ---------------------------------------------------------------------------------


def _verify_card(folder: Path, card: str, about: Json) -> None:
    """The card is the run's, rewritten for this folder."""
    here = card.splitlines()
    run_card = (folder / RUN_CARD).read_text(encoding="utf-8")
    expected = release_card(run_card, about).splitlines()
    for line, (was, now) in enumerate(zip(expected, here, strict=False), 1):
        _require_equal(f"{CARD}, line {line}", "text", was, now, RUN_CARD)
    _require_equal(CARD, "number of lines", len(expected), len(here), RUN_CARD)


def _verify_numbers(metrics: Json, card: str, entities: Sequence[Json]) -> None:
    """Card and crate tell the numbers of the evaluation."""
    values = measured(metrics)
    in_crate = {}
    for entity in entities:
        if entity["@id"].startswith("#metric/"):
            in_crate[entity["name"]] = entity["value"]
    _require_same_numbers(CRATE, in_crate, values)
    head = card.split("\n---\n", 1)[0]
    in_head = {f"{name.strip(chr(39))} grpo": float(value) for value, name in RESULT.findall(head)}
    final = {name: value for name, value in values.items() if name.endswith(" grpo")}
    _require_same_numbers(f"{CARD}, metadata", in_head, final)
    rows = set(card.splitlines())
    for name, task in metrics["tasks"].items():
        cells = [code(name), number(task["n"]), *(_cell(task, model) for model in MODELS)]
        row = f"| {' | '.join(cells)} |"
        if row not in rows:
            raise _wrong(f"{CARD}, the row of {name}", f"{row}, as {METRICS} has it", "another")


def _cell(task: Json, model: str) -> str:
    found = task["models"].get(model)
    return estimate(found["value"], found["ci95"], task["kind"]) if found else UNKNOWN


def _require_same_numbers(
    where: str, found: Mapping[str, float], expected: Mapping[str, float]
) -> None:
    for name in sorted(found.keys() | expected.keys()):
        _require_equal(where, f"{name}:", expected.get(name), found.get(name), METRICS)


def _require_equal(name: str, what: str, expected: Any, found: Any, source: str) -> None:
    if expected != found:
        wanted = "nothing" if expected is None else json.dumps(expected, ensure_ascii=False)
        given = "nothing" if found is None else json.dumps(found, ensure_ascii=False)
        raise _wrong(name, f"{what} {wanted}, as {source} has it", given)


def _wrong(name: object, expected: str, found: str) -> Refused:
    return Refused(str(name), expected=expected, found=found, remedy=AGAIN)
