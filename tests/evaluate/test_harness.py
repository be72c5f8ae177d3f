"""Asking: the tasks' wiring on a model whose every answer is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regrpo.core.errors import Refused
from regrpo.evaluate import harness, stats
from tests.support.questions import ask, known, write_data


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
    ask("heldout_sampled", lm, max_gen_toks=64 - len("1+2-3="))
    too_much = r"max_gen_toks: expected prompt and completion .*64 tokens.*; found 6 \+ 59 for held"
    with pytest.raises(Refused, match=too_much):
        ask("heldout", lm, max_gen_toks=59)
    with pytest.raises(Refused, match=r"found 6 \+ 60 for heldout_longer"):
        ask("heldout_longer", lm, max_gen_toks=15)
    with pytest.raises(Refused, match=r"found 14 \+ 52 for heldout_answer_prefilled"):
        ask("heldout_answer_prefilled", lm, max_gen_toks=52)


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
        "def length(doc, results):\n"
        "    return {'length': len(results[0]) / 4 if results[0] != '7' else float('nan')}\n"
    )
    found = ask("lengths", known(lambda context: "<answer>10"))
    assert {row["value"] for row in found} == {0.5}
    assert stats.kind_of([row["value"] for row in found]) == "continuous"
    with pytest.raises(
        Refused, match=r"lengths, question 000000: expected a finite number as length; found nan"
    ):
        ask("lengths", known(lambda context: "<answer>7"))


def test_vllm_is_refused_where_it_cannot_run() -> None:
    from regrpo.core import hardware

    with pytest.raises(
        Refused, match=r"backend: expected a CUDA device and the vllm package.*found device cpu"
    ):
        hardware.require_vllm("evaluate.backend", "backend: hf", "cpu")


def test_a_backend_is_told_where_completions_end_and_what_the_profile_asks(
    root: Path,
) -> None:
    write_data(root)
    lm = known(lambda context: "")
    assert harness.decoding_by("hf", [1, 5]) == {}
    decoding = harness.decoding_by("vllm", [1, 5])
    ask("heldout", lm, decoding=decoding, gen_kwargs={"repetition_penalty": 1.2})
    _, settings = lm.asked[0]
    wanted = {"stop_token_ids": [1, 5], "skip_special_tokens": True, "repetition_penalty": 1.2}
    assert wanted.items() <= settings.items()


def test_vllm_gets_its_own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import SimpleNamespace

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
        stops=[1, 5],
    )
    assert given == {
        "pretrained": "models/sft",
        "batch_size": "auto",
        "dtype": "auto",
        "seed": 3,
        "gpu_memory_utilization": 0.5,
    }
