"""Whether a pipeline is what its records say: card → samples → weights → rewards → gate → data → source, to the byte.

`audit(place)` compares four witnesses — the bytes (read in full), dvc.lock with DVC's cache, run.json, MLflow — and
git's code. It returns plain data and changes nothing:

    verdict    "complete" | "broken" (a fault) | "not checkable" (no fault, but something could not be looked at)
    stages     [{stage, run, mlflow_run_id, revision, started, ended, seconds, kept}] in running order
    artifacts  [{path, place, stage, run, recorded, found, verdict}] place: workspace | git | cache | remote | mlflow
    faults, unchecked, notes  [{kind, stage, path, recorded, found, text}]
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from regrpo import digests, files, journals, lineage, mlflow_uri, rows, stats
from regrpo.brought import is_commit
from regrpo.digests import Digest
from regrpo.errors import CannotCheck
from regrpo.history import Item, Place, Record, parse_record, record_bytes, safe_lock
from regrpo.params import STAGES

RAW = ("data/raw", "models/raw")
"""What users bring: its bytes may lie outside git, so that a clone need not have them."""
CODE = ("stages/", "regrpo/", "custom")
"""The inputs that are code: git must hold them at the recorded revision."""
CUT = {"params": 6000, "tags": 8000}
"""MLflow's own limits, to which longer values are cut."""


def audit(place: Place, *, remote: str | bool = False, mlflow: bool = True, strict_env: bool = False) -> dict[str, Any]:
    """Audit one pipeline; the current folder must be the snapshot's root.

    `remote`: True for DVC's default remote, or a remote's name. Raises CannotCheck where there is no pipeline to audit.
    """
    return _Audit(place, strict_env).walk(remote, mlflow)


