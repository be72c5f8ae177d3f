"""A run's GRPO model as a version in MLflow's model registry, and what it takes for it to be champion.

`promote(target)` returns plain data:

    verdict     "registered" | "refused" (a rule fails) | "not checkable" (none fails, but one could not be judged)
    rules       [{rule: audit | doctor | comparison, verdict: holds | fails | unknown, text}]
    comparison  the paired comparison with the champion, or None
    model, version, created, alias, replaced, dry_run, target, pipeline_key, tags, notes, mlflow
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from regrpo.audit import audit
from regrpo.core import profiles
from regrpo.core.errors import CannotCheck, Refused, RegrpoError
from regrpo.core.git import git
from regrpo.core.pipeline import Snapshot
from regrpo.core.profiles import STAGES
from regrpo.core.settings import Section
from regrpo.core.text import change, p_equals, signed
from regrpo.evaluate import stats
from regrpo.evaluate.results import METRICS, SAMPLES, Pair, read_samples
from regrpo.records import hashing
from regrpo.records.find import Finder, Place
from regrpo.tracking import address, rows
from regrpo.tracking.sync import opened, sync

if TYPE_CHECKING:
    import pandas as pd

    from regrpo.tracking.registry import Registry

Json = dict[str, Any]
Alias = Literal["candidate", "champion"]
MODEL, CARD = "models/grpo", "reports/model_card/README.md"
RESAMPLES, SEED = 10_000, 0
"""Of the paired bootstrap; fixed, so that the same two runs are always judged alike."""
LONGEST_CARD, LONGEST_DESCRIPTION = 3000, 5000
"""Characters; MLflow's database keeps at most 5,000 of a description."""


class Params(Section):
    """The profile's `promote` section.

    Which task the champion is defended on, and what loss is no loss.
    """

    task: str
    max_loss: float = Field(ge=0)
    alpha: float = Field(gt=0, lt=1)


def promote(target: str, root: Path, *, alias: Alias = "candidate", dry_run: bool = False) -> Json:
    """Register a run's model and give it `alias`.

    Champion only where every rule holds, else nothing is changed.

    `target` is an MLflow run, a DVC experiment or a git revision; `root` must be the current
    folder. Doing it twice changes nothing. Raises CannotCheck for an unknown or unfinished run and
    where MLflow cannot be reached.
    """
    remedy = "Start the server, or set MLFLOW_TRACKING_URI to the store that holds the run."
    with opened(create=False, remedy=remedy) as store:
        registry = store.registry()
        place = _find(target, root, registry)
        snapshot = place.snapshot
        rule = _rule(snapshot.profile())
        name = re.sub(
            "[/:]", "-", str(snapshot.params()["model_card"]["model_name"])
        )  # MLflow takes neither
        model_id = registry.logged_model(_record(snapshot, "grpo"), MODEL)
        if model_id is None and not dry_run:
            sync()
            model_id = registry.logged_model(_record(snapshot, "grpo"), MODEL)
        if model_id is None:
            raise CannotCheck(
                f"MLflow ({address.shown_uri()})",
                expected=f"the model that {target}'s grpo stage logged",
                found="none",
                remedy="Run `regrpo sync`, or set MLFLOW_TRACKING_URI to the store that holds the run.",
            )
        key = str(snapshot.pipeline_key())
        mine, champion = registry.version_of(name, key), registry.holder(name, "champion")
        reigns = bool(mine and champion and mine["version"] == champion["version"])
        audited, health = audit.audit(place), snapshot.json("reports/grpo/health.json")
        rules = [_judge_audit(audited), _judge_doctor(health)]
        comparison = None
        if champion and not reigns:
            comparison, judged = _judge_comparison(place, champion, root, rule)
            rules.append(judged)
        elif not champion:
            rules.append(_told("comparison", "holds", f"{name} has no champion yet"))
        result: Json = {
            "verdict": _verdict(rules) if alias == "champion" else "registered",
            "target": place.name,
            "pipeline_key": key,
            "model": name,
            "alias": alias,
            "version": mine["version"] if mine else None,
            "created": False,
            "dry_run": dry_run,
            "replaced": champion["version"]
            if champion and alias == "champion" and not reigns
            else None,
            "reigns": reigns,
            "rules": rules,
            "comparison": comparison,
            "mlflow": address.shown_uri(),
            "notes": _notes(place, root),
        }
        row = registry.row(key)
        result["tags"] = _tags(place, audited, comparison, rule, row)
        if result["verdict"] == "registered" and not dry_run and not reigns:
            version = mine["version"] if mine else registry.register(name, model_id, result["tags"])
            registry.describe(
                name, version, result["tags"] if mine else {}, _description(place, result, row)
            )
            registry.give_alias(name, version, alias)
            result |= {"version": version, "created": mine is None}
        return result


