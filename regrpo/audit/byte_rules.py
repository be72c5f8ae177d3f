"""Rules about the bytes of outputs: here, in DVC's cache and on the remote, against the records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from regrpo.audit.evidence import Cache, Evidence, side_by_side
from regrpo.audit.findings import Findings
from regrpo.core.dvc import dvc_config, md5_of, parse_listing
from regrpo.core.errors import CannotCheck
from regrpo.core.files import file_hashes
from regrpo.records import hashing
from regrpo.records.hashing import Digest
from regrpo.records.record import Item

# --- here -----------------------------------------------------------------------------------------


def check_readable(evidence: Evidence, findings: Findings) -> None:
    """Every file that is compared can be read."""
    for path, error in evidence.unreadable.items():
        findings.cannot_check("output", None, str(path), f"cannot be read: {error}")


def check_outputs(evidence: Evidence, findings: Findings, stage: str) -> None:
    """The files of each output are the recorded ones, by SHA-256, and dvc.lock's MD5 is theirs."""
    md5s = {item.path: md5 for item, md5 in evidence.locked_outputs(stage)}
    for item in evidence.records[stage].outputs:
        md5 = md5s.get(item.path)
        found = evidence.files_at(item.path)
        if found is None:
            _report_absent(evidence, findings, stage, item, md5)
            continue
        for name, was, now in side_by_side(item, found):
            verdict = findings.compare(name, evidence.here, stage, was, now)
            if verdict != "ok":
                findings.fault("output", stage, name, verdict, was or "not there", now or "missing")
        check_locked_md5(findings, stage, f"outs: {item.path}", item, found, md5)
        if evidence.snapshot.is_workspace:
            _check_surroundings(evidence, findings, stage, item.path)


def _report_absent(
    evidence: Evidence, findings: Findings, stage: str, item: Item, md5: str | None
) -> None:
    """An output that is not here was taken away, or has not been fetched yet.

    It was taken away if git holds it, or if DVC's cache does and other outputs are here.
    """
    is_cached = md5 is not None and evidence.cache.holds(md5)
    if item.path in evidence.kept_in_git or (is_cached and evidence.is_checked_out):
        findings.compare(item.path, evidence.here, stage, item.sha256, None)
        findings.fault("output", stage, item.path, "missing", item.sha256, "missing")
    elif not is_cached and item.path not in evidence.on_remote:
        text = f"neither here nor in DVC's cache; {_remedy(evidence.snapshot.root)}"
        findings.cannot_check("output", stage, item.path, text, item.sha256)


def _remedy(root: Path) -> str:
    """What brings an output that was never fetched."""
    config = dvc_config(root)
    if config.get("core", {}).get("remote"):
        return "fetch it with `dvc pull`"
    for remote in config.get("remote", {}):
        return f"fetch it with `dvc pull -r {remote}`"
    return "DVC knows no remote to pull it from: make it again with `dvc repro`"


def check_locked_md5(
    findings: Findings,
    stage: str,
    where: str,
    item: Item,
    found: Mapping[str, Digest],
    locked: str | None,
) -> None:
    """dvc.lock's MD5 of a path is that of its bytes, if these are the recorded ones."""
    if locked is None or not all(digest.md5 for digest in found.values()):
        return
    sha256, md5 = hashing.path_hashes(item.path, found)
    if sha256 == item.sha256 and md5 != locked:
        text = "dvc.lock's MD5 is not that of the bytes that run.json records"
        findings.fault("lock", stage, f"dvc.lock: {where}", text, md5, locked)


def _check_surroundings(evidence: Evidence, findings: Findings, stage: str, path: str) -> None:
    """What lies in an output besides its files: links, pipes, empty folders, hidden files."""
    hashed = set(evidence.tree.names(path) or [])
    cache = evidence.cache.folder.resolve()
    for entry in [Path(path), *sorted(Path(path).rglob("*"))]:
        name = entry.as_posix()
        if entry.is_symlink() and (name in hashed or name == path):
            if not entry.resolve().is_relative_to(cache):  # where DVC's own links lead
                text = f"a link to {entry.readlink()}: its bytes lie elsewhere"
                findings.note("output", stage, name, text)
        elif entry.is_symlink():
            what = f"a link to {entry.readlink()}"
            findings.fault("output", stage, name, "extra", "not there", what)
        elif entry.is_dir():
            if name != path and not any(entry.iterdir()):
                findings.note("output", stage, name, "an empty folder: part of no hash")
        elif not entry.is_file():
            findings.fault("output", stage, name, "extra", "not there", "no regular file")
        elif name not in hashed:
            findings.note("output", stage, name, "hidden by .dvcignore: part of no hash")


