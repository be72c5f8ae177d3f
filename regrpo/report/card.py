"""What the model card is made of.

Facts read from the pipeline's files, and the small pieces of Markdown they become.

Text that comes from data or completions goes through `code`, `fence` or `literal`, so that it can
be no markup; what varies from run to run is in `this_run` alone.
"""

from __future__ import annotations

import json
import pprint
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from regrpo.core import files, text
from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.library import library_defaults
from regrpo.core.pipeline import Snapshot, chain_misfits, hashes
from regrpo.core.profiles import DEFAULT_PROFILE, STAGES, parse_yaml
from regrpo.core.prompts import Cutter
from regrpo.core.text import UNKNOWN, change, code, fence, prose
from regrpo.core.verifiers import Verifier, get_verifier
from regrpo.evaluate.results import (
    METRICS,
    MODELS,
    PAIRS,
    SAMPLES,
    Evaluation,
    FewShot,
    Task,
    parse_metrics,
    read_samples,
)

RECORDED = STAGES[:-1]
"""The stages that come before the card, whose run.json it reads."""
PICTURES = (Path("reports/grpo/curves.png"), Path("reports/evaluate/comparison.png"))
TRAINERS = {
    "sft": "trl.trainer.sft_config:SFTConfig",
    "grpo": "trl.trainer.grpo_config:GRPOConfig",
}
"""Each trained stage's configuration class, whose defaults the card names."""
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
Json = dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """Everything the card is rendered from.

    `example` is the first evaluation question, `samples` its completions.
    """

    dataset: Json
    base: Json
    verdict: Json
    sft: Json
    grpo: Json
    health: Json
    evaluation: Evaluation
    runs: Mapping[str, Json]
    example: Json
    samples: Mapping[str, str]

    @property
    def profile(self) -> str:
        """The profile that the GRPO model was trained with."""
        return str(next(iter(self.runs["grpo"]["parameters"])))

    @property
    def verifier(self) -> Verifier | None:
        return get_verifier(self.dataset["verifier"])

    def section(self, stage: str) -> Json:
        """A stage's parameters, as its record holds them."""
        section: Json = next(iter(self.runs[stage]["parameters"].values()))[stage]
        return section

    def setting(self, stage: str, key: str) -> Any:
        """One of a trainer's settings: the profile's, else the library's default."""
        return self.section(stage).get(key, library_defaults(TRAINERS[stage]).get(key))

    def adapter(self, stage: str) -> str | None:
        """The folder of the LoRA adapter that a stage trained.

        None where it trained all weights, or none.
        """
        trained = stage != "sft" or self.sft["steps"]
        return f"models/{stage}/adapter" if trained and self.section(stage).get("lora") else None

    def rules(self, verdict: str) -> list[Json]:
        """The doctor's rules of that verdict."""
        return [rule for rule in self.health["rules"] if rule["verdict"] == verdict]


def read_facts() -> Facts:
    """Read the pipeline's files in the current folder.

    Raises CannotCheck for a missing one, Refused where the records do not fit together (the card
    would mix two models).
    """
    reports = Path("reports")
    paths = {
        "dataset": Path("data/prepared/dataset.json"),
        "base": reports / "base_model/source.json",
        "verdict": reports / "validate/verdict.json",
        "sft": reports / "sft/metrics.json",
        "grpo": reports / "grpo/metrics.json",
        "health": reports / "grpo/health.json",
    }
    records = {stage: reports / stage / "run.json" for stage in RECORDED}
    questions, metrics, samples = Path("data/prepared/eval.parquet"), Path(METRICS), Path(SAMPLES)
    for path in (*paths.values(), *records.values(), questions, metrics, samples, *PICTURES):
        if not path.exists():
            remedy = "Run `dvc repro` (or `dvc checkout`)."
            raise CannotCheck(
                str(path),
                expected="what an earlier stage wrote",
                found="nothing there",
                remedy=remedy,
            )
    contents = {name: files.read_json(path) for name, path in paths.items()}
    runs = {stage: files.read_json(path)[0] for stage, path in records.items()}
    require_one_chain(runs)
    row = files.read_parquet(questions).iloc[0]
    prompt = (
        row["prompt"]
        if isinstance(row["prompt"], str)
        else [dict(message) for message in row["prompt"]]
    )
    if contents["dataset"].get("max_prompt_tokens"):
        prompt = Cutter(contents["dataset"], Path("models/grpo"))([prompt])[0]
    evaluation = parse_metrics(metrics.read_bytes())
    frame = read_samples(samples.read_bytes(), task=evaluation.headline or "", id=row["id"])
    completions = dict(zip(frame["model"], frame["completion"].map(str), strict=True))
    return Facts(
        **contents,
        evaluation=evaluation,
        runs=runs,
        example={"prompt": prompt, "answer": row["answer"]},
        samples=completions,
    )


