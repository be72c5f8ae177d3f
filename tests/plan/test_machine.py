"""The card, processes, packages and the vLLM server that a profile asks for."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest

from regrpo.commands import clone
from regrpo.commands import plan as command
from regrpo.plan import check, machine, rules
from regrpo.plan.findings import GIB, Target
from regrpo.plan.workload import CUDA
from stages import grpo, sft
from tests.support.plans import GEMMA, GLOO, HERE, SERVER, VLLM
from tests.support.projects import edit_yaml
from tests.support.trainings import section


@pytest.mark.parametrize(
    ("content", "why", "would_do"),
    [
        ("distributed_type: FSPD", "'FSPD' is not a valid DistributedType", "fsdp2.yaml"),
        (
            "distributed_type: FSDP\nfsdp_konfig: {}",
            "unknown keys (['fsdp_konfig'])",
            "fsdp2.yaml",
        ),
        (
            "distributed_type: FSDP\nfsdp_config: null",
            "FSDP1 is asked for",
            "launch without config",
        ),
        (
            "distributed_type: MULTI_CPU",
            "accelerate starts one process for MULTI_CPU",
            "launch without config",
        ),
    ],
)
def test_accelerate_judges_its_own_configuration(
    here: Path, content: str, why: str, would_do: str
) -> None:
    rest = "\nmixed_precision: 'no'\nuse_cpu: false\ndebug: false\n"
    (here / "profiles/launch/mine.yaml").write_text(content + rest)
    edit_yaml(
        here / "params.yaml", {"sft": {"launch": {**GLOO, "config": "profiles/launch/mine.yaml"}}}
    )
    (found,) = [
        one
        for one in command.make(Path("params.yaml"), HERE)["findings"]
        if one["level"] == "wrong"
    ]
    assert found["key"] == "sft.launch.config"
    assert why in found["why"]
    assert would_do in found["would_do"]


def test_zero_needs_deepspeed(here: Path) -> None:
    launch = {"processes": 2, "backend": "nccl", "config": "profiles/launch/zero3.yaml"}
    edit_yaml(here / "params.yaml", {"sft": {"device": "cuda", "launch": launch}})
    found = command.make(Path("params.yaml"), HERE)["findings"]
    assert ("sft.launch.config", "ZeRO-3 needs deepspeed, which is not installed") in [
        (one["key"], one["why"]) for one in found if one["level"] == "needed"
    ]


def test_a_vllm_server_is_needed_and_takes_nothing_of_the_trainers_gpu(
    here: Path, gemma: Path
) -> None:
    edit_yaml(gemma, {"grpo": SERVER})
    told = command.make(gemma, HERE)
    assert not [one for one in told["findings"] if one["level"] == "wrong"]
    (needed,) = [one for one in told["findings"] if one["key"] == "grpo.vllm_mode"]
    assert (
        "a vLLM server at 0.0.0.0:8000, on GPUs of its own beside the 1 that train" in needed["why"]
    )
    assert "trl vllm-serve --config profiles/launch/vllm-server.yaml" in needed["would_do"]
    assert not [one for one in told["phases"][:3] if "vLLM" in one["terms"]]


def test_the_range_of_vllm_that_would_do_is_said_where_none_is_installed(
    here: Path, gemma: Path
) -> None:
    (found,) = [
        one for one in command.make(gemma, HERE)["findings"] if one["key"] == "grpo.use_vllm"
    ]
    assert f"supports vllm{machine.wanted_version('trl', 'vllm')}" in found["why"]


def test_more_gpus_than_the_profile_launches_are_told(here: Path, gemma: Path) -> None:
    told = command.make(Path(GEMMA), Target("H100", 80 * 2**30, gpus=4, stated=True))
    (finding,) = [one for one in told["findings"] if one["key"] == "sft.launch"]
    assert finding["why"] == "starts 1 process, and --gpus says 4"
    assert finding["would_do"].startswith("launch: {processes: 4, backend: nccl}")
    assert told["target"]["gpus"] == 4
    assert "gradients, DDP's buckets" in told["phases"][0]["terms"]


def test_what_a_gpu_machine_needs_is_no_failure_on_another(here: Path, gemma: Path) -> None:
    found = command.make(Path(GEMMA), HERE)["findings"]
    needed = {one["key"]: one["would_do"] for one in found if one["level"] == "needed"}
    assert needed["grpo.use_vllm"] == "pip install -c constraints.txt -e '.[cuda]'"


def test_what_is_missing_on_the_gpu_machine_itself_is_a_failure(here: Path, gemma: Path) -> None:
    found = command.make(Path(GEMMA), dataclasses.replace(HERE, here=True))["findings"]
    assert {"grpo.use_vllm"} <= {one["key"] for one in found if one["level"] == "wrong"}


@pytest.mark.parametrize("version", ["0.10.0", "0.99.1+cu129"])
def test_a_vllm_outside_of_trls_range_is_refused(
    here: Path, gemma: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    real = machine.installed
    monkeypatch.setattr(
        machine, "installed", lambda name: version if name == "vllm" else real(name)
    )
    found = [one for one in command.make(Path(GEMMA), HERE)["findings"] if one["level"] == "wrong"]
    assert [one["key"] for one in found] == ["grpo.use_vllm"]
    assert found[0]["why"].startswith(f"vLLM {version} is installed, and TRL ")
    assert found[0]["would_do"] == f"pip install 'vllm{machine.wanted_version('trl', 'vllm')}'"


def test_the_pinned_vllm_is_held_against_trls_range_where_none_is_installed(
    here: Path, gemma: Path
) -> None:
    text = (here / "constraints.txt").read_text()
    assert "\nvllm==" in text
    (here / "constraints.txt").write_text(text.replace("\nvllm==", "\nvllm==9."))
    found = [one for one in command.make(Path(GEMMA), HERE)["findings"] if one["level"] == "wrong"]
    assert "is pinned in constraints.txt, and TRL" in found[0]["why"]


def test_a_gguf_base_without_its_extra_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "models/raw/base.gguf").write_bytes(b"GGUF")
    edit_yaml(
        here / "params.yaml",
        {"base_model": {"source": {"kind": "gguf", "file": "base.gguf", "license": "MIT"}}},
    )
    monkeypatch.setitem(sys.modules, "gguf", None)
    found = command.make(Path("params.yaml"), HERE)["findings"]
    (needed,) = [one for one in found if one["key"] == "base_model.source"]
    assert needed["level"] == "needed"
    assert "pip install -c constraints.txt gguf" in needed["would_do"]


# --- what this machine's GPU is like --------------------------------------------------------------


def test_a_driver_too_old_for_the_build_of_torch_is_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch says so in `init`; before, `is_available` only says no."""
    import torch

    def init() -> None:
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found version 11040). Please update your "
            "GPU driver by downloading and installing a new version from the URL: …"
        )

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", init)
    edit_yaml(here / "params.yaml", {"sft": {"device": "cuda"}})
    found = command.make(Path("params.yaml"), HERE)["findings"]
    (needed,) = [one for one in found if one["key"] == "device"]
    assert needed["level"] == "needed"
    assert needed["why"].endswith(
        "for CUDA 13.0: The NVIDIA driver on your system is too old (found version 11040)"
    )
    errors = rules.refusals({"sft": section(sft.Params, "sft", device="cuda")}, rules.READY)
    assert [(one.where, one.found) for one in errors] == [("sft.device", f"none ({needed['why']})")]


