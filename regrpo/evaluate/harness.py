"""lm-eval as a library.

Find tasks by name, load a model, ask it one task, get one row per question and metric.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from regrpo.core.errors import CannotCheck, Refused, RegrpoError
from regrpo.core.verifiers import NONE
from regrpo.evaluate.results import Kind

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    from regrpo.train.classifiers import Judge

OURS, CUSTOM = Path("stages/eval_tasks"), Path("custom/eval_tasks")
WITHOUT_VERIFIER = ("heldout_text",)
"""Our tasks that know no correct answer."""
JUDGED = "classifier"
Row = dict[str, Any]


@dataclass(frozen=True)
class Metric:
    """One number of a task, by lm-eval's own name and filter ("none": unfiltered).

    `key` is its name in our reports.

    `kind` is None where the values tell. A classifier's metric has the filter JUDGED.
    """

    key: str
    name: str
    filter: str
    role: str
    description: str
    kind: Kind | None = None

    @property
    def label(self) -> str:
        return self.name if self.filter in ("none", JUDGED) else f"{self.name},{self.filter}"


@dataclass(frozen=True)
class Task:
    """An lm-eval task, ready to be asked; `origin` is where it is defined."""

    name: str
    origin: Literal["ours", "custom", "stock"]
    version: float | int | str
    metrics: tuple[Metric, ...]
    harness: Any
    few_shot: dict[str, Any] | None = None
    """Where its few-shot examples come from: their number, the dataset and its split."""


@contextlib.contextmanager
def surroundings() -> Iterator[None]:
    """What must hold before lm-eval is imported.

    A datasets cache of this run's own, quiet logs, bars for long steps.

    `datasets` reuses its cache for a file that was rewritten with the same time stamp, hence a
    fresh one each time.
    """
    import logging

    with tempfile.TemporaryDirectory() as cache:
        os.environ["HF_DATASETS_CACHE"] = cache
        # tqdm reads its defaults here: a bar after 5 s on a terminal, none in a log file, none left
        # standing.
        os.environ |= {"TQDM_DELAY": "5" if sys.stderr.isatty() else "inf", "TQDM_LEAVE": ""}
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        logging.getLogger("lm_eval.models").setLevel(
            logging.WARNING
        )  # says where it cuts a prompt to fit the window
        yield


def find_tasks(names: list[str], verifier: str) -> list[Task]:
    """The tasks of these names, groups and tags resolved to their tasks, in the given order.

    No model is needed.

    Ours and the user's are looked up first; lm-eval's own only where a name is left. Raises Refused
    for an unknown name, for one of ours where the data have no verifier, for a task without a
    metric that is a mean over questions, and CannotCheck for a task whose data or packages are not
    there.
    """
    from lm_eval.tasks import TaskManager

    folders = [str(OURS), str(CUSTOM)]
    manager = TaskManager(include_path=folders, include_defaults=False)
    if any(name not in manager.task_index for name in names):
        manager = TaskManager(include_path=folders, include_defaults=True)
    _refuse_unknown(names, manager)
    tasks: dict[str, Task] = {}
    for name in names:
        if _origin(name, manager) == "ours" and verifier == NONE and name not in WITHOUT_VERIFIER:
            raise Refused(
                f"evaluate.tasks: {name}",
                expected="a task that does not need a verifier",
                found=f"the data name none (data/prepared/dataset.json: verifier {NONE})",
                remedy=f"Name {', '.join(WITHOUT_VERIFIER)}, tasks of your own ({CUSTOM}/) or lm-eval's, or prepare "
                "data with verifiable answers.",
            )
        tasks |= {task.name: task for task in _load(name, manager)}
    return list(tasks.values())


def _refuse_unknown(names: list[str], manager: TaskManager) -> None:
    import difflib

    for name in names:
        if name in manager.task_index:
            continue
        near = difflib.get_close_matches(name, manager.all_tasks, n=5, cutoff=0.5)
        broken = [str(file) for file in sorted(CUSTOM.rglob("*.yaml")) if not _is_yaml(file)]
        also = f"; {', '.join(broken)} cannot be read as YAML" if broken else ""
        raise Refused(
            "evaluate.tasks",
            expected=f"tasks of {OURS}/, {CUSTOM}/ or lm-eval",
            found=f"{name!r}, which is none{also}",
            remedy=f"Did you mean {', '.join(near)}?"
            if near
            else "`lm-eval ls tasks` lists lm-eval's.",
        )


def _is_yaml(file: Path) -> bool:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        YAML().compose(file)  # lm-eval's own tags (!function) are left alone
    except (YAMLError, UnicodeDecodeError):
        return False
    return True


def _origin(name: str, manager: TaskManager) -> Literal["ours", "custom", "stock"]:
    entry = manager.task_index.get(name)
    parents = entry.yaml_path.resolve().parents if entry and entry.yaml_path else ()
    return (
        "ours"
        if OURS.resolve() in parents
        else "custom"
        if CUSTOM.resolve() in parents
        else "stock"
    )


def _load(name: str, manager: TaskManager) -> list[Task]:
    try:
        loaded = manager.load([name])["tasks"]
    except RegrpoError:
        raise
    except (
        Exception
    ) as error:  # a missing package, no network, a broken file: each of them raises its own
        raise CannotCheck(
            f"evaluate.tasks: {name}",
            expected="a task that lm-eval can load, with its data",
            found=f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}",
            remedy=f"Mend {CUSTOM}/, or check network and access for lm-eval's own data.",
        ) from error
    return [_describe(one, loaded[one], _origin(one, manager)) for one in loaded]


def _describe(name: str, task: Any, origin: Literal["ours", "custom", "stock"]) -> Task:
    if task.get_config("num_fewshot") is None:
        task.set_config("num_fewshot", 0)
    if getattr(task, "UNSAFE_CODE", False):
        raise Refused(
            f"evaluate.tasks: {name}",
            expected="a task that runs no code written by the model",
            found="one that lm-eval marks as unsafe",
            remedy="Take it off the list.",
        )
    about = task.get_config("metadata") or {}
    means = [
        metric
        for metric, aggregate in task.aggregation().items()
        if getattr(aggregate, "__name__", "") == "mean"
    ]
    filters = [one["name"] for one in task.get_config("filter_list") or []] or ["none"]
    if not means:
        raise Refused(
            f"evaluate.tasks: {name}",
            expected="a metric that is a mean over questions, so that models can be compared question by question",
            found=", ".join(task.aggregation()),
            remedy="Take it off the list.",
        )
    metrics = []
    for number, (metric, one) in enumerate((metric, one) for metric in means for one in filters):
        key = name if not number else "_".join([name, metric] + [one] * (one != "none"))
        role = (
            origin
            if origin != "ours"
            else about["role"]
            if not number
            else about.get(f"{metric}_role", metric)
        )
        text = about.get("description" if not number else f"{metric}_description")
        shots = f"{task.get_config('num_fewshot')}-shot"
        metrics.append(
            Metric(
                key,
                metric,
                one,
                role,
                text or shots,
                about.get("kind") if origin == "ours" else None,
            )
        )
    return Task(name, origin, about.get("version", 0), tuple(metrics), task, _few_shot(task))


def _few_shot(task: Any) -> dict[str, Any] | None:
    """None where there are no examples, or they are written in the task itself."""
    examples, config = task.get_config("num_fewshot"), task.get_config("fewshot_config")
    split = (
        task.get_config("fewshot_split")
        or getattr(config, "split", None)
        or task.get_config("training_split")
    )
    if not examples or not split or getattr(config, "samples", None):
        return None
    return {"examples": examples, "dataset": task.get_config("dataset_path"), "split": split}


def with_judges(task: Task, judges: Mapping[str, Judge]) -> Task:
    """The task with a metric per classifier more, and their mean where there are several.

    For our main tasks.
    """
    if not judges or task.origin != "ours" or task.metrics[0].role != "main":
        return task

    def metric(name: str, description: str) -> Metric:
        return Metric(f"{task.name}_{name}", name, JUDGED, "main", description, "continuous")

    def words(judge: Judge) -> str:
        sides = zip("+-", (judge.spec.positive, judge.spec.negative), strict=True)
        return f"{' '.join(sign + ' '.join(f'P({label})' for label in side) for sign, side in sides if side)}"

    each = [
        metric(name, f"the same completions as {name} judges them: {words(one)}")
        for name, one in judges.items()
    ]
    mean = [metric("classifiers", f"the mean of {' and '.join(judges)}, completion by completion")]
    return dataclasses.replace(
        task, metrics=(*task.metrics, *each, *(mean if len(each) > 1 else []))
    )


def judged(task: Task, rows: Sequence[Row], judges: Mapping[str, Judge]) -> list[Row]:
    """What the classifiers think of the completions in `rows` (one model's, as `ask` gave them).

    Rows like those.
    """
    metrics = [metric for metric in task.metrics if metric.filter == JUDGED]
    asked = [row for row in rows if row["task"] == task.metrics[0].key]
    values = (
        {name: judge.values([row["completion"] for row in asked]) for name, judge in judges.items()}
        if metrics
        else {}
    )
    if len(values) > 1:
        values["classifiers"] = [sum(one) / len(one) for one in zip(*values.values(), strict=True)]
    return [
        row | {"task": metric.key, "value": value}
        for metric in metrics
        for row, value in zip(asked, values[metric.name], strict=True)
    ]


def load_model(
    folder: Path,
    *,
    backend: str,
    device: str,
    batch_size: int | str,
    seed: int,
    model_args: dict[str, Any],
) -> LM:
    """A model folder behind lm-eval's interface.

    On a CPU in float32, on CUDA in the type it was saved in.

    Raises Refused for model_args that the backend does not take.
    """
    try:
        return _load_backend(folder, backend, device, batch_size, seed, model_args)
    except (TypeError, ValueError) as error:
        raise Refused(
            "evaluate.model_args",
            expected=f"arguments of lm-eval's {backend} backend, and a model that it loads ({folder})",
            found=(str(error).splitlines() or [type(error).__name__])[0],
            remedy="Correct them in the profile.",
        ) from error


def _load_backend(
    folder: Path,
    backend: str,
    device: str,
    batch_size: int | str,
    seed: int,
    model_args: dict[str, Any],
) -> LM:
    arguments = {"pretrained": str(folder), "batch_size": batch_size} | model_args
    if backend == "vllm":
        from lm_eval.models.vllm_causallms import VLLM

        return VLLM(**arguments, dtype="auto", seed=seed)
    from lm_eval.models.huggingface import HFLM

    return HFLM(**arguments, device=device, dtype="float32" if device == "cpu" else "auto")


def ask(
    task: Task, lm: LM, *, chat: bool, max_gen_toks: int, limit: int | None, seed: int
) -> list[Row]:
    """One model's answers.

    A row (task, id, prompt, completion, answer, value) per question and metric.

    `task` is the metric's key. The first `limit` questions, or all. With `chat`, prompts go through
    the model's chat template: ours with the generation prompt and then the opening of the
    completion, others as lm-eval does it. Raises Refused for a value that is no number.
    """
    import lm_eval

    harness = task.harness
    plain = harness.get_config("doc_to_text")
    harness.set_fewshot_seed(seed)
    if task.origin == "ours":
        max_gen_toks *= (harness.get_config("metadata") or {}).get("max_gen_toks_times", 1)
        if max_gen_toks >= lm.max_length:
            raise Refused(
                "evaluate.max_gen_toks",
                expected=f"less than the model's window ({lm.max_length} tokens)",
                found=f"{max_gen_toks} for {task.name}",
                remedy="Lower it, or take the task off the list.",
            )
        harness.set_config("generation_kwargs", {"max_gen_toks": max_gen_toks}, update=True)
        if chat:  # the template writes the tokens that a text begins with, here as in training
            lm.add_bos_token = False
            harness.set_config("doc_to_text", partial(plain, render=lm.apply_chat_template))
    results = lm_eval.evaluate(
        lm=lm,
        task_dict={"tasks": {task.name: harness}},
        limit=limit,
        bootstrap_iters=0,  # intervals are ours, paired (regrpo/evaluate/stats.py)
        apply_chat_template=chat and task.origin != "ours",
        fewshot_as_multiturn=True,
    )
    harness.set_config(
        "doc_to_text", plain
    )  # a task that held on to its model would keep it in memory
    samples = results["samples"][task.name]
    return [
        _row(task, metric, one)
        for metric in task.metrics
        for one in samples
        if one["filter"] == metric.filter
    ]


def _row(task: Task, metric: Metric, sample: dict[str, Any]) -> Row:
    import math

    question = str(sample["doc"]["id"]) if task.origin == "ours" else f"{sample['doc_id']:06d}"
    value = sample.get(metric.name)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise Refused(
            f"evaluate: {task.name}, question {question}",
            expected=f"a finite number as {metric.name}",
            found=repr(value),
            remedy="Mend the task's process_results or metric.",
        )
    completion = sample["resps"][0][0]
    return {
        "task": metric.key,
        "id": question,
        "prompt": sample["arguments"][0][0],
        "completion": completion
        if isinstance(completion, str)
        else None,  # None: choices were scored, none written
        "answer": None if sample["target"] is None else str(sample["target"]),
        "value": float(value),
    }
