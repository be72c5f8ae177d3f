"""Rules about what is written: run.json against itself, dvc.lock against run.json, dvc.yaml
and the profile against dvc.lock."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping

from regrpo.audit.evidence import Evidence, Json, by_section
from regrpo.audit.findings import Findings
from regrpo.core import files
from regrpo.core.dvc import declared_outputs, md5_of, path_of
from regrpo.core.errors import Refused
from regrpo.core.pipeline import entry_misfits, out_md5s, record_path
from regrpo.core.profiles import STAGES, parse_yaml
from regrpo.records import hashing
from regrpo.records.record import Item

# --- run.json -------------------------------------------------------------------------------------


def check_presence(evidence: Evidence, findings: Findings) -> None:
    """Every stage ran, has its entry in dvc.lock, and a record that can be read."""
    for stage in STAGES:
        path = record_path(stage)
        is_locked, has_record = stage in evidence.lock, stage in evidence.data
        if is_locked and not has_record:
            text = "missing: dvc.lock knows it; restore it with git"
            findings.fault("output", stage, path, text, found="missing")
        elif has_record and not is_locked:
            text = f"has no entry for the stage, yet {path} is there"
            findings.fault("lock", stage, "dvc.lock", text)
        elif not is_locked:
            text = "the stage has not run; `dvc repro` runs it"
            findings.cannot_check("lock", stage, "dvc.lock", text)
        elif stage in evidence.damaged:
            findings.cannot_check("record", stage, path, evidence.damaged[stage])


def check_record(evidence: Evidence, findings: Findings, stage: str) -> None:
    """run.json is this stage's, and its hashes are those of what it lists."""
    record, path = evidence.records[stage], record_path(stage)
    if record.stage != stage:
        text = f"is the record of another stage ({record.stage})"
        findings.fault("record", stage, path, text, stage, record.stage)
    for item in record.inputs + record.outputs:
        if item.files is None:
            continue
        found = hashing.folder_sha256(item.files)
        if found != item.sha256:
            text = f"the hash of {item.path} is not that of the files listed under it"
            findings.fault("record", stage, path, text, item.sha256, found)
    environment = dict(evidence.written[stage]["environment"])
    recorded = environment.pop("sha256")
    found = files.sha256_json(environment)
    if found != recorded:
        text = "the environment's hash is not that of the environment listed"
        findings.fault("record", stage, path, text, recorded, found)


# --- dvc.lock -------------------------------------------------------------------------------------


def check_lock(evidence: Evidence, findings: Findings, stage: str) -> None:
    """dvc.lock and run.json name the same record, key, command and parameters."""
    record, entry, own = evidence.records[stage], evidence.lock[stage], record_path(stage)
    data = evidence.data[stage]
    if own in out_md5s(entry):
        findings.compare(own, evidence.here, stage, out_md5s(entry)[own], md5_of(data))
    for misfit in entry_misfits(stage, entry, data, evidence.written[stage]):
        if misfit.kind == "key":
            path = f"{own}: key"
            text = "dvc.lock's command, dependencies and parameters do not give run.json's key"
        elif misfit.expected is None:
            continue  # one that dvc.lock does not list is a fault of its paths
        else:
            path, text = own, "is not the record that dvc.lock knows (MD5)"
        findings.fault("lock", stage, path, text, misfit.expected, misfit.found)
    if entry["cmd"] != record.command:
        text = "is not run.json's command"
        findings.fault("lock", stage, "dvc.lock: cmd", text, record.command, entry["cmd"])
    recorded, locked = by_section(record.parameters), by_section(entry.get("params", {}))
    for name, was, now in files.unequal_leaves(recorded, locked):
        findings.fault("lock", stage, f"dvc.lock: {name}", "is not run.json's parameter", was, now)


def check_lock_paths(evidence: Evidence, findings: Findings, stage: str) -> None:
    """dvc.lock and run.json name the same inputs and outputs, of the same sizes."""
    record, data = evidence.records[stage], evidence.data[stage]
    sha256 = hashlib.sha256(data).hexdigest()
    own = Item(path=record_path(stage), sha256=sha256, size=len(data))
    for what, items in {"outs": [*record.outputs, own], "deps": record.inputs}.items():
        where = f"dvc.lock: {what}"
        recorded = {item.path: item for item in items}
        locked = {one["path"]: one for one in evidence.lock[stage].get(what, [])}
        _require_same(findings, "lock", stage, where, {"run.json": recorded, "dvc.lock": locked})
        for path in sorted(recorded.keys() & locked.keys()):
            _check_details(findings, stage, f"{where}: {path}", recorded[path], locked[path])


