"""What the sections of a profile name besides their keys: rewards, tasks, files, commits.

Each rule refuses what is not there (Refused, CannotCheck), and is looked up before an hour is
spent on what comes before it. `regrpo check` asks all of them, `regrpo plan` those that it does
not judge in more detail itself.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from regrpo.core import conversation, hardware, hub, verifiers
from regrpo.core.answers.reasoning_gym import ReasoningGym, require_task
from regrpo.core.custom.probe import probe, probe_verifier
from regrpo.core.errors import Refused, RegrpoError
from regrpo.core.library import library_defaults
from regrpo.core.settings import did_you_mean
from regrpo.evaluate.tasks import CUSTOM, WITHOUT_VERIFIER
from regrpo.inputs import base_models, examples, formats, model_folders, selection, sources
from regrpo.plan.findings import Sections
from regrpo.train import custom_code, rewards, sharding
from regrpo.train.generation import Sampling

Rule = Callable[..., object]


def refusals(sections: Sections, *tables: Mapping[str, list[Rule]]) -> list[RegrpoError]:
    """What the tables' rules refuse of the sections that are there."""
    errors = []
    for table in tables:
        for stage, section in sections.items():
            for rule in table.get(stage, []):
                errors += _refusal(rule, stage, section)
    return errors


def joint_refusals(sections: Sections, refused: Iterable[RegrpoError]) -> list[RegrpoError]:
    """What does not go together, among the sections that are there and not refused themselves."""
    sound = sections.keys() - {error.where.partition(".")[0] for error in refused}
    errors = []
    for rule, stages in JOINT.items():
        if sound.issuperset(stages):
            errors += _refusal(rule, *map(sections.get, stages))
    return errors


def _refusal(rule: Rule, *given: Any) -> list[RegrpoError]:
    try:
        rule(*given)
    except RegrpoError as error:
        return [error]
    return []


# --- rules of one section -------------------------------------------------------------------------


def require_data(_: str, section: Any) -> None:
    """The format and the verifier that prepare names, its settings, and the columns of both."""
    if section.format.startswith(verifiers.OWN):
        _require_imports("prepare.format", [section.format])
    examples.require_plan(section, _verifier_columns(section))
    if _verifier_name(section) == section.source.kind == ReasoningGym.name:
        require_task(section.source.task)


def _verifier_name(section: Any) -> str:
    """The verifier that prepare's section names, or else its format's own."""
    name: str = section.verifier or formats.get_format(section.format).verifier
    return name


def _verifier_columns(section: Any) -> list[str] | None:
    """The columns of a verifier of the user's, which is not imported here; None for one of ours."""
    name = section.verifier or ""
    if not name.startswith(verifiers.OWN):
        return None
    facts = probe_verifier(name, section.verifier_settings)
    if "error" in facts:
        raise Refused(
            facts.get("where", verifiers.WHERE),
            expected=facts.get("expected", f"{name}, which can be imported"),
            found=facts["error"],
            remedy=facts.get("remedy", "Mend the module."),
        )
    columns: list[str] = facts["columns"]
    return columns


def absent_files(values: Mapping[str, Any]) -> list[RegrpoError]:
    """The files under data/raw/ and models/raw/ that a profile names and that are not there.

    It is looked up in the profile as it stands, so that they are told beside keys that are wrong.
    """
    errors = []
    for stage, (folder, names) in BROUGHT.items():
        section = values.get(stage)
        source = section.get("source") if isinstance(section, dict) else None
        if isinstance(source, dict) and source.get("kind") in ("local", "gguf"):
            for key in names:
                if isinstance(source.get(key), str):
                    where = f"{stage}.source.{key}"
                    errors += _refusal(hub.file_under, folder, source[key], where)
    return errors


BROUGHT = {
    "prepare": (sources.RAW_DATA, ("train", "eval")),
    "base_model": (hub.RAW_MODELS, ("path", "file")),
}
"""Where a section's source lies that is brought, and the keys of the source that name it."""


