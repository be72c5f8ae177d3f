"""regrpo sync: tell MLflow what journals, experiments and workspace hold and it does not."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from regrpo.core.text import count, one_line
from regrpo.evaluate.results import METRICS, MODELS, parse_metrics
from regrpo.records.journal import damaged_folder, enabled
from regrpo.tracking import address, state
from regrpo.tracking.sync import LIMIT, USUAL_LIMIT, sync


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "Safe to repeat. Exit code 2: MLflow could not be told; nothing is lost, run it again. "
        f"{LIMIT} names the seconds that it may take in all ({USUAL_LIMIT:.0f})."
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")


def run(args: argparse.Namespace) -> int:
    """Print each row made or ended (if none, the latest pipeline's) and where they are."""
    changed = sync(quiet=args.quiet)
    latest = state.latest_pipeline()
    damaged = sorted(folder.name for folder in damaged_folder().glob("*"))
    if damaged:
        print(
            f"sync: {count(len(damaged), 'journal')} cannot be read and will not be in MLflow: "
            f"{one_line(', '.join(damaged), 300)} (set aside in .regrpo/{damaged_folder().name}/; "
            "the stages' files are not touched, and deleting the folder ends this message)",
            file=sys.stderr,
        )
    if args.json:
        place = {"uri": address.shown_uri(), "experiment": address.experiment_name()}
        print(json.dumps(place | {"changed": changed, "latest": latest}, indent=2))
        return 0
    if args.quiet:
        return 0
    for row in changed or ([latest] if latest else []):
        print(f"{row['kind']:<9} {one_line(row['name']):<24} {row['status']:<9} {row['run_id']}")
    headline = _headline()
    if headline:
        print(headline)
    if enabled():
        where = f"{address.shown_uri()} (experiment {address.experiment_name()})"
        print(f"MLflow is up to date: {where}; look at it with `make ui`")
    else:
        print("Tracking is off (REGRPO_TRACKING).")
    return 0


def _headline() -> str | None:
    """The workspace's result in one line. Returns None if it has none."""
    path = Path(METRICS)
    evaluation = parse_metrics(path.read_bytes()) if path.exists() else None
    task = evaluation.headline_task if evaluation else None
    if evaluation is None or task is None:
        return None
    models = [model for model in MODELS if model in task.models]
    values = ", ".join(f"{model} {task.models[model].value:.3f}" for model in models)
    headline = one_line(evaluation.headline)
    return f"result    {headline}: {values}; more in reports/model_card/README.md"
