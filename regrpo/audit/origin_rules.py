"""Rules about where results come from: hub revisions, committed code, the environment, the runs."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import regrpo
from regrpo.audit.evidence import Evidence, by_section, side_by_side, unequal_environments
from regrpo.audit.findings import Findings
from regrpo.core import files
from regrpo.core.files import file_hashes
from regrpo.core.git import git, uncommitted
from regrpo.core.hub import is_commit
from regrpo.core.pipeline import record_path
from regrpo.records import stage_run
from regrpo.records.hashing import Tree
from regrpo.records.journal import journal_of
from regrpo.records.record import Record

CODE = ("stages/", "regrpo/", "custom")
"""The inputs that are code: git must hold them at the recorded revision."""
OTHER_CODE = ("regrpo", "constraints.txt", "pyproject.toml")
"""Where the code lies of which some is read by no stage."""
OBSERVERS = ("regrpo/records/", "regrpo/tracking/")


def check_hub(evidence: Evidence, findings: Findings, stage: str) -> None:
    """Every model and dataset from the hub is pinned to a commit."""
    for section, values in by_section(evidence.records[stage].parameters).items():
        for where, source in _hub_sources(values, section):
            revision = source.get("revision")
            if not (isinstance(revision, str) and is_commit(revision)):
                text = "the hub's revision is not pinned to a commit (40 hex digits)"
                findings.fault("hub", stage, f"{where}.revision", text, "a commit", revision)


def _hub_sources(value: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping in the parameters that names the hub as its kind, and where it stands."""
    if isinstance(value, Mapping):
        if value.get("kind") == "hub":
            yield where, value
        for key, inner in value.items():
            yield from _hub_sources(inner, f"{where}.{key}")


# --- code -----------------------------------------------------------------------------------------


def check_code(evidence: Evidence, findings: Findings) -> None:
    """The code was committed, at a revision that is here and holds the very files."""
    if git("rev-parse", "--git-dir") is None:
        text = "no git repository: the code's revision cannot be looked at"
        findings.cannot_check("code", None, ".git", text)
        return
    for stage, record in evidence.records.items():
        revision, own = record.code.revision, record_path(stage)
        if revision is None:
            text = "made outside git: its code was never committed"
            findings.fault("code", stage, own, text, "a commit")
        elif not _is_here(revision):
            text = f"this repository has no commit {revision[:12]} (another, or a shallow clone?)"
            findings.cannot_check("code", stage, own, text, revision)
        else:
            _compare_code(findings, stage, record, evidence.tree_at(revision))


def _is_here(revision: str) -> bool:
    return git("cat-file", "-e", f"{revision}^{{commit}}") is not None


def _compare_code(findings: Findings, stage: str, record: Record, tree: Tree) -> None:
    revision = str(record.code.revision)
    changed = []
    for item in record.inputs:
        if item.path.startswith(CODE):
            files_there = side_by_side(item, tree.listing(item.path))
            changed += [name for name, was, now in files_there if was != now]
    if record.code.dirty:
        text = f"made with code that was not committed at {revision[:12]}"
        found = {"files": changed, "diff": _diff(record)}
        findings.fault("code", stage, record_path(stage), text, "clean", found)
        return
    for name in changed:
        text = f"run.json says clean at {revision[:12]}, where git has other bytes"
        findings.fault("code", stage, name, text, revision, "another file")


def _diff(record: Record) -> str | None:
    """The uncommitted changes out of the journal, or that they were too large for it.

    Returns None if it has not the recorded ones.
    """
    journal, digest = journal_of(record.stage, record.run), str(record.code.diff_sha256)
    diff = journal.diff() if journal else ""
    if files.sha256_text(diff) == digest or diff.startswith(stage_run.too_large(digest)):
        return diff
    return None