def require_base(_: str, section: Any) -> None:
    """What the folder is that base_model names; a package with its file."""
    source = section.source
    if source.kind in ("gguf", "package"):
        base_models.require_gguf()
    if source.kind == "package":
        source.find()
    elif source.kind == "local" and (hub.RAW_MODELS / source.path).is_dir():
        model_folders.recognise(hub.RAW_MODELS / source.path, source.path)


def require_rewards(_: str, section: Any) -> None:
    """Each reward is one of ours, a classifier, one of TRL's without a clock, or is imported."""
    custom = _custom_rewards(section)
    _require_imports("grpo.reward_funcs", custom)
    known = [*rewards.OURS, *section.classifiers]
    unknown = []
    for name in section.reward_funcs:
        if name in (*known, *custom):
            continue
        rewards.require_no_clock(name)
        if name not in rewards.of_trl():
            unknown.append(name + did_you_mean(name, known))
    if unknown:
        raise Refused(
            "grpo.reward_funcs",
            expected=f"{', '.join(rewards.OURS)}, custom.<module>:<function>, one of trl.rewards, "
            "or one of grpo.classifiers",
            found=", ".join(unknown),
            remedy="Correct the name, or write the function.",
        )


def _require_imports(where: str, names: Sequence[str]) -> None:
    """Refuse functions of the user's that cannot be imported, each with the line that fails."""
    found = []
    for name, facts in probe(names).items():
        if "error" in facts:
            found.append(f"{name} ({facts['error']})")
    if found:
        raise Refused(
            where,
            expected="functions of custom/ that can be imported",
            found=", ".join(found),
            remedy="Mend the module, or set what it wants; or correct the name.",
        )


def _custom_rewards(section: Any) -> list[str]:
    return [name for name in section.reward_funcs if name.startswith("custom.")]


def require_classifiers(stage: str, section: Any) -> None:
    """Each classifier's folder and labels, if they are on this machine already."""
    for name, one in section.classifiers.items():
        one.look_up(f"{stage}.classifiers.{name}")


def require_tasks(_: str, section: Any) -> None:
    """Each task's name stands in a task file of ours, of the user's or of lm-eval's.

    The files are read as text, in a second: an hour of training must not end at a misspelled task.
    Whether the task can be loaded shows when it is.
    """
    left = set(section.tasks)
    for folder in _task_folders():
        for file in folder.rglob("*.yaml"):
            if not left:
                return
            text = file.read_text(encoding="utf-8", errors="replace")
            left -= {name for name in left if name in text and _names_task(text, name)}
    if left:
        raise Refused(
            "evaluate.tasks",
            expected="tasks of stages/eval_tasks/, custom/eval_tasks/ or lm-eval",
            found=f"{', '.join(sorted(left))}, which none of their files names",
            remedy="Correct the name; `lm-eval ls tasks` lists lm-eval's.",
        )


def require_task_functions(_: str, section: Any) -> None:
    """What the user's tasks name with `!function` can be imported."""
    names: list[str] = []
    for file in sorted(CUSTOM.rglob("*.yaml")):
        text = file.read_text(encoding="utf-8", errors="replace")
        if any(_names_task(text, task) for task in section.tasks):
            names += _functions(file, text)
    _require_imports("evaluate.tasks", list(dict.fromkeys(names)))


def _functions(file: Path, text: str) -> Iterator[str]:
    """`<file>.py:<function>` of each function beside a task's file, its `include:` read too."""
    for included in re.findall(r"(?m)^include:\s*(\S+)", text):
        if (file.parent / included).is_file():
            text += (file.parent / included).read_text(encoding="utf-8", errors="replace")
    for reference in re.findall(r"!function\s+([\w.]+)", text):
        module, _, function = reference.rpartition(".")
        beside = file.parent / f"{module.replace('.', '/')}.py"
        if beside.exists():
            yield f"{beside}:{function}"


