"""A run's GRPO model as a version in MLflow's model registry, and what it takes to be champion.

`promote(target)` returns plain data:

    verdict     "registered" | "refused" (a rule fails) | "not checkable" (none fails, one is
                unknown)
    rules       the rows of audit, doctor, statement and comparison (promotion_rules)
    comparison  the paired comparison with the champion, or None
    model, version, created, alias, replaced, reigns, dry_run, target, pipeline_key, tags, notes,
    mlflow
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from regrpo.audit.audit import audit
from regrpo.compare import promotion_rules
from regrpo.compare.promotion_rules import Params
from regrpo.compare.runs import Run, read_answers, read_run
from regrpo.core import profiles
from regrpo.core.errors import CannotCheck, Refused, RegrpoError
from regrpo.core.git import uncommitted
from regrpo.core.pipeline import Snapshot, out_md5s
from regrpo.core.profiles import STAGES
from regrpo.core.text import prose
from regrpo.evaluate.results import SAMPLES
from regrpo.records.find import Finder, Named, Place
from regrpo.tracking import address, rows
from regrpo.tracking.registry import registered_name
from regrpo.tracking.sync import opened, sync

if TYPE_CHECKING:
    import pandas as pd

    from regrpo.tracking.registry import Registry

Json = dict[str, Any]
Alias = Literal["candidate", "champion"]
MODEL, CARD = "models/grpo", "reports/model_card/README.md"
LONGEST_CARD, LONGEST_DESCRIPTION = 3000, 5000
"""Characters; MLflow's database keeps at most 5,000 of a description."""


def promote(target: str, root: Path, *, alias: Alias = "candidate", dry_run: bool = False) -> Json:
    """Register a run's model and give it `alias`; champion only if every rule holds.

    `target` is an MLflow run, a DVC experiment or a git revision; `root` must be the current
    folder. Doing it twice changes nothing. Raises CannotCheck for an unknown or unfinished run and
    if MLflow cannot be reached, Refused if the run's files do not fit together.
    """
    remedy = "Start the server, or set MLFLOW_TRACKING_URI to the store that holds the run."
    with opened(create=False, remedy=remedy) as store:
        registry = store.registry()
        place = _find(target, root, registry)
        model_id = _logged_model(place, target, registry, may_sync=not dry_run)
        result = _judge(place, root, registry, alias)
        result["dry_run"] = dry_run
        if result["verdict"] == "registered" and not dry_run and not result["reigns"]:
            _register(place, registry, model_id, result)
        return result


def _judge(place: Place, root: Path, registry: Registry, alias: Alias) -> Json:
    """All that `promote` returns, as it stands before anything is registered."""
    snapshot = place.snapshot
    key = str(snapshot.pipeline_key())
    card = snapshot.params()["model_card"]
    name = registered_name(str(card["model_name"]))
    mine, champion = registry.version_of(name, key), registry.holder(name, "champion")
    version = mine and mine["version"]
    reigning = champion and champion["version"]
    reigns = version is not None and version == reigning
    rule = _rule(snapshot.profile())
    audited = audit(place)
    rules = [
        promotion_rules.judge_audit(audited),
        promotion_rules.judge_doctor(snapshot.json("reports/grpo/health.json")),
    ]
    if rule.require_statement:
        rules.append(promotion_rules.judge_statement(card))
    comparison = None
    if champion is None:
        rules.append(promotion_rules.row("comparison", "holds", f"{name} has no champion yet"))
    elif not reigns:
        try:
            comparison = _compare(place, champion, root, rule)
            rules.append(promotion_rules.judge_comparison(comparison))
        except RegrpoError as error:
            text = f"{promotion_rules.opponent(champion['version'])}: {error}"
            rules.append(promotion_rules.row("comparison", "unknown", text))
    tags = _tags(snapshot, rule, registry.row(key)) | _comparison_tags(comparison or {})
    tags["regrpo.audit"] = audited["verdict"]
    return {
        "verdict": promotion_rules.together(rules) if alias == "champion" else "registered",
        "target": place.name,
        "pipeline_key": key,
        "model": name,
        "alias": alias,
        "version": version,
        "created": False,
        "replaced": reigning if alias == "champion" and not reigns else None,
        "reigns": reigns,
        "rules": rules,
        "comparison": comparison,
        "mlflow": address.shown_uri(),
        "notes": _notes(place, root),
        "tags": tags,
    }


