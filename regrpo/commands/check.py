"""regrpo check.

The whole profile, the environment and free disk, in a second, before anything runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from regrpo.commands import clone
from regrpo.compare import promote
from regrpo.core import hardware, hub, profiles, verifiers
from regrpo.core.errors import CannotCheck, Refused, RegrpoError
from regrpo.core.settings import did_you_mean
from regrpo.evaluate.tasks import WITHOUT_VERIFIER
from regrpo.inputs import base_models, formats, sources
from regrpo.train import launch, rewards

FREE_BYTES = 2 * 10**9
"""What a run of the default needs at most, with its caches and records."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile",
        type=Path,
        help="the profile to check (default: the one that params.yaml names)",
    )
    parser.add_argument("--quiet", action="store_true", help="say nothing where all is well")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(arguments: argparse.Namespace) -> int:
    clone.enter()
    findings = check(arguments.profile)
    problems = [finding for finding in findings if finding["problem"]]
    if arguments.json:
        print(json.dumps(findings, indent=2))
    elif problems or not arguments.quiet:
        for finding in problems or findings:
            stream = sys.stderr if finding["problem"] else sys.stdout
            print(
                f"{'FAIL' if finding['problem'] else 'ok  '}  {finding['problem'] or finding['what']}",
                file=stream,
            )
    return max((finding["exit_code"] for finding in problems), default=0)


def check(profile: Path | None) -> list[dict[str, Any]]:
    """Findings {what, problem (None where all is well), exit_code}, one per section and fact.

    Nothing is changed.
    """
    findings = [
        _finding(
            "environment: the pinned packages, on the python that DVC will start",
            require_environment,
        )
    ]
    findings.append(_finding(f"disk: at least {FREE_BYTES / 1e9:.0f} GB free", require_disk))
    findings.append(_finding("dvc.lock: whole, where there is one", require_lock))
    try:
        path = profile or profiles.active_profile()
        sections = profiles.read_profile(path)
    except RegrpoError as error:
        return [*findings, {"what": "profile", "problem": str(error), "exit_code": error.exit_code}]
    for stage in profiles.STAGES:
        findings.append(
            _finding(f"{path}: {stage}", lambda stage=stage: _parse(stage, sections[stage], path))
        )
    findings.append(_finding(f"{path}: promote", lambda: require_promote(sections, path)))
    if not any(finding["problem"] for finding in findings):
        findings.append(_finding(f"{path}: limits of prompts", lambda: require_cut(sections, path)))
        whole = f"{path}: rewards and tasks go with the data"
        findings.append(_finding(whole, lambda: require_answers(sections, path)))
    return findings


def _finding(what: str, holds: Any) -> dict[str, Any]:
    try:
        holds()
    except RegrpoError as error:
        return {"what": what, "problem": str(error), "exit_code": error.exit_code}
    return {"what": what, "problem": None, "exit_code": 0}


def _parse(stage: str, values: object, profile: Path) -> None:
    section = profiles.parse_section(
        importlib.import_module(f"stages.{stage}").Params, values, f"{profile}: {stage}"
    )
    if stage in LOOK_UP:
        LOOK_UP[stage](section, profile)
    if stage == "grpo" and section.passed_through.get("use_vllm"):
        hardware.require_vllm(f"{profile}: grpo.use_vllm", "use_vllm: false", section.device)
    if stage == "evaluate" and section.backend == "vllm":
        hardware.require_vllm(f"{profile}: evaluate.backend", "backend: hf", section.device)


def require_promote(sections: dict[str, Any], profile: Path) -> None:
    """The rule of `regrpo promote`, and that its task is one that evaluate asks (or another metric of one)."""
    section = profiles.parse_section(promote.Params, sections["promote"], f"{profile}: promote")
    evaluate = sections["evaluate"]
    asked = list(map(str, evaluate.get("tasks") or [])) if isinstance(evaluate, dict) else []
    if asked and not any(
        section.task == task or section.task.startswith(f"{task}_") for task in asked
    ):
        raise Refused(
            f"{profile}: promote.task",
            expected=f"a task of evaluate.tasks ({', '.join(asked)})",
            found=section.task,
            remedy="Name one of them, or add it there.",
        )


