"""regrpo check: what it finds, how it tells it, and its exit codes."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regrpo import cli
from regrpo.core import processes, profiles
from regrpo.core.errors import CannotCheck, Refused
from regrpo.plan import consistency, findings, workspace
from tests.support.projects import ROOT, edit_yaml, run


@pytest.fixture
def here(project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = project(with_git=False)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}")
    return folder


def words(text: str) -> str:
    """What is printed, without its line breaks."""
    return " ".join(text.split())


def test_a_good_profile_is_ok(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check"]) == 0
    assert capsys.readouterr().out.startswith("ok: every section of the profile")


def test_quiet_says_nothing_where_all_is_well(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_every_wrong_section_is_told_at_once(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_yaml(
        here / "params.yaml",
        {"grpo": {"num_generations": 5}, "sft": {"learning_rate": "fast"}, "prepare": {"dev": 0}},
    )
    assert cli.main(["check"]) == 1
    title, *said = capsys.readouterr().err.splitlines()
    assert title == "Wrong"
    keys = [line.split(":")[0].strip() for line in said if line.startswith("  - ")]
    assert keys == ["- prepare.dev", "- sft.learning_rate", "- grpo.num_generations"]


def test_a_misspelled_task_is_found_before_anything_is_trained(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_yaml(here / "params.yaml", {"evaluate": {"tasks": ["heldout", "gsm8kk", "gsm8k"]}})
    assert cli.main(["check"]) == 1
    said = words(capsys.readouterr().err)
    assert "found gsm8kk, which none of their files names" in said


def test_data_without_answers_want_rewards_and_tasks_that_need_none(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_yaml(here / "params.yaml", {"prepare": {"verifier": "none"}})
    assert cli.main(["check"]) == 1
    assert "grpo.reward_funcs: exact_answer: expected a dataset with a verifier" in words(
        capsys.readouterr().err
    )
    edit_yaml(here / "params.yaml", {"grpo": {"reward_funcs": {"length_penalty": 1.0}}})
    assert cli.main(["check"]) == 1
    assert "evaluate.tasks: expected tasks that need no verifiable answer" in words(
        capsys.readouterr().err
    )
    task = {"tasks": ["heldout_text"]}
    edit_yaml(here / "params.yaml", {"evaluate": task, "promote": {"task": "heldout_text"}})
    assert cli.main(["check"]) == 0


def test_a_task_whose_scorer_does_not_hold_is_refused_only_where_it_would_judge(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = {"kind": "reasoning_gym", "task": "countdown", "size": 500, "license": "MIT"}
    edit_yaml(here / "params.yaml", {"prepare": {"format": "reasoning_gym", "source": source}})
    assert cli.main(["check"]) == 1
    said = words(capsys.readouterr().err)
    assert "prepare.source.task: expected a task of reasoning-gym whose scorer passed" in said
    assert "countdown: its scorer runs the answer as Python code" in said
    edit_yaml(here / "params.yaml", {"prepare": {"verifier": "exact_text"}})
    assert cli.main(["check"]) == 0


def test_the_verifier_of_mathematics_wants_its_package(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_yaml(here / "params.yaml", {"prepare": {"verifier": "math"}})
    assert cli.main(["check", "--quiet"]) == 0
    monkeypatch.delitem(sys.modules, "regrpo.core.answers.algebra", raising=False)
    monkeypatch.delattr("regrpo.core.answers.algebra", raising=False)
    monkeypatch.setitem(sys.modules, "math_verify", None)
    assert cli.main(["check"]) == 2
    said = words(capsys.readouterr().err)
    assert "math-verify: expected the package that compares answers (verifier math)" in said
    assert "Install it with `pip install 'regrpo[math]'`" in said


def test_the_rule_of_promotion_is_checked_with_the_profile(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_yaml(here / "params.yaml", {"promote": {"task": "heldout_format"}})
    assert cli.main(["check", "--quiet"]) == 0, "a further metric of a task that is asked"
    edit_yaml(here / "params.yaml", {"promote": {"task": "gsm8k"}})
    assert cli.main(["check"]) == 1
    assert "promote.task: expected a task of evaluate.tasks (heldout, " in words(
        capsys.readouterr().err
    )
    edit_yaml(here / "params.yaml", {"promote": {"max_loss": -0.1, "alpha": 1.0, "maxloss": 0.1}})
    assert cli.main(["check"]) == 1
    said = words(capsys.readouterr().err)
    assert "promote.max_loss: " in said
    assert "promote.alpha: " in said
    assert "promote.maxloss: unknown key. Would do: max_loss" in said


def test_rewards_formats_and_files_are_looked_up_by_name(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewards = {
        "think_format_reward": 1.0,
        "custom.rewards:short_thought": 0.1,
        "custom.rewards:none": 1.0,
        "exct_answer": 1.0,
    }
    source = {"kind": "local", "train": "mine.jsonl", "license": "MIT"}
    base = {"kind": "local", "path": "mine", "license": "MIT"}
    edit_yaml(
        here / "params.yaml",
        {
            "grpo": {"reward_funcs": rewards},
            "prepare": {"source": source},
            "base_model": {"source": base},
        },
    )
    assert cli.main(["check"]) == 2
    said = words(capsys.readouterr().err)
    none = "AttributeError: module 'custom.rewards' has no attribute 'none'"
    assert f"functions of custom/ that can be imported; found custom.rewards:none ({none})." in said
    assert "a file or folder at data/raw/mine.jsonl" in said
    assert "a file or folder at models/raw/mine" in said
    del rewards["custom.rewards:none"]
    edit_yaml(here / "params.yaml", {"grpo": {"reward_funcs": rewards}})
    assert cli.main(["check"]) == 2
    said = words(capsys.readouterr().err)
    assert "found exct_answer (did you mean `exact_answer`?)." in said
    edit_yaml(here / "params.yaml", {"grpo": {"reward_funcs": {"accuracy_reward": 1.0}}})
    assert cli.main(["check"]) == 2
    said = words(capsys.readouterr().err)
    assert "grpo.reward_funcs: accuracy_reward: expected a reward that is the same on a" in said
    assert "Take exact_answer with prepare.verifier: math" in said


@pytest.mark.parametrize(
    "wrong", [{"prepare": {"devv": 10}}, {"prepare": {"format": "none"}}, {"promote": None}]
)
def test_missing_files_are_told_beside_whatever_else_is_wrong(
    here: Path, capsys: pytest.CaptureFixture[str], wrong: dict[str, Any]
) -> None:
    source = {"kind": "local", "train": "mine.jsonl", "eval": "held.jsonl", "license": "MIT"}
    edit_yaml(here / "params.yaml", {"prepare": {"source": source}})
    base = {"kind": "gguf", "file": "base.gguf", "license": "MIT"}
    edit_yaml(here / "params.yaml", {"base_model": {"source": base}})
    values = profiles.read_yaml(here / "params.yaml")
    for section, change in wrong.items():
        values[section] = change and values[section] | change
        if change is None:
            del values[section]
    (here / "profiles/mine.yaml").write_text(json.dumps(values))
    assert cli.main(["check", "--profile", "profiles/mine.yaml"]) == 2
    said = words(capsys.readouterr().err)
    assert said.startswith("Wrong - p")
    for path in ("data/raw/mine.jsonl", "data/raw/held.jsonl", "models/raw/base.gguf"):
        assert said.count(f"a file or folder at {path}") == 1


def test_splits_below_what_the_gate_wants_are_told_beforehand(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"eval": 30, "dev": 20, "train": None}
    edit_yaml(here / "params.yaml", {"prepare": sizes, "validate": {"min_rows": 25}})
    assert cli.main(["check"]) == 1
    said = words(capsys.readouterr().err)
    assert "validate.min_rows: expected no more rows than prepare gives a split; found 25" in said
    assert "25 beside prepare.dev: 20. Would do: Raise these, or lower it to 20" in said
    edit_yaml(here / "params.yaml", {"validate": {"min_rows": 20}})
    assert cli.main(["check", "--quiet"]) == 0


def test_sampled_answers_are_grpos_and_can_be_judged(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_yaml(here / "params.yaml", {"grpo": {"temperature": 0.9, "top_k": 40}})
    assert cli.main(["check", "--quiet"]) == 0, "nothing is sampled"
    edit_yaml(here / "params.yaml", {"select": {"samples": 8}})
    assert cli.main(["check"]) == 1
    said = words(capsys.readouterr().err)
    assert (
        "select: expected answers sampled as grpo samples them: temperature 0.9, top_k 40" in said
    )
    assert "found temperature 1.0, top_k 0" in said
    alike = {"temperature": 0.9, "top_k": 40, "stratify": "level"}
    edit_yaml(here / "params.yaml", {"select": alike})
    assert cli.main(["check"]) == 1
    said = words(capsys.readouterr().err)
    assert (
        "select.stratify: expected a column that prepare keeps (there is none); found level" in said
    )
    edit_yaml(here / "params.yaml", {"select": {"stratify": None}, "prepare": {"verifier": "none"}})
    assert cli.main(["check"]) == 1
    assert "select.samples: expected data with a verifier" in words(capsys.readouterr().err)


def test_a_misspelt_key_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = profiles.read_yaml(here / "params.yaml")
    values["grpo"]["max_step"] = values["grpo"].pop("max_steps")
    values["evaluate"]["bootstraps"] = values["evaluate"].pop("bootstrap")
    (here / "profiles/mine.yaml").write_text(json.dumps(values))
    assert cli.main(["check", "--profile", "profiles/mine.yaml"]) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("  - ")]
    assert [line.partition(":")[0] for line in said] == [
        "  - grpo.max_step",
        "  - evaluate.bootstraps",
    ]


def test_a_copy_that_keeps_the_defaults_words_for_other_data_is_told(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = profiles.read_yaml(here / "params.yaml")
    values["grpo"]["learning_rate"] = 1e-3
    mine = here / "profiles/mine.yaml"
    mine.write_text(json.dumps(values))
    assert cli.main(["check", "--profile", "profiles/mine.yaml"]) == 0
    assert capsys.readouterr().err == "", "the same data"
    values["prepare"]["source"]["config"]["max_terms"] = 4
    mine.write_text(json.dumps(values))
    assert cli.main(["check", "--profile", "profiles/mine.yaml"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith("ok: ")
    assert output.err.startswith("Warnings\n")
    assert "model_card.purpose: is still what params.yaml says of its own model" in words(
        output.err
    )
    assert "model_card.model_name: is still" in words(output.err)


def test_a_command_is_printed_in_one_piece() -> None:
    command = f"`python -c 'import {'x' * 120}; print(1)'`"
    assert command in "\n".join(
        findings.item(f"Merge it with its base: {command}, and then go on.")
    )


def test_a_reward_that_cannot_be_imported_is_told_before_anything_is_trained(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "custom/judge.py").write_text(
        'import os\n\nKEY = os.environ["JUDGE_API_KEY"]\n\n'
        "def judged(completions, **columns):\n    return [0.0 for _ in completions]\n"
    )
    edit_yaml(here / "params.yaml", {"grpo": {"reward_funcs": {"custom.judge:judged": 1.0}}})
    assert cli.main(["check"]) == 1
    said = words(capsys.readouterr().err)
    assert "custom.judge:judged (custom/judge.py, line 3: KeyError: 'JUDGE_API_KEY')" in said
    assert "Mend the module, or set what it wants" in said
    monkeypatch.setenv("JUDGE_API_KEY", "secret")
    assert cli.main(["check", "--quiet"]) == 0
    assert "custom.judge" not in sys.modules, "a child process imports it"


def test_a_reward_that_wants_a_column_is_told_to_keep_it(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (here / "custom/rewards.py").open("a") as file:
        file.write("\n\ndef by_level(completions, level, **columns):\n    return level\n")
    edit_yaml(here / "params.yaml", {"grpo": {"reward_funcs": {"custom.rewards:by_level": 1.0}}})
    assert cli.main(["check"]) == 1
    said = words(capsys.readouterr().err)
    assert "found it needs level. Would do: Set prepare.keep: [level], if the source has it" in said
    edit_yaml(here / "params.yaml", {"prepare": {"keep": ["level"]}})
    assert cli.main(["check", "--quiet"]) == 0
    edit_yaml(here / "params.yaml", {"prepare": {"keep": ["level", "by_level"]}})
    assert cli.main(["check"]) == 1
    assert "columns with other names than the rewards" in words(capsys.readouterr().err)


CLOCK = {
    "format": "custom.formats:clock",
    "verifier": "custom.verifiers:TimeOfDay",
    "source": {"kind": "local", "train": "clock.jsonl", "license": "MIT"},
}


def test_a_verifier_and_a_format_of_ones_own_are_imported_by_a_child_process(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "data/raw/clock.jsonl").touch()
    keep = {"keep": ["new_hour"], "verifier_settings": {"within": 5}}
    edit_yaml(here / "params.yaml", {"prepare": CLOCK | keep})
    for name in ("custom.verifiers", "custom.formats"):
        sys.modules.pop(name, None)  # another test's
    assert cli.main(["check"]) == 0, capsys.readouterr().err
    assert not {"custom.verifiers", "custom.formats"} & set(sys.modules)
    names = {"format": "custom.formats:clok", "verifier": "custom.verifiers:Clock"}
    edit_yaml(here / "params.yaml", {"prepare": names})
    assert cli.main(["check"]) == 1
    said = words(capsys.readouterr().err)
    assert "custom.formats:clok (AttributeError: module 'custom.formats' has no attribute" in said
    edit_yaml(here / "params.yaml", {"prepare": names | {"format": "custom.formats:clock"}})
    assert cli.main(["check"]) == 1
    said = words(capsys.readouterr().err)
    assert "prepare.verifier: expected a class Clock in custom.verifiers; found Attribute" in said
    wrong = CLOCK | {"verifier_settings": {"within": 90}}
    edit_yaml(here / "params.yaml", {"prepare": wrong})
    assert cli.main(["check"]) == 1
    said = words(capsys.readouterr().err)
    assert "prepare.verifier_settings: expected known keys" in said
    assert "`within`: input should be less than 60; found 90" in said


def test_files_of_ones_own_that_are_absent_or_import_others_are_told_where_they_are_not_used(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "custom/formats.py").unlink()
    assert cli.main(["check"]) == 2
    said = words(capsys.readouterr().err)
    assert "custom/formats.py: expected this file" in said
    assert "found nothing there. Would do: Take the project's own, or make an empty one: " in said
    (here / "custom/formats.py").write_text("from custom.rewards import short_thought\n")
    assert cli.main(["check"]) == 1
    said = words(capsys.readouterr().err)
    assert "custom/formats.py, line 1: expected no import of the repository's code but" in said
    assert "found an import of custom.rewards.short_thought" in said


def test_a_verifiers_columns_are_the_rewards_to_take(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (here / "custom/verifiers.py").open("a") as file:
        file.write("\n\nclass Zoned(TimeOfDay):\n    columns = ('zone',)\n")
    with (here / "custom/rewards.py").open("a") as file:
        file.write("\n\ndef by_zone(completions, zone, **columns):\n    return zone\n")
    (here / "data/raw/clock.jsonl").touch()
    sections: dict[str, Any] = {
        "prepare": CLOCK,
        "grpo": {"reward_funcs": {"exact_answer": 1.0, "custom.rewards:by_zone": 1.0}},
    }
    edit_yaml(here / "params.yaml", sections)
    assert cli.main(["check"]) == 1
    assert "found it needs zone" in words(capsys.readouterr().err)
    sections["prepare"] = CLOCK | {"verifier": "custom.verifiers:Zoned"}
    edit_yaml(here / "params.yaml", sections)
    assert cli.main(["check", "--quiet"]) == 0
    edit_yaml(here / "params.yaml", {"prepare": {"keep": ["zone"]}})
    assert cli.main(["check"]) == 1
    assert "prepare.keep: expected other columns than the verifier's (zone)" in words(
        capsys.readouterr().err
    )


def test_the_functions_of_the_users_tasks_are_imported_too(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = here / "custom/eval_tasks"
    text = (folder / "example.yaml").read_text().replace("example_two_terms", "mine")
    (folder / "mine.yaml").write_text(f"{text}\nprocess_results: !function scoring.score\n")
    (folder / "scoring.py").write_text("import no_such_package\n")
    edit_yaml(here / "params.yaml", {"evaluate": {"tasks": ["heldout", "example_two_terms"]}})
    assert cli.main(["check", "--quiet"]) == 0, "nobody asks that task"
    edit_yaml(here / "params.yaml", {"evaluate": {"tasks": ["heldout", "mine"]}})
    assert cli.main(["check"]) == 1
    said = words(capsys.readouterr().err)
    assert "scoring.py, line 1: ModuleNotFoundError: No module named 'no_such_package'" in said


def test_what_plan_knows_to_fail_check_refuses(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consistency, "rows_prepared", lambda section: {"train": {"rows": 3}})
    assert cli.main(["check"]) == 1
    assert "different prompts, and train has 3" in words(capsys.readouterr().err)


def test_a_trial_shorter_than_the_warm_up_is_let_through(here: Path) -> None:
    edit_yaml(here / "params.yaml", {"sft": {"max_steps": 3}, "grpo": {"max_steps": 3}})
    assert cli.main(["check"]) == 0


def test_vllm_that_is_not_installed_is_named_before_anything_trains(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "vllm" else real(name)
    )
    edit_yaml(here / "params.yaml", {"grpo": {"use_vllm": True}, "evaluate": {"backend": "vllm"}})
    assert cli.main(["check"]) == 1
    said = words(capsys.readouterr().err)
    expected = "grpo.use_vllm: expected a CUDA device and the vllm package; found device auto, vllm"
    assert expected in said
    assert "evaluate.backend: expected a CUDA device" in said
    assert "Set `backend: hf`; or, on a CUDA machine, pip install" in said


def test_sfts_limit_of_a_prompt_needs_prepares(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_yaml(here / "params.yaml", {"sft": {"max_prompt_tokens": 60}})
    assert cli.main(["check"]) == 1
    assert "sft.max_prompt_tokens: expected prepare.max_prompt_tokens beside it" in words(
        capsys.readouterr().err
    )
    edit_yaml(here / "params.yaml", {"prepare": {"max_prompt_tokens": 40}})
    assert cli.main(["check"]) == 0


def test_a_classifier_at_a_branch_is_refused_with_the_command_that_prints_its_commit(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = {"repo": "textdetox/some-classifier", "revision": "main", "positive": ["neutral"]}
    edit_yaml(here / "params.yaml", {"evaluate": {"classifiers": {"tox": judge}}})
    assert cli.main(["check"]) == 1
    said = words(capsys.readouterr().err)
    assert "evaluate.classifiers.tox.revision" in said
    assert "hf models info textdetox/some-classifier --revision main --expand sha" in said


def test_findings_as_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_yaml(here / "params.yaml", {"sft": {"threads": 0}})
    assert cli.main(["check", "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)
    assert (finding["level"], finding["key"]) == ("wrong", "sft.threads")


def test_a_profile_that_is_not_there_could_not_be_checked(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["check", "--profile", "profiles/none.yaml"]) == 2
    assert "expected a YAML file; found no such file" in words(capsys.readouterr().err)


def test_another_python_on_the_path_is_told_with_the_line_that_helps(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "bin").mkdir()
    (here / "bin/python").symlink_to(Path(sys.base_prefix) / "bin/python3")
    monkeypatch.setenv("PATH", str(here / "bin"))
    with pytest.raises(CannotCheck, match=r"source \.venv/bin/activate"):
        workspace.require_environment()


def test_another_version_than_the_pinned_one_is_named(here: Path) -> None:
    text = (here / "constraints.txt").read_text()
    (here / "constraints.txt").write_text(text.replace("\ntrl==", "\ntrl==9."))
    with pytest.raises(CannotCheck, match=r"trl 1\.\S+ instead of 9\.1\."):
        workspace.require_environment()


def test_another_version_that_is_accepted_by_name_is_no_finding(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (here / "constraints.txt").read_text()
    (here / "constraints.txt").write_text(text.replace("\ntrl==", "\ntrl==9."))
    with pytest.raises(CannotCheck) as caught:
        workspace.require_environment()
    accepted = re.search(r"REGRPO_ACCEPT_VERSIONS='(trl==\S+)'", caught.value.remedy)
    assert accepted is not None
    monkeypatch.setenv("REGRPO_ACCEPT_VERSIONS", "trl==0.1")
    with pytest.raises(CannotCheck):
        workspace.require_environment()
    monkeypatch.setenv("REGRPO_ACCEPT_VERSIONS", f"torch==0.1, {accepted[1]}")
    workspace.require_environment()


def test_a_launch_configuration_that_is_not_there_is_told_by_its_key(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = {"processes": 2, "backend": "gloo", "config": "profiles/launch/mine.yaml"}
    edit_yaml(here / "params.yaml", {"sft": {"launch": launch}})
    assert cli.main(["check"]) == 2
    said = words(capsys.readouterr().err)
    assert "sft.launch.config: profiles/launch/mine.yaml: expected a YAML file" in said


def test_a_pipe_among_the_data_is_refused_unopened(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Opened, it would wait for a writer for ever."""
    (here / "data/raw").mkdir(parents=True, exist_ok=True)
    os.mkfifo(here / "data/raw/rows.jsonl")
    assert cli.main(["check"]) == 1
    said = words(capsys.readouterr().err)
    assert "data/raw/rows.jsonl: expected regular files inside data/raw/; found a FIFO." in said


