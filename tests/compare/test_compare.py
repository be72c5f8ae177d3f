"""regrpo compare on made-up runs of known difference.

What it says, what it refuses, and in which words.
"""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from regrpo import cli
from regrpo.compare import compare, render, runs
from regrpo.core.errors import CannotCheck
from regrpo.core.profiles import read_yaml
from regrpo.tracking import lookup
from regrpo.tracking.address import sqlite_uri
from regrpo.tracking.lookup import Lookup
from tests.support import synthetic
from tests.support.projects import MINIATURE, commit, environment, make_project, run
from tests.support.synthetic import evaluation, experiment, questions, right, write_run

Json = dict[str, Any]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty repository of the pipeline, the current folder."""
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    made = synthetic.make_repository(tmp_path / "repository")
    monkeypatch.chdir(made)
    return made


def compared(*names: str, **options: Any) -> Json:
    return compare.compare(names, Path.cwd(), **options)


def pair_of(result: Json) -> Json:
    (pair,) = result["questions"]["pairs"]
    found: Json = pair
    return found


def headline(result: Json) -> Json:
    found: Json = pair_of(result)["tasks"][0]
    return found


def two(root: Path, before: Json, after: Json, **more: Any) -> Json:
    """The comparison of two experiments with these values per task."""
    experiment(root, "a", evaluation(before))
    experiment(root, "b", evaluation(after), {"grpo.beta": 0.04}, **more)
    return compared("a", "b")


# --- over questions -------------------------------------------------------------------------------


def test_a_better_run_is_called_better_and_the_examples_show_where(root: Path) -> None:
    result = two(root, {"heldout": right(0.5)}, {"heldout": right(0.7)})
    line, pair = headline(result), pair_of(result)
    x, y = np.array(right(0.5)), np.array(right(0.7))
    assert pair["relation"] == "better"
    assert (line["difference"], line["gained"], line["lost"]) == (
        pytest.approx((y - x).mean()),
        int((y > x).sum()),
        0,
    )
    assert line["p_holm"] == line["p"] < 0.001
    assert line["ci95"][0] > 0
    assert re.match(
        r"b is better than a on heldout with 300 questions: 0\.\d+ against 0\.\d+, \+0\.",
        result["verdict"][0],
    )
    assert [one["id"] for one in pair["examples"]["gained"]] == sorted(
        f"eval-{n}" for n in np.flatnonzero(y > x)
    )[:5]
    first = pair["examples"]["gained"][0]
    number = int(first["id"][5:])
    assert (first["question"], first["answer"]) == (f"{number}+1=", str(number + 1))
    assert (first["before"], first["after"]) == ("wrong", str(number + 1))
    assert pair["examples"]["lost"] == []


def test_the_other_way_round_is_exactly_the_same_with_signs_turned(root: Path) -> None:
    there = two(root, {"heldout": right(0.5, seed=1)}, {"heldout": right(0.6, seed=2)})
    back = compared("b", "a")
    x, y = headline(there), headline(back)
    assert y["difference"] == -x["difference"]
    assert y["ci95"] == pytest.approx([-x["ci95"][1], -x["ci95"][0]], abs=1e-12)
    assert (y["gained"], y["lost"], y["p"], y["p_holm"]) == (
        x["lost"],
        x["gained"],
        x["p"],
        x["p_holm"],
    )
    assert (y["questions_needed"], y["minimum_detectable_effect"]) == (
        x["questions_needed"],
        x["minimum_detectable_effect"],
    )
    assert {x["relation"], y["relation"]} in ({"better", "worse"}, {"not distinguishable"})
    assert there["verdict"] != back["verdict"]


def test_two_copies_of_one_run_are_not_distinguishable(root: Path) -> None:
    write_run(root, evaluation({"heldout": right(0.5), "heldout_format": right(0.9)}))
    synthetic.commit(root)
    result = compared("HEAD", "workspace")
    pair = pair_of(result)
    assert (pair["relation"], pair["identical"]) == ("not distinguishable", True)
    assert all(
        (line["difference"], line["p"], line["ci95"]) == (0.0, 1.0, [0.0, 0.0])
        for line in pair["tasks"]
    )
    assert (
        "workspace and HEAD are not distinguishable: their answers are the same, byte for byte"
        in result["verdict"][0]
    )
    assert "HEAD and workspace are one and the same run" in result["notes"]
    assert not any(result["differs"][what] for what in ("parameters", "data", "environment"))
    assert "The same everywhere: parameters, data, environment, code" in render.text(result)


def test_a_difference_too_small_to_see_comes_with_how_many_questions_would_do(root: Path) -> None:
    x = right(0.5, 200)
    y = list(x)
    for index in (0, 1, 2, 3):
        y[index] = 1.0 - y[index]
    y[4 + x[4:].index(0.0)] = 1.0
    result = two(root, {"heldout": x}, {"heldout": y})
    line = headline(result)
    assert pair_of(result)["relation"] == "not distinguishable"
    assert line["questions_needed"] > 200
    assert f"about {line['questions_needed']:,} would show the one seen" in result["verdict"][0]
    assert f"differences from {line['minimum_detectable_effect']:.3f} on" in result["verdict"][0]


def test_without_a_headline_the_main_tasks_decide_and_controls_do_not(root: Path) -> None:
    for name, wrong in (("a", 0), ("b", 60)):
        told = evaluation(
            {"text": [1.0] * wrong + [0.0] * (60 - wrong), "aside": [0.0] * 60}, headline=None
        )
        told[0]["tasks"]["text"]["role"], told[0]["tasks"]["aside"]["role"] = "main", "control"
        experiment(root, name, told)
    assert [(line["task"], line["decisive"]) for line in pair_of(compared("a", "b"))["tasks"]] == [
        ("text", True),
        ("aside", False),
    ]


def test_a_number_is_called_higher_not_better(root: Path) -> None:
    x = np.random.default_rng(0).random(100)
    before, after = (
        evaluation({"loss": x.tolist()}, headline=None),
        evaluation({"loss": (x + 0.3).tolist()}, headline=None),
    )
    experiment(root, "a", before)
    experiment(root, "b", after)
    result = compared("a", "b")
    assert headline(result)["test"] == "paired t test"
    assert result["verdict"][0].startswith("b is higher than a on loss")


def test_several_comparisons_are_corrected(root: Path) -> None:
    x = right(0.5, 100)
    y = list(x)
    for index in [i for i, value in enumerate(x) if not value][:7]:
        y[index] = 1.0
    for number in range(4):
        experiment(
            root,
            f"r{number}",
            evaluation({"heldout": y if number == 3 else x}),
            {"grpo.beta": 0.1 * number},
        )
    assert headline(compared("r0", "r3"))["p_holm"] == pytest.approx(2 * 0.5**7)
    result = compared("r0", "r1", "r2", "r3")
    assert result["questions"]["comparisons"] == 3
    last = result["questions"]["pairs"][-1]["tasks"][0]
    assert (last["p"], last["p_holm"]) == (pytest.approx(2 * 0.5**7), pytest.approx(6 * 0.5**7))
    assert last["questions_needed"] > headline(compared("r0", "r3"))["questions_needed"]


def test_tasks_without_a_headline_all_decide(root: Path) -> None:
    for name, shares in (("a", (0.3, 0.6)), ("b", (0.6, 0.3))):
        values = {"one": right(shares[0]), "two": right(shares[1]), "heldout_sampled": right(0.5)}
        experiment(root, name, evaluation(values, headline=None), {"grpo.beta": shares[0]})
    pair = pair_of(compared("a", "b"))
    assert [(line["task"], line["decisive"], line["relation"]) for line in pair["tasks"]] == [
        ("one", True, "better"),
        ("two", True, "worse"),
        ("heldout_sampled", False, "not distinguishable"),
    ]
    assert pair["relation"] == "mixed"


# --- format ---------------------------------------------------------------------------------------


def formatted(
    knows: list[float], form: list[float], opened: list[float] | None = None
) -> dict[str, list[float]]:
    """Right is who knows and writes in the asked form."""
    tasks = {"heldout": [a * b for a, b in zip(knows, form, strict=True)], "heldout_format": form}
    return tasks | ({"heldout_answer_prefilled": opened} if opened else {})


KNOWS, LITTLE_FORM, MUCH_FORM = right(0.8, seed=1), right(0.6, seed=2), right(0.98, seed=2)


@pytest.mark.parametrize("opened", [None, right(0.7, seed=3)])
def test_runs_that_differ_only_in_format_following_are_reported_as_such(
    root: Path, opened: list[float] | None
) -> None:
    result = two(root, formatted(KNOWS, LITTLE_FORM, opened), formatted(KNOWS, MUCH_FORM, opened))
    pair = pair_of(result)
    assert pair["relation"] == "better"
    assert pair["format"]["only"] is True
    assert any(
        sentence.startswith("They differ only in format following")
        for sentence in result["verdict"]
    )
    back = compared("b", "a")
    assert (pair_of(back)["relation"], pair_of(back)["format"]["only"]) == ("worse", True)


def test_a_run_that_knows_more_besides_does_not_differ_only_in_format(root: Path) -> None:
    result = two(
        root, formatted(right(0.5, seed=1), LITTLE_FORM), formatted(right(0.9, seed=1), MUCH_FORM)
    )
    form = pair_of(result)["format"]
    assert (form["only"], form["differs"]) == (False, True)
    assert form["probes"][0]["differs"]
    assert any("it is not shown to be all" in sentence for sentence in result["verdict"])


def test_a_gain_in_knowledge_alone_is_no_matter_of_format(root: Path) -> None:
    result = two(
        root, formatted(right(0.5, seed=1), MUCH_FORM), formatted(right(0.9, seed=1), MUCH_FORM)
    )
    assert pair_of(result)["format"]["differs"] is False
    assert not any("format following" in sentence for sentence in result["verdict"])


def test_a_control_that_nobody_gets_right_shows_nothing(root: Path) -> None:
    nothing = [0.0] * 300
    one_form = [
        float(index == 0) for index in range(300)
    ]  # one question that both answer in the asked form
    result = two(root, formatted(KNOWS, one_form, nothing), formatted(KNOWS, MUCH_FORM, nothing))
    form = pair_of(result)["format"]
    assert form["differs"] is True
    assert [line["shows_no_difference"] for line in form["probes"]] == [False, False]
    assert form["only"] is False


def test_one_probe_that_finds_a_difference_outweighs_the_other(root: Path) -> None:
    a, b = (
        formatted(KNOWS, LITTLE_FORM, right(0.3, seed=4)),
        formatted(KNOWS, MUCH_FORM, right(0.8, seed=4)),
    )
    form = pair_of(two(root, a, b))["format"]
    assert [(line["probe"], line["differs"]) for line in form["probes"]] == [
        ("both in the asked form", False),
        ("answer opened", True),
    ]
    assert form["only"] is False


# --- what differs ---------------------------------------------------------------------------------


def test_only_what_differs_is_listed(root: Path) -> None:
    (root / "stages").mkdir()
    (root / "stages/grpo.py").write_text("old\n")
    first = synthetic.commit(root)
    experiment(root, "a", evaluation({"heldout": right(0.5)}))
    (root / "stages/grpo.py").write_text("new\n")
    second = synthetic.commit(root)
    experiment(
        root,
        "b",
        evaluation({"heldout": right(0.5)}),
        {"prepare.seed": 5, "grpo.beta": 0.04},
        packages={"torch": "2.14.0", "peft": "1"},
        code={"stages/grpo.py": "new"},
        diff="d" * 64,
    )
    differs = compared("a", "b")["differs"]
    listed = {
        what: {line["name"]: line["values"] for line in differs[what]}
        for what in ("parameters", "environment")
    }
    assert listed["parameters"] == {"prepare.seed": ["20000000", "5"], "grpo.beta": ["0.0", "0.04"]}
    assert listed["environment"] == {
        "torch": ["2.13.0", "2.14.0"],
        "trl": ["1.16.0", None],
        "peft": [None, "1"],
    }
    assert [line["name"] for line in differs["data"]] == [
        *(f"{split} sha256" for split in ("dev", "eval", "sft", "train")),
        "base weights sha256",
    ][:4]
    assert [line["name"] for line in differs["code"]["files"]] == ["stages/grpo.py"]
    assert differs["code"]["revisions"][0]["values"] == [first[:12], second[:12]]
    assert differs["code"]["uncommitted"][0]["values"] == ["none", "d" * 64]
    assert "stages/grpo.py | 2 +-" in differs["code"]["diffstats"][0]["text"]


def test_a_code_revision_that_is_not_here_is_said(root: Path) -> None:
    experiment(root, "a", evaluation({"heldout": right(0.5)}), revision="a" * 40)
    experiment(root, "b", evaluation({"heldout": right(0.5)}))
    assert (
        compared("a", "b")["differs"]["code"]["diffstats"][0]["text"]
        == "one of the two is not in this repository"
    )


def test_commits_that_changed_no_code_are_no_difference(root: Path) -> None:
    experiment(root, "a", evaluation({"heldout": right(0.5)}))
    (root / "notes.txt").touch()
    synthetic.commit(root)
    experiment(root, "b", evaluation({"heldout": right(0.6)}), {"grpo.seed": 1})
    said = render.text(compared("a", "b"))
    assert "What differs: code" not in said
    assert "The same everywhere: data, environment, code, at different commits" in said


# --- over seeds -----------------------------------------------------------------------------------


def sweep(
    root: Path, rates: dict[float, list[float]], seeds: range, name: str = "lr", **more: Any
) -> list[str]:
    """An experiment per rate and seed; the values are the share right with each seed."""
    names = []
    for rate, shares in rates.items():
        for seed, share in zip(seeds, shares, strict=False):
            names.append(f"{name}-{len(names) + 1}")
            values = [1.0] * round(200 * share) + [0.0] * (200 - round(200 * share))
            experiment(
                root,
                names[-1],
                evaluation({"heldout": values}),
                {"grpo.learning_rate": rate, "grpo.seed": seed} | more,
            )
    return names


@pytest.fixture(scope="module")
def two_rates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two learning rates and five seeds; only read."""
    made = synthetic.make_repository(tmp_path_factory.mktemp("sweep") / "repository")
    sweep(made, {1e-4: LOW, 3e-4: HIGH}, range(5))
    return made


