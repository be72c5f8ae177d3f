"""Runs as a comparison sees them.

Found by the names people give them, read with one git process, as plain data.

A run is a pipeline's dvc.lock, records and reports at a git revision, in a DVC experiment or in the
workspace. What of it is finished is told from the chain of its records; the answers come from the
workspace or DVC's cache, MD5 checked.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from regrpo.core import files
from regrpo.core.dvc import cache_folder
from regrpo.core.errors import CannotCheck
from regrpo.core.git import experiment_refs
from regrpo.core.pipeline import Snapshot, pipeline_key, stage_key
from regrpo.core.profiles import STAGES
from regrpo.evaluate.results import METRICS, SAMPLES, Evaluation, parse_metrics, read_samples
from regrpo.records import hashing
from regrpo.records import record as record_module
from regrpo.records.record import Place, Record
from regrpo.tracking import address, rows

if TYPE_CHECKING:
    import pandas as pd

    from regrpo.compare.seed_tests import Values
    from regrpo.tracking.reader import Reader

T = TypeVar("T")
PATIENCE = 8.0
"""Seconds that MLflow is waited for."""
MODEL = "grpo"
"""The model whose answers are compared."""
RECORDS = tuple(f"reports/{stage}/run.json" for stage in STAGES)
SEEDS = tuple(f"{stage}.seed" for stage in STAGES if stage not in ("validate", "model_card"))
"""The parameters that draw anew and change nothing else."""
HISTORY = "reports/grpo/history.csv"
READ = (
    "dvc.lock",
    *RECORDS,
    METRICS,
    HISTORY,
    "reports/prepare/metrics.json",
    "reports/base_model/source.json",
    "reports/grpo/health.json",
)
RAW = ("data/raw", "models/raw")


# --- names ----------------------------------------------------------------------------------------


@dataclass
class Named:
    """What a user named, and where it lies; or why it cannot be had."""

    name: str
    place: Place | None = None
    problem: str | None = None


class Rows:
    """MLflow as far as finding runs needs it.

    Where it cannot be reached `problem` says so, and nothing waits twice.
    """

    def __init__(self, enabled: bool) -> None:
        self.problem: str | None = None
        self._enabled = enabled

    def run(self, run_id: str) -> dict[str, Any] | None:
        """A run by its id (see `mlflow_store.Reader.run`)."""
        return self._ask(lambda reader: reader.run(run_id))

    def sweep(self, name: str) -> list[dict[str, Any]]:
        """The pipeline rows of a sweep."""
        if not re.fullmatch(r"[\w.-]+", name):
            return []
        return (
            self._ask(lambda reader: reader.tagged(regrpo__sweep=name, regrpo__kind="pipeline"))
            or []
        )

    def _ask(self, question: Callable[[Reader], T]) -> T | None:
        if not self._enabled or self.problem:
            return None
        from regrpo.tracking.reader import open_reader

        answer: list[T] = []
        problem: list[str] = []

        def ask() -> None:
            try:
                answer.append(question(reader))
            except (
                Exception
            ) as error:  # MLflow, its database layer and its HTTP client raise classes of their own
                problem.append(
                    f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"
                )

        try:
            with contextlib.redirect_stderr(io.StringIO()):
                reader = open_reader(address.tracking_uri())
                thread = threading.Thread(
                    target=ask, daemon=True
                )  # a server may be silent for minutes
                thread.start()
                thread.join(PATIENCE)
        except CannotCheck as error:
            problem.append(error.found)
        except Exception as error:  # as above
            problem.append(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}")
        if answer:
            return answer[0]
        why = problem[0] if problem else f"no answer within {PATIENCE:.0f} s"
        self.problem = f"MLflow ({address.shown_uri()}) could not be asked: {why}; git and DVC only"
        return None


def find(targets: Sequence[str], root: Path, mlflow: Rows) -> list[Named]:
    """Each target where it lies.

    `workspace` or `.`, an MLflow run, a DVC experiment, or a git revision.

    Raises CannotCheck where `root` is no repository of this pipeline.
    """
    here = record_module.workspace(root)
    found = []
    ids: _Ids | None = None
    for target in targets:
        if target in ("workspace", "."):
            found.append(Named("workspace", here))
            continue
        if re.fullmatch("[0-9a-f]{32}", target):
            ids = ids or _Ids(root)
            if place := ids.holding([target]):
                found.append(Named(target, place))
                continue
            if row := mlflow.run(target):
                found.append(_of_row(row, target, ids))
                continue
        try:
            found.append(Named(target, record_module.find(target, root, mlflow=False)))
        except CannotCheck as error:
            unknown = f"unknown: {error.found} (`dvc exp list` and `git log -- dvc.lock` show what there is)"
            found.append(Named(target, None, _waiting(root).get(target) or unknown))
    return found


def find_sweep(name: str, root: Path, mlflow: Rows) -> list[Named]:
    """The runs of a sweep.

    The DVC experiments NAME-1, NAME-2, …, and the pipeline rows that MLflow has for it.

    Those that are queued, running or failed come with that as their problem. Raises CannotCheck
    where there are none.
    """
    record_module.workspace(root)
    numbered = re.compile(re.escape(name) + r"-(\d+)")
    members: dict[str, Named] = {}
    for ref, commit in experiment_refs(root).items():
        experiment = ref.split("/", 4)[4]
        if numbered.fullmatch(experiment):
            label = (
                f"{experiment}@{ref.split('/')[2]}{ref.split('/')[3][:5]}"
                if experiment in members
                else experiment
            )
            members[label] = Named(label, Place(f"experiment {experiment}", Snapshot(root, commit)))
    for experiment, problem in _waiting(root).items():
        if numbered.fullmatch(experiment):
            members.setdefault(experiment, Named(experiment, None, problem))
    ids: _Ids | None = None
    for row in mlflow.sweep(name):
        label = row["tags"].get("regrpo.experiment") or row["id"]
        if label not in members and not row["deleted"]:
            ids = ids or _Ids(root)
            members[label] = _of_row(row, label, ids)
    if not members:
        raise CannotCheck(
            f"sweep {name}",
            expected=f"DVC experiments {name}-1, {name}-2, …"
            + ("" if mlflow.problem else f", or MLflow rows tagged regrpo.sweep={name}"),
            found="none, and none queued under that name"
            + (f" ({mlflow.problem})" if mlflow.problem else ""),
            remedy=f"Queue one with `dvc exp run --queue -n {name} -S 'grpo.seed=range(0,5)'`, then `dvc queue start`.",
        )
    return sorted(
        members.values(),
        key=lambda one: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", one.name)],
    )


def _of_row(row: Mapping[str, Any], name: str, ids: _Ids) -> Named:
    """Where the pipeline of an MLflow row lies."""
    tags = row["tags"]
    made = [at for tag, at in tags.items() if tag.startswith("regrpo.stage.")]
    if row["status"] != "FINISHED":
        state = {"RUNNING": "still running", "SCHEDULED": "not started"}.get(
            row["status"], row["status"].lower()
        )
        return Named(name, None, f"{state}, says MLflow")
    if not made:
        return Named(
            name,
            None,
            f"no run of a pipeline (MLflow: {tags.get('regrpo.kind', 'not of this project')})",
        )
    if place := ids.holding(made):
        return Named(name, place)
    experiment = tags.get("regrpo.experiment")
    gone = (
        f"its DVC experiment {experiment} was removed"
        if experiment
        else "its results were never committed"
    )
    return Named(
        name, None, f"MLflow knows it, but no commit or experiment here holds its files: {gone}"
    )


class _Ids:
    """Which place holds which runs.

    The records of workspace, experiments and commits, read once.
    """

    def __init__(self, root: Path) -> None:
        places = [record_module.workspace(root), *record_module.revisions(root)]
        commits = [place.snapshot.revision for place in places if place.snapshot.revision]
        read = record_module.read_many(root, commits, RECORDS)
        self._places: list[tuple[Place, frozenset[str]]] = []
        for place in places:
            revision = place.snapshot.revision
            found = (
                read[revision].values()
                if revision
                else record_module.record_bytes(place.snapshot).values()
            )
            names = frozenset(name for data in found if data for name in _run_ids(data))
            self._places.append((place, names))

    def holding(self, runs: Iterable[str]) -> Place | None:
        """The first place that holds all these runs."""
        wanted = set(runs)
        return next((place for place, names in self._places if wanted <= names), None)


def _run_ids(data: bytes) -> set[str]:
    with contextlib.suppress(ValueError, TypeError, KeyError, IndexError):
        record = json.loads(data)[0]
        return {str(record["run"]), str(record.get("mlflow_run_id"))}
    return set()


def _waiting(root: Path) -> dict[str, str]:
    """{name: what keeps it} of the experiments in DVC's queue that are not done.

    Empty where there is no queue.
    """
    if not (root / ".dvc/tmp/exps/celery").is_dir():
        return {}
    from dvc.repo import Repo

    said = {
        "Queued": "queued (`dvc queue start` runs it)",
        "Running": "running, or killed while it ran (`dvc queue status`)",
        "Failed": "failed (`dvc queue logs {name}`)",
    }
    try:
        with Repo(str(root)) as repo:
            tasks = repo.experiments.celery_queue.status()
    # DVC, celery and kombu raise classes of their own; a queue that cannot be read holds up nothing
    except Exception:
        return {}
    return {
        str(task["name"]): said[task["status"]].format(name=task["name"])
        for task in tasks
        if task["name"] and task["status"] in said
    }


# --- reading --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded(Snapshot):
    """A snapshot whose small files are read already."""

    small: Mapping[str, bytes | None] = field(default_factory=dict)

    def read(self, path: str | Path) -> bytes | None:
        return self.small[str(path)] if str(path) in self.small else super().read(path)


def load(places: Sequence[Place]) -> list[Loaded]:
    """The places' snapshots, with what a comparison reads."""
    root = places[0].snapshot.root if places else Path()
    commits = [place.snapshot.revision for place in places if place.snapshot.revision]
    read = record_module.read_many(root, commits, READ)
    loaded: dict[str | None, Loaded] = {}
    for place in places:
        at = place.snapshot.revision
        if at not in loaded:
            small = read[at] if at else {path: place.snapshot.read(path) for path in READ}
            loaded[at] = Loaded(root, at, small)
    return [loaded[place.snapshot.revision] for place in places]