@dataclass
class _Audit:
    place: Place
    strict_env: bool
    stages: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)
    unchecked: list[dict[str, Any]] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    records: dict[str, Record] = field(default_factory=dict)
    written: dict[str, dict[str, Any]] = field(default_factory=dict)

    def walk(self, remote: str | bool, mlflow: bool) -> dict[str, Any]:
        self.snapshot = self.place.snapshot
        self.tree = digests.Tree(self.snapshot)
        self.lock: dict[str, Any] = safe_lock(self.snapshot)["stages"]
        if not self.lock:
            raise CannotCheck(
                "dvc.lock", expected="a pipeline that was run", found=f"no finished stage in the {self.place.name}",
                remedy="Run `make repro`, or name a revision that holds results.",
            )  # fmt: skip
        self.declared = _declared(self.snapshot)
        self.raw = record_bytes(self.snapshot)
        with ThreadPoolExecutor(1) as aside:  # importing mlflow takes seconds, in which the bytes are hashed
            store = aside.submit(_open_store) if mlflow else None
            self._read_records()
            self.cache = _Cache(self.snapshot.root, self.lock)
            self._hash_workspace()
            for stage in self.records:
                self._check_record(stage)
                self._check_lock(stage)
                self._check_outputs(stage)
                self._note_undeclared(stage)
                self._check_cache(stage)
                self._check_inputs(stage)
                self._check_hub(stage)
            self._check_declared()
            self._check_code()
            self._note_uncommitted()
            self._check_environment()
            if remote:
                self._check_remote(None if remote is True else str(remote))
            if store is not None:
                _Tracker(self, store).check()
        self._trace()
        return self._report(mlflow, remote)

    # --- telling ------------------------------------------------------------------------------------------------

    def say(
        self, what: list[dict[str, Any]], kind: str, stage: str | None, path: str, text: str,
        recorded: Any = None, found: Any = None,
    ) -> None:  # fmt: skip
        one = {"kind": kind, "stage": stage, "path": path, "recorded": recorded, "found": found, "text": text}
        if one not in what:
            what.append(one)

    def fault(
        self, kind: str, stage: str | None, path: str, text: str, recorded: Any = None, found: Any = None
    ) -> None:
        self.say(self.faults, kind, stage, path, text, recorded, found)

    def row(self, path: str, place: str, stage: str, recorded: str | None, found: str | None, verdict: str) -> None:
        run = self.records[stage].run
        self.artifacts.append(
            {"path": path, "place": place, "stage": stage, "run": run}
            | {"recorded": recorded, "found": found, "verdict": verdict}
        )

    def _report(self, mlflow: bool, remote: str | bool) -> dict[str, Any]:
        verdict = "broken" if self.faults else "not checkable" if self.unchecked else "complete"
        order = {stage: index for index, stage in enumerate(STAGES)}
        for findings in (self.faults, self.unchecked, self.notes):
            findings.sort(key=lambda one: order.get(one["stage"], len(order)))
        return {
            "target": self.place.name,
            "revision": self.snapshot.revision,
            "pipeline_key": lineage.pipeline_key({"stages": self.lock}),
            "looked_at": {"mlflow": mlflow, "remote": bool(remote)},
            "verdict": verdict,
            "stages": self.stages,
            "artifacts": self.artifacts,
            "faults": self.faults,
            "unchecked": self.unchecked,
            "notes": self.notes,
        }

    # --- records and dvc.lock -----------------------------------------------------------------------------------

    def _read_records(self) -> None:
        for stage in STAGES:
            path = _own(stage)
            if stage not in self.lock and stage not in self.raw:
                self.say(self.unchecked, "lock", stage, "dvc.lock", "the stage has not run; `dvc repro` runs it")
            elif stage not in self.lock:
                self.fault("lock", stage, "dvc.lock", f"has no entry for the stage, yet {path} is there")
            elif stage not in self.raw:
                self.fault("output", stage, path, "missing: dvc.lock knows it; restore it with git", found="missing")
            else:
                try:
                    self.records[stage], self.written[stage] = parse_record(self.raw[stage], path)
                except CannotCheck as error:
                    self.say(self.unchecked, "record", stage, path, str(error).removeprefix(f"{path}: "))

    def _check_record(self, stage: str) -> None:
        """What run.json says about itself."""
        record, written, path = self.records[stage], self.written[stage], _own(stage)
        if record.stage != stage:
            self.fault("record", stage, path, f"is the record of another stage ({record.stage})", stage, record.stage)
        for item in [*record.inputs, *record.outputs]:
            if item.files is not None and (found := digests.folder_sha256(item.files)) != item.sha256:
                text = f"the hash of {item.path} is not that of the files listed under it"
                self.fault("record", stage, path, text, item.sha256, found)
        facts = {key: value for key, value in written["environment"].items() if key != "sha256"}
        if (found := files.sha256_json(facts)) != record.environment.sha256:
            text = "the environment's hash is not that of the environment listed"
            self.fault("record", stage, path, text, record.environment.sha256, found)

    def _check_lock(self, stage: str) -> None:
        """dvc.lock's entry against run.json: the same command, parameters, inputs and outputs."""
        record, entry, own = self.records[stage], self.lock[stage], _own(stage)
        outs = {out["path"]: out["md5"] for out in entry.get("outs", [])}
        if own not in outs:
            self.fault("lock", stage, "dvc.lock", f"does not list {own}")
        elif outs[own] != (found := _md5(self.raw[stage])):
            self.row(own, self._here, stage, outs[own], found, "changed")
            self.fault("lock", stage, own, "is not the record that dvc.lock knows (MD5)", outs[own], found)
        else:
            self.row(own, self._here, stage, outs[own], outs[own], "ok")
        if entry["cmd"] != record.command:
            self.fault("lock", stage, "dvc.lock: cmd", "is not run.json's command", record.command, entry["cmd"])
        for name, (was, now) in _differences(record.parameters, entry.get("params", {})).items():
            self.fault("lock", stage, f"dvc.lock: {name}", "is not run.json's parameter", was, now)
        for what, ours, theirs in (
            ("outs", {item.path for item in record.outputs} | {own}, set(outs)),
            ("deps", {item.path for item in record.inputs}, {dep["path"] for dep in entry.get("deps", [])}),
        ):
            for path in sorted(ours ^ theirs):
                has, lacks = ("run.json", "dvc.lock") if path in ours else ("dvc.lock", "run.json")
                self.fault("lock", stage, f"dvc.lock: {what}: {path}", f"is in {has} and not in {lacks}")
        known = {"outs": {item.path: item for item in record.outputs}, "deps": {i.path: i for i in record.inputs}}
        for what, items in known.items():
            for one in entry.get(what, []):
                if one["path"] == own and what == "outs":
                    size, count = len(self.raw[stage]), None
                elif (item := items.get(one["path"])) is not None:
                    size, count = item.size, None if item.files is None else len(item.files)
                else:
                    continue
                self._check_facts(stage, what, one, {"hash": "md5", "size": size, "nfiles": count})
        if (found := lineage.stage_key(entry)) != record.key:
            text = "dvc.lock's command, dependencies and parameters do not give run.json's key"
            self.fault("lock", stage, f"{own}: key", text, record.key, found)

    def _check_facts(self, stage: str, what: str, one: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        """What dvc.lock says of a path besides its MD5, as far as it says anything."""
        where = f"dvc.lock: {what}: {one['path']}"
        for name, value in expected.items():
            if name in one and one[name] != value:
                self.fault("lock", stage, where, f"{name} is not what run.json gives", value, one[name])
        if "hash" not in one:  # without size or nfiles DVC does all as before
            text = "hash is missing: DVC then takes the MD5 for its older kind, and looks for it in its older cache"
            self.fault("lock", stage, where, text, expected["hash"], None)

    def _check_declared(self) -> None:
        """dvc.yaml and the profile as they are here against dvc.lock."""
        declared = self.declared
        params = _yaml(self.snapshot, "params.yaml")
        profile = str((params or {}).get("profile"))
        sections = params if params is None or profile == "params.yaml" else _yaml(self.snapshot, profile)
        if sections is None:
            path = "params.yaml" if params is None else profile
            text = "the parameters changed since: no YAML mapping that can be read"
            self.fault("input", None, path, text)
        for stage, entry in self.lock.items():
            if stage not in declared:
                self.fault("pipeline", stage, "dvc.yaml", f"has no stage {stage}, dvc.lock has")
                continue
            if declared[stage].get("cmd") != entry["cmd"]:
                text = "the command changed since"
                self.fault("pipeline", stage, "dvc.yaml: cmd", text, entry["cmd"], declared[stage].get("cmd"))
            outs = {_name(out) for kind in ("outs", "metrics", "plots") for out in declared[stage].get(kind, [])}
            locked = {kind: {one["path"] for one in entry.get(kind, [])} for kind in ("outs", "deps")}
            locked["params"] = {f"{path}: {key}" for path, keys in entry.get("params", {}).items() for key in keys}
            for what, names in (
                ("outs", outs),
                ("deps", set(map(_name, declared[stage].get("deps", [])))),
                ("params", _params(declared[stage].get("params", []), entry.get("params", {}))),
            ):
                for path in sorted(names ^ locked[what]):
                    has, lacks = ("dvc.yaml", "dvc.lock") if path in names else ("dvc.lock", "dvc.yaml")
                    self.fault("pipeline", stage, f"dvc.yaml: {what}: {path}", f"is in {has} and not in {lacks}")
            if stage not in self.records or sections is None:
                continue
            now = {profile: {stage: sections.get(stage)}}
            for name, (was, found) in _differences(self.records[stage].parameters, now).items():
                self.fault("input", stage, name, "the parameter changed since", was, found)

    # --- bytes --------------------------------------------------------------------------------------------------

    @property
    def _here(self) -> str:
        return "workspace" if self.tree.is_workspace else "git"

    def _hash_workspace(self) -> None:
        """Read everything once: workspace (MD5 only where dvc.lock's is not seen in the cache), and cache."""
        wanted: dict[Path, bool] = {}
        if self.tree.is_workspace:
            for stage, record in self.records.items():
                cached = self.cache.complete(stage)
                for item in [*record.outputs, *record.inputs]:
                    for name in self.tree.names(item.path) or []:
                        path = Path(name)
                        wanted[path] = wanted.get(path, False) or not any(
                            name == out or name.startswith(f"{out}/") for out in cached
                        )
        objects = {self.cache.path(md5): True for md5 in self.cache.objects()}
        found = digests.of_files(wanted | objects)
        self.hashed = {path.as_posix(): digest for path, digest in found.items() if path in wanted}
        self.cache.found = {md5: found[self.cache.path(md5)] for md5 in self.cache.objects()}

    def _found(self, path: str) -> dict[str, Digest] | None:
        """{file: Digest} at a path here; None where there is nothing."""
        if not self.tree.is_workspace:
            return self.tree.listing(path)
        names = self.tree.names(path)
        if names is None:
            return None
        known = {name: self.hashed.get(name) for name in names}
        for name, digest in known.items():
            if not isinstance(digest, Digest):
                self.say(self.unchecked, "output", None, name, f"cannot be read: {digest}")
        return {name: digest for name, digest in known.items() if isinstance(digest, Digest)}

    def _check_outputs(self, stage: str) -> None:
        """The files of each output here, against run.json (SHA-256) and dvc.lock (MD5)."""
        locked = {out["path"]: out for out in self.lock[stage].get("outs", [])}
        for item in self.records[stage].outputs:
            found, out = self._found(item.path), locked.get(item.path)
            if found is None:
                self._missing_output(stage, item, out["md5"] if out else None)
                continue
            self._compare(stage, item, found, self._here, "output")
            self._check_surroundings(stage, item.path)
            if out is None:
                continue
            if all(digest.md5 for digest in found.values()):
                sha256, md5 = digests.path_hashes(item.path, found)
                if sha256 == item.sha256 and md5 != out["md5"]:
                    text = "dvc.lock's MD5 is not that of the bytes that run.json records"
                    self.fault("lock", stage, f"dvc.lock: outs: {item.path}", text, md5, out["md5"])

    def _missing_output(self, stage: str, item: Item, md5: str | None) -> None:
        """An output that is not here was taken away if DVC's cache has it and others are here, else not fetched."""
        cached, uncached = self.cache.holds(md5), item.path in self._uncached
        others = [
            out.path for record in self.records.values() for out in record.outputs if out.path not in self._uncached
        ]
        if uncached or (self.tree.is_workspace and cached and any(Path(path).exists() for path in others)):
            self.row(item.path, self._here, stage, item.sha256, None, "missing")
            self.fault("output", stage, item.path, "missing", item.sha256, "missing")
        elif cached:
            if self.tree.is_workspace:
                self.say(self.notes, "output", stage, item.path, "not in the workspace; checked in DVC's cache")
        else:
            self.row(item.path, self._here, stage, item.sha256, None, "unchecked")
            text = f"neither here nor in DVC's cache; {self._remedy}"
            self.say(self.unchecked, "output", stage, item.path, text, item.sha256)

    @cached_property
    def _remedy(self) -> str:
        """What brings an output that was never fetched."""
        if lineage.dvc_config(self.snapshot.root).get("core", {}).get("remote"):
            return "fetch it with `dvc pull`"
        return "DVC knows no remote to pull it from: make it again with `dvc repro`"

    @cached_property
    def _uncached(self) -> set[str]:
        """The outputs that git holds (`cache: false`)."""
        outs = (
            out
            for stage in self.declared.values()
            for kind in ("outs", "metrics", "plots")
            for out in stage.get(kind, [])
        )
        return {
            _name(out)
            for out in outs
            if isinstance(out, dict) and not (next(iter(out.values())) or {}).get("cache", True)
        }

    def _compare(
        self, stage: str, item: Item, found: Mapping[str, Digest], place: str, kind: str, where: str = ""
    ) -> None:
        """Recorded against found files, each difference by name."""
        recorded = _recorded(item)
        for name in sorted(recorded.keys() | found.keys()):
            was, now = recorded.get(name), found[name].sha256 if name in found else None
            verdict = "ok" if was == now else "missing" if now is None else "extra" if was is None else "changed"
            self.row(name, place, stage, was, now, verdict)
            if verdict != "ok":
                self.fault(kind, stage, name, f"{verdict}{where}", was or "not there", now or "missing")

    def _check_surroundings(self, stage: str, path: str) -> None:
        """What is no file of an output and yet is there: links, empty folders, what .dvcignore hides."""
        if not self.tree.is_workspace:
            return
        seen = set(self.tree.names(path) or [])
        for entry in [Path(path), *sorted(Path(path).rglob("*"))]:
            name = entry.as_posix()
            if entry.is_symlink() and (name in seen or name == path):
                if not entry.resolve().is_relative_to(self.cache.folder.resolve()):  # DVC's own links lead there
                    text = f"a link to {entry.readlink()}: its bytes lie elsewhere"
                    self.say(self.notes, "output", stage, name, text)
            elif entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
                what = f"a link to {entry.readlink()}" if entry.is_symlink() else "no regular file"
                self.row(name, self._here, stage, None, None, "extra")
                self.fault("output", stage, name, "extra", "not there", what)
            elif entry.is_dir() and name != path and not any(entry.iterdir()):
                self.say(self.notes, "output", stage, name, "an empty folder: part of no hash")
            elif entry.is_file() and name not in seen:
                self.say(self.notes, "output", stage, name, "hidden by .dvcignore: part of no hash")

    def _note_undeclared(self, stage: str) -> None:
        """Files in the stage's reports that no run recorded."""
        if self.tree.is_workspace:
            known = {item.path for item in self.records[stage].outputs} | {_own(stage)}
            for name in self.tree.names(f"reports/{stage}") or []:
                if name not in known:
                    self.say(self.notes, "output", stage, name, "made by no recorded run: part of no hash")

    def _check_cache(self, stage: str) -> None:
        """The cache objects of each output: MD5 as they are named, SHA-256 as run.json says."""
        for item, md5 in self._cached_items(stage):
            needed = item.path not in self._uncached
            listing = self.cache.listing(md5) if md5.endswith(".dir") else {"": md5}
            if (changed := self.cache.changed.get(md5)) is not None:
                text = f"DVC's cache: the folder's listing {md5} was changed"
                self.fault("cache", stage, item.path, text, md5, changed)
            if not self.cache.holds(md5) and self._found(item.path) is None:
                continue  # told of among the outputs
            if listing is None:
                if needed and not self.cache.path(md5).is_file():
                    self._lacks(stage, item.path, md5)
                continue
            self._check_objects(stage, item, listing, self.cache.found, "cache", "DVC's cache", needed)

    def _cached_items(self, stage: str) -> Iterator[tuple[Item, str]]:
        recorded = {item.path: item for item in self.records[stage].outputs}
        for out in self.lock[stage].get("outs", []):
            if out["path"] in recorded:
                yield recorded[out["path"]], out["md5"]

    def _lacks(
        self, stage: str, path: str, md5: str, where: str = "DVC's cache", how: str = "`dvc fetch` or `dvc commit`"
    ) -> None:
        self.say(self.unchecked, where.split()[-1], stage, path, f"{where} has no object {md5}; {how} brings it")

    def _check_objects(
        self,
        stage: str,
        item: Item,
        listing: Mapping[str, str],
        found: Mapping[str, Any],
        place: str,
        where: str,
        needed: bool,
    ) -> None:
        recorded = _recorded(item)
        names = {(f"{item.path}/{name}" if name else item.path): md5 for name, md5 in listing.items()}
        for name in sorted(recorded.keys() ^ names.keys()):
            text = f"{where}: the folder's listing has it and run.json has not"
            if name in recorded:
                text = f"{where}: run.json has it and the folder's listing has not"
            self.fault(place, stage, name, text, recorded.get(name), names.get(name))
        for name, md5 in sorted(names.items()):
            digest = found.get(md5)
            if isinstance(digest, OSError):
                if needed:
                    self._lacks(stage, name, md5)
            elif digest is None:
                if needed:
                    self.row(name, place, stage, recorded.get(name), None, "unchecked")
                    self._lacks(stage, name, md5, where, *(["`dvc push`"] if place == "remote" else []))
            else:
                good = digest.md5 == md5 and digest.sha256 == recorded.get(name, digest.sha256)
                self.row(name, place, stage, recorded.get(name), digest.sha256, "ok" if good else "changed")
                if digest.md5 != md5:
                    text = f"{where}: object {md5} was changed"
                    self.fault(place, stage, name, text, recorded.get(name), digest.sha256)
                elif not good:
                    text = f"{where}: object {md5}, which dvc.lock names, has other bytes than run.json records"
                    self.fault("lock", stage, name, text, recorded.get(name), digest.sha256)

    def _check_remote(self, name: str | None) -> None:
        """The remote's objects, fetched and hashed; what git holds is not expected there."""
        try:
            remote = digests.Remote(self.snapshot.root, name)
            listings: list[tuple[str, Item, Mapping[str, str]]] = []
            for stage in self.records:
                for item, md5 in self._cached_items(stage):
                    if item.path in self._uncached:
                        continue
                    listing: Mapping[str, str] | None = {"": md5}
                    if md5.endswith(".dir"):
                        data = remote.read(md5)
                        if data is None:
                            self._lacks(stage, item.path, md5, "the remote", "`dvc push`")
                            continue
                        listing = digests.parse_listing(data)
                        if _md5(data) + ".dir" != md5:
                            text = f"the remote: the folder's listing {md5} was changed"
                            self.fault("remote", stage, item.path, text, md5, _md5(data) + ".dir")
                            continue
                    if listing is not None:
                        listings.append((stage, item, listing))
            found = remote.digests(md5 for _, _, listing in listings for md5 in listing.values())
            for stage, item, listing in listings:
                self._check_objects(stage, item, listing, found, "remote", "the remote", True)
                self._settle(stage, item, [found.get(md5) for md5 in listing.values()])
        except CannotCheck as error:
            self.say(self.unchecked, "remote", None, error.where, f"{error}".removeprefix(f"{error.where}: "))

    def _settle(self, stage: str, item: Item, found: list[Digest | None]) -> None:
        """An output that is neither here nor in the cache is checked after all, where the remote has all of it."""
        missing = [one for one in self.unchecked if (one["kind"], one["path"]) == ("output", item.path)]
        if missing and None not in found:
            self.unchecked = [one for one in self.unchecked if one not in missing]
            self.artifacts = [
                one for one in self.artifacts if (one["path"], one["verdict"]) != (item.path, "unchecked")
            ]
            self.say(self.notes, "output", stage, item.path, "not in the workspace; checked on the remote")

    # --- inputs, code, environment ------------------------------------------------------------------------------

    def _check_inputs(self, stage: str) -> None:
        """Each input: what an earlier stage made must be what that stage recorded, sources must be as they were."""
        locked = {dep["path"]: dep["md5"] for dep in self.lock[stage].get("deps", [])}
        for item in self.records[stage].inputs:
            if producer := self._producer(item.path):
                if producer[0] in self.records:  # one that cannot be read is told of once
                    self._check_chain(stage, item, producer, locked.get(item.path))
                continue
            found = self._found(item.path)
            if item.path in RAW:
                self._check_raw(stage, item, found)
            elif found is None:
                self.fault("input", stage, item.path, "missing: an input changed since", item.sha256, "missing")
                continue
            else:
                recorded = _recorded(item)
                for name in sorted(recorded.keys() | found.keys()):
                    was, now = recorded.get(name), found[name].sha256 if name in found else None
                    if was != now:
                        self.fault("input", stage, name, "an input changed since", was or "not there", now or "missing")
            if found is None or not all(digest.md5 for digest in found.values()):
                continue
            sha256, md5 = digests.path_hashes(item.path, found)
            if sha256 == item.sha256 and md5 != locked.get(item.path, md5):
                text = "dvc.lock's MD5 is not that of the bytes that run.json records"
                self.fault("lock", stage, f"dvc.lock: deps: {item.path}", text, md5, locked[item.path])

    def _check_raw(self, stage: str, item: Item, found: Mapping[str, Digest] | None) -> None:
        recorded = _recorded(item)
        for name in sorted(recorded.keys() | (found or {}).keys()):
            was, now = recorded.get(name), (found or {})[name].sha256 if name in (found or {}) else None
            if now is None and not self.tree.is_workspace and Path(name).is_file():
                now = files.sha256(Path(name))  # git need not hold it; the workspace may still
                if now != was:
                    now = None
            if now is None:
                text = "what the user brought is not here; put it back, or `dvc pull` it"
                self.say(self.unchecked, "input", stage, name, text, was)
            elif was != now:
                self.fault("input", stage, name, "an input changed since", was or "not there", now)

    def _producer(self, path: str) -> tuple[str, Item | None] | None:
        """(stage, its output that is or holds the path); the output is None for a stage's own record."""
        for stage in STAGES:
            outs = self.records[stage].outputs if stage in self.records else []
            locked = [out["path"] for out in self.lock.get(stage, {}).get("outs", [])]
            for out in [*(out.path for out in outs), *locked, _own(stage)]:
                if path == out or path.startswith(f"{out}/"):
                    return stage, next((one for one in outs if one.path == out), None)
        return None

    def _check_chain(self, stage: str, item: Item, producer: tuple[str, Item | None], md5: str | None) -> None:
        maker, out = producer
        outs = {one["path"]: one["md5"] for one in self.lock[maker].get("outs", [])}
        if md5 is not None and outs.get(item.path, md5) != md5:
            text = f"dvc.lock: {stage} read other bytes (MD5) than {maker} made"
            self.fault("lock", stage, f"dvc.lock: deps: {item.path}", text, outs[item.path], md5)
        made: str | None
        if item.path == _own(maker):
            made = hashlib.sha256(self.raw[maker]).hexdigest()
        elif out is None:
            return  # the output is missing from the record, which is told as such
        elif item.path == out.path:
            made = out.sha256
        else:
            made = (out.files or {}).get(item.path[len(out.path) + 1 :])
        if made != item.sha256:
            text = f"{stage} read other bytes than {maker} says it made"
            self.fault("chain", stage, item.path, text, item.sha256, made or "not among its outputs")
        elif (
            out is not None
            and item.path != out.path
            and md5
            and (listing := self.cache.listing(outs.get(out.path, "")))
        ):
            inner = listing.get(item.path[len(out.path) + 1 :])
            if inner is not None and inner != md5:
                text = f"dvc.lock: {stage} read other bytes (MD5) than {maker} made"
                self.fault("lock", stage, f"dvc.lock: deps: {item.path}", text, inner, md5)

    def _check_hub(self, stage: str) -> None:
        for where, source in _sources(self.records[stage].parameters, ""):
            revision = source.get("revision")
            if not (isinstance(revision, str) and is_commit(revision)):
                text = "the hub's revision is not pinned to a commit (40 hex digits)"
                self.fault("hub", stage, f"{where}.revision", text, "a commit", revision)

    def _check_code(self) -> None:
        """Code that was committed, at a revision that is here and holds the very files."""
        if lineage.git("rev-parse", "--git-dir") is None:
            self.say(self.unchecked, "code", None, ".git", "no git repository: the code's revision cannot be looked at")
            return
        trees: dict[str, digests.Tree | None] = {}
        for stage, record in self.records.items():
            revision, own = record.code.revision, _own(stage)
            if revision is None:
                self.fault("code", stage, own, "made outside git: its code was never committed", "a commit", None)
                continue
            if revision not in trees:
                known = lineage.git("cat-file", "-e", f"{revision}^{{commit}}") is not None
                trees[revision] = digests.Tree(lineage.Snapshot(self.snapshot.root, revision)) if known else None
            tree = trees[revision]
            if tree is None:
                text = f"this repository has no commit {revision[:12]} (another repository, or a shallow clone?)"
                self.say(self.unchecked, "code", stage, own, text, revision)
                continue
            changed = self._code_differences(record, tree)
            if record.code.dirty:
                text = f"made with code that was not committed at {revision[:12]}"
                self.fault("code", stage, own, text, "clean", {"files": changed, "diff": self._diff(record)})
            else:
                for name in changed:
                    text = f"run.json says clean at {revision[:12]}, where git has other bytes"
                    self.fault("code", stage, name, text, revision, "another file")

    def _note_uncommitted(self) -> None:
        """Results here that HEAD does not hold: no fault, but a clone does not get them."""
        if self.tree.is_workspace:
            paths = ["dvc.lock", "reports/*/run.json"]
            options = ["-c", "status.relativePaths=true", "--no-optional-locks"]
            listed = lineage.git(*options, "status", "--porcelain", "--untracked-files=all", "--", *paths)
            if names := [line.strip().split(maxsplit=1)[1] for line in (listed or "").splitlines()]:
                text = "not committed: HEAD holds other results than these, or none"
                self.say(self.notes, "uncommitted", None, ", ".join(names), text)

    def _code_differences(self, record: Record, tree: digests.Tree) -> list[str]:
        changed = []
        code = [item for item in record.inputs if item.path.startswith(CODE)]
        tree.preload(name for item in code for name in tree.names(item.path) or [])
        for item in code:
            recorded, found = _recorded(item), tree.listing(item.path) or {}
            names = sorted(recorded.keys() | found.keys())
            changed += [n for n in names if recorded.get(n) != (found[n].sha256 if n in found else None)]
        return changed

    def _diff(self, record: Record) -> str | None:
        """The diff of uncommitted code out of the journal, if it is the recorded one (MLflow's comes later)."""
        journal = _journal(record)
        diff = str(journal.facts.get("diff") or "") if journal else ""
        return diff if diff and files.sha256_text(diff) == record.code.diff_sha256 else None

    def _check_environment(self) -> None:
        """The machine here against the recorded one: package by package, a note (a fault with strict_env)."""
        from regrpo import records

        if any(self.written[stage]["environment"].get("cuda") for stage in self.records):
            import torch  # noqa: F401  (its devices are only seen where it is loaded)
        here = records.environment()
        different: dict[tuple[str, str | None, str | None], list[str]] = {}
        for stage in self.records:
            there = self.written[stage]["environment"]
            for name in sorted(there["packages"].keys() | here["packages"].keys()):
                was, now = there["packages"].get(name), here["packages"].get(name)
                if was != now:
                    different.setdefault((name, was, now), []).append(stage)
            for name in ("python", "system", "cpu", "cuda"):
                if there.get(name) != here[name]:
                    different.setdefault((name, _shown(there.get(name)), _shown(here[name])), []).append(stage)
        for (name, was, now), stages in different.items():
            which = "" if len(stages) == len(self.records) else f" ({', '.join(stages)})"
            text = f"the run had {was or 'none'}, here is {now or 'none'}{which}"
            self.say(self.faults if self.strict_env else self.notes, "environment", None, name, text, was, now)

    def _trace(self) -> None:
        """Who made each stage; `kept` for one made before a stage that it builds on ran last, or by other code."""
        last = max((record.started for record in self.records.values()), default="")
        newest = next((record for record in self.records.values() if record.started == last), None)
        made: dict[str, str] = {}
        for stage, record in self.records.items():
            upstream = [producer[0] for item in record.inputs if (producer := self._producer(item.path))]
            restored = any(made.get(other, "") > record.started for other in upstream)
            other_code = newest is not None and record.code.revision != newest.code.revision
            made[stage] = record.ended
            restored |= any(note["kind"] == "restored" and note["stage"] == stage for note in self.notes)
            self.stages.append(
                {
                    "stage": stage, "run": record.run, "mlflow_run_id": record.mlflow_run_id,
                    "revision": record.code.revision, "started": record.started, "ended": record.ended,
                    "seconds": self.written[stage].get("seconds"), "kept": restored or other_code,
                }
            )  # fmt: skip
            if restored or other_code:
                text = (
                    f"kept or restored: made by run {record.mlflow_run_id or record.run} on {record.started[:16]} UTC"
                )
                self.say(self.notes, "restored", stage, stage, f"{text}, code {str(record.code.revision)[:12]}")


class _Cache:
    """DVC's cache objects of a dvc.lock."""

    def __init__(self, root: Path, lock: Mapping[str, Any]) -> None:
        self.folder = lineage.cache_folder(root)
        self.lock = lock
        self.found: dict[str, Digest | OSError] = {}
        self._listings: dict[str, dict[str, str] | None] = {}
        self.changed: dict[str, str] = {}
        """The folders' listings whose bytes are not what their name says: {name: what their bytes are}."""

    def path(self, md5: str) -> Path:
        return self.folder / md5[:2] / md5[2:]

    def holds(self, md5: str | None) -> bool:
        """Whether an object, or a folder's listing and all its objects, are there."""
        if not md5 or not self.path(md5).is_file():
            return False
        listing = self.listing(md5) if md5.endswith(".dir") else {}
        return listing is not None and all(self.path(one).is_file() for one in listing.values())

    def listing(self, md5: str) -> dict[str, str] | None:
        """{name: MD5} of a folder's object; None where it is missing, changed, unreadable or no folder's."""
        if not md5.endswith(".dir"):
            return None
        if md5 not in self._listings:
            self._listings[md5] = None
            if (file := self.path(md5)).is_file():
                data = file.read_bytes()
                if (found := _md5(data) + ".dir") == md5:
                    self._listings[md5] = digests.parse_listing(data)
                else:
                    self.changed[md5] = found
        return self._listings[md5]

    def objects(self) -> set[str]:
        """The MD5s of every file object that dvc.lock's outs point to and that is there."""
        outs = [out["md5"] for entry in self.lock.values() for out in entry.get("outs", [])]
        inner = {md5 for out in outs for md5 in (self.listing(out) or {}).values()}
        return {md5 for md5 in inner | {out for out in outs if not out.endswith(".dir")} if self.path(md5).is_file()}

    def complete(self, stage: str) -> list[str]:
        """The stage's outputs that the cache holds whole."""
        return [out["path"] for out in self.lock[stage].get("outs", []) if self.holds(out["md5"])]


def _open_store() -> Any:
    from regrpo.mlflow_store import open_reader

    return open_reader(mlflow_uri.tracking_uri())


class _Tracker:
    """MLflow's runs against the files, by the very mapping that `regrpo sync` writes with (regrpo.rows)."""

    def __init__(self, audit: _Audit, store: Future[Any]) -> None:
        self.audit, self._store = audit, store

    def check(self) -> None:
        recorded = [record for record in self.audit.records.values() if record.mlflow_run_id]
        try:
            self.reader = self._store.result()
            parents = [self._check_stage(stage, record) for stage, record in self.audit.records.items()]
            self._check_rows()
            self._mark_kept(parents)
        except Exception as error:  # MLflow, its database layer and its HTTP client raise classes of their own
            if isinstance(error, CannotCheck) and not recorded:
                self._note("no run of this pipeline was told to MLflow")
                return
            text = str(error) if isinstance(error, CannotCheck) else mlflow_uri.name_error(error)
            text = text.removeprefix("MLflow: ")
            how = "" if "--no-mlflow" in text else "; set MLFLOW_TRACKING_URI, or use --no-mlflow"
            self.audit.say(self.audit.unchecked, "mlflow", None, "MLflow", text + how)

    def _note(self, text: str, stage: str | None = None) -> None:
        self.audit.say(self.audit.notes, "mlflow", stage, "MLflow", text)

    def _check_stage(self, stage: str, record: Record) -> str | None:
        """One stage's run; returns its parent's id."""
        audit = self.audit
        if record.mlflow_run_id:
            run = self.reader.run(record.mlflow_run_id)
        else:
            run = next(iter(self.reader.tagged(regrpo__run=record.run)), None)
        if run is None:
            if record.mlflow_run_id:
                text = f"the store has no run {record.mlflow_run_id}; set MLFLOW_TRACKING_URI, or use --no-mlflow"
                audit.say(audit.unchecked, "mlflow", stage, "MLflow", text)
            else:
                self._note("the run was not told to MLflow (`regrpo sync` does, if its journal is here)", stage)
            return None
        where = f"MLflow run {run['id']}"
        if run["deleted"]:
            self._note(f"run {run['id']} is marked as deleted", stage)
        if run["status"] != "FINISHED":
            audit.fault("mlflow", stage, f"{where}: status", "is not FINISHED", "FINISHED", run["status"])
        sections = {name: values for params in record.parameters.values() for name, values in params.items()}
        profile = next(iter(record.parameters), "")
        expected = rows.parameters(sections) | {"profile": profile}
        self._compare(stage, where, "params", expected, run["params"], whole=True)
        tags = rows.output_tags(audit.written[stage]) | {
            "regrpo.run": record.run, "regrpo.key": record.key, "regrpo.stage": stage,
            "regrpo.environment": record.environment.sha256,
        }  # fmt: skip
        if record.code.revision:
            tags |= {
                "mlflow.source.git.commit": record.code.revision,
                "regrpo.git.dirty": str(record.code.dirty).lower(),
            }
        tags |= {"regrpo.git.diff_sha256": record.code.diff_sha256} if record.code.diff_sha256 else {}
        self._compare(stage, where, "tags", tags, run["tags"])
        self._check_metrics(stage, where, run)
        for model in self.reader.models(run):
            output = next((out for out in record.outputs if out.path == model.get("regrpo.path")), None)
            wanted = {
                "regrpo.sha256": output.sha256 if output else "",
                "regrpo.run": record.run,
                "regrpo.key": record.key,
            }
            self._compare(stage, f"{where}: logged model", "tags", wanted, model)
        self._check_artifacts(stage, where, run["id"], record)
        return str(run["tags"].get("mlflow.parentRunId") or run["id"])

    def _check_metrics(self, stage: str, where: str, run: Mapping[str, Any]) -> None:
        """Final values, and every step of what was shown live, against the reports and the journal if it is here."""
        audit, final, live = self.audit, _final_metrics(self.audit, stage), _live(self.audit, stage)
        history, evaluation = (_recorded_report(audit, stage, name) for name in ("history.csv", "metrics.json"))
        scores = rows.scores(evaluation) if evaluation and stage == "evaluate" else {}
        curves = scores | live | (rows.curves(history) if history else {})
        summary = {name: value for name, value in final.items() if name not in curves}
        self._compare_metrics(stage, where, summary, run["metrics"])
        for name, steps in curves.items():
            found = self._told_curve(run["id"], name)
            latest = run["metrics"].get(name)
            if name in scores.keys() - live.keys():
                found = {step: stats.rounded(values) for step, values in found.items()}
                latest = stats.rounded(latest)
            if found:
                self._compare_curve(stage, f"{where}: metric {name}", steps, found, latest, final.get(name))
            else:
                text, path = "none of its steps is there", f"{where}: metric {name}"
                audit.fault("mlflow", stage, path, text, f"{len(steps)} steps", None)

    def _told_curve(self, run_id: str, name: str) -> dict[int, list[float]]:
        found: dict[int, list[float]] = {}
        for step, value in self.reader.curve(run_id, name):
            found.setdefault(step, []).append(value)
        return found

    def _compare_curve(
        self, stage: str | None, metric: str, steps: Mapping[int, list[float]], found: dict[int, list[float]],
        latest: float | None, final: float | None,
    ) -> None:  # fmt: skip
        """One curve, step by step, and what MLflow shows as its latest value.

        `final`: what an older regrpo logged besides at the last step.
        """
        last = max(steps)
        ends, doubled = list(steps[last]), found.get(last, [])
        if final is not None and len(doubled) == len(ends) + 1 and final in doubled:
            doubled.remove(final)
            ends.append(final)
            text = f"has its final value besides at step {last}, as an older regrpo logged it"
            self.audit.say(self.audit.notes, "mlflow", stage, metric, text)
        for step in sorted(steps.keys() | found.keys()):
            was, now = steps.get(step, []), found.get(step, [])
            if text := _wrong(was, now):
                values = (side[0] if len(side) == 1 else side or None for side in (was, now))
                self.audit.fault("mlflow", stage, f"{metric} at step {step}", text, *values)
        if latest is None or not any(_same(end, latest) for end in ends):
            self.audit.fault("mlflow", stage, f"{metric}: latest", "is not that of the last step", ends[-1], latest)

    def _check_artifacts(self, stage: str, where: str, run_id: str, record: Record) -> None:
        """run.json and the report files as MLflow keeps them."""
        audit, reports = self.audit, f"reports/{stage}/"
        expected = {
            out.path.removeprefix(reports): out.sha256 for out in record.outputs if out.path.startswith(reports)
        }
        kept = self._kept_beside(run_id)
        names = set(kept or self.reader.artifacts(run_id))

        def read(name: str) -> bytes:
            return kept[name].read_bytes() if kept else self.reader.artifact(run_id, name)

        for name in sorted(names & expected.keys()):
            found = hashlib.sha256(read(name)).hexdigest()
            audit.row(
                reports + name, "mlflow", stage, expected[name], found, "ok" if found == expected[name] else "changed"
            )
            if found != expected[name]:
                audit.fault("mlflow", stage, f"{where}: artifact {name}", "changed", expected[name], found)
        if "run.json" in names:
            self._compare_record(stage, f"{where}: artifact run.json", _json(read("run.json")))
        if lost := sorted((expected.keys() | {"run.json"}) - names):
            text = f"the store has lost {len(lost)} of its {len(expected) + 1}: {', '.join(lost)} (--no-mlflow)"
            audit.say(audit.unchecked, "mlflow", stage, f"{where}: artifacts", text)
        if record.code.dirty and "code.diff" in names:
            diff = read("code.diff").decode(errors="replace").strip("\n")
            if files.sha256_text(diff) != record.code.diff_sha256:
                text = "is not the diff that run.json records"
                audit.fault(
                    "mlflow",
                    stage,
                    f"{where}: artifact code.diff",
                    text,
                    record.code.diff_sha256,
                    files.sha256_text(diff),
                )
            for fault in audit.faults:
                if fault["kind"] == "code" and fault["stage"] == stage and isinstance(fault["found"], dict):
                    fault["found"]["diff"] = fault["found"]["diff"] or diff

    def _compare_record(self, stage: str, path: str, kept: Any) -> None:
        """MLflow's copy of run.json, leaf by leaf."""
        written = self.audit.written[stage]
        if not isinstance(kept, dict) or kept.get("run") != written["run"]:
            found = kept.get("run") if isinstance(kept, dict) else "no record"
            self.audit.fault("mlflow", stage, path, "is not this run's record", written["run"], found)
            return
        for name, (was, now) in _differences(written, kept).items():
            self.audit.fault("mlflow", stage, f"{path}: {name}", f"is not what {_own(stage)} says", was, now)

    def _kept_beside(self, run_id: str) -> dict[str, Path]:
        """{name: file} of a run's artifacts in the folder beside mlflow.db; empty where they are kept elsewhere.

        A local store records whole paths: in a copied repository they lead to the original's files, not to its own.
        """
        store, uri = mlflow_uri.tracking_uri(), str(self.reader.client.get_run(run_id).info.artifact_uri)
        address = urlsplit(uri)
        if not store.startswith("sqlite:///") or address.scheme not in ("", "file"):
            return {}
        _, _, inner = unquote(address.path).rpartition("/mlartifacts/")
        beside = Path(store.removeprefix("sqlite:///")).parent / "mlartifacts"
        folder = beside / inner
        if not inner or not folder.resolve().is_relative_to(beside.resolve()):
            return {}
        return {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}

    def _check_rows(self) -> None:
        """The whole pipeline's rows, if MLflow has any."""
        audit = self.audit
        key = lineage.pipeline_key({"stages": audit.lock})
        if key is None or set(audit.records) != set(STAGES):
            return
        found = self.reader.tagged(regrpo__pipeline_key=key)
        if not found:
            self._note("has no row of the whole pipeline; `regrpo sync` makes one")
            return
        try:
            row = rows.from_snapshot(audit.snapshot)
        except ValueError:  # a damaged report is a fault of its own
            return
        row.tags.pop("regrpo.pipeline_key")
        for run in found:
            where = f"MLflow row {run['id']}"
            self._compare(None, where, "params", row.params, run["params"], whole=True)
            tags = {name: value for name, value in row.tags.items() if not name.startswith("regrpo.stage.")}
            self._compare(None, where, "tags", _told(tags, run["tags"]), run["tags"])
            self._compare_metrics(None, where, _told(row.metrics, run["metrics"]), run["metrics"])
            for name, steps in rows.shown_curves(row.curves).items():
                if name in run["metrics"]:
                    found_steps, latest = self._told_curve(run["id"], name), run["metrics"][name]
                    self._compare_curve(None, f"{where}: metric {name}", steps, found_steps, latest, None)

    def _compare(
        self,
        stage: str | None,
        where: str,
        what: str,
        expected: Mapping[str, str],
        found: Mapping[str, str],
        whole: bool = False,
    ) -> None:
        """Values as MLflow cuts them; with `whole`, what is there and not expected is a fault too."""
        from regrpo.mlflow_store import ABSENT

        for name, value in expected.items():
            value, now = value[: CUT[what]], found.get(name[:250])
            if value != now:
                self.audit.fault("mlflow", stage, f"{where}: {what} {name}", "is not what the files say", value, now)
        for name in sorted(set(found) - set(expected)) if whole else ():
            if found[name] != ABSENT:
                text = "is not in the files"
                self.audit.fault("mlflow", stage, f"{where}: {what} {name}", text, None, found[name])

    def _compare_metrics(
        self, stage: str | None, where: str, expected: Mapping[str, float], found: Mapping[str, float]
    ) -> None:
        for name, value in expected.items():
            now = found.get(name)
            if now is None or not _same(value, now):
                self.audit.fault("mlflow", stage, f"{where}: metric {name}", "is not what the files say", value, now)

    def _mark_kept(self, parents: Iterable[str | None]) -> None:
        """Stages of more than one execution: say which run made each of the older ones."""
        known = dict(zip(self.audit.records, parents, strict=True))
        last = max(self.audit.records, key=lambda stage: self.audit.records[stage].started, default=None)
        for stage, parent in known.items():
            record = self.audit.records[stage]
            if last is not None and parent and known[last] and parent != known[last]:
                text = (
                    f"kept or restored: made by run {record.mlflow_run_id or record.run} on {record.started[:16]} UTC"
                )
                self.audit.say(
                    self.audit.notes, "restored", stage, stage, f"{text}, code {str(record.code.revision)[:12]}"
                )


def _told(expected: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """What is expected of a row, without what it may lack."""
    return {name: value for name, value in expected.items() if name in found or not name.startswith(rows.SHOWN_AGAIN)}


def _own(stage: str) -> str:
    return f"reports/{stage}/run.json"


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _name(declared: Any) -> str:
    """An entry of dvc.yaml's lists: a path, or a mapping of one path to its options."""
    return str(next(iter(declared)) if isinstance(declared, dict) else declared)


def _shown(value: Any) -> str | None:
    return None if value is None else value if isinstance(value, str) else files.canonical_json(value)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _yaml(snapshot: lineage.Snapshot, path: str) -> dict[str, Any] | None:
    """A YAML file there; None where it is missing, unreadable or no mapping."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        content = YAML(typ="safe").load((snapshot.read(path) or b"").decode())
    except (YAMLError, ValueError, OSError):  # a name that no file can have is a ValueError
        content = None
    return content if isinstance(content, dict) else None


def _declared(snapshot: lineage.Snapshot) -> dict[str, dict[str, Any]]:
    """dvc.yaml's stages, in the shapes that are read here; CannotCheck in one line where it has others."""
    content = _yaml(snapshot, "dvc.yaml")
    stages = content.get("stages") if content else None
    if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
        problem = "no mapping of stages"
    else:
        problem = next(
            (
                f"{name}: {kind}"
                for name, stage in stages.items()
                for kind in ("deps", "params", "outs", "metrics", "plots")
                if not _plain_list(stage.get(kind, []), (list, type(None)) if kind == "params" else (dict, type(None)))
            ),
            "",
        )
    if problem:
        raise CannotCheck(
            "dvc.yaml", expected="DVC's pipeline file", found=f"a corrupted one ({problem})",
            remedy="Restore it with git.",
        )  # fmt: skip
    return dict(stages or {})


def _plain_list(value: Any, inner: tuple[type, ...]) -> bool:
    """Whether it is a list of names, or of mappings from one name to options."""
    return isinstance(value, list) and all(
        isinstance(one, str)
        or (isinstance(one, dict) and len(one) == 1 and isinstance(next(iter(one.values())), inner))
        for one in value
    )


def _params(declared: Iterable[Any], locked: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """{file: key} of a stage's `params:` line; which profile it is now is compared with the parameters themselves."""
    found = set()
    for one in declared:
        path, keys = next(iter(one.items())) if isinstance(one, dict) else ("params.yaml", [one])
        path = next(iter(locked), path) if path == "${profile}" else path
        found |= {f"{path}: {key}" for key in (locked.get(path, {}) if keys is None else keys)}
    return found


def _recorded(item: Item) -> dict[str, str]:
    """{file: SHA-256} of a recorded input or output."""
    if item.files is None:
        return {item.path: item.sha256}
    return {f"{item.path}/{name}": digest for name, digest in item.files.items()}


def _differences(was: Any, now: Any) -> dict[str, tuple[Any, Any]]:
    """{dotted name: (was, now)} of the leaves that differ; numbers compare as numbers."""
    before, after = dict(_leaves(was, "")), dict(_leaves(now, ""))
    names = sorted(before.keys() | after.keys())
    return {
        name: (before.get(name, "not there"), after.get(name, "not there"))
        for name in names
        if name not in before or name not in after or before[name] != after[name]
    }


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            # params.yaml: grpo.learning_rate
            yield from _leaves(
                inner, f"{name}{': ' if name.count(':') == 0 and '.yaml' in name else '.'}{key}" if name else str(key)
            )
    else:
        yield name, value


def _sources(value: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping in the parameters that names the hub as its kind, and where it stands."""
    if isinstance(value, Mapping):
        if value.get("kind") == "hub":
            yield where, value
        for key, inner in value.items():
            yield from _sources(
                inner,
                f"{where}.{key}"
                if where and not where.endswith(".yaml")
                else str(key)
                if not where
                else f"{where}: {key}",
            )


def _final_metrics(audit: _Audit, stage: str) -> dict[str, float]:
    reports = {name: audit.snapshot.read(f"reports/{stage}/{name}") for name in journals.METRIC_REPORTS}
    try:
        return rows.final_metrics({name: data for name, data in reports.items() if data is not None})
    except ValueError:  # a damaged report is a fault of its own
        return {}


def _recorded_report(audit: _Audit, stage: str, name: str) -> bytes | None:
    """A report's bytes; None where they are not the recorded ones (told as such)."""
    path = f"reports/{stage}/{name}"
    recorded = next((item.sha256 for item in audit.records[stage].outputs if item.path == path), None)
    data = audit.snapshot.read(path)
    return data if data is not None and hashlib.sha256(data).hexdigest() == recorded else None


def _live(audit: _Audit, stage: str) -> rows.Curves:
    """What the journal says that the stage showed live, where it is here: custom code may log what it likes."""
    found: rows.Curves = {}
    if journal := _journal(audit.records[stage]):
        for line in journal.metrics_from(0)[0]:
            for name, value in line["values"].items():
                found.setdefault(rows.mlflow_name(name), {}).setdefault(line["step"], []).append(float(value))
    return found


def _journal(record: Record) -> journals.Told | None:
    """The journal of a record's run, where it is here and can be read."""
    for path in sorted(journals.journal_folder().glob(f"*-{record.stage}/open.json")):
        with contextlib.suppress(ValueError, OSError):
            journal = journals.Told(path.parent)
            if journal.facts.get("run") == record.run:
                return journal
    return None


def _same(one: float, other: float) -> bool:
    """Whether a value is another as MLflow's database gives it back: NaN is NaN, infinity the largest number."""
    largest = sys.float_info.max
    return (math.isnan(one) and math.isnan(other)) or max(-largest, min(one, largest)) == other


def _wrong(was: list[float], now: list[float]) -> str:
    """What is wrong with a step's values in MLflow; nothing where they are the expected ones."""
    if not now or not was:
        return "is in no file" if now else "is missing"
    if not all(any(_same(a, b) for b in now) for a in was) or not all(any(_same(a, b) for a in was) for b in now):
        return "is not what the files say"
    return f"is there {len(now)} times" if len(now) > len(was) else ""
