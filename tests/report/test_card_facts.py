"""What the card is made from: files of one chain, or a refusal."""

from pathlib import Path

import pytest

from regrpo.core import files
from regrpo.core.errors import CannotCheck, Refused
from regrpo.report import card_facts
from tests.support.cards import write


def test_an_evaluation_of_another_model_is_refused(reports: Path) -> None:
    [record] = files.read_json(Path("reports/evaluate/run.json"))
    record["inputs"][-1]["files"]["model.safetensors"] = "0" * 64
    write("reports/evaluate/run.json", [record])
    file = "models/grpo/model.safetensors"
    with pytest.raises(Refused, match=rf"{file}, as evaluate read it: .* as grpo wrote it"):
        card_facts.read_facts()


def test_weights_that_are_not_those_of_the_record_are_refused(reports: Path) -> None:
    files.write_text(Path("models/grpo/model.safetensors"), "other weights")
    with pytest.raises(Refused, match=r"models/grpo/model.safetensors, as model_card read it"):
        card_facts.read_facts()


def test_a_missing_report_is_named(reports: Path) -> None:
    Path("reports/grpo/curves.png").unlink()
    with pytest.raises(CannotCheck, match=r"reports/grpo/curves.png: .* `dvc repro`"):
        card_facts.read_facts()
