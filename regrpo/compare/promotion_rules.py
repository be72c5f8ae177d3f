"""What it takes to be champion: a clean audit, no fatal verdict of the doctor, and not being worse.

Each `judge_…` gives one row: {rule, verdict: "holds" | "fails" | "unknown", text}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from regrpo.core.errors import CannotCheck
from regrpo.core.settings import Section
from regrpo.core.text import change, p_equals, signed
from regrpo.evaluate import stats
from regrpo.evaluate.results import Kind, Pair

if TYPE_CHECKING:
    import pandas as pd

Json = dict[str, Any]
RESAMPLES, SEED = 10_000, 0
"""Of the paired bootstrap; fixed, so that the same two runs are always judged alike."""
ROUNDING = 1e-9
"""A loss of exactly `max_loss` is allowed, also where floats put it just beyond."""
SHOWN = 3
"""The audit's findings, and a rule's steps, that a row names."""


class Params(Section):
    """The profile's `promote` section: the task that decides, what loss is no loss, and more."""

    task: str
    max_loss: float = Field(ge=0)
    alpha: float = Field(gt=0, lt=1)
    require_statement: bool = False


def judge_audit(audited: Mapping[str, Any]) -> Json:
    """Holds if the audit found no fault and nothing that could not be checked."""
    verdict = audited["verdict"]
    if verdict == "complete":
        return row("audit", "holds", f"complete: {len(audited['artifacts'])} hashes agree")
    findings = audited["faults"] or audited["unchecked"]
    shown = [f"{finding['path']}: {finding['text']}" for finding in findings[:SHOWN]]
    if len(findings) > SHOWN:
        shown.append(f"and {len(findings) - SHOWN} more")
    text = f"{verdict}: {'; '.join(shown)}"
    return row("audit", "fails" if verdict == "broken" else "unknown", text)


def judge_doctor(health: Mapping[str, Any]) -> Json:
    """Holds if nothing fatal fired in GRPO's training; the text names all that fired."""
    text = health["verdict"]
    fired = []
    for rule in health["rules"]:
        if rule["verdict"] == "fired":
            steps = ", ".join(map(str, rule["steps"][:SHOWN]))
            fired.append(f"{rule['rule']} at step {steps}")
    if fired:
        text += f": {'; '.join(fired)}"
    return row("doctor", "fails" if health["verdict"] == "fatal" else "holds", text)


def judge_statement(model_card: Mapping[str, Any]) -> Json:
    """Holds if the run's card has a statement of data, rights, use and contact."""
    if model_card.get("statement"):
        return row("statement", "holds", "on the card")
    return row("statement", "fails", "none on the card: write model_card.statement")


def judge_comparison(comparison: Mapping[str, Any]) -> Json:
    """Holds if the comparison (see `compare`) with the champion has no problems."""
    kind, p = comparison["kind"], comparison["p_mcnemar"]
    difference = change(comparison["difference"], comparison["ci95"], kind)
    text = f"{difference} on {comparison['questions']} questions of {comparison['task']}"
    if p is not None:
        counts = f"gained {comparison['gained']}, lost {comparison['lost']}"
        text += f" ({counts}, exact McNemar {p_equals(p)})"
    problems = comparison["problems"]
    text = f"{opponent(comparison['champion_version'])}: {text}: "
    if problems:
        return row("comparison", "fails", text + "; ".join(problems))
    return row("comparison", "holds", text + "not worse")


def opponent(version: str) -> str:
    """The champion, as a row's text names it first."""
    return f"with champion (version {version})"


def row(rule: str, verdict: str, text: str) -> Json:
    """How one rule was judged."""
    return {"rule": rule, "verdict": verdict, "text": text}


def together(rules: Sequence[Json]) -> str:
    """What the rules come to: "registered", "refused" or "not checkable"."""
    verdicts = {rule["verdict"] for rule in rules}
    if "fails" in verdicts:
        return "refused"
    if "unknown" in verdicts:
        return "not checkable"
    return "registered"


def compare(champion: pd.DataFrame, new: pd.DataFrame, rule: Params) -> Json:
    """The answers `new` against `champion` on the same questions; `problems` say what is worse.

    Both are frames as `stats.pair_answers` takes them, with the task's kind, metric and version in
    `attrs`. Not worse is non-inferiority: the lower end of the paired 95 % interval of new −
    champion is at or above −max_loss (CONSORT's extension, Piaggio et al. 2012, JAMA 308:2594), and
    no significant loss, by the exact McNemar test at alpha (binary) or an interval wholly below
    zero (continuous). Raises CannotCheck for other questions or metrics.
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
    kind = new.attrs["kind"]
    pair = stats.compare(shared.before, shared.after, kind, resamples=RESAMPLES, seed=SEED)
    return {
        "task": rule.task,
        "kind": kind,
        "questions": len(shared.ids),
        "max_loss": rule.max_loss,
        "alpha": rule.alpha,
        "champion_value": float(shared.before.mean()),
        "value": float(shared.after.mean()),
        **pair.model_dump(),
        "problems": _problems(pair, kind, rule),
    }


def _problems(pair: Pair, kind: Kind, rule: Params) -> list[str]:
    problems = []
    low, high = pair.ci95
    if low < -rule.max_loss - ROUNDING:
        allowed = f"{signed(-rule.max_loss, kind)} is allowed (promote.max_loss)"
        problems.append(f"the interval reaches down to {signed(low, kind)}; {allowed}")
    if pair.p_mcnemar is None:
        significant = high < 0
        how = "interval below 0"
    else:
        significant = pair.p_mcnemar < rule.alpha
        how = f"McNemar {p_equals(pair.p_mcnemar)}, under {rule.alpha:g}"
    if significant and pair.difference < 0:
        problems.append(f"the loss is significant ({how}; promote.alpha)")
    return problems
