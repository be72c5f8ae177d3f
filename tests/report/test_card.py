"""The pieces of the model card: overrides, settings, lineage, what is said where."""

import re
import subprocess
from pathlib import Path

import pytest

from regrpo.core import files
from regrpo.core.profiles import read_yaml
from regrpo.report import card, card_facts
from tests.support.cards import COMMIT, PROFILE, edit, fingerprint, records, task, the_card, write
from tests.support.projects import ROOT


def test_a_lora_run_names_adapter_and_real_base(reports: Path) -> None:
    lora = {"lora": {"r": 8, "lora_alpha": 16}}
    records(sft=lora, grpo=lora)
    text = the_card()
    start = "for the model that the stage started from"
    assert (
        "merged into the weights here; "
        f"the adapter itself is `models/grpo/adapter`, {start} (`models/sft`)" in text
    )
    assert f"`models/sft/adapter`, {start} (weights made from scratch" in text
    assert "LoRA was not used" not in text


def test_stock_gsm8k_says_that_its_few_shot_examples_were_trained_on(reports: Path) -> None:
    metrics = files.read_json(Path("reports/evaluate/metrics.json"))
    stock = {
        name: task("stock", 0.1, 0.2, 0.3)
        | {"few_shot": {"examples": 5, "dataset": dataset, "split": split}}
        for name, dataset, split in (
            ("gsm8k", "openai/gsm8k", "train"),
            ("platinum", "madrylab/gsm8k-platinum", "test"),
        )
    }
    edit("reports/evaluate/metrics.json", tasks=metrics["tasks"] | stock)
    assert "few-shot" not in the_card()
    edit("data/prepared/dataset.json", format="gsm8k", verifier="final_number")
    text = the_card()
    assert (
        "`gsm8k` draws its 5 few-shot examples from split `train` of `openai/gsm8k`, "
        "which is also the data" in text
    )
    assert "`platinum` draws" not in text
    stock["gsm8k"]["few_shot"] = None
    edit("reports/evaluate/metrics.json", tasks=metrics["tasks"] | stock)
    assert "few-shot" not in the_card()


def test_the_gain_is_told_by_what_is_distinguishable(reports: Path) -> None:
    text = the_card()
    assert "Opening `<think>` for the model that GRPO started from" in text
    assert "moves it by +50.9 points [+44.7, +57.1], distinguishable from zero" in text
    assert "The remaining +3.1 points [-0.5, +6.7] is not distinguishable from zero" in text


def test_what_users_brought_in_is_in_the_lineage(reports: Path) -> None:
    files.write_text(Path("data/raw/README.md"), "put your data here")
    records()
    assert "brought in" not in the_card()
    files.write_text(Path("data/raw/mine.jsonl"), "{}")
    records()
    text = the_card()
    assert f"| `data/raw` | `{fingerprint('data/raw')['sha256'][:12]}` | brought in |" in text
    assert "bring back what lay in `data/raw` first" in text


def test_what_the_doctor_found_is_shown_with_steps_and_remedy(reports: Path) -> None:
    text = the_card()
    assert "**GRPO doctor: warnings.**" in text
    assert "| `grad_norm` | norm above 10 | 3–5, 9 | 12.817 | learning\\_rate (lower) |" in text
    assert "Not applicable (TRL logged no such metric): `kl`." in text


def test_a_reward_that_taught_nothing_stands_at_the_cards_head(reports: Path) -> None:
    before, _, _ = the_card().partition("**Result:")
    health = "reports/grpo/health.json"
    edit(health, shortfalls=[])
    assert the_card().partition("**Result:")[0] == before
    edit(health, shortfalls=["The reward mine was always 0.3: it taught nothing."])
    head, _, _ = the_card().partition("**Result:")
    assert head.endswith("\n\n**The reward mine was always 0.3: it taught nothing.**\n\n")


def test_the_card_says_what_of_the_deterministic_mode_was_on(reports: Path) -> None:
    assert "Deterministic mode (for CUDA) was not asked for." in the_card()
    records(grpo={"deterministic": True})
    assert "Deterministic mode — grpo: nothing to turn on, it ran without CUDA." in the_card()
    edit("reports/grpo/metrics.json", deterministic=["torch.use_deterministic_algorithms=True"])
    assert "grpo: `torch.use_deterministic_algorithms=True`." in the_card()


def test_settings_at_the_default_are_set_apart(reports: Path) -> None:
    different, same = card.settings(card_facts.read_facts(), "grpo")
    rows = {key: (value, default) for key, value, default in different}
    assert rows["`learning_rate`"] == ("`0.0003`", "`1e-06`")
    assert rows["`threads`"] == (f"`{PROFILE['grpo']['threads']}`", "—")
    assert "`beta` `0.0`" in same
    assert not any(key == "`beta`" for key in rows)


def test_the_checksums_are_what_sha256sum_checks(reports: Path) -> None:
    listing = re.search(r"```text\n((?:[0-9a-f]{64}  .*\n)+)```", the_card())
    assert listing
    done = subprocess.run(
        ["sha256sum", "--check", "--quiet"], input=listing[1], text=True, check=False
    )
    assert done.returncode == 0


