"""The pieces of Markdown that the model card is made of.

Text that comes from data or completions goes through core.text or `literal`, so that it can be no
markup; what varies from run to run is in `this_run` alone.
"""

from __future__ import annotations

import json
import pprint
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from regrpo.core import files, text
from regrpo.core.library import library_defaults
from regrpo.core.pipeline import RAW, Snapshot
from regrpo.core.profiles import DEFAULT_PROFILE, parse_yaml
from regrpo.core.text import UNKNOWN, change, code, fence, prose
from regrpo.evaluate.results import MODELS, FewShot, Task
from regrpo.inputs.selection import Selection
from regrpo.report.card_facts import RECORDED, TRAINERS, Facts, Json

FRAMEWORKS = {
    "TRL": "trl",
    "Transformers": "transformers",
    "PyTorch": "torch",
    "Datasets": "datasets",
    "Tokenizers": "tokenizers",
    "PEFT": "peft",
    "Accelerate": "accelerate",
    "lm-eval": "lm-eval",
}


# --- what the model is ----------------------------------------------------------------------------


def hub_link(repo: str, kind: str = "") -> str:
    """A link to a repository on the hub; `kind` is "datasets/" for a dataset's."""
    return f"[{prose(repo)}](https://huggingface.co/{kind}{quote(repo)})"


def origin(base: Json) -> str:
    """Where the base weights come from; a link only where the hub has them."""
    if base["kind"] == "hub":
        return f"{hub_link(base['repo'])} at revision {code(base['revision'])}"
    if base["kind"] == "scratch":
        revision = prose(base["revision"])
        return f"weights made from scratch ({revision}; there is no published base model)"
    if base["kind"] == "gguf":
        return f"{code(base['source'])} (SHA-256 {code(base['revision'])}), dequantised"
    copied = ""
    if base.get("published_as"):
        copied = f", a copy of {hub_link(base['published_as'])} as the profile says"
    return f"the {code(base['source'])}{copied} (its files' SHA-256 are in the lineage below)"


def quick_start(facts: Facts) -> str:
    """A snippet that runs as written from the repository's root: the first question, greedily."""
    tokens = facts.setting("grpo", "max_completion_length")
    lines = (
        "from transformers import pipeline",
        "",
        f"prompt = {literal(facts.example['prompt'])}",
        'generator = pipeline("text-generation", model="models/grpo", device_map="auto")',
        f"settings = dict(max_new_tokens={tokens}, do_sample=False)",
        "output = generator(prompt, return_full_text=False, **settings)[0]",
        'print(output["generated_text"])',
    )
    return fence("\n".join(lines), "python")


def literal(value: object) -> str:
    """The value as a Python literal of printable characters, long strings in several lines."""
    return pprint.pformat(value, width=100, sort_dicts=False).replace("<!--", "<!\\x2d-")


def completions(samples: Mapping[str, str]) -> str:
    """The models' completions of the example, each under its model's name."""
    shown = [f"{model}: {text.visible(samples[model])}" for model in MODELS if model in samples]
    return fence("\n".join(shown), "text")


# --- evaluation -----------------------------------------------------------------------------------


def estimate(task: Task, model: str) -> str:
    """A model's result on a task with its confidence interval."""
    found = task.models.get(model)
    return UNKNOWN if found is None else text.estimate(found.value, found.ci95, task.kind)


def gain_words(facts: Facts) -> str | None:
    """GRPO's gain on the headline task, split by the control that opens the reasoning.

    None if it was not measured, or if opening the reasoning gives nothing.
    """
    gain, headline = facts.evaluation.gain, facts.evaluation.headline_task
    if gain is None or headline is None or not gain.is_split:
        return None
    total = change(gain.total, gain.total_ci95, headline.kind)
    elicited = change(gain.elicited, gain.elicited_ci95, headline.kind)
    learned = change(gain.learned, gain.learned_ci95, headline.kind)
    opening = code(facts.verifier.reasoning_opening.strip()) if facts.verifier else "the reasoning"
    return (
        f"GRPO moved greedy accuracy by {total}. Opening {opening} for the model that GRPO started "
        f"from, without training it further, moves it by {elicited}, "
        f"{text.distinguishable(gain.elicited_ci95)}: what thinking before answering buys by "
        f"itself. The remaining {learned} is {text.distinguishable(gain.learned_ci95)}."
    )


def few_shot_overlap(facts: Facts) -> list[tuple[str, FewShot]]:
    """(task, its few-shot examples) where these come from data trained on here.

    So it is with lm-eval's gsm8k. A dataset is the same by the last part of its name: the hub's, or
    the format's where files were brought.
    """
    here = {facts.dataset["format"], (facts.dataset.get("repo") or "").rpartition("/")[2]}
    found = []
    for name, task in facts.evaluation.shown_tasks.items():
        drawn = task.few_shot
        if drawn is None or not drawn.split.startswith("train"):
            continue
        if str(drawn.dataset).rpartition("/")[2] in here:
            found.append((name, drawn))
    return found