# --- the run --------------------------------------------------------------------------------------


def _find(target: str, root: Path, registry: Registry) -> Place:
    """The finished pipeline that a user means. Raises CannotCheck that says what it is instead."""
    place = Finder(root, registry).find(target)
    lock = place.snapshot.lock()["stages"]
    if missing := [
        stage for stage in STAGES if stage not in lock or place.snapshot.record(stage) is None
    ]:
        raise CannotCheck(
            place.name,
            expected="a finished pipeline",
            found=f"no finished {', '.join(missing)}",
            remedy="Finish it with `dvc repro`.",
        )
    if place.snapshot.pipeline_key() is None:
        raise Refused(
            place.name,
            expected="one whole pipeline",
            found="records that do not fit dvc.lock or one another",
            remedy=f"`regrpo audit {'' if place.snapshot.revision is None else target}` names them.",
        )
    return place


def _rule(profile: str) -> Params:
    """The `promote` section of the run's profile as it stands in the workspace now.

    No run brings a rule of its own.
    """
    sections = profiles.read_profile(Path(profile))
    return profiles.parse_section(Params, sections["promote"], f"{profile}: promote")


def _record(snapshot: Snapshot, stage: str) -> Json:
    return snapshot.record(stage) or {}


def _output(snapshot: Snapshot, path: str, stage: str) -> bytes:
    """An output's bytes, here or in DVC's cache, checked against the record. Raises CannotCheck."""
    out = next(out for out in _record(snapshot, stage)["outputs"] if out["path"] == path)
    data = snapshot.output(path)
    if data is None or hashing.of_bytes(data).sha256 != out["sha256"]:
        raise CannotCheck(
            path,
            expected=f"the bytes that the run recorded (SHA-256 {out['sha256'][:12]}…)",
            found="nothing here or in DVC's cache" if data is None else "others",
            remedy="Fetch them with `dvc fetch --all-commits`, or make the run again.",
        )
    return data


# --- the rules ------------------------------------------------------------------------------------


def _told(rule: str, verdict: str, text: str) -> Json:
    return {"rule": rule, "verdict": verdict, "text": text}


def _judge_audit(audited: Mapping[str, Any]) -> Json:
    """Complete: no fault, and nothing that could not be checked."""
    verdict = {"complete": "holds", "broken": "fails", "not checkable": "unknown"}[
        audited["verdict"]
    ]
    findings = audited["faults"] or audited["unchecked"]
    shown = "; ".join(f"{one['path']}: {one['text']}" for one in findings[:3])
    more = f"; and {len(findings) - 3} more" if len(findings) > 3 else ""
    text = f"{audited['verdict']}: " + (
        f"{shown}{more}" if findings else f"{len(audited['artifacts'])} hashes agree"
    )
    return _told("audit", verdict, text)


def _judge_doctor(health: Mapping[str, Any]) -> Json:
    """Nothing fatal; what else fired is told."""
    fired = [rule for rule in health["rules"] if rule["verdict"] == "fired"]
    shown = "; ".join(
        f"{one['rule']} at step {', '.join(map(str, one['steps'][:3]))}" for one in fired
    )
    text = health["verdict"] + (f": {shown}" if fired else "")
    return _told("doctor", "fails" if health["verdict"] == "fatal" else "holds", text)