@pytest.fixture
def committed(reports: Path) -> str:
    """A git repository whose commit holds the default profile, and a second one of other sizes."""

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(
            ["git", *identity, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    files.write_text(Path("params.yaml"), (ROOT / "params.yaml").read_text())
    git("init", "-q")
    git("add", "params.yaml")
    git("commit", "-qm", "profile")
    return git("rev-parse", "HEAD")


def test_an_unchanged_profile_is_made_again_by_make_repro(committed: str) -> None:
    assert (
        card.commands(card_facts.read_facts(), committed) == f"git checkout {committed}\nmake repro"
    )


def test_another_profile_is_named_in_the_command(committed: str) -> None:
    for stage in card_facts.RECORDED:
        [record] = files.read_json(Path(f"reports/{stage}/run.json"))
        record["parameters"] = {"profiles/big one.yaml": record["parameters"]["params.yaml"]}
        write(f"reports/{stage}/run.json", [record])
    assert card.commands(card_facts.read_facts(), committed).endswith(
        "make repro PROFILE='profiles/big one.yaml'"
    )


def test_the_overrides_give_dvc_the_parameters_of_the_run(committed: str) -> None:
    from dvc.utils.hydra import apply_overrides

    changes = {
        "max_steps": 20,
        "learning_rate": 1e-6,
        "lora": {"r": 8, "target_modules": "all-linear"},
        "epsilon_high": 0.28,
        "reward_funcs": {"exact_answer": 0.5, "answer_format": 0.25},
        "doctor": "stop",
    }
    phases = [{"share": 1.0, "worked": 0.5}]
    records(grpo=changes, sft={"curriculum": phases})
    [record] = files.read_json(Path("reports/grpo/run.json"))
    del record["parameters"]["params.yaml"]["grpo"]["warmup_steps"]
    write("reports/grpo/run.json", [record])
    facts = card_facts.read_facts()
    assert card.commands(facts, committed).splitlines()[1] == "make install"
    apply_overrides("params.yaml", card.overrides(facts, committed))
    profile = read_yaml(Path("params.yaml"))
    assert profile["grpo"] == facts.section("grpo")
    assert profile["sft"] == facts.section("sft")


def test_what_hydra_cannot_say_is_left_to_be_set_by_hand(committed: str) -> None:
    records(grpo={"reward_funcs": {"exact_answer": 1.0, "custom.mine:brief": 0.5}})
    lines = card.commands(card_facts.read_facts(), committed).splitlines()
    assert lines[1] == "# set in params.yaml by hand: +grpo.reward_funcs.custom.mine:brief=0.5"
    assert lines[2] == "make repro"


def test_classifiers_cut_and_early_end_are_told(reports: Path) -> None:
    judge = {
        "source": "hub model a/toxicity",
        "repo": "a/toxicity",
        "revision": COMMIT,
        "license": "MIT",
        "sha256": "ab" * 32,
        "labels": ["ok", "bad"],
        "positive": ["ok"],
        "negative": ["bad"],
    }
    stopped = {"reason": "no reward (mean of 10) above 0.5 for 40 logged steps", "step": 77}
    edit("reports/grpo/metrics.json", classifiers={"tox": judge}, stopped_early=stopped)
    edit("data/prepared/dataset.json", verifier="none", max_prompt_tokens=None)
    tasks = {
        "text": task("headline", 0.11, 0.22, 0.21, "continuous"),
        "text_chrf": task("main", 14, 25, 24, "continuous"),
    }
    edit("reports/evaluate/metrics.json", headline="text", tasks=tasks, gain=None)
    records(
        grpo={
            "reward_funcs": {"tox": 0.5},
            "classifiers": {"tox": {"repo": "a/toxicity"}},
            "max_steps": 90,
        }
    )
    text = the_card()
    assert (
        "| `tox`: P(`ok`) − P(`bad`) by [a/toxicity](https://huggingface.co/a/toxicity) at" in text
    )
    assert "**stopped early** at step 77 of 90: no reward (mean of 10) above 0.5" in text
    assert "Every reward is a classifier's opinion" in text
    assert "| grpo | 0.21 [0.1689, 0.2493] |\n" in text, (
        "no column for a format that nothing asks for"
    )
    assert "McNemar p not available)" not in text
    assert "correct was checked neither in training nor in evaluation" in text
    records(
        grpo={
            "reward_funcs": {"tox": 0.5, "exact_answer": 1.0},
            "classifiers": {"tox": {"repo": "a/toxicity"}},
        }
    )
    assert "Every reward is a classifier's opinion" not in the_card()


def test_what_was_set_aside_and_what_the_tokenizer_changes_are_said(reports: Path) -> None:
    assert "set aside" not in the_card()
    assert "allow_lossy_tokenizer" not in the_card()
    edit(
        "reports/base_model/source.json",
        conversation={"set_aside": {"repetition_penalty": 1.3, "suppress_tokens": [7]}},
    )
    checks = files.read_json(Path("reports/validate/verdict.json"))["checks"]
    lossy = {"check": "text_survives", "split": "sft", "rows": 9, "failed": 4, "passed": True}
    edit("reports/validate/verdict.json", checks=[*checks, lossy | {"allowed": True}])
    text = the_card()
    assert "evaluation: `repetition_penalty: 1.3`, `suppress_tokens: [7]`." in text
    assert "(`validate.allow_lossy_tokenizer`): 4 rows in all splits" in text


def test_which_questions_grpo_trained_on_is_said_where_they_were_chosen(reports: Path) -> None:
    assert "GRPO trained on" not in the_card()
    shares = {"always_right": 0.25, "always_wrong": 0.125, "inside": 0.5, "mean_pass_rate": 0.6}
    edit("reports/select/metrics.json", kept=473, **shares)
    records(select={"samples": 8})
    text = the_card()
    assert (
        "**GRPO trained on 473 of 947 questions**: those that the model which GRPO started from "
        "gets right in 0.2 to 0.8 of 8 sampled answers. Of all, 25.0 % were always right, 12.5 % "
        "always wrong." in text
    )
    assert "It learned from 473 questions in GRPO" in text
    records(select={"samples": 8, "choose": "random"})
    assert "a random draw of as many as it gets right in 0.2 to 0.8 of 8" in the_card()