def test_cuda_without_a_gpu_is_refused_by_check_and_planned_for_another_machine(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.version, "cuda", None)  # as in a CPU build
    errors = rules.refusals({"grpo": section(grpo.Params, "grpo", device="cuda")}, rules.READY)
    assert [one.where for one in errors] == ["grpo.device"]
    assert "is no CUDA build" in errors[0].found
    assert rules.refusals({"grpo": section(grpo.Params, "grpo")}, rules.READY) == []
    edit_yaml(here / "params.yaml", {"grpo": {"device": "cuda"}})
    planned = command.make(Path("params.yaml"), HERE)
    assert planned["verdict"] == "fits"


def test_what_a_card_lacks_is_refused_by_check(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "Tesla T4")
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: False)
    half = section(sft.Params, "sft", device="cuda", bf16=True)
    launch = {"processes": 2, "backend": "nccl"}
    several = section(sft.Params, "sft", device="cuda", bf16=False, launch=launch)
    found = [rules.refusals({"sft": one}, rules.READY) for one in (half, several)]
    assert [[one.where for one in some] for some in found] == [
        ["sft.bf16"],
        ["sft.launch.backend"],
    ]
    assert "backend: gloo" in found[1][0].remedy
    there = dataclasses.replace(HERE, here=True)
    (planned,) = machine.launched("sft", several, there, "DDP")
    assert (planned.level, planned.key) == ("wrong", "sft.launch.backend")


