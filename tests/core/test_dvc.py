"""What DVC would write is known before it writes it: hashes, entries, the cache's objects."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from regrpo.core.dvc import (
    declared_outputs,
    dvc_md5,
    entry_now,
    object_path,
    parse_listing,
    path_of,
    read_object,
    read_object_inside,
    state_folder,
)
from regrpo.core.pipeline import Snapshot, stage_key

DVC_YAML = """\
stages:
  sft:
    cmd: python -c "open('out.txt', 'w').write('x')"
    deps:
      - code
      - data.csv
      - empty
    params: [{"${profile}": [sft]}]
    outs: [out.txt]
"""
PARAMS = """\
profile: params.yaml
sft: {learning_rate: 1e-4, curriculum: [{share: 0.5, worked: 1.0}], lora: null, name: naïve}
"""


@pytest.fixture(scope="module")
def dvc_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("dvc_repository")
    (root / "code" / "inner" / "__pycache__").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "code" / "b.py").write_text("b = 1\n")
    (root / "code" / "inner.py").write_text(
        "c = 1\n"
    )  # as text it sorts before "inner/a.py", by path parts after it
    (root / "code" / "inner" / "a.py").write_text("a = 1\n")
    (root / "code" / "inner" / "__pycache__" / "a.pyc").write_text("compiled")
    (root / "empty" / ".gitkeep").touch()
    (root / "data.csv").write_text("1,2\n")
    (root / "dvc.yaml").write_text(DVC_YAML)
    (root / "params.yaml").write_text(PARAMS)
    for arguments in (["init", "--no-scm", "-q"], ["config", "core.analytics", "false"]):
        subprocess.run([sys.executable, "-m", "dvc", *arguments], cwd=root, check=True)
    (root / ".dvcignore").write_text("__pycache__/\n*.pyc\n.gitkeep\n")
    subprocess.run([sys.executable, "-m", "dvc", "repro", "-q"], cwd=root, check=True)
    return root


def test_the_key_computed_before_a_stage_runs_is_that_of_the_entry_dvc_writes(
    dvc_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dvc_repository)
    recorded = Snapshot(dvc_repository).lock()["stages"]["sft"]
    assert {dep["path"]: dep["md5"] for dep in recorded["deps"]} == {
        dep["path"]: dep["md5"] for dep in entry_now("sft")["deps"]
    }
    assert stage_key(entry_now("sft")) == stage_key(recorded)


@pytest.mark.parametrize(
    ("path", "text", "changes"),
    [
        ("code/inner/__pycache__/a.pyc", "compiled again", False),
        ("code/inner/a.py", "a = 2\n", True),
        ("code/new.py", "", True),
        ("params.yaml", PARAMS.replace("1e-4", "2e-4"), True),
        ("params.yaml", PARAMS + "grpo: {seed: 1}\n", False),
        ("dvc.yaml", DVC_YAML.replace("'x'", "'y'"), True),
    ],
)
def test_what_changes_a_key(
    dvc_repository: Path, monkeypatch: pytest.MonkeyPatch, path: str, text: str, changes: bool
) -> None:
    monkeypatch.chdir(dvc_repository)
    before, file = stage_key(entry_now("sft")), Path(path)
    kept = file.read_text() if file.exists() else None
    file.write_text(text)
    try:
        assert (stage_key(entry_now("sft")) != before) is changes
    finally:
        file.unlink() if kept is None else file.write_text(kept)


def test_an_output_folder_hashes_as_its_entry_in_the_cache(
    dvc_repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dvc_repository)
    recorded = Snapshot(dvc_repository).lock()["stages"]["sft"]
    for dep in recorded["deps"]:
        assert dvc_md5(Path(dep["path"])) == dep["md5"]


def test_an_object_is_read_only_where_it_is_what_its_name_says(tmp_path: Path) -> None:
    data = b"rows"
    inner = hashlib.md5(data).hexdigest()
    listing = json.dumps([{"md5": inner, "relpath": "train.parquet"}]).encode()
    folder = hashlib.md5(listing).hexdigest() + ".dir"
    for md5, content in {inner: data, folder: listing}.items():
        path = object_path(tmp_path, md5)
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    assert read_object(tmp_path, inner) == data
    assert read_object_inside(tmp_path, folder, "train.parquet") == data
    assert read_object_inside(tmp_path, folder, "dev.parquet") is None
    assert read_object(tmp_path, "") is None
    object_path(tmp_path, inner).write_bytes(b"other")
    assert read_object(tmp_path, inner) is None
    assert read_object_inside(tmp_path, folder, "train.parquet") is None
    assert parse_listing(b'{"a": 1}') is None


def test_the_paths_of_declared_outputs_are_read_in_both_forms() -> None:
    stage = {"outs": ["models/sft", {"reports/sft/run.json": {"cache": False}}], "plots": None}
    assert [path_of(out) for out in declared_outputs(stage)] == [
        "models/sft",
        "reports/sft/run.json",
    ]


@pytest.mark.parametrize("before", [None, 0o755, 0o777])
def test_nobody_else_may_enter_the_folder_of_journals_and_logs(
    before: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    top = tmp_path / ".regrpo"
    if before is not None:
        top.mkdir()
        top.chmod(before)
    assert state_folder("journal") == top / "journal"
    assert top.stat().st_mode & 0o777 == 0o700
    assert state_folder() == top
