"""The lineage graph: which run made what from what, over workspace, commits and DVC experiments.

Nodes are runs and artifacts (a path with a SHA-256); an artifact that two pipelines share is one
node, so that a query downstream of a dataset's hash finds the models of every experiment. Needs git
and the run.json files, nothing else.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from regrpo.core import text
from regrpo.core.errors import CannotCheck
from regrpo.core.pipeline import record_path
from regrpo.core.profiles import STAGES
from regrpo.records.find import Place, names_run, runs_in
from regrpo.records.record import Record, parse_record

Direction = Literal["upstream", "downstream"]
CODE = ("stages/", "regrpo/")
"""Inputs that a drawn graph leaves to the code's revision."""


@dataclass
class Run:
    """One executed stage, and the names of the places that hold its results."""

    stage: str
    run: str
    mlflow_run_id: str | None
    revision: str | None
    started: str
    ended: str = ""
    places: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    @property
    def short_id(self) -> str:
        """The first digits of MLflow's id, or of ours if MLflow has none."""
        return (self.mlflow_run_id or self.run)[:12]

    def shares_a_place_with(self, other: Run) -> bool:
        """Whether one workspace, commit or experiment holds the results of both."""
        return bool(set(self.places) & set(other.places))


@dataclass(frozen=True)
class Artifact:
    """A file or folder by its content; runs made it, or it is a source."""

    path: str
    sha256: str

    @property
    def id(self) -> str:
        """Its name in a graph."""
        return f"{self.path}@{self.sha256[:16]}"


@dataclass
class Graph:
    """`runs` by id, `artifacts` by id; edges are the runs' inputs and outputs."""

    runs: dict[str, Run] = field(default_factory=dict)
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    files: dict[str, set[str]] = field(default_factory=dict)
    """SHA-256 of each file inside an artifact's folder → the artifacts."""
    _before: dict[str, list[str]] | None = None
    """Of each run the runs that made its inputs."""

    def makers(self, artifact: str) -> list[str]:
        """The runs that made an artifact."""
        return [name for name, run in self.runs.items() if artifact in run.outputs]

    def readers(self, artifact: str) -> list[str]:
        """The runs that read an artifact."""
        return [name for name, run in self.runs.items() if artifact in run.inputs]

    def made_for(self, artifact: str, reader: str) -> list[str]:
        """The makers of a reader's input: of several in one of its places, the last before it."""
        read_by = self.runs[reader]
        makers = self.makers(artifact)
        own = [name for name in makers if self.runs[name].shares_a_place_with(read_by)]
        if not own:
            return makers
        earlier = [name for name in own if self.runs[name].ended <= read_by.started] or own
        last = max(self.runs[name].ended for name in earlier)
        return [name for name in earlier if self.runs[name].ended == last]

    def next_runs(self, run: str, direction: Direction) -> list[str]:
        """The makers of a run's inputs (upstream), or readers of its outputs, in stage order.

        If several runs made the very same artifact, only those of the reader's own pipeline and it
        belong together; both ways follow the same edges, so that A is upstream of B exactly if B is
        downstream of A.
        """
        if self._before is None:
            self._before = {name: self._makers_of_inputs(name) for name in self.runs}
        if direction == "upstream":
            return self._before[run]
        readers = [reader for reader, makers in self._before.items() if run in makers]
        return sorted(readers, key=self.stage_order)

    def _makers_of_inputs(self, run: str) -> list[str]:
        makers: set[str] = set()
        for artifact in self.runs[run].inputs:
            makers.update(self.made_for(artifact, run))
        return sorted(makers - {run}, key=self.stage_order)

    def stage_order(self, run: str) -> tuple[int, str]:
        """What sorts runs by their place in the pipeline, then by their start."""
        stage, started = self.runs[run].stage, self.runs[run].started
        if stage in STAGES:
            return STAGES.index(stage), started
        return len(STAGES), started

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

    def only(self, runs: set[str]) -> Graph:
        """The graph of some runs and what they read and made, as if there were no others."""
        kept = {name: run for name, run in self.runs.items() if name in runs}
        touched: set[str] = set()
        for run in kept.values():
            touched.update(run.inputs, run.outputs)
        artifacts = {name: one for name, one in self.artifacts.items() if name in touched}
        return Graph(kept, artifacts, self.files)

    def part(self, runs: set[str]) -> Graph:
        """The graph of some runs, tied to one another as they are here."""
        part = self.only(runs)
        before = {}
        for run in part.runs:
            before[run] = [one for one in self.next_runs(run, "upstream") if one in runs]
        part._before = before
        return part


