"""What the stage base_model says of a base, for benchmarks that bring one without running it."""

from __future__ import annotations

from pathlib import Path


def write_base_facts(base: Path, file: Path, source: str) -> None:
    """Write to `file` what reports/base_model/source.json would say of the model folder `base`."""
    from regrpo.core import conversation, files
    from regrpo.inputs.inspection import inspect

    facts = inspect(base) | {"conversation": conversation.settle(base)}
    files.write_json(file, facts | {"kind": "local", "files": [], "source": source})
