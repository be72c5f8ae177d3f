"""What the hub answers, told in one line.

A hub of our own on the loopback that refuses in its ways.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.support.projects import ROOT, environment

ANSWERS = {
    "google/gated": (401, "GatedRepo", "Access to model google/gated is restricted."),
    "nobody/none": (404, "RepoNotFound", "Repository not found"),
    "google/other-commit": (404, "RevisionNotFound", "Invalid rev id"),
    "google/broken": (503, "", "out of order"),
}


class Hub(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        repo = next((name for name in ANSWERS if name in self.path), "nobody/none")
        code, name, message = ANSWERS[repo]
        self.send_response(code)
        self.send_header("X-Error-Code", name)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def told(endpoint: str, repo: str, folder: Path, **extra: str) -> str:
    """What a process that brings a base model from this hub says.

    A process of its own, as the client reads its settings once. It tries five times, and waits 23
    seconds in all between the tries: not here.
    """
    code = (
        "import sys, time\ntime.sleep = lambda seconds: None\n"
        "from regrpo.core.hub import snapshot\n"
        "from regrpo.core.errors import RegrpoError\n"
        f"try:\n    snapshot({repo!r}, 'f' * 40, 'base_model.source')\n"
        "except RegrpoError as error:\n    print(error.exit_code, error)\n"
    )
    settings = environment(
        HF_ENDPOINT=endpoint, HF_HOME=str(folder), PYTHONPATH=str(ROOT), **{"HF_HUB_OFFLINE": "0"}
    )
    for name in (
        "HF_TOKEN",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "http_proxy",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        settings.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=settings | extra,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.count("\n") == 1, done.stdout + done.stderr
    return done.stdout


def test_a_gated_model_without_a_token_says_where_to_accept_its_licence(
    hub: str, tmp_path: Path
) -> None:
    said = told(hub, "google/gated", tmp_path)
    assert said.startswith(
        "2 base_model.source: google/gated at ffffffffffff: expected its files from the hub; found"
    )
    assert (
        "a gated model and no login. "
        "Accept its licence at https://huggingface.co/google/gated, then `hf auth" in said
    )
    assert "a login that was not granted access" in told(
        hub, "google/gated", tmp_path, HF_TOKEN="hf_" + "a" * 34
    )


def test_a_repository_or_a_commit_there_is_not_and_a_hub_out_of_order(
    hub: str, tmp_path: Path
) -> None:
    assert (
        "found no such model, or a private one. Look at https://huggingface.co/nobody/none"
        in told(hub, "nobody/none", tmp_path)
    )
    assert "found no such commit there" in told(hub, "google/other-commit", tmp_path)


def test_no_network_is_told_as_such(tmp_path: Path) -> None:
    assert "found no way to the hub (" in told(
        "http://127.0.0.1:9", "google/gemma-3-1b-pt", tmp_path
    )