@dataclass
class Run:
    """One run. `stages` are those that are finished and belong together.

    `problem` says what of it is missing.

    `params` is flat ({section.key: text}), `code` the project's own files that the stages read
    (path → MD5), `data` where the data and the base model come from and their hashes, `packages`
    the environment, `made` the SHA-256 of each output. Runs of one `setting` differ in seeds alone
    (in what comes before the evaluation's numbers).
    """

    name: str
    place: str
    commit: str | None
    snapshot: Loaded
    stages: list[str] = field(default_factory=list)
    problem: str | None = None
    key: str | None = None
    profile: str = ""
    params: dict[str, str] = field(default_factory=dict)
    data: dict[str, str] = field(default_factory=dict)
    code: dict[str, str] = field(default_factory=dict)
    revisions: list[str] = field(default_factory=list)
    diffs: list[str] = field(default_factory=list)
    packages: dict[str, str] = field(default_factory=dict)
    made: dict[str, str] = field(default_factory=dict)
    setting: str | None = None
    ended: str | None = None
    health: str | None = None
    evaluation: Evaluation | None = None
    no_answers: str | None = None
    answers: dict[str, Answers] = field(default_factory=dict)


def read_run(named: Named, snapshot: Loaded) -> Run:
    """A run as far as it is finished.

    Raises CannotCheck where its dvc.lock cannot be read or nothing is finished.
    """
    assert named.place is not None
    lock = record_module.safe_lock(snapshot)
    run = Run(named.name, named.place.name, snapshot.revision, snapshot)
    records, run.problem = _finished(snapshot, lock)
    if not records:
        raise CannotCheck(
            named.name,
            expected="a run with at least one finished stage",
            found=str(run.problem),
            remedy="Name one that `dvc repro` or `dvc exp run` has made.",
        )
    entries = {stage: lock["stages"][stage] for stage in records}
    run.stages = list(records)
    run.key = pipeline_key(lock) if run.problem is None else None
    profiles = [profile for entry in entries.values() for profile in entry.get("params", {})]
    run.profile = profiles[-1] if profiles else ""
    sections = {
        name: one
        for entry in entries.values()
        for many in entry["params"].values()
        for name, one in many.items()
    }
    run.params = rows.parameters(sections)
    run.made = {out.path: out.sha256 for record in records.values() for out in record.outputs}
    run.code, raw = _sources(entries)
    if "evaluate" in entries:
        run.setting = _setting(
            {stage: entry for stage, entry in entries.items() if stage != "model_card"}
        )
    run.revisions = list(
        dict.fromkeys(record.code.revision or "(no git)" for record in _by_time(records))
    )
    run.diffs = sorted(
        {record.code.diff_sha256 for record in records.values() if record.code.diff_sha256}
    )
    run.packages = _environment(records)
    run.ended = max(record.ended for record in records.values())
    run.data = _data(snapshot, entries, records) | raw
    health = _report(snapshot, entries, "grpo", "reports/grpo/health.json")
    run.health = str(health.get("verdict")) if isinstance(health, dict) else None
    if "evaluate" in entries:
        run.evaluation, run.no_answers = _evaluation(snapshot, entries)
    else:
        run.no_answers = f"it is not evaluated ({run.problem})"
    return run


