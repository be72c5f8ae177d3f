"""The report page: its numbers, links, other metrics, revisions and hostile text."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest

from regrpo import cli
from regrpo.core import files
from tests.support import pages as made
from tests.support.pages import HOSTILE, workspace
from tests.support.projects import ROOT, commit, run
from tests.support.report_pages import PAGE, Page, written


def test_a_whole_pipeline_is_shown_with_its_numbers(
    inside: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    inside()
    page = written()
    assert capsys.readouterr() == ("wrote reports/index.html\n", "")
    assert "✓ Complete. All 8 stages are there and fit together." in page.words
    assert (
        "After SFT 33.3 % [23.3, 43.3] After GRPO 66.7 % [56.7, 76.7] Gain by GRPO, points +33.3"
        in page.words
    )
    assert (
        "Not distinguishable. "
        "Of the same 6 questions it answers 3 right that the warm-started model" in page.words
    )
    assert "exact McNemar p = 0.625" in page.words
    assert "Newly right (3 of 6)" in page.words
    assert "Newly wrong (1 of 6)" in page.words
    assert "Right in both (1 of 6)" in page.words
    assert "All 6 checks hold (3 kinds, on every split)" in page.words
    assert "! fired gradient norm above 10 (before clipping)" in page.words
    assert page.text.count("grad_norm: gradient norm above 10 (before clipping) (steps 7–8)") >= 1
    assert page.tags.count("h1") == 1
    assert [page.tags.count(one) for one in ("header", "main", "footer", "nav")] == [1, 1, 1, 1]
    assert len(page.ids) == len(set(page.ids))


def test_every_link_of_the_page_leads_somewhere(
    inside: Callable[..., Path], tmp_path: Path
) -> None:
    inside()
    Path("elsewhere/deep").mkdir(parents=True)
    for out in (PAGE, Path("elsewhere/deep/page.html"), tmp_path / "outside.html"):
        assert cli.main(["report", "--no-mlflow", "--out", str(out)]) == 0
        page = Page(out.read_text())
        local = [link for link in page.links if not link.startswith(("#", "http://127.0.0.1:"))]
        assert len(local) > 20
        assert [link for link in local if not (out.parent / unquote(link)).exists()] == []
        assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_hostile_text_is_text_and_nothing_else(inside: Callable[..., Path], tmp_path: Path) -> None:
    with contextlib.chdir(workspace(tmp_path / "clean")):
        clean = written()
    inside(text=HOSTILE)
    page = written()
    html = PAGE.read_text()
    assert sorted(page.tags) == sorted(clean.tags)
    assert page.attributes == clean.attributes
    assert "<script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}" in page.words
    assert not {c for c in html if not c.isprintable()} - {"\n"}
    assert len(html) < 150_000
    made.write_gate({"answer_parses": 3}, HOSTILE)
    refused = written()
    assert set(refused.tags) <= set(clean.tags)
    assert "<script" not in PAGE.read_text()


def test_a_long_run_with_many_questions_is_a_small_page_soon(inside: Callable[..., Path]) -> None:
    inside(history=made.learning(20_000))
    frame = files.read_parquet(Path("reports/evaluate/samples.parquet"))
    files.write_parquet(
        Path("reports/evaluate/samples.parquet"),
        pd.concat([frame.assign(id=frame["id"] + f"-{index}") for index in range(500)]),
    )
    began = time.monotonic()
    written()
    assert time.monotonic() - began < 3
    assert PAGE.stat().st_size < 500_000


@pytest.mark.parametrize("headline", ["heldout", None])
@pytest.mark.parametrize("kind", ["binary", "continuous"])
def test_other_metrics_and_no_headline_are_shown_too(
    inside: Callable[..., Path], kind: str, headline: str | None
) -> None:
    inside()
    made.write_evaluation("4+5-7=", kind=kind, headline=headline)
    page = written()
    assert ("Gain by GRPO" in page.words) == (headline is not None)
    assert ("Higher (3 of 6)" in page.words) == (kind == "continuous")
    assert ("33.3 %" in page.words) == (kind == "binary")
    assert "paired bootstrap" in page.words or kind == "binary" or headline is None


def test_a_chat_prompt_is_shown_by_its_last_message(inside: Callable[..., Path]) -> None:
    inside()
    path = Path("reports/evaluate/samples.parquet")
    frame = files.read_parquet(path)
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "what is 1+1?"},
    ]
    frame["prompt"] = [messages] * len(frame)
    files.write_parquet(path, frame)
    page = written()
    assert "what is 1+1?" in page.words
    assert "be brief" not in page.words


def test_a_history_with_nan_still_has_its_curves(inside: Callable[..., Path]) -> None:
    rows = made.learning(40)
    rows[30]["reward"] = math.nan
    inside(history=rows)
    page = written()
    assert "The doctor: fatal" in page.words
    assert page.tags.count("svg") >= 6
    assert 'class="mark fatal"' in PAGE.read_text()


def test_a_revision_is_shown_without_links_into_the_workspace(inside: Callable[..., Path]) -> None:
    folder = inside()
    run(folder, "git", "init", "-q", "-b", "main")
    for key, value in (("user.name", "test"), ("user.email", "test@example.invalid")):
        run(folder, "git", "config", key, value)
    assert "These results are not in git yet" in written().words
    commit(folder, "results")
    page = written()
    assert "These results are not in git yet" not in page.words
    Path("reports/evaluate/metrics.json").write_text("{}")
    Path("code/sft.py").write_text("# changed since\n")
    page = written("HEAD")
    assert "revision HEAD" in page.words
    assert "✓ Complete" in page.words
    assert "66.7 %" in page.words
    assert [link for link in page.links if not link.startswith(("#", "http://127.0.0.1:"))] == []
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout[:12]
    assert f"regrpo reproduce {head}" in page.words


def test_the_same_files_give_the_same_page(inside: Callable[..., Path]) -> None:
    inside()
    written()
    first = PAGE.read_bytes()
    written()
    assert PAGE.read_bytes() == first


def test_the_page_needs_nothing_heavy(inside: Callable[..., Path]) -> None:
    inside()
    code = (
        "import sys; from regrpo import cli; assert cli.main(['report']) == 0; "
        "heavy = {'torch', 'mlflow', 'scipy', 'matplotlib', 'transformers', 'trl', "
        "'dvc.repo', 'lm_eval'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.splitlines() == ["wrote reports/index.html", "[]"]


def test_make_repro_ends_with_the_page() -> None:
    done = subprocess.run(
        ["make", "-n", "repro", "--no-print-directory"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "regrpo.cli report" in done.stdout.splitlines()[-1]
    ignored = subprocess.run(["git", "check-ignore", "-q", str(PAGE)], cwd=ROOT, check=False)
    assert ignored.returncode == 0 or not (ROOT / ".git").exists()
