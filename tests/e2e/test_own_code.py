"""A verifier and a format of one's own, from the source to the audited card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from regrpo.core import files
from tests.support.custom_code import clock_rows
from tests.support.projects import MINIATURE, commit, make_project, run, run_pipeline

REGRPO = ("python", "-m", "regrpo.cli")
PREPARE: dict[str, Any] = {
    "format": "custom.formats:clock",
    "verifier": "custom.verifiers:TimeOfDay",
    "verifier_settings": {"within": 5},
    "keep": ["new_hour"],
    "source": {"kind": "local", "train": "clock.jsonl", "license": "CC0-1.0"},
    "drop_duplicates": False,
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sections = MINIATURE | {"prepare": MINIATURE["prepare"] | PREPARE}
    folder = make_project(tmp_path_factory.mktemp("own") / "project", sections)
    lines = [json.dumps(row) for row in clock_rows(400)]
    (folder / "data/raw/clock.jsonl").write_text("\n".join(lines) + "\n")
    commit(folder, "data")
    run_pipeline(folder)
    return folder


def test_it_ran_to_an_audited_card_that_says_what_a_right_answer_is(finished: Path) -> None:
    dataset = files.read_json(finished / "data/prepared/dataset.json")
    assert (dataset["format"], dataset["verifier"]) == (PREPARE["format"], PREPARE["verifier"])
    verdict = files.read_json(finished / "reports/validate/verdict.json")
    assert verdict["passed"]
    assert verdict["not_applicable"] == []
    metrics = files.read_json(finished / "reports/evaluate/metrics.json")
    code = files.sha256(finished / "custom/verifiers.py")[:12]
    assert metrics["verifier"] == f"custom.verifiers:TimeOfDay (code: {code}, within: 5)"
    samples = files.read_parquet(finished / "reports/grpo/samples.parquet")
    assert {"exact_answer", "new_hour"} <= set(samples.columns)
    card = " ".join((finished / "reports/model_card/README.md").read_text().split())
    assert "asked to answer with the time of day between" in card
    audit = run(finished, *REGRPO, "audit").stdout.splitlines()[-1]
    assert audit.startswith("complete: ")
    assert "faults: 0, unchecked: 0, notes: 0" in audit
    for stage in ("prepare", "sft", "model_card"):
        [record] = files.read_json(finished / f"reports/{stage}/run.json")
        read = [item["path"] for item in record["inputs"] if item["path"].startswith("custom")]
        assert read == ["custom/formats.py"] * (stage == "prepare") + ["custom/verifiers.py"]


@pytest.mark.parametrize("stage", ["sft", "grpo", "evaluate"])
def test_a_verifier_that_raises_ends_a_stage_in_one_line(
    finished: Path, tmp_path: Path, stage: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder, symlinks=True)
    verifiers = folder / "custom/verifiers.py"
    method, fault = ("render", "self, answer") if stage == "sft" else ("parse", "self, text, row")
    body = f"\n\ndef fail({fault}):\n    raise OSError('no clock')\n\n\nTimeOfDay.{method} = fail\n"
    verifiers.write_text(verifiers.read_text() + body)
    done = run(folder, "python", "-m", f"stages.{stage}", check=False, REGRPO_TRACKING="off")
    assert done.returncode == 1, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert f"{stage}: prepare.verifier: custom.verifiers:TimeOfDay" in line
    assert ("row train-" in line) == (stage != "sft")
    assert "OSError: no clock" in line
    assert "Traceback" not in done.stderr
