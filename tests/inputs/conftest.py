"""What the gate is run with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from regrpo.core.prompts import Prompt
from regrpo.core.tokenizers import character_tokenizer
from regrpo.core.verifiers import Verifier
from regrpo.inputs import gate
from stages import validate
from tests.support.splits import (
    CANONICAL,
    EXACT,
    LIMITS,
    Splits,
    table,
    write,
)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the gate needs of a base model: tokenizer and window."""
    folder = tmp_path_factory.mktemp("base")
    character_tokenizer(["<answer>", "</answer>"]).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 64}')
    return folder


@pytest.fixture(scope="session")
def count(base: Path) -> Callable[[Sequence[Prompt]], list[int]]:
    return validate.token_counter(base)


@pytest.fixture(scope="session")
def check(
    count: Callable[..., list[int]], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., gate.Verdict]:
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
        return gate.check(given, CANONICAL, verifier, count, limits, docs)

    return run_gate
