"""What all benchmarks stand on: turns, ratios, the busy mark, results.json and its table."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support import projects

BENCHMARKS = projects.ROOT / "benchmarks"
FACTS = {
    "date": "2026-11-28",
    "commit": "0123456789ab",
    "processor": "a CPU",
    "cores": 2,
    "memory_gb": 8.0,
    "system": "Linux 6",
    "python": "3.11.7",
    "packages": {"torch": "2.13.0", "mlflow": None},
}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """bench.py as a module: its neighbours are beside it, as when it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("bench")


def module(name: str) -> Any:
    """A neighbour of it, once the fixture has made it importable."""
    return importlib.import_module(name)


def test_each_round_begins_with_another_work(bench: Any) -> None:
    timing = module("timing")
    order: list[str] = []

    def work(name: str) -> Any:
        return lambda: order.append(name) or len(order)  # type: ignore[func-returns-value]

    results = timing.take_turns({name: work(name) for name in "abc"}, 3)
    assert "".join(order) == "abcbcacab"
    assert results == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}
    assert [len(taken) for taken in timing.interleaved({"a": work("a")}, 2).values()] == [2]


def test_a_ratio_is_of_the_medians_and_its_extremes_are_of_rounds(bench: Any) -> None:
    timing = module("timing")
    row = timing.compared("audit", "2 GiB", [1.0, 4.0, 2.0], [2.0, 2.0, 8.0], most=1.0)
    assert (row.ours, row.peer, row.ratio) == (2.0, 2.0, 1.0)
    assert (row.min, row.max, row.rounds) == (0.25, 2.0, 3)
    assert timing.holds(row) is True
    assert timing.holds(timing.compared("a", "b", [2.1], [2.0], most=1.03)) is False
    assert timing.holds(timing.compared("a", "b", [1.5], [2.0], least=0.8)) is False
    assert timing.holds(timing.compared("a", "b", [2.0], [2.0])) is None


def test_the_share_of_others_leaves_out_what_is_ours(bench: Any) -> None:
    machine = module("machine")
    before = machine.Clock(all_time=100.0, used=50.0, own=10.0)
    after = machine.Clock(all_time=120.0, used=65.0, own=15.0)
    assert machine.share_of_others(before, after) == 0.5
    assert machine.share_of_others(before, before) == 0.0


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_figures_of_a_busy_machine_are_marked(bench: Any, when: str) -> None:
    machine, results, timing = module("machine"), module("results"), module("timing")
    row = timing.compared("audit", "2 GiB", [1.0], [2.0])
    idle, busy = machine.Load(before=0.02), machine.Load(**{when: 0.4})
    assert "(busy)" not in results.markdown(results.measured([row], FACTS, idle))
    text = results.markdown(results.measured([row], FACTS, busy))
    assert "| **0.5** (0.5 to 0.5) (busy) |" in text
    assert "40%" in text


