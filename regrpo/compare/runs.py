"""Runs as a comparison sees them, read as plain data.

A run is a pipeline's dvc.lock, records and reports in the workspace, at a git revision or in a DVC
experiment (regrpo.records.find knows where). It counts as far as its stages are finished and belong
together; its answers come from the workspace or DVC's cache, their MD5 checked.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrpo.core.dvc import cache_folder, md5_of, object_path, read_object_inside
from regrpo.core.errors import CannotCheck
from regrpo.core.files import sha256_json
from regrpo.core.pipeline import (
    Misfit,
    Snapshot,
    maker_of,
    misfits,
    out_md5s,
    pipeline_key,
    record_path,
    recorded_params,
    recorded_profile,
)
from regrpo.core.profiles import STAGES
from regrpo.evaluate.results import METRICS, SAMPLES, Evaluation, parse_metrics, read_samples
from regrpo.records.find import Named
from regrpo.records.record import parse_record
from regrpo.tracking.rows import parameters

if TYPE_CHECKING:
    import pandas as pd

    from regrpo.compare.seed_tests import Values

Json = dict[str, Any]
ByStage = Mapping[str, Json]
"""Entries of dvc.lock, or records, by stage in running order."""

MODEL = "grpo"
"""The model whose answers are compared."""
SEEDS = tuple(f"{stage}.seed" for stage in STAGES if stage not in ("validate", "model_card"))
"""The parameters that draw anew and change nothing else."""
HISTORY = "reports/grpo/history.csv"
HEALTH = "reports/grpo/health.json"
SPLIT_COUNTS = "reports/prepare/metrics.json"
BASE_MODEL = "reports/base_model/source.json"
REPORTS = (METRICS, HISTORY, HEALTH, SPLIT_COUNTS, BASE_MODEL)
READ = ("dvc.lock", *(record_path(stage) for stage in STAGES), *REPORTS)
"""All that is read of a run but its answers."""
RAW = ("data/raw", "models/raw")
"""The folders of data and weights that users bring."""


@dataclass
class Run:
    """One run, as far as it is finished.

    problem     why it is not finished, or None
    key         its pipeline key, if it is finished
    params      every parameter as text, by `section.key`
    data        where data and base model come from, and their hashes
    code        SHA-256 of each of the project's own files that the stages read, by path
    revisions   the commits at which its stages ran, the newest first
    diffs       SHA-256 of the uncommitted changes at that time
    packages    versions, of Python and the system too
    made        SHA-256 of each output, by path
    setting     equal for runs that differ in nothing but seeds (before the model card)
    no_answers  why there are no answers to compare, or None
    answers     by task; `Questions.read` fills them in
    """

    name: str
    place: str
    commit: str | None
    snapshot: Snapshot
    problem: str | None
    key: str | None
    profile: str
    params: dict[str, str]
    data: dict[str, str]
    code: dict[str, str]
    revisions: list[str]
    diffs: list[str]
    packages: dict[str, str]
    made: dict[str, str]
    setting: str | None
    ended: str
    health: str | None
    history: bytes | None
    evaluation: Evaluation | None
    no_answers: str | None
    answers: dict[str, Answers] = field(default_factory=dict)


def read_run(named: Named, snapshot: Snapshot) -> Run:
    """A run as far as it is finished; `snapshot` is that of its place, best with READ loaded.

    Raises CannotCheck if its dvc.lock cannot be read or nothing is finished.
    """
    assert named.place is not None
    lock = snapshot.lock()
    records, problem = _finished(snapshot, lock)
    if not records:
        raise CannotCheck(
            named.name,
            expected="a run with at least one finished stage",
            found=str(problem),
            remedy="Name one that `dvc repro` or `dvc exp run` has made.",
        )
    entries = {stage: lock["stages"][stage] for stage in records}
    reports = _reports(snapshot, entries)
    outside = _inputs_from_outside(records, entries)
    newest_first = sorted(records.values(), key=lambda record: record["started"], reverse=True)
    revisions = [record["code"]["revision"] or "(no git)" for record in newest_first]
    diffs = {record["code"].get("diff_sha256") for record in newest_first}
    evaluation, no_answers = _evaluation(reports)
    if "evaluate" not in records:
        no_answers = f"it is not evaluated ({problem})"
    return Run(
        name=named.name,
        place=named.place.name,
        commit=snapshot.revision,
        snapshot=snapshot,
        problem=problem,
        key=None if problem else pipeline_key(lock),
        profile=recorded_profile(entries),
        params=parameters(recorded_params(entries)),
        data=_data(snapshot, records, entries, reports) | _raw_data(outside),
        code={path: sha256 for path, sha256 in outside.items() if path not in RAW},
        revisions=list(dict.fromkeys(revisions)),
        diffs=sorted(diffs - {None}),
        packages=_packages(records),
        made=_made(records),
        setting=_setting(records, entries) if "evaluate" in records else None,
        ended=max(record["ended"] for record in records.values()),
        health=_json(reports, HEALTH).get("verdict"),
        history=reports.get(HISTORY),
        evaluation=evaluation,
        no_answers=no_answers,
    )


def _finished(snapshot: Snapshot, lock: Json) -> tuple[dict[str, Json], str | None]:
    """The records of the stages that belong to one pipeline, and what ends them before the last."""
    data = snapshot.record_bytes()
    records: dict[str, Json] = {}
    unreadable: dict[str, str] = {}
    for stage, content in data.items():
        path = record_path(stage)
        try:
            _, records[stage] = parse_record(content, path)
        except CannotCheck as error:
            unreadable[stage] = f"{path} is {error.found}"
    found = misfits(lock, data, records)
    if not found:
        return records, None
    first = found[0]
    finished = STAGES[: STAGES.index(first.stage)]
    problem = unreadable.get(first.stage) or _unfinished(first)
    return {stage: records[stage] for stage in finished}, problem


def _unfinished(misfit: Misfit) -> str:
    if misfit.kind == "entry":
        return f"unfinished: dvc.lock does not hold {misfit.stage}"
    if misfit.kind == "record":
        return f"unfinished: there is no record of {misfit.stage}"
    if misfit.kind == "input":
        return f"unfinished: {misfit.stage} was last run with another {misfit.path}"
    return f"unfinished or altered: {misfit.path} is not the record that dvc.lock knows"


def _reports(snapshot: Snapshot, entries: ByStage) -> dict[str, bytes]:
    """Those of REPORTS that are here and are the ones that dvc.lock knows."""
    md5s: dict[str, str] = {}
    for entry in entries.values():
        md5s |= out_md5s(entry)
    here = snapshot.read_all(REPORTS)
    return {path: data for path, data in here.items() if md5_of(data) == md5s.get(path)}


def _json(reports: Mapping[str, bytes], path: str) -> Json:
    content: Json = json.loads(reports.get(path, b"{}"))
    return content


def _evaluation(reports: Mapping[str, bytes]) -> tuple[Evaluation | None, str | None]:
    """The evaluation's results, or why there are none."""
    if METRICS not in reports:
        return None, f"{METRICS} is missing or not the one that dvc.lock knows"
    try:
        return parse_metrics(reports[METRICS]), None
    except CannotCheck:
        return None, f"{METRICS} is of another form than this regrpo reads"


