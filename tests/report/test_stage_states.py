"""The states of stages: what ran, what came from the cache, what is out of date and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from regrpo.core.errors import CannotCheck
from regrpo.core.profiles import STAGES
from tests.support.projects import edit_yaml
from tests.support.report_pages import edit_record, journal, read, reasons, states, written


def changed_code() -> str:
    Path("code/sft.py").write_text("# other\n")
    return "changed since: code/sft.py"


def changed_parameter() -> str:
    edit_yaml(Path("params.yaml"), {"sft": {"seed": 1}})
    return "its parameters have changed since (params.yaml: sft)"


def changed_command() -> str:
    text = Path("dvc.yaml").read_text()
    Path("dvc.yaml").write_text(text.replace("python -m stages.sft", "python -m stages.sft --fast"))
    return "its command has changed since"


def lost_output() -> str:
    Path("models/sft/model.safetensors").unlink()
    Path("models/sft").rmdir()
    return "models/sft not here: `dvc checkout`"


def another_run() -> str:
    edit_record("sft", lambda record: record.update(key="0" * 64))
    return "dvc.lock holds another run of it"


def other_bytes() -> str:
    edit_record("sft", lambda record: record["inputs"][0].update(sha256="0" * 64))
    return "it read other bytes of data/prepared than prepare has made"


@pytest.mark.parametrize(
    "change",
    [changed_code, changed_parameter, changed_command, lost_output, another_run, other_bytes],
)
def test_what_changed_since_is_out_of_date_with_the_reason_and_so_is_all_that_follows(
    inside: Callable[..., Path], change: Callable[[], str]
) -> None:
    inside()
    said = change()
    assert said in reasons("sft")
    assert states() == {
        name: "stale" if STAGES.index(name) >= STAGES.index("sft") else "cached" for name in STAGES
    }
    assert "follows sft, which must run first" in reasons("select")
    page = written()
    assert "This pipeline is not whole" in page.words
    assert said in page.words


def test_what_ran_in_the_newest_execution_is_told_from_what_came_from_the_cache(
    inside: Callable[..., Path],
) -> None:
    inside()
    for index, stage in enumerate(STAGES):
        journal(stage, f"{index}" * 32, [2.0, 20.0] if index >= 4 else [1.0, 10.0])
    assert states() == {name: "ran" if STAGES.index(name) >= 4 else "cached" for name in STAGES}
    page = written()
    assert (
        "The execution of 2026-11-22 14:34 UTC ran 4 of them; the others were up to date"
        in page.words
    )
    assert f"this pipeline's row is {'abcd' * 8}" in page.words
    for index in range(4):
        journal(STAGES[index], f"{index}" * 32, [2.0, 20.0])
    assert "ran them all" in written().words


def test_records_from_elsewhere_were_not_computed_here(inside: Callable[..., Path]) -> None:
    inside()
    assert set(states().values()) == {"cached"}
    assert "Nothing of it was computed in this clone" in written().words


@pytest.mark.parametrize(("status", "state"), [("FAILED", "failed"), ("KILLED", "killed")])
def test_a_stage_that_ended_badly_says_so(
    inside: Callable[..., Path], status: str, state: str
) -> None:
    inside(upto="sft")
    journal("grpo", "9" * 32, [3.0, 30.0], status)
    assert states()["grpo"] == state
    assert states()["sft"] == "cached"
    assert f"✗ {state}" in written().words


def test_an_unknown_state_of_records_raises_no_traceback(inside: Callable[..., Path]) -> None:
    inside(upto="prepare")
    edit_record("prepare", lambda record: record.update(schema_version=99))
    with pytest.raises(CannotCheck, match="schema_version"):
        read()
