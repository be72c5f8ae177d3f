"""Limits of the system end a stage in one line by cause, with what was there before still whole."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from regrpo.core import files
from tests.support.campaign import reference
from tests.support.projects import environment, run


def limited(folder: Path, *limits: str, stage: str) -> subprocess.CompletedProcess[str]:
    """Run a stage by hand under limits of prlimit(1)."""
    command = ["prlimit", *limits, "python", "-m", f"stages.{stage}"]
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(REGRPO_TRACKING="off"),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def require_one_line(done: subprocess.CompletedProcess[str], stage: str, *words: str) -> None:
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{stage}: ")
    for word in words:
        assert word in line


def newest_end(folder: Path) -> str:
    """How the newest journal says its stage ended."""
    newest = max((folder / ".regrpo/journal").iterdir())
    return str(files.read_json(newest / "closed.json")["status"])


def test_a_file_that_may_not_grow_leaves_the_last_outputs_whole(copy: Path) -> None:
    """RLIMIT_FSIZE stands for a full disk."""
    script = copy / "stages/prepare.py"
    much = 'files.write_text(Path("data/prepared/train.parquet"), "x" * 200_000)'
    writing = f"        from regrpo.core import files\n        {much}\n        for path in"
    script.write_text(script.read_text().replace("        for path in", writing))
    before = files.sha256(copy / "data/prepared/train.parquet")
    done = limited(copy, "--fsize=100000", stage="prepare")
    require_one_line(
        done, "prepare", "expected room on the disk; found File too large", "100,000 bytes"
    )
    assert files.sha256(copy / "data/prepared/train.parquet") == before
    assert newest_end(copy) == "FAILED"


@pytest.fixture
def read_only(copy: Path) -> Iterator[Path]:
    """A copy whose reports/ cannot be written."""
    reports = copy / "reports"
    if os.geteuid() != 0:
        for folder in (reports, *reports.iterdir()):
            folder.chmod(0o555)
        yield copy
        for folder in (reports, *reports.iterdir()):
            folder.chmod(0o755)
        return
    if subprocess.run(["mount", "--bind", reports, reports], check=False).returncode:
        pytest.skip("this takes the right to mount")
    subprocess.run(["mount", "-o", "remount,ro,bind", reports], check=True)
    yield copy
    subprocess.run(["umount", "-l", reports], check=True)


def test_a_read_only_folder_is_named(read_only: Path) -> None:
    done = limited(read_only, stage="model_card")
    require_one_line(done, "model_card", "reports/model_card/", "expected the right to write")
    assert newest_end(read_only) == "FAILED"


@pytest.fixture(scope="module")
def miniature(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reference(tmp_path_factory.mktemp("limits"))


@pytest.mark.parametrize("megabytes", [400, 1200, 2500])
def test_too_little_memory_is_said_at_once(megabytes: int, copy: Path) -> None:
    """Beyond, grpo's libraries would wait for ever or abort."""
    done = limited(copy, f"--as={megabytes * 10**6}", stage="grpo")
    require_one_line(done, "grpo", "ulimit -v: expected at least 3,200 MB", f"{megabytes:,} MB")


@pytest.mark.slow
@pytest.mark.parametrize("size", [20_000, 300_000, 1_200_000])
def test_sft_that_may_not_write_its_checkpoints_or_weights_says_so(
    size: int, miniature: Path
) -> None:
    weights = files.sha256(miniature / "models/sft/model.safetensors")
    done = limited(miniature, f"--fsize={size}", stage="sft")
    require_one_line(done, "sft", "expected room on the disk", f"{size:,} bytes")
    assert files.sha256(miniature / "models/sft/model.safetensors") == weights
    assert newest_end(miniature) == "FAILED"
    # The room is there again: it goes on from what is complete.
    run(miniature, "python", "-m", "stages.sft", REGRPO_TRACKING="off")
    assert files.sha256(miniature / "models/sft/model.safetensors") == weights
