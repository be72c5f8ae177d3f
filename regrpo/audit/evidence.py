"""What an audit compares: dvc.lock, dvc.yaml, the records, and the files with their hashes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from regrpo.core.dvc import (
    cache_folder,
    declared_outputs,
    object_path,
    parse_listing,
    path_of,
    read_object,
)
from regrpo.core.errors import CannotCheck, Refused, first_line
from regrpo.core.files import file_hashes
from regrpo.core.pipeline import Snapshot, maker_of, out_md5s, record_path
from regrpo.core.profiles import parse_yaml
from regrpo.records import hashing
from regrpo.records.find import Place
from regrpo.records.hashing import Digest, Tree
from regrpo.records.record import Item, Record, parse_record

Json = dict[str, Any]


class Cache:
    """DVC's cache of a repository, read as hashing.Remote reads a remote."""

    def __init__(self, root: Path) -> None:
        self.folder = cache_folder(root)
        self.hashed: dict[Path, Digest] = {}

    def path(self, md5: str) -> Path:
        return object_path(self.folder, md5)

    def read(self, md5: str) -> bytes | None:
        """A small object's bytes. Returns None if it is not there."""
        path = self.path(md5)
        return path.read_bytes() if path.is_file() else None

    def digests(self, wanted: Iterable[str]) -> dict[str, Digest | None]:
        """{MD5: what lies under that name}; None if there is nothing."""
        return {md5: self.hashed.get(self.path(md5)) for md5 in wanted}

    def listing(self, md5: str) -> dict[str, str] | None:
        """The MD5 of each file of an output, by name; of a single file, by the empty name.

        Returns None if its folder's listing is missing or was changed.
        """
        if not md5.endswith(".dir"):
            return {"": md5}
        return parse_listing(read_object(self.folder, md5) or b"")

    def holds(self, md5: str) -> bool:
        """Whether all objects of an output are there."""
        listing = self.listing(md5)
        return listing is not None and all(self.path(one).is_file() for one in listing.values())


@dataclass
class Evidence:
    """One pipeline as its witnesses have it. The current folder is its root.

    `data`, `records` and `written` are run.json by stage: the bytes, the parsed model and the plain
    element. A record that cannot be read is in `damaged` instead of the latter two.
    """

    place: Place
    lock: Json
    declared: Json
    data: dict[str, bytes]
    records: dict[str, Record] = field(default_factory=dict)
    written: dict[str, Json] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    hashed: dict[Path, Digest] = field(default_factory=dict)
    """The files of the workspace that are compared."""
    unreadable: dict[Path, OSError] = field(default_factory=dict)
    on_remote: set[str] = field(default_factory=set)
    """The outputs that the remote was found to hold whole."""
    _trees: dict[str, Tree] = field(default_factory=dict)

    @property
    def snapshot(self) -> Snapshot:
        return self.place.snapshot

    @property
    def here(self) -> str:
        """Where the files lie, as a row of the report calls it."""
        return "workspace" if self.snapshot.is_workspace else "git"

    @cached_property
    def tree(self) -> Tree:
        return Tree(self.snapshot)

    def tree_at(self, revision: str) -> Tree:
        """The files of another revision; one tree each, as it remembers what it hashed."""
        return self._trees.setdefault(revision, Tree(Snapshot(self.snapshot.root, revision)))

    @cached_property
    def cache(self) -> Cache:
        return Cache(self.snapshot.root)

    @cached_property
    def kept_in_git(self) -> set[str]:
        """The outputs that git holds and DVC's cache need not (`cache: false` in dvc.yaml)."""
        kept = set()
        for stage in self.declared.values():
            for out in declared_outputs(stage):
                options = out.get(path_of(out)) if isinstance(out, dict) else None
                if not (options or {}).get("cache", True):
                    kept.add(path_of(out))
        return kept

    @cached_property
    def is_checked_out(self) -> bool:
        """Whether any output that DVC keeps lies in the workspace."""
        if not self.snapshot.is_workspace:
            return False
        outputs = [item.path for record in self.records.values() for item in record.outputs]
        return any(Path(path).exists() for path in outputs if path not in self.kept_in_git)

    def maker(self, path: str) -> str | None:
        """The stage that makes a path, or a folder around it."""
        return maker_of(path, {stage: out_md5s(entry) for stage, entry in self.lock.items()})

    def files_at(self, path: str) -> dict[str, Digest] | None:
        """The files at a path here, by name from the root. Returns None if there is nothing."""
        if not self.snapshot.is_workspace:
            return self.tree.listing(path)
        names = self.tree.names(path)
        if names is None:
            return None
        return {name: self.hashed[Path(name)] for name in names if Path(name) in self.hashed}

    def locked_outputs(self, stage: str) -> Iterator[tuple[Item, str]]:
        """Each recorded output that dvc.lock knows, with its MD5 there."""
        md5s = out_md5s(self.lock[stage])
        for item in self.records[stage].outputs:
            if item.path in md5s:
                yield item, md5s[item.path]