def require_cut(sections: dict[str, Any], profile: Path) -> None:
    """sft's own limit of a prompt stands beside prepare's, which says that questions may be cut."""
    if sections["sft"].get("max_prompt_tokens") and not sections["prepare"].get(
        "max_prompt_tokens"
    ):
        raise Refused(
            f"{profile}: sft.max_prompt_tokens",
            expected="prepare.max_prompt_tokens beside it, for everything but sft",
            found="none",
            remedy="Set both, or neither.",
        )


def require_answers(sections: dict[str, Any], profile: Path) -> None:
    """Data without verifiable answers have rewards and tasks that need none.

    Raises Refused otherwise.
    """
    given = sections["prepare"]
    name = given.get("verifier") or formats.get_format(given["format"]).verifier
    if verifiers.get_verifier(name):
        return
    for reward in set(sections["grpo"]["reward_funcs"]) & set(rewards.OURS):
        rewards.get_reward(reward, None, max_completion_length=1)
    ours = [
        task
        for task in sections["evaluate"]["tasks"]
        if Path("stages/eval_tasks", f"{task}.yaml").exists()
    ]
    if needy := [task for task in ours if task not in WITHOUT_VERIFIER]:
        raise Refused(
            f"{profile}: evaluate.tasks",
            expected=f"tasks that need no verifiable answer (prepare's verifier is {name})",
            found=", ".join(needy),
            remedy=f"Take {', '.join(WITHOUT_VERIFIER)}, your own or lm-eval's tasks, or data with answers.",
        )


def require_data(section: Any, profile: Path) -> None:
    """The format, the verifier and the files that prepare's section names."""
    form = formats.get_format(section.format)
    verifiers.get_verifier(section.verifier or form.verifier)
    if section.source.kind == "local":
        for part in filter(None, (section.source.train, section.source.eval)):
            hub.file_under(sources.RAW_DATA, part, f"{profile}: prepare.source")
    require_pin(section.source, "dataset", f"{profile}: prepare.source")


def require_base(section: Any, profile: Path) -> None:
    """The folder or file under models/raw/, or in a package, that base_model's section names."""
    if section.source.kind in ("gguf", "package"):
        base_models.require_gguf()
    if section.source.kind == "package":
        section.source.find()
        return
    name = getattr(section.source, "path", None) or getattr(section.source, "file", None)
    if name:
        hub.file_under(hub.RAW_MODELS, name, f"{profile}: base_model.source")
    require_pin(section.source, "model", f"{profile}: base_model.source")


def require_pin(source: Any, kind: str, key: str) -> None:
    """A hub repository's revision is a commit; the hub is not asked."""
    if repo := getattr(source, "repo", None):
        hub.require_commit(repo, source.revision, kind, f"{key}.revision", ask=False)


def require_classifiers(section: Any, profile: Path) -> None:
    """Each classifier's commit or folder, and its labels where its configuration is on this machine already."""
    stage = type(section).__module__.rpartition(".")[2]
    for name, one in section.classifiers.items():
        one.look_up(f"{profile}: {stage}.classifiers.{name}")


def require_launch(section: Any, profile: Path) -> None:
    """The accelerate configuration that sft's or grpo's section names."""
    if section.launch:
        launch.asked(section.launch)


def require_rewards(section: Any, profile: Path) -> None:
    """Each reward's name stands in the source of ours, of custom/ or of TRL's."""
    require_launch(section, profile)
    require_classifiers(section, profile)
    known = section.classifiers
    if unknown := [
        name for name in section.reward_funcs if name not in known and not rewards.is_known(name)
    ]:
        raise Refused(
            f"{profile}: grpo.reward_funcs",
            expected=f"{', '.join(rewards.OURS)}, custom.<module>:<function>, one of trl.rewards, or one of "
            "grpo.classifiers",
            found=", ".join(name + did_you_mean(name, [*rewards.OURS, *known]) for name in unknown),
            remedy="Correct the name, or write the function.",
        )


