"""Whether a pipeline is what its records say.

Card → samples → weights → rewards → gate → data → source, to the byte.

`audit(place)` compares four witnesses — the bytes (read in full), dvc.lock with DVC's cache,
run.json, MLflow — and git's code. It returns plain data and changes nothing:

verdict    "complete" | "broken" (a fault) | "not checkable" (no fault, but something could not be
looked at) stages     [{stage, run, mlflow_run_id, revision, started, ended, seconds, kept}] in
running order artifacts  [{path, place, stage, run, recorded, found, verdict}] place: workspace |
git | cache | remote | mlflow faults, unchecked, notes  [{kind, stage, path, recorded, found, text}]
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from regrpo.audit import mlflow_rules
from regrpo.audit.findings import Findings
from regrpo.core import files
from regrpo.core.dvc import (
    cache_folder,
    declared_outputs,
    dvc_config,
    md5_of,
    object_path,
    parse_listing,
    path_of,
)
from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.git import git
from regrpo.core.hub import is_commit
from regrpo.core.pipeline import (
    Misfit,
    Snapshot,
    chain_misfits,
    entry_misfits,
    out_md5s,
    record_path,
)
from regrpo.core.profiles import STAGES, parse_yaml
from regrpo.records import hashing
from regrpo.records.find import Place
from regrpo.records.hashing import Digest
from regrpo.records.journal import journal_of
from regrpo.records.record import Item, Record, parse_record

RAW = ("data/raw", "models/raw")
"""What users bring: its bytes may lie outside git, so that a clone need not have them."""
CODE = ("stages/", "regrpo/", "custom")
"""The inputs that are code: git must hold them at the recorded revision."""


def audit(
    place: Place, *, remote: str | bool = False, mlflow: bool = True, strict_env: bool = False
) -> dict[str, Any]:
    """Audit one pipeline; the current folder must be the snapshot's root.

    `remote`: True for DVC's default remote, or a remote's name. Raises CannotCheck where there is
    no pipeline to audit.
    """
    return _Audit(place, strict_env=strict_env).walk(remote, mlflow)


@dataclass
class _Audit(Findings):
    strict_env: bool = False

    def walk(self, remote: str | bool, mlflow: bool) -> dict[str, Any]:
        self.tree = hashing.Tree(self.snapshot)
        self.lock = self.snapshot.lock()["stages"]
        if not self.lock:
            raise CannotCheck(
                "dvc.lock",
                expected="a pipeline that was run",
                found=f"no finished stage in the {self.place.name}",
                remedy="Run `make repro`, or name a revision that holds results.",
            )
        self.declared = _declared(self.snapshot)
        self.raw = self.snapshot.record_bytes()
        with ThreadPoolExecutor(
            1
        ) as aside:  # importing mlflow takes seconds, in which the bytes are hashed
            store = aside.submit(mlflow_rules.open_store) if mlflow else None
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
                mlflow_rules.Tracker(self, store).check()
        self._trace()
        return self.report(mlflow, remote)

    # --- records and dvc.lock ---------------------------------------------------------------------

    def _read_records(self) -> None:
        for stage in STAGES:
            path = record_path(stage)
            if stage not in self.lock and stage not in self.raw:
                self.say(
                    self.unchecked,
                    "lock",
                    stage,
                    "dvc.lock",
                    "the stage has not run; `dvc repro` runs it",
                )
            elif stage not in self.lock:
                self.fault(
                    "lock", stage, "dvc.lock", f"has no entry for the stage, yet {path} is there"
                )
            elif stage not in self.raw:
                self.fault(
                    "output",
                    stage,
                    path,
                    "missing: dvc.lock knows it; restore it with git",
                    found="missing",
                )
            else:
                try:
                    self.records[stage], self.written[stage] = parse_record(self.raw[stage], path)
                except CannotCheck as error:
                    self.say(
                        self.unchecked, "record", stage, path, str(error).removeprefix(f"{path}: ")
                    )

    def _check_record(self, stage: str) -> None:
        """What run.json says about itself."""
        record, written, path = self.records[stage], self.written[stage], record_path(stage)
        if record.stage != stage:
            self.fault(
                "record",
                stage,
                path,
                f"is the record of another stage ({record.stage})",
                stage,
                record.stage,
            )
        for item in [*record.inputs, *record.outputs]:
            if (
                item.files is not None
                and (found := hashing.folder_sha256(item.files)) != item.sha256
            ):
                text = f"the hash of {item.path} is not that of the files listed under it"
                self.fault("record", stage, path, text, item.sha256, found)
        facts = {key: value for key, value in written["environment"].items() if key != "sha256"}
        if (found := files.sha256_json(facts)) != record.environment.sha256:
            text = "the environment's hash is not that of the environment listed"
            self.fault("record", stage, path, text, record.environment.sha256, found)

    def _check_lock(self, stage: str) -> None:
        """dvc.lock's entry against run.json: the same command, parameters, inputs and outputs."""
        record, entry, own = self.records[stage], self.lock[stage], record_path(stage)
        outs = out_md5s(entry)
        misfits = {
            one.kind: one
            for one in entry_misfits(stage, entry, self.raw[stage], self.written[stage])
        }
        altered = misfits.get("md5")
        if own not in outs:
            self.fault("lock", stage, "dvc.lock", f"does not list {own}")
        elif altered:
            expected, found = altered.expected, altered.found
            self.row(own, self._here, stage, expected, found, "changed")
            text = "is not the record that dvc.lock knows (MD5)"
            self.fault("lock", stage, own, text, expected, found)
        else:
            self.row(own, self._here, stage, outs[own], outs[own], "ok")
        if entry["cmd"] != record.command:
            self.fault(
                "lock",
                stage,
                "dvc.lock: cmd",
                "is not run.json's command",
                record.command,
                entry["cmd"],
            )
        for name, was, now in _parameter_differences(record.parameters, entry.get("params", {})):
            self.fault("lock", stage, f"dvc.lock: {name}", "is not run.json's parameter", was, now)
        for what, ours, theirs in (
            ("outs", {item.path for item in record.outputs} | {own}, set(outs)),
            (
                "deps",
                {item.path for item in record.inputs},
                {dep["path"] for dep in entry.get("deps", [])},
            ),
        ):
            for path in sorted(ours ^ theirs):
                has, lacks = ("run.json", "dvc.lock") if path in ours else ("dvc.lock", "run.json")
                self.fault(
                    "lock", stage, f"dvc.lock: {what}: {path}", f"is in {has} and not in {lacks}"
                )
        known = {
            "outs": {item.path: item for item in record.outputs},
            "deps": {i.path: i for i in record.inputs},
        }
        for what, items in known.items():
            for one in entry.get(what, []):
                if one["path"] == own and what == "outs":
                    size, count = len(self.raw[stage]), None
                elif (item := items.get(one["path"])) is not None:
                    size, count = item.size, None if item.files is None else len(item.files)
                else:
                    continue
                self._check_facts(stage, what, one, {"hash": "md5", "size": size, "nfiles": count})
        if other := misfits.get("key"):
            text = "dvc.lock's command, dependencies and parameters do not give run.json's key"
            self.fault("lock", stage, f"{own}: key", text, other.expected, other.found)

    def _check_facts(
        self, stage: str, what: str, one: Mapping[str, Any], expected: Mapping[str, Any]
    ) -> None:
        """What dvc.lock says of a path besides its MD5, as far as it says anything."""
        where = f"dvc.lock: {what}: {one['path']}"
        for name, value in expected.items():
            if name in one and one[name] != value:
                self.fault(
                    "lock", stage, where, f"{name} is not what run.json gives", value, one[name]
                )
        if "hash" not in one:  # without size or nfiles DVC does all as before
            text = "hash is missing: DVC then takes the MD5 for its older kind, and looks for it in its older cache"
            self.fault("lock", stage, where, text, expected["hash"], None)

    def _check_declared(self) -> None:
        """dvc.yaml and the profile as they are here against dvc.lock."""
        declared = self.declared
        params = _yaml(self.snapshot, "params.yaml")
        profile = str((params or {}).get("profile"))
        sections = (
            params if params is None or profile == "params.yaml" else _yaml(self.snapshot, profile)
        )
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
                self.fault(
                    "pipeline",
                    stage,
                    "dvc.yaml: cmd",
                    text,
                    entry["cmd"],
                    declared[stage].get("cmd"),
                )
            outs = {path_of(out) for out in declared_outputs(declared[stage])}
            locked = {
                kind: {one["path"] for one in entry.get(kind, [])} for kind in ("outs", "deps")
            }
            locked["params"] = {
                f"{path}: {key}" for path, keys in entry.get("params", {}).items() for key in keys
            }
            for what, names in (
                ("outs", outs),
                ("deps", set(map(path_of, declared[stage].get("deps", [])))),
                ("params", _params(declared[stage].get("params", []), entry.get("params", {}))),
            ):
                for path in sorted(names ^ locked[what]):
                    has, lacks = (
                        ("dvc.yaml", "dvc.lock") if path in names else ("dvc.lock", "dvc.yaml")
                    )
                    self.fault(
                        "pipeline",
                        stage,
                        f"dvc.yaml: {what}: {path}",
                        f"is in {has} and not in {lacks}",
                    )
            if stage not in self.records or sections is None:
                continue
            now = {profile: {stage: sections.get(stage)}}
            for name, was, found in _parameter_differences(self.records[stage].parameters, now):
                self.fault("input", stage, name, "the parameter changed since", was, found)

    # --- bytes ------------------------------------------------------------------------------------

    @property
    def _here(self) -> str:
        return "workspace" if self.tree.is_workspace else "git"

    def _hash_workspace(self) -> None:
        """Read everything once.

        Workspace (MD5 only where dvc.lock's is not seen in the cache), and cache.
        """
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
        found = hashing.of_files(wanted | objects)
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
                sha256, md5 = hashing.path_hashes(item.path, found)
                if sha256 == item.sha256 and md5 != out["md5"]:
                    text = "dvc.lock's MD5 is not that of the bytes that run.json records"
                    self.fault("lock", stage, f"dvc.lock: outs: {item.path}", text, md5, out["md5"])

    def _missing_output(self, stage: str, item: Item, md5: str | None) -> None:
        """An output that is not here was taken away if DVC's cache has it and others are here, else not fetched."""
        cached, uncached = self.cache.holds(md5), item.path in self._uncached
        others = [
            out.path
            for record in self.records.values()
            for out in record.outputs
            if out.path not in self._uncached
        ]
        if uncached or (
            self.tree.is_workspace and cached and any(Path(path).exists() for path in others)
        ):
            self.row(item.path, self._here, stage, item.sha256, None, "missing")
            self.fault("output", stage, item.path, "missing", item.sha256, "missing")
        elif cached:
            if self.tree.is_workspace:
                self.say(
                    self.notes,
                    "output",
                    stage,
                    item.path,
                    "not in the workspace; checked in DVC's cache",
                )
        else:
            self.row(item.path, self._here, stage, item.sha256, None, "unchecked")
            text = f"neither here nor in DVC's cache; {self._remedy}"
            self.say(self.unchecked, "output", stage, item.path, text, item.sha256)

    @cached_property
    def _remedy(self) -> str:
        """What brings an output that was never fetched."""
        config = dvc_config(self.snapshot.root)
        if config.get("core", {}).get("remote"):
            return "fetch it with `dvc pull`"
        if remotes := list(config.get("remote", {})):
            return f"fetch it with `dvc pull -r {remotes[0]}`"
        return "DVC knows no remote to pull it from: make it again with `dvc repro`"

    @cached_property
    def _uncached(self) -> set[str]:
        """The outputs that git holds (`cache: false`)."""
        outs = [out for stage in self.declared.values() for out in declared_outputs(stage)]
        return {
            path_of(out)
            for out in outs
            if isinstance(out, dict) and not (next(iter(out.values())) or {}).get("cache", True)
        }

    def _compare(
        self,
        stage: str,
        item: Item,
        found: Mapping[str, Digest],
        place: str,
        kind: str,
        where: str = "",
    ) -> None:
        """Recorded against found files, each difference by name."""
        recorded = _recorded(item)
        for name in sorted(recorded.keys() | found.keys()):
            was, now = recorded.get(name), found[name].sha256 if name in found else None
            verdict = (
                "ok"
                if was == now
                else "missing"
                if now is None
                else "extra"
                if was is None
                else "changed"
            )
            self.row(name, place, stage, was, now, verdict)
            if verdict != "ok":
                self.fault(
                    kind, stage, name, f"{verdict}{where}", was or "not there", now or "missing"
                )

    def _check_surroundings(self, stage: str, path: str) -> None:
        """What is no file of an output and yet is there.

        Links, empty folders, what .dvcignore hides.
        """
        if not self.tree.is_workspace:
            return
        seen = set(self.tree.names(path) or [])
        for entry in [Path(path), *sorted(Path(path).rglob("*"))]:
            name = entry.as_posix()
            if entry.is_symlink() and (name in seen or name == path):
                if not entry.resolve().is_relative_to(
                    self.cache.folder.resolve()
                ):  # DVC's own links lead there
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
            known = {item.path for item in self.records[stage].outputs} | {record_path(stage)}
            for name in self.tree.names(f"reports/{stage}") or []:
                if name not in known:
                    self.say(
                        self.notes,
                        "output",
                        stage,
                        name,
                        "made by no recorded run: part of no hash",
                    )

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
            self._check_objects(
                stage, item, listing, self.cache.found, "cache", "DVC's cache", needed
            )

    def _cached_items(self, stage: str) -> Iterator[tuple[Item, str]]:
        recorded = {item.path: item for item in self.records[stage].outputs}
        for out in self.lock[stage].get("outs", []):
            if out["path"] in recorded:
                yield recorded[out["path"]], out["md5"]

    def _lacks(
        self,
        stage: str,
        path: str,
        md5: str,
        where: str = "DVC's cache",
        how: str = "`dvc fetch` or `dvc commit`",
    ) -> None:
        self.say(
            self.unchecked,
            where.split()[-1],
            stage,
            path,
            f"{where} has no object {md5}; {how} brings it",
        )

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
        names = {
            (f"{item.path}/{name}" if name else item.path): md5 for name, md5 in listing.items()
        }
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
                    self._lacks(
                        stage, name, md5, where, *(["`dvc push`"] if place == "remote" else [])
                    )
            else:
                good = digest.md5 == md5 and digest.sha256 == recorded.get(name, digest.sha256)
                self.row(
                    name,
                    place,
                    stage,
                    recorded.get(name),
                    digest.sha256,
                    "ok" if good else "changed",
                )
                if digest.md5 != md5:
                    text = f"{where}: object {md5} was changed"
                    self.fault(place, stage, name, text, recorded.get(name), digest.sha256)
                elif not good:
                    text = f"{where}: object {md5}, which dvc.lock names, has other bytes than run.json records"
                    self.fault("lock", stage, name, text, recorded.get(name), digest.sha256)

    def _check_remote(self, name: str | None) -> None:
        """The remote's objects, fetched and hashed; what git holds is not expected there."""
        try:
            remote = hashing.Remote(self.snapshot.root, name)
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
                        listing = parse_listing(data)
                        if md5_of(data) + ".dir" != md5:
                            text = f"the remote: the folder's listing {md5} was changed"
                            self.fault("remote", stage, item.path, text, md5, md5_of(data) + ".dir")
                            continue
                    if listing is not None:
                        listings.append((stage, item, listing))
            found = remote.digests(md5 for _, _, listing in listings for md5 in listing.values())
            for stage, item, listing in listings:
                self._check_objects(stage, item, listing, found, "remote", "the remote", True)
                self._settle(stage, item, [found.get(md5) for md5 in listing.values()])
        except CannotCheck as error:
            self.say(
                self.unchecked,
                "remote",
                None,
                error.where,
                f"{error}".removeprefix(f"{error.where}: "),
            )

    def _settle(self, stage: str, item: Item, found: list[Digest | None]) -> None:
        """An output that is neither here nor in the cache is checked after all, where the remote has all of it."""
        missing = [
            one for one in self.unchecked if (one["kind"], one["path"]) == ("output", item.path)
        ]
        if missing and None not in found:
            self.unchecked = [one for one in self.unchecked if one not in missing]
            self.artifacts = [
                one
                for one in self.artifacts
                if (one["path"], one["verdict"]) != (item.path, "unchecked")
            ]
            self.say(
                self.notes,
                "output",
                stage,
                item.path,
                "not in the workspace; checked on the remote",
            )

    # --- inputs, code, environment ----------------------------------------------------------------

    def _check_inputs(self, stage: str) -> None:
        """Each input.

        What an earlier stage made must be what that stage recorded, sources must be as they were.
        """
        locked = {dep["path"]: dep["md5"] for dep in self.lock[stage].get("deps", [])}
        for item in self.records[stage].inputs:
            if producer := self._producer(item.path):
                if producer[0] in self.records:  # one that cannot be read is told of once
                    self._check_chain(stage, item, producer[0], locked.get(item.path))
                continue
            found = self._found(item.path)
            if item.path in RAW:
                self._check_raw(stage, item, found)
            elif found is None:
                self.fault(
                    "input",
                    stage,
                    item.path,
                    "missing: an input changed since",
                    item.sha256,
                    "missing",
                )
                continue
            else:
                recorded = _recorded(item)
                for name in sorted(recorded.keys() | found.keys()):
                    was, now = recorded.get(name), found[name].sha256 if name in found else None
                    if was != now:
                        self.fault(
                            "input",
                            stage,
                            name,
                            "an input changed since",
                            was or "not there",
                            now or "missing",
                        )
            if found is None or not all(digest.md5 for digest in found.values()):
                continue
            sha256, md5 = hashing.path_hashes(item.path, found)
            if sha256 == item.sha256 and md5 != locked.get(item.path, md5):
                text = "dvc.lock's MD5 is not that of the bytes that run.json records"
                self.fault(
                    "lock", stage, f"dvc.lock: deps: {item.path}", text, md5, locked[item.path]
                )

    def _check_raw(self, stage: str, item: Item, found: Mapping[str, Digest] | None) -> None:
        recorded = _recorded(item)
        for name in sorted(recorded.keys() | (found or {}).keys()):
            was, now = (
                recorded.get(name),
                (found or {})[name].sha256 if name in (found or {}) else None,
            )
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
        """(stage, its output that is or holds the path).

        The output is None for a stage's own record.
        """
        for stage in STAGES:
            outs = self.records[stage].outputs if stage in self.records else []
            locked = [out["path"] for out in self.lock.get(stage, {}).get("outs", [])]
            for out in [*(out.path for out in outs), *locked, record_path(stage)]:
                if path == out or path.startswith(f"{out}/"):
                    return stage, next((one for one in outs if one.path == out), None)
        return None

    @cached_property
    def _broken_chain(self) -> dict[tuple[str, str], Misfit]:
        """(reader, path) of each input that is not what the stage that makes it recorded."""
        misfits = chain_misfits({stage: self.written[stage] for stage in self.records}, self.raw)
        return {(one.stage, one.path): one for one in misfits}

    def _check_chain(self, stage: str, item: Item, maker: str, md5: str | None) -> None:
        """An input that an earlier stage made: its SHA-256 in the records, its MD5 in dvc.lock."""
        known = self._md5_made(maker, item.path)
        if md5 is not None and known is not None and known != md5:
            text = f"dvc.lock: {stage} read other bytes (MD5) than {maker} made"
            self.fault("lock", stage, f"dvc.lock: deps: {item.path}", text, known, md5)
        if other := self._broken_chain.get((stage, item.path)):
            text = f"{stage} read other bytes than {maker} says it made"
            made = other.expected or "not among its outputs"
            self.fault("chain", stage, item.path, text, item.sha256, made)

    def _md5_made(self, maker: str, path: str) -> str | None:
        """The MD5 of a stage's output, or of a file in one as far as DVC's cache lists it."""
        for out, md5 in out_md5s(self.lock[maker]).items():
            if out == path:
                return md5
            if path.startswith(f"{out}/"):
                return (self.cache.listing(md5) or {}).get(path[len(out) + 1 :])
        return None

    def _check_hub(self, stage: str) -> None:
        for where, source in _sources(self.records[stage].parameters, ""):
            revision = source.get("revision")
            if not (isinstance(revision, str) and is_commit(revision)):
                text = "the hub's revision is not pinned to a commit (40 hex digits)"
                self.fault("hub", stage, f"{where}.revision", text, "a commit", revision)

    def _check_code(self) -> None:
        """Code that was committed, at a revision that is here and holds the very files."""
        if git("rev-parse", "--git-dir") is None:
            self.say(
                self.unchecked,
                "code",
                None,
                ".git",
                "no git repository: the code's revision cannot be looked at",
            )
            return
        trees: dict[str, hashing.Tree | None] = {}
        for stage, record in self.records.items():
            revision, own = record.code.revision, record_path(stage)
            if revision is None:
                self.fault(
                    "code",
                    stage,
                    own,
                    "made outside git: its code was never committed",
                    "a commit",
                    None,
                )
                continue
            if revision not in trees:
                known = git("cat-file", "-e", f"{revision}^{{commit}}") is not None
                trees[revision] = (
                    hashing.Tree(Snapshot(self.snapshot.root, revision)) if known else None
                )
            tree = trees[revision]
            if tree is None:
                text = f"this repository has no commit {revision[:12]} (another repository, or a shallow clone?)"
                self.say(self.unchecked, "code", stage, own, text, revision)
                continue
            changed = self._code_differences(record, tree)
            if record.code.dirty:
                text = f"made with code that was not committed at {revision[:12]}"
                self.fault(
                    "code",
                    stage,
                    own,
                    text,
                    "clean",
                    {"files": changed, "diff": self._diff(record)},
                )
            else:
                for name in changed:
                    text = f"run.json says clean at {revision[:12]}, where git has other bytes"
                    self.fault("code", stage, name, text, revision, "another file")

    def _note_uncommitted(self) -> None:
        """Results here that HEAD does not hold: no fault, but a clone does not get them."""
        if self.tree.is_workspace:
            paths = ["dvc.lock", "reports/*/run.json"]
            options = ["-c", "status.relativePaths=true", "--no-optional-locks"]
            listed = git(*options, "status", "--porcelain", "--untracked-files=all", "--", *paths)
            if names := [line.strip().split(maxsplit=1)[1] for line in (listed or "").splitlines()]:
                text = "not committed: HEAD holds other results than these, or none"
                self.say(self.notes, "uncommitted", None, ", ".join(names), text)

    def _code_differences(self, record: Record, tree: hashing.Tree) -> list[str]:
        changed = []
        code = [item for item in record.inputs if item.path.startswith(CODE)]
        tree.preload(name for item in code for name in tree.names(item.path) or [])
        for item in code:
            recorded, found = _recorded(item), tree.listing(item.path) or {}
            names = sorted(recorded.keys() | found.keys())
            changed += [
                n for n in names if recorded.get(n) != (found[n].sha256 if n in found else None)
            ]
        return changed

    def _diff(self, record: Record) -> str | None:
        """The diff of uncommitted code out of the journal, if it is the recorded one (MLflow's comes later)."""
        journal = journal_of(record.stage, record.run)
        diff = str(journal.facts.get("diff") or "") if journal else ""
        return diff if diff and files.sha256_text(diff) == record.code.diff_sha256 else None

    def _check_environment(self) -> None:
        """The machine here against the recorded one.

        Package by package, a note (a fault with strict_env).
        """
        from regrpo.records import stage_run

        if any(self.written[stage]["environment"].get("cuda") for stage in self.records):
            import torch  # noqa: F401  (its devices are only seen where it is loaded)
        here = stage_run.environment()
        different: dict[tuple[str, str | None, str | None], list[str]] = {}
        for stage in self.records:
            there = self.written[stage]["environment"]
            for name in sorted(there["packages"].keys() | here["packages"].keys()):
                was, now = there["packages"].get(name), here["packages"].get(name)
                if was != now:
                    different.setdefault((name, was, now), []).append(stage)
            for name in ("python", "system", "cpu", "cuda"):
                if there.get(name) != here[name]:
                    different.setdefault(
                        (name, _shown(there.get(name)), _shown(here[name])), []
                    ).append(stage)
        for (name, was, now), stages in different.items():
            which = "" if len(stages) == len(self.records) else f" ({', '.join(stages)})"
            text = f"the run had {was or 'none'}, here is {now or 'none'}{which}"
            self.say(
                self.faults if self.strict_env else self.notes,
                "environment",
                None,
                name,
                text,
                was,
                now,
            )

    def _trace(self) -> None:
        """Who made each stage.

        `kept` for one made before a stage that it builds on ran last, or by other code.
        """
        last = max((record.started for record in self.records.values()), default="")
        newest = next((record for record in self.records.values() if record.started == last), None)
        made: dict[str, str] = {}
        for stage, record in self.records.items():
            upstream = [
                producer[0] for item in record.inputs if (producer := self._producer(item.path))
            ]
            restored = any(made.get(other, "") > record.started for other in upstream)
            other_code = newest is not None and record.code.revision != newest.code.revision
            made[stage] = record.ended
            restored |= any(
                note["kind"] == "restored" and note["stage"] == stage for note in self.notes
            )
            self.stages.append(
                {
                    "stage": stage,
                    "run": record.run,
                    "mlflow_run_id": record.mlflow_run_id,
                    "revision": record.code.revision,
                    "started": record.started,
                    "ended": record.ended,
                    "seconds": self.written[stage].get("seconds"),
                    "kept": restored or other_code,
                }
            )
            if restored or other_code:
                text = f"kept or restored: made by run {record.mlflow_run_id or record.run} on {record.started[:16]} UTC"
                self.say(
                    self.notes,
                    "restored",
                    stage,
                    stage,
                    f"{text}, code {str(record.code.revision)[:12]}",
                )


