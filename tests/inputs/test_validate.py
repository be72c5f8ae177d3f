"""The validate stage: what it reads, its report, and how it refuses."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from regrpo.core import files
from regrpo.inputs import gate
from stages import validate
from tests.support.projects import run
from tests.support.splits import LIMITS, Rows, good


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"model_type": "llama", "max_position_embeddings": 64}, 64),
        ({"model_type": "gemma3", "text_config": {"max_position_embeddings": 32}}, 32),
        ({"model_type": "gpt2", "n_positions": 48}, 48),
        ({"model_type": "mamba"}, None),
    ],
)
def test_the_window_is_read_from_the_models_configuration(
    tmp_path: Path, config: Any, found: int | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert validate.window(tmp_path) == found


class Page(HTMLParser):
    """Collects the tags, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = '\x1b[31m\u202e{{ 7*7 }}<b>"><script>alert(1)</script><img src=x onerror=alert(1)>&lt;'


def test_hostile_text_is_markup_nowhere_in_the_report_and_controls_no_terminal(
    check: Callable[..., gate.Verdict],
) -> None:
    dataset = {
        "source": "a",
        "license": "MIT",
        "format": "chain_sum",
        "verifier": "exact_int",
        "prompt_style": "text",
        "revision": "r",
    }
    clean = Page(validate.page(check(good()), dataset, LIMITS))
    splits = good()
    for name in ("id", "question", "prompt", "answer", "solution"):
        splits["train"][0][name] = HOSTILE
    verdict = check(splits)
    hostile = validate.page(verdict, dict.fromkeys(dataset, HOSTILE), LIMITS)
    parsed = Page(hostile)
    assert parsed.tags - clean.tags == {"section", "h3", "bdi"}
    assert not parsed.tags & {"script", "img"}
    assert parsed.attributes <= clean.attributes
    assert '{{ 7*7 }}<b>"><script>alert(1)</script><img src=x onerror=alert(1)>&lt;' in parsed.text
    for text in (hostile, verdict.message()):
        assert not set(text) & {"\x1b", "\u202e"}
        assert "\\x1b[31m\\u202e" in text
    for loaded in ("http:", "https:", "@import", "url(", " src=", "<link"):
        assert loaded not in validate.page(check(good()), dataset, LIMITS)


def test_the_stage_refuses_by_name_leaves_its_reports_and_passes_mended_data(
    project: Callable[..., Path], base: Path
) -> None:
    folder = project(
        {
            "prepare": {
                "source": {
                    "kind": "local",
                    "train": "train.jsonl",
                    "eval": "eval.jsonl",
                    "license": "MIT",
                },
                "format": "question_answer",
                "drop_duplicates": False,
                "eval": None,
                "dev": 4,
                "sft": 0.5,
            },
            "validate": {"max_prompt_tokens": 500, "min_rows": 4},
        },
        with_git=False,
    )
    shutil.copytree(base, folder / "models/base")
    rows = [{"question": f"{i}+1=", "answer": str(i + 1)} for i in range(20)]
    held_out = [{"question": f"{i}+2=", "answer": str(i + 2)} for i in (3, 4, 2, 5)]
    bad = [
        *rows,
        {"question": "1" * 80 + "+1=", "answer": "1"},
        {"question": "2+2=", "answer": "4"},
    ]

    def go(train: Rows) -> Any:
        for name, part in (("train", train), ("eval", held_out)):
            (folder / f"data/raw/{name}.jsonl").write_text(
                "".join(json.dumps(one) + "\n" for one in part)
            )
        run(folder, "python", "-m", "stages.prepare")
        return run(folder, "python", "-m", "stages.validate", check=False)

    done = go(bad)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "validate: data/prepared: expected every check to pass; found 3 of 111 failed:\n"
    )
    assert re.search(
        r"  prompt_length in \w+, 1 failed: train-20 \(source row 20: 84\)\n    Remove or shorten",
        done.stderr,
    )
    assert re.search(
        r"  disjoint in eval, 1 failed: eval-2 \(source row 2: also \w+ train-21\)\n", done.stderr
    )
    assert "Traceback" not in done.stderr
    reports = folder / "reports/validate"
    verdict = files.read_json(reports / "verdict.json")
    assert (verdict["passed"], verdict["failed_checks"]) == (False, 3)
    assert set(pq.read_table(reports / "failures.parquet")["id"].to_pylist()) == {
        "train-20",
        "train-21",
        "eval-2",
    }
    assert "The gate refused this data" in (reports / "report.html").read_text()
    assert not (reports / "run.json").exists()
    (journal,) = (folder / ".regrpo/journal").glob("*-validate")
    assert (journal / "files/data_docs/index.html").exists()
    assert files.read_json(journal / "closed.json")["status"] == "FAILED"

    done = go(rows)
    assert (done.returncode, done.stderr) == (0, "")
    assert files.read_json(reports / "verdict.json")["passed"] is True
    assert (reports / "run.json").exists()
