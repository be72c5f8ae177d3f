"""The one background process per repository that feeds MLflow from what the stages journal.

A stage never imports mlflow: it writes its journal, and the first one starts `python -m
regrpo.tracking.follower --follow`. That process holds a lock, makes a pass about every second, and
ends with the last pipeline. Files are the record: with no server in reach the journals wait.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time

from regrpo.core.errors import CannotCheck
from regrpo.core.text import shown_output
from regrpo.records.journal import journal_folder, pending
from regrpo.tracking import notes, state
from regrpo.tracking.address import sentence, tracking_uri
from regrpo.tracking.passes import open_store, sync_once
from regrpo.tracking.store import Store
from regrpo.tracking.sync import opened

EVERY = 1.0
"""Seconds between two passes."""
RETRY = 10.0
"""Seconds until it tries again after MLflow could not be reached."""


def follow() -> None:
    """Make pass after pass until nothing runs any more; one process per repository."""
    with contextlib.suppress(OSError):
        os.nice(10)
    while True:
        with state.locked(2) as held:
            if not held:
                return
            follow_until_idle()
        # A stage that began after the last look saw the lock taken and started no follower.
        if not any(journal.live for journal in pending()):
            return


def follow_until_idle() -> None:
    """Make passes as long as a stage or its dvc lives, or an experiment's reference is awaited."""
    store: Store | None = None
    with contextlib.ExitStack() as opened_stores:
        while True:
            state.bound_log()
            # Asked before the pass, so that what ends during it gets another one.
            alive = any(journal.live for journal in pending())
            try:
                if store is None:
                    store = opened_stores.enter_context(contextlib.closing(open_store()))
                done = sync_once(store)
            except Exception as error:  # whatever MLflow raises: a follower that dies helps nobody
                store = None
                opened_stores.close()
                _answer_with_error(error, RETRY if alive else 0)
                if not alive:
                    return
                continue
            if not alive and not done.waiting:
                return
            time.sleep(RETRY if done.failures else EVERY)


def _answer_with_error(error: Exception, seconds: float) -> None:
    """Answer every stage at once that MLflow cannot be reached, until it is time to try again."""
    problem, stuck = state.log_error(error), sentence(error)
    until = time.monotonic() + seconds
    while True:
        for journal in pending():
            journal.answer_with_error(problem, stuck)
        if time.monotonic() >= until:
            return
        time.sleep(0.2)


UI_SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
"""What `make ui` sets for MLflow's UI: without jobs it is two processes instead of fifteen."""


def open_ui(port: int = 5000) -> None:
    """Print the addresses of the experiment's saved view, and become MLflow's UI (`make ui`).

    The tracking URI stands in an environment variable: a command line is for everybody to read.
    """
    server = f"http://127.0.0.1:{port}"
    with opened() as store:
        addresses = notes.addresses(server, store.experiment_id)
    print(f"Open one of these (plain {server} shows MLflow's GenAI side first); stop with Ctrl+C:")
    for mode, address in addresses.items():
        print(f"{mode:<8} {address}", flush=True)
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port)]
    variables = os.environ | UI_SETTINGS | {"MLFLOW_BACKEND_STORE_URI": tracking_uri()}
    os.execve(sys.executable, [*command, "--workers", "1"], variables)  # noqa: S606  (no shell, and the command is ours)


@shown_output()
def main() -> None:
    match sys.argv[1:]:
        case ["--follow"]:
            if journal_folder().is_dir():
                follow()
        case ["--ui", *port]:
            try:
                open_ui(*map(int, port))
            except CannotCheck as error:
                sys.exit(str(error))
        case _:
            usage = "usage: python -m regrpo.tracking.follower --follow"
            sys.exit(f"{usage}  (`regrpo sync` is the command for people)")


if __name__ == "__main__":
    main()
