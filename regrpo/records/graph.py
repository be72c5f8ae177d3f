"""The lineage graph: which run made what from what, over workspace, commits and DVC experiments.

Nodes are runs and artifacts (a path with a SHA-256); an artifact that two pipelines share is one
node, so that a query downstream of a dataset's hash finds the models of every experiment. Needs git
and the run.json files, nothing else.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from regrpo.core import text
from regrpo.core.errors import CannotCheck
from regrpo.core.files import Json
from regrpo.core.pipeline import hashes, record_path
from regrpo.core.profiles import STAGES
from regrpo.records.find import Place, names_run, runs_in
from regrpo.records.record import parse_record

Direction = Literal["upstream", "downstream"]
CODE = ("stages/", "regrpo/")
"""Inputs that a drawn graph leaves to the code's revision."""


class Artifact(NamedTuple):
    """A file or folder by its content; runs made it, or it is a source."""

    path: str
    sha256: str

    @property
    def id(self) -> str:
        """Its name in a graph."""
        return f"{self.path}@{self.sha256[:16]}"

    @property
    def short_name(self) -> str:
        """Its path and the first digits of its SHA-256."""
        return f"{text.one_line(self.path, 200)} {self.sha256[:8]}"


Parts = dict[Artifact, Artifact]
"""Each recorded input or output, and each file inside one → the input or output as a whole."""


@dataclass
class RecordedRun:
    """One executed stage, and the names of the places that hold its results."""

    stage: str
    run: str
    mlflow_run_id: str | None
    revision: str | None
    started: str
    ended: str
    read: Parts = field(default_factory=dict)
    made: Parts = field(default_factory=dict)
    places: list[str] = field(default_factory=list)

    @property
    def short_id(self) -> str:
        """The first digits of MLflow's id, or of ours if MLflow has none."""
        return (self.mlflow_run_id or self.run)[:12]

    @property
    def outputs(self) -> list[Artifact]:
        """What it made, its record included."""
        return list(dict.fromkeys(self.made.values()))

    @property
    def order(self) -> tuple[int, str]:
        """What sorts runs by their place in the pipeline, then by their start."""
        return (*STAGES, self.stage).index(self.stage), self.started


@dataclass(frozen=True)
class Graph:
    """Runs by id, in stage order, and of each what it read and the runs that made that.

    An input that is a file inside an output folder stands as that folder.
    """

    runs: dict[str, RecordedRun]
    inputs: dict[str, list[Artifact]]
    made_from: dict[str, list[str]]

    @property
    def artifacts(self) -> list[Artifact]:
        """All that the runs made or read."""
        found: dict[Artifact, None] = {}
        for name, run in self.runs.items():
            found |= dict.fromkeys(run.outputs + self.inputs[name])
        return list(found)

    def makers(self, artifact: Artifact) -> list[str]:
        """The runs that made an artifact, or a folder with that file."""
        return [name for name, run in self.runs.items() if artifact in run.made]

    def readers(self, artifact: Artifact) -> list[str]:
        """The runs that read an artifact, a folder with that file, or a file of that folder."""
        readers = []
        for name, run in self.runs.items():
            if artifact in run.read or artifact in self.inputs[name]:
                readers.append(name)
        return readers

    def next_runs(self, run: str, direction: Direction) -> list[str]:
        """The makers of a run's inputs (upstream), or readers of its outputs, in stage order."""
        if direction == "upstream":
            return self.made_from[run]
        return [reader for reader, makers in self.made_from.items() if run in makers]

    def reach(self, start: Iterable[str], direction: Direction) -> set[str]:
        """The runs that can be reached from runs, themselves included."""
        todo = list(start)
        seen: set[str] = set()
        while todo:
            run = todo.pop()
            if run not in seen:
                seen.add(run)
                todo += self.next_runs(run, direction)
        return seen

    def part(self, runs: Collection[str]) -> Graph:
        """The graph of some runs, tied to one another as they are here."""
        kept = {name: run for name, run in self.runs.items() if name in runs}
        made_from = {}
        for name in kept:
            made_from[name] = [maker for maker in self.made_from[name] if maker in kept]
        return Graph(kept, self.inputs, made_from)


# --- how it is read -------------------------------------------------------------------------------


def of_places(places: Iterable[Place]) -> Graph:
    """The graph of everything that the records in these places say.

    A record that cannot be read is left out.
    """
    runs: dict[str, RecordedRun] = {}
    by_record: dict[bytes, RecordedRun | None] = {}  # most commits hold the records of others
    for place in places:
        for stage, data in place.snapshot.record_bytes().items():
            if data not in by_record:
                by_record[data] = _add_record(runs, stage, data)
            run = by_record[data]
            if run is not None and place.name not in run.places:
                run.places.append(place.name)
    return of_runs(runs.values())


