"""The evaluate stage as a process: the real lm-eval on tiny models that know what was taught."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from regrpo.core import files
from regrpo.core.errors import Refused
from regrpo.core.profiles import parse_section, read_yaml
from regrpo.core.verifiers import VERIFIERS
from regrpo.evaluate import stats, summary, tasks
from regrpo.evaluate.results import ANSWERS, MODELS, read_answers
from stages import evaluate
from tests.support.projects import ROOT, edit_yaml, make_project, run
from tests.support.questions import KEPT, write_data

OURS = ["heldout", "heldout_sampled", "heldout_answer_prefilled", "heldout_reasoning_prefilled"]
OUTPUTS = ("metrics.json", "answers.json", "samples.parquet", "comparison.png")
VERIFIER = VERIFIERS["exact_int"]


def write_models(folder: Path, rows: list[dict[str, Any]]) -> None:
    """base knows nothing; sft blurts out the answers it was shown; grpo works each question out.

    In seconds.
    """
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, set_seed

    from regrpo.core.tokenizers import character_tokenizer

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    set_seed(0)
    tokenizer = character_tokenizer(["<think>", "</think>", "<answer>", "</answer>"])
    config = Gemma3TextConfig(
        vocab_size=112,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        query_pre_attn_scalar=32,
        sliding_window=32,
        max_position_embeddings=64,
        initializer_range=0.08,
        layer_types=["sliding_attention", "full_attention"],
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    model = Gemma3ForCausalLM(config)

    def learn(texts: list[tuple[str, str]], steps: int) -> None:
        batch = tokenizer(
            [a + b + "<eos>" for a, b in texts],
            return_tensors="pt",
            padding=True,
            padding_side="right",
        )
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        for row, (prompt, _) in enumerate(texts):
            labels[row, : len(tokenizer(prompt)["input_ids"])] = -100
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(steps):
            model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels
            ).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    blurted = [(row["prompt"], VERIFIER.render(row["answer"])) for row in rows[::2]]
    worked = [(row["prompt"], row["solution"]) for row in rows]
    for name, texts, steps in (("base", [], 0), ("sft", blurted, 80), ("grpo", worked, 120)):
        if steps:
            learn(texts, steps)
        model.save_pretrained(folder / "models" / name)
        tokenizer.save_pretrained(folder / "models" / name)
    torch.set_num_threads(threads)


BY_LEVEL = """\
task: by_level
dataset_path: parquet
dataset_kwargs: {data_files: {test: data/prepared/eval.parquet}}
test_split: test
output_type: generate_until
doc_to_text: "{{meta.tests | join('')}}{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: [], do_sample: false, max_gen_toks: 4}
process_results: !function levels.level
metric_list: [{metric: level, aggregation: mean, higher_is_better: true}]
"""
LEVELS = "def level(doc, results):\n    return {'level': (doc['level'] or 0) / 3}\n"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository after the stage ran, as a process, on ours and the example task."""
    folder = make_project(tmp_path_factory.mktemp("evaluate") / "project", with_git=False)
    write_models(folder, write_data(folder, keep=True))
    (folder / "custom/eval_tasks/by_level.yaml").write_text(BY_LEVEL)
    (folder / "custom/eval_tasks/levels.py").write_text(LEVELS)
    tasks = [*OURS, "example_two_terms", "by_level"]
    edit_yaml(
        folder / "params.yaml",
        {"evaluate": {"tasks": tasks, "limit": 20, "batch_size": 8, "bootstrap": 300}},
    )
    done = run(folder, "python", "-m", "stages.evaluate", REGRPO_TRACKING="off")
    assert len(done.stdout.splitlines()) == len(MODELS) * len(tasks), "one line per model and task"
    assert done.stderr == ""
    return folder


@pytest.fixture
def metrics(evaluated: Path) -> Any:
    return files.read_json(evaluated / "reports/evaluate/metrics.json")


@pytest.fixture
def samples(evaluated: Path) -> pd.DataFrame:
    return files.read_parquet(evaluated / "reports/evaluate/samples.parquet")


def values(samples: pd.DataFrame, task: str, model: str) -> list[float]:
    return list(samples[(samples["task"] == task) & (samples["model"] == model)]["value"])


