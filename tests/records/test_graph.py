"""The lineage graph: who made what from what, over several pipelines that share some of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regrpo.core import files
from regrpo.core.pipeline import Snapshot
from regrpo.records import graph, hashing
from regrpo.records.find import Place


def recorded(
    folder: Path,
    stage: str,
    run: str,
    inputs: dict[str, Any],
    outputs: dict[str, Any],
    time: str = "2026",
) -> None:
    """A run.json; a folder's value is its {file: SHA-256}."""

    def items(values: dict[str, Any]) -> list[dict[str, Any]]:
        return [
            {"path": path, "size": 1, "sha256": hashing.folder_sha256(one), "files": one}
            if isinstance(one, dict)
            else {"path": path, "size": 1, "sha256": one}
            for path, one in values.items()
        ]

    record = {
        "schema_version": 1,
        "stage": stage,
        "run": run,
        "key": "0" * 64,
        "command": "x",
        "parameters": {},
        "inputs": items(inputs),
        "outputs": items(outputs),
        "code": {"revision": None, "dirty": None},
        "environment": {"packages": {}, "sha256": "0" * 64},
        "started": time,
        "ended": time,
    }
    path = folder / f"reports/{stage}/run.json"
    path.parent.mkdir(parents=True)
    files.write_json(path, [record])


@pytest.mark.parametrize("order", [1, -1])
def test_a_run_that_two_pipelines_share_is_one_and_each_pipeline_has_exactly_its_runs(
    tmp_path: Path, order: int
) -> None:
    """b kept a's prepare and sft; its gate ran again later with an equal verdict.

    Grpo and card are its own.
    """
    data, verdict, sft = (
        {"data/prepared": {"train.parquet": "d" * 64}},
        {"v": "e" * 64},
        {"models/sft": "5" * 64},
    )
    shared = [("prepare", "p", {}, data, "1"), ("sft", "s", data | verdict, sft, "3")]
    for name, gate_at, grpo_at in (("a", "2", "4"), ("b", "5", "6")):
        model = {"models/grpo": name * 64}
        own = [
            ("validate", f"v-{name}", data, verdict, gate_at),
            ("grpo", f"g-{name}", sft | verdict, model, grpo_at),
            ("model_card", f"c-{name}", model, {"card": name * 64}, grpo_at + "1"),
        ]
        for stage in shared + own:
            recorded(tmp_path / name, *stage)
    names = {"a": "workspace", "b": "experiment b"}
    places = {one: Place(names[one], Snapshot(tmp_path / one)) for one in names}
    whole = graph.of_places(list(places.values())[::order])
    assert sorted(whole.runs) == ["c-a", "c-b", "g-a", "g-b", "p", "s", "v-a", "v-b"]
    assert sorted(whole.runs["s"].places) == sorted(names.values())
    for target, name in ((None, "a"), ("b", "b")):
        part, starts = graph.ask(whole, target, places.__getitem__, "upstream")
        assert starts == [f"c-{name}"]
        assert set(part.runs) == {"p", "s", f"v-{name}", f"g-{name}", f"c-{name}"}
        lines = list(graph.tree(part, starts, "upstream"))
        assert sum(line.lstrip("│├└─ ").startswith("sft  run s  [") for line in lines) == 1
        plain = graph.plain(part)
        made_from = {one["run"]: one["made_from"] for one in plain["runs"]}
        assert (made_from[f"g-{name}"], made_from["s"]) == ([f"v-{name}", "s"], ["p", f"v-{name}"])
    # Of the two gates with an equal verdict, the shared sft read the one that was there.
    assert set(graph.ask(whole, "5" * 64, places.__getitem__, "upstream")[0].runs) == {
        "p",
        "v-a",
        "s",
    }
    assert set(graph.ask(whole, "models/sft", places.__getitem__, "upstream")[0].runs) == {
        "p",
        "v-a",
        "s",
    }
    downstream, starts = graph.ask(whole, "5" * 64, places.__getitem__, "downstream")
    assert set(starts) == {"g-a", "g-b"}
    assert set(downstream.runs) == {"g-a", "g-b", "c-a", "c-b"}


