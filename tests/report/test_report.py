"""The report page.

What it says of whole, partial, changed, refused and broken pipelines, and of hostile text.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pandas as pd
import pytest

from regrpo import cli
from regrpo.core import files
from regrpo.core.errors import CannotCheck
from regrpo.core.profiles import STAGES
from regrpo.records import find
from regrpo.report import contents, pages
from tests.support import pages as made
from tests.support.pages import HOSTILE, workspace
from tests.support.projects import ROOT, commit, edit_yaml, run

PAGE = Path("reports/index.html")


class Page(HTMLParser):
    """The tags, links and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.text += "" if tag in ("bdi", "code", "strong") else " "
        self.attributes |= {name for name, _ in attrs}
        self.links += [str(value) for name, value in attrs if name == "href"]
        self.ids += [str(value) for name, value in attrs if name == "id"]

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.partition("Skip to the content")[2].split())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workspace(tmp_path_factory.mktemp("whole") / "work")


@pytest.fixture
def inside(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a workspace (a whole pipeline's, or as asked) and changes into it."""

    def make(**options: Any) -> Path:
        folder = tmp_path / "work"
        if options:
            workspace(folder, **options)
        else:
            shutil.copytree(whole, folder)
        monkeypatch.chdir(folder)
        return folder

    return make


def read() -> contents.Report:
    return contents.read(find.workspace(Path.cwd()), Path.cwd())


def written(*arguments: str) -> Page:
    assert cli.main(["report", "--no-mlflow", *arguments]) == 0
    return Page(PAGE.read_text())


def states() -> dict[str, str]:
    return {stage.name: stage.state for stage in read().stages}


def reasons(stage: str) -> str:
    return "; ".join(next(one.reasons for one in read().stages if one.name == stage))


def test_a_whole_pipeline_is_shown_with_its_numbers(
    inside: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    inside()
    page = written()
    assert capsys.readouterr() == ("wrote reports/index.html\n", "")
    assert "✓ Complete. All 7 stages are there and fit together." in page.words
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


@pytest.mark.parametrize("last", STAGES[:-1])
def test_a_pipeline_that_stopped_says_what_is_missing(
    inside: Callable[..., Path], last: str
) -> None:
    inside(upto=last)
    page = written()
    missing = STAGES[STAGES.index(last) + 1 :]
    assert [name for name, state in states().items() if state == "missing"] == list(missing)
    assert "! This pipeline is not whole." in page.words
    for name in missing:
        assert f"{name} not run" in page.words
    assert ("Completions of base, SFT and GRPO cannot be shown" in page.words) == (
        "evaluate" in missing
    )
    assert ("Reward, dev accuracy and length curves cannot be shown" in page.words) == (
        "grpo" in missing
    )
    assert ("The gate's verdict cannot be shown" in page.words) == ("validate" in missing)


def test_refused_data_is_the_first_thing_said_with_rows_and_remedy(
    inside: Callable[..., Path],
) -> None:
    inside(upto="base_model")
    made.write_gate({"question_unique": 9, "answer_parses": 1}, "thirteen")
    page = written()
    assert states()["validate"] == "refused"
    assert "✗ The gate refused this data. 2 of 6 checks failed" in page.words
    assert "question_unique in train: 9 failed" in page.words
    assert "Expected: no question occurs twice in a split." in page.words
    assert "Remove the repeats from the source" in page.words
    assert page.words.count("thirteen") == contents.SHOWN + 1


def changed_code() -> str:
    Path("code/sft.py").write_text("# other\n")
    return "changed since: code/sft.py"


def changed_parameter() -> str:
    edit_yaml(Path("params.yaml"), {"sft": {"seed": 1}})
    return "its parameters have changed since (params.yaml: sft)"


def changed_command() -> str:
    text = Path("dvc.yaml").read_text()
    Path("dvc.yaml").write_text(text.replace("python -m stages.sft", "python -m stages.sft --fast"))
    return "its command has changed since"


def lost_output() -> str:
    Path("models/sft/model.safetensors").unlink()
    Path("models/sft").rmdir()
    return "models/sft not here: `dvc checkout`"


def another_run() -> str:
    edit_record("sft", lambda record: record.update(key="0" * 64))
    return "dvc.lock holds another run of it"


def other_bytes() -> str:
    edit_record("sft", lambda record: record["inputs"][0].update(sha256="0" * 64))
    return "it read other bytes of data/prepared than prepare has made"


def edit_record(stage: str, change: Callable[[dict[str, Any]], object]) -> None:
    path = Path(f"reports/{stage}/run.json")
    (record,) = files.read_json(path)
    change(record)
    files.write_json(path, [record])


@pytest.mark.parametrize(
    "change",
    [changed_code, changed_parameter, changed_command, lost_output, another_run, other_bytes],
)
def test_what_changed_since_is_out_of_date_with_the_reason_and_so_is_all_that_follows(
    inside: Callable[..., Path], change: Callable[[], str]
) -> None:
    inside()
    said = change()
    assert said in reasons("sft")
    assert states() == {
        name: "stale" if name in ("sft", "grpo", "evaluate", "model_card") else "cached"
        for name in STAGES
    }
    assert "follows sft, which must run first" in reasons("grpo")
    page = written()
    assert "This pipeline is not whole" in page.words
    assert said in page.words


def journal(
    stage: str, run: str, execution: list[float] | None, closed: str | None = "FINISHED"
) -> None:
    """What a stage that ran here leaves."""
    second = int((execution or [0])[0])
    folder = Path(f".regrpo/journal/20261122T14{STAGES.index(stage):02}{second:02}-{stage}")
    facts = {
        "stage": stage,
        "run": run,
        "execution": execution,
        "experiment": None,
        "baseline": None,
    }
    files.write_json(
        folder / "open.json",
        facts
        | {
            "workspace": str(Path.cwd()),
            "process": [1, 0.0],
            "started": 1795357800.0 + 60 * STAGES.index(stage),
        },
    )
    if closed:
        files.write_json(
            folder / "closed.json", {"status": closed, "ended": 1795357900.0, "record": None}
        )
    files.write_json(folder / "mlflow.json", {"run_id": "f" * 32, "parent_run_id": "abcd" * 8})


def test_what_ran_in_the_newest_execution_is_told_from_what_came_from_the_cache(
    inside: Callable[..., Path],
) -> None:
    inside()
    for index, stage in enumerate(STAGES):
        journal(stage, f"{index}" * 32, [2.0, 20.0] if index >= 4 else [1.0, 10.0])
    assert states() == {name: "ran" if STAGES.index(name) >= 4 else "cached" for name in STAGES}
    page = written()
    assert (
        "The execution of 2026-11-22 14:34 UTC ran 3 of them; the others were up to date"
        in page.words
    )
    assert f"this pipeline's row is {'abcd' * 8}" in page.words
    for index in range(4):
        journal(STAGES[index], f"{index}" * 32, [2.0, 20.0])
    assert "ran them all" in written().words


def test_records_from_elsewhere_were_not_computed_here(inside: Callable[..., Path]) -> None:
    inside()
    assert set(states().values()) == {"cached"}
    assert "Nothing of it was computed in this clone" in written().words


@pytest.mark.parametrize(("status", "state"), [("FAILED", "failed"), ("KILLED", "killed")])
def test_a_stage_that_ended_badly_says_so(
    inside: Callable[..., Path], status: str, state: str
) -> None:
    inside(upto="sft")
    journal("grpo", "9" * 32, [3.0, 30.0], status)
    assert states()["grpo"] == state
    assert states()["sft"] == "cached"
    assert f"✗ {state}" in written().words


@pytest.mark.parametrize(
    "path",
    [
        "reports/validate/verdict.json",
        "reports/grpo/health.json",
        "reports/evaluate/metrics.json",
        "reports/evaluate/samples.parquet",
        "reports/base_model/source.json",
        "data/prepared/dataset.json",
        "reports/sft/run.json",
        "dvc.lock",
        "dvc.yaml",
    ],
)
def test_a_broken_file_is_named_and_the_rest_is_shown(
    inside: Callable[..., Path], path: str
) -> None:
    inside()
    for content in (b"{", b"[]", b"\xff\xfe", b'{"verdict": NaN, "stages": {"sft": 1}}'):
        Path(path).write_bytes(content)
        page = written()
        found = read()
        assert not found.complete
        named = [problem for problem in found.problems if problem.startswith(path)]
        assert named or path == "dvc.yaml" or (path, content) == ("dvc.lock", b"[]"), content
        assert all(len(problem) < 400 and "\n" not in problem for problem in found.problems)
        assert "! This pipeline is not whole." in page.words
        assert ("Newly right (" in page.words) == (not path.startswith("reports/evaluate"))
        assert ("✗ unreadable" in page.words) == path.endswith("run.json")


def test_a_history_of_other_things_than_numbers_is_named(inside: Callable[..., Path]) -> None:
    inside()
    for content, problem in (
        ("step,reward\n1,many\n", "could not convert"),
        ("reward\n1\n", "a row without step"),
        ("step,reward\n1,2,3\n", "a row of other"),
    ):
        Path("reports/grpo/history.csv").write_text(content)
        assert problem in written().words
    Path("reports/grpo/history.csv").write_text("")
    assert "curves cannot be shown" in written().words


def test_nothing_readable_is_an_error_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["report", "--no-mlflow"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "expected results of at least one stage; found none. Run `make repro`" in err
    assert not PAGE.exists()
    monkeypatch.chdir(tmp_path.parent)
    assert cli.main(["report", "--no-mlflow"]) == 2
    assert "expected the root of a repository" in capsys.readouterr().err


def test_an_unknown_run_and_an_unwritable_place_are_one_line_each(
    inside: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    inside()
    assert cli.main(["report", "--no-mlflow", "no-such-run"]) == 2
    Path("taken").write_text("a file")
    assert cli.main(["report", "--no-mlflow", "--out", "taken/page.html"]) == 2
    assert [line.partition(": expected")[0] for line in capsys.readouterr().err.splitlines()] == [
        "regrpo report: no-such-run",
        "regrpo report: taken/page.html",
    ]


def test_the_splits_stand_in_the_order_of_their_use() -> None:
    verdict = contents.Verdict(
        passed=True, rows={"dev": 1, "eval": 2, "other": 5, "sft": 3, "train": 4}, checks=[]
    )
    assert [name for name, _ in verdict.splits] == ["sft", "train", "dev", "eval", "other"]


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
    assert done.stdout.splitlines()[-1].endswith("regrpo report")
    ignored = subprocess.run(["git", "check-ignore", "-q", str(PAGE)], cwd=ROOT, check=False)
    assert ignored.returncode == 0 or not (ROOT / ".git").exists()


def test_text_keeps_its_lines_few() -> None:
    assert pages._brief("a\n" * 50, 1000).count("\n") == 12
    assert pages._brief("x" * 50, 10) == "x" * 9 + "…"


def test_an_unknown_state_of_records_raises_no_traceback(inside: Callable[..., Path]) -> None:
    inside(upto="prepare")
    edit_record("prepare", lambda record: record.update(schema_version=99))
    with pytest.raises(CannotCheck, match="schema_version"):
        read()


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    digits = colour.lstrip("#")
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    channels = (int(digits[index : index + 2], 16) / 255 for index in (0, 2, 4))
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_aa_contrast_and_chart_lines_stand_out(scheme: str) -> None:
    style = (Path(pages.__file__).parent / "templates/page.html.j2").read_text()
    blocks = re.findall(r":root \{\s*(--page[^}]*--c5[^}]*)\}", style)
    assert len(blocks) == 2
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", blocks[scheme == "dark"]))

    def contrast(one: str, other: str) -> float:
        dark, light = sorted((luminance(colours[one]), luminance(colours[other])))
        return (light + 0.05) / (dark + 0.05)

    for ground in ("page", "card"):
        for ink in ("ink", "soft", "link", "good", "bad", "unsure"):
            assert contrast(ink, ground) >= 4.5, (ink, ground)
        for line in ("c0", "c1", "c2", "c3", "c4", "c5"):
            assert contrast(line, ground) >= 3, (line, ground)
    for kind in ("good", "bad", "unsure"):
        assert min(contrast(kind, f"{kind}-bg"), contrast("ink", f"{kind}-bg")) >= 4.5
