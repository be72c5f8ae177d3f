"""What the hub answers, told in one line; and what people bring, looked at before it is opened.

The hub is one of our own on the loopback that refuses in its ways.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from regrpo.core.errors import Refused
from regrpo.core.hub import RAW_MODELS, file_under, require_brought, require_sizes
from tests.support import hostile
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


# --- what lies in the brought folders -------------------------------------------------------------


def leave_link(file: Path) -> None:
    file.symlink_to("/etc/passwd")


def leave_folder(file: Path) -> None:
    file.symlink_to("/etc", target_is_directory=True)


def leave_nothing(file: Path) -> None:
    file.symlink_to("nowhere")


def leave_circle(file: Path) -> None:
    file.symlink_to(file.name)


def leave_socket(file: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(file))


@pytest.mark.parametrize(
    ("put", "name", "found"),
    [
        (os.mkfifo, "pipe", "a FIFO"),
        (leave_socket, "s", "a socket"),
        (leave_link, "vocab.txt", "a link to /etc/passwd, which leads out of it"),
        (leave_folder, "more", "a link to /etc, which leads out of it"),
        (leave_nothing, "gone", "a link to nowhere, where nothing is"),
        (leave_circle, "round", "a link to round, where nothing is"),
        (Path.touch, os.fsdecode(b"a\xff.json"), "a name that is not UTF-8"),
    ],
    ids=lambda part: str(getattr(part, "__name__", part))[:20].encode("ascii", "replace").decode(),
)
def test_what_is_no_regular_file_of_the_folder_is_refused_by_name_unopened(
    put: Callable[[Path], object],
    name: str,
    found: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/raw/base/inner").mkdir(parents=True)
    put(Path("models/raw/base/inner") / name)
    for look in (partial(file_under, RAW_MODELS, "base", "base_model.source"), require_brought):
        message = hostile.ended(look, seconds=3)
        assert message.startswith("models/raw/base/inner/")
        assert f"expected regular files inside models/raw/; found {found}. Copy" in message


def test_links_inside_the_folder_and_into_dvcs_cache_are_files_like_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stored = tmp_path / ".dvc/cache/files/md5/ab" / ("c" * 30)
    stored.parent.mkdir(parents=True)
    stored.write_text("{}")
    raw = tmp_path / "data/raw"
    raw.mkdir(parents=True)
    (raw / "a.jsonl").symlink_to(stored)
    (raw / "b.jsonl").symlink_to("a.jsonl")
    (raw / "c").symlink_to(".", target_is_directory=True)
    require_brought()
    assert file_under(Path("data/raw"), "b.jsonl", "prepare.source.train").read_text() == "{}"


def test_only_sizes_have_a_largest_one() -> None:
    require_sizes({"rope_theta": 1_000_000_000, "hidden_size": 64}, "config.json")
    with pytest.raises(Refused, match="hidden_size: expected at most 134,217,728"):
        require_sizes({"hidden_size": 1_000_000_000}, "config.json")
