"""lm-eval's tasks: found by name, described by the metrics that we report of them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from regrpo.core.errors import CannotCheck, Refused, RegrpoError
from regrpo.core.verifiers import NONE
from regrpo.evaluate.results import Kind

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from regrpo.train.classifiers import Judge

OURS, CUSTOM = Path("stages/eval_tasks"), Path("custom/eval_tasks")
WITHOUT_VERIFIER = ("heldout_text",)
"""Our tasks that know no correct answer."""
JUDGED = "classifier"
"""The filter of a metric that a classifier gives."""

Origin = Literal["ours", "custom", "stock"]
Row = dict[str, Any]
"""One answer: task (the metric's key), id, prompt, completion, answer, value."""


@dataclass(frozen=True)
class Metric:
    """One number of a task, by lm-eval's own name and filter ("none": unfiltered).

    `key` is its name in our reports; `kind` is None if the values decide.
    """

    key: str
    name: str
    filter: str
    role: str
    description: str
    kind: Kind | None = None

    @property
    def label(self) -> str:
        if self.filter in ("none", JUDGED):
            return self.name
        return f"{self.name},{self.filter}"


@dataclass(frozen=True)
class Task:
    """An lm-eval task, ready to be asked; `origin` is where it is defined."""

    name: str
    origin: Origin
    version: float | int | str
    metrics: tuple[Metric, ...]
    harness: Any
    few_shot: dict[str, Any] | None = None
    """Where its few-shot examples come from: their number, the dataset and its split."""


# --- finding --------------------------------------------------------------------------------------


def find_tasks(names: list[str], verifier: str) -> list[Task]:
    """The tasks of these names, groups and tags resolved to their tasks, in the given order.

    No model is needed. Raises Refused for an unknown name, for one of ours where the data have no
    verifier, for a task without a metric that is a mean over questions, and CannotCheck for a task
    whose data or packages are not there.
    """
    from lm_eval.tasks import TaskManager

    folders = [str(OURS), str(CUSTOM)]
    manager = TaskManager(include_path=folders, include_defaults=False)
    # Reading the index of lm-eval's own thousands of tasks takes seconds.
    if any(name not in manager.task_index for name in names):
        manager = TaskManager(include_path=folders, include_defaults=True)
    for name in names:
        if name not in manager.task_index:
            raise _unknown(name, manager)
    tasks: dict[str, Task] = {}
    for name in names:
        if _origin(name, manager) == "ours" and verifier == NONE and name not in WITHOUT_VERIFIER:
            raise Refused(
                f"evaluate.tasks: {name}",
                expected="a task that does not need a verifier",
                found=f"the data name none (data/prepared/dataset.json: verifier {NONE})",
                remedy=f"Name {', '.join(WITHOUT_VERIFIER)}, tasks of your own ({CUSTOM}/) or "
                "lm-eval's, or prepare data with verifiable answers.",
            )
        tasks |= {task.name: task for task in _load(name, manager)}
    return list(tasks.values())


def _unknown(name: str, manager: TaskManager) -> Refused:
    import difflib

    near = difflib.get_close_matches(name, manager.all_tasks, n=5, cutoff=0.5)
    found = f"{name!r}, which is none"
    if broken := [str(file) for file in sorted(CUSTOM.rglob("*.yaml")) if not _is_yaml(file)]:
        found += f"; {', '.join(broken)} cannot be read as YAML"
    remedy = f"Did you mean {', '.join(near)}?" if near else "`lm-eval ls tasks` lists lm-eval's."
    return Refused(
        "evaluate.tasks",
        expected=f"tasks of {OURS}/, {CUSTOM}/ or lm-eval",
        found=found,
        remedy=remedy,
    )


def _is_yaml(file: Path) -> bool:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        YAML().compose(file)  # lm-eval's own tags (!function) are left alone
    except (YAMLError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _origin(name: str, manager: TaskManager) -> Origin:
    entry = manager.task_index.get(name)
    if entry is None or not entry.yaml_path:
        return "stock"
    parents = entry.yaml_path.resolve().parents
    if OURS.resolve() in parents:
        return "ours"
    return "custom" if CUSTOM.resolve() in parents else "stock"


def _load(name: str, manager: TaskManager) -> list[Task]:
    try:
        loaded = manager.load([name])["tasks"]
    except RegrpoError:
        raise
    # A missing package, no network, a broken file: each of them raises classes of its own.
    except Exception as error:
        lines = str(error).splitlines() or ["no message"]
        raise CannotCheck(
            f"evaluate.tasks: {name}",
            expected="a task that lm-eval can load, with its data",
            found=f"{type(error).__name__}: {lines[0]}",
            remedy=f"Mend {CUSTOM}/, or check network and access for lm-eval's own data.",
        ) from error
    return [_describe(one, loaded[one], _origin(one, manager)) for one in loaded]


def _describe(name: str, harness: Any, origin: Origin) -> Task:
    """An lm-eval task with its metrics. Raises Refused for one that cannot be asked or compared."""
    if harness.get_config("num_fewshot") is None:
        harness.set_config("num_fewshot", 0)
    if getattr(harness, "UNSAFE_CODE", False):
        raise Refused(
            f"evaluate.tasks: {name}",
            expected="a task that runs no code written by the model",
            found="one that lm-eval marks as unsafe",
            remedy="Take it off the list.",
        )
    metrics = tuple(_metrics(name, harness, origin))
    if not metrics:
        raise Refused(
            f"evaluate.tasks: {name}",
            expected="a metric that is a mean over questions, "
            "so that models can be compared question by question",
            found=", ".join(harness.aggregation()),
            remedy="Take it off the list.",
        )
    version = (harness.get_config("metadata") or {}).get("version", 0)
    return Task(name, origin, version, metrics, harness, _few_shot(harness))


def _metrics(name: str, harness: Any, origin: Origin) -> Iterator[Metric]:
    """The metrics that are means over questions; the first bears the task's own name."""
    about = harness.get_config("metadata") or {}
    filters = [one["name"] for one in harness.get_config("filter_list") or []] or ["none"]
    shots = f"{harness.get_config('num_fewshot')}-shot"
    kind = about.get("kind") if origin == "ours" else None
    means = [
        metric
        for metric, aggregate in harness.aggregation().items()
        if getattr(aggregate, "__name__", "") == "mean"
    ]
    for number, (metric, filter_name) in enumerate(itertools.product(means, filters)):
        key, role, description = name, about.get("role"), about.get("description")
        if number:
            key = f"{name}_{metric}" if filter_name == "none" else f"{name}_{metric}_{filter_name}"
            role = about.get(f"{metric}_role", metric)
            description = about.get(f"{metric}_description")
        if origin != "ours":
            role = origin
        yield Metric(key, metric, filter_name, str(role), description or shots, kind)


def _few_shot(harness: Any) -> dict[str, Any] | None:
    """Where the examples come from; None for no examples, or such as are written in the task."""
    examples, config = harness.get_config("num_fewshot"), harness.get_config("fewshot_config")
    split = (
        harness.get_config("fewshot_split")
        or getattr(config, "split", None)
        or harness.get_config("training_split")
    )
    if not examples or not split or getattr(config, "samples", None):
        return None
    return {"examples": examples, "dataset": harness.get_config("dataset_path"), "split": split}


# --- classifiers as metrics -----------------------------------------------------------------------


def with_judges(task: Task, judges: Mapping[str, Judge]) -> Task:
    """One of our main tasks with a metric per classifier besides, and the mean of several."""
    if not judges or task.origin != "ours" or task.metrics[0].role != "main":
        return task
    descriptions = {
        name: f"the same completions as {name} judges them: {_formula(judge)}"
        for name, judge in judges.items()
    }
    if len(judges) > 1:
        names = " and ".join(judges)
        descriptions["classifiers"] = f"the mean of {names}, completion by completion"
    added = [
        Metric(f"{task.name}_{name}", name, JUDGED, "main", description, "continuous")
        for name, description in descriptions.items()
    ]
    return dataclasses.replace(task, metrics=(*task.metrics, *added))


def _formula(judge: Judge) -> str:
    """What a classifier's value is, in its labels: +P(polite) P(kind) -P(toxic)."""
    sides = []
    for sign, labels in (("+", judge.spec.positive), ("-", judge.spec.negative)):
        if labels:
            sides.append(sign + " ".join(f"P({label})" for label in labels))
    return " ".join(sides)


def judged(task: Task, rows: Sequence[Row], judges: Mapping[str, Judge]) -> list[Row]:
    """What the classifiers think of the completions in one model's rows, as rows like those."""
    metrics = [metric for metric in task.metrics if metric.filter == JUDGED]
    if not metrics:
        return []
    asked = [row for row in rows if row["task"] == task.metrics[0].key]
    texts = [row["completion"] for row in asked]
    values = {name: judge.values(texts) for name, judge in judges.items()}
    if len(values) > 1:
        together = zip(*values.values(), strict=True)
        values["classifiers"] = [sum(one) / len(one) for one in together]
    found = []
    for metric in metrics:
        for row, value in zip(asked, values[metric.name], strict=True):
            found.append(row | {"task": metric.key, "value": value})
    return found
