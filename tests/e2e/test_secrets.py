"""Secrets in every place that may hold one, and a whole pipeline: no byte written or shown has one.

The places: variables, MLflow's address, git's and DVC's remotes. What git and DVC keep of their
remotes is the user's own (.git/config, .dvc/config.local).
"""

from __future__ import annotations

import base64
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from regrpo.tracking.address import sqlite_uri
from tests.support import servers
from tests.support.projects import commit, environment, make_project

pytestmark = pytest.mark.slow

SECRETS = {
    "HF_TOKEN": "hf_Plant3dT0k3nOfTheHub",
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED0ACCESS0ID",
    "AWS_SECRET_ACCESS_KEY": "Plant3d/AwsS3cr3t+AccessKey",
    "AWS_SESSION_TOKEN": "Plant3dAwsS3ss10nT0k3n",
    "MLFLOW_TRACKING_PASSWORD": "Plant3dTrack1ngPassw0rd",
    "uri": "Plant3dUr1Passw0rd",
    "git": "Plant3dG1tT0k3n",
    "dvc": "Plant3dDvcPassw0rd",
    "query": "Plant3dQu3ryPassw0rd",
}
VARIABLES = {name: value for name, value in SECRETS.items() if name.isupper()}
VARIABLES |= {"MLFLOW_TRACKING_USERNAME": "bob"}
OWN = (".git/config", ".dvc/config.local")
"""Where the user's own tools keep what the user has told them."""
REGRPO = (sys.executable, "-m", "regrpo.cli")


def spellings(secret: str) -> set[bytes]:
    """A secret as it may stand in a file: plain, percent-encoded, in a header of basic login."""
    basic = {base64.b64encode(f"{user}:{secret}".encode()) for user in ("bob", "u", "me")}
    return {secret.encode(), urllib.parse.quote(secret, safe="").encode(), *basic}


def leaks(data: bytes) -> list[str]:
    """The names of the planted secrets that bytes hold."""
    return [name for name, one in SECRETS.items() if any(text in data for text in spellings(one))]


@dataclass
class CommandLines:
    """Looks at every process's command line all the time, and keeps those with a secret."""

    found: set[str] = field(default_factory=set)
    looks: int = 0
    ended: bool = False

    def watch(self) -> None:
        while not self.ended:
            for number in psutil.pids():
                try:
                    line = Path(f"/proc/{number}/cmdline").read_bytes()
                except OSError:  # it has ended
                    continue
                if leaks(line):
                    self.found.add(line.replace(b"\0", b" ").decode(errors="replace"))
            self.looks += 1
            time.sleep(0.05)


@pytest.fixture(scope="module")
def command_lines() -> Iterator[CommandLines]:
    seen = CommandLines()
    thread = threading.Thread(target=seen.watch)
    thread.start()
    yield seen
    seen.ended = True
    thread.join()


@dataclass
class Ran:
    """A project whose commands ran with secrets planted, and what they said, by command."""

    folder: Path
    said: dict[str, str] = field(default_factory=dict)
    codes: dict[str, int] = field(default_factory=dict)

    def run(self, name: str, *command: str, **variables: str) -> None:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment(**VARIABLES) | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        self.said[name] = done.stdout + done.stderr
        self.codes[name] = done.returncode


def mlflow_server(folder: Path) -> servers.Server:
    """An MLflow server without a login, over SQLite in a folder."""
    folder.mkdir()
    port = servers.free_port()
    stores = ["--backend-store-uri", sqlite_uri(folder / "mlflow.db")]
    stores += ["--artifacts-destination", str(folder / "artifacts")]
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command = [sys.executable, "-m", "mlflow", "server", *where, *stores]
    url = f"http://127.0.0.1:{port}"
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    server = servers.Server(
        command, folder / "server.log", servers.answers_http(f"{url}/health"), **quiet
    )
    server.variables["URL"] = url
    return server


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory, command_lines: CommandLines) -> Ran:
    root = tmp_path_factory.mktemp("secrets")
    folder = make_project(root / "project")
    # Written as git and `dvc remote add --local` do, whose command lines would be seen.
    remote = f"https://x-token:{SECRETS['git']}@git.example.invalid/team/repo.git"
    with (folder / ".git/config").open("a") as config:
        config.write(f'[remote "origin"]\n\turl = {remote}\n')
    # Not the default remote: nothing is pushed, and only the audit is told to look there.
    address = f"https://me:{SECRETS['dvc']}@127.0.0.1:9/store"
    (folder / ".dvc/config.local").write_text(f"['remote \"store\"']\n    url = {address}\n")
    server = mlflow_server(root / "server")
    server.start()
    made = Ran(folder)
    host = server.variables["URL"].removeprefix("http://")
    uri = {"MLFLOW_TRACKING_URI": f"http://bob:{SECRETS['uri']}@{host}"}
    try:
        made.run("check", *REGRPO, "check", **uri)
        made.run("plan", *REGRPO, "plan", **uri)
        made.run("repro", "dvc", "repro", **uri)
        made.run("sync", *REGRPO, "sync", **uri)
        commit(folder, "results")
        for name in ("audit", "report", "lineage"):
            made.run(name, *REGRPO, name, **uri)
        made.run("audit of a remote", *REGRPO, "audit", "--remote", "store", **uri)
        made.run("compare", *REGRPO, "compare", "workspace", "HEAD", **uri)
        made.run("promote", *REGRPO, "promote", "HEAD", **uri)
        made.run("audit as JSON and page", *REGRPO, "audit", "--json", "--html", "a.html", **uri)
    finally:
        server.stop()
    (folder / ".regrpo/synced.json").rename(folder / ".regrpo/synced-before.json")
    made.run("sync with the server gone", *REGRPO, "sync", **uri)
    made.run("audit with the server gone", *REGRPO, "audit", **uri)
    for number, address in enumerate(unreachable()):
        made.run(f"sync to nowhere {number}", *REGRPO, "sync", MLFLOW_TRACKING_URI=address)
    return made


