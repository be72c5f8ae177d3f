"""The evaluate stage.

The real lm-eval on tiny models, and the tasks' wiring on a model whose every answer is known.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from regrpo.core import files
from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.profiles import parse_section
from regrpo.core.verifiers import VERIFIERS
from regrpo.evaluate import stats
from tests.support.projects import edit_yaml, make_project, run

OURS = ["heldout", "heldout_sampled", "heldout_answer_prefilled", "heldout_reasoning_prefilled"]
MODELS = ("base", "sft", "grpo")
OUTPUTS = ("metrics.json", "samples.parquet", "comparison.png")
VERIFIER = VERIFIERS["exact_int"]


def write_data(
    folder: Path, style: str = "text", verifier: str = "exact_int", questions: int = 24
) -> list[dict[str, Any]]:
    """data/prepared/ as prepare writes it, evaluation split only."""
    rows = []
    for index in range(questions):
        a, b, c = index % 10, (index * 7) % 10, (index * 3 + 1) % 10
        text, total = f"{a}+{b}-{c}=", a + b - c
        rows.append(
            {
                "id": f"q{index:02d}",
                "prompt": text if style == "text" else chat(text),
                "question": text,
                "answer": str(total),
                "solution": f"<think>{a + b}</think><answer>{total}</answer>",
                "source_row": index,
            }
        )
    files.write_parquet(folder / "data/prepared/eval.parquet", pd.DataFrame(rows))
    files.write_json(
        folder / "data/prepared/dataset.json", {"verifier": verifier, "prompt_style": style}
    )
    return rows


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Add."}, {"role": "user", "content": text}]


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


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository after the stage ran, as a process, on ours and the example task."""
    folder = make_project(tmp_path_factory.mktemp("evaluate") / "project", with_git=False)
    write_models(folder, write_data(folder))
    tasks = [*OURS, "example_two_terms"]
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
        == {*OURS, "heldout_format", "example_two_terms"}
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
    assert len(keys) == 6 * 3 * 20
    assert not keys.duplicated().any()
    assert keys.equals(keys.sort_values(list(keys.columns), ignore_index=True))


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
    }
    assert metrics["tasks"]["example_two_terms"]["metric"] == "exact_match,answer"


def test_a_second_run_writes_the_same_bytes(evaluated: Path) -> None:
    first = {name: (evaluated / "reports/evaluate" / name).read_bytes() for name in OUTPUTS}
    shutil.rmtree(evaluated / "reports/evaluate")
    run(evaluated, "python", "-m", "stages.evaluate", REGRPO_TRACKING="off")
    assert {name: (evaluated / "reports/evaluate" / name).read_bytes() for name in OUTPUTS} == first
    assert b"Software" not in first["comparison.png"]