def test_a_record_that_was_written_anew_is_the_same_run(tmp_path: Path) -> None:
    for name in ("a", "b"):
        recorded(tmp_path / name, "prepare", "p", {}, {"data/prepared": "d" * 64})
    path = tmp_path / "b/reports/prepare/run.json"
    path.write_text(path.read_text() + "\n")
    whole = graph.of_places([Place(name, Snapshot(tmp_path / name)) for name in ("a", "b")])
    assert list(whole.runs) == ["p"]
    assert [one.path for one in whole.runs["p"].outputs] == [
        "data/prepared",
        "reports/prepare/run.json",
        "reports/prepare/run.json",
    ]


def test_two_datasets_that_share_equal_files_do_not_share_their_lineage(tmp_path: Path) -> None:
    """Both give an equal verdict.json and dataset.json.

    Whatever the order, each model has its own dataset.
    """
    verdict, info = "e" * 64, "d" * 64
    for name in ("a", "b"):
        data = {"dataset.json": info, "train.parquet": name * 64}
        gate = {"reports/validate/verdict.json": verdict}
        recorded(tmp_path / name, "prepare", f"prepare-{name}", {}, {"data/prepared": data})
        recorded(tmp_path / name, "validate", f"validate-{name}", {"data/prepared": data}, gate)
        inputs = gate | {"data/prepared/dataset.json": info}
        recorded(tmp_path / name, "sft", f"sft-{name}", inputs, {"models/sft": name * 64})
        recorded(
            tmp_path / name,
            "grpo",
            f"grpo-{name}",
            {"models/sft": name * 64},
            {"models/grpo": name * 64},
        )
    both = [Place(name, Snapshot(tmp_path / name)) for name in ("a", "b")]
    for places in (both, both[::-1]):
        whole = graph.of_places(places)
        for name in ("a", "b"):
            own = {f"{stage}-{name}" for stage in ("prepare", "validate", "sft", "grpo")}
            assert whole.reach([f"grpo-{name}"], "upstream") == own
            assert whole.reach([f"prepare-{name}"], "downstream") == own
            assert set(graph.ask(whole, name * 64, {}.__getitem__, "downstream")[0].runs) <= own


def test_a_run_is_found_by_its_id_an_artifact_by_path_or_hash(tmp_path: Path) -> None:
    run, model = "ab" * 16, "e1" * 32
    recorded(tmp_path, "sft", run, {"data/raw": "d" * 64}, {"models/sft": {"a": model}}, "1")
    recorded(tmp_path, "grpo", "cd" * 16, {"models/sft/a": model}, {"models/grpo": "f" * 64}, "2")
    whole = graph.of_places([Place("workspace", Snapshot(tmp_path))])
    nowhere: dict[str, Place] = {}

    def starts(target: str | None, direction: graph.Direction) -> list[str]:
        return graph.ask(whole, target, nowhere.__getitem__, direction)[1]

    for target in (run, run[:8], "sft", "models/sft", "models/sft/a", model, model[:6]):
        assert starts(target, "upstream") == [run], target
    assert starts("models/sft", "downstream") == ["cd" * 16]
    assert starts(None, "upstream") == ["cd" * 16]
    assert starts("data/raw", "upstream") == [], "a source"
    assert starts("data/raw", "downstream") == [run]
    part, first = graph.ask(whole, None, nowhere.__getitem__, "upstream")
    sft = hashing.folder_sha256({"a": model})
    assert list(graph.tree(part, first, "upstream")) == [
        f"grpo  run cdcdcdcdcdcd  [workspace]  → models/grpo {'f' * 8}",
        f"└─ sft  run abababababab  [workspace]  → models/sft {sft[:8]}",
        f"   └─ data/raw {'d' * 8}",
    ]
    assert graph.mermaid(part).splitlines()[0] == "flowchart LR"
    assert "  n0 --> n2" in graph.mermaid(part).splitlines(), "a run leads to what it made"