def test_a_full_disk_is_told_before_the_run(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, 10**8)
    )  # type: ignore[attr-defined]
    with pytest.raises(Refused, match=r"expected 2\.0 GB free .* found 0\.1 GB"):
        workspace.require_disk()


@pytest.mark.parametrize("content", ["", "schema: '2.0'\nstages:\n", "stages: [\n"])
def test_a_lock_that_dvc_left_half_written_is_told_with_the_remedy(
    here: Path, content: str
) -> None:
    (here / "dvc.lock").write_text(content)
    with pytest.raises(CannotCheck, match=r"dvc\.lock: .*git checkout dvc\.lock"):
        workspace.require_lock()


def test_a_stage_under_a_foreign_interpreter_says_what_to_do_without_a_traceback() -> None:
    done = run(ROOT, sys.executable, "-S", "-m", "stages.prepare", check=False)
    assert done.returncode == 1
    assert "source .venv/bin/activate" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_stage_refuses_a_wrong_profile_before_it_does_anything(here: Path) -> None:
    edit_yaml(here / "params.yaml", {"model_card": {"lisense": "MIT"}})
    done = run(here, "python", "-m", "stages.prepare", check=False)
    assert done.returncode == 1
    assert "model_card.lisense: unknown key. Would do: license" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (here / "data/prepared").exists()


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    said = capsys.readouterr().out
    assert all(name in said for name in cli.COMMANDS)


def test_a_check_does_not_outlive_the_stage_that_started_it() -> None:
    command = [sys.executable, "-m", "regrpo.cli", "check", "--quiet"]
    environment = os.environ | {processes.PARENT: str(2**22 + 1)}  # it has ended before
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