# What follows asks in this process, of a model whose every answer is known.


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with our tasks and the example, as the working folder.

    The environment is put back afterwards.
    """
    source = Path(__file__).parents[2]
    for name in ("stages/eval_tasks", "custom/eval_tasks"):
        shutil.copytree(
            source / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    yield tmp_path
    os.environ.clear()
    os.environ.update(before)


def known(answers: Callable[[str], str]) -> Any:
    """A stand-in for a model: completes every context as `answers` says, and keeps the requests."""
    from lm_eval.api.model import LM

    class Known(LM):  # type: ignore[misc]
        max_length = 64
        asked: list[tuple[str, dict[str, Any]]]

        def generate_until(self, requests: Any) -> list[str]:
            self.asked = [request.args for request in requests]
            return [answers(context) for context, _ in self.asked]

        def loglikelihood(self, requests: Any) -> Any: ...
        def loglikelihood_rolling(self, requests: Any) -> Any: ...

        def apply_chat_template(
            self, messages: list[dict[str, str]], add_generation_prompt: bool = True
        ) -> str:
            turns = "".join(f"[{message['role']}]{message['content']}" for message in messages)
            return turns + "[assistant]" * add_generation_prompt

    return Known()


def ask(name: str, lm: Any, **settings: Any) -> list[dict[str, Any]]:
    from regrpo.evaluate import harness, tasks

    (task,) = tasks.find_tasks([name], "exact_int")
    return harness.ask(
        task, lm, **{"chat": False, "max_gen_toks": 9, "limit": None, "seed": 0} | settings
    )


@pytest.mark.parametrize("style", ["text", "chat"])
def test_a_prefilled_control_opens_the_completion_for_the_model(root: Path, style: str) -> None:
    rows = {row["question"]: row for row in write_data(root, style)}

    def answers(context: str) -> str:
        question, _, opening = (
            context.rpartition("[user]")[2].replace("[assistant]", "").partition("=")
        )
        solution = rows[f"{question}="]["solution"]
        # It knows how to go on from either opening, and blurts a wrong answer else.
        _, _, stated = solution.partition("<answer>")
        return {
            "<think>": solution.removeprefix("<think>"),
            "<answer>": stated,
            "": "<answer>99</answer>",
        }[opening]

    lm = known(answers)
    for name, opening, score in (
        ("heldout", "", 0.0),
        ("heldout_answer_prefilled", "<answer>", 1.0),
        ("heldout_reasoning_prefilled", "<think>", 1.0),
    ):
        found = ask(name, lm, chat=style == "chat")
        assert {row["value"] for row in found if row["task"] == name} == {score}
        first = next(iter(rows))
        expected = first if style == "text" else f"[system]Add.[user]{first}[assistant]"
        assert found[0]["prompt"] == lm.asked[0][0] == expected + opening


def test_settings_reach_the_model_and_only_the_models_end_ends_a_completion(root: Path) -> None:
    write_data(root)
    lm = known(lambda context: "")
    assert len(ask("heldout", lm, limit=5, max_gen_toks=7)) == 2 * 5, (
        "accuracy and format of five questions"
    )
    _, settings = lm.asked[0]
    assert (settings["max_gen_toks"], settings["do_sample"], settings["until"]) == (7, False, [])
    ask("heldout_sampled", lm)
    drawn = {key: lm.asked[0][1][key] for key in ("do_sample", "temperature", "top_p", "top_k")}
    assert drawn == {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
    with pytest.raises(Refused, match="max_gen_toks: expected less than the model's window"):
        ask("heldout", lm, max_gen_toks=64)


def test_the_example_task_scores_right_and_wrong(root: Path) -> None:
    right = known(lambda context: f"<answer>{eval(context.removesuffix('='))}")
    assert {row["value"] for row in ask("example_two_terms", right)} == {1.0}
    assert {
        row["value"] for row in ask("example_two_terms", known(lambda context: "<answer>77"))
    } == {0.0}


def test_a_continuous_metric_of_the_users_own_is_read_and_a_value_that_is_no_number_refused(
    root: Path,
) -> None:
    (root / "custom/eval_tasks/lengths.yaml").write_text(
        (root / "custom/eval_tasks/example.yaml")
        .read_text()
        .replace("example_two_terms", "lengths")
        .replace("exact_match", "length")
        .replace("filter_list", "process_results: !function lengths.length\nfilter_list")
    )
    (root / "custom/eval_tasks/lengths.py").write_text(
        "def length(doc, results):\n    return {'length': len(results[0]) / 4 if results[0] != '7' else float('nan')}\n"
    )
    found = ask("lengths", known(lambda context: "<answer>10"))
    assert {row["value"] for row in found} == {0.5}
    assert stats.kind_of([row["value"] for row in found]) == "continuous"
    with pytest.raises(
        Refused, match=r"lengths, question 000000: expected a finite number as length; found nan"
    ):
        ask("lengths", known(lambda context: "<answer>7"))


def test_an_unknown_task_is_refused_with_the_nearest_names(root: Path) -> None:
    from regrpo.evaluate import tasks

    write_data(root)
    (root / "custom/eval_tasks/broken.yaml").write_text("task: [mine\n")
    found = (
        r"'heldout_sampeld', which is none; custom/eval_tasks/broken\.yaml cannot be read as YAML"
    )
    with pytest.raises(Refused, match=rf"{found}\. Did you mean heldout_sampled"):
        tasks.find_tasks(["heldout", "heldout_sampeld"], "exact_int")


def test_our_tasks_are_refused_where_the_data_have_no_verifier_and_others_are_not(
    root: Path,
) -> None:
    from regrpo.evaluate import tasks

    write_data(root, verifier="none")
    with pytest.raises(
        Refused,
        match=r"heldout: .*verifier none\)\. Name heldout_text, tasks of your own .* or lm-eval's",
    ):
        tasks.find_tasks(["heldout"], "none")
    (task,) = tasks.find_tasks(["example_two_terms"], "none")
    assert [metric.key for metric in task.metrics] == ["example_two_terms"]


def test_a_stock_task_keeps_its_own_metrics(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    from regrpo.evaluate import harness, tasks

    def local(path: str, name: str | None = None, **_: Any) -> Any:
        assert path == "openai/gsm8k"
        rows = [
            {"question": f"What is {n} and 1?", "answer": f"It is more.\n#### {n + 1}"}
            for n in range(8)
        ]
        return datasets.DatasetDict(
            {split: datasets.Dataset.from_list(rows) for split in ("train", "test")}
        )

    monkeypatch.setattr(datasets, "load_dataset", local)
    (task,) = tasks.find_tasks(["gsm8k"], "exact_int")
    assert [(metric.key, metric.label, metric.role) for metric in task.metrics] == [
        ("gsm8k", "exact_match,strict-match", "stock"),
        ("gsm8k_exact_match_flexible-extract", "exact_match,flexible-extract", "stock"),
    ]
    lm = known(lambda context: "It is 5, so the answer is 5.")
    found = harness.ask(task, lm, chat=False, max_gen_toks=9, limit=None, seed=0)
    right = {
        row["task"]: sum(one["value"] for one in found if one["task"] == row["task"])
        for row in found
    }
    assert right == {"gsm8k": 0, "gsm8k_exact_match_flexible-extract": 1}


def test_data_out_of_reach_are_told_in_one_line(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def offline(*_: Any, **__: Any) -> Any:
        raise ConnectionError("no network\nand a long story")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        CannotCheck, match=r"example_two_terms: .*found ConnectionError: no network\. Mend custom/"
    ):
        ask("example_two_terms", None)


def test_a_metric_that_is_no_mean_over_questions_is_refused(root: Path) -> None:
    text = (root / "custom/eval_tasks/example.yaml").read_text()
    (root / "custom/eval_tasks/middle.yaml").write_text(
        text.replace("example_two_terms", "middle").replace(
            "aggregation: mean", "aggregation: median"
        )
    )
    with pytest.raises(Refused, match="middle: expected a metric that is a mean over questions"):
        ask("middle", known(lambda context: ""))


def test_vllm_is_refused_where_it_cannot_run() -> None:
    from regrpo.core import hardware

    with pytest.raises(
        Refused, match=r"backend: expected a CUDA device and the vllm package.*found device cpu"
    ):
        hardware.require_vllm("evaluate.backend", "backend: hf", "cpu")


def test_vllm_gets_its_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import SimpleNamespace

    from regrpo.evaluate import harness

    given: dict[str, Any] = {}
    stand_in = SimpleNamespace(VLLM=lambda **arguments: given.update(arguments))
    monkeypatch.setitem(sys.modules, "lm_eval.models.vllm_causallms", stand_in)
    harness.load_model(
        Path("models/sft"),
        backend="vllm",
        device="cuda",
        batch_size="auto",
        seed=3,
        model_args={"gpu_memory_utilization": 0.5},
    )
    assert given == {
        "pretrained": "models/sft",
        "batch_size": "auto",
        "dtype": "auto",
        "seed": 3,
        "gpu_memory_utilization": 0.5,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": []}, "tasks"),
        ({"batch_size": 0}, "batch_size"),
        ({"limit": 0}, "limit"),
        ({"backend": "gguf"}, "backend"),
        ({"max_gen_tokens": 3}, "did you mean `max_gen_toks`"),
        ({"model_args": {"trust_remote_code": True}}, "trust_remote_code: set by regrpo"),
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


def test_the_picture_shows_what_there_is(tmp_path: Path) -> None:
    from regrpo.evaluate import picture

    def task(role: str, kind: str = "binary") -> dict[str, Any]:
        one = {"value": 0.5, "stderr": 0.1, "ci95": [0.4, 0.6]}
        return {
            "metric": "accuracy",
            "kind": kind,
            "n": 9,
            "role": role,
            "models": dict.fromkeys(MODELS, one),
        }

    for number, (headline, tasks) in enumerate(
        [
            ("heldout", {"heldout": task("headline")}),
            (None, {"heldout_sampled": task("sampled")}),
            (None, {"mine": task("custom", "continuous"), "gsm8k": task("stock")}),
            (
                "text",
                {"text": task("headline", "continuous"), "text_chrf": task("main", "continuous")},
            ),
        ]
    ):
        picture.draw({"headline": headline, "tasks": tasks}, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")


def test_text_is_compared_with_its_reference_and_judged(root: Path) -> None:
    from types import SimpleNamespace

    from regrpo.evaluate import harness, tasks

    rows = write_data(root, verifier="none", questions=3)
    for row in rows:
        row |= {"answer": f"the sum of {row['id']} is {row['answer']}", "solution": None}
    files.write_parquet(root / "data/prepared/eval.parquet", pd.DataFrame(rows))
    length = SimpleNamespace(
        spec=SimpleNamespace(positive=["long"], negative=[]),
        values=lambda texts: [len(text) / 100 for text in texts],
    )
    judges: Any = {"length": length, "again": length}
    (found,) = tasks.find_tasks(["heldout_text"], "none")
    task = tasks.with_judges(found, judges)
    lm = known(lambda context: next(row["answer"] for row in rows if row["prompt"] == context))
    asked = harness.ask(task, lm, chat=False, max_gen_toks=9, limit=None, seed=0)
    judged = tasks.judged(task, asked, judges)
    by_metric = {
        key: [row["value"] for row in (*asked, *judged) if row["task"] == key]
        for key in (metric.key for metric in task.metrics)
    }
    assert by_metric["heldout_text"] == [1.0] * 3
    assert by_metric["heldout_text_chrf"] == pytest.approx([100.0] * 3)
    assert (
        by_metric["heldout_text_classifiers"]
        == by_metric["heldout_text_length"]
        == by_metric["heldout_text_again"]
    )
    assert by_metric["heldout_text_length"] == [len(row["answer"]) / 100 for row in rows]
    assert {metric.kind for metric in task.metrics} == {"continuous"}
    assert tasks.with_judges(found, {}) == found


def test_a_question_without_reference_is_refused_by_name(root: Path) -> None:
    from regrpo.evaluate import tasks

    rows = write_data(root, verifier="none", questions=4)
    rows[2]["answer"] = None
    files.write_parquet(root / "data/prepared/eval.parquet", pd.DataFrame(rows))
    with pytest.raises(
        Refused, match=r"eval\.parquet: expected a reference .*found none for q02\."
    ):
        tasks.find_tasks(["heldout_text"], "none")


def test_the_headline_is_one_of_what_the_tasks_measure(root: Path) -> None:
    from regrpo.evaluate import tasks
    from stages.evaluate import find_headline

    write_data(root)
    tasks = tasks.find_tasks(["heldout", "heldout_text"], "exact_int")
    assert find_headline(tasks, None) == "heldout"
    assert find_headline(tasks, "heldout_text_chrf") == "heldout_text_chrf"
    assert find_headline(tasks[1:], None) is None
    with pytest.raises(
        Refused,
        match=r"evaluate\.headline: expected one of heldout, heldout_format, .*found accuracy",
    ):
        find_headline(tasks, "accuracy")


def test_where_few_shot_examples_come_from_is_kept(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    from regrpo.evaluate import tasks

    def local(path: str, name: str | None = None, **_: Any) -> Any:
        rows = [{"question": f"What is {n} and 1?", "answer": f"#### {n + 1}"} for n in range(8)]
        return datasets.DatasetDict(
            {split: datasets.Dataset.from_list(rows) for split in ("train", "test")}
        )

    monkeypatch.setattr(datasets, "load_dataset", local)
    found = {
        task.name: task.few_shot
        for task in tasks.find_tasks(["gsm8k", "gsm8k_platinum"], "exact_int")
    }
    assert found["gsm8k"] == {"examples": 5, "dataset": "openai/gsm8k", "split": "train"}
    assert found["gsm8k_platinum"] == {
        "examples": 5,
        "dataset": "madrylab/gsm8k-platinum",
        "split": "test",
    }
    write_data(root)
    assert tasks.find_tasks(["heldout"], "exact_int")[0].few_shot is None