# --- how it is read -------------------------------------------------------------------------------


def of_places(places: Iterable[Place]) -> Graph:
    """The graph of everything that the records in these places say.

    A record that cannot be read is left out.
    """
    graph = Graph()
    records: dict[bytes, Record] = {}  # by their bytes: most commits hold the records of others
    for place in places:
        for stage, data in place.snapshot.record_bytes().items():
            if data not in records:
                try:
                    records[data] = parse_record(data, stage)[0]
                except CannotCheck:
                    continue
                _add_outputs(graph, records[data], data)
            held_by = graph.runs[records[data].run].places
            if place.name not in held_by:
                held_by.append(place.name)
    folders = _folders_by_file(records.values())
    for record in records.values():
        _add_inputs(graph, record, folders)
    return graph


def _add_outputs(graph: Graph, record: Record, data: bytes) -> None:
    """A run with what it made, its record included; a record written anew is of the same run."""
    run = Run(
        record.stage,
        record.run,
        record.mlflow_run_id,
        record.code.revision,
        record.started,
        record.ended,
    )
    run = graph.runs.setdefault(record.run, run)
    own = Artifact(record_path(record.stage), hashlib.sha256(data).hexdigest())
    for artifact in [*(Artifact(out.path, out.sha256) for out in record.outputs), own]:
        graph.artifacts[artifact.id] = artifact
        if artifact.id not in run.outputs:
            run.outputs.append(artifact.id)
    for out in record.outputs:
        for digest in (out.files or {}).values():
            graph.files.setdefault(digest, set()).add(Artifact(out.path, out.sha256).id)


def _folders_by_file(records: Iterable[Record]) -> dict[Artifact, list[str]]:
    """Each file inside an output folder → the artifacts of the folders that hold it."""
    folders: dict[Artifact, list[str]] = {}
    for record in records:
        for out in record.outputs:
            folder = Artifact(out.path, out.sha256).id
            for name, digest in (out.files or {}).items():
                holders = folders.setdefault(Artifact(f"{out.path}/{name}", digest), [])
                if folder not in holders:
                    holders.append(folder)
    return folders


def _add_inputs(graph: Graph, record: Record, folders: dict[Artifact, list[str]]) -> None:
    """What a run read; a file inside an output folder stands for that folder."""
    inputs = graph.runs[record.run].inputs
    for item in record.inputs:
        artifact = Artifact(item.path, item.sha256)
        if artifact.id not in graph.artifacts and artifact in folders:
            read = _own_folders(graph, record.run, folders[artifact])
        else:
            graph.artifacts.setdefault(artifact.id, artifact)
            read = [artifact.id]
        inputs += [one for one in read if one not in inputs]


def _own_folders(graph: Graph, reader: str, folders: list[str]) -> list[str]:
    """Of the folders that hold an equal file, those made in a place of the reader's; else all."""
    run = graph.runs[reader]
    own = []
    for folder in folders:
        if any(run.shares_a_place_with(graph.runs[maker]) for maker in graph.makers(folder)):
            own.append(folder)
    return own or folders


# --- what is asked of it --------------------------------------------------------------------------


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
        graph = graph.only(own)
        starts = [name for name in starts if name in own]
    if not starts and own is not None and target not in STAGES:
        starts = _ends(graph, own, direction)
    return graph.part(graph.reach(starts, direction)), starts


def _starts(
    graph: Graph, target: str | None, find: Callable[[str], Place], direction: Direction
) -> tuple[list[str], set[str] | None]:
    """The runs to start from (none: the pipeline's ends), and the one pipeline meant."""
    here = {name for name, run in graph.runs.items() if "workspace" in run.places}
    if target is None:
        return [], here
    named = [run for run in graph.runs.values() if names_run(target, run.run, run.mlflow_run_id)]
    if named:
        return [run.run for run in named], None
    if target in STAGES:
        return [name for name in here if graph.runs[name].stage == target], here
    artifacts = _matching(graph, target.rstrip("/"))
    if not artifacts:
        return [], set(runs_in(find(target).snapshot)) & set(graph.runs)
    runs: set[str] = set()
    for artifact in artifacts:
        runs.update(graph.makers(artifact) if direction == "upstream" else graph.readers(artifact))
    # A path means what lies here; a hash means every pipeline that has it.
    own = here if here & runs and not _is_hash(target) else None
    return sorted(runs, key=graph.stage_order), own


