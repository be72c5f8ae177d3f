"""Keys agree with dvc.lock; a pipeline counts as one only where everything in it fits together."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from regrpo.core.dvc import entry_now
from regrpo.core.git import experiment_refs
from regrpo.core.pipeline import Snapshot, stage_key
from regrpo.core.profiles import STAGES
from tests.support.pipelines import commit, write_pipeline, write_stage

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


# --- whole pipelines, written by hand -------------------------------------------------------------


def test_a_whole_pipeline_has_a_key_in_the_workspace_and_at_a_revision(tmp_path: Path) -> None:
    write_pipeline(tmp_path)
    key = Snapshot(tmp_path).pipeline_key()
    revision = commit(tmp_path)
    write_pipeline(tmp_path, 1)
    assert key is not None
    assert Snapshot(tmp_path, revision).pipeline_key() == key
    assert Snapshot(tmp_path).pipeline_key() not in (key, None)


def test_a_pipeline_with_a_missing_stage_has_no_key(tmp_path: Path) -> None:
    for stage in STAGES[:-1]:
        write_stage(tmp_path, stage)
    assert Snapshot(tmp_path).pipeline_key() is None


def test_a_pipeline_whose_later_stages_are_of_another_run_has_no_key(tmp_path: Path) -> None:
    write_pipeline(tmp_path)
    write_stage(tmp_path, "prepare", 1)
    assert Snapshot(tmp_path).pipeline_key() is None


def test_an_altered_record_makes_no_pipeline(tmp_path: Path) -> None:
    write_pipeline(tmp_path)
    path = tmp_path / "reports" / "sft" / "run.json"
    path.write_text(path.read_text().replace('"size": 9', '"size": 8'))
    assert Snapshot(tmp_path).pipeline_key() is None


def test_an_output_is_found_in_the_cache_that_dvc_is_told_to_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    digest = hashlib.md5(b"rows").hexdigest()
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[cache]\n    dir = ../elsewhere\n")
    (tmp_path / "dvc.lock").write_text(
        f"stages: {{sft: {{cmd: python, outs: [{{path: a.parquet, md5: {digest}}}]}}}}\n"
    )
    kept = tmp_path / "elsewhere/files/md5" / digest[:2] / digest[2:]
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"rows")
    assert Snapshot(tmp_path).output("a.parquet") == b"rows"


def test_only_experiments_are_listed_as_such(tmp_path: Path) -> None:
    (tmp_path / "reports").mkdir()
    (tmp_path / "dvc.lock").write_text("{}")
    name = f"refs/exps/{'a' * 2}/{'b' * 38}/lively-one"
    revision = commit(tmp_path, name, "refs/exps/exec/EXEC_HEAD", "refs/exps/stash")
    assert experiment_refs(tmp_path) == {name: revision}