# --- training -------------------------------------------------------------------------------------


def selection(facts: Facts) -> str | None:
    """Which of the training questions GRPO trained on; None if these are all of them."""
    found, choice = facts.select, Selection.of_section(facts.section("select"))
    if not choice.samples:
        return None
    band = f"right in {choice.low} to {choice.high} of {choice.samples} sampled answers"
    which = f"those that the model which GRPO started from gets {band}"
    if choice.choose == "random":
        which = f"a random draw of as many as it gets {band}, the control of that filter"
    return (
        f"**GRPO trained on {found['kept']:,} of {found['questions']:,} questions**: {which}. Of "
        f"all, {text.score(found['always_right'], 'binary')} were always right, "
        f"{text.score(found['always_wrong'], 'binary')} always wrong."
    )


def determinism(facts: Facts) -> str:
    """What of the deterministic mode was on, per stage that computes on CUDA."""
    switches = {
        "sft": facts.sft.get("deterministic"),
        "grpo": facts.grpo.get("deterministic"),
        "evaluate": facts.evaluation.deterministic,
    }
    found = []
    for stage, turned_on in switches.items():
        if turned_on:
            found.append(f"{stage}: {names(turned_on)}")
        elif facts.section(stage).get("deterministic"):
            found.append(f"{stage}: nothing to turn on, it ran without CUDA")
    if not found:
        return "Deterministic mode (for CUDA) was not asked for."
    return f"Deterministic mode — {'; '.join(found)}."


def names(items: Sequence[object]) -> str:
    """Code spans in a row, each once."""
    return ", ".join(map(code, dict.fromkeys(items))) or "none"


def reward(facts: Facts, name: str) -> str:
    """What a reward function is, where that is a classifier; nothing otherwise."""
    judge = facts.grpo.get("classifiers", {}).get(name)
    if not judge:
        return ""
    value = " + ".join(f"P({code(label)})" for label in judge["positive"])
    value += "".join(f" − P({code(label)})" for label in judge["negative"])
    place = f"the {code(judge['source'])}"
    if judge["repo"]:
        place = f"{hub_link(judge['repo'])} at {code(judge['revision'])}"
    digest = code(judge["sha256"][:12])
    return f": {value} by {place}, licence {prose(judge['license'])}, files' SHA-256 {digest}"


def settings(facts: Facts, stage: str) -> tuple[list[tuple[str, str, str]], list[str]]:
    """(key, value, the library's default) of each setting that is another; the keys set to it."""
    defaults = library_defaults(TRAINERS[stage])
    different, same = [], []
    for key, value in sorted(facts.section(stage).items()):
        default = defaults.get(key, "—")
        if key in defaults and default == value and type(default) is type(value):
            same.append(f"{code(key)} {code(json.dumps(value))}")
        elif key not in ("reward_funcs", "classifiers"):  # they have a table of their own
            known = code(json.dumps(default)) if key in defaults else default
            different.append((code(key), code(json.dumps(value, ensure_ascii=False)), known))
    return different, same


def compute(facts: Facts) -> list[tuple[str, int, str, float]]:
    """(stage, tokens, formula, TFLOP) of each training, N parameters and D tokens.

    A forward takes 2·N operations a token, a backward twice that (Kaplan et al. 2020, section 2.1),
    once where only an adapter is trained. N is of all parameters, as in Hoffmann et al. 2022.
    """
    found = []
    for stage in facts.trained:
        times = 4 if facts.adapter(stage) else 6
        formula = f"{times}·N·D"
        if stage == "grpo":
            repeats = int(facts.setting(stage, "num_iterations"))
            times *= repeats
            formula += f" × {repeats}" if repeats > 1 else ""
            times, formula = times + 2, f"{formula} + 2·N·D to generate"
            if facts.setting(stage, "beta"):
                times, formula = times + 2, f"{formula} + 2·N·D for the reference"
        tokens = facts.tokens[stage]
        found.append((stage, tokens, formula, times * facts.base["parameters"] * tokens / 1e12))
    return found


COMPUTED = (
    "Prompts and completions, as TRL counted them (`num_tokens`, without padding). Operations are "
    "those that the model's arithmetic needs: a forward takes 2·N a token, a backward twice that "
    "(Kaplan et al. 2020, arXiv:2001.08361), N being all parameters (as in Hoffmann et al. 2022, "
    "arXiv:2203.15556) and D the tokens. Not counted: attention's own, recomputing, the gate, "
    "select's answers, dev accuracy and the evaluation."
)


def set_aside(base: Json) -> str:
    """The settings that a base came with and that are used nowhere, with their values."""
    settings = base["conversation"]["set_aside"]
    return ", ".join(code(f"{name}: {json.dumps(value)}") for name, value in settings.items())