LOW, HIGH = [0.70, 0.75, 0.72, 0.78, 0.74], [0.80, 0.86, 0.83, 0.87, 0.85]


def test_two_settings_of_five_seeds_are_compared_by_seed_in_the_first_sentence(
    root: Path, two_rates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(two_rates)
    result = compared(sweep="lr")
    (line,) = result["seeds"]["comparisons"]
    differences = np.array(HIGH) - np.array(LOW)
    assert (line["design"], line["relation"], line["seeds"]) == ("paired t", "better", [5, 5])
    assert line["difference"] == pytest.approx(differences.mean())
    half = 2.7764451 * differences.std(ddof=1) / np.sqrt(5)
    assert line["ci95"] == pytest.approx([differences.mean() - half, differences.mean() + half])
    assert result["verdict"][0].startswith(
        "grpo.learning_rate=0.0003 is better than grpo.learning_rate=0.0001 on heldout"
    )
    assert (
        "The interval covers the GRPO seed only (grpo.seed); "
        "not the choice of questions, prepare.seed," in result["verdict"][0]
    )
    against = {pair["after"]: pair["before"] for pair in result["questions"]["pairs"]}
    assert against == {f"lr-{n + 5}": f"lr-{n}" for n in range(1, 6)}
    back = compared(*[f"lr-{n}" for n in (6, 7, 8, 9, 10, 1, 2, 3, 4, 5)])["seeds"]["comparisons"][
        0
    ]
    assert (back["difference"], back["relation"]) == (-line["difference"], "worse")
    assert back["ci95"] == (-line["ci95"][1], -line["ci95"][0])


def test_settings_of_other_seeds_are_compared_by_welch(root: Path) -> None:
    sweep(root, {1e-4: LOW}, range(5), "a")
    sweep(root, {3e-4: [*HIGH, 0.84]}, range(5, 11), "b")
    (line,) = compared(*[f"a-{n}" for n in range(1, 6)], *[f"b-{n}" for n in range(1, 7)])["seeds"][
        "comparisons"
    ]
    assert (line["design"], line["seeds"]) == ("Welch t", [5, 6])


def test_four_seeds_are_too_few(root: Path) -> None:
    sweep(root, {1e-4: LOW[:4], 3e-4: HIGH[:4]}, range(4))
    result = compared(sweep="lr")
    assert [arm["means"]["heldout"]["ci95"] for arm in result["seeds"]["arms"]] == [None, None]
    assert result["seeds"]["comparisons"][0]["design"] is None
    assert any("Too few seeds, of the 5" in sentence for sentence in result["verdict"])
    assert "too few seeds: 4 of 5" in render.text(result)


def test_one_seed_only_is_too_few(root: Path) -> None:
    result = two(root, {"heldout": right(0.5)}, {"heldout": right(0.7)})
    assert "Too few seeds (1 of 5) for an interval over seeds." in result["verdict"]
    assert result["seeds"]["covers"] == "the questions only, not the seeds"


def test_seeds_that_differ_too_little_come_with_how_many_would_do(root: Path) -> None:
    sweep(root, {1e-4: LOW, 3e-4: [0.76, 0.72, 0.75, 0.76, 0.75]}, range(5))
    result = compared(sweep="lr")
    (line,) = result["seeds"]["comparisons"]
    assert line["relation"] == "not distinguishable"
    assert line["seeds_needed"] > 5
    assert (
        f"about {line['seeds_needed']:,} seeds each would show the one seen" in result["verdict"][0]
    )


def test_one_setting_over_its_seeds_has_a_mean_with_its_interval(
    root: Path, two_rates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(two_rates)
    result = compared(*[f"lr-{n}" for n in range(1, 6)])
    assert result["verdict"][0].startswith(
        f"One setting over 5 seeds: heldout {np.mean(LOW):.3f} on average"
    )
    assert {pair["before"] for pair in result["questions"]["pairs"]} == {"lr-1"}


def test_a_second_run_of_the_same_seeds_does_not_count_twice(root: Path) -> None:
    names = sweep(root, {1e-4: LOW}, range(5))
    experiment(
        root,
        "again",
        evaluation({"heldout": right(0.9, 200)}),
        {"grpo.learning_rate": 1e-4, "grpo.seed": 0},
    )
    (arm,) = compared(*names, "again")["seeds"]["arms"]
    assert (arm["seeds"], arm["repeats"]) == (5, ["again"])


@pytest.mark.parametrize(
    ("varying", "words"),
    [
        (
            ["grpo.seed"],
            "the GRPO seed only (grpo.seed); not the choice of questions, "
            "prepare.seed, base_model.seed, "
            "sft.seed, evaluate.seed",
        ),
        (
            ["sft.seed", "grpo.seed"],
            "some seeds (sft.seed, grpo.seed); not the choice of questions, prepare.seed, "
            "base_model.seed, evaluate.seed",
        ),
        (
            list(runs.SEEDS),
            "all seeds (prepare.seed, base_model.seed, sft.seed, select.seed, grpo.seed, "
            "evaluate.seed); the questions too, which prepare.seed draws anew",
        ),
    ],
)
def test_an_interval_says_which_variance_it_covers(
    root: Path, varying: list[str], words: str
) -> None:
    for seed in range(2):
        params = dict.fromkeys(varying, seed)
        asked = questions(50, 1000 * seed if "prepare.seed" in varying else 0)
        experiment(root, f"r{seed}", evaluation({"heldout": right(0.5, 50)}, asked), params)
    found = compared("r0", "r1")["seeds"]
    assert (found["varying"], found["covers"]) == (varying, words)


def test_runs_of_other_code_are_no_seeds_of_each_other(root: Path) -> None:
    experiment(root, "a", evaluation({"heldout": right(0.5)}), {"grpo.seed": 0})
    experiment(
        root,
        "b",
        evaluation({"heldout": right(0.6)}),
        {"grpo.seed": 1},
        code={"regrpo/train/rewards.py": "other"},
    )
    experiment(
        root,
        "c",
        evaluation({"heldout": right(0.6)}),
        {"grpo.seed": 1},
        code={"regrpo/report/card.py": "other"},
    )
    arms = compared("a", "b", "c")["seeds"]["arms"]
    assert [arm["runs"] for arm in arms] == [["a", "c"], ["b"]]  # the card comes after the numbers


# --- what cannot be compared ----------------------------------------------------------------------


def refusals(root: Path, before: Any, after: Any) -> list[str]:
    experiment(root, "a", before)
    experiment(root, "b", after, {"grpo.beta": 0.04})
    result = compared("a", "b")
    assert [line["name"] for line in result["differs"]["parameters"]] == ["grpo.beta"], (
        "what can be compared is"
    )
    assert pair_of(result)["relation"] == "not compared"
    assert "b and a cannot be compared on their answers." in result["verdict"][0]
    return [one["reason"] for one in pair_of(result)["refused"]]


def test_different_questions_are_refused(root: Path) -> None:
    values = {"heldout": right(0.5, 50)}
    others = questions(50).assign(
        prompt=lambda frame: frame["prompt"].where(frame["id"] != "eval-7", "9+9=")
    )
    assert refusals(root, evaluation(values), evaluation(values, others)) == [
        "different questions: 1 of 50 with the same id have another prompt or answer (first eval-7)"
    ]


def test_questions_of_other_ids_are_refused(root: Path) -> None:
    before, after = (
        evaluation({"heldout": right(0.5, 50)}),
        evaluation({"heldout": right(0.5, 40)}, questions(40, 500)),
    )
    assert refusals(root, before, after) == ["different questions: none of the 50 and 40 in common"]


def test_other_right_answers_are_other_questions(root: Path) -> None:
    values = {"heldout": right(0.5, 50)}
    (reason,) = refusals(
        root, evaluation(values), evaluation(values, questions(50).assign(answer="0"))
    )
    assert "50 of 50 with the same id have another prompt or answer" in reason


def test_part_of_the_same_questions_is_compared_on_what_both_were_asked(root: Path) -> None:
    experiment(root, "a", evaluation({"heldout": right(0.5, 300)}))
    experiment(root, "b", evaluation({"heldout": right(0.5, 100)}), {"evaluate.limit": 100})
    line = headline(compared("a", "b"))
    assert (line["questions"], line["of"], line["difference"]) == (100, [300, 100], 0.0)


def test_a_subset_whose_questions_have_no_right_answer_is_compared(root: Path) -> None:
    asked = questions(100).assign(answer=lambda frame: frame["answer"].where(frame.index >= 50))
    experiment(root, "a", evaluation({"heldout": right(0.5, 100)}, asked, say="x"))
    few = evaluation({"heldout": right(0.5, 50)}, asked[:50].assign(answer=None), say="x")
    experiment(root, "b", few, {"evaluate.limit": 50})
    assert headline(compared("a", "b"))["of"] == [100, 50]


def test_different_tasks_are_refused(root: Path) -> None:
    custom = evaluation({"gsm8k": right(0.5)}, headline=None)
    assert refusals(root, evaluation({"heldout": right(0.5)}), custom) == [
        "only a was asked",
        "only b was asked",
    ]


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (
            {"version": 2.0},
            "another task under the same name: accuracy of version 1.0, accuracy of version 2.0",
        ),
        (
            {"verifier": "final_number"},
            "the answers were judged by different verifiers: exact_int and final_number",
        ),
    ],
)
def test_another_measure_under_the_same_name_is_refused(
    root: Path, other: Any, reason: str
) -> None:
    values = {"heldout": right(0.5)}
    assert refusals(root, evaluation(values), evaluation(values, **other)) == [reason]