def _is_hash(target: str) -> bool:
    return re.fullmatch("[0-9a-f]{6,64}", target) is not None


def _matching(graph: Graph, target: str) -> list[str]:
    """The artifacts of that SHA-256 (or with a file of it), or of that path (or around it)."""
    if _is_hash(target):
        found = {name for name, one in graph.artifacts.items() if one.sha256.startswith(target)}
        for digest, folders in graph.files.items():
            if digest.startswith(target):
                found |= folders
        return sorted(found)
    same = [name for name, one in graph.artifacts.items() if one.path == target]
    if not same:
        same = [name for name, one in graph.artifacts.items() if target.startswith(f"{one.path}/")]
    here: set[str] = set()
    for run in graph.runs.values():
        if "workspace" in run.places:
            here.update(run.inputs, run.outputs)
    return [name for name in same if name in here] or same


def _ends(graph: Graph, runs: set[str], direction: Direction) -> list[str]:
    """Of some runs, those that no other of them comes after (upstream), or before (downstream)."""
    against: Direction = "downstream" if direction == "upstream" else "upstream"
    ends = [run for run in runs if runs.isdisjoint(graph.next_runs(run, against))]
    return sorted(ends, key=graph.stage_order)


# --- how it is shown ------------------------------------------------------------------------------


def label(graph: Graph, run: str) -> str:
    """A run in one line: its stage, id, places, and what it made."""
    one = graph.runs[run]
    own = f"reports/{one.stage}/"
    outputs = [out for out in one.outputs if not out.startswith(record_path(one.stage))]
    made = ", ".join(short_name(graph, out).removeprefix(own) for out in outputs)
    places = ", ".join(one.places[:3])
    if len(one.places) > 3:
        places += f" and {len(one.places) - 3} more"
    return f"{one.stage}  run {one.short_id}  [{places}]  → {made}"


def short_name(graph: Graph, artifact: str) -> str:
    """An artifact's path and the first digits of its SHA-256."""
    one = graph.artifacts[artifact]
    return f"{one.path} {one.sha256[:8]}"


def sources(graph: Graph, run: str) -> list[str]:
    """A run's inputs that no stage made and that are no code of the stages."""
    return [a for a in graph.runs[run].inputs if not graph.makers(a) and not a.startswith(CODE)]


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
    yield label(graph, run)
    blocks: list[Iterable[str]] = []
    if direction == "upstream":
        blocks += [[short_name(graph, source)] for source in sources(graph, run)]
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
    names: dict[str, str] = {}
    lines = ["flowchart LR"]
    for name, run in graph.runs.items():
        names[name] = f"n{len(names)}"
        lines.append(f'  {names[name]}(["{run.stage}<br/>run {run.short_id}"])')
    for name, one in graph.artifacts.items():
        if not one.path.startswith(CODE) and not one.path.endswith("/run.json"):
            names[name] = f"n{len(names)}"
            path = text.mermaid(one.path)
            lines.append(f'  {names[name]}["{path}<br/>{one.sha256[:12]}"]')
    for name, run in graph.runs.items():
        lines += [f"  {names[a]} --> {names[name]}" for a in run.inputs if a in names]
        lines += [f"  {names[name]} --> {names[a]}" for a in run.outputs if a in names]
    return "\n".join(lines)


def plain(graph: Graph) -> dict[str, Any]:
    """The graph as plain data."""
    runs = []
    for name, run in graph.runs.items():
        runs.append(vars(run) | {"made_from": graph.next_runs(name, "upstream")})
    artifacts = []
    for one in graph.artifacts.values():
        artifacts.append({"id": one.id, **vars(one), "made_by": graph.makers(one.id)})
    return {"runs": runs, "artifacts": artifacts}