def test_every_number_is_what_the_samples_give(metrics: Any, samples: pd.DataFrame) -> None:
    drawn = {"resamples": 300, "seed": 0}
    assert (
        set(metrics["tasks"])
        == {*OURS, "heldout_format", "example_two_terms", "by_level"}
        == set(samples["task"])
    )
    for name, task in metrics["tasks"].items():
        assert (task["n"], task["kind"]) == (20, "binary")
        for model in MODELS:
            expected = stats.estimate(values(samples, name, model), "binary", **drawn)
            found = task["models"][model]
            assert [found["value"], found["stderr"], *found["ci95"]] == pytest.approx(
                [expected.value, expected.stderr, *expected.ci95], rel=1e-5
            )
        for pair, found in task["pairs"].items():
            before, after = pair.split("_")
            change = stats.compare(
                values(samples, name, before), values(samples, name, after), "binary", **drawn
            )
            assert found["difference"] == pytest.approx(change.difference, rel=1e-5)
            assert found["ci95"] == pytest.approx(change.ci95, rel=1e-5)
            assert found["p_mcnemar"] == pytest.approx(change.p_mcnemar, rel=1e-5)
            assert (found["gained"], found["lost"]) == (change.gained, change.lost)
            assert found["minimum_detectable_effect"] == pytest.approx(
                change.minimum_detectable_effect, rel=1e-5
            )


def test_our_tasks_are_scored_by_the_verifier_alone(samples: pd.DataFrame) -> None:
    openings = {"heldout_answer_prefilled": "<answer>", "heldout_reasoning_prefilled": "<think>"}
    for row in samples[samples["task"].isin(OURS)].itertuples():
        said = openings.get(row.task, "") + row.completion
        assert row.value == VERIFIER.score(said, row.answer) == float(row.correct)
        assert row.prompt.endswith(f"={openings.get(row.task, '')}")
    for row in samples[samples["task"] == "heldout_format"].itertuples():
        assert row.value == float(VERIFIER.is_formatted(row.completion))


def test_samples_hold_one_row_per_task_model_and_question_in_order(samples: pd.DataFrame) -> None:
    keys = samples[["task", "model", "id"]]
    assert len(keys) == 7 * 3 * 20
    assert not keys.duplicated().any()
    assert keys.equals(keys.sort_values(list(keys.columns), ignore_index=True))


def test_answers_hold_every_value_of_the_samples_and_none_of_their_text(
    evaluated: Path, samples: pd.DataFrame
) -> None:
    data = (evaluated / ANSWERS).read_text()
    assert not any(prompt in data for prompt in samples["prompt"])
    found = read_answers(data).sort_values(["task", "model", "id"], ignore_index=True)
    columns = ["task", "model", "id"]
    assert found[columns].equals(samples[columns])
    assert found["value"].tolist() == pytest.approx(samples["value"].tolist(), rel=1e-5)
    assert found.groupby("task")["asked"].nunique().eq(1).all()
    changed = samples.assign(prompt=samples["prompt"].replace(samples["prompt"][0], "another"))
    other = summary.list_answers(changed)[0]["tasks"]
    before = summary.list_answers(samples)[0]["tasks"]
    assert other["by_level"]["asked"] != before["by_level"]["asked"]


def test_columns_that_were_kept_reach_custom_tasks_and_samples_with_their_types(
    evaluated: Path,
) -> None:
    table = pq.read_table(evaluated / "reports/evaluate/samples.parquet")
    prepared = pq.read_table(evaluated / "data/prepared/eval.parquet")
    for name in KEPT:
        assert table.schema.field(name) == prepared.schema.field(name)
    rows = {row["id"]: row for row in prepared.to_pylist()}
    seen = set()
    for row in table.to_pylist():
        seen.add(row["task"])
        source = dict.fromkeys(KEPT)
        if row["task"] != "example_two_terms":
            number = int(row["id"].removeprefix("q"))
            source = rows[f"q{number:02d}"]
        assert {name: row[name] for name in KEPT} == {name: source[name] for name in KEPT}
        if row["task"] == "by_level":
            assert row["prompt"] == "".join(source["meta"]["tests"]) + source["question"]
            assert row["value"] == (source["level"] or 0) / 3
    assert seen == {*OURS, "heldout_format", "example_two_terms", "by_level"}


