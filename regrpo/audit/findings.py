"""What an audit reads of a pipeline and finds, in the words of its report.

regrpo.audit.audit says what each list holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from regrpo.core.pipeline import Snapshot, pipeline_key
from regrpo.core.profiles import STAGES
from regrpo.records.find import Place
from regrpo.records.record import Record


@dataclass
class Findings:
    """The stages' records, as parsed and as written, dvc.lock's stages, and everything that was found."""

    place: Place
    lock: dict[str, Any] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    written: dict[str, dict[str, Any]] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    artifacts: list[dict[str, Any]] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)
    unchecked: list[dict[str, Any]] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)

    @property
    def snapshot(self) -> Snapshot:
        return self.place.snapshot

    def say(
        self,
        what: list[dict[str, Any]],
        kind: str,
        stage: str | None,
        path: str,
        text: str,
        recorded: Any = None,
        found: Any = None,
    ) -> None:
        """Put a finding on one of the lists, once."""
        one = {
            "kind": kind,
            "stage": stage,
            "path": path,
            "recorded": recorded,
            "found": found,
            "text": text,
        }
        if one not in what:
            what.append(one)

    def fault(
        self,
        kind: str,
        stage: str | None,
        path: str,
        text: str,
        recorded: Any = None,
        found: Any = None,
    ) -> None:
        """Something is not what its record says."""
        self.say(self.faults, kind, stage, path, text, recorded, found)

    def row(
        self,
        path: str,
        place: str,
        stage: str,
        recorded: str | None,
        found: str | None,
        verdict: str,
    ) -> None:
        """An artifact that was looked at in one place."""
        run = self.records[stage].run
        self.artifacts.append(
            {"path": path, "place": place, "stage": stage, "run": run}
            | {"recorded": recorded, "found": found, "verdict": verdict}
        )

    def report(self, mlflow: bool, remote: str | bool) -> dict[str, Any]:
        """The audit's result, findings in the stages' order."""
        verdict = "broken" if self.faults else "not checkable" if self.unchecked else "complete"
        order = {stage: index for index, stage in enumerate(STAGES)}
        for findings in (self.faults, self.unchecked, self.notes):
            findings.sort(key=lambda one: order.get(one["stage"], len(order)))
        return {
            "target": self.place.name,
            "revision": self.snapshot.revision,
            "pipeline_key": pipeline_key({"stages": self.lock}),
            "looked_at": {"mlflow": mlflow, "remote": bool(remote)},
            "verdict": verdict,
            "stages": self.stages,
            "artifacts": self.artifacts,
            "faults": self.faults,
            "unchecked": self.unchecked,
            "notes": self.notes,
        }
