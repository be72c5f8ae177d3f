"""The look-up of MLflow's rows with which regrpo.records.find resolves the names of runs."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from regrpo.core.errors import CannotCheck
from regrpo.core.files import Json
from regrpo.tracking.address import name_error, shown_uri, tracking_uri
from regrpo.tracking.reader import Reader, open_reader

T = TypeVar("T")
PATIENCE = 8.0
"""Seconds that MLflow is waited for; a server may be silent for minutes."""


class Lookup:
    """MLflow's rows by id or tag. The store is opened at the first question: that takes seconds.

    Every question raises CannotCheck if there is no store, or no answer in time.
    """

    def run(self, run_id: str) -> Json | None:
        """A run by its id (see `Reader.run`)."""
        return self._ask(lambda reader: reader.run(run_id))

    def tagged(self, **tags: str) -> list[Json]:
        """The runs with these tags (see `Reader.tagged`)."""
        return self._ask(lambda reader: reader.tagged(**tags))

    def _ask(self, question: Callable[[Reader], T]) -> T:
        answer: Future[T] = Future()
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # where alembic tells its migrations
                reader = open_reader(tracking_uri())
                # A daemon, so that an unanswered question does not keep the process alive.
                threading.Thread(
                    target=_answer, args=(answer, question, reader), daemon=True
                ).start()
                return answer.result(PATIENCE)
        except TimeoutError:
            found = f"no answer within {PATIENCE:.0f} s"
        except CannotCheck as error:
            found = error.found
        # MLflow, its database layer and its HTTP client raise classes of their own.
        except Exception as error:
            found = name_error(error)
        raise CannotCheck(
            f"MLflow ({shown_uri()})",
            expected="an answer",
            found=found,
            remedy="Start the server or set MLFLOW_TRACKING_URI; `--no-mlflow` does without.",
        )


def _answer(answer: Future[T], question: Callable[[Reader], T], reader: Reader) -> None:
    try:
        answer.set_result(question(reader))
    except Exception as error:
        answer.set_exception(error)
