"""What lies where in a released folder: at its path in the repository, but for the model on top.

Needs nothing but Python's own library, as all that `verify` imports.
"""

from __future__ import annotations

from regrpo.core.files import Json

SCHEMA_VERSION = 1
"""Of release.json, and of how the card is rewritten."""
CARD, ABOUT, CRATE, SUMS = "README.md", "release.json", "ro-crate-metadata.json", "SHA256SUMS"
LICENSE, NOTICE = "LICENSE", "NOTICE"
WRITTEN = (CARD, ABOUT, CRATE, SUMS, LICENSE, NOTICE)
"""What a release adds to the run's own files."""
SIGNATURE = "model.sig"
"""The signature's usual name, by which a published folder has it on top."""
AROUND = (SIGNATURE, ".cache", ".git", ".gitattributes")
"""What the hub, its client and git put into a folder that is got from there: no part of it."""
RUN_CARD = "reports/model_card/README.md"
METRICS = "reports/evaluate/metrics.json"
MODEL = "models/grpo/"
DATASET = "data/prepared/dataset.json"
PIPELINE = ("dvc.lock", "dvc.yaml")
ALWAYS = (RUN_CARD, DATASET, "reports/evaluate/samples.parquet")
KINDS = (".json", ".csv", ".png")
"""Of the reports, these kinds of files; tables of training texts stay with whoever trained."""


def released_path(path: str) -> str | None:
    """Where a file of the repository lies in a release. Returns None if it is not handed on."""
    if path.startswith(MODEL):
        return path.removeprefix(MODEL)
    if path in ALWAYS or (path.startswith("reports/") and path.endswith(KINDS)):
        return path
    return None


def measured(metrics: Json) -> dict[str, float]:
    """{"task model": value} of every model on every task in reports/evaluate/metrics.json."""
    found = {}
    for name, task in metrics["tasks"].items():
        for model, estimate in task["models"].items():
            found[f"{name} {model}"] = estimate["value"]
    return found
