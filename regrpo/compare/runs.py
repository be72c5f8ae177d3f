"""Runs as a comparison sees them.

Read as plain data; names are found by regrpo.records.find.

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
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from regrpo.core import files
from regrpo.core.dvc import cache_folder, md5_of, object_path, read_object_inside
from regrpo.core.errors import CannotCheck
from regrpo.core.pipeline import (
    Misfit,
    Snapshot,
    misfits,
    out_md5s,
    pipeline_key,
    record_path,
)
from regrpo.core.profiles import STAGES
from regrpo.evaluate.results import METRICS, SAMPLES, Evaluation, parse_metrics, read_samples
from regrpo.records.find import Named
from regrpo.records.record import Record, parse_record
from regrpo.tracking import rows

if TYPE_CHECKING:
    import pandas as pd

    from regrpo.compare.seed_tests import Values

MODEL = "grpo"
"""The model whose answers are compared."""
RECORDS = tuple(record_path(stage) for stage in STAGES)
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


@dataclass
class Run:
    """One run. `stages` are those that are finished and belong together.

    `problem` says what of it is missing.

    `params` is flat ({section.key: text}), `code` the project's own files that the stages read
    (path → SHA-256), `data` where the data and the base model come from and their hashes, `packages`
    the environment, `made` the SHA-256 of each output. Runs of one `setting` differ in seeds alone
    (in what comes before the evaluation's numbers).
    """

    name: str
    place: str
    commit: str | None
    snapshot: Snapshot
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


def read_run(named: Named, snapshot: Snapshot) -> Run:
    """A run as far as it is finished.

    Raises CannotCheck where its dvc.lock cannot be read or nothing is finished.
    """
    assert named.place is not None
    lock = snapshot.lock()
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
    run.code = _code(records)
    if "evaluate" in entries:
        run.setting = _setting(entries, records)
    run.revisions = list(
        dict.fromkeys(record.code.revision or "(no git)" for record in _by_time(records))
    )
    run.diffs = sorted(
        {record.code.diff_sha256 for record in records.values() if record.code.diff_sha256}
    )
    run.packages = _environment(records)
    run.ended = max(record.ended for record in records.values())
    run.data = _data(snapshot, entries, records) | _raw(entries)
    health = _report(snapshot, entries, "grpo", "reports/grpo/health.json")
    run.health = str(health.get("verdict")) if isinstance(health, dict) else None
    if "evaluate" in entries:
        run.evaluation, run.no_answers = _evaluation(snapshot, entries)
    else:
        run.no_answers = f"it is not evaluated ({run.problem})"
    return run


def _finished(snapshot: Snapshot, lock: Mapping[str, Any]) -> tuple[dict[str, Record], str | None]:
    """The records of the stages that belong to one pipeline, and what ends them before the last."""
    data = snapshot.record_bytes()
    records: dict[str, Record] = {}
    written: dict[str, dict[str, Any]] = {}
    unreadable: dict[str, str] = {}
    for stage, one in data.items():
        path = record_path(stage)
        try:
            records[stage], written[stage] = parse_record(one, path)
        except CannotCheck as error:
            unreadable[stage] = f"{path} is {error.found}"
    for misfit in misfits(lock, data, written):
        finished = STAGES[: STAGES.index(misfit.stage)]
        problem = unreadable.get(misfit.stage) or _unfinished(misfit)
        return {stage: records[stage] for stage in finished}, problem
    return records, None


def _unfinished(misfit: Misfit) -> str:
    if misfit.kind == "entry":
        return f"unfinished: dvc.lock does not hold {misfit.stage}"
    if misfit.kind == "record":
        return f"unfinished: there is no record of {misfit.stage}"
    if misfit.kind == "input":
        return f"unfinished: {misfit.stage} was last run with another {misfit.path}"
    return f"unfinished or altered: {misfit.path} is not the record that dvc.lock knows"


def _by_time(records: Mapping[str, Record]) -> list[Record]:
    return sorted(records.values(), key=lambda record: record.started, reverse=True)


def _code(records: Mapping[str, Record]) -> dict[str, str]:
    """The project's files that stages read: path → SHA-256, a folder's files one by one."""
    made = {out.path for record in records.values() for out in record.outputs}
    made |= {record_path(stage) for stage in records}
    code: dict[str, str] = {}
    for record in records.values():
        for item in record.inputs:
            around = {item.path, *map(str, PurePosixPath(item.path).parents)}
            if item.path in RAW or around & made:
                continue
            if item.files is None:
                code[item.path] = item.sha256
            else:
                code |= {f"{item.path}/{name}": digest for name, digest in item.files.items()}
    return code


def _raw(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """The folders of raw data that stages read, with DVC's MD5."""
    deps = [dep for entry in entries.values() for dep in entry.get("deps", [])]
    return {f"{dep['path']} md5": dep["md5"] for dep in deps if dep["path"] in RAW}


def _setting(entries: Mapping[str, Mapping[str, Any]], records: Mapping[str, Record]) -> str:
    """SHA-256 over all that the stages before the card read from outside, but the seeds."""
    # The card comes after the evaluation's numbers and cannot change them.
    entries = {stage: entry for stage, entry in entries.items() if stage != "model_card"}
    records = {stage: record for stage, record in records.items() if stage != "model_card"}
    sections = {
        name: one
        for entry in entries.values()
        for many in entry["params"].values()
        for name, one in many.items()
    }
    told = {name: value for name, value in rows.parameters(sections).items() if name not in SEEDS}
    return files.sha256_json(
        [told, [entry["cmd"] for entry in entries.values()], _code(records), _raw(entries)]
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
    if data is None or stage not in entries or out_md5s(entries[stage]).get(path) != md5_of(data):
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
    about = _dataset(snapshot, out_md5s(entries["prepare"])["data/prepared"])
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
            json.loads(read_object_inside(_cache(snapshot.root), md5, "dataset.json") or b"{}")
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
    md5 = out_md5s(run.snapshot.lock()["stages"]["evaluate"]).get(SAMPLES)
    if md5 is None:
        return None, f"dvc.lock knows no {SAMPLES}"
    cached = object_path(_cache(run.snapshot.root), md5)
    here = [run.snapshot.root / SAMPLES] if run.commit is None else []
    lying = [file for file in [*here, cached] if file.is_file()]
    for file in lying:
        if md5_of(file.read_bytes()) == md5:
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
        or out_md5s(run.snapshot.lock()["stages"]["grpo"])[HISTORY] != md5_of(data)
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