def _add_record(runs: dict[str, RecordedRun], stage: str, data: bytes) -> RecordedRun | None:
    """The run of a record; one that was written anew is of the same run."""
    try:
        record, content = parse_record(data, stage)
    except CannotCheck:
        return None
    new = RecordedRun(
        record.stage,
        record.run,
        record.mlflow_run_id,
        record.code.revision,
        record.started,
        record.ended,
    )
    run = runs.setdefault(record.run, new)
    own = {"path": record_path(record.stage), "sha256": hashlib.sha256(data).hexdigest()}
    run.read |= _parts(content["inputs"])
    run.made |= _parts([*content["outputs"], own])
    return run


def _parts(items: Iterable[Json]) -> Parts:
    parts = {}
    for item in items:
        for part in hashes(item).items():
            parts[Artifact(*part)] = Artifact(item["path"], item["sha256"])
    return parts


def of_runs(runs: Iterable[RecordedRun]) -> Graph:
    """The graph of runs as if there were no others."""
    ordered = {run.run: run for run in sorted(runs, key=lambda run: run.order)}
    makers: dict[Artifact, list[RecordedRun]] = {}
    for run in ordered.values():
        for artifact in run.made:
            makers.setdefault(artifact, []).append(run)
    graph = Graph(ordered, {}, {})
    for name, run in ordered.items():
        inputs: dict[Artifact, None] = {}
        before: set[str] = set()
        for artifact in run.read.values():
            made_by = _made_for(run, makers.get(artifact, []))
            inputs |= dict.fromkeys([maker.made[artifact] for maker in made_by] or [artifact])
            before.update(maker.run for maker in made_by)
        graph.inputs[name] = list(inputs)
        graph.made_from[name] = [maker for maker in ordered if maker in before - {name}]
    return graph


def _made_for(reader: RecordedRun, makers: list[RecordedRun]) -> list[RecordedRun]:
    """Of several makers of an input those in one of the reader's places, the last before it.

    If several runs made the very same artifact, only those of the reader's own pipeline and it
    belong together.
    """
    own = [maker for maker in makers if not set(maker.places).isdisjoint(reader.places)]
    if not own:
        return makers
    earlier = [maker for maker in own if maker.ended <= reader.started] or own
    last = max(maker.ended for maker in earlier)
    return [maker for maker in earlier if maker.ended == last]


# --- what is looked up in it ----------------------------------------------------------------------


def ask(
    graph: Graph, target: str | None, find: Callable[[str], Place], direction: Direction
) -> tuple[Graph, list[str]]:
    """The part of the graph that answers, and the runs that it starts from.

    `target`: an artifact (path, or SHA-256 from 6 digits on), a run, or a pipeline (None: the
    workspace's; else a name for `find`). Upstream of an artifact are the runs that made it,
    downstream those that read it; upstream of a pipeline are its own runs, whatever others made the
    same. Raises CannotCheck if nothing of that name is known.
    """
    starts, own = _starts(graph, target, find, direction)
    if own is not None and direction == "upstream":
        graph = of_runs(graph.runs[name] for name in own)
    if starts is None:
        starts = _ends(graph, own or set(), direction)
    starts = [name for name in graph.runs if name in starts]
    return graph.part(graph.reach(starts, direction)), starts


def _starts(
    graph: Graph, target: str | None, find: Callable[[str], Place], direction: Direction
) -> tuple[Collection[str] | None, set[str] | None]:
    """The runs to start from (None: the pipeline's ends), and the one pipeline meant."""
    here = {name for name, run in graph.runs.items() if "workspace" in run.places}
    if target is None:
        return None, here
    named = [run for run in graph.runs.values() if names_run(target, run.run, run.mlflow_run_id)]
    if named:
        return [run.run for run in named], None
    if target in STAGES:
        return [name for name in here if graph.runs[name].stage == target], here
    artifacts = _matching(graph, target.rstrip("/"))
    if not artifacts:
        return None, set(runs_in(find(target).snapshot)) & set(graph.runs)
    runs: set[str] = set()
    for artifact in artifacts:
        runs.update(graph.makers(artifact) if direction == "upstream" else graph.readers(artifact))
    # A path means what lies here; a hash means every pipeline that has it.
    return runs, here if here & runs and not _is_hash(target) else None


