"""The card, processes, packages and the vLLM server that a profile asks for."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from regrpo.commands import plan as command
from regrpo.plan import (
    machine,
)
from regrpo.plan.findings import Target
from tests.support.plans import GEMMA, GLOO, HERE, SERVER
from tests.support.projects import edit_yaml


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
    assert f"supports vllm{machine.vllm_range()}" in found["why"]


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
    assert found[0]["would_do"] == f"pip install 'vllm{machine.vllm_range()}'"


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
