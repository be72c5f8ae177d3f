"""A Hugging Face hub on 127.0.0.1: the part of its interface by which a folder is committed."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import close_session
from huggingface_hub.utils.sha import git_hash

LARGE = (".safetensors", ".parquet", ".png")
TOKEN, READ_ONLY = "hf_writesEverything", "hf_readsOnly"


class Hub:
    """Repositories with commits; `requests` are (method, path), newest last.

    `drops` cuts every upload of a large file, `refuses_card` the metadata, `ignores` leaves files
    of that end out of a commit, as a .gitignore there would.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.repos: dict[str, list[dict[str, bytes]]] = {}
        self.large: dict[str, bytes] = {}
        self.drops = self.refuses_card = False
        self.ignores = "(nothing)"
        self.server = ThreadingHTTPServer(
            ("127.0.0.1", 0), type("Bound", (Handler,), {"hub": self})
        )
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def create(self, repo_id: str, **files: bytes) -> None:
        self.repos[repo_id] = [{".gitattributes": b"*.safetensors lfs"} | files]

    def commit(self, repo_id: str, lines: list[dict[str, Any]]) -> str:
        files = dict(self.repos[repo_id][-1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.repos[repo_id].append(files)
        return self.oid(repo_id)

    def oid(self, repo_id: str) -> str:
        return hashlib.sha1(f"{repo_id} {len(self.repos[repo_id])}".encode()).hexdigest()

    def download(self, repo_id: str, folder: Path) -> Path:
        """What `hf download --local-dir` leaves."""
        for name, data in self.repos[repo_id][-1].items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        (folder / ".cache/huggingface").mkdir(parents=True)
        (folder / ".cache/huggingface/.gitignore").write_text("*")
        return folder


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def handle_one_request(self) -> None:
        super().handle_one_request()
        self.close_connection = True

    def do_GET(self) -> None:
        path = self._path()
        *_, owner, name = path.partition("/tree/")[0].partition("/revision/")[0].split("/")
        repo_id = f"{owner}/{name}"
        if repo_id not in self.hub.repos:
            self._answer(404, {"error": "Repository not found"}, "RepoNotFound")
        elif "/tree/" in path:
            files = self.hub.repos[repo_id][-1].items()
            self._answer(200, [described(name, data) for name, data in files])
        else:
            self._answer(200, {"id": repo_id, "sha": self.hub.oid(repo_id), "siblings": []})

    def do_PUT(self) -> None:
        data = self._body()
        oid = self._path().rpartition("/")[2]
        if self.hub.drops:
            self.connection.close()
            return
        assert hashlib.sha256(data).hexdigest() == oid
        self.hub.large[oid] = data
        self._answer(200, {})

    def do_POST(self) -> None:
        data = self._body()
        path = self._path()
        token = (self.headers["Authorization"] or "").removeprefix("Bearer ")
        if token not in (TOKEN, READ_ONLY):
            self._answer(401, {"error": "Invalid credentials in Authorization header"})
        elif path == "/api/repos/create":
            self._create(json.loads(data), token)
        elif path == "/api/validate-yaml":
            self._validate()
        elif token == READ_ONLY:
            self._answer(403, {"error": "You have read access but not the required permissions"})
        elif "/preupload/" in path:
            self._preupload(path, json.loads(data))
        elif path.endswith("/info/lfs/objects/batch"):
            objects = [self._upload_action(one) for one in json.loads(data)["objects"]]
            self._answer(200, {"transfer": "basic", "objects": objects})
        else:
            repo_id = path.removeprefix("/api/models/").partition("/commit/")[0]
            oid = self.hub.commit(repo_id, [json.loads(line) for line in data.splitlines()])
            url = f"{self.hub.url}/{repo_id}/commit/{oid}"
            self._answer(200, {"success": True, "commitOid": oid, "commitUrl": url})

    def _create(self, asked: dict[str, Any], token: str) -> None:
        repo_id = f"{asked['organization']}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{repo_id}"}
        if token == READ_ONLY:
            self._answer(403, {"error": "You don't have the rights to create a model"})
        elif repo_id in self.hub.repos:
            self._answer(409, {"error": "You already created this model repo"} | url)
        else:
            self.hub.create(repo_id)
            self._answer(200, url)

    def _validate(self) -> None:
        if self.hub.refuses_card:
            errors = [{"message": '"license" must be one of [apache-2.0, mit, …]'}]
            self._answer(400, {"error": "Bad Request", "errors": errors, "warnings": []})
        else:
            self._answer(200, {"errors": [], "warnings": []})

    def _preupload(self, path: str, asked: dict[str, Any]) -> None:
        repo_id = path.removeprefix("/api/models/").partition("/preupload/")[0]
        there = self.hub.repos[repo_id][-1]
        answers = []
        for one in asked["files"]:
            name = one["path"]
            answer = {"path": name, "uploadMode": "lfs" if name.endswith(LARGE) else "regular"}
            answer["shouldIgnore"] = name.endswith(self.hub.ignores)
            if name in there:
                found = described(name, there[name])
                answer["oid"] = found["lfs"]["oid"] if "lfs" in found else found["oid"]
            answers.append(answer)
        self._answer(200, {"files": answers})

    def _upload_action(self, one: dict[str, Any]) -> dict[str, Any]:
        if one["oid"] in self.hub.large:
            return one
        return one | {"actions": {"upload": {"href": f"{self.hub.url}/large/{one['oid']}"}}}

    def _path(self) -> str:
        path = self.path.partition("?")[0]
        self.hub.requests.append((self.command, path))
        return path

    def _body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        data = b""
        while size := int(self.rfile.readline(), 16):  # in chunks
            data += self.rfile.read(size)
            self.rfile.readline()
        return data

    def _answer(self, status: int, content: object, code: str = "") -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        self.wfile.write(data)


def described(name: str, data: bytes) -> dict[str, Any]:
    """A file as the hub lists it."""
    found = {"type": "file", "path": name, "size": len(data), "oid": git_hash(data)}
    if name.endswith(LARGE):
        sha256 = hashlib.sha256(data).hexdigest()
        found["lfs"] = {"oid": sha256, "size": len(data), "pointerSize": 130}
    return found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process's huggingface_hub speaks to, with a login that may write."""
    one = Hub()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", one.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    yield one
    close_session()
    one.server.shutdown()
    one.server.server_close()
