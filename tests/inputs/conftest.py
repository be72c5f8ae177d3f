"""What the gate is run with, and a model that a test may spoil."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from regrpo.core.answers.protocol import Verifier
from regrpo.core.tokenizers import character_tokenizer
from regrpo.inputs import gate
from tests.support.splits import (
    CANONICAL,
    EXACT,
    LIMITS,
    Splits,
    table,
    trip_on,
    write,
)

FOREIGN = "２４\ufffd\U0001ffff\u0301\r\t\x1b"
"""Characters beyond printable ASCII that faults are planted with: the tokenizer can write them."""


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the gate needs of a base model: tokenizer and window."""
    folder = tmp_path_factory.mktemp("base")
    character_tokenizer(["<answer>", "</answer>", *FOREIGN]).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 64}')
    return folder


@pytest.fixture(scope="session")
def check(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., gate.Verdict]:
    """Runs the gate on splits that are written to files of their own."""

    def run_gate(
        splits: Splits,
        verifier: Verifier | None = EXACT,
        limits: gate.Limits = LIMITS,
        chat: bool = False,
        docs: Path | None = None,
    ) -> gate.Verdict:
        folder = tmp_path_factory.mktemp("splits")
        given = {
            name: write(folder / f"{name}.parquet", table(rows, chat))
            for name, rows in splits.items()
        }
        style = "chat" if chat else "text"
        trip = trip_on(base, style, verifier)
        return gate.check(given, CANONICAL, verifier, trip, limits, docs)

    return run_gate


@pytest.fixture
def raw(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """models/raw/mine, a copy that a test may spoil, in a working folder of its own.

    `model` is the fixture of the tests' own file.
    """
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model, tmp_path / "models/raw/mine")
    return tmp_path / "models/raw/mine"
