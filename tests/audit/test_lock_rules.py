"""run.json, dvc.lock, dvc.yaml and the profile against each other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.audited import (
    MODEL,
    Fault,
    Named,
    audited,
    cached,
    command,
    edit_lock,
    edit_record,
    edit_whole_lock,
    found,
    listing_of,
    other_hash,
    require_found,
    set_dep,
    set_out,
)
from tests.support.projects import edit_yaml


def never_ran(stage: str) -> None:
    edit_whole_lock(lambda stages: stages.pop(stage))
    Path(f"reports/{stage}/run.json").unlink()


FAULTS: dict[str, Fault] = {
    "locked command": (
        lambda: edit_lock("sft", lambda e: e.update(cmd="python -m other")),
        ("lock", "sft", "dvc.lock: cmd"),
        {},
    ),
    "locked parameter": (
        lambda: edit_lock(
            "grpo", lambda e: e["params"]["params.yaml"]["grpo"].update(learning_rate=1.0)
        ),
        ("lock", "grpo", "dvc.lock: params.yaml: grpo.learning_rate"),
        {},
    ),
    "locked output": (
        lambda: set_out("sft", "reports/sft/history.csv", md5="0" * 32),
        ("lock", "sft", "dvc.lock: outs: reports/sft/history.csv"),
        {},
    ),
    "locked size": (
        lambda: set_out("grpo", "models/grpo", size=1),
        ("lock", "grpo", "dvc.lock: outs: models/grpo"),
        {},
    ),
    "locked number of files": (
        lambda: set_out("grpo", "models/grpo", nfiles=1),
        ("lock", "grpo", "dvc.lock: outs: models/grpo"),
        {},
    ),
    "locked size of a dependency": (
        lambda: set_dep("grpo", "models/sft", size=1),
        ("lock", "grpo", "dvc.lock: deps: models/sft"),
        {},
    ),
    "locked hash's name taken away": (
        lambda: edit_lock("sft", lambda e: e["outs"][0].pop("hash")),
        ("lock", "sft", "dvc.lock: outs: models/sft"),
        {},
    ),
    "dependency without its hash's name": (
        lambda: edit_lock("sft", lambda e: e["deps"][0].pop("hash")),
        ("lock", "sft", "dvc.lock: deps: custom/verifiers.py"),
        {},
    ),
    "locked hash's name": (
        lambda: set_dep("sft", "stages/sft.py", hash="sha1"),
        ("lock", "sft", "dvc.lock: deps: stages/sft.py"),
        {},
    ),
    "locked code": (
        lambda: set_dep("sft", "stages/sft.py", md5="0" * 32),
        ("lock", "sft", "dvc.lock: deps: stages/sft.py"),
        {},
    ),
    "lock without stage": (
        lambda: edit_whole_lock(lambda s: s.pop("grpo")),
        ("lock", "grpo", "dvc.lock"),
        {},
    ),
    "lock without output": (
        lambda: edit_lock("grpo", lambda e: e.update(outs=e["outs"][1:])),
        ("lock", "grpo", "dvc.lock: outs: models/grpo"),
        {},
    ),
    "record of other bytes": (
        lambda: edit_record(
            "evaluate", other_hash("outputs", "reports/evaluate/metrics.json"), hide=False
        ),
        ("lock", "evaluate", "reports/evaluate/run.json"),
        {},
    ),
    "forged output": (
        lambda: edit_record("evaluate", other_hash("outputs", "reports/evaluate/comparison.png")),
        ("output", "evaluate", "reports/evaluate/comparison.png"),
        {},
    ),
    "forged key": (
        lambda: edit_record("sft", lambda r: r.update(key="0" * 64)),
        ("lock", "sft", "reports/sft/run.json: key"),
        {},
    ),
    "forged environment": (
        lambda: edit_record("grpo", lambda r: r["environment"]["packages"].update(torch="1.0")),
        ("record", "grpo", "reports/grpo/run.json"),
        {},
    ),
    "declared command": (
        lambda: Path("dvc.yaml").write_text(
            Path("dvc.yaml").read_text().replace("stages.sft", "stages.sft2")
        ),
        ("pipeline", "sft", "dvc.yaml: cmd"),
        {},
    ),
    "declared output": (
        lambda: Path("dvc.yaml").write_text(
            Path("dvc.yaml")
            .read_text()
            .replace("      - models/sft\n    metrics", "      - models/new\n    metrics")
        ),
        ("pipeline", "sft", "dvc.yaml: outs: models/new"),
        {},
    ),
    "declared parameters": (
        lambda: Path("dvc.yaml").write_text(
            Path("dvc.yaml").read_text().replace("[sft]}]", "[sft, grpo]}]")
        ),
        ("pipeline", "sft", "dvc.yaml: params"),
        {},
    ),
    "unreadable parameters": (
        lambda: Path("params.yaml").write_text("a: [}"),
        ("input", None, "params.yaml"),
        {},
    ),
    "changed parameter": (
        lambda: edit_yaml(Path("params.yaml"), {"grpo": {"beta": 0.5}}),
        ("input", "grpo", "params.yaml: grpo.beta"),
        {},
    ),
    "new parameter": (
        lambda: edit_yaml(Path("params.yaml"), {"sft": {"adam_beta1": 0.5}}),
        ("input", "sft", "params.yaml: sft.adam_beta1"),
        {},
    ),
}
ALSO: dict[str, set[Named]] = {
    "locked command": {
        ("lock", "sft", "reports/sft/run.json: key"),
        ("pipeline", "sft", "dvc.yaml: cmd"),
    },
    "locked output": {("lock", "model_card", "dvc.lock: deps: reports/sft/history.csv")},
    "locked parameter": {("lock", "grpo", "reports/grpo/run.json: key")},
    "locked code": {("lock", "sft", "reports/sft/run.json: key")},
    "lock without output": {("pipeline", "grpo", "dvc.yaml: outs: models/grpo")},
    "record of other bytes": {
        ("chain", "model_card", "reports/evaluate/metrics.json"),
        ("chain", "model_card", "reports/evaluate/run.json"),
        ("lock", "evaluate", "reports/evaluate/metrics.json"),
        ("output", "evaluate", "reports/evaluate/metrics.json"),
    },
    "forged output": {
        ("chain", "model_card", "reports/evaluate/comparison.png"),
        ("lock", "evaluate", "reports/evaluate/comparison.png"),
    },
    "declared output": {("pipeline", "sft", "dvc.yaml: outs: models/sft")},
}
"""What else a planted fault makes untrue; nothing besides may be accused."""


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_named(copy: Path, name: str) -> None:
    require_found(FAULTS[name], ALSO.get(name, set()))


@pytest.mark.parametrize(
    ("plant", "told"),
    [
        (lambda: Path("reports/sft/run.json").write_text("[{"), "corrupted"),
        (lambda: Path("reports/sft/run.json").write_text("[]"), "no list of one record"),
        (
            lambda: edit_record("sft", lambda r: r.update(schema_version=99), hide=False),
            "newer regrpo",
        ),
        (lambda: edit_record("sft", lambda r: r.update(inputs=3), hide=False), "inputs"),
        (
            lambda: edit_record(
                "sft", lambda r: r["outputs"][0].update(path="../../etc"), hide=False
            ),
            "inside",
        ),
        (lambda: cached(MODEL).unlink(), "dvc fetch"),
        (lambda: listing_of("models/sft").unlink(), "dvc fetch"),
        (lambda: shutil.rmtree(".git"), "no git repository"),
        (lambda: never_ran("model_card"), "has not run"),
    ],
)
def test_what_is_missing_or_unreadable_is_not_checkable(
    copy: Path, capsys: pytest.CaptureFixture[str], plant: Callable[[], object], told: str
) -> None:
    plant()
    code, out, _ = command(capsys, "audit", "--no-mlflow")
    assert code == 2, out
    assert all(told in line for line in out.splitlines() if line.startswith("UNCHECKED")), out
    assert "UNCHECKED" in out


@pytest.mark.parametrize(
    ("plant", "told"),
    [
        (lambda: Path("dvc.lock").unlink(), "make repro"),
        (lambda: Path("dvc.lock").write_text("stages: [}"), "corrupted"),
        (lambda: set_out("sft", "models/sft", md5=5), "corrupted"),
        (lambda: Path("dvc.yaml").write_text("stages:"), "corrupted"),
        (lambda: Path("dvc.yaml").write_text("stages: {sft: }"), "corrupted"),
        (lambda: Path("dvc.yaml").write_text("stages: {sft: {outs: }}"), "corrupted"),
        (lambda: Path("dvc.yaml").write_text("stages: {sft: {outs: [{a: 1}]}}"), "corrupted"),
        (lambda: Path("dvc.yaml").write_text("stages: [}"), "corrupted"),
        (lambda: shutil.rmtree(".dvc"), ".dvc"),
    ],
)
def test_no_pipeline_is_one_line(
    copy: Path, capsys: pytest.CaptureFixture[str], plant: Callable[[], object], told: str
) -> None:
    plant()
    code, _, err = command(capsys, "audit", "--no-mlflow")
    assert (code, err.count("\n")) == (2, 1)
    assert told in err


def test_another_stages_record_is_called_so(copy: Path) -> None:
    shutil.copy("reports/sft/run.json", "reports/grpo/run.json")
    result = audited()
    assert ("record", "grpo", "reports/grpo/run.json") in found(result)
    assert result["verdict"] == "broken"