class _Cache:
    """DVC's cache objects of a dvc.lock."""

    def __init__(self, root: Path, lock: Mapping[str, Any]) -> None:
        self.folder = cache_folder(root)
        self.lock = lock
        self.found: dict[str, Digest | OSError] = {}
        self._listings: dict[str, dict[str, str] | None] = {}
        self.changed: dict[str, str] = {}
        """The folders' listings whose bytes are not what their name says: {name.

        What their bytes are}.
        """

    def path(self, md5: str) -> Path:
        return object_path(self.folder, md5)

    def holds(self, md5: str | None) -> bool:
        """Whether an object, or a folder's listing and all its objects, are there."""
        if not md5 or not self.path(md5).is_file():
            return False
        listing = self.listing(md5) if md5.endswith(".dir") else {}
        return listing is not None and all(self.path(one).is_file() for one in listing.values())

    def listing(self, md5: str) -> dict[str, str] | None:
        """{name: MD5} of a folder's object.

        None where it is missing, changed, unreadable or no folder's.
        """
        if not md5.endswith(".dir"):
            return None
        if md5 not in self._listings:
            self._listings[md5] = None
            if (file := self.path(md5)).is_file():
                data = file.read_bytes()
                if (found := md5_of(data) + ".dir") == md5:
                    self._listings[md5] = parse_listing(data)
                else:
                    self.changed[md5] = found
        return self._listings[md5]

    def objects(self) -> set[str]:
        """The MD5s of every file object that dvc.lock's outs point to and that is there."""
        outs = [out["md5"] for entry in self.lock.values() for out in entry.get("outs", [])]
        inner = {md5 for out in outs for md5 in (self.listing(out) or {}).values()}
        return {
            md5
            for md5 in inner | {out for out in outs if not out.endswith(".dir")}
            if self.path(md5).is_file()
        }

    def complete(self, stage: str) -> list[str]:
        """The stage's outputs that the cache holds whole."""
        return [out["path"] for out in self.lock[stage].get("outs", []) if self.holds(out["md5"])]


