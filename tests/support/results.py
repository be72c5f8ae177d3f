"""What a pipeline left: its output files and its rows in MLflow."""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
from pathlib import Path


def outputs(folder: Path) -> dict[str, str]:
    """SHA-256 of every output file but the run.json records; the card without its marked block."""
    from regrpo.report.card import without_varying_block

    found = {}
    for root in (
        "data/prepared",
        "data/selected",
        "models/base",
        "models/sft",
        "models/grpo",
        "reports",
    ):
        for file in sorted((folder / root).rglob("*")):
            if file.is_file() and file.name not in ("run.json", ".gitignore"):
                name = file.relative_to(folder).as_posix()
                data = file.read_bytes()
                if name == "reports/model_card/README.md":
                    data = without_varying_block(data.decode()).encode()
                found[name] = hashlib.sha256(data).hexdigest()
    return found


def rows(folder: Path, kind: str) -> list[dict[str, str]]:
    """MLflow runs of a kind, straight from the store: name, status and tags."""
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as db, db:
        runs = {
            uuid: {"id": uuid, "name": name, "status": status}
            for uuid, name, status in db.execute("select run_uuid, name, status from runs")
        }
        for uuid, key, value in db.execute("select run_uuid, key, value from tags"):
            runs[uuid][key] = value
    return [one for one in runs.values() if one.get("regrpo.kind") == kind]