def _check_details(findings: Findings, stage: str, where: str, item: Item, locked: Json) -> None:
    """What dvc.lock says of a path besides its MD5, as far as it says anything.

    Without size or number of files DVC does all as before.
    """
    expected = {"hash": "md5", "size": item.size, "nfiles": None}
    if item.files is not None:
        expected["nfiles"] = len(item.files)
    for name in locked.keys() & expected.keys():
        if locked[name] != expected[name]:
            text = f"{name} is not what run.json gives"
            findings.fault("lock", stage, where, text, expected[name], locked[name])
    if "hash" not in locked:
        text = "hash is missing: DVC then takes the MD5 for one of its older cache, and looks there"
        findings.fault("lock", stage, where, text, "md5")


# --- dvc.yaml and the profile ---------------------------------------------------------------------


def check_declared(evidence: Evidence, findings: Findings) -> None:
    """dvc.yaml declares what dvc.lock recorded: commands, outputs, dependencies, parameters."""
    for stage, entry in evidence.lock.items():
        declared = evidence.declared.get(stage)
        if declared is None:
            findings.fault("pipeline", stage, "dvc.yaml", f"has no stage {stage}, dvc.lock has")
            continue
        command = declared.get("cmd")
        if command != entry["cmd"]:
            text = "the command changed since"
            findings.fault("pipeline", stage, "dvc.yaml: cmd", text, entry["cmd"], command)
        names = {
            "outs": map(path_of, declared_outputs(declared)),
            "deps": declared.get("deps", []),
        }
        locked = {"outs": out_md5s(entry), "deps": [dep["path"] for dep in entry.get("deps", [])]}
        for what in names:
            sides = {"dvc.yaml": set(names[what]), "dvc.lock": locked[what]}
            _require_same(findings, "pipeline", stage, f"dvc.yaml: {what}", sides)
        # Which file the profile is now is compared with the parameters themselves.
        params = [{"${profile}": list(keys)} for keys in entry.get("params", {}).values()]
        found = declared.get("params", [])
        if found != params:
            text = "other parameters than dvc.lock's"
            findings.fault("pipeline", stage, "dvc.yaml: params", text, params, found)


def check_parameters(evidence: Evidence, findings: Findings) -> None:
    """The profile's sections are as the runs had them."""
    path = "params.yaml"
    sections = _read_mapping(evidence, path)
    if sections is not None and sections.get("profile") != path:
        path = str(sections.get("profile"))
        sections = _read_mapping(evidence, path)
    if sections is None:
        text = "the parameters changed since: no YAML mapping that can be read"
        findings.fault("input", None, path, text)
        return
    for stage, record in evidence.records.items():
        recorded, here = by_section(record.parameters), {f"{path}: {stage}": sections.get(stage)}
        for name, was, now in files.unequal_leaves(recorded, here):
            findings.fault("input", stage, name, "the parameter changed since", was, now)


def _read_mapping(evidence: Evidence, path: str) -> Json | None:
    """A YAML file's mapping. Returns None if it is missing, unreadable or no mapping."""
    try:
        content = parse_yaml(evidence.snapshot.read(path) or b"", path)
    except (Refused, ValueError, OSError):  # a name that no file can have is a ValueError
        return None
    return content if isinstance(content, dict) else None


# --- comparing ------------------------------------------------------------------------------------


def _require_same(
    findings: Findings, kind: str, stage: str, where: str, sides: Mapping[str, Collection[str]]
) -> None:
    """A fault for each name that only one of two files has; `sides` has their names by file."""
    for has, lacks in (list(sides), list(sides)[::-1]):
        for name in sorted(set(sides[has]) - set(sides[lacks])):
            text = f"is in {has} and not in {lacks}"
            findings.fault(kind, stage, f"{where}: {name}", text)