def _is_hash(target: str) -> bool:
    return re.fullmatch("[0-9a-f]{6,64}", target) is not None


def _matching(graph: Graph, target: str) -> set[Artifact]:
    """The artifacts of that SHA-256, or of that path: those of the workspace, if it has any."""
    here: set[Artifact] = set()
    anywhere: set[Artifact] = set()
    for run in graph.runs.values():
        for artifact in (*run.made, *run.read):
            if artifact.path == target or (_is_hash(target) and artifact.sha256.startswith(target)):
                anywhere.add(artifact)
                if "workspace" in run.places:
                    here.add(artifact)
    return anywhere if _is_hash(target) else here or anywhere


def _ends(graph: Graph, runs: Collection[str], direction: Direction) -> list[str]:
    """Of some runs, those that no other of them comes after (upstream), or before (downstream)."""
    against: Direction = "downstream" if direction == "upstream" else "upstream"
    return [run for run in runs if not set(runs) & set(graph.next_runs(run, against))]


# --- how it is shown ------------------------------------------------------------------------------


def label(run: RecordedRun) -> str:
    """A run in one line: its stage, id, places, and what it made."""
    record = record_path(run.stage)
    outputs = [output.short_name for output in run.outputs if output.path != record]
    made = ", ".join(name.removeprefix(f"reports/{run.stage}/") for name in outputs)
    places = text.one_line(text.some(run.places))
    return f"{run.stage}  run {run.short_id}  [{places}]  → {made}"


def sources(graph: Graph, run: str) -> list[Artifact]:
    """A run's inputs that no stage made and that are no code of the stages."""
    inputs = [one for one in graph.inputs[run] if not one.path.startswith(CODE)]
    return [one for one in inputs if not graph.makers(one)]


def tree(graph: Graph, runs: list[str], direction: Direction) -> Iterator[str]:
    """Lines of text; a run that was shown is named again without what follows it."""
    seen: set[str] = set()
    for run in runs:
        if run not in seen:
            yield from _branch(graph, run, direction, seen)


def _branch(graph: Graph, run: str, direction: Direction, seen: set[str]) -> Iterator[str]:
    """A run's line, and below it, indented, the lines of its sources and of the next runs."""
    if run in seen:
        yield f"{graph.runs[run].stage}  run {graph.runs[run].short_id} (above)"
        return
    seen.add(run)
    yield label(graph.runs[run])
    blocks: list[Iterable[str]] = []
    if direction == "upstream":
        blocks += [[source.short_name] for source in sources(graph, run)]
    # Generators: a run is drawn where the walk comes to it first.
    blocks += [_branch(graph, one, direction, seen) for one in graph.next_runs(run, direction)]
    for index, block in enumerate(blocks):
        is_last = index == len(blocks) - 1
        turn, indent = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
        for line in block:
            yield turn + line
            turn = indent


def mermaid(graph: Graph) -> str:
    """A Mermaid flowchart: runs rounded, artifacts square; no code, and no stage's own record."""
    artifacts = [one for one in graph.artifacts if not one.path.startswith(CODE)]
    artifacts = [one for one in artifacts if not one.path.endswith("/run.json")]
    nodes: list[str | Artifact] = [*graph.runs, *artifacts]
    names = {node: f"n{index}" for index, node in enumerate(nodes)}
    lines = ["flowchart LR"]
    for run in graph.runs.values():
        lines.append(f'  {names[run.run]}(["{run.stage}<br/>run {run.short_id}"])')
    for one in artifacts:
        lines.append(f'  {names[one]}["{text.mermaid(one.path)}<br/>{one.sha256[:12]}"]')
    for name, run in graph.runs.items():
        lines += [f"  {names[one]} --> {names[name]}" for one in graph.inputs[name] if one in names]
        lines += [f"  {names[name]} --> {names[one]}" for one in run.outputs if one in names]
    return "\n".join(lines)


def plain(graph: Graph) -> Json:
    """The graph as plain data."""
    runs = []
    for name, run in graph.runs.items():
        entry = vars(run) | {
            "inputs": [one.id for one in graph.inputs[name]],
            "outputs": [one.id for one in run.outputs],
            "made_from": graph.made_from[name],
        }
        del entry["read"], entry["made"]
        runs.append(entry)
    artifacts = []
    for one in graph.artifacts:
        artifacts.append({"id": one.id, **one._asdict(), "made_by": graph.makers(one)})
    return {"runs": runs, "artifacts": artifacts}