# --- in DVC's cache and on the remote -------------------------------------------------------------


@dataclass(frozen=True)
class _Store:
    """A place of DVC's objects, the kind of its findings, and its name in their texts."""

    objects: Cache | hashing.Remote
    kind: str
    name: str


def check_cache(evidence: Evidence, findings: Findings, stage: str) -> None:
    """The cache objects of each output have the MD5 that names them and the recorded SHA-256."""
    store = _Store(evidence.cache, "cache", "DVC's cache")
    for item, md5 in evidence.locked_outputs(stage):
        missing = _compare_objects(findings, store, stage, item, md5)
        # The cache need not have what git holds; what is nowhere is a finding of the outputs.
        if item.path in evidence.kept_in_git or evidence.files_at(item.path) is None:
            continue
        for path, name in missing.items():
            text = f"DVC's cache has no object {name}; `dvc fetch` or `dvc commit` brings it"
            findings.cannot_check("cache", stage, path, text)


def check_remote(evidence: Evidence, findings: Findings, name: str | None) -> None:
    """The remote's objects, fetched and hashed; what git holds is not expected there.

    `name`: None for DVC's default remote.
    """
    try:
        store = _Store(hashing.Remote(evidence.snapshot.root, name), "remote", "the remote")
        for stage in evidence.records:
            for item, md5 in evidence.locked_outputs(stage):
                if item.path in evidence.kept_in_git:
                    continue
                missing = _compare_objects(findings, store, stage, item, md5)
                if not missing:
                    evidence.on_remote.add(item.path)
                for path, one in missing.items():
                    text = f"the remote has no object {one}; `dvc push` brings it"
                    findings.cannot_check("remote", stage, path, text)
    except CannotCheck as error:
        text = str(error).removeprefix(f"{error.where}: ")
        findings.cannot_check("remote", None, error.where, text)


def _compare_objects(
    findings: Findings, store: _Store, stage: str, item: Item, md5: str
) -> dict[str, str]:
    """The objects of one output against its record. Returns the MD5 of those that are missing.

    Nothing is read from a folder's listing that was changed.
    """
    listing = {"": md5}
    if md5.endswith(".dir"):
        data = store.objects.read(md5)
        if data is None:
            return {item.path: md5}
        listing = parse_listing(data) or {}
        found = f"{md5_of(data)}.dir"
        if found != md5:
            text = f"{store.name}: the folder's listing {md5} was changed"
            findings.fault(store.kind, stage, item.path, text, md5, found)
            return {}
    recorded = file_hashes(item.model_dump())
    listed = {f"{item.path}/{name}".removesuffix("/"): one for name, one in listing.items()}
    for name in sorted(recorded.keys() - listed.keys()):
        text = f"{store.name}: run.json has it and the folder's listing has not"
        findings.fault(store.kind, stage, name, text, recorded[name])
    for name in sorted(listed.keys() - recorded.keys()):
        text = f"{store.name}: the folder's listing has it and run.json has not"
        findings.fault(store.kind, stage, name, text, None, listed[name])
    digests = store.objects.digests(listed.values())
    missing = {}
    for name, one in sorted(listed.items()):
        digest, was = digests[one], recorded.get(name)
        if digest is None:
            missing[name] = one
            continue
        verdict = findings.compare(name, store.kind, stage, was, digest.sha256)
        text = f"{store.name}: object {one}"
        if digest.md5 != one:
            text += " was changed"
            findings.fault(store.kind, stage, name, text, was, digest.sha256)
        elif verdict == "changed":
            text += ", which dvc.lock names, is not what run.json records"
            findings.fault("lock", stage, name, text, was, digest.sha256)
    return missing