def _task_folders() -> list[Path]:
    spec = importlib.util.find_spec("lm_eval")
    places = spec.submodule_search_locations if spec else None
    installed = [Path(place) / "tasks" for place in places or []]
    return [Path("stages/eval_tasks"), CUSTOM, *installed]


def _names_task(text: str, name: str) -> bool:
    return re.search(rf"(?m)[\s:\[-]{re.escape(name)}[\s,\]]", text) is not None


def require_source_commit(stage: str, section: Any) -> None:
    """A hub repository's revision is a commit; the hub is not asked."""
    if section.source.kind == "hub":
        kind = "model" if stage == "base_model" else "dataset"
        _require_commit(section.source, kind, f"{stage}.source")


def require_classifier_commits(stage: str, section: Any) -> None:
    """Each hub classifier's revision is a commit; the hub is not asked."""
    for name, one in section.classifiers.items():
        if one.repo:
            _require_commit(one, "model", f"{stage}.classifiers.{name}")


def _require_commit(source: Any, kind: str, key: str) -> None:
    hub.require_commit(source.repo, source.revision, kind, f"{key}.revision", ask=False)


def require_launch(stage: str, section: Any) -> None:
    """The accelerate configuration that sft's or grpo's section names."""
    if section.launch:
        try:
            sharding.requested(section.launch)
        except RegrpoError as error:
            raise type(error)(
                f"{stage}.launch.config: {error.where}",
                expected=error.expected,
                found=error.found,
                remedy=error.remedy,
            ) from error


def require_device(stage: str, section: Any) -> None:
    """The GPU that a section asks for by name, and what it must be able to do."""
    if section.device != "cuda" or (stage == "select" and not section.samples):
        return
    hardware.find_device("cuda", f"{stage}.device")
    if stage in ("select", "evaluate"):
        return
    hardware.require_bf16(stage, section.wants_bf16, "cuda")
    if section.launch and section.launch.backend == "nccl":
        hardware.require_nccl(f"{stage}.launch.backend")


def require_vllm(stage: str, section: Any) -> None:
    """vLLM, where grpo or evaluate asks for it."""
    if stage == "grpo" and section.passed_through.get("use_vllm"):
        hardware.require_vllm("grpo.use_vllm", "use_vllm: false", section.device)
    if stage == "evaluate" and section.backend == "vllm":
        hardware.require_vllm("evaluate.backend", "backend: hf", section.device)


NAMES: dict[str, list[Rule]] = {
    "prepare": [require_data],
    "base_model": [require_base],
    "grpo": [require_rewards, require_classifiers],
    "evaluate": [require_tasks, require_task_functions, require_classifiers],
}
"""Names and files, which every profile must have right wherever it is to run."""
COMMITS: dict[str, list[Rule]] = {
    "prepare": [require_source_commit],
    "base_model": [require_source_commit],
    "grpo": [require_classifier_commits],
    "evaluate": [require_classifier_commits],
}
"""Pins, which a run must have and a plan can do without."""
READY: dict[str, list[Rule]] = {
    "sft": [require_device, require_launch],
    "select": [require_device],
    "grpo": [require_device, require_launch, require_vllm],
    "evaluate": [require_device, require_vllm],
}
"""What a run needs here and now; a plan judges it in more detail, for its own machine."""


# --- rules of several sections --------------------------------------------------------------------


def require_promote(promote: Any, evaluate: Any) -> None:
    """The task of `regrpo promote` is one that evaluate asks, or another metric of one."""
    if not any(f"{promote.task}_".startswith(f"{one}_") for one in evaluate.tasks):
        raise Refused(
            "promote.task",
            expected=f"a task of evaluate.tasks ({', '.join(evaluate.tasks)})",
            found=promote.task,
            remedy="Name one of them, or add it there.",
        )