def unreachable() -> list[str]:
    """Addresses of databases that are not there, their passwords spelled in every way."""
    word = SECRETS["uri"]
    users = [f"u:{word}", f"u:{word}#x", f"u:x/{word}", f"u:x?{word}", f"u:x@{word}"]
    found = [f"postgresql+psycopg2://{user}@127.0.0.1:1/db" for user in users]
    found.append(f"postgresql+psycopg2://u@127.0.0.1:1/db?password={SECRETS['query']}")
    return [*found, f"http://bob:x/{word}@127.0.0.1:9", f"http://127.0.0.1:9/?token={word}"]


def test_everything_ran(ran: Ran) -> None:
    expected = dict.fromkeys(ran.codes, 0)
    expected["audit of a remote"] = 2
    for name in ran.codes:
        if "gone" in name or "nowhere" in name:
            expected[name] = 2
    assert ran.codes == expected, ran.said


def test_no_command_says_a_secret(ran: Ran) -> None:
    assert {name: leaks(text.encode()) for name, text in ran.said.items()} == {
        name: [] for name in ran.said
    }
    assert "127.0.0.1" in ran.said["sync"], "the store is named"
    assert "127.0.0.1:1/db" in ran.said["sync to nowhere 0"]


def test_no_file_holds_a_secret(ran: Ran) -> None:
    files = [file for file in ran.folder.parent.rglob("*") if file.is_file()]
    own = {ran.folder / name for name in OWN}
    assert all(leaks(file.read_bytes()) for file in own), "the search finds what is there"
    kept = {"run.json", "open.json", "tracking.log", "synced-before.json", "mlflow.db", "a.html"}
    assert kept - {file.name for file in files} == set()
    found = {str(file): leaks(file.read_bytes()) for file in files if file not in own}
    assert {name: what for name, what in found.items() if what} == {}


def test_nobody_else_may_look_into_the_journals(ran: Ran) -> None:
    assert (ran.folder / ".regrpo").stat().st_mode & 0o777 == 0o700


def test_no_process_had_a_secret_in_its_command_line(ran: Ran, command_lines: CommandLines) -> None:
    assert command_lines.looks > 20
    assert command_lines.found == set()


@pytest.mark.skipif(servers.missing() is not None, reason=str(servers.missing()))
def test_the_ui_has_the_databases_password_in_no_command_line(
    tmp_path: Path, command_lines: CommandLines
) -> None:
    folder = make_project(tmp_path / "project")
    database = servers.Postgres(tmp_path / "postgres.log")
    port = servers.free_port()
    address = database.address.replace("regrpo@", f"regrpo:{SECRETS['uri']}@")
    command = [sys.executable, "-m", "regrpo.tracking.follower", "--ui", str(port)]
    ui = servers.Server(
        command,
        tmp_path / "ui.log",
        servers.answers_http(f"http://127.0.0.1:{port}/health"),
        MLFLOW_TRACKING_URI=f"postgresql+psycopg2://{address}",
        PYTHONPATH=str(folder),
        DVC_ROOT=str(folder),
    )
    database.start()
    try:
        ui.start()
        time.sleep(1)
        said = (tmp_path / "ui.log").read_text()
        assert f"http://127.0.0.1:{port}/#/experiments/" in said
        assert leaks(said.encode()) == []
        assert command_lines.found == set()
    finally:
        ui.stop()
        database.remove()


def test_the_search_sees_a_command_line(command_lines: CommandLines) -> None:
    """The last: what it finds stays found."""
    script = "import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script, SECRETS["git"]]) as one:
        deadline = time.monotonic() + 30
        while not command_lines.found and time.monotonic() < deadline:
            time.sleep(0.05)
        one.kill()
    assert all(SECRETS["git"] in line for line in command_lines.found)
    assert command_lines.found
    command_lines.found.clear()