def test_what_other_processes_hold_of_the_gpu_is_taken_off(
    here: Path, gemma: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA L4")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (4 * GIB, 24 * GIB))
    target = command.find_target(None, None, None)
    assert target.taken == 20 * GIB - CUDA.context
    assert target.memory == 24 * GIB - target.taken
    made = command.make(gemma, target)
    (found,) = [one for one in made["findings"] if "other processes hold" in one["why"]]
    assert (found["level"], found["key"]) == ("warning", "device")
    assert not all(one["fits"] for one in made["phases"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (23.5 * GIB, 24 * GIB))
    assert command.find_target(None, None, None).taken == 0


# --- vLLM -----------------------------------------------------------------------------------------


def stand_in_for_vllm(folder: Path, monkeypatch: pytest.MonkeyPatch, wants: str) -> None:
    """An installed vLLM of TRL's range that fails on every import, as without a GPU or hub."""
    package = folder / "site" / "vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('asked for the hub')\n")
    info = folder / "site" / "vllm-0.30.0.dist-info"
    info.mkdir()
    head = "Metadata-Version: 2.1\nName: vllm\nVersion: 0.30.0\n"
    (info / "METADATA").write_text(f"{head}Requires-Dist: torch{wants}\n")
    monkeypatch.syspath_prepend(str(folder / "site"))


def test_plan_asks_nothing_of_an_installed_vllm_offline_and_without_a_model(
    here: Path, gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_vllm(tmp_path, monkeypatch, "")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert not (here / "models/sft").exists()
    made = command.make(gemma, HERE)
    assert made["verdict"] == "fits"
    assert "grpo.use_vllm" not in [one["key"] for one in made["findings"]]


def test_a_vllm_that_is_built_for_another_torch_is_refused(
    here: Path, gemma: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in_for_vllm(tmp_path, monkeypatch, "==2.0.1")
    (found,) = [one for one in command.make(gemma, HERE)["findings"] if one["level"] == "wrong"]
    assert found["key"] == "grpo.use_vllm"
    assert found["why"].startswith("vLLM 0.30.0 is built for torch==2.0.1, and torch ")
    edit_yaml(here / "params.yaml", {"grpo": {"use_vllm": True}})
    checked = {one.key: one.why for one in check.check(Path("params.yaml"), clone.section_models())}
    assert checked["grpo.use_vllm"] == found["why"]


@pytest.mark.parametrize(
    ("settings", "biased"),
    [
        ({}, []),
        ({"top_p": 0.9, "top_k": 20}, ["grpo.top_p", "grpo.top_k"]),
        ({"min_p": 0.1, "repetition_penalty": 1.1}, ["grpo.min_p", "grpo.repetition_penalty"]),
        ({"generation_kwargs": {"top_p": 0.9}}, ["grpo.top_p"]),
        ({"top_p": 0.9, "vllm_importance_sampling_correction": False}, []),
        ({"top_p": 0.9, "use_vllm": False}, []),
        ({"top_p": 1, "top_k": 0, "min_p": 0.0}, []),
    ],
)
def test_sampling_that_biases_trls_correction_is_warned_of(
    here: Path, settings: dict[str, Any], biased: list[str]
) -> None:
    edit_yaml(here / "params.yaml", {"grpo": VLLM | settings})
    found = command.make(Path("params.yaml"), HERE)["findings"]
    warned = [one for one in found if "correction is biased" in one["why"]]
    assert [one["key"] for one in warned] == biased
    assert {one["level"] for one in warned} <= {"warning"}
    for one in warned:
        assert "vllm_importance_sampling_correction: false" in one["would_do"]