def _finished(snapshot: Snapshot, lock: Mapping[str, Any]) -> tuple[dict[str, Record], str | None]:
    """The records of the stages that belong to one pipeline, and what ends them before the last."""
    records: dict[str, Record] = {}
    made: dict[str, str] = {}
    for stage in STAGES:
        entry, path = lock["stages"].get(stage), f"reports/{stage}/run.json"
        data = snapshot.read(path)
        if entry is None or data is None:
            return (
                records,
                f"unfinished: {'dvc.lock does not hold' if entry is None else 'there is no record of'} {stage}",
            )
        try:
            record = record_module.parse_record(data, path)[0]
        except CannotCheck as error:
            return records, f"{path} is {error.found}"
        if _known(entry).get(path) != _md5(data) or record.key != stage_key(entry):
            return records, f"unfinished or altered: {path} is not the record that dvc.lock knows"
        for item in record.inputs:
            if made.get(item.path, item.sha256) != item.sha256:
                return records, f"unfinished: {stage} was last run with another {item.path}"
        for out in record.outputs:
            made[out.path] = out.sha256
            made |= {f"{out.path}/{name}": digest for name, digest in (out.files or {}).items()}
        records[stage] = record
    return records, None


def _known(entry: Mapping[str, Any]) -> dict[str, str]:
    return {out["path"]: out["md5"] for out in entry.get("outs", [])}


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def _by_time(records: Mapping[str, Record]) -> list[Record]:
    return sorted(records.values(), key=lambda record: record.started, reverse=True)


