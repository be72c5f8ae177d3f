"""The validate stage: what it reads, its report, and how it refuses."""

from __future__ import annotations

import contextlib
import copy
import json
import re
import shutil
from collections import Counter
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from regrpo.core import conversation, files
from regrpo.core.errors import Refused
from regrpo.core.profiles import parse_section, read_profile
from regrpo.inputs import gate
from stages import prepare, validate
from tests.support.frames import in_this_process
from tests.support.splits import CANONICAL, EXACT, LIMITS, good, row, table, trip_on, write


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


@pytest.fixture(scope="module")
def passed(check: Callable[..., gate.Verdict]) -> gate.Verdict:
    """The verdict on good rows: one without a solution, two badly written ones, a long prompt."""
    splits = good()
    splits["train"][1]["solution"] = None
    splits["train"][2]["solution"] = f"So: <answer>{splits['train'][2]['answer']}</answer>"
    spaced = f"<think>\n0 < 9\n</think>\n<answer>\n{splits['sft'][0]['answer']}\n</answer>"
    splits["sft"][0]["solution"] = spaced
    splits["eval"][1] |= {"prompt": "040+0001=", "question": "040+0001="}
    return check(splits)


def test_hostile_text_is_markup_nowhere_in_the_report_and_controls_no_terminal(
    check: Callable[..., gate.Verdict], passed: gate.Verdict
) -> None:
    dataset = {
        "source": "a",
        "license": "MIT",
        "format": "chain_sum",
        "verifier": "exact_int",
        "prompt_style": "text",
        "revision": "r",
    }
    page = validate.page(passed, dataset, LIMITS)
    clean = Page(page)
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
        assert loaded not in page


@pytest.fixture
def prepared(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base and eight prompts in train."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(base, "models/base")
    Path("data/prepared").mkdir(parents=True)
    files.write_json(Path("data/prepared/dataset.json"), {"max_prompt_tokens": None})
    write(
        Path("data/prepared/train.parquet"), table([row("train", i, f"{i}+1=") for i in range(8)])
    )
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"per_device_train_batch_size": 48}, r"takes 12 different ones .*; found 8 in train"),
        ({"gradient_accumulation_steps": 4}, r"takes 16 different ones"),
        ({"generation_batch_size": 64}, r"takes 16 different ones"),
        ({"launch": {"processes": 3, "backend": "gloo"}}, r"takes 12 different ones"),
        ({"reward_funcs": {"think_format_reward": 1.0}}, "think_format_reward: expected 3 finite"),
    ],
)
def test_what_would_fail_only_in_grpo_is_refused_before_sft(
    prepared: Path, changes: dict[str, Any], said: str
) -> None:
    grpo = {
        "seed": 0,
        "threads": 1,
        "max_steps": 1,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 16,
        "num_generations": 4,
        "max_completion_length": 59,
        "reward_funcs": {"exact_answer": 1.0, "length_penalty": 0.1, "polite": 1.0},
        "classifiers": {"polite": {}},
    }
    train = files.ParquetFile(Path("data/prepared/train.parquet"))
    dataset = files.read_json(Path("data/prepared/dataset.json"))
    given = (dataset, train, EXACT, conversation.load_tokenizer(Path("models/base")))
    assert validate.require_trainable(grpo, *given) == []
    with pytest.raises(Refused, match=said):
        validate.require_trainable(grpo | changes, *given)


@pytest.mark.parametrize(
    ("longest", "evaluated", "said"),
    [
        ({"train": 20, "dev": 25, "eval": 30}, {}, None),
        ({"train": 24, "dev": 26, "eval": 30}, {}, r"grpo\.max_completion_length.*found 33"),
        ({"train": 9, "dev": 9, "eval": 31}, {}, r"evaluate\.max_gen_toks: .*32 tokens.*found 33"),
        ({"train": 9, "dev": 9, "eval": 31}, {"tasks": ["gsm8k"]}, None),
    ],
)
def test_completions_are_held_against_the_bases_window(
    longest: dict[str, int], evaluated: dict[str, Any], said: str | None
) -> None:
    profile = {
        "grpo": {"dev_every": 2, "max_completion_length": 7},
        "evaluate": {"tasks": ["heldout"], "max_gen_toks": 2} | evaluated,
    }
    verdict = gate.Verdict({}, [], longest=longest, answers={"train": Counter(), "eval": Counter()})
    assert list(validate.require_room(profile, verdict, {"window": None})) == []
    with contextlib.ExitStack() as stack:
        if said:
            stack.enter_context(pytest.raises(Refused, match=said))
        assert list(validate.require_room(profile, verdict, {"window": 32})) == []


