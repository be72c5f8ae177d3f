"""Where MLflow is, and how its failures are named without passwords. Needs no mlflow."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from regrpo.core.dvc import dvc_root

LONGEST = 300
"""Characters of an error's first line that are shown."""


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or mlflow.db in the user's repository (also from DVC's workspaces)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{dvc_root() / 'mlflow.db'}"


def shown_uri() -> str:
    """The tracking URI without user and password."""
    return without_password(tracking_uri())


def without_password(text: str) -> str:
    """A text without the tracking URI's user and password, which libraries quote in messages."""
    user = urlsplit(tracking_uri()).netloc.rpartition("@")[0]
    return text.replace(f"{user}@", "") if user else text


def experiment_name() -> str:
    """The MLflow experiment: MLFLOW_EXPERIMENT_NAME, or regrpo."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "regrpo"


def name_error(error: Exception) -> str:
    """An error's class and first line without a password; a long one without its middle."""
    first_line = str(error).partition("\n")[0]
    line = without_password(f"{type(error).__name__}: {first_line}")
    if len(line) <= LONGEST:
        return line
    # An HTTP client names the cause last.
    return f"{line[:180]} … {line[-117:]}"