def require_one_chain(runs: Mapping[str, Json]) -> None:
    """Refused where a stage read other bytes than its predecessor wrote, or models/grpo is not what grpo wrote."""
    for misfit in chain_misfits(runs):
        raise _mixed(misfit.path, misfit.stage, misfit.maker, misfit.expected, misfit.found)
    for path, expected in hashes(runs["grpo"]["outputs"]):
        if path.startswith("models/grpo/"):
            found = files.sha256(Path(path)) if Path(path).exists() else None
            if found != expected:
                raise _mixed(path, "model_card", "grpo", expected, found)


def _mixed(path: str, reader: str, writer: str, expected: str | None, found: str | None) -> Refused:
    return Refused(
        f"{path}, as {reader} read it",
        expected=f"SHA-256 {(expected or 'none')[:12]}, as {writer} wrote it",
        found=(found or "no file")[:12],
        remedy="These are files of different runs: run `dvc repro`.",
    )


def digests(artifacts: Sequence[Json]) -> Iterator[tuple[str, str]]:
    """(path, SHA-256) of each file in a record's inputs or outputs, folders file by file."""
    for artifact in artifacts:
        if "files" in artifact:
            yield from (
                (f"{artifact['path']}/{name}", digest)
                for name, digest in sorted(artifact["files"].items())
            )
        else:
            yield artifact["path"], artifact["sha256"]


# Sections -----------------------------------------------------------------------------------------
# ------------------


def hub_link(repo: str, kind: str = "") -> str:
    """A link to a repository on the hub; `kind` is "datasets/" for a dataset's."""
    return f"[{prose(repo)}](https://huggingface.co/{kind}{quote(repo)})"


def origin(base: Json) -> str:
    """Where the base weights come from; a link only where the hub has them."""
    if base["kind"] == "hub":
        return f"{hub_link(base['repo'])} at revision {code(base['revision'])}"
    if base["kind"] == "scratch":
        return f"weights made from scratch ({prose(base['revision'])}; there is no published base model)"
    if base["kind"] == "gguf":
        return f"{code(base['source'])} (SHA-256 {code(base['revision'])}), dequantised"
    copied = (
        f", a copy of {hub_link(base['published_as'])} as the profile says"
        if base.get("published_as")
        else ""
    )
    return f"the {code(base['source'])}{copied} (its files' SHA-256 are in the lineage below)"


def literal(value: object) -> str:
    """The value as a Python literal of printable characters, long strings in several lines."""
    return pprint.pformat(value, width=100, sort_dicts=False).replace("<!--", "<!\\x2d-")


def quick_start(facts: Facts) -> str:
    """A snippet that runs as written from the repository's root.

    The first evaluation question, greedy.
    """
    lines = (
        "from transformers import pipeline",
        "",
        f"prompt = {literal(facts.example['prompt'])}",
        'generator = pipeline("text-generation", model="models/grpo", device_map="auto")',
        f"settings = dict(max_new_tokens={facts.setting('grpo', 'max_completion_length')}, do_sample=False)",
        "output = generator(prompt, return_full_text=False, **settings)[0]",
        'print(output["generated_text"])',
    )
    return fence("\n".join(lines), "python")


def completions(samples: Mapping[str, str]) -> str:
    """The models' completions of the example, each under its model's name."""
    shown = (f"{model}: {text.visible(samples[model])}" for model in MODELS if model in samples)
    return fence("\n".join(shown), "text")


def determinism(facts: Facts) -> str:
    """What of the deterministic mode was on, per training stage."""
    said = []
    for stage, metrics in (("sft", facts.sft), ("grpo", facts.grpo)):
        if turned_on := metrics.get("deterministic"):
            said.append(f"{stage}: {', '.join(map(code, turned_on))}")
        elif facts.section(stage).get("deterministic"):
            said.append(f"{stage}: nothing to turn on, it ran without CUDA")
    return (
        f"Deterministic mode — {'; '.join(said)}."
        if said
        else "Deterministic mode (for CUDA) was not asked for."
    )


def gain_words(facts: Facts) -> str | None:
    """GRPO's gain on the headline task, split by the control that opens the reasoning.

    None where it was not measured, or where opening the reasoning gives nothing.
    """
    gain, headline = facts.evaluation.gain, facts.evaluation.headline_task
    if gain is None or headline is None or not gain.is_split:
        return None
    kind = headline.kind
    total = change(gain.total, gain.total_ci95, kind)
    elicited = change(gain.elicited, gain.elicited_ci95, kind)
    learned = change(gain.learned, gain.learned_ci95, kind)
    opening = code(facts.verifier.reasoning_opening.strip()) if facts.verifier else "the reasoning"
    return (
        f"GRPO moved greedy accuracy by {total}. Opening {opening} for the model that GRPO started "
        f"from, without training it further, moves it by {elicited}, "
        f"{text.distinguishable(gain.elicited_ci95)}: what thinking before answering buys by "
        f"itself. The remaining {learned} is {text.distinguishable(gain.learned_ci95)}."
    )