def _sources(entries: Mapping[str, Mapping[str, Any]]) -> tuple[dict[str, str], dict[str, str]]:
    """(the code, the raw data) that stages read and no stage made: path → DVC's MD5."""
    made = {out for entry in entries.values() for out in _known(entry)}
    read = {dep["path"]: dep["md5"] for entry in entries.values() for dep in entry.get("deps", [])}
    outside = {
        path: md5
        for path, md5 in read.items()
        if not any(path == out or path.startswith(f"{out}/") for out in made)
    }
    return {path: md5 for path, md5 in outside.items() if path not in RAW}, {
        f"{path} md5": md5 for path, md5 in outside.items() if path in RAW
    }


def _setting(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """SHA-256 over everything that stages are told and read from outside, but the seeds."""
    sections = {
        name: one
        for entry in entries.values()
        for many in entry["params"].values()
        for name, one in many.items()
    }
    told = {name: value for name, value in rows.parameters(sections).items() if name not in SEEDS}
    return files.sha256_json(
        [told, [entry["cmd"] for entry in entries.values()], *_sources(entries)]
    )


def _environment(records: Mapping[str, Record]) -> dict[str, str]:
    """{package, python, system, …: version}; of several among the stages, all."""
    found: dict[str, set[str]] = {}
    for record in records.values():
        about = {
            name: _text(value) for name, value in (record.environment.model_extra or {}).items()
        }
        for name, version in (record.environment.packages | about).items():
            found.setdefault(name, set()).add(version)
    return {name: ", ".join(sorted(versions)) for name, versions in found.items()}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _report(snapshot: Snapshot, entries: Mapping[str, Any], stage: str, path: str) -> Any:
    """A small report's content; None where it is not there or not the one that dvc.lock knows."""
    data = _report_bytes(snapshot, entries, stage, path)
    if data is None:
        return None
    with contextlib.suppress(ValueError):
        return json.loads(data)
    return None


def _report_bytes(
    snapshot: Snapshot, entries: Mapping[str, Any], stage: str, path: str
) -> bytes | None:
    data = snapshot.read(path)
    if data is None or stage not in entries or _known(entries[stage]).get(path) != _md5(data):
        return None
    return data


def _data(
    snapshot: Snapshot, entries: Mapping[str, Any], records: Mapping[str, Record]
) -> dict[str, str]:
    """{what: value} of data and base model.

    Sources, revisions, rows and hashes of the splits, the base weights.
    """
    facts: dict[str, str] = {}
    prepared = next(out for out in records["prepare"].outputs if out.path == "data/prepared")
    about = _dataset(snapshot, _known(entries["prepare"])["data/prepared"])
    facts |= {
        f"data {name}": str(about[name])
        for name in ("source", "revision", "verifier", "prompt_style")
        if name in about
    }
    counts = _report(snapshot, entries, "prepare", "reports/prepare/metrics.json") or {}
    for name, digest in sorted((prepared.files or {}).items()):
        if name.endswith(".parquet"):
            split = name.removesuffix(".parquet")
            facts |= {f"{split} rows": str(counts[split]["rows"])} if split in counts else {}
            facts[f"{split} sha256"] = digest
    base = _report(snapshot, entries, "base_model", "reports/base_model/source.json") or {}
    facts |= {
        f"base model {name}": str(base[name])
        for name in ("source", "revision", "parameters")
        if name in base
    }
    made = records["base_model"].outputs if "base_model" in records else []
    weights = [out.sha256 for out in made if out.path == "models/base"]
    facts |= {"base weights sha256": weights[0]} if weights else {}
    return facts


def _dataset(snapshot: Snapshot, md5: str) -> dict[str, Any]:
    """dataset.json of the prepared data with this DVC hash; empty where it is not here."""
    with contextlib.suppress(ValueError):
        return dict(
            json.loads(hashing.cached_inside(_cache(snapshot.root), md5, "dataset.json") or b"{}")
        )
    return {}


@cache
def _cache(root: Path) -> Path:
    return cache_folder(root)


# --- answers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answers:
    """One model's answers to a task: a value per question, in the order of the questions' ids.

    `questions` is the SHA-256 over ids, prompts and right answers: equal where the questions are.
    """

    questions: str
    values: Values


class Questions:
    """The sets of questions that the compared runs were asked, each kept once.

    A frame (id → prompt, answer).
    """

    def __init__(self) -> None:
        self.sets: dict[str, pd.DataFrame] = {}

    def read(self, run: Run) -> None:
        """Fill in a run's answers, or why there are none."""
        if run.no_answers is None:
            run.answers, run.no_answers = self._answers(run)

    def _answers(self, run: Run) -> tuple[dict[str, Answers], str | None]:
        file, problem = _samples_file(run)
        if file is None:
            return {}, problem
        try:
            columns = ["task", "id", "prompt", "answer", "value"]
            table = read_samples(file.read_bytes(), columns, model=MODEL)
            return {
                str(task): self._one(frame) for task, frame in table.groupby("task", sort=True)
            }, None
        except (
            Exception
        ) as error:  # pyarrow's and pandas' own classes, KeyError: samples as no regrpo wrote them
            return {}, f"{SAMPLES} cannot be read ({type(error).__name__})"

    def _one(self, frame: pd.DataFrame) -> Answers:
        frame = frame.sort_values("id", ignore_index=True)
        if frame["id"].duplicated().any():
            raise ValueError("a question's id repeats")
        asked = [frame[name].tolist() for name in ("id", "prompt", "answer")]
        digest = hashlib.sha256(json.dumps(asked, default=str).encode()).hexdigest()
        self.sets.setdefault(digest, frame.set_index("id")[["prompt", "answer"]])
        return Answers(digest, frame["value"].to_numpy(dtype=float))


def _samples_file(run: Run) -> tuple[Path | None, str | None]:
    """Where a run's samples lie with the MD5 that dvc.lock knows: its workspace or DVC's cache.

    Or why nowhere.
    """
    md5 = _known(run.snapshot.lock()["stages"]["evaluate"]).get(SAMPLES)
    if md5 is None:
        return None, f"dvc.lock knows no {SAMPLES}"
    cached = _cache(run.snapshot.root) / md5[:2] / md5[2:]
    here = [run.snapshot.root / SAMPLES] if run.commit is None else []
    lying = [file for file in [*here, cached] if file.is_file()]
    for file in lying:
        if _md5(file.read_bytes()) == md5:
            return file, None
    fetch = (
        "`dvc pull`"
        if run.commit is None
        else f"`dvc exp pull` or a checkout of {run.commit[:10]} and `dvc pull`"
    )
    where = (
        "neither in the workspace nor in DVC's cache"
        if run.commit is None
        else "not in DVC's cache"
    )
    return (
        None,
        f"{SAMPLES} is changed: its bytes are not dvc.lock's"
        if lying
        else f"{SAMPLES} is {where} ({fetch})",
    )


def completions(run: Run, task: str) -> dict[str, str | None]:
    """{question id: completion} of one task."""
    file, _ = _samples_file(run)
    if file is None:
        return {}
    table = read_samples(file.read_bytes(), ["id", "completion"], model=MODEL, task=task)
    return {str(one): text for one, text in zip(table["id"], table["completion"], strict=True)}


def curve(run: Run, metric: str) -> list[tuple[float, float]]:
    """(optimizer step, value) of a metric of GRPO's history; empty where it was not logged."""
    data = run.snapshot.read(HISTORY)
    if (
        data is None
        or "grpo" not in run.stages
        or _known(run.snapshot.lock()["stages"]["grpo"])[HISTORY] != _md5(data)
    ):
        return []
    points = []
    for row in csv.DictReader(io.StringIO(data.decode())):
        with contextlib.suppress(
            KeyError, TypeError, ValueError
        ):  # not logged at all, or not at this step
            points.append((float(row["step"]), float(row[metric])))
    return points


def _evaluation(
    snapshot: Snapshot, entries: Mapping[str, Any]
) -> tuple[Evaluation | None, str | None]:
    data = _report_bytes(snapshot, entries, "evaluate", METRICS)
    if data is None:
        return None, f"{METRICS} is missing or not the one that dvc.lock knows"
    try:
        return parse_metrics(data), None
    except CannotCheck:
        return None, f"{METRICS} is of another form than this regrpo reads"