def note_other_code(evidence: Evidence, findings: Findings) -> None:
    """Note the code that no stage reads and that is not what it was when the stages ran.

    It decides what the records and MLflow say and what the audit itself sees, and no output: so it
    is no fault. `regrpo` may be run from another folder: then that one's code is compared too.
    """
    read: set[str] = set()
    for record in evidence.records.values():
        for item in record.inputs:
            read.update(file_hashes(item.model_dump()))
    revisions = {record.code.revision for record in evidence.records.values()}
    for revision in sorted(one for one in revisions if one and _is_here(one)):
        then = _other_code(evidence.tree_at(revision), read)
        now = _other_code(evidence.tree, read)
        for kind, names in _by_kind(then, now).items():
            text = f"changed since the run (code {revision[:12]})"
            findings.note(kind, None, ", ".join(names), text)
    running = Path(regrpo.__file__).parents[1]
    if running != evidence.snapshot.root.resolve():
        there = {}
        for path in sorted(running.glob("regrpo/**/*.py")):
            there[path.relative_to(running).as_posix()] = files.sha256(path)
        here = _other_code(evidence.tree, set())
        mine = {name: sha256 for name, sha256 in here.items() if name.endswith(".py")}
        for kind, names in _by_kind(mine, there).items():
            text = f"the regrpo that audits here (in {running}) has another"
            findings.note(kind, None, ", ".join(names), text)


def _other_code(tree: Tree, read: Container[str]) -> dict[str, str]:
    """{file: SHA-256} of the project's code and requirements that no stage reads."""
    found = {}
    for path in OTHER_CODE:
        for name, digest in (tree.listing(path) or {}).items():
            if name not in read:
                found[name] = digest.sha256
    return found


def _by_kind(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, list[str]]:
    """The files that differ, as requirements, observers (records, tracking) and commands."""
    kinds: dict[str, list[str]] = {}
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) == after.get(name):
            continue
        kind = "commands"
        if not name.startswith("regrpo/"):
            kind = "requirements"
        elif name.startswith(OBSERVERS):
            kind = "observers"
        kinds.setdefault(kind, []).append(name)
    return kinds


def note_uncommitted(evidence: Evidence, findings: Findings) -> None:
    """Note the results here that HEAD does not hold: a clone does not get them."""
    if not evidence.snapshot.is_workspace:
        return
    names = uncommitted(evidence.snapshot.root, "dvc.lock", "reports/*/run.json")
    if names:
        text = "not committed: HEAD holds other results than these, or none"
        findings.note("uncommitted", None, ", ".join(names), text)


# --- environment and runs -------------------------------------------------------------------------


def check_environment(evidence: Evidence, findings: Findings, strict: bool) -> None:
    """The machine here against the recorded one: a note for each package, a fault if `strict`."""
    environments = [evidence.written[stage]["environment"] for stage in evidence.records]
    if any(environment.get("cuda") for environment in environments):
        import torch  # noqa: F401  (its devices are only seen where it is loaded)
    here = stage_run.environment()
    report = findings.fault if strict else findings.note
    for environment in environments:
        for name, was, now in unequal_environments(environment, here):
            text = f"the run had {was or 'none'}, here is {now or 'none'}"
            report("environment", None, name, text, was, now)


def list_stages(evidence: Evidence, findings: Findings) -> list[dict[str, Any]]:
    """Who made each stage, in running order.

    `kept` is true of one that was made before a stage that it builds on ran last, by other code
    than the newest, or (as MLflow has it) by another execution of the pipeline.
    """
    newest_first = sorted(evidence.records.values(), key=lambda one: one.started, reverse=True)
    ended: dict[str | None, str] = {}
    listed = []
    for stage, record in evidence.records.items():
        makers = {evidence.maker(item.path) for item in record.inputs}
        is_older = any(ended.get(maker, "") > record.started for maker in makers)
        if is_older or record.code.revision != newest_first[0].code.revision:
            findings.note_restored(stage, record)
        ended[stage] = record.ended
        row = {
            "stage": stage,
            "run": record.run,
            "mlflow_run_id": record.mlflow_run_id,
            "revision": record.code.revision,
            "started": record.started,
            "ended": record.ended,
            "seconds": evidence.written[stage].get("seconds"),
            "kept": ("restored", stage) in {(note.kind, note.stage) for note in findings.notes},
        }
        listed.append(row)
    return listed