def _register(place: Place, registry: Registry, model_id: str, result: Json) -> None:
    """Make or renew the run's version, and give it its alias."""
    name, version, tags = result["model"], result["version"], result["tags"]
    if version is None:
        version = registry.register(name, model_id, tags)
        result |= {"version": version, "created": True}
        tags = {}  # it has them already
    registry.describe(name, version, tags, _description(place.snapshot, result))
    registry.give_alias(name, version, result["alias"])


# --- the run --------------------------------------------------------------------------------------


def _find(target: str, root: Path, registry: Registry) -> Place:
    """The finished pipeline that a user means. Raises CannotCheck or Refused if it is none."""
    place = Finder(root, registry).find(target)
    snapshot = place.snapshot
    finished = snapshot.lock()["stages"].keys() & snapshot.record_bytes().keys()
    missing = [stage for stage in STAGES if stage not in finished]
    if missing:
        raise CannotCheck(
            place.name,
            expected="a finished pipeline",
            found=f"no finished {', '.join(missing)}",
            remedy="Finish it with `dvc repro`.",
        )
    if snapshot.pipeline_key() is None:
        audited = "" if snapshot.revision is None else f" {target}"
        raise Refused(
            place.name,
            expected="one whole pipeline",
            found="records that do not fit dvc.lock or one another",
            remedy=f"`regrpo audit{audited}` names them.",
        )
    return place


def _logged_model(place: Place, target: str, registry: Registry, may_sync: bool) -> str:
    """MLflow's id of the model that the run logged, after a sync if need be. Raises CannotCheck."""
    record = place.snapshot.record("grpo") or {}
    model_id = registry.logged_model(record, MODEL)
    if model_id is None and may_sync:
        sync()
        model_id = registry.logged_model(record, MODEL)
    if model_id is None:
        raise CannotCheck(
            f"MLflow ({address.shown_uri()})",
            expected=f"the model that {target}'s grpo stage logged",
            found="none",
            remedy="Run `regrpo sync`, or set MLFLOW_TRACKING_URI to the store that holds the run.",
        )
    return model_id


def _rule(profile: str) -> Params:
    """The `promote` section of the run's profile, as that lies in the workspace."""
    # The run's own copy does not count: nobody brings the rule that they are judged by.
    sections = profiles.read_profile(Path(profile))
    return profiles.parse_section(Params, sections["promote"], f"{profile}: promote")


# --- the comparison with the champion -------------------------------------------------------------


def _compare(place: Place, champion: Mapping[str, Any], root: Path, rule: Params) -> Json:
    """See `promotion_rules.compare`. Raises CannotCheck if the two runs cannot be compared."""
    other, mine = _champions_run(champion, root), _run(place)
    comparison = promotion_rules.compare(
        _answers(other, rule.task), _answers(mine, rule.task), rule
    )
    return {"champion_version": champion["version"], "champion": other.place} | comparison


def _run(place: Place) -> Run:
    return read_run(Named(place.name, place), place.snapshot)


def _champions_run(champion: Mapping[str, Any], root: Path) -> Run:
    """The champion's run, found by the id in its version's tags. Raises CannotCheck."""
    name = champion["tags"].get("regrpo.stage.evaluate")
    if not name:
        raise CannotCheck(
            "its tags",
            expected="the run that `regrpo promote` wrote into them",
            found="none",
            remedy="It was registered by other means: "
            "take its alias away (MLflow) to let any audited run succeed it.",
        )
    run = _run(Finder(root).find(name))
    tagged = champion["tags"].get(f"regrpo.output.{SAMPLES}")
    if run.made.get(SAMPLES) != tagged:
        raise CannotCheck(
            f"its run {name}",
            expected=f"samples with SHA-256 {str(tagged)[:12]}…",
            found="a record of others",
            remedy="`regrpo audit` says which are true.",
        )
    return run