def require_cut(prepare: Any, sft: Any) -> None:
    """sft's own limit of a prompt stands beside prepare's."""
    conversation.require_cut(sft.max_prompt_tokens, prepare.max_prompt_tokens)


def require_answers(prepare: Any, grpo: Any, evaluate: Any) -> None:
    """Data without verifiable answers have rewards and tasks that need none."""
    if _verifier_name(prepare) != verifiers.NONE:
        return
    for reward in set(grpo.reward_funcs) & set(rewards.OURS):
        rewards.get_reward(reward, None, max_completion_length=1)
    ours = [task for task in evaluate.tasks if Path(f"stages/eval_tasks/{task}.yaml").exists()]
    needy = [task for task in ours if task not in WITHOUT_VERIFIER]
    if needy:
        free = ", ".join(WITHOUT_VERIFIER)
        raise Refused(
            "evaluate.tasks",
            expected="tasks that need no verifiable answer (prepare's verifier is none)",
            found=", ".join(needy),
            remedy=f"Take {free}, your own or lm-eval's tasks, or data with answers.",
        )


def require_reward_columns(prepare: Any, grpo: Any) -> None:
    """What the user's rewards need is among the data's columns, and bears no reward's name."""
    kept = examples.kept_columns(prepare, _verifier_columns(prepare))
    columns = [*custom_code.DATA, *kept]
    for name, asked in probe(_custom_rewards(grpo)).items():
        custom_code.require_columns(name, asked, columns)
    functions = {name.rpartition(":")[2] for name in grpo.reward_funcs}
    taken = functions & set(prepare.keep)
    if taken:
        raise Refused(
            "prepare.keep",
            expected="columns with other names than the rewards (samples.parquet holds both)",
            found=", ".join(sorted(taken)),
            remedy="Give the function another name.",
        )


def require_selection(prepare: Any, select: Any, grpo: Any) -> None:
    """select's answers can be judged, are sampled as grpo's, and are parted by a kept column."""
    if not select.samples:
        return
    if _verifier_name(prepare) == verifiers.NONE:
        raise selection.no_verifier()
    settings = library_defaults(grpo.library) | grpo.model_dump()
    others = [key for key in Sampling.model_fields if settings[key] != getattr(select, key)]
    if others:
        raise Refused(
            "select",
            expected="answers sampled as grpo samples them: "
            + ", ".join(f"{key} {settings[key]}" for key in others),
            found=", ".join(f"{key} {getattr(select, key)}" for key in others),
            remedy="Set these keys alike in both sections.",
        )
    kept = examples.kept_columns(prepare, _verifier_columns(prepare))
    if select.stratify and select.stratify not in kept:
        raise Refused(
            "select.stratify",
            expected=f"a column that prepare keeps ({', '.join(kept) or 'there is none'})",
            found=select.stratify,
            remedy="Name it in prepare.keep, or set `stratify: null`.",
        )


def require_rows(prepare: Any, validate: Any) -> None:
    """What prepare gives a split at most is no less than what the gate wants of each."""
    sizes = {
        "prepare.eval": prepare.eval,
        "prepare.dev": prepare.dev,
        "prepare.train": prepare.train,
    }
    few = [f"{key}: {size}" for key, size in sizes.items() if size and size < validate.min_rows]
    if few:
        raise Refused(
            "validate.min_rows",
            expected="no more rows than prepare gives a split",
            found=f"{validate.min_rows} beside {', '.join(few)}",
            remedy=f"Raise these, or lower it to {min(size for size in sizes.values() if size)}.",
        )


JOINT: dict[Rule, tuple[str, ...]] = {
    require_promote: ("promote", "evaluate"),
    require_cut: ("prepare", "sft"),
    require_answers: ("prepare", "grpo", "evaluate"),
    require_reward_columns: ("prepare", "grpo"),
    require_selection: ("prepare", "select", "grpo"),
    require_rows: ("prepare", "validate"),
}
"""Each with the sections that it reads, which must be right for themselves."""
