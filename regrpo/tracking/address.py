"""Where MLflow is, and how its failures are named, and cured. Needs no mlflow.

Failures that waiting does not cure are recognised by codes and numbers where the libraries give
some, else by words of theirs; room and rights as core.errors knows them.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from regrpo.core import errors
from regrpo.core.dvc import dvc_root
from regrpo.core.errors import RegrpoError, causes, class_and_message
from regrpo.core.files import sha256_json
from regrpo.core.text import shown_address

LONGEST = 300
"""Characters of an error's first line that are shown."""
KEPT = "The journals are kept."
LATER = (
    "The journals are kept: run `regrpo sync` again when it can be reached (MLFLOW_TRACKING_URI)."
)
CREDENTIALS = "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
ROOM = "Free room there (`mlflow gc` removes for good what was deleted), or raise the quota."
ALLOW = "Make it writable for this user."
ASK = f"Ask its owner for the right to write there, as the user of {CREDENTIALS}."
LOGIN = f"Correct the login: {CREDENTIALS}."
BY_NEED = {errors.ROOM: ROOM, errors.RIGHT: ALLOW}
BY_ERRNO = {
    errno.EEXIST: "Move the file of that name away: a folder belongs there.",
    errno.ENOTDIR: "Move the file of that name away: a folder belongs there.",
    errno.EISDIR: "Move the folder of that name away: a file belongs there.",
}
BY_CODE = {
    "PERMISSION_DENIED": ASK,
    "UNAUTHENTICATED": LOGIN,
    "CUSTOMER_UNAUTHORIZED": LOGIN,
    "QUOTA_EXCEEDED": ROOM,
    "RESOURCE_LIMIT_EXCEEDED": ROOM,
}
"""MLflow's error codes. RESOURCE_EXHAUSTED is none of them: it stands for HTTP 429, too."""
BY_WORDS = {
    r"error code 403|\b403\b.*forbidden|AccessDenied": ASK,
    r"error code 401|\b401\b.*unauthori[sz]ed|password authentication failed|NoCredentials": LOGIN,
    r"error code 507": ROOM,
    r"unable to open database file": "See that its folder is there and writable, and no folder has "
    "the database's name.",
    r"file is not a database": "Move the file away, or set MLFLOW_TRACKING_URI to the store.",
    r"filesystem tracking backend|unsupported URI": "Set MLFLOW_TRACKING_URI to a server, or to a "
    "database such as sqlite:///mlflow.db; `mlflow migrate-filestore` brings old runs over.",
    r"out-of-date database schema": "Bring it up to date: `mlflow db upgrade URI`, as MLflow says.",
}
"""Regular expressions over the messages of MLflow, databases, S3 and HTTP clients."""
GONE = re.compile(r"[Tt]he (run|experiment) (\w+) must be in the 'active' state")


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or mlflow.db in the user's repository (also from DVC's workspaces)."""
    return os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri(dvc_root() / "mlflow.db")


def sqlite_uri(database: Path) -> str:
    """The URI of an SQLite database (an absolute path), as SQLAlchemy (from 2.1 on) reads it."""
    return f"sqlite:///{quote(str(database))}"


def database_file(uri: str) -> Path | None:
    """The file of an SQLite database by its URI. Returns None for every other store."""
    if not uri.startswith("sqlite:///"):
        return None
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))


def shown_uri() -> str:
    """The tracking URI for people: see `shown_address`."""
    return shown_address(tracking_uri())


def store_id() -> str:
    """SHA-256 of the tracking URI and the experiment's name: tells stores apart, shows nothing."""
    return sha256_json([tracking_uri(), experiment_name()])


def experiment_name() -> str:
    """The MLflow experiment: MLFLOW_EXPERIMENT_NAME, or regrpo."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or "regrpo"


def name_error(error: Exception) -> str:
    """An error's class and first line, without secrets; a long one without its middle."""
    line = class_and_message(error)
    if len(line) <= LONGEST:
        return line
    # An HTTP client names the cause last.
    return f"{line[:180]} … {line[-117:]}"


def cure(error: BaseException) -> str | None:
    """What to do about a failure that waiting does not cure. Returns None for one that it may."""
    for cause in causes(error):
        if isinstance(cause, RegrpoError):
            return cause.remedy
        if isinstance(cause, OSError) and cause.errno in BY_ERRNO:
            return BY_ERRNO[cause.errno]
        code = getattr(cause, "error_code", None)
        if code in BY_CODE:
            return BY_CODE[code]
        # A server may answer with megabytes, and these patterns take their time.
        text = f"{type(cause).__name__}: {cause}"[:4000]
        if found := GONE.search(text):
            return restoring(found[1], found[2])
        for words, remedy in BY_WORDS.items():
            if re.search(words, text, re.IGNORECASE):
                return remedy
        # A server quotes its own exceptions in its replies.
        need = errors.need_of(cause) or errors.need_in(text)
        if need in BY_NEED:
            return BY_NEED[need]
    return None


def sentence(error: Exception) -> str | None:
    """A failure that waiting does not cure, with its cure. Returns None for any other."""
    remedy = cure(error)
    if remedy is None or isinstance(error, RegrpoError):
        return None if remedy is None else str(error)
    return f"{name_error(error)}. {remedy}"


def restoring(kind: str, number: str) -> str:
    """How a deleted run or experiment comes back, or is done without."""
    option = {"run": "--run-id", "experiment": "-x"}[kind]
    # Without MLFLOW_TRACKING_URI it takes mlflow.db in the current folder, as we do in the root.
    command = f"mlflow {kind}s restore {option} {number}"
    return f"Restore it (`{command}`), or set MLFLOW_EXPERIMENT_NAME to another experiment."