def _answers(run: Run, task: str) -> pd.DataFrame:
    """The GRPO model's answers to a task, as `promotion_rules.compare` takes them.

    Raises CannotCheck.
    """
    read_answers(run)
    about = run.evaluation.tasks.get(task)
    if run.no_answers:
        raise CannotCheck(
            run.place,
            expected="answers to compare",
            found=run.no_answers,
            remedy="Fetch them with `dvc fetch --all-commits`, or make the run again.",
        )
    if about is None or task not in run.answers:
        raise CannotCheck(
            f"promote.task: {task}",
            expected="a task that both runs were asked",
            found=f"{', '.join(run.answers)} in one of them",
            remedy="Evaluate it in both, or name another.",
        )
    frame = run.answers[task]
    frame.attrs.update(about.model_dump(include={"kind", "metric", "version"}))
    return frame


# --- what the version carries ---------------------------------------------------------------------


def _notes(place: Place, root: Path) -> list[str]:
    """What may make the run hard to find again."""
    if not place.snapshot.is_workspace or not uncommitted(root, "dvc.lock", "reports"):
        return []
    return ["its results are not committed: commit them, or no later run can be compared with it"]


def _tags(snapshot: Snapshot, rule: Params, row_id: str | None) -> dict[str, str]:
    """Keys, runs and headline as the pipeline's row has them, and the SHA-256 of every output."""
    row = rows.from_snapshot(snapshot)
    tags = row.tags | row.stage_tags
    for path, sha256 in row.hashes.items():
        tags[f"regrpo.output.{path}"] = sha256
    tags["regrpo.dvc_md5"] = out_md5s(snapshot.lock()["stages"]["grpo"])[MODEL]
    if row_id:
        tags["regrpo.row"] = row_id
    record = snapshot.record("grpo") or {"code": {}}
    tags |= rows.code_tags(record["code"])
    if row.evaluation and rule.task in row.evaluation.tasks:
        value = row.evaluation.tasks[rule.task].models["grpo"].value
        tags[f"regrpo.{rule.task}"] = str(value)
    return tags


def _comparison_tags(comparison: Mapping[str, Any]) -> dict[str, str]:
    """The comparison's numbers."""
    tags = {}
    for name, value in comparison.items():
        if name == "ci95":
            tags["regrpo.comparison.ci95_low"] = f"{value[0]:.6g}"
            tags["regrpo.comparison.ci95_high"] = f"{value[1]:.6g}"
        elif isinstance(value, float):
            tags[f"regrpo.comparison.{name}"] = f"{value:.6g}"
        elif name not in ("problems", "champion") and value is not None:
            tags[f"regrpo.comparison.{name}"] = str(value)
    return tags


def _description(snapshot: Snapshot, result: Json) -> str:
    """The card's summary, how the rules were judged, and where everything lies, in Markdown."""
    tags = result["tags"]
    lines = [_summary(snapshot), "", "| rule of promotion | verdict | found |", "|---|---|---|"]
    for rule in result["rules"]:
        lines.append(f"| {rule['rule']} | {rule['verdict']} | {prose(rule['text'], 400)} |")
    sha256 = tags[f"regrpo.output.{MODEL}"]
    lines += ["", f"Weights: `{MODEL}`, SHA-256 `{sha256}`, kept by DVC."]
    if "regrpo.row" in tags:
        lines.append(f"Card: artifact `model_card/README.md` of run `{tags['regrpo.row']}`.")
    return "\n".join(lines)[:LONGEST_DESCRIPTION]


def _summary(snapshot: Snapshot) -> str:
    """The card up to its first section, without the metadata on top."""
    card = (snapshot.output(CARD) or b"(The card is neither here nor in DVC's cache.)").decode()
    body = re.sub(r"\A---\n.*?\n---\n", "", card, flags=re.DOTALL)
    return body.partition("\n## ")[0].strip()[:LONGEST_CARD]
