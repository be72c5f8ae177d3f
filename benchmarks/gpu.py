"""What one GPU does with this project, in one command: speed, phases, memory, bare TRL beside it.

    python benchmarks/gpu.py [--device cuda|cpu] [--tiny] [--cases NAME ...] [--out FOLDER]

Prints Markdown tables, and writes them to FOLDER/gpu.md and all numbers to FOLDER/gpu.json. The
model has gemma-3-1b-pt's shapes with random weights (gpu_shapes.py), the settings are the profile's
own, in a copy of the project that is removed afterwards. What cannot be measured here is a row that
says why. With --device cpu --tiny it takes a minute and shows that the command works, no speeds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import workspace
from gpu_meter import GENERATION, STEP
from machine import version

SHAPES = Path(__file__).with_name("gpu_shapes.py")
CASES = (
    "sft-lora-saved",
    "sft-lora-bare",
    "grpo-lora",
    "grpo-lora-bare",
    "grpo-vllm",
    "sft-deterministic",
    "grpo-deterministic",
    "evaluate-lora",
    "evaluate-vllm",
)
"""STAGE-VARIANT of gpu_shapes.py; evaluate asks the model that sft-lora-saved leaves."""
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "vllm", "bitsandbytes")
FORMULA = (
    "MFU: the arithmetic of forward and backward (trl.trainer.utils.compute_flops_per_token; two "
    "thirds of it with LoRA, whose frozen weights have no gradient) times the tokens a second of "
    "loss and backward, over the card's dense bf16 peak (trl.trainer.utils.get_peak_flops, from "
    "data sheets). What checkpointing computes again does not count. It is not measured in another "
    "type, and for a card whose peak is not known."
)
Result = Mapping[str, Any]
Row = list[str]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and short sequences")
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES, metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("gpu-benchmark"))
    arguments = parser.parse_args()
    reasons = {name: why_not(name, arguments.device) for name in arguments.cases}
    results = [{"case": name, "not measured": why} for name, why in reasons.items() if why]
    possible = [name for name, why in reasons.items() if not why]
    if possible:
        results += measure(possible, arguments.device, arguments.tiny)
    results.sort(key=lambda result: arguments.cases.index(result["case"]))
    report = {"machine": machine(), "device": arguments.device, "tiny": arguments.tiny}
    report["cases"] = results
    text = markdown(report)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "gpu.json").write_text(json.dumps(report, indent=1))
    (arguments.out / "gpu.md").write_text(text)
    print(text)


def why_not(case: str, device: str) -> str | None:
    """Why a case cannot be measured on this machine, or None."""
    import torch

    variant = case.split("-")[1]
    if device == "cuda" and not torch.cuda.is_available():
        return f"no CUDA device (torch {torch.__version__})"
    if device == "cpu" and variant == "vllm":
        return "vLLM needs a CUDA device"
    if device == "cpu" and variant == "deterministic":
        return "changes nothing on a CPU"
    if variant == "vllm" and importlib.util.find_spec("vllm") is None:
        return "vllm is not installed"
    return None


def measure(cases: list[str], device: str, tiny: bool) -> list[dict[str, Any]]:
    """gpu_shapes.py's results of the cases, one after another, with the plan's numbers."""
    environment = os.environ | {"DEVICE": device, "HF_HUB_OFFLINE": "1", "ALL_SECONDS": "1800"}
    environment |= {"CASE_SECONDS": "300", "SHORT": "1" if tiny else ""}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        workspace.make(folder)
        environment["PYTHONPATH"] = str(folder)
        for verb in (["make"], ["plan"], ["run", *cases], ["table"]):
            command = [sys.executable, str(SHAPES), *verb]
            done = subprocess.run(  # noqa: S603  (no shell, and the command is ours)
                command, cwd=folder, env=environment, stdout=sys.stderr, check=False
            )
            if done.returncode:
                sys.exit(f"gpu_shapes.py {verb[0]} ended with {done.returncode}")
        results: list[dict[str, Any]] = json.loads((folder / "cases.json").read_text())
    for result in results:
        if "failed" in result:
            result["not measured"] = f"failed: {result['failed']}"
    return results


def machine() -> dict[str, Any]:
    """The card, its driver and the versions; on a machine without a card, its processor."""
    import torch

    from regrpo.core import hardware

    facts: dict[str, Any] = {"date": datetime.now(UTC).date().isoformat(), "card": None}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        driver = None
        if shutil.which("nvidia-smi"):
            done = subprocess.run(query, capture_output=True, text=True, check=False)  # noqa: S603  (no shell, and the command is ours)
            driver = done.stdout.strip()
        facts |= {
            "card": properties.name,
            "memory": properties.total_memory,
            "capability": f"{properties.major}.{properties.minor}",
            "driver": driver,
        }
    versions = {name: found for name in PACKAGES if (found := version(name))}
    return facts | {
        "processor": hardware.cpu_model(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "versions": versions,
    }


# --- tables -----------------------------------------------------------------------------------


def markdown(report: Mapping[str, Any]) -> str:
    facts = report["machine"]
    results = {result["case"]: result for result in report["cases"]}
    name = facts["card"] or facts["processor"]
    about = [f"Python {facts['python']}"]
    if facts["card"]:
        about += [f"driver {facts['driver']}", f"CUDA {facts['cuda']}"]
    about += [f"{package} {version}" for package, version in facts["versions"].items()]
    model = "a tiny model" if report["tiny"] else "gemma-3-1b-pt's shapes"
    text = [
        f"### {name}, {facts['date']}",
        f"{', '.join(about)}. On {report['device']}, {model} with random weights.",
        *section("Speed", SPEED_HEAD, [speed_row(result) for result in report["cases"]]),
        FORMULA,
        *section("A step by phase, seconds", PHASES_HEAD, phase_rows(report["cases"])),
        *section("Peak memory beside `regrpo plan`, GB", MEMORY_HEAD, memory_rows(report)),
        *section("What `deterministic: true` costs", COST_HEAD, cost_rows(results)),
        *section("Against TRL alone (benchmarks/bare_trl.py)", BARE_HEAD, bare_rows(results)),
    ]
    return "\n\n".join(text) + "\n"


def section(title: str, head: Row, rows: list[Row]) -> list[str]:
    """A title and a Markdown table, whose short rows are filled up."""
    lines = [head, ["---"] * len(head)]
    lines += [row + [""] * (len(head) - len(row)) for row in rows]
    return [f"**{title}**", "\n".join(f"| {' | '.join(line)} |" for line in lines)]


def missing(result: Result | None) -> str | None:
    """What stands in a table for a case that was not measured; None for one that was."""
    if result is None:
        return "not measured: not among --cases"
    why = result.get("not measured")
    return f"not measured: {why}" if why else None


SPEED_HEAD = [
    "case",
    "s/step",
    "tokens/s of the step",
    "tokens/s trained",
    "tokens/s generated",
    "MFU",
    "loading, s",
]


def speed_row(result: Result) -> Row:
    name = result["case"]
    if why := missing(result):
        return [name, why]
    if "questions_per_second" in result:
        asked = f"{result['questions_per_second']} questions/s"
        return [name, "", "", "", asked, "", f"{result['loading_seconds']}"]
    used = result["mfu"]
    return [
        name,
        f"{result['step_seconds']:.3f}",
        whole(result["tokens_per_second"]),
        whole(result["tokens_per_second_trained"]),
        whole(result["tokens_per_second_generated"]),
        "not measured" if used is None else f"{used} %",
        f"{result['loading_seconds']}",
    ]


def whole(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


PHASES_HEAD = ["case", *STEP, "first step"]


def phase_rows(results: list[Result]) -> list[Row]:
    rows = []
    for result in results:
        if why := missing(result):
            rows.append([result["case"], why])
        elif "phases" in result:
            seconds = [f"{result['phases'][name]:.3f}" for name in STEP]
            rows.append([result["case"], *seconds, f"{result['first_step_seconds']:.2f}"])
    return rows


MEMORY_HEAD = ["case", "phase", "plan", "measured", "difference"]


def memory_rows(report: Mapping[str, Any]) -> list[Row]:
    """By phase on a GPU: allocated and CUDA's context; on a CPU the process at its highest."""
    rows = []
    for result in report["cases"]:
        if why := missing(result):
            rows.append([result["case"], why])
            continue
        names = ["load", "train", "generate"]
        if result["case"].endswith("-saved"):
            names.append("save")
        planned = {name: result[f"plan_{name}"] for name in names if f"plan_{name}" in result}
        if report["device"] == "cpu":
            peaks = {"the process": (max(planned.values(), default=0), result["host_peak"])}
        else:
            peaks = {name: (total, on_gpu(result, name)) for name, total in planned.items()}
        for phase, (total, measured) in peaks.items():
            if total and measured:
                difference = f"{total / measured - 1:+.1%}"
                sizes = [f"{total / 1e9:.2f}", f"{measured / 1e9:.2f}"]
                rows.append([result["case"], phase, *sizes, difference])
    return rows


