"""Rules about what stages read: what earlier stages made, and the sources that nothing makes."""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from regrpo.audit.byte_rules import check_locked_md5
from regrpo.audit.evidence import Evidence, by_section, side_by_side
from regrpo.audit.findings import Findings
from regrpo.core import files
from regrpo.core.pipeline import RAW, chain_misfits, out_md5s
from regrpo.inputs.selection import Selection, chosen

PREPARED = "data/prepared/train.parquet"
SELECTED = "data/selected/train.parquet"
RATES = "data/selected/pass_rates.parquet"


def check_chain(evidence: Evidence, findings: Findings) -> None:
    """Each stage read what the earlier one made: by SHA-256 in the records, by MD5 in dvc.lock."""
    for misfit in chain_misfits(evidence.written, evidence.data):
        text = f"{misfit.stage} read other bytes than {misfit.maker} says it made"
        made = misfit.expected or "not among its outputs"
        findings.fault("chain", misfit.stage, misfit.path, text, misfit.found, made)
    for stage in evidence.records:
        for dep in evidence.lock[stage].get("deps", []):
            path, read = dep["path"], dep["md5"]
            md5 = _md5_made(evidence, path)
            if md5 is not None and md5 != read:
                text = f"dvc.lock: {stage} read other bytes (MD5) than {evidence.maker(path)} made"
                findings.fault("lock", stage, f"dvc.lock: deps: {path}", text, md5, read)


def check_selection(evidence: Evidence, findings: Findings) -> None:
    """What grpo trains on are rows of prepare's, those that select's pass rates choose.

    Files that are not here are faults, or could not be looked at, by other rules.
    """
    record = evidence.records.get("select")
    paths = (PREPARED, SELECTED, RATES)
    prepared, selected, rates = map(evidence.snapshot.output, paths)
    if record is None or prepared is None or selected is None:
        return
    try:
        [section] = by_section(record.parameters).values()
        if section["samples"] == 0:
            holds = selected == prepared
        else:
            holds = _is_chosen(section, prepared, selected, rates or b"")
    except (LookupError, OSError, TypeError, ValueError):  # or no table of select's
        holds = False
    if not holds:
        text = f"holds other rows than select chooses of {PREPARED}, by {RATES}"
        findings.fault("selection", "select", SELECTED, text)


def _is_chosen(section: Mapping[str, Any], prepared: bytes, selected: bytes, rates: bytes) -> bool:
    """Whether the selected rows are those that the section chooses of the prepared, in order."""
    every, found, answered = map(_table, (prepared, selected, rates))
    if answered["id"].to_pylist() != every["id"].to_pylist():  # pandas writes large_string
        return False
    pass_rates = answered["pass_rate"].to_pylist()
    places = chosen(every.to_pylist(), pass_rates, Selection.of_section(section))
    return bool(every.take(places) == found)


def _table(data: bytes) -> Any:
    import pyarrow.parquet as pq

    return pq.read_table(BytesIO(data))


def _md5_made(evidence: Evidence, path: str) -> str | None:
    """The MD5 of an output, or of a file in one as far as DVC's cache lists it."""
    for entry in evidence.lock.values():
        for out, md5 in out_md5s(entry).items():
            if path == out:
                return md5
            if path.startswith(f"{out}/"):
                listing = evidence.cache.listing(md5) or {}
                return listing.get(path.removeprefix(f"{out}/"))
    return None


def check_sources(evidence: Evidence, findings: Findings, stage: str) -> None:
    """The inputs that no stage makes are here as they were: code, tasks, what users bring."""
    locked = {dep["path"]: dep["md5"] for dep in evidence.lock[stage].get("deps", [])}
    for item in evidence.records[stage].inputs:
        path = item.path
        if evidence.maker(path) is not None:
            continue
        found = evidence.files_at(path)
        for name, was, now in side_by_side(item, found):
            if was == now:
                continue
            # What users bring may lie outside git, so that a clone need not have it.
            if now is not None or path not in RAW:
                text = "an input changed since"
                findings.fault("input", stage, name, text, was or "not there", now or "missing")
            elif evidence.snapshot.is_workspace or not _lies_in_workspace(name, was):
                text = "what the user brought is not here; put it back, or `dvc pull` it"
                findings.cannot_check("input", stage, name, text, was)
        if found is not None:
            check_locked_md5(findings, stage, f"deps: {path}", item, found, locked.get(path))


def _lies_in_workspace(name: str, sha256: str | None) -> bool:
    """Whether the workspace has a file of a revision that git need not hold."""
    return Path(name).is_file() and files.sha256(Path(name)) == sha256
