"""What stages read: of earlier stages, and sources that changed since."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regrpo.audit import input_rules
from regrpo.audit.findings import Findings
from tests.support.audited import (
    Fault,
    Named,
    append,
    audited,
    edit_record,
    forge_raw_data,
    found,
    listing_of,
    other_hash,
    require_found,
    set_dep,
    set_out,
)
from tests.support.projects import run

FAULTS: dict[str, Fault] = {
    "forged input": (
        lambda: edit_record("evaluate", other_hash("inputs", "models/sft")),
        ("chain", "evaluate", "models/sft"),
        {},
    ),
    "forged split": (
        lambda: edit_record("grpo", other_hash("inputs", "data/selected/train.parquet")),
        ("chain", "grpo", "data/selected/train.parquet"),
        {},
    ),
    "locked dependency": (
        lambda: set_dep("grpo", "models/sft", md5="0" * 32 + ".dir"),
        ("lock", "grpo", "dvc.lock: deps: models/sft"),
        {},
    ),
    "swapped output": (
        lambda: set_out(
            "sft",
            "models/sft",
            md5=listing_of("models/base").parent.name + listing_of("models/base").name,
        ),
        ("lock", "sft", "models/sft/model.safetensors"),
        {},
    ),
    "changed reward": (
        lambda: append("regrpo/train/rewards.py"),
        ("input", "grpo", "regrpo/train/rewards.py"),
        {},
    ),
    "changed custom": (
        lambda: append("custom/rewards.py"),
        ("input", "grpo", "custom/rewards.py"),
        {},
    ),
    "changed verifier of one's own": (
        lambda: append("custom/verifiers.py"),
        ("input", "prepare", "custom/verifiers.py"),
        {},
    ),
    "changed format of one's own": (
        lambda: append("custom/formats.py"),
        ("input", "prepare", "custom/formats.py"),
        {},
    ),
    "new custom file": (
        lambda: append("custom/new.py"),
        ("input", "evaluate", "custom/new.py"),
        {},
    ),
    "removed task": (
        lambda: Path("stages/eval_tasks/heldout.yaml").unlink(),
        ("input", "evaluate", "stages/eval_tasks/heldout.yaml"),
        {},
    ),
    "new raw data": (
        lambda: append("data/raw/mine.jsonl", "{}\n"),
        ("input", "prepare", "data/raw/mine.jsonl"),
        {},
    ),
}
ALSO: dict[str, set[Named]] = {
    "forged input": {("record", "evaluate", "reports/evaluate/run.json")},
    "locked dependency": {("lock", "grpo", "reports/grpo/run.json: key")},
    "swapped output": {
        ("lock", "evaluate", "dvc.lock: deps: models/sft"),
        ("lock", "grpo", "dvc.lock: deps: models/sft"),
        ("lock", "select", "dvc.lock: deps: models/sft"),
        ("lock", "sft", "dvc.lock: outs: models/sft"),
    },
    "changed reward": {
        ("input", "validate", "regrpo/train/rewards.py"),
        ("input", "sft", "regrpo/train/rewards.py"),
    },
    "changed custom": {
        ("input", "validate", "custom/rewards.py"),
        ("input", "evaluate", "custom/rewards.py"),
    },
    "changed verifier of one's own": {
        ("input", stage, "custom/verifiers.py")
        for stage in ("validate", "sft", "select", "grpo", "evaluate", "model_card")
    },
    "changed format of one's own": {
        ("input", stage, "custom/formats.py") for stage in ("validate", "grpo", "evaluate")
    },
    "new custom file": {
        ("input", "validate", "custom/new.py"),
        ("input", "grpo", "custom/new.py"),
    },
}
"""What else a planted fault makes untrue; nothing besides may be accused."""


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_named(copy: Path, name: str) -> None:
    require_found(FAULTS[name], ALSO.get(name, set()))


def test_raw_data_that_git_does_not_hold_is_looked_for(copy: Path) -> None:
    Path("data/raw/mine.jsonl").write_text("{}")
    forge_raw_data()
    Path("data/raw/mine.jsonl").unlink()
    missing = ("input", "prepare", "data/raw/mine.jsonl")
    assert missing in found(audited(), "unchecked")
    assert audited()["faults"] == []
    Path("data/raw/mine.jsonl").write_text("{}")
    assert audited()["unchecked"] == []
    run(copy, "git", "commit", "-q", "-m", "forged", "dvc.lock", "reports")
    assert missing not in found(audited("HEAD"), "unchecked")


def parquet(**columns: Any) -> bytes:
    stream = BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


IDS = ["q0", "q1", "q2", "q3"]
PREPARED = parquet(id=IDS, question=["1+1=", "1+2=", "1+3=", "1+4="])
CHOSEN = parquet(id=IDS[1:3], question=["1+2=", "1+3="])
PASSED = parquet(id=pa.array(IDS, pa.large_string()), pass_rate=[0.0, 0.5, 0.25, 1.0])
"""Its text is of the type that pandas gives it."""


@pytest.mark.parametrize(
    ("samples", "selected", "rates", "holds"),
    [
        (0, PREPARED, None, True),
        (0, CHOSEN, None, False),
        (4, CHOSEN, PASSED, True),
        (4, PREPARED, PASSED, False),
        (4, parquet(id=IDS[1:3], question=["1+2=", "9+9="]), PASSED, False),
        (4, parquet(id=["q2", "q1"], question=["1+3=", "1+2="]), PASSED, False),
        (4, CHOSEN, parquet(id=IDS, pass_rate=[0.5, 0.5, 0.25, 1.0]), False),
        (4, CHOSEN, parquet(id=IDS[::-1], pass_rate=[1.0, 0.25, 0.5, 0.0]), False),
        (4, CHOSEN, b"no table", False),
        (4, CHOSEN, None, False),
        (4, None, PASSED, True),
    ],
)
def test_grpos_questions_are_those_that_the_pass_rates_choose(
    samples: int, selected: bytes | None, rates: bytes | None, holds: bool
) -> None:
    """A file that is not there is another rule's."""
    files = {input_rules.PREPARED: PREPARED}
    files |= {input_rules.SELECTED: selected, input_rules.RATES: rates}
    section = {"seed": 0, "threads": 1, "samples": samples, "max_completion_length": 14}
    record = SimpleNamespace(parameters={"params.yaml": {"select": section}})
    evidence: Any = SimpleNamespace(
        records={"select": record}, snapshot=SimpleNamespace(output=files.get)
    )
    findings = Findings()
    input_rules.check_selection(evidence, findings)
    assert [one.path for one in findings.faults] == ([] if holds else [input_rules.SELECTED])
