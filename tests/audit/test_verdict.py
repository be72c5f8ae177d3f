"""A reproduction's verdict from what was made: which of the three, and what may have caused it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regrpo.audit import verdict
from regrpo.audit.worktree import Worktree
from regrpo.core import files
from regrpo.core.pipeline import Snapshot
from regrpo.evaluate.results import ANSWERS, METRICS, SAMPLES
from regrpo.evaluate.summary import list_answers
from tests.support.synthetic import evaluation, questions, right

ENVIRONMENT = {
    "cuda": [],
    "cpu": "A",
    "python": "3.11.7",
    "system": "Linux x86_64",
    "packages": {"torch": "2.13.0", "ruff": "0.1"},
    "sha256": "0" * 64,
}


def record(**parts: Any) -> dict[str, Any]:
    """A record of grpo with one output."""
    defaults = {
        "stage": "grpo",
        "run": "a",
        "key": "b",
        "mlflow_run_id": None,
        "seconds": 1.0,
        "environment": ENVIRONMENT,
        "parameters": {},
        "outputs": [{"path": "models/grpo", "sha256": "0", "files": {"a": "1", "b": "2"}}],
    }
    return defaults | parts


def judged(
    monkeypatch: pytest.MonkeyPatch,
    evaluation: dict[str, Any] | None,
    changed: list[Any],
    made: dict[str, str],
) -> dict[str, Any]:
    """The verdict where grpo made these files and the evaluations compare so."""
    found = {"path": "models/grpo", "files": made}
    monkeypatch.setattr(Worktree, "fingerprint", lambda *_: found)
    monkeypatch.setattr(Worktree, "restored", lambda *_: None)
    monkeypatch.setattr(verdict, "_compare_evaluation", lambda *_: evaluation)
    here = Worktree(Snapshot(Path()), {}, Path(), Path())
    originals = {"grpo": record()}
    return verdict.judge(here, here, originals, {"grpo": record(run="c")}, changed, 0.02)


def test_the_same_hashes_are_identical(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judged(monkeypatch, None, [], {"a": "1", "b": "2"})
    assert found["verdict"] == "identical"
    assert found["first_difference"] is found["evaluation"] is None
    assert found["numbers"] == {"files": 2, "files_differing": 0}


def test_other_bits_are_equivalent_only_if_the_evaluation_is_and_the_parameters_are_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    same = {"equivalent": True, "largest_difference": 0.01}
    made = {"a": "1", "b": "3"}
    found = judged(monkeypatch, same, [], made)
    assert found["verdict"] == "equivalent"
    assert found["first_difference"]["file"] == "models/grpo/b"
    other = same | {"equivalent": False}
    assert judged(monkeypatch, other, [], made)["verdict"] == "different"
    assert judged(monkeypatch, None, [], made)["verdict"] == "different"
    changed = judged(monkeypatch, same, [{"name": "grpo.learning_rate"}], made)
    assert changed["verdict"] == "different"
    assert "another experiment" in changed["notes"][0]
    assert changed["numbers"] == {
        "files": 2,
        "files_differing": 1,
        "largest_value_difference": 0.01,
    }


def test_another_thread_count_is_no_other_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    same = {"equivalent": True, "largest_difference": 0.01}
    threads = {"name": "grpo.threads", "recorded": 1, "commit": 2}
    found = judged(monkeypatch, same, [threads], {"a": "1", "b": "3"})
    assert (found["verdict"], found["notes"]) == ("equivalent", [])
    rate = {"name": "grpo.learning_rate", "recorded": 1, "commit": 2}
    both = judged(monkeypatch, same, [threads, rate], {"a": "1", "b": "3"})
    assert both["verdict"] == "different"


def test_a_card_that_differs_in_its_varying_block_alone_is_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The hash of the rest stands in another output: the original need not be restored."""

    def differing(card: str, rest: str) -> list[str]:
        made = {verdict.CARD: card, verdict.CARD_HASH: rest}
        hashes = {verdict.CARD: "1", verdict.CARD_HASH: "2"}
        outputs = [{"path": path, "sha256": sha256} for path, sha256 in hashes.items()]
        monkeypatch.setattr(
            Worktree, "fingerprint", lambda _, path: {"path": path, "sha256": made[path]}
        )
        here = Worktree(Snapshot(Path()), {}, Path(), Path())
        found = verdict._compare_stage(here, record(outputs=outputs), record(run="c"))
        return [entry["path"] for entry in found["differing"]]

    assert differing("1", "2") == []
    assert differing("3", "2") == []
    assert differing("3", "4") == [verdict.CARD, verdict.CARD_HASH]


