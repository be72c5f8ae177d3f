"""Miniature projects.

The real code with a profile small enough to run the real pipeline in a test.
"""

from __future__ import annotations

import atexit
import compileall
import functools
import io
import pickle
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from regrpo.core.processes import clean_environment

ROOT = Path(__file__).parents[2]


CODE = (
    "stages",
    "regrpo",
    "custom",
    "profiles",
    "dvc.yaml",
    "params.yaml",
    "pyproject.toml",
    "constraints.txt",
    ".dvcignore",
    ".gitignore",
)


MODEL_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
}
"""What a model folder without adapter holds, and nothing else."""


SUMS = {
    "kind": "reasoning_gym",
    "task": "chain_sum",
    "size": 6000,
    "config": {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1},
    "license": "Apache-2.0",
}
"""The default's questions, fewer of them."""


MINIATURE: dict[str, dict[str, Any]] = {
    "prepare": {"source": SUMS, "eval": 24, "dev": 12, "sft": 0.6},
    "validate": {"min_rows": 10},
    "sft": {
        "max_steps": 40,
        "per_device_train_batch_size": 16,
        "warmup_steps": 5,
        "logging_steps": 10,
        "threads": 1,
    },
    "grpo": {
        "max_steps": 4,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "warmup_steps": 1,
        "dev_every": 2,
        "sample_every": 2,
        "threads": 1,
        "weight_decay": 0.1,
    },  # it moves the weights where no answer is right
    "evaluate": {"batch_size": 24, "bootstrap": 500, "threads": 1},
}


RESUMABLE: dict[str, dict[str, Any]] = {
    "prepare": {"eval": 24, "dev": 12, "sft": 0.6},
    "validate": {"min_rows": 10},
    "sft": {
        "max_steps": 60,
        "per_device_train_batch_size": 16,
        "warmup_steps": 5,
        "logging_steps": 5,
        "save_steps": 5,
    },
    "grpo": {
        "max_steps": 12,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "warmup_steps": 1,
        "dev_every": 4,
        "sample_every": 2,
        "save_steps": 1,
    },
    "evaluate": {"batch_size": 24, "bootstrap": 200},
}
"""A pipeline that saves a checkpoint every few steps, to be interrupted and gone on with."""


def edit_yaml(path: Path, sections: Mapping[str, Mapping[str, Any]]) -> None:
    """Set keys of sections in a profile, keeping the rest."""
    path.write_text(_edited(path.read_text(), pickle.dumps(sections)))


@functools.cache
def _edited(text: str, sections: bytes) -> str:
    """A profile's text with other values; reading and writing it take a fifth of a second."""
    yaml, stream = YAML(), io.StringIO()
    profile = yaml.load(text)
    for section, values in pickle.loads(sections).items():  # noqa: S301  (made above)
        profile[section].update(values)
    yaml.dump(profile, stream)
    return stream.getvalue()


def environment(**extra: str) -> dict[str, str]:
    """The environment of a stage, offline."""
    return clean_environment(**({"HF_HUB_OFFLINE": "1"} | extra))


def run(
    folder: Path, *command: str, check: bool = True, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder; with `check`, a failure shows what was said."""
    done = subprocess.run(
        command, cwd=folder, env=environment(**extra), capture_output=True, text=True, check=False
    )
    if check and done.returncode:
        raise AssertionError(
            f"{command} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        )
    return done


@functools.cache
def _compiled_code() -> Path:
    """The project's code with its bytecode, which no process that reads a copy compiles again."""
    kept = tempfile.TemporaryDirectory(prefix="regrpo-code-")
    atexit.register(kept.cleanup)
    folder = Path(kept.name)
    for name in CODE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, folder / name)
    for name in ("stages", "regrpo", "custom"):
        compileall.compile_dir(folder / name, quiet=1)
    return folder


def make_project(
    folder: Path, sections: Mapping[str, Mapping[str, Any]] = MINIATURE, with_git: bool = True
) -> Path:
    """A fresh repository with the project's own code and a small profile.

    Committed, DVC initialised.
    """
    shutil.copytree(_compiled_code(), folder, dirs_exist_ok=True)
    for raw in ("data/raw", "models/raw"):
        (folder / raw).mkdir(parents=True)
        (folder / raw / ".gitkeep").touch()
    edit_yaml(folder / "params.yaml", sections)
    if with_git:
        run(folder, "git", "init", "-q", "-b", "main")
        run(folder, "git", "config", "user.name", "test")
        run(folder, "git", "config", "user.email", "test@example.invalid")
        # The project's own: two starts of dvc would take three seconds.
        (folder / ".dvc").mkdir()
        for name in ("config", ".gitignore"):
            shutil.copyfile(ROOT / ".dvc" / name, folder / ".dvc" / name)
        shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots")
        commit(folder, "start")
    return folder


def run_pipeline(folder: Path) -> None:
    """The whole pipeline, told to MLflow by a process of its own; the results are committed."""
    run(folder, "dvc", "repro")
    run(folder, "python", "-m", "regrpo.cli", "sync")
    commit(folder, "results")


def commit(folder: Path, message: str) -> None:
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-q", "--allow-empty", "-m", message)