def test_questions_put_in_another_way_are_said(root: Path) -> None:
    experiment(root, "a", evaluation({"heldout": right(0.5)}))
    experiment(root, "b", evaluation({"heldout": right(0.6)}), {"evaluate.max_gen_toks": 32})
    result = compared("a", "b")
    assert pair_of(result)["settings"] == ["evaluate.max_gen_toks"]
    assert "The questions were put with other settings: evaluate.max_gen_toks." in render.text(
        result
    )


def test_runs_without_samples_are_compared_but_for_their_answers(root: Path) -> None:
    experiment(root, "a", evaluation({"heldout": right(0.5)}))
    experiment(
        root, "b", evaluation({"heldout": right(0.7)}), {"grpo.beta": 0.04}, with_samples=False
    )
    result = compared("a", "b")
    assert pair_of(result)["relation"] == "not compared"
    assert any(
        "b: no answers to compare: reports/evaluate/samples.parquet is not in DVC's cache" in one
        for one in result["notes"]
    )
    assert [
        line["values"][1]["value"] for line in result["metrics"] if line["model"] == "grpo"
    ] == [np.mean(right(0.7))]


def test_samples_that_were_altered_are_not_read(root: Path) -> None:
    experiment(root, "a", evaluation({"heldout": right(0.5)}))
    experiment(root, "b", evaluation({"heldout": right(0.7)}))
    for file in (root / ".dvc/cache/files/md5").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes() + b" ")
    assert {"a", "b"} == {
        note.partition(":")[0]
        for note in compared("a", "b")["notes"]
        if "not in DVC's cache, or altered there" in note
    }


