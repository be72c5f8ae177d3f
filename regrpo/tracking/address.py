"""Where MLflow is, how it is opened to be looked at, and how its failures are named without passwords."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from regrpo.core.dvc import dvc_root
from regrpo.core.errors import CannotCheck, RegrpoError

if TYPE_CHECKING:
    from regrpo.tracking.writer import Reader


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or mlflow.db in the root of the user's repository (also from DVC's temporary workspaces)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{dvc_root() / 'mlflow.db'}"


def shown_uri() -> str:
    """The tracking URI without user and password."""
    return without_password(tracking_uri())


def without_password(text: str) -> str:
    """A text without the user and password of the tracking URI, which libraries quote in their messages."""
    user = urlsplit(tracking_uri()).netloc.rpartition("@")[0]
    return text.replace(f"{user}@", "") if user else text


def experiment_name() -> str:
    """The MLflow experiment: MLFLOW_EXPERIMENT_NAME, or regrpo."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "regrpo"


def name_error(error: Exception) -> str:
    """An error's class and first line, without a password; long ones without their middle."""
    line = without_password(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
    return (
        line if len(line) <= 300 else f"{line[:180]} … {line[-117:]}"
    )  # an HTTP error tells its cause last


@contextlib.contextmanager
def reading() -> Iterator[Reader]:
    """The store, only to be looked at: nothing is made.

    Raises CannotCheck where there is none that can be read.
    """
    try:
        from regrpo.tracking.writer import open_reader

        yield open_reader(tracking_uri())
    except RegrpoError:
        raise
    except (
        Exception
    ) as error:  # MLflow, its database layer and its HTTP client raise classes of their own
        raise CannotCheck(
            shown_uri(),
            expected="an MLflow store",
            found=name_error(error),
            remedy="Start the server or set MLFLOW_TRACKING_URI; `--no-mlflow` does without.",
        ) from error
