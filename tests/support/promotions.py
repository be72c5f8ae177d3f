"""Finished runs of known answers, with real records and journals, without training."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from pydantic import ConfigDict

from regrpo.compare import promote
from regrpo.core import files, profiles
from regrpo.core.settings import Section
from regrpo.records import stage_run
from regrpo.tracking import sync
from regrpo.train import doctor
from tests.support.projects import commit, edit_yaml, run

NAME = "regrpo-chain-sum"
QUESTIONS = 40


class Anything(Section):
    model_config = ConfigDict(extra="allow")


def answers(right: Sequence[int], first: int = 0, model: str = "grpo") -> pd.DataFrame:
    """Samples as evaluate writes them.

    QUESTIONS questions from `first` on, those in `right` answered rightly.
    """
    numbers = range(first, first + QUESTIONS)
    return pd.DataFrame(
        {
            "task": "heldout",
            "model": model,
            "id": [f"train-{n}" for n in numbers],
            "prompt": [f"{n}+1=" for n in numbers],
            "completion": "",
            "answer": [str(n + 1) for n in numbers],
            "value": [float(n in right) for n in numbers],
        }
    )


def execute(stage: str, samples: pd.DataFrame, history: Sequence[dict[str, float]]) -> None:
    """One stage in its real frame; its outputs say which parameters they come from."""
    pipeline = profiles.read_yaml(Path("dvc.yaml"))["stages"]
    inner = [dep for other in pipeline.values() for dep in other["deps"]]
    with stage_run.stage(stage, Anything) as frame:
        declared = [
            out for kind in ("outs", "metrics", "plots") for out in pipeline[stage].get(kind, [])
        ]
        for out in (next(iter(one)) if isinstance(one, dict) else one for one in declared):
            named = [dep for dep in inner if dep.startswith(f"{out}/")]
            for path in named or [out if "." in out else f"{out}/model.safetensors"]:
                text = f"{path} {sorted(dict(frame.params).items(), key=str)}\n"
                files.write_text(Path(path), "{}\n" if path.endswith(".json") else text)
        if stage == "select":  # every question goes on
            shutil.copyfile("data/prepared/train.parquet", "data/selected/train.parquet")
        if stage == "grpo":
            files.write_json(Path("reports/grpo/health.json"), doctor.examine(history))
        if stage == "evaluate":
            grpo = samples[samples["model"] == "grpo"]["value"]
            task = {
                "kind": "binary",
                "metric": "accuracy",
                "role": "headline",
                "description": "held-out questions",
                "n": len(grpo),
                "version": 1.0,
                "models": {"grpo": {"value": grpo.mean(), "ci95": [0.0, 1.0]}},
                "pairs": {},
            }
            files.write_json(
                Path("reports/evaluate/metrics.json"),
                {"headline": "heldout", "tasks": {"heldout": task}},
            )
            files.write_parquet(Path("reports/evaluate/samples.parquet"), samples)
            frame.log({"heldout/grpo": grpo.mean()})
        if stage == "model_card":
            files.write_text(
                Path(promote.CARD),
                f"---\nlanguage: en\n---\n\n# {NAME}\n\nThe | summary.\n\n## More\n",
            )


def finish(
    seed: int,
    samples: pd.DataFrame,
    stages: Sequence[str],
    history: Sequence[dict[str, float]] = (),
) -> None:
    """A finished run with that seed, committed and tagged as `run<seed>`, told to MLflow."""
    from dvc.repo import Repo

    folder = Path.cwd()
    edit_yaml(folder / "params.yaml", {"grpo": {"seed": seed}})
    commit(folder, "parameters")
    for stage in stages:
        execute(stage, samples, history)
    with Repo() as repo:
        repo.commit(force=True)
    commit(folder, "results")
    run(folder, "git", "tag", f"run{seed}")
    sync.sync()