def test_of_an_unfinished_run_the_finished_stages_are_compared(root: Path) -> None:
    experiment(root, "a", evaluation({"heldout": right(0.5)}))
    experiment(
        root, "b", evaluation({"heldout": right(0.5)}), {"sft.learning_rate": 0.1}, until="grpo"
    )
    result = compared("a", "b")
    assert (
        "b: unfinished: dvc.lock does not hold evaluate; its finished stages are compared"
        in result["notes"]
    )
    assert {"name": "sft.learning_rate", "values": ["0.003", "0.1"]} in result["differs"][
        "parameters"
    ]
    assert pair_of(result)["relation"] == "not compared"


def test_a_stage_that_was_not_run_again_is_not_taken_for_finished(root: Path) -> None:
    experiment(root, "a", evaluation({"heldout": right(0.5)}))
    write_run(root, evaluation({"heldout": right(0.5)}))
    old = (root / "dvc.lock").read_text(), (root / "reports/grpo/run.json").read_bytes()
    write_run(root, evaluation({"heldout": right(0.5)}), {"sft.seed": 9}, until="sft")
    stages = read_yaml(root / "dvc.lock")
    (root / "dvc.lock").write_text(old[0])
    whole = read_yaml(root / "dvc.lock")
    whole["stages"] |= stages["stages"]
    (root / "dvc.lock").write_text(json.dumps(whole))
    result = compared("a", "workspace")
    assert any(
        "workspace: unfinished: select was last run with another models/sft" in note
        for note in result["notes"]
    )