def read_evidence(place: Place) -> Evidence:
    """Read what a pipeline says of itself. Raises CannotCheck if there is none to audit."""
    snapshot = place.snapshot
    lock = snapshot.lock()["stages"]
    if not lock:
        raise CannotCheck(
            "dvc.lock",
            expected="a pipeline that was run",
            found=f"no finished stage in the {place.name}",
            remedy="Run `make repro`, or name a revision that holds results.",
        )
    evidence = Evidence(place, lock, _declared(snapshot), snapshot.record_bytes())
    for stage, data in evidence.data.items():
        path = record_path(stage)
        if stage in lock:
            try:
                evidence.records[stage], evidence.written[stage] = parse_record(data, path)
            except CannotCheck as error:
                evidence.damaged[stage] = str(error).removeprefix(f"{path}: ")
    _hash_files(evidence)
    return evidence


def side_by_side(
    item: Item, found: Mapping[str, Digest] | None
) -> list[tuple[str, str | None, str | None]]:
    """(file, recorded SHA-256, found SHA-256) of every file that the record or the place has."""
    recorded = file_hashes(item.model_dump())
    sha256s = {name: digest.sha256 for name, digest in (found or {}).items()}
    names = sorted(recorded.keys() | sha256s.keys())
    return [(name, recorded.get(name), sha256s.get(name)) for name in names]


def by_section(by_file: Mapping[str, Json]) -> Json:
    """A stage's parameters (of run.json or dvc.lock) by where they stand, as `file: section`."""
    sections = {}
    for file, content in by_file.items():
        for section, values in content.items():
            sections[f"{file}: {section}"] = values
    return sections


def unequal_environments(recorded: Json, here: Json) -> list[tuple[str, Any, Any]]:
    """(package, or what else decides whether bytes are the same; recorded; here), where unequal."""
    recorded, here = recorded | recorded["packages"], here | here["packages"]
    names = (recorded.keys() | here.keys()) - {"packages", "sha256"}
    sides = [(name, recorded.get(name), here.get(name)) for name in sorted(names)]
    return [(name, was, now) for name, was, now in sides if was != now]


def _hash_files(evidence: Evidence) -> None:
    """Read every file once: the cache's objects, and outputs and sources in the workspace."""
    cache = evidence.cache
    objects: set[Path] = set()
    files: dict[Path, bool] = {}
    for stage, record in evidence.records.items():
        for _, md5 in evidence.locked_outputs(stage):
            listing = cache.listing(md5) or {}
            objects.update(cache.path(one) for one in listing.values())
        if evidence.snapshot.is_workspace:
            cached = {item.path for item, md5 in evidence.locked_outputs(stage) if cache.holds(md5)}
            sources = [item for item in record.inputs if evidence.maker(item.path) is None]
            for item in record.outputs + sources:
                for name in evidence.tree.names(item.path) or []:
                    # MD5 takes longer than SHA-256, and of a cached output the object has it.
                    files[Path(name)] = item.path not in cached
    objects = {path for path in objects if path.is_file()}
    for path, digest in hashing.of_files(files | dict.fromkeys(objects, True)).items():
        if not isinstance(digest, Digest):
            evidence.unreadable[path] = digest
        elif path in objects:
            cache.hashed[path] = digest
        else:
            evidence.hashed[path] = digest


def _declared(snapshot: Snapshot) -> Json:
    """dvc.yaml's stages. Raises CannotCheck if DVC cannot read them."""
    from dvc.schema import COMPILED_MULTI_STAGE_SCHEMA
    from voluptuous import Invalid

    try:
        content = parse_yaml(snapshot.read("dvc.yaml") or b"", "dvc.yaml")
        stages: Json = COMPILED_MULTI_STAGE_SCHEMA(content).get("stages", {})
    except (Refused, Invalid) as error:
        raise CannotCheck(
            "dvc.yaml",
            expected="DVC's pipeline file",
            found=f"a corrupted one ({first_line(error)})",
            remedy="Restore it with git.",
        ) from error
    return stages