def _shown(value: Any) -> str | None:
    return (
        None if value is None else value if isinstance(value, str) else files.canonical_json(value)
    )


def _yaml(snapshot: Snapshot, path: str) -> dict[str, Any] | None:
    """A YAML file there; None where it is missing, unreadable or no mapping."""
    try:
        content = parse_yaml(snapshot.read(path) or b"", path)
    except (Refused, ValueError, OSError):  # a name that no file can have is a ValueError
        content = None
    return content if isinstance(content, dict) else None


def _declared(snapshot: Snapshot) -> dict[str, dict[str, Any]]:
    """dvc.yaml's stages, in the shapes that are read here.

    CannotCheck in one line where it has others.
    """
    content = _yaml(snapshot, "dvc.yaml")
    stages = content.get("stages") if content else None
    if not isinstance(stages, dict) or not all(
        isinstance(stage, dict) for stage in stages.values()
    ):
        problem = "no mapping of stages"
    else:
        problem = next(
            (
                f"{name}: {kind}"
                for name, stage in stages.items()
                for kind in ("deps", "params", "outs", "metrics", "plots")
                if not _plain_list(
                    stage.get(kind, []),
                    (list, type(None)) if kind == "params" else (dict, type(None)),
                )
            ),
            "",
        )
    if problem:
        raise CannotCheck(
            "dvc.yaml",
            expected="DVC's pipeline file",
            found=f"a corrupted one ({problem})",
            remedy="Restore it with git.",
        )
    return dict(stages or {})


def _plain_list(value: Any, inner: tuple[type, ...]) -> bool:
    """Whether it is a list of names, or of mappings from one name to options."""
    return isinstance(value, list) and all(
        isinstance(one, str)
        or (isinstance(one, dict) and len(one) == 1 and isinstance(next(iter(one.values())), inner))
        for one in value
    )


def _params(declared: Iterable[Any], locked: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """{file: key} of a stage's `params:` line.

    Which profile it is now is compared with the parameters themselves.
    """
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


def _parameter_differences(
    was: Mapping[str, Any], now: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """(file: key, was, now) of the parameters that differ; numbers compare as numbers."""
    for file in sorted(was.keys() | now.keys()):
        here, there = was.get(file, files.ABSENT), now.get(file, files.ABSENT)
        for name, before, after in files.unequal_leaves(here, there):
            yield f"{file}: {name}" if name else file, before, after


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
