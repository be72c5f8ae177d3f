"""Real servers on 127.0.0.1 for tests: PostgreSQL, S3 (moto's server) and MLflow over both.

Each is ended by its id.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support.projects import environment

AWS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
STARTS_WITHIN = 120.0
"""Seconds: MLflow's server imports for a while, and makes its tables."""


def postgres_binaries() -> Path | None:
    """The newest PostgreSQL of Debian's packages, or the one on PATH."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3])
    )
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


def missing() -> str | None:
    """Why these servers cannot be started here; None where they can."""
    for module in ("moto", "psycopg2", "dvc_s3"):
        if importlib.util.find_spec(module) is None:
            return f"the package {module} is not installed (extra `dev`)"
    if postgres_binaries() is None:
        return "PostgreSQL is not installed (apt-get install postgresql)"
    if os.geteuid() == 0 and (_unprivileged() is None or not shutil.which("setpriv")):
        return "PostgreSQL refuses to run as root, and there is no other user to run it as"
    return None


def _unprivileged() -> pwd.struct_passwd | None:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    return None


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Server:
    """A process that listens on 127.0.0.1; `start` waits until it answers."""

    def __init__(
        self, command: list[str], log: Path, answers: Callable[[], bool], **variables: str
    ) -> None:
        self.command, self.log, self.answers, self.variables = command, log, answers, variables
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=environment(**self.variables),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + STARTS_WITHIN
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(
                    f"{self.command[0]} did not start:\n{self.log.read_text()[-3000:]}"
                )
            time.sleep(0.1)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End it, and the processes of its session that outlive it."""
        if self.process is None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process = None


def answers_http(url: str) -> Callable[[], bool]:
    def answers() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return bool(response.status == 200)
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False

    return answers


class Postgres(Server):
    """A cluster of its own in a temporary folder; as root, run as the user postgres or nobody."""

    def __init__(self, log: Path) -> None:
        binaries = postgres_binaries()
        assert binaries is not None
        # Not below pytest's folder, which only its owner may enter.
        self.folder, self.port = Path(tempfile.mkdtemp(prefix="regrpo-postgres-")), free_port()
        self.address = f"regrpo@127.0.0.1:{self.port}/postgres"
        as_user: list[str] = []
        if os.geteuid() == 0:
            user = _unprivileged()
            assert user is not None
            os.chown(self.folder, user.pw_uid, user.pw_gid)
            as_user = [
                "setpriv",
                f"--reuid={user.pw_uid}",
                f"--regid={user.pw_gid}",
                "--clear-groups",
            ]
        data = str(self.folder / "data")
        initdb = [
            *as_user,
            str(binaries / "initdb"),
            "-D",
            data,
            "-U",
            "regrpo",
            "--auth=trust",
            "-E",
            "UTF8",
        ]
        subprocess.run([*initdb, "--no-sync"], cwd=self.folder, check=True, capture_output=True)
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-k", str(self.folder), "-F"]
        super().__init__(
            [*as_user, str(binaries / "postgres"), "-D", data, *where], log, self._answers
        )

    def _answers(self) -> bool:
        import psycopg2

        try:
            psycopg2.connect(f"postgresql://{self.address}", connect_timeout=2).close()
        except psycopg2.OperationalError:
            return False
        return True

    def vanish(self) -> None:
        """Stop at once, cutting every connection (SIGQUIT: immediate shutdown)."""
        self.stop(signal.SIGQUIT)

    def remove(self) -> None:
        self.stop(signal.SIGINT)
        shutil.rmtree(self.folder)


class S3(Server):
    """moto's S3 in memory."""

    def __init__(self, log: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [
            str(Path(sys.executable).parent / "moto_server"),
            "-H",
            "127.0.0.1",
            "-p",
            str(self.port),
        ]
        super().__init__(command, log, answers_http(f"{self.url}/moto-api/"))

    def make_bucket(self, name: str) -> None:
        self.client().create_bucket(Bucket=name)

    def client(self):  # type: ignore[no-untyped-def]  # boto3 makes its classes at run time
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name=AWS["AWS_DEFAULT_REGION"],
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Every request is answered by 403, since no such key is known."""
        self._authenticate_after(0)
        try:
            yield
        finally:
            self._authenticate_after(10**9)

    def _authenticate_after(self, requests: int) -> None:
        url, plain = f"{self.url}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        request = urllib.request.Request(url, str(requests).encode(), plain, method="POST")
        with urllib.request.urlopen(request):
            pass


class Mlflow(Server):
    """`mlflow server`.

    PostgreSQL for its tables, a bucket for artifacts, which clients reach through it.
    """

    def __init__(self, postgres: Postgres, s3: S3, bucket: str, log: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        # SQLAlchemy 2.1 would take psycopg 3 for a plain postgresql://.
        database = f"postgresql+psycopg2://{postgres.address}"
        stores = [
            "--backend-store-uri",
            database,
            "--artifacts-destination",
            f"s3://{bucket}/artifacts",
        ]
        command = [str(Path(sys.executable).parent / "mlflow"), "server", *where, *stores]
        variables = AWS | {
            "MLFLOW_S3_ENDPOINT_URL": s3.url,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        super().__init__(command, log, answers_http(f"{self.url}/health"), **variables)