def test_what_training_taught_is_what_evaluation_finds(metrics: Any) -> None:
    headline = metrics["tasks"]["heldout"]
    assert headline["models"]["base"]["value"] == 0
    assert headline["models"]["grpo"]["value"] > 0.8
    assert 0.3 < headline["models"]["sft"]["value"] < 0.8
    assert headline["pairs"]["base_grpo"]["p_mcnemar"] < 0.001
    assert metrics["tasks"]["heldout_format"]["models"]["grpo"]["value"] > 0.8


def test_the_gain_is_split_by_the_reasoning_control(metrics: Any) -> None:
    tasks, gain = metrics["tasks"], metrics["gain"]
    sft, grpo = (tasks["heldout"]["models"][model]["value"] for model in ("sft", "grpo"))
    opened = tasks["heldout_reasoning_prefilled"]["models"]["sft"]["value"]
    assert [gain["total"], gain["elicited"], gain["learned"]] == pytest.approx(
        [grpo - sft, opened - sft, grpo - opened]
    )
    assert all(
        gain[f"{part}_ci95"][0] <= gain[part] <= gain[f"{part}_ci95"][1]
        for part in ("total", "elicited", "learned")
    )


def test_roles_and_the_headline_are_named(metrics: Any) -> None:
    assert (metrics["headline"], metrics["verifier"]) == ("heldout", "exact_int")
    assert {name: task["role"] for name, task in metrics["tasks"].items()} == {
        "heldout": "headline",
        "heldout_format": "format",
        "heldout_sampled": "sampled",
        "heldout_answer_prefilled": "control",
        "heldout_reasoning_prefilled": "control",
        "example_two_terms": "custom",
        "by_level": "custom",
    }
    assert metrics["tasks"]["example_two_terms"]["metric"] == "exact_match,answer"


@pytest.mark.slow
def test_a_second_run_writes_the_same_bytes(evaluated: Path) -> None:
    first = {name: (evaluated / "reports/evaluate" / name).read_bytes() for name in OUTPUTS}
    shutil.rmtree(evaluated / "reports/evaluate")
    run(evaluated, "python", "-m", "stages.evaluate", REGRPO_TRACKING="off")
    assert {name: (evaluated / "reports/evaluate" / name).read_bytes() for name in OUTPUTS} == first
    assert b"Software" not in first["comparison.png"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": []}, "tasks"),
        ({"batch_size": 0}, "batch_size"),
        ({"limit": 0}, "limit"),
        ({"backend": "gguf"}, "backend"),
        ({"max_gen_tokens": 3}, "would do: max_gen_toks"),
        ({"model_args": {"trust_remote_code": True}}, "trust_remote_code: set by regrpo"),
        ({"gen_kwargs": {"max_gen_toks": 9, "until": []}}, "max_gen_toks, until: set by regrpo"),
        ({"headline": "accuracy"}, "`headline`: 'accuracy' is no task of `tasks`"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(change: dict[str, Any], message: str) -> None:
    from stages.evaluate import Params

    fine = {
        "seed": 0,
        "threads": 1,
        "tasks": ["heldout"],
        "max_gen_toks": 16,
        "batch_size": 4,
        "bootstrap": 1000,
    }
    assert parse_section(Params, fine, "here").limit is None
    with pytest.raises(Refused, match=message):
        parse_section(Params, fine | change, "here")


@pytest.mark.parametrize(
    ("batch_size", "first"), [(64, "batch_size: 32"), ("auto", "batch_size: 1"), (1, "a lower")]
)
def test_what_lowers_the_peak_is_named_with_a_value_that_would_do(
    batch_size: int | str, first: str
) -> None:
    section = read_yaml(ROOT / "params.yaml")["evaluate"] | {"batch_size": batch_size}
    changes = evaluate.memory_changes(parse_section(evaluate.Params, section, "evaluate"))
    assert changes[0].startswith(first)


def test_the_headline_is_one_of_what_the_tasks_measure(root: Path) -> None:
    from regrpo.evaluate.summary import find_headline

    write_data(root)
    found = tasks.find_tasks(["heldout", "heldout_text"], "exact_int")
    assert find_headline(found, None) == "heldout"
    assert find_headline(found, "heldout_text_chrf") == "heldout_text_chrf"
    assert find_headline(found[1:], None) is None
    with pytest.raises(
        Refused,
        match=r"evaluate\.headline: expected one of heldout, heldout_format, .*found accuracy",
    ):
        find_headline(found, "accuracy")
