"""Resuming a killed sft or grpo from complete model checkpoints only, to the same bits as a run never killed.

transformers writes checkpoints in place and takes the highest number, whatever it lacks. Here a manifest with the
SHA-256 of every file is written last, and a run goes on from the newest checkpoint whose manifest holds; damaged ones
are removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback

from regrpo import files

MANIFEST = "manifest.json"
STATE = "regrpo_state.json"
NEEDED = ("optimizer.pt", "scheduler.pt", "trainer_state.json", STATE)
"""Without these, or the generators' states (a file per process), transformers goes on, silently wrong."""
KEPT = 2


class Stateful(Protocol):
    """Something of ours that a resumed run must find as it was (JSON values only)."""

    def state(self) -> Any: ...
    def restore(self, state: Any) -> None: ...


class TokenCount:
    """SFTTrainer's running count of tokens, which its checkpoints leave out (TRL 1.16)."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def state(self) -> int:
        return int(getattr(self.trainer, "_total_train_tokens", 0))

    def restore(self, state: int) -> None:
        self.trainer._total_train_tokens = state


class Manifests(TrainerCallback):  # type: ignore[misc]  # transformers is untyped to mypy
    """Completes each checkpoint that the trainer saves: our own state, then the manifest; keeps the newest two."""

    def __init__(self, parts: Mapping[str, Stateful]) -> None:
        self.parts = parts

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        files.write_json(folder / STATE, {name: part.state() for name, part in self.parts.items()})
        files.write_json(folder / MANIFEST, digests(folder))
        for old in by_step(Path(args.output_dir))[KEPT:]:
            shutil.rmtree(old)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a checkpoint folder but its manifest."""
    names = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): files.sha256(path) for path in names}


def by_step(folder: Path) -> list[Path]:
    """Checkpoint folders, the newest step first."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def is_complete(checkpoint: Path) -> bool:
    """Whether the manifest is there and every file is as it says."""
    try:
        manifest = files.read_json(checkpoint / MANIFEST)
        random_states = any(name.startswith("rng_state") for name in manifest)
        return random_states and set(NEEDED) <= set(manifest) and bool(manifest == digests(checkpoint))
    except (OSError, ValueError):
        return False


def newest_complete(folder: Path) -> Path | None:
    """The checkpoint to go on from; incomplete and damaged ones are removed. None where there is none.

    With REGRPO_NO_RESUME set, all are removed: the run starts from its beginning.
    """
    for checkpoint in by_step(folder):
        if not os.environ.get("REGRPO_NO_RESUME") and is_complete(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


@contextlib.contextmanager
def held(folder: Path) -> Iterator[Path]:
    """A stage key's checkpoint folder, for one run at a time (a second waits); removed once the run succeeded."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.with_suffix(".lock")
    with _locked(path):
        folder.mkdir(exist_ok=True)
        yield folder
        shutil.rmtree(folder)
        path.unlink()  # while it is held: whoever waits for it sees that, and makes another


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock on the file at `path`, which its holder may remove: then on the one that took its place."""
    while True:
        with path.open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"{path.stem}: another run of the same key is at work; waiting for it ...", flush=True)
                fcntl.flock(lock, fcntl.LOCK_EX)
            if _is_at(lock.fileno(), path):
                yield
                return


def _is_at(descriptor: int, path: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def fit(trainer: Any, folder: Path, parts: Mapping[str, Stateful]) -> None:
    """Train to the end, from the newest complete checkpoint in `folder` where there is one."""
    parts = {"tokens": TokenCount(trainer), **parts}
    trainer.add_callback(Manifests(parts))
    checkpoint = newest_complete(folder)
    if checkpoint:
        print(f"resuming from {checkpoint.name}", flush=True)
        for name, state in files.read_json(checkpoint / STATE).items():
            parts[name].restore(state)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
