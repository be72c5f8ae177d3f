"""Observer: the journal through which a stage tells the tracker what happens.

It is files in .regrpo/journal/, one folder per executed stage: `open.json` (facts known at its
start), `metrics.jsonl` (as it goes), `files/` (reports and attachments), `closed.json` (how it
ended; `failed.json` waits to become it). The tracker adds `mlflow.json` (run id, how far it is)
and, when MLflow holds everything, the empty file `sent`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from regrpo.core import files
from regrpo.core.dvc import dvc_root, state_folder
from regrpo.core.files import Json
from regrpo.records import journal_files

METRIC_REPORTS = {"metrics.json": "", "verdict.json": "", "health.json": "health."}
"""Reports whose numbers are a stage's final metrics, and what goes before their names."""

NOTES = "mlflow.json"
METRICS_AT_ONCE = 2**16
"""Bytes of metrics.jsonl that are read and sent at once; a line that is longer comes alone."""


def enabled() -> bool:
    """Whether MLflow is used at all (REGRPO_TRACKING=off says no)."""
    return os.environ.get("REGRPO_TRACKING", "").lower() not in ("off", "0", "false", "no")


def journal_folder() -> Path:
    """Where the journals lie: in the root of the user's repository (not in git, not in DVC)."""
    return dvc_root() / ".regrpo" / "journal"


# --- the stage's end ------------------------------------------------------------------------------


class Journal:
    """The stage's end: opened at its start, written to while it runs, closed whatever happens."""

    def __init__(self, facts: Json) -> None:
        self._name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{facts['stage']}"
        (state_folder("journal") / self._name).mkdir()
        if not enabled():
            (self.folder / "sent").touch()
        # A full disk has no room for another file, but lets this one be renamed.
        files.write_json(self.folder / "failed.json", _end("FAILED", None, None))
        files.write_json(self.folder / "open.json", facts)

    @property
    def folder(self) -> Path:
        """Where it lies, also while the tracker has set it aside because it cannot be read."""
        folder = journal_folder() / self._name
        if folder.exists():
            return folder
        return damaged_folder() / self._name

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Append numbers (anything else is left out) under an optimizer or other step."""
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        row = {"step": step, "time": time.time(), "values": numbers}
        folder = self.folder
        folder.mkdir(parents=True, exist_ok=True)  # somebody may have removed .regrpo/
        with (folder / "metrics.jsonl").open("a", encoding="utf-8") as f:
            f.write(json.dumps(row) + "\n")

    def keep(self, source: Path, name: str) -> None:
        """Copy a file or folder to be logged as artifact `name`."""
        target = self.folder / "files" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, target)

    def close(self, status: str, record: Json | None) -> None:
        """Say how the stage ended: FINISHED (with its run.json), FAILED or KILLED, as in MLflow."""
        path = self.folder / "closed.json"
        try:
            files.write_json(path, _end(status, time.time(), record))
        except OSError:
            if status != "FAILED":
                raise
            (self.folder / "failed.json").rename(path)
            os.utime(path)

    def mlflow_run_id(self, is_following: Callable[[], bool], patience: float = 30.0) -> str | None:
        """The tracker's id for this run. None if it gave none within `patience` seconds."""
        started = time.monotonic()
        while enabled() and not (self.folder / NOTES).exists():
            waited = time.monotonic() - started
            # A tracker that was just started takes a moment to show.
            if waited > patience or (waited > 3.0 and not is_following()):
                return None
            time.sleep(0.05)
        return read_notes(self.folder).get("run_id")

    def trouble(self) -> str | None:
        """Why MLflow does not take this run, and what to do; None if it does, or may later."""
        return read_notes(self.folder).get("stuck")


def _end(status: str, ended: float | None, record: Json | None) -> Json:
    return {"status": status, "ended": ended, "record": record}


def read_notes(folder: Path) -> Json:
    """The tracker's notes. Garbled ones are none: it finds its run again, and notes it anew."""
    with contextlib.suppress(ValueError, FileNotFoundError):
        return journal_files.read(folder / NOTES, journal_files.Notes)
    return {}


# --- the tracker's end ----------------------------------------------------------------------------


