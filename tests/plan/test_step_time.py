"""Cards, their memory, and times by the roofline."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from regrpo import cli
from regrpo.core.errors import Refused
from regrpo.plan import (
    findings,
    model_shape,
    step_time,
)
from regrpo.plan.workload import Generation, Training
from tests.support.plans import GEMMA, small_config


@pytest.mark.parametrize("name", ["A40", "RTX 3060", "L40"])
def test_an_unknown_card_asks_for_its_memory(
    here: Path, gemma: Path, capsys: Any, name: str
) -> None:
    assert cli.main(["plan", "--profile", GEMMA, "--gpu", name]) == 2
    said = capsys.readouterr().err
    assert f"found {name}." in said
    assert "A100" in said
    assert cli.main(["plan", "--profile", GEMMA, "--gpu", name, "--gpu-memory", "48GiB"]) == 0
    assert f"no peak arithmetic and bandwidth are known for {name}" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize(
    ("name", "memory"),
    [
        ("A100-40GB", 40),
        ("A100 40GiB", 40),
        ("NVIDIA A100-SXM4-80GB", 80),
        ("rtx4090", 24),
        ("L40S", 48),
        ("L4", 24),
    ],
)
def test_a_card_is_known_by_its_whole_name_and_its_memory_by_what_that_says(
    name: str, memory: int
) -> None:
    assert step_time.memory_of(name) == memory


@pytest.mark.parametrize(
    ("text", "bytes_"), [("80GiB", 80 * 2**30), ("24 GB", 24 * 10**9), ("16", 16 * 2**30)]
)
def test_sizes_are_read_with_their_unit(text: str, bytes_: int) -> None:
    assert findings.size(text) == bytes_


@pytest.mark.parametrize("text", ["much", "-4GiB", "1.2.3GB", "0"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Refused, match="--gpu-memory"):
        findings.size(text)


def test_a_roofline_says_what_its_sources_say() -> None:
    shape = model_shape.read(small_config("Llama", 2))
    roof = step_time.of_card("NVIDIA H100 80GB HBM3", half=True)
    assert roof is not None
    assert roof.flops == pytest.approx(989e12 * step_time.TRAINING)
    assert roof.bandwidth == pytest.approx(3.35e12 * step_time.DECODING)
    assert step_time.of_card("GeForce 256", half=True) is None
    work = Training(batch=8, prompt=512, completion=512)
    slow = step_time.Roof(1e9, 1e15)  # bound by arithmetic: 6 N D, Kaplan et al. 2020
    weights = (
        shape.parameters - shape.embedding
    )  # looked up, not multiplied; the head is multiplied
    expected = 6 * weights * 8 * 1024 / 1e9
    assert step_time.train_seconds(shape, work, slow) > expected
    assert step_time.train_seconds(
        shape, dataclasses.replace(work, prompt=1, completion=1, batch=4096), slow
    ) == (pytest.approx(expected, rel=0.05))
    narrow = step_time.Roof(1e18, 1e6)  # bound by bandwidth: all weights for each token
    seconds = step_time.generate_seconds(shape, Generation(1, 1, 10), narrow, 4)
    assert seconds == pytest.approx(10 * 4 * shape.parameters / 1e6, rel=0.05)