def on_gpu(result: Result, phase: str) -> int:
    """Bytes on the device at most; where vLLM's engine may be a process of its own, all in use."""
    if "vllm" in result["case"]:
        used = dict(result["used"])
        while_generating: int = used.pop(GENERATION, 0)
        return while_generating if phase == "generate" else max(used.values(), default=0)
    allocated: int = result[f"allocated_{phase}"]
    return allocated + result["context"] if allocated else 0


COST_HEAD = ["stage", "s/step without", "s/step with", "ratio"]


def cost_rows(results: Mapping[str, Result]) -> list[Row]:
    pairs = {"sft": "sft-lora-saved", "grpo": "grpo-lora"}
    return [
        ratio_row(stage, results.get(without), results.get(f"{stage}-deterministic"))
        for stage, without in pairs.items()
    ]


def ratio_row(name: str, first: Result | None, second: Result | None) -> Row:
    """Seconds a step of two cases, and how many times as long the second takes."""
    for result in (first, second):
        if why := missing(result):
            return [name, why]
    assert first  # noqa: S101  (tells mypy a type, checks no input)
    assert second  # noqa: S101  (tells mypy a type, checks no input)
    before, after = first["step_seconds"], second["step_seconds"]
    return [name, f"{before:.3f}", f"{after:.3f}", f"{after / before:.3f}"]


BARE_HEAD = ["stage", "s/step, TRL", "s/step, regrpo", "ratio", "the last step's numbers"]


def bare_rows(results: Mapping[str, Result]) -> list[Row]:
    """The same settings, data and model; the numbers of the last step say that it was the same."""
    rows = []
    for stage, ours in (("sft", "sft-lora-saved"), ("grpo", "grpo-lora")):
        bare, own = results.get(f"{stage}-lora-bare"), results.get(ours)
        row = ratio_row(stage, bare, own)
        if len(row) > 2 and bare and own:
            row.append(same_numbers(bare["numbers"], own["numbers"]))
        rows.append(row)
    return rows


def same_numbers(bare: Mapping[str, float], own: Mapping[str, float]) -> str:
    """Whether two trainings logged the same, to the digit, or what differs."""
    if bare == own:
        return f"equal ({', '.join(own)})"
    names = [name for name in own if bare.get(name) != own[name]]
    return "; ".join(f"{name} {bare.get(name)} and {own[name]}" for name in names)


if __name__ == "__main__":
    main()