@pytest.mark.parametrize(
    ("kept", "test"), [([ANSWERS, SAMPLES], "paired"), ([SAMPLES], "paired"), ([], "unpaired")]
)
def test_the_evaluation_is_judged_by_what_is_left_of_the_originals_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: list[str], test: str
) -> None:
    asked = questions(40)
    for side, share in (("original", 0.4), ("made", 0.5)):
        metrics, samples = evaluation({"heldout": right(share, 40)}, asked)
        top = tmp_path / side
        files.write_json(top / METRICS, metrics)
        files.write_text(top / ANSWERS, files.canonical_json(list_answers(samples)))
        if ANSWERS in kept:  # what is in git is asked first, and no cache for the rest
            files.write_text(top / SAMPLES, "no Parquet")
        else:
            files.write_parquet(top / SAMPLES, samples)
    monkeypatch.setattr(
        Worktree,
        "restored",
        lambda self, path: self.tree / path if path in [METRICS, *kept] else None,
    )
    here, beside = (
        Worktree(Snapshot(Path()), {}, tmp_path, tmp_path / side) for side in ("made", "original")
    )
    notes: list[str] = []
    found = verdict._compare_evaluation(here, beside, {"evaluate": {}}, 0.02, notes)
    assert found is not None
    assert (found["test"], found["equivalent"]) == (test, True)
    assert found["largest_difference"] > 0.02
    assert [note.partition(" of ")[0] for note in notes] == (
        ["judged by an unpaired test"] if test == "unpaired" else []
    )


def test_a_missing_and_an_extra_file_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judged(monkeypatch, None, [], {"b": "2", "c": "3"})
    [stage] = found["stages"]
    assert stage["files"] == 3
    assert [(entry["path"], entry["how"]["what"]) for entry in stage["differing"]] == [
        ("models/grpo/a", "was not made"),
        ("models/grpo/c", "is not in the original"),
    ]


def test_the_known_sources_of_another_outcome_are_named() -> None:
    def one(cuda: list[str], cpu: str, torch: str, **parameters: Any) -> dict[str, Any]:
        packages = {"torch": torch, "ruff": torch}
        environment = ENVIRONMENT | {"cuda": cuda, "cpu": cpu, "packages": packages}
        return record(environment=environment, parameters={"params.yaml": {"grpo": parameters}})

    here = one([], "A", "2.13.0", threads=1)
    assert verdict.sources_of_difference(here, here) == []
    named = verdict.sources_of_difference(
        one(["H100"], "A", "2.13.0", threads=1, use_vllm=True),
        one([], "B", "2.12.0", threads=2, use_vllm=True),
    )
    for start in (
        "device: H100 → no CUDA",
        "CUDA kernels",
        "processor: A → B",
        "thread count: 1 → 2",
        "vLLM",
        "torch: ",
    ):
        assert any(source.startswith(start) for source in named), start
    assert not any(source.startswith("ruff") for source in named)


def test_the_same_machine_is_to_give_identical_bytes_and_another_equivalent_ones() -> None:
    assert verdict.foresee([record()], ENVIRONMENT, []) == ("identical", [])
    linter = ENVIRONMENT | {"packages": {"torch": "2.13.0", "ruff": "0.2"}}
    assert verdict.foresee([record()], linter, []) == ("identical", [])

    torch = ENVIRONMENT | {"packages": {"torch": "2.12.0", "ruff": "0.1"}}
    found = verdict.foresee([record(), record()], torch, [])
    assert found == ("equivalent", ["torch: 2.13.0 → 2.12.0"])
    assert verdict.foresee([record()], torch, [], installed=True) == ("identical", [])

    processor = "processor: A → B (vector units add up in another order)"
    assert verdict.foresee([record()], ENVIRONMENT | {"cpu": "B"}, [])[1] == [processor]
    threads = {"name": "sft.threads", "recorded": 2, "commit": 1}
    assert verdict.foresee([record()], ENVIRONMENT, [threads])[1] == ["sft.threads: 2 → 1"]
    rate = {"name": "sft.learning_rate", "recorded": 2, "commit": 1}
    assert verdict.foresee([record()], ENVIRONMENT, [rate])[0] == "identical"


def test_packages_that_differ_or_are_missing_are_named_once() -> None:
    found = ENVIRONMENT | {"packages": {"torch": "2.12.0"}, "sha256": "1" * 64}
    assert verdict.environment_differences([record(), record()], found) == [
        {"what": "ruff", "recorded": "0.1", "found": "(absent)"},
        {"what": "torch", "recorded": "2.13.0", "found": "2.12.0"},
    ]
