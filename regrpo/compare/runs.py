"""Runs as a comparison sees them, read as plain data.

A run is a pipeline's dvc.lock, records and reports in the workspace, at a git revision or in a DVC
experiment (regrpo.records.find knows where). It counts as far as its stages are finished and belong
together; its answers come from the workspace or DVC's cache, their MD5 checked.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrpo.core.dvc import cache_folder, md5_of, read_object, read_object_inside
from regrpo.core.errors import CannotCheck, parsing
from regrpo.core.files import RESTORE, file_hashes, parse_history, sha256_json
from regrpo.core.pipeline import (
    RAW,
    Misfit,
    Snapshot,
    maker_of,
    misfits,
    out_md5s,
    record_path,
    recorded_params,
)
from regrpo.core.profiles import STAGES
from regrpo.evaluate.results import METRICS, SAMPLES, Evaluation, parse_metrics, read_samples
from regrpo.records.find import Named
from regrpo.records.record import parse_record
from regrpo.tracking.rows import parameters

if TYPE_CHECKING:
    import pandas as pd

Json = dict[str, Any]
ByStage = Mapping[str, Json]
"""Entries of dvc.lock, or records, by stage in running order."""
Curve = list[tuple[float, float]]
"""(optimizer step, value)."""

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

NOT_EVALUATED = Evaluation(headline=None, tasks={})


@dataclass
class Run:
    """One run, as far as it is finished.

    problem     why it is not finished, or None
    records     those of its finished stages, in running order
    entries     dvc.lock's entries of the same stages
    reports     those of REPORTS that are here and are the ones that dvc.lock knows
    no_answers  why there are no answers to compare, or None
    answers     by task (see `read_answers`)
    """

    name: str
    place: str
    snapshot: Snapshot
    problem: str | None
    records: ByStage
    entries: ByStage
    reports: Mapping[str, bytes]
    evaluation: Evaluation = NOT_EVALUATED
    no_answers: str | None = None
    answers: dict[str, pd.DataFrame] = field(default_factory=dict)

    @cached_property
    def params(self) -> dict[str, str]:
        """Every parameter as text, by `section.key`."""
        return parameters(recorded_params(self.entries))

    @cached_property
    def made(self) -> dict[str, str]:
        """SHA-256 of each output, by path."""
        made: dict[str, str] = {}
        for record in self.records.values():
            made |= {out["path"]: out["sha256"] for out in record["outputs"]}
        return made

    @cached_property
    def setting(self) -> str | None:
        """Equal for runs that differ in nothing but seeds; None before the evaluation.

        SHA-256 over all that decides the results: parameters, commands, inputs.
        """
        if "evaluate" not in self.records:
            return None
        # The card comes after the results: its code and parameters make no other setting.
        commands = {name: record["command"] for name, record in self.records.items()}
        commands.pop("model_card", None)
        inputs = _inputs_from_outside(self, commands)
        return sha256_json([settings(self), commands, inputs])

    @property
    def inputs(self) -> dict[str, str]:
        """{path: SHA-256} of what its stages read and no stage made: files, RAW's folders whole."""
        return _inputs_from_outside(self, self.records)

    def json(self, path: str) -> Json:
        """A report's content; empty if it is not here."""
        with parsing(path, "JSON", RESTORE):
            content: Json = json.loads(self.reports.get(path, b"{}"))
        return content


def settings(run: Run) -> dict[str, str]:
    """The parameters that decide the results, but for the seeds."""
    return {
        name: value
        for name, value in run.params.items()
        if name not in SEEDS and not name.startswith("model_card.")
    }


def read_run(named: Named, snapshot: Snapshot) -> Run:
    """A run as far as it is finished; `snapshot` is that of its place, best with READ loaded.

    Raises CannotCheck if its dvc.lock cannot be read or nothing is finished.
    """
    assert named.place is not None  # noqa: S101  (tells mypy a type, checks no input)
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
    run = Run(named.name, named.place.name, snapshot, problem, records, entries, reports)
    if "evaluate" not in records:
        run.no_answers = f"it is not evaluated ({problem})"
    elif METRICS not in reports:
        run.no_answers = f"{METRICS} is missing or not the one that dvc.lock knows"
    else:
        try:
            run.evaluation = parse_metrics(reports[METRICS])
        except CannotCheck:
            run.no_answers = f"{METRICS} is of another form than this regrpo reads"
    return run


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
    md5s: dict[str, str] = {}
    for entry in entries.values():
        md5s |= out_md5s(entry)
    here = snapshot.read_all(REPORTS)
    return {path: data for path, data in here.items() if md5_of(data) == md5s.get(path)}


# --- what made it ---------------------------------------------------------------------------------


def _inputs_from_outside(run: Run, stages: Iterable[str]) -> dict[str, str]:
    """{path: SHA-256} of what these stages read and no stage made."""
    made = {stage: out_md5s(entry) for stage, entry in run.entries.items()}
    found: dict[str, str] = {}
    for stage in stages:
        for item in run.records[stage]["inputs"]:
            if item["path"] in RAW:
                found[item["path"]] = item["sha256"]
            elif maker_of(item["path"], made) is None:
                found |= file_hashes(item)
    return found