def estimate(task: Task, model: str) -> str:
    """A model's result on a task with its confidence interval."""
    found = task.models.get(model)
    return UNKNOWN if found is None else text.estimate(found.value, found.ci95, task.kind)


def pairs(task: Task) -> str:
    """A task's paired comparisons as a table."""
    lines = [
        "| from → to | difference | McNemar p | gained / lost | detectable |",
        "|---|---|---|---|---|",
    ]
    for name in PAIRS:
        if name not in task.pairs:
            continue
        pair = task.pairs[name]
        flips = "—"
        if pair.gained is not None and pair.lost is not None:
            flips = f"{pair.gained:,} / {pair.lost:,}"
        cells = (
            name.replace("_", " → "),
            change(pair.difference, pair.ci95, task.kind),
            text.p_value(pair.p_mcnemar),
            flips,
            text.size(pair.minimum_detectable_effect, task.kind),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def names(items: Sequence[object]) -> str:
    """Code spans in a row, each once."""
    return ", ".join(map(code, dict.fromkeys(items))) or "none"


def settings(facts: Facts, stage: str) -> tuple[list[tuple[str, str, str]], list[str]]:
    """((key, value, the library's default) for each setting that is not the default.

    The keys set to the default).
    """
    defaults = library_defaults(TRAINERS[stage])
    different, same = [], []
    for key, value in sorted(facts.section(stage).items()):
        if key in defaults and defaults[key] == value and type(defaults[key]) is type(value):
            same.append(f"{code(key)} {code(json.dumps(value))}")
        elif key not in ("reward_funcs", "classifiers"):  # they have a table of their own
            known = code(json.dumps(defaults[key])) if key in defaults else "—"
            different.append((code(key), code(json.dumps(value, ensure_ascii=False)), known))
    return different, same


def brought_in(facts: Facts) -> dict[str, str]:
    """SHA-256 of the folders that the user filled (data/raw, models/raw), where they hold anything."""
    inputs = [one for stage in ("prepare", "base_model") for one in facts.runs[stage]["inputs"]]
    raw = [
        one
        for one in inputs
        if one["path"] in ("data/raw", "models/raw") and set(one["files"]) - {"README.md"}
    ]
    return {one["path"]: one["sha256"] for one in raw}


def artifacts(facts: Facts) -> list[tuple[str, str, str]]:
    """(path, SHA-256, stage) of everything brought in or written, in running order."""
    written = [
        (one["path"], one["sha256"], stage)
        for stage in RECORDED
        for one in facts.runs[stage]["outputs"]
    ]
    return [(path, digest, "brought in") for path, digest in brought_in(facts).items()] + written


def checksums(facts: Facts) -> str:
    """The artifacts file by file, in the form that `sha256sum --check` reads."""
    return "\n".join(
        f"{digest}  {path}"
        for stage in RECORDED
        for path, digest in digests(facts.runs[stage]["outputs"])
    )


def graph(facts: Facts) -> str:
    """The pipeline as a Mermaid flowchart.

    An edge where a stage read what another wrote, short hashes in the nodes.
    """

    def label(*lines: str) -> str:
        return "<br/>".join(text.mermaid(line) for line in lines)

    main = {
        "validate": "reports/validate/verdict.json",
        "evaluate": "reports/evaluate/metrics.json",
    }
    nodes = [f'  data(["{label(facts.dataset["source"])}"]) --> prepare']
    nodes += [f'  weights(["{label(facts.base["source"])}"]) --> base_model']
    for stage in RECORDED:
        outputs = {one["path"]: one["sha256"] for one in facts.runs[stage]["outputs"]}
        path = main.get(stage, next(iter(outputs)))
        nodes.append(f'  {stage}["{label(stage, path, outputs[path][:12])}"]')
    owner = {path: stage for stage in RECORDED for path, _ in digests(facts.runs[stage]["outputs"])}
    for stage in RECORDED:
        before = {owner[path] for path, _ in digests(facts.runs[stage]["inputs"]) if path in owner}
        nodes += [f"  {one} --> {stage}" for one in RECORDED if one in before]
    return "\n".join(
        ["flowchart TD", *nodes, '  evaluate --> model_card["model_card<br/>this card"]']
    )


def versions(facts: Facts) -> dict[str, str]:
    """Framework names and versions, as the grpo stage's record holds them.

    A build's label (+cpu) left out.
    """
    packages = facts.runs["grpo"]["environment"]["packages"]
    return {
        name: packages.get(package, UNKNOWN).partition("+")[0]
        for name, package in FRAMEWORKS.items()
    }


def seeds(facts: Facts) -> str:
    return ", ".join(
        f"{stage} {facts.section(stage)['seed']}"
        for stage in RECORDED
        if "seed" in facts.section(stage)
    )


def few_shot_overlap(facts: Facts) -> list[tuple[str, FewShot]]:
    """(task, where its few-shot examples come from) where that is training data here, as lm-eval's gsm8k has it.

    A dataset is the same by the last part of its name: the hub's, or the format's where files were brought.
    """
    here = {
        str(one).rpartition("/")[2]
        for one in (facts.dataset.get("repo"), facts.dataset["format"])
        if one
    }
    found = []
    for name, task in facts.evaluation.shown_tasks.items():
        drawn = task.few_shot
        if drawn is None or not drawn.split.startswith("train"):
            continue
        if str(drawn.dataset).rpartition("/")[2] in here:
            found.append((name, drawn))
    return found


def reward(facts: Facts, name: str) -> str:
    """What a reward function is, where that is a classifier; nothing otherwise."""
    one = facts.grpo.get("classifiers", {}).get(name)
    if not one:
        return ""
    sides = zip((" + ", " − "), (one["positive"], one["negative"]), strict=True)
    value = "".join(
        f"{sign}P({code(label)})" for sign, labels in sides for label in labels
    ).removeprefix(" + ")
    place = (
        f"{hub_link(one['repo'])} at {code(one['revision'])}"
        if one["repo"]
        else f"the {code(one['source'])}"
    )
    return f": {value} by {place}, licence {prose(one['license'])}, files' SHA-256 {code(one['sha256'][:12])}"


# What varies from run to run
# ----------------------------------------------------------------------------------------


def without_varying_block(card: str) -> str:
    """The card without the lines from the marked block's first to its last.

    What is the same bytes in every run.
    """
    begin, end = (f"<!-- varies from run to run: {edge} -->\n" for edge in ("begin", "end"))
    before, _, rest = card.partition(begin)
    return before + rest.partition(end)[2]


def this_run(facts: Facts) -> Json:
    """Revision, commands, hardware and one row per stage.

    For the marked block of the card, and for nothing else.
    """
    last = max(facts.runs.values(), key=lambda run: str(run["ended"]))
    revisions = {run["code"]["revision"] for run in facts.runs.values()}
    environments = {run["environment"]["sha256"]: run["environment"] for run in facts.runs.values()}
    cuda = sorted({device for run in facts.runs.values() for device in run["environment"]["cuda"]})
    return {
        "code": last["code"],
        "mixed": len(revisions) > 1,
        "commands": commands(facts, last["code"]["revision"]),
        "environments": list(environments.values()),
        "cuda": cuda,
        "stages": [(stage, facts.runs[stage]) for stage in RECORDED],
    }


def commands(facts: Facts, revision: str | None) -> str:
    """The shell lines that make this model again, from a clone of the repository."""
    profile = facts.profile
    chosen = [] if profile == str(DEFAULT_PROFILE) else [f"profile={profile}"]
    changed = overrides(facts, revision) if revision else []
    simple = [one for one in changed if _is_simple(one)]
    lines = [f"git checkout {revision}"] if revision else []
    lines += [
        f"# set in {profile} by hand: {text.one_line(one)}" for one in changed if one not in simple
    ]
    if simple:
        arguments = " ".join(f"-S {shlex.quote(one)}" for one in [*chosen, *simple])
        return "\n".join(
            [*lines, "make install", f'PATH="$PWD/.venv/bin:$PATH" dvc exp run {arguments}']
        )
    return "\n".join(
        [*lines, "make repro" + (f" PROFILE={shlex.quote(profile)}" if chosen else "")]
    )


def overrides(facts: Facts, revision: str) -> list[str]:
    """What `dvc exp run -S` needs so that the profile at `revision` says what this run's records say."""
    data = Snapshot(Path.cwd(), revision).read(facts.profile)
    if data is None:
        return []
    committed = parse_yaml(data, facts.profile)
    prefix = "" if facts.profile == str(DEFAULT_PROFILE) else f"{facts.profile}:"
    found = []
    for stage in RECORDED:
        found += [
            prefix + one for one in _overrides(stage, committed.get(stage), facts.section(stage))
        ]
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
    """Whether Hydra's grammar takes it as it stands.

    Plain keys (a reward named custom.x:f is none), no escapes.
    """
    key, _, value = override.partition("=")
    return re.fullmatch(r"([\w./-]+\.ya?ml:)?[+~]?\w+(\.\w+)*", key) is not None and not set(
        value
    ) & set("\\$\n")