def ended(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """(exit code, the one line on stderr) of the command."""
    code = cli.main(["compare", *arguments])
    said = capsys.readouterr()
    assert said.out == "" or code == 0
    assert said.err.count("\n") == (1 if code else 0)
    return code, said.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "expected two runs to compare; found none that can be read"),
        (["a"], "found 1 that can be read. Name another"),
        (["a", "nonsense"], "found 1 that can be read; nonsense: none of that name"),
        (["nonsense", "0" * 32], "found none that can be read"),
        (["a", "--sweep", "lr"], "sweep lr: expected DVC experiments lr-1, lr-2, …; found none"),
        (["a", "HEAD"], "HEAD: unfinished: dvc.lock does not hold prepare"),
    ],
)
def test_what_cannot_be_compared_ends_with_2_in_one_line(
    root: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    experiment(root, "a", evaluation({"heldout": right(0.5, 20)}))
    code, said = ended(capsys, *arguments, "--no-mlflow")
    assert code == 2
    assert words in said.replace(", or MLflow rows tagged regrpo.sweep=lr", "")


def test_unknown_runs_are_named_and_the_others_compared(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two(root, {"heldout": right(0.5)}, {"heldout": right(0.7)})
    assert cli.main(["compare", "a", "nonsense", "b", "--no-mlflow"]) == 0
    said = capsys.readouterr().out
    assert "nonsense: left out: none of that name" in said
    assert "b is better than a" in said


@pytest.mark.parametrize(
    "content",
    [
        "stages: [",
        "schema: '2.0'\nstages:\n  prepare:\n    cmd: [",
        "stages:\n  a b\n",
        "stages: {prepare: {cmd: x, outs: [{path: 1}]}}",
    ],
)
def test_a_broken_lock_is_named(
    root: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    experiment(root, "a", evaluation({"heldout": right(0.5, 20)}))
    (root / "dvc.lock").write_text(content)
    code, said = ended(capsys, "a", "workspace", "--no-mlflow")
    assert code == 2
    assert "workspace: a corrupted one" in said


def test_outside_a_repository_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = ended(capsys, "a", "b")
    assert code == 2
    assert "expected the root of a repository of this pipeline" in said


def test_a_page_that_cannot_be_written_is_named(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two(root, {"heldout": right(0.5, 20)}, {"heldout": right(0.7, 20)})
    (root / "file").touch()
    code, said = ended(capsys, "a", "b", "--no-mlflow", "--html", "file/page.html")
    assert code == 2
    assert "file/page.html: expected a file that can be written" in said


# --- sweeps and MLflow ----------------------------------------------------------------------------


def test_a_sweep_of_which_some_are_queued_compares_what_is_there(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queue = ["dvc", "exp", "run", "--queue", "-n", "lr", "-S", "grpo.seed=0,1,2,3"]
    subprocess.run(queue, cwd=root, env=environment(), check=True, capture_output=True)
    assert ended(capsys, "--sweep", "lr", "--no-mlflow")[0] == 2
    assert (
        ended(capsys, "lr-1", "lr-2", "--no-mlflow")[1].count(
            "lr-1, lr-2: queued (`dvc queue start` runs it)"
        )
        == 1
    )
    for number in (1, 3):
        experiment(
            root, f"lr-{number}", evaluation({"heldout": right(0.5, 50)}), {"grpo.seed": number - 1}
        )
    result = compared(sweep="lr")
    assert [one["name"] for one in result["runs"]] == ["lr-1", "lr-3"]
    assert [(one["name"], one["reason"].partition(" ")[0]) for one in result["left_out"]] == [
        ("lr-2", "queued"),
        ("lr-4", "queued"),
    ]
    assert "sweep lr is not whole: 2 of 4 runs are there" in result["notes"]


def test_sweeps_of_two_baselines_are_told_apart(root: Path) -> None:
    experiment(root, "lr-1", evaluation({"heldout": right(0.5, 50)}), {"grpo.seed": 1})
    (root / "more").touch()
    synthetic.commit(root)
    experiment(root, "lr-1", evaluation({"heldout": right(0.6, 50)}), {"grpo.seed": 2})
    experiment(root, "lr-10", evaluation({"heldout": right(0.6, 50)}), {"grpo.seed": 3})
    experiment(root, "lr-2", evaluation({"heldout": right(0.6, 50)}), {"grpo.seed": 4})
    experiment(root, "lr-next", evaluation({"heldout": right(0.6, 50)}), {"grpo.seed": 5})
    names = [one["name"] for one in compared(sweep="lr")["runs"]]
    assert [name.partition("@")[0] for name in names] == ["lr-1", "lr-1", "lr-2", "lr-10"]
    assert len(set(names)) == 4


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> str:
    import mlflow

    folder = tmp_path_factory.mktemp("mlflow")
    uri = sqlite_uri(shutil.copyfile(empty_store, folder / "mlflow.db"))
    mlflow.MlflowClient(uri).create_experiment("regrpo", "file:///nowhere")
    return uri


def add_row(database: str, status: str, **tags: str) -> str:
    import mlflow

    client = mlflow.MlflowClient(database)
    found = client.get_experiment_by_name("regrpo")
    assert found is not None
    named = {f"regrpo.{name.replace('__', '.')}": value for name, value in tags.items()}
    made = client.create_run(found.experiment_id, tags={"regrpo.kind": "pipeline"} | named)
    client.set_terminated(made.info.run_id, status)
    return str(made.info.run_id)


def stage_tags(names: dict[str, str]) -> dict[str, str]:
    return {f"stage__{stage}": name for stage, name in names.items()}


def test_runs_are_found_by_their_mlflow_rows(
    root: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    a = experiment(root, "a", evaluation({"heldout": right(0.5)}), ids="a")
    b = experiment(root, "b", evaluation({"heldout": right(0.7)}), ids="b")
    row_b = add_row(database, "FINISHED", experiment="b", sweep="bylr", **stage_tags(b))
    failed = add_row(database, "FAILED", experiment="c", sweep="bylr", stage__prepare="x")
    removed = add_row(database, "FINISHED", experiment="d", sweep="bylr", stage__prepare="y")
    foreign = add_row(database, "FINISHED", kind="reproduction")
    result = compared("a", row_b, failed, removed, foreign, a["sft"], rows=Lookup())
    assert [(one["name"], one["place"]) for one in result["runs"]] == [
        ("a", "experiment a"),
        (row_b[:12], "experiment b"),
        (a["sft"][:12], "experiment a"),
    ]
    reasons = {one["name"]: one["reason"] for one in result["left_out"]}
    assert reasons[failed] == "none: failed, says MLflow"
    assert "its DVC experiment 'd' was removed" in reasons[removed]
    assert reasons[foreign] == "none: it is no run of a pipeline (reproduction)"
    with_sweep = compared("a", sweep="bylr", rows=Lookup())
    assert [one["name"] for one in with_sweep["runs"]] == ["a", "b"]
    assert {one["name"] for one in with_sweep["left_out"]} == {"c", "d"}


def test_a_server_that_is_away_is_a_line_and_no_wait(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two(root, {"heldout": right(0.5)}, {"heldout": right(0.7)})
    monkeypatch.setattr(lookup, "PATIENCE", 1.0)
    running = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection and never answers
        monkeypatch.setenv(
            "MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{silent.getsockname()[1]}"
        )
        import mlflow  # noqa: F401  (its import is no wait for the server)

        began = time.monotonic()
        result = compared("a", "b", "0" * 32, "1" * 32, rows=Lookup())
        assert time.monotonic() - began < 8
    assert pair_of({"questions": {"pairs": result["questions"]["pairs"]}})["relation"] == "better"
    (note,) = [note for note in result["notes"] if "MLflow" in note]
    assert "could not be asked: no answer within 1 s; git and DVC only" in note
    assert "secret" not in note
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(
        CannotCheck, match=r"sweep lr: .*MLflow \(http://127.0.0.1:9\) could not be asked"
    ):
        compared(sweep="lr", rows=Lookup())
    for thread in set(threading.enumerate()) - running:
        thread.join(30)


# --- forms ----------------------------------------------------------------------------------------

EVIL = "<script>alert(1)</script>\x1b[31m `x` |y| \u202e\n```\n# z"


@pytest.fixture
def evil(root: Path) -> Path:
    """Two runs whose model, data and environment try to break out of what shows them."""
    asked = questions(60).assign(prompt=lambda frame: frame["prompt"] + EVIL)
    experiment(
        root, "a", evaluation({"heldout": right(0.3, 60)}, asked, say=EVIL), packages={EVIL: "1"}
    )
    experiment(
        root, "b", evaluation({"heldout": right(0.9, 60)}, asked, say=EVIL), {"grpo.output": EVIL}
    )
    return root


def test_text_fits_100_columns_and_prints_no_control_character(evil: Path) -> None:
    said = render.text(compared("a", "b"))
    assert all(len(line) <= 100 for line in said.splitlines())
    assert all(character.isprintable() or character == "\n" for character in said)
    assert "\\x1b[31m" in said


def test_markdown_escapes_what_is_not_ours(evil: Path) -> None:
    said = render.markdown(compared("a", "b"))
    outside = re.sub(r"```text\n.*?\n```", "", said, flags=re.DOTALL)
    assert "<script>" not in re.sub(r"\\<", "", outside)
    assert said.count("\n```") == 2, "the fence opens and closes once"
    for line in outside.splitlines():
        if line.startswith("| &lt;script") or line.startswith("| grpo.output"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 4, "a column per run, and its name"


def test_the_page_stands_alone_and_shows_data_as_text(
    evil: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["compare", "a", "b", "--no-mlflow", "--html", "page.html"]) == 0
    page = Path("page.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert not re.search(r"(?:src|href)=\"(?!#)", page)
    assert "\x1b" not in page
    assert page.count("<svg") == 1 + 3, "the differences, and reward, dev accuracy and length"
    assert "b is better than a" in page
    assert "b is better than a" in capsys.readouterr().out


def test_json_holds_everything(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two(root, {"heldout": right(0.5)}, {"heldout": right(0.7)})
    assert cli.main(["compare", "a", "b", "--no-mlflow", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(json.dumps(compared("a", "b")))
    assert set(printed) == {
        "schema_version",
        "asked",
        "runs",
        "left_out",
        "notes",
        "differs",
        "metrics",
        "questions",
        "seeds",
        "verdict",
    }


@pytest.mark.parametrize("form", [[], ["--json"], ["--md"]])
def test_a_worse_run_is_no_error(
    root: Path, capsys: pytest.CaptureFixture[str], form: list[str]
) -> None:
    two(root, {"heldout": right(0.7)}, {"heldout": right(0.5)})
    assert cli.main(["compare", "a", "b", "--no-mlflow", *form]) == 0
    assert "worse" in capsys.readouterr().out


def test_many_runs_are_rows_and_their_curves_are_drawn_by_setting(
    root: Path, two_rates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(two_rates)
    result = compared(sweep="lr", curves=True)
    said = render.text(result)
    assert len(re.findall(r"^  lr-\d+ +experiment", said, flags=re.MULTILINE)) == 10
    assert all(len(line) <= 100 for line in said.splitlines())
    assert list(result["curves"]["reward"]) == [
        f"grpo.learning_rate={rate} ×5" for rate in ("0.0001", "0.0003")
    ]
    assert result["curves"]["reward"]["grpo.learning_rate=0.0001 ×5"] == [(1.0, 0.3), (2.0, 0.5)]
    assert result["curves"]["entropy"]["grpo.learning_rate=0.0001 ×5"] == []


@pytest.mark.slow
def test_a_real_pair_is_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make_project(tmp_path / "project", MINIATURE)
    run(project, "dvc", "repro", REGRPO_TRACKING="off")
    commit(project, "results")
    run(project, "dvc", "exp", "run", "-n", "other", "-S", "grpo.seed=1", REGRPO_TRACKING="off")
    monkeypatch.chdir(project)
    result = compared("HEAD", "other")
    assert [line["name"] for line in result["differs"]["parameters"]] == ["grpo.seed"]
    assert not result["differs"]["data"]
    assert not result["differs"]["code"]["files"]
    assert [line["questions"] for line in pair_of(result)["tasks"]] == [24] * 5
    assert result["seeds"]["arms"][0]["runs"] == ["HEAD", "other"]
