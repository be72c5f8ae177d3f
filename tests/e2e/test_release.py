"""Releases of real miniature runs: their quick start in a folder of its own, and others' tools."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from regrpo.core.text import visible
from tests.support import stand_ins
from tests.support.projects import (
    MINIATURE,
    MODEL_FILES,
    SUMS,
    commit,
    edit_yaml,
    make_project,
    run,
)
from tests.support.releases import quick_start_output, write_keys

pytestmark = pytest.mark.slow
LORA = {"lora": {"r": 4, "lora_alpha": 8}, "learning_rate": 1e-2}
SMOLLM2 = "profiles/smollm2-135m.yaml"
SMALLER: dict[str, dict[str, Any]] = {
    "prepare": {"source": SUMS, "eval": 24, "dev": 12},
    "base_model": {"source": {"kind": "local", "path": "tiny", "license": "Apache-2.0"}},
    "validate": {"min_rows": 10, "max_prompt_tokens": 200},
    "sft": {"max_steps": 4, "max_length": 240, "threads": 1},
    "grpo": {
        "max_steps": 2,
        "dev_every": 0,
        "sample_every": 1,
        "learning_rate": 1e-2,
        "threads": 1,
    },
    "evaluate": {"bootstrap": 200, "threads": 1},
}
"""The profile of SmolLM2 on a tiny Llama (which SmolLM2 is) with a chat template."""
KINDS = ("merged", "lora", "smollm2")
CONTEXT = "https://w3id.org/ro/crate/1.1/context"
SEED = """
import io, sys
import requests_cache
from requests.adapters import BaseAdapter
from requests.models import Response
from urllib3 import HTTPResponse

class FromFile(BaseAdapter):
    def send(self, request, **_):
        answer = Response()
        answer.status_code, answer.url, answer.request = 200, request.url, request
        answer.headers["Content-Type"] = "application/ld+json"
        body = io.BytesIO(open(sys.argv[2], "rb").read())
        answer.raw = HTTPResponse(body=body, status=200, preload_content=False)
        return answer
    def close(self):
        pass

cache = requests_cache.CachedSession(sys.argv[1], backend="sqlite", expire_after=-1)
cache.mount(sys.argv[3], FromFile())
accepted = {"Accept": "application/ld+json, application/json, */*;q=0.1"}
cache.get(sys.argv[3], headers=accepted).raise_for_status()
"""
"""Puts a file into roc-validator's cache as what lies at an address: argv[1:] cache, file, it."""


@pytest.fixture(scope="module", params=KINDS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed release (model, model.sig) of a run, beside it the run and the keys."""
    pytest.importorskip("model_signing", reason="make install: the extra `release`")
    folder = tmp_path_factory.mktemp(request.param)
    grpo = MINIATURE["grpo"] | (LORA if request.param == "lora" else {})
    project = make_project(folder / "run", MINIATURE | {"grpo": grpo})
    if request.param == "smollm2":
        stand_ins.causal(project / "models/raw/tiny", "llama", template=True)
        edit_yaml(project / SMOLLM2, SMALLER)
        commit(project, "the profile, smaller")
        run(project, "dvc", "exp", "run", "-S", f"profile={SMOLLM2}")
    else:
        run(project, "dvc", "repro")
    commit(project, "results")
    write_keys(folder, "key")
    regrpo = ("python", "-m", "regrpo.cli", "release", "workspace", "--no-mlflow")
    run(project, *regrpo, "--out", "../model", "--key", "../key.pem")
    return folder


def test_it_verifies_by_us_and_by_others(made: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(made / "model", tmp_path / "copy")
    run(copy, "sha256sum", "--check", "--quiet", "SHA256SUMS")
    signature, public = str(made / "model.sig"), str(made / "key.pub")
    options = ("--signature", signature, "--pubkey", public)
    run(made / "run", "python", "-m", "regrpo.cli", "verify", str(copy), *options)
    theirs = ("--signature", signature, "--public_key", public)
    run(copy, "python", "-m", "model_signing", "verify", "key", *theirs, ".")
    (copy / "config.json").write_text("{}")
    failed = run(copy, "python", "-m", "model_signing", "verify", "key", *theirs, ".", check=False)
    assert failed.returncode != 0


def test_the_quick_start_runs_from_the_folder_alone(made: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(made / "model", tmp_path / "alone")
    (said,) = re.findall(r"^grpo: (.*)$", (copy / "README.md").read_text(), re.MULTILINE)
    assert visible(quick_start_output(copy).strip()) == said.strip()


def test_the_adapter_lies_beside_the_merged_model_and_gives_it(made: Path) -> None:
    names = {path.name for path in (made / "model").iterdir()}
    assert names >= MODEL_FILES
    adapter = made / "model/adapter"
    assert adapter.exists() == made.name.startswith("lora")
    if adapter.exists():
        assert {path.name for path in adapter.iterdir()} == {
            path.name for path in (made / "run/models/grpo/adapter").iterdir()
        }
        assert "the adapter itself is `adapter`" in (made / "model/README.md").read_text()


def test_the_required_profile_of_the_validator_passes(made: Path, tmp_path: Path) -> None:
    validator = shutil.which("rocrate-validator")
    if validator is None:
        pytest.skip("roc-validator is not installed (an environment of its own, on PATH)")
    import rocrate

    context = Path(rocrate.__file__).parent / "data/ro-crate.jsonld"
    cache = str(tmp_path / "cache")
    python = str(Path(validator).parent / "python")
    subprocess.run([python, "-c", SEED, cache, str(context), CONTEXT], check=True)
    options = ("--offline", "--cache-path", cache, "-l", "required", "--no-paging")
    command = [validator, "-y", "validate", *options, "-p", "provenance-run-crate-0.5"]
    done = subprocess.run(
        [*command, str(made / "model")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:]