def _judge_comparison(
    place: Place, champion: Mapping[str, Any], root: Path, rule: Params
) -> tuple[Json | None, Json]:
    """The paired comparison with the champion's run, and whether it is not worse."""
    try:
        other = _champions_run(champion, root)
        comparison = compare(
            _samples(other.snapshot, rule.task), _samples(place.snapshot, rule.task), rule
        )
    except RegrpoError as error:
        text = f"with champion (version {champion['version']}): {error}"
        return None, _told("comparison", "unknown", text)
    comparison = {"champion_version": champion["version"], "champion": other.name} | comparison
    problems = "; ".join(comparison["problems"])
    text = f"with champion (version {champion['version']}): {_in_words(comparison)}"
    return comparison, _told(
        "comparison", "fails" if problems else "holds", f"{text}: {problems or 'not worse'}"
    )


def _champions_run(champion: Mapping[str, Any], root: Path) -> Place:
    """Where the champion's run lies, found by the id in its version's tags. Raises CannotCheck."""
    run, digest = (
        champion["tags"].get(f"regrpo.{what}") for what in ("stage.evaluate", f"output.{SAMPLES}")
    )
    if not run:
        raise CannotCheck(
            "its tags",
            expected="the run that `regrpo promote` wrote into them",
            found="none",
            remedy="It was registered by other means: take its alias away (MLflow) to let any audited run succeed it.",
        )
    place = Finder(root).find(run)
    outputs = {out["path"]: out["sha256"] for out in _record(place.snapshot, "evaluate")["outputs"]}
    if outputs.get(SAMPLES) != digest:
        raise CannotCheck(
            f"its run {run}",
            expected=f"samples with SHA-256 {str(digest)[:12]}…",
            found="a record of others",
            remedy="`regrpo audit` says which are true.",
        )
    return place


def _samples(snapshot: Snapshot, task: str) -> pd.DataFrame:
    """The GRPO model's answers to a task, by question; `metric` in the frame's attrs.

    Raises CannotCheck.
    """
    frame = read_samples(_output(snapshot, SAMPLES, "evaluate"), model="grpo")
    chosen = frame[frame["task"] == task].set_index("id").sort_index()
    if chosen.empty:
        raise CannotCheck(
            f"promote.task: {task}",
            expected="a task that both runs were asked",
            found=f"{', '.join(frame['task'].unique())} in one of them",
            remedy="Evaluate it in both, or name another.",
        )
    about = (snapshot.json(METRICS) or {"tasks": {}})["tasks"].get(task, {})
    chosen.attrs = {name: about.get(name) for name in ("kind", "metric", "version")}
    return chosen


def compare(champion: pd.DataFrame, new: pd.DataFrame, rule: Params) -> Json:
    """`new` against `champion` on the same questions; `problems` names what makes it worse (empty.

    Not worse).

    Not worse is non-inferiority: the lower end of the paired 95 % interval of new − champion is at
    or above −max_loss (CONSORT's extension, Piaggio et al. 2012, JAMA 308:2594), and no significant
    loss, by the exact McNemar test at alpha (binary) or an interval wholly below zero (continuous).
    Raises CannotCheck for other questions or metrics.
    """
    if champion.attrs != new.attrs:
        raise CannotCheck(
            rule.task,
            expected="the same metric",
            found=f"{champion.attrs} and {new.attrs}",
            remedy="Evaluate the champion's run again with this task.",
        )
    shared = stats.pair_answers(champion, new)
    if not len(shared.ids) == len(new) == len(champion):
        raise CannotCheck(
            rule.task,
            expected="both runs evaluated on the same questions",
            found=f"{len(shared.ids)} shared of {len(new)} here and {len(champion)} there",
            remedy="Evaluate both on one set (prepare.seed, prepare.eval, evaluate.limit).",
        )
    kind = new.attrs["kind"] or stats.kind_of([*shared.before, *shared.after])
    found = stats.compare(shared.before, shared.after, kind, resamples=RESAMPLES, seed=SEED)
    result = {
        "task": rule.task,
        "kind": kind,
        "questions": len(shared.ids),
        "max_loss": rule.max_loss,
        "alpha": rule.alpha,
    }
    result |= {
        "champion_value": float(shared.before.mean()),
        "value": float(shared.after.mean()),
    }
    result |= found.model_dump()
    return result | {"problems": _problems(found, kind, rule)}


