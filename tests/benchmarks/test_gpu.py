"""benchmarks/gpu.py: its tables, and the whole command, tiny and on a CPU."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support import projects

BENCHMARKS = projects.ROOT / "benchmarks"
CARD = {
    "card": "NVIDIA H100 80GB HBM3",
    "date": "2026-11-27",
    "driver": "570.1",
    "python": "3.11.7",
    "cuda": "12.8",
    "versions": {"torch": "2.13.0"},
}


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A script of benchmarks/ as a module: its neighbours are beside it, as when it is run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


def measured(case: str, **changes: Any) -> dict[str, Any]:
    """One result as gpu_case.py prints it, of a grpo on a GPU."""
    phases = {"generation": 6.0, "loss and backward": 3.0, "optimizer": 0.5, "other": 0.5}
    for name in ("weight sync", "rewards", "log-probabilities"):
        phases[name] = 0.0
    return {
        "case": case,
        "step_seconds": 10.0,
        "first_step_seconds": 12.0,
        "loading_seconds": 20.0,
        "phases": phases,
        "tokens_per_second": 1000,
        "tokens_per_second_trained": 4000,
        "tokens_per_second_generated": 7000,
        "mfu": 31.5,
        "allocated_train": 39_000_000_000,
        "allocated_generate": 19_000_000_000,
        "context": 1_000_000_000,
        "used": {"generation": 60_000_000_000, "loss and backward": 50_000_000_000},
        "plan_train": 44_000_000_000,
        "plan_generate": 20_000_000_000,
        "numbers": {"loss": 0.25},
    } | changes


def table(text: str, title: str) -> list[list[str]]:
    """The rows of the Markdown table under a title."""
    lines = text.split(f"**{title}")[1].split("\n\n")[1].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_each_number_has_its_place_and_its_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = script("gpu", monkeypatch)
    cases = [
        measured("grpo-lora"),
        measured("grpo-lora-bare", step_seconds=8.0, numbers={"loss": 0.5}),
        measured("grpo-deterministic", step_seconds=15.0),
        measured("grpo-vllm", plan_train=55_000_000_000, plan_generate=0),
        {"case": "evaluate-vllm", "not measured": "vllm is not installed"},
    ]
    report = {"machine": CARD, "device": "cuda", "tiny": False, "cases": cases}
    text = gpu.markdown(report)
    assert text.startswith("### NVIDIA H100 80GB HBM3, 2026-11-27\n")
    assert "driver 570.1, CUDA 12.8, torch 2.13.0" in text
    assert table(text, "Speed")[0] == [
        *["grpo-lora", "10.000", "1,000", "4,000", "7,000", "31.5 %", "20.0"]
    ]
    phases = table(text, "A step by phase")[0]
    assert phases[1:] == ["6.000", "0.000", "0.000", "0.000", "3.000", "0.500", "0.500", "12.00"]
    memory = table(text, "Peak memory")
    assert memory[0] == ["grpo-lora", "train", "44.00", "40.00", "+10.0%"]
    assert memory[1] == ["grpo-lora", "generate", "20.00", "20.00", "+0.0%"]
    assert ["grpo-vllm", "train", "55.00", "50.00", "+10.0%"] in memory, "all that is in use"
    assert memory[-1][:2] == ["evaluate-vllm", "not measured: vllm is not installed"]
    sft, grpo = table(text, "What `deterministic: true` costs")
    assert sft[1] == "not measured: not among --cases"
    assert grpo == ["grpo", "10.000", "15.000", "1.500"]
    bare = table(text, "Against TRL alone")[1]
    assert bare == ["grpo", "8.000", "10.000", "1.250", "loss 0.5 and 0.25"]


def test_where_nothing_can_be_measured_every_row_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu = script("gpu", monkeypatch)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path / "out")])
    gpu.main()
    report = json.loads((tmp_path / "out/gpu.json").read_text())
    assert [case["case"] for case in report["cases"]] == list(gpu.CASES)
    assert {case["not measured"] for case in report["cases"]} == {
        f"no CUDA device (torch {torch.__version__})"
    }
    text = capsys.readouterr().out
    assert (tmp_path / "out/gpu.md").read_text() == text.removesuffix("\n")
    assert all(row[1].startswith("not measured: no CUDA device") for row in table(text, "Speed"))


@pytest.mark.slow
def test_the_whole_command_on_a_cpu(tmp_path: Path) -> None:
    command = (sys.executable, str(BENCHMARKS / "gpu.py"), "--device", "cpu", "--tiny")
    projects.run(tmp_path, *command)
    report = json.loads((tmp_path / "gpu-benchmark/gpu.json").read_text())
    text = (tmp_path / "gpu-benchmark/gpu.md").read_text()
    results = {case["case"]: case for case in report["cases"]}
    ran = [name for name, case in results.items() if "not measured" not in case]
    trained = ["sft-lora-saved", "sft-lora-bare", "grpo-lora", "grpo-lora-bare"]
    assert ran == [*trained, "evaluate-lora"]
    assert results["grpo-lora"]["phases"]["generation"] > 0
    assert results["sft-lora-saved"]["phases"]["generation"] == 0
    for row in table(text, "Against TRL alone"):
        assert row[-1].startswith("equal (loss, "), "TRL alone trains the same"
    differences = {row[0]: row[-1] for row in table(text, "Peak memory")}
    assert all(differences[name].endswith("%") for name in ran)


def test_a_phase_inside_another_counts_for_itself_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = script("gpu_meter", monkeypatch)
    clock = iter([0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 31.0])
    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    phases = meter.Phases("cpu")
    with phases.phase("outer"), phases.phase("inner"):
        pass
    assert phases.take_seconds() == {"loading": 17.0, "outer": 10.0, "inner": 4.0}
    assert phases.used["inner"] > 0
    assert phases.memory()["allocated_train"] == 0, "a CPU's memory is not CUDA's"


def test_mfu_is_arithmetic_over_the_cards_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = script("gpu_meter", monkeypatch)
    # Of a layer and a head by hand: 3 × 2 × (8·8 + 8·8·2 + 8·8 + 3·8·16 + 8·32 + 2·8·10 scores).
    config = SimpleNamespace(
        hidden_size=8,
        num_hidden_layers=1,
        vocab_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=4,
        intermediate_size=16,
    )
    flops = 6 * (64 + 128 + 64 + 384 + 256 + 160)
    tokens = 989e12 / flops / 4
    card = CARD["card"]
    assert meter.mfu(config, tokens, 10, False, card) == pytest.approx(25.0, abs=0.01)
    assert meter.mfu(config, tokens, 10, True, card) == pytest.approx(25.0 * 2 / 3, abs=0.01)
    assert meter.mfu(config, tokens, 10, False, "Voodoo 2") is None