def test_answers_longer_than_completions_may_be_are_said(passed: gate.Verdict) -> None:
    verdict = copy.deepcopy(passed)
    # <answer>21</answer> is 4 tokens, and shorter than a solution
    assert verdict.answers == {split: Counter({4: 4}) for split in good()}
    evaluate = {"tasks": ["heldout"], "max_gen_toks": 4}
    profile = {"grpo": {"dev_every": 0, "max_completion_length": 4}, "evaluate": evaluate}
    assert list(validate.require_room(profile, verdict, {"window": None})) == []
    profile["grpo"]["max_completion_length"] = 3
    verdict.answers["train"][3] = 1
    profile["evaluate"]["max_gen_toks"] = 2
    trained, evaluated = validate.require_room(profile, verdict, {"window": None})
    assert trained == (
        "grpo.max_completion_length: 4 of 5 right answers of train need more than 3 tokens, and "
        "can never be given (the longest: 4)"
    )
    assert evaluated.startswith("evaluate.max_gen_toks: 4 of 4 right answers of eval need more")


def test_the_gate_knows_each_splits_longest_prompt(passed: gate.Verdict) -> None:
    assert passed.longest == {"sft": 6, "train": 6, "dev": 6, "eval": 10}


def test_solutions_that_score_and_are_not_formatted_are_named(passed: gate.Verdict) -> None:
    assert (passed.failed, passed.unformatted) == ([], ("train train-2",))
    assert passed.as_json()["unformatted_solutions"] == 1


def test_the_gate_takes_the_columns_that_were_kept_and_no_others(
    base: Path, tmp_path: Path
) -> None:
    rows = good()["train"]
    extended = table(rows).append_column("level", pa.array([1] * len(rows)))
    given = {"train": write(tmp_path / "train.parquet", extended)}
    trip = trip_on(base, "text", EXACT)
    run_gate = partial(gate.check, given, CANONICAL, EXACT, trip, LIMITS, None)
    assert run_gate(("level",)).failed == []
    assert {one.check for one in run_gate().failed} == {"schema"}
    assert {one.check for one in run_gate(("level", "tests")).failed} == {"schema"}


def test_the_stage_refuses_by_name_and_leaves_its_reports(
    project: Callable[..., Path],
    base: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
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
            "grpo": {"per_device_train_batch_size": 4, "num_generations": 4},
        },
        with_git=False,
    )
    shutil.copytree(base, folder / "models/base")
    stops = {"text": {"<eos>": 1}, "chat": None}
    source = {"window": 64, "conversation": {"stop_tokens": stops}}
    files.write_json(folder / "reports/base_model/source.json", source)
    rows = [{"question": f"{i}+1=", "answer": str(i + 1)} for i in range(20)]
    held_out = [{"question": f"{i}+2=", "answer": str(i + 2)} for i in (3, 4, 2, 5)]
    bad = [
        *rows,
        {"question": "1" * 80 + "+1=", "answer": "1"},
        {"question": "2+2=", "answer": "4"},
    ]

    for name, part in (("train", bad), ("eval", held_out)):
        lines = [json.dumps(one) + "\n" for one in part]
        (folder / f"data/raw/{name}.jsonl").write_text("".join(lines))
    monkeypatch.chdir(folder)
    values = read_profile(Path("params.yaml"))["prepare"]
    prepare.prepare(parse_section(prepare.Params, values, "prepare"))
    capfd.readouterr()
    with in_this_process(), pytest.raises(SystemExit) as ended:
        validate.main()
    assert ended.value.code == 1
    said = capfd.readouterr().err
    assert said.startswith(
        "validate: data/prepared: expected every check to pass; found 3 of 111 failed:\n"
    )
    assert re.search(
        r"  prompt_length in \w+, 1 failed: train-20 \(source row 20: 84\)\n    Remove or shorten",
        said,
    )
    assert "(its rows count from 0; a prompt may have 64 tokens) and run again" in said
    assert re.search(
        r"  disjoint in eval, 1 failed: eval-2 \(source row 2: also \w+ train-21\)\n", said
    )
    assert "Traceback" not in said
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