def _problems(found: Pair, kind: str, rule: Params) -> list[str]:
    problems = []
    low, high = found.ci95
    if low < -rule.max_loss - 1e-9:
        allowed = signed(-rule.max_loss, kind)
        problems.append(
            f"the interval reaches down to {signed(low, kind)}; {allowed} is allowed (promote.max_loss)"
        )
    significant = high < 0 if found.p_mcnemar is None else found.p_mcnemar < rule.alpha
    if found.difference < 0 and significant:
        how = (
            "interval below 0"
            if found.p_mcnemar is None
            else f"McNemar {p_equals(found.p_mcnemar)}, under {rule.alpha:g}"
        )
        problems.append(f"the loss is significant ({how}; promote.alpha)")
    return problems


def _in_words(found: Mapping[str, Any]) -> str:
    difference = change(found["difference"], found["ci95"], found["kind"])
    words = f"{difference} on {found['questions']} questions of {found['task']}"
    if found["p_mcnemar"] is not None:
        counts = f"gained {found['gained']}, lost {found['lost']}"
        words += f" ({counts}, exact McNemar {p_equals(found['p_mcnemar'])})"
    return words


def _verdict(rules: list[Json]) -> str:
    verdicts = {rule["verdict"] for rule in rules}
    return (
        "refused"
        if "fails" in verdicts
        else "not checkable"
        if "unknown" in verdicts
        else "registered"
    )


# --- what the version carries ---------------------------------------------------------------------


def _notes(place: Place, root: Path) -> list[str]:
    """What may make the run hard to find again."""
    if place.snapshot.revision is not None:
        return []
    lock = git("-C", str(root), "status", "--porcelain", "--", "dvc.lock", "reports")
    return (
        ["its results are not committed: commit them, or no later run can be compared with it"]
        if lock
        else []
    )


def _tags(
    place: Place,
    audited: Mapping[str, Any],
    comparison: Mapping[str, Any] | None,
    rule: Params,
    row: str | None,
) -> dict[str, str]:
    """Hashes (every output's SHA-256), keys and runs as in a pipeline row, verdicts, the comparison's numbers."""
    snapshot = place.snapshot
    told = rows.from_snapshot(snapshot)
    tags = (
        told.tags
        | told.stage_tags
        | {f"regrpo.output.{path}": sha256 for path, sha256 in told.hashes.items()}
    )
    outs = {out["path"]: out["md5"] for out in snapshot.lock()["stages"]["grpo"]["outs"]}
    code = _record(snapshot, "grpo")["code"]
    tags |= {"regrpo.audit": audited["verdict"], "regrpo.dvc_md5": outs[MODEL]}
    tags |= {"regrpo.row": row} if row else {}
    tags |= {"mlflow.source.git.commit": code["revision"]} if code["revision"] else {}
    task = (snapshot.json(METRICS) or {"tasks": {}})["tasks"].get(rule.task)
    tags |= {f"regrpo.{rule.task}": str(task["models"]["grpo"]["value"])} if task else {}
    for name, value in (comparison or {}).items():
        if name == "ci95":
            tags |= {
                "regrpo.comparison.ci95_low": f"{value[0]:.6g}",
                "regrpo.comparison.ci95_high": f"{value[1]:.6g}",
            }
        elif name not in ("problems", "champion") and value is not None:
            tags[f"regrpo.comparison.{name}"] = (
                f"{value:.6g}" if isinstance(value, float) else str(value)
            )
    return tags


def _description(place: Place, result: Mapping[str, Any], row: str | None) -> str:
    """The card's summary, the rules' verdicts with the comparison, and where everything lies, in Markdown."""
    try:
        card = _output(place.snapshot, CARD, "model_card").decode()
        summary = (
            re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL).partition("\n## ")[0].strip()
        )
    except CannotCheck as error:
        summary = f"(The card could not be read: {error})"
    shown = "".join(
        f"| {rule['rule']} | {rule['verdict']} | {_cell(rule['text'])} |\n"
        for rule in result["rules"]
    )
    where = [
        f"Weights: `{MODEL}`, SHA-256 `{result['tags'][f'regrpo.output.{MODEL}']}`, kept by DVC."
    ]
    where += [f"Card: artifact `model_card/README.md` of run `{row}`."] if row else []
    lines = [
        summary[:LONGEST_CARD],
        "",
        "| rule of promotion | verdict | found |",
        "|---|---|---|",
        shown,
        *where,
    ]
    return "\n".join(lines)[:LONGEST_DESCRIPTION]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")[:400]