class JournalReader:
    """The tracker's end: one journal as it lies there."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError (or OSError) if the journal's beginning is empty or garbled."""
        self.folder = folder
        self.facts = journal_files.read(folder / "open.json", journal_files.Facts)
        # A megabyte that is wanted once.
        del self.facts["diff"]
        self._notes: tuple[object, Json] = (None, {})

    def diff(self) -> str:
        """The uncommitted code that the stage ran with, or that it was too large; empty if none."""
        facts = journal_files.read(self.folder / "open.json", journal_files.Facts)
        return str(facts["diff"])

    @property
    def stage(self) -> str:
        """The stage's name."""
        return str(self.facts["stage"])

    @property
    def execution(self) -> str | None:
        """One id per pipeline execution (dvc process, DVC experiment, baseline).

        None for a stage run by hand.
        """
        if not self.facts["execution"]:
            return None
        identity = [self.facts[name] for name in ("execution", "experiment", "baseline")]
        return files.sha256_json(identity)[:32]

    @property
    def running(self) -> bool:
        """Whether the stage's process lives and has not closed the journal."""
        return not (self.folder / "closed.json").exists() and is_alive(self.facts["process"])

    @property
    def live(self) -> bool:
        """Whether more may come: the stage runs, or the dvc process that started it does."""
        return self.running or is_alive(self.facts["execution"])

    @property
    def closed(self) -> Json | None:
        """{status, ended, record}; None while the stage runs.

        A process that vanished without a word was killed.
        """
        # Asked first: a stage that ends between the two looks has closed its journal by then.
        running = self.running
        path = self.folder / "closed.json"
        if path.exists():
            closed = journal_files.read(path, journal_files.Closed)
            if closed["ended"] is None:
                closed["ended"] = path.stat().st_mtime
            return closed
        if running:
            return None
        signs = [self.folder / name for name in ("open.json", "metrics.jsonl")]
        last_sign = max(file.stat().st_mtime for file in signs if file.exists())
        return {"status": "KILLED", "ended": last_sign, "record": None}

    @property
    def tracker_notes(self) -> Json:
        """Its notes: run_id, parent_run_id, model_id, offset, ended; error, stuck."""
        version = _version(self.folder / NOTES)
        if version != self._notes[0]:
            self._notes = (version, read_notes(self.folder))
        return self._notes[1]

    def note(self, **values: Any) -> None:
        """Add to the tracker's notes; a run id takes the place of an earlier error."""
        notes = read_notes(self.folder) | values
        if notes.get("run_id"):
            notes.pop("error", None)
        files.write_json(self.folder / NOTES, notes)

    def answer_with_error(self, problem: str, stuck: str | None) -> None:
        """Note why MLflow has no run of this journal; `stuck` is told when the stage ends."""
        notes = self.tracker_notes
        answered = notes.get("run_id") or "error" in notes
        if not answered or notes.get("stuck") != stuck:
            # On a full disk the stage waits in vain, for a while.
            with contextlib.suppress(OSError):
                self.note(error=problem, stuck=stuck)

    def metrics_from(self, offset: int) -> Iterator[tuple[list[Json], int]]:
        """The whole lines of metrics.jsonl from byte `offset` on, METRICS_AT_ONCE at a time.

        Yields them with the offset behind them.
        """
        path = self.folder / "metrics.jsonl"
        size = path.stat().st_size if path.exists() else 0
        if offset > size:  # garbled; what MLflow has it does not take twice
            offset = 0
        if offset == size:
            return
        with path.open("rb") as f:
            while True:
                f.seek(offset)
                lines = f.readlines(METRICS_AT_ONCE)
                if lines and not lines[-1].endswith(b"\n"):  # it is being written
                    lines.pop()
                if not lines:
                    return
                whole = b"".join(lines)
                offset += len(whole)
                yield journal_files.read_lines(whole), offset

    def kept(self, name: str) -> bytes | None:
        """A kept file's bytes. Returns None if there is none of that name."""
        path = self.folder / "files" / name
        return path.read_bytes() if path.is_file() else None

    def reports(self) -> dict[str, bytes]:
        """The kept files that hold final metrics, by name."""
        kept = {name: self.kept(name) for name in METRIC_REPORTS}
        return {name: data for name, data in kept.items() if data is not None}

    def mark_sent(self) -> None:
        """MLflow holds everything of this journal, and of the execution that it belongs to."""
        (self.folder / "sent").touch()


_readers: dict[Path, tuple[object, JournalReader]] = {}
"""The pending journals as they were read last, and the versions of the files that were read."""


def pending() -> Iterator[JournalReader]:
    """The journals of which MLflow does not hold everything yet, oldest first.

    One that cannot be read (a power loss may empty or garble it) is set aside. The tracker asks
    several times a second: what has not changed since is not read again.
    """
    found = sorted(journal_folder().glob("*/open.json"))
    waiting = [path.parent for path in found if not (path.parent / "sent").exists()]
    for gone in _readers.keys() - set(waiting):
        del _readers[gone]
    for folder in waiting:
        version = [_version(folder / name) for name in ("open.json", "closed.json")]
        known = _readers.get(folder)
        if known and known[0] == version:
            yield known[1]
            continue
        try:
            journal = JournalReader(folder)
            _ = journal.closed
        except OSError:  # it may be there at the next look: a network's file system, full tables
            continue
        except ValueError:
            with contextlib.suppress(OSError):  # another process has done it
                damaged_folder().mkdir(exist_ok=True)
                folder.rename(damaged_folder() / folder.name)
            continue
        _readers[folder] = (version, journal)
        yield journal


def _version(path: Path) -> tuple[int, int, int] | None:
    """What tells a file from what it was before: inode, time and size. None if it is not there."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_ino, found.st_mtime_ns, found.st_size
    return None


def damaged_folder() -> Path:
    """Where journals are set aside that cannot be read."""
    return journal_folder().with_name("journal-damaged")


def journal_of(stage: str, run: str) -> JournalReader | None:
    """The journal of a stage's run. Returns None if it is not here or cannot be read."""
    for facts in sorted(journal_folder().glob(f"*-{stage}/open.json"), reverse=True):
        with contextlib.suppress(ValueError, OSError):
            journal = JournalReader(facts.parent)
            if journal.facts.get("run") == run:
                return journal
    return None


# --- processes ------------------------------------------------------------------------------------


def is_alive(process: Sequence[float] | None) -> bool:
    """Whether the process [id, start time in seconds] still runs; an unreaped one does not."""
    import psutil

    if not process:
        return False
    try:
        found = psutil.Process(int(process[0]))
        # Start times are derived from the boot time, which moves a little when the clock is set.
        same = abs(found.create_time() - process[1]) < 2
        return same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
