"""What an audit finds, and the plain data that it reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import partialmethod
from typing import Any

from regrpo.core.profiles import STAGES
from regrpo.records.record import Record


@dataclass(frozen=True)
class Finding:
    """One thing that an audit has to say: of which kind, where, and both values if that helps."""

    kind: str
    stage: str | None
    path: str
    text: str
    recorded: Any = None
    found: Any = None


@dataclass(frozen=True)
class Artifact:
    """A file in one place, by the hash that is recorded and the one that was found there.

    The place is workspace, git, cache, remote or mlflow; the verdict ok, changed, missing or extra.
    """

    path: str
    place: str
    stage: str
    recorded: str | None
    found: str | None
    verdict: str


@dataclass
class Findings:
    """Everything that an audit found so far."""

    faults: list[Finding] = field(default_factory=list)
    unchecked: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    artifacts: list[Artifact] = field(default_factory=list)

    def _add(
        self,
        to: str,
        kind: str,
        stage: str | None,
        path: str,
        text: str,
        recorded: Any = None,
        found: Any = None,
    ) -> None:
        finding = Finding(kind, stage, path, text, recorded, found)
        findings: list[Finding] = getattr(self, to)
        # Stages that read one file find the same.
        if finding not in findings:
            findings.append(finding)

    fault = partialmethod(_add, "faults")
    """Something is not what its record says."""
    cannot_check = partialmethod(_add, "unchecked")
    """Something could not be looked at; the text says what is missing and what brings it."""
    note = partialmethod(_add, "notes")
    """Something that is no fault, and yet worth knowing."""

    def note_restored(self, stage: str, record: Record) -> None:
        """The stage was made by an earlier execution than the pipeline's last."""
        run, code = record.mlflow_run_id or record.run, str(record.code.revision)[:12]
        text = f"kept or restored: made by run {run} on {record.started[:16]} UTC, code {code}"
        self.note("restored", stage, stage, text)

    def compare(
        self, path: str, place: str, stage: str, recorded: str | None, found: str | None
    ) -> str:
        """Add a file that is compared by its hash; returns the verdict."""
        if recorded == found:
            verdict = "ok"
        elif found is None:
            verdict = "missing"
        elif recorded is None:
            verdict = "extra"
        else:
            verdict = "changed"
        self.artifacts.append(Artifact(path, place, stage, recorded, found, verdict))
        return verdict

    def verdict(self) -> str:
        """The audit's: any fault breaks a pipeline, whatever else could not be looked at."""
        if self.faults:
            return "broken"
        if self.unchecked:
            return "not checkable"
        return "complete"


def plain(findings: list[Finding]) -> list[dict[str, Any]]:
    """Findings as plain data in the stages' order, those of no stage last."""
    order = {stage: index for index, stage in enumerate(STAGES)}
    ordered = sorted(findings, key=lambda finding: order.get(str(finding.stage), len(order)))
    return [asdict(finding) for finding in ordered]
