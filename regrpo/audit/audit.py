"""Whether a pipeline is what its records say.

Card → samples → weights → rewards → gate → data → source, to the byte: the bytes (read in full),
dvc.lock with DVC's cache, run.json, MLflow and git's code are compared, by the rules that
docs/audit.md tells.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from regrpo.audit import byte_rules, input_rules, lock_rules, mlflow_rules, origin_rules
from regrpo.audit.evidence import read_evidence
from regrpo.audit.findings import Findings, plain
from regrpo.core.pipeline import pipeline_key
from regrpo.records.find import Place

STAGE_RULES = (
    lock_rules.check_record,
    lock_rules.check_lock,
    lock_rules.check_lock_paths,
    byte_rules.check_outputs,
    byte_rules.check_cache,
    input_rules.check_sources,
    origin_rules.check_hub,
)
"""What is looked at in each stage, in the order in which it is reported."""
RULES = (
    lock_rules.check_presence,
    byte_rules.check_readable,
    input_rules.check_chain,
    input_rules.check_selection,
    lock_rules.check_declared,
    lock_rules.check_parameters,
    origin_rules.check_code,
    origin_rules.note_other_code,
    origin_rules.note_uncommitted,
)


def audit(
    place: Place, *, remote: str | bool = False, mlflow: bool = True, strict_env: bool = False
) -> dict[str, Any]:
    """Audit one pipeline; the current folder must be the snapshot's root. Changes nothing.

    `remote`: True for DVC's default remote, or a remote's name. `strict_env`: another environment
    than the run's is a fault. Raises CannotCheck if there is no pipeline to audit. The result:

    verdict      "complete", "broken" (a fault) or "not checkable" (no fault, but something could
                 not be looked at)
    stages       [{stage, run, mlflow_run_id, revision, started, ended, seconds, kept}], in running
                 order
    artifacts    [{path, place, stage, recorded, found, verdict}] (findings.Artifact)
    faults, unchecked, notes
                 [{kind, stage, path, text, recorded, found}] (findings.Finding)
    target, revision, pipeline_key, looked_at
    """
    findings = Findings()
    with ThreadPoolExecutor(1) as aside:
        # Importing mlflow takes seconds, in which the bytes are hashed.
        store = aside.submit(mlflow_rules.open_store) if mlflow else None
        evidence = read_evidence(place)
        if remote:
            name = None if remote is True else str(remote)
            byte_rules.check_remote(evidence, findings, name)
        for stage in evidence.records:
            for check_stage in STAGE_RULES:
                check_stage(evidence, findings, stage)
        for check in RULES:
            check(evidence, findings)
        origin_rules.check_environment(evidence, findings, strict_env)
        if store is not None:
            mlflow_rules.Tracker(evidence, findings, store).check()
    stages = origin_rules.list_stages(evidence, findings)
    return {
        "target": place.name,
        "revision": place.snapshot.revision,
        "pipeline_key": pipeline_key({"stages": evidence.lock}),
        "looked_at": {"mlflow": mlflow, "remote": bool(remote)},
        "verdict": findings.verdict(),
        "stages": stages,
        "artifacts": [asdict(artifact) for artifact in findings.artifacts],
        "faults": plain(findings.faults),
        "unchecked": plain(findings.unchecked),
        "notes": plain(findings.notes),
    }