def lossy_rows(verdict: Json) -> int:
    """Rows whose text the tokenizer changes, as the profile allows."""
    accepted = [check["failed"] for check in verdict["checks"] if check.get("allowed")]
    return sum(accepted)


def versions(facts: Facts) -> dict[str, str]:
    """Framework names and versions in the grpo stage's record, a build's label (+cpu) left out."""
    packages = facts.runs["grpo"]["environment"]["packages"]
    return {
        name: packages.get(package, UNKNOWN).partition("+")[0]
        for name, package in FRAMEWORKS.items()
    }


def seeds(facts: Facts) -> str:
    sections = {stage: facts.section(stage) for stage in RECORDED}
    return ", ".join(f"{name} {one['seed']}" for name, one in sections.items() if "seed" in one)


# --- lineage --------------------------------------------------------------------------------------


def brought_in(facts: Facts) -> dict[str, str]:
    """SHA-256 of the user's folders (data/raw, models/raw), where they hold anything."""
    found = {}
    for artifact in facts.runs["prepare"]["inputs"] + facts.runs["base_model"]["inputs"]:
        if artifact["path"] in RAW and set(artifact["files"]) - {"README.md"}:
            found[artifact["path"]] = artifact["sha256"]
    return found


def makers(facts: Facts, reader: str) -> list[str]:
    """The stages whose files a stage read, in running order."""
    owners = {path: stage for stage, path, _ in facts.files("outputs")}
    read = {owners.get(path) for stage, path, _ in facts.files("inputs") if stage == reader}
    return [stage for stage in RECORDED if stage in read]


# --- what varies from run to run ------------------------------------------------------------------


def without_varying_block(card: str) -> str:
    """What of a card is the same in every run: all but the marked block, its marks included."""
    before, _, rest = card.partition("<!-- varies from run to run: begin -->\n")
    return before + rest.partition("<!-- varies from run to run: end -->\n")[2]


def this_run(facts: Facts) -> Json:
    """Revision, commands and hardware, for the marked block alone."""
    runs = facts.runs.values()
    last = max(runs, key=lambda run: str(run["ended"]))
    environments = {run["environment"]["sha256"]: run["environment"] for run in runs}
    return {
        "code": last["code"],
        "mixed": len({run["code"]["revision"] for run in runs}) > 1,
        "commands": commands(facts, last["code"]["revision"]),
        "environments": list(environments.values()),
    }


def commands(facts: Facts, revision: str | None) -> str:
    """The shell lines that make this model again, from a clone of the repository."""
    is_default = facts.profile == str(DEFAULT_PROFILE)
    lines, arguments = [], []
    if revision:
        lines.append(f"git checkout {revision}")
        for override in overrides(facts, revision):
            if _is_simple(override):
                arguments.append(override)
            else:
                lines.append(f"# set in {facts.profile} by hand: {text.one_line(override)}")
    if arguments:
        if not is_default:
            arguments.insert(0, f"profile={facts.profile}")
        options = " ".join(f"-S {shlex.quote(one)}" for one in arguments)
        lines += ["make install", f'PATH="$PWD/.venv/bin:$PATH" dvc exp run {options}']
    elif is_default:
        lines.append("make repro")
    else:
        lines.append(f"make repro PROFILE={shlex.quote(facts.profile)}")
    return "\n".join(lines)


def overrides(facts: Facts, revision: str) -> list[str]:
    """What `dvc exp run -S` needs so that the profile at `revision` says what the records say."""
    data = Snapshot(Path.cwd(), revision).read(facts.profile)
    if data is None:
        return []
    committed = parse_yaml(data, facts.profile)
    prefix = "" if facts.profile == str(DEFAULT_PROFILE) else f"{facts.profile}:"
    found = []
    for stage in RECORDED:
        changed = _overrides(stage, committed.get(stage), facts.section(stage))
        found += [prefix + override for override in changed]
    return found


def _overrides(stage: str, before: Any, after: Json) -> Iterator[str]:
    """Hydra overrides, leaf by leaf: `k=v` changes, `+k=v` adds, `~k` removes."""
    # Hydra has no override for an item of a list.
    leaves = files.unequal_leaves(before, after, stage, into_lists=False)
    for key, was, now in sorted(leaves, key=lambda leaf: leaf[0]):
        if now == files.ABSENT:
            yield f"~{key}"
        elif was == files.ABSENT:
            yield f"+{key}={_hydra(now)}"
        else:
            yield f"{key}={_hydra(now)}"


def _hydra(value: Any) -> str:
    """A value as Hydra's override grammar writes it: JSON, but for the keys, which stand bare."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{_hydra(one)}" for name, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_hydra, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _is_simple(override: str) -> bool:
    """Whether Hydra's grammar takes it: plain keys (not a reward custom.x:f), no escapes."""
    key, _, value = override.partition("=")
    is_plain = re.fullmatch(r"([\w./-]+\.ya?ml:)?[+~]?\w+(\.\w+)*", key)
    return is_plain is not None and not set(value) & set("\\$\n")