def require_tasks(section: Any, profile: Path) -> None:
    """Each task's name stands in a task file of ours, of the user's or of lm-eval's (read as text, in a second).

    An hour of training must not end at a misspelled task. Whether the task can be loaded shows when it is.
    """
    require_classifiers(section, profile)
    spec = importlib.util.find_spec("lm_eval")
    installed = [
        Path(place) / "tasks" for place in (spec.submodule_search_locations or [] if spec else [])
    ]
    left = set(section.tasks)
    for folder in (Path("stages/eval_tasks"), Path("custom/eval_tasks"), *installed):
        for file in folder.rglob("*.yaml") if left else ():
            text = file.read_text(encoding="utf-8", errors="replace")
            left -= {
                name
                for name in left
                if name in text and re.search(rf"(?m)[\s:\[-]{re.escape(name)}[\s,\]]", text)
            }
    if left:
        raise Refused(
            f"{profile}: evaluate.tasks",
            expected="tasks of stages/eval_tasks/, custom/eval_tasks/ or lm-eval",
            found=f"{', '.join(sorted(left))}, which none of their files names",
            remedy="Correct the name; `lm-eval ls tasks` lists lm-eval's.",
        )


LOOK_UP: dict[str, Callable[[Any, Path], None]] = {
    "prepare": require_data,
    "base_model": require_base,
    "sft": require_launch,
    "grpo": require_rewards,
    "evaluate": require_tasks,
}
"""What a section names besides its keys.

Looked up before an hour is spent on what comes before it.
"""


def require_environment() -> None:
    """Every direct dependency at its version in constraints.txt, and the `python` of PATH this very environment."""
    pinned = dict(
        re.findall(r"^([\w.-]+)==(\S+)$", Path("constraints.txt").read_text(), re.MULTILINE)
    )
    try:
        direct = [
            re.split(r"[^\w.-]", line)[0]
            for line in metadata.requires("regrpo") or []
            if "extra ==" not in line
        ]
    except metadata.PackageNotFoundError:
        direct = ["regrpo"]
    wrong = []
    for name in direct:
        expected = pinned.get(_canonical(name))
        try:
            found = metadata.version(name).partition("+")[0]  # a CPU build of torch says 2.13.0+cpu
        except metadata.PackageNotFoundError:
            found = "nothing"
        if expected not in (None, found) or found == "nothing":
            wrong.append(f"{name} {found} instead of {expected or 'an installed one'}")
    if wrong:
        raise CannotCheck(
            f"environment ({sys.executable})",
            expected="the packages that constraints.txt pins",
            found="; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""),
            remedy="Run `make install`, then `source .venv/bin/activate`.",
        )
    python = shutil.which("python")
    if python is None or Path(python).parent.resolve() != Path(sys.executable).parent.resolve():
        raise CannotCheck(
            "environment (PATH)",
            expected=f"`python` to be {sys.executable}, since DVC starts each stage with the python of PATH",
            found=str(python),
            remedy="Run `source .venv/bin/activate` first, or use `make repro`.",
        )


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def require_lock() -> None:
    """A dvc.lock that DVC can read.

    It writes the file in place, so that a kill in that instant leaves it cut off.
    """
    lock = Path("dvc.lock")
    try:
        content = profiles.read_yaml(lock) if lock.exists() else {"stages": {}}
    except Refused:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("stages"), dict):
        raise CannotCheck(
            "dvc.lock",
            expected="DVC's record of the stages",
            found="an empty file" if not lock.stat().st_size else "something that DVC cannot read",
            remedy="DVC was killed while it wrote it: `git checkout dvc.lock`, or delete it; DVC's cache brings the "
            "finished stages back.",
        )


def require_disk() -> None:
    """Room for what the run writes.

    The models three times over, in the workspace and in DVC's cache.
    """
    base = Path("models/base")
    models = sum(file.stat().st_size for file in base.glob("*")) if base.is_dir() else 0
    needed, free = FREE_BYTES + 6 * models, shutil.disk_usage(Path.cwd()).free
    if free < needed:
        raise Refused(
            "disk",
            expected=f"{needed / 1e9:.1f} GB free where the repository lies",
            found=f"{free / 1e9:.1f} GB",
            remedy="Free some (`dvc gc --workspace` drops cached results that no experiment of yours needs).",
        )