def packages(run: Run) -> dict[str, str]:
    """{package, python, system, …: version}; all versions, if the stages had several."""
    versions: dict[str, dict[str, None]] = {}
    for record in run.records.values():
        facts = record["environment"] | record["environment"]["packages"]
        for name in facts.keys() - {"packages", "sha256"}:
            version = facts[name]
            text = version if isinstance(version, str) else json.dumps(version)
            versions.setdefault(name, {})[text] = None
    return {name: ", ".join(versions[name]) for name in sorted(versions)}


def data_facts(run: Run) -> dict[str, str]:
    """Source, revision, rows, hashes of the data; source, revision and hash of the base model."""
    folder = out_md5s(run.entries["prepare"])["data/prepared"]
    dataset = read_object_inside(_cache(run.snapshot.root), folder, "dataset.json") or b"{}"
    names = ("source", "revision", "verifier", "prompt_style")
    facts = _named("data", json.loads(dataset), names)
    counts = run.json(SPLIT_COUNTS)
    for out in run.records["prepare"]["outputs"]:
        for path, sha256 in sorted(file_hashes(out).items()):
            split = Path(path).stem
            if not path.endswith(".parquet"):
                continue
            if split in counts:
                facts[f"{split} rows"] = str(counts[split]["rows"])
            facts[f"{split} sha256"] = sha256
    facts |= _named("base model", run.json(BASE_MODEL), ("source", "revision", "parameters"))
    if "models/base" in run.made:
        facts["base weights sha256"] = run.made["models/base"]
    inputs = run.inputs
    return facts | {f"{path} sha256": inputs[path] for path in RAW if path in inputs}


def _named(what: str, content: Json, names: Iterable[str]) -> dict[str, str]:
    return {f"{what} {name}": str(content[name]) for name in names if name in content}


@cache
def _cache(root: Path) -> Path:
    # A sweep asks for it once a run, and reading DVC's configuration takes milliseconds.
    return cache_folder(root)


# --- answers --------------------------------------------------------------------------------------


def read_answers(run: Run) -> None:
    """Fill in a run's answers by task, as `stats.pair_answers` takes them, or why there are none.

    Of prompts and right answers the frames hold hashes: whether they are the same is all that is
    asked, and the texts of a whole sweep may be more than memory holds.
    """
    from pandas.util import hash_array

    if run.no_answers is not None:
        return
    try:
        table = read_samples(
            _samples(run), ["task", "id", "prompt", "answer", "value"], model=MODEL
        )
        for name in ("prompt", "answer"):
            # A column of nothing but None, as a subset may have, is of another type than text.
            texts = table[name].fillna("(none)").map(str)
            table[name] = hash_array(texts.to_numpy(dtype=object))
        for task, frame in table.groupby("task"):
            if frame["id"].duplicated().any():
                raise ValueError("a question's id repeats")
            run.answers[str(task)] = frame.set_index("id")
    except CannotCheck as error:
        run.no_answers = error.found
    # Samples that no regrpo wrote: pyarrow and pandas raise classes of their own.
    except Exception as error:
        run.answers = {}
        run.no_answers = f"{SAMPLES} cannot be read ({type(error).__name__})"


def read_texts(run: Run, task: str) -> pd.DataFrame:
    """Prompt, answer and completion of a task's questions, by their ids."""
    columns = ["id", "prompt", "answer", "completion"]
    return read_samples(_samples(run), columns, model=MODEL, task=task).set_index("id")


def curve(run: Run, metric: str) -> Curve:
    """A metric of GRPO's history at the steps at which it was logged; empty if that is damaged."""
    with contextlib.suppress(ValueError):
        history = parse_history(run.reports.get(HISTORY, b""))
        return [(row["step"], row[metric]) for row in history if metric in row]
    return []


def _samples(run: Run) -> bytes:
    """samples.parquet with the MD5 that dvc.lock knows, from the workspace or DVC's cache.

    Raises CannotCheck, whose `found` says that there is none.
    """
    snapshot = run.snapshot
    md5 = out_md5s(snapshot.lock()["stages"]["evaluate"])[SAMPLES]
    data = snapshot.read(SAMPLES)
    if data is None or md5_of(data) != md5:
        data = read_object(_cache(snapshot.root), md5)
    if data is not None:
        return data
    where, fetch = "neither in the workspace nor in DVC's cache", "`dvc pull`"
    if not snapshot.is_workspace:
        where = "not in DVC's cache"
        fetch = f"`dvc exp pull` or a checkout of {str(snapshot.revision)[:10]} and `dvc pull`"
    raise CannotCheck(
        SAMPLES,
        expected="the answers that dvc.lock knows",
        found=f"{SAMPLES} is {where}, or altered there ({fetch})",
        remedy=f"Get it: {fetch}.",
    )