# --- what made it ---------------------------------------------------------------------------------


def _inputs_from_outside(records: ByStage, entries: ByStage) -> dict[str, str]:
    """{path: SHA-256} of what stages read and no stage made: files, the folders of RAW whole."""
    made = {stage: out_md5s(entry) for stage, entry in entries.items()}
    found: dict[str, str] = {}
    for record in records.values():
        for item in record["inputs"]:
            path, files = item["path"], item.get("files")
            if maker_of(path, made) is not None:
                continue
            if files is None or path in RAW:
                found[path] = item["sha256"]
            else:
                found |= {f"{path}/{name}": sha256 for name, sha256 in files.items()}
    return found


def _setting(records: ByStage, entries: ByStage) -> str:
    """SHA-256 over all that decides the results but the seeds: parameters, commands, inputs."""
    # The card comes after the results: its code and parameters make no other setting.
    before = {stage: record for stage, record in records.items() if stage != "model_card"}
    params = parameters(recorded_params({stage: entries[stage] for stage in before}))
    for seed in SEEDS:
        params.pop(seed, None)
    commands = [record["command"] for record in before.values()]
    return sha256_json([params, commands, _inputs_from_outside(before, entries)])


def _packages(records: ByStage) -> dict[str, str]:
    """{package, python, system, …: version}; all versions, if the stages had several."""
    versions: dict[str, set[str]] = {}
    for record in records.values():
        facts = dict(record["environment"])
        del facts["sha256"]  # it is over the rest
        facts |= facts.pop("packages")
        for name, version in facts.items():
            text = version if isinstance(version, str) else json.dumps(version)
            versions.setdefault(name, set()).add(text)
    return {name: ", ".join(sorted(several)) for name, several in versions.items()}


def _made(records: ByStage) -> dict[str, str]:
    made: dict[str, str] = {}
    for record in records.values():
        made |= {out["path"]: out["sha256"] for out in record["outputs"]}
    return made