def test_the_machine_is_looked_at_before_and_after(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = module("machine")
    shares = iter([0.3, 0.1])
    monkeypatch.setattr(machine, "others_now", lambda: next(shares))
    monkeypatch.setattr(machine, "adopt_orphans", lambda: None)
    monkeypatch.setattr(machine, "reap_orphans", lambda: None)
    with machine.watched() as load:
        sum(range(200_000))
    assert (load.before, load.after, load.busy) == (0.3, 0.1, True)
    assert 0 <= load.during <= 1
    assert load.average_before >= 0


def test_facts_name_processor_commit_and_versions(bench: Any) -> None:
    facts = module("machine").facts()
    assert facts["cores"] == os.cpu_count()
    assert facts["packages"]["torch"].startswith("2.")
    assert set(facts) == set(FACTS)


def test_a_peer_that_is_not_there_is_skipped_by_name(bench: Any) -> None:
    results, timing = module("results"), module("timing")
    assert timing.lacks_package("pytest") is None
    assert timing.lacks_command("sh") is None
    reason = timing.lacks_command("no-such-command")
    rows = [timing.skipped("audit", "2 GiB", "no-such-command", reason)]
    text = results.markdown(results.measured(rows, FACTS, module("machine").Load()))
    assert "| 2 GiB |  |  |  |  | skipped: no-such-command: no such command on PATH |" in text
    assert timing.lacks_package("no_such_package") == "the package is not installed"


def test_what_is_measured_again_replaces_its_like_and_the_rest_stays(bench: Any) -> None:
    machine, results, timing = module("machine"), module("results"), module("timing")

    def rows(day: str, *made: Any) -> list[Any]:
        return results.measured(made, FACTS | {"date": day}, machine.Load())

    first = rows(
        "2026-11-27",
        timing.compared("audit", "2 GiB", [1.0], [2.0]),
        timing.compared("training", "sft", [1.0], [1.0]),
        timing.compared("audit", "8 GiB", [4.0], [8.0]),
    )
    skipped = timing.skipped("audit", "8 GiB", "sha256sum", "gone")
    second = rows("2026-11-28", timing.compared("audit", "2 GiB", [3.0], [2.0]), skipped)
    merged = results.merged(first, second)
    assert [(row["what"], row["date"], row["ratio"]) for row in merged] == [
        ("2 GiB", "2026-11-28", 1.5),
        ("8 GiB", "2026-11-27", 0.5),
        ("sft", "2026-11-27", 1.0),
    ]


def test_the_page_keeps_what_stands_around_the_table(bench: Any, tmp_path: Path) -> None:
    machine, results, timing = module("machine"), module("results"), module("timing")
    page, file = tmp_path / "performance.md", tmp_path / "results.json"
    page.write_text(f"# Title\n\n{results.BEGIN}\nold\n{results.END}\n\nThe end.\n")
    made = [
        timing.compared("training", "train()", [1.0], [2.0], most=1.03, note="why | how"),
        timing.alone("training", "save", [0.2, 0.4, 12345.0]),
    ]
    results.write(results.measured(made, FACTS, machine.Load()), file, page)
    text = page.read_text()
    assert text.startswith("# Title\n")
    assert text.endswith(f"{results.END}\n\nThe end.\n")
    assert "old" not in text
    assert (
        "| train() | 1 s | 2 s | **0.5** (0.5 to 0.5) | ≤ 1.03: held | why \\| how |\n"
        "| save | 0.4 s |  | (0.2 to 12,345) |  |  |\n"
    ) in text
    (machine_id,) = json.loads(file.read_text())["machines"]
    assert f"2026-11-28, commit 0123456789ab, machine {machine_id}, 1 to 3 rounds. Load" in text
    assert f"Machine {machine_id}: a CPU, 2 cores, 8.0 GB.\nLinux 6, Python 3.11.7, " in text
    assert "torch 2.13.0.\n" in text, "what is not installed is not named"
    rows = results.read(file)
    assert rows == results.measured(made, FACTS, machine.Load())
    assert [row["holds"] for row in rows] == [True, None]
    assert results.read(tmp_path / "none.json") == []


def test_a_subject_that_fails_is_named_and_the_others_are_written(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine, timing = module("machine"), module("timing")
    monkeypatch.setattr(machine, "LOOKED_FOR", 0.0)
    monkeypatch.setattr(machine, "adopt_orphans", lambda: None)
    monkeypatch.setattr(machine, "reap_orphans", lambda: None)
    monkeypatch.setattr(machine, "facts", lambda: FACTS)
    written: list[Any] = []
    monkeypatch.setattr(bench, "write", written.extend)

    def broken(full: bool, rounds: int) -> list[Any]:
        raise RuntimeError("no weights")

    def works(full: bool, rounds: int) -> list[Any]:
        return [timing.compared("works", "a", [1.0] * rounds, [2.0] * rounds, most=0.6)]

    assert bench.run({"broken": broken, "works": works}, False, 2) == 1
    assert [(row["subject"], row["rounds"]) for row in written] == [("works", 2)]
    said = capsys.readouterr().err
    assert "no weights" in said
    assert "broken failed" in said
    assert bench.run({"works": works}, False, 1) == 0


def test_the_picture_shows_each_ratio_with_its_name(bench: Any, tmp_path: Path) -> None:
    machine, results, timing = module("machine"), module("results"), module("timing")
    made = [
        timing.compared("training", "sft: train()", [1.0, 1.2], [1.0, 1.0]),
        timing.alone("training", "save", [0.2]),
    ]
    rows = results.measured(made, FACTS, machine.Load())
    picture = module("picture")
    picture.draw(rows, tmp_path / "one.svg")
    picture.draw(rows, tmp_path / "two.svg")
    drawn = (tmp_path / "one.svg").read_text()
    assert drawn == (tmp_path / "two.svg").read_text()
    assert "training: sft: train()" in drawn
    assert "training: save" not in drawn
    assert picture.ticks_between([0.96], [1.04]) == [0.9, 1, 1.1]


def test_a_subject_that_there_is_not_is_refused_by_name(
    bench: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["bench.py", "no-such-subject"])
    with pytest.raises(SystemExit) as error:
        bench.main()
    assert error.value.code == 2
    assert "no such subject: no-such-subject" in capsys.readouterr().err