def _data(
    snapshot: Snapshot, records: ByStage, entries: ByStage, reports: Mapping[str, bytes]
) -> dict[str, str]:
    """Source, revision, rows, hashes of the data; source, revision and hash of the base model."""
    folder = out_md5s(entries["prepare"])["data/prepared"]
    dataset = read_object_inside(_cache(snapshot.root), folder, "dataset.json") or b"{}"
    names = ("source", "revision", "verifier", "prompt_style")
    facts = _named("data", json.loads(dataset), names)
    counts = _json(reports, SPLIT_COUNTS)
    for out in records["prepare"]["outputs"]:
        for name, sha256 in sorted((out.get("files") or {}).items()):
            split, _, suffix = name.rpartition(".")
            if suffix != "parquet":
                continue
            if split in counts:
                facts[f"{split} rows"] = str(counts[split]["rows"])
            facts[f"{split} sha256"] = sha256
    facts |= _named("base model", _json(reports, BASE_MODEL), ("source", "revision", "parameters"))
    base = _made(records).get("models/base")
    if base is not None:
        facts["base weights sha256"] = base
    return facts


def _named(what: str, content: Json, names: Iterable[str]) -> dict[str, str]:
    return {f"{what} {name}": str(content[name]) for name in names if name in content}


def _raw_data(outside: Mapping[str, str]) -> dict[str, str]:
    return {f"{path} sha256": outside[path] for path in RAW if path in outside}


@cache
def _cache(root: Path) -> Path:
    # A sweep asks for it once a run, and reading DVC's configuration takes milliseconds.
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
    """The sets of questions that the compared runs were given, each kept once.

    `sets` has them by their SHA-256, as frames of prompt and answer with the id as index.
    """

    def __init__(self) -> None:
        self.sets: dict[str, pd.DataFrame] = {}

    def read(self, run: Run) -> None:
        """Fill in a run's answers, or why there are none."""
        if run.no_answers is not None:
            return
        columns = ["task", "id", "prompt", "answer", "value"]
        try:
            table = read_samples(_samples(run), columns, model=MODEL)
            for task, frame in table.groupby("task", sort=True):
                run.answers[str(task)] = self._answers(frame)
        except CannotCheck as error:
            run.no_answers = error.found
        # Samples that no regrpo wrote: pyarrow and pandas raise classes of their own.
        except Exception as error:
            run.answers = {}
            run.no_answers = f"{SAMPLES} cannot be read ({type(error).__name__})"

    def _answers(self, frame: pd.DataFrame) -> Answers:
        frame = frame.sort_values("id", ignore_index=True)
        if frame["id"].duplicated().any():
            raise ValueError("a question's id repeats")
        columns = [frame[name].tolist() for name in ("id", "prompt", "answer")]
        digest = hashlib.sha256(json.dumps(columns, default=str).encode()).hexdigest()
        self.sets.setdefault(digest, frame.set_index("id")[["prompt", "answer"]])
        return Answers(digest, frame["value"].to_numpy(dtype=float))


def completions(run: Run, task: str) -> dict[str, str | None]:
    """{question id: completion} of one task of a run that has answers."""
    table = read_samples(_samples(run), ["id", "completion"], model=MODEL, task=task)
    return dict(zip(table["id"], table["completion"], strict=True))


def curve(run: Run, metric: str) -> list[tuple[float, float]]:
    """(optimizer step, value) of a metric of GRPO's history; empty if it was not logged."""
    if run.history is None:
        return []
    points = []
    for row in csv.DictReader(io.StringIO(run.history.decode())):
        if row.get(metric):  # empty at the steps at which it was not logged
            points.append((float(row["step"]), float(row[metric])))
    return points


def _samples(run: Run) -> bytes:
    """samples.parquet with the MD5 that dvc.lock knows, from the workspace or DVC's cache.

    Raises CannotCheck, whose `found` says why there is none.
    """
    md5 = out_md5s(run.snapshot.lock()["stages"]["evaluate"])[SAMPLES]
    places = [object_path(_cache(run.snapshot.root), md5)]
    if run.commit is None:
        places.insert(0, run.snapshot.root / SAMPLES)
        where, fetch = "neither in the workspace nor in DVC's cache", "`dvc pull`"
    else:
        where = "not in DVC's cache"
        fetch = f"`dvc exp pull` or a checkout of {run.commit[:10]} and `dvc pull`"
    found = f"{SAMPLES} is {where} ({fetch})"
    for place in places:
        if place.is_file():
            data = place.read_bytes()
            if md5_of(data) == md5:
                return data
            found = f"{SAMPLES} is changed: its bytes are not dvc.lock's"
    raise CannotCheck(
        SAMPLES, expected="the answers that dvc.lock knows", found=found, remedy=f"Get it: {fetch}."
    )
