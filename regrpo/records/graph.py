"""The lineage graph.

Which run made what from what, over workspace, commits and DVC experiments, from their records.

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
from regrpo.core.profiles import STAGES
from regrpo.records import record as record_module
from regrpo.records.find import Place, names_run, runs_in
from regrpo.records.record import Record

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


@dataclass(frozen=True)
class Artifact:
    """A file or folder by its content; `maker` runs made it, a source has none."""

    path: str
    sha256: str

    @property
    def id(self) -> str:
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
        return [name for name, run in self.runs.items() if artifact in run.outputs]

    def readers(self, artifact: str) -> list[str]:
        return [name for name, run in self.runs.items() if artifact in run.inputs]

    def made_for(self, artifact: str, reader: str) -> list[str]:
        """The makers of a reader's input.

        Of several in a place (workspace, commit) of its own, the last before it.
        """
        makers, one = self.makers(artifact), self.runs[reader]
        own = [name for name in makers if set(one.places) & set(self.runs[name].places)]
        earlier = [name for name in own if self.runs[name].ended <= one.started] or own
        last = max((self.runs[name].ended for name in earlier), default="")
        return [name for name in earlier if self.runs[name].ended == last] or makers

    def next_runs(self, run: str, direction: Direction) -> list[str]:
        """The runs that made a run's inputs (upstream), or read its outputs (downstream), in stage order.

        Where several runs made the very same artifact, only those of the reader's own pipeline and it belong together;
        both ways follow the same edges, so that A is upstream of B exactly where B is downstream of A.
        """
        if self._before is None:
            self._before = {
                name: sorted(
                    {m for a in one.inputs for m in self.made_for(a, name)} - {name},
                    key=self.stage_order,
                )
                for name, one in self.runs.items()
            }
        if direction == "upstream":
            return self._before[run]
        return sorted(
            (reader for reader, makers in self._before.items() if run in makers),
            key=self.stage_order,
        )

    def stage_order(self, run: str) -> tuple[int, str]:
        one = self.runs[run]
        return STAGES.index(one.stage) if one.stage in STAGES else len(STAGES), one.started

    def reach(self, start: Iterable[str], direction: Direction) -> set[str]:
        """The runs that can be reached from runs, themselves included."""
        todo, seen = list(start), set[str]()
        while todo:
            if (run := todo.pop()) not in seen:
                seen.add(run)
                todo += self.next_runs(run, direction)
        return seen

    def only(self, runs: set[str]) -> Graph:
        """The graph of some runs and what they read and made, as if there were no others."""
        kept = {name: run for name, run in self.runs.items() if name in runs}
        touched = {artifact for run in kept.values() for artifact in [*run.inputs, *run.outputs]}
        return Graph(
            kept, {name: one for name, one in self.artifacts.items() if name in touched}, self.files
        )

    def part(self, runs: set[str]) -> Graph:
        """The graph of some runs, tied to one another as they are here."""
        part = self.only(runs)
        part._before = {
            run: [one for one in self.next_runs(run, "upstream") if one in runs]
            for run in part.runs
        }
        return part


def of_places(places: Iterable[Place]) -> Graph:
    """The graph of everything that the records in these places say.

    A record that cannot be read is left out.
    """
    graph, seen = Graph(), dict[bytes, str]()
    read: list[tuple[str, Record]] = []
    for place in places:
        for stage, data in place.snapshot.record_bytes().items():
            if data not in seen:
                try:
                    record, _ = record_module.parse_record(data, stage)
                except CannotCheck:
                    continue
                seen[data] = _add(graph, record, data)
                read.append((seen[data], record))
            names = graph.runs[seen[data]].places
            names += [place.name] if place.name not in names else []
    inner: dict[tuple[str, str], list[str]] = {}
    for _, record in read:
        for out in record.outputs:
            for name, digest in (out.files or {}).items():
                holders = inner.setdefault((f"{out.path}/{name}", digest), [])
                holders += (
                    [one] if (one := Artifact(out.path, out.sha256).id) not in holders else []
                )
    for name, record in read:
        for item in record.inputs:
            artifact = Artifact(item.path, item.sha256)
            holders = inner.get((item.path, item.sha256), [])
            if artifact.id in graph.artifacts or not holders:
                graph.artifacts.setdefault(artifact.id, artifact)
                holders = [artifact.id]
            inputs = graph.runs[name].inputs
            inputs += [one for one in _own_holders(graph, name, holders) if one not in inputs]
    return graph


def _own_holders(graph: Graph, run: str, holders: list[str]) -> list[str]:
    """Of the folders that hold a file of the same name and bytes, those made in a place of the run's; else all."""
    if len(holders) < 2:
        return holders
    places = set(graph.runs[run].places)
    own = [
        one
        for one in holders
        if any(places & set(graph.runs[maker].places) for maker in graph.makers(one))
    ]
    return own or holders


def _add(graph: Graph, record: Record, data: bytes) -> str:
    """A run with its outputs, its own record among them.

    A run that is known (its record written anew) is one run.
    """
    run = Run(
        record.stage,
        record.run,
        record.mlflow_run_id,
        record.code.revision,
        record.started,
        record.ended,
    )
    run = graph.runs.setdefault(record.run, run)
    own = Artifact(f"reports/{record.stage}/run.json", hashlib.sha256(data).hexdigest())
    for artifact, inner in [
        *((Artifact(o.path, o.sha256), o.files or {}) for o in record.outputs),
        (own, {}),
    ]:
        graph.artifacts[artifact.id] = artifact
        run.outputs += [artifact.id] if artifact.id not in run.outputs else []
        for digest in inner.values():
            graph.files.setdefault(digest, set()).add(artifact.id)
    return record.run


def ask(
    graph: Graph, target: str | None, find: Callable[[str], Place], direction: Direction
) -> tuple[Graph, list[str]]:
    """The part of the graph that answers, and the runs that it starts from.

    `target`: an artifact (path, or SHA-256 from 6 digits on), a run, or a pipeline (None: the
    workspace's; a revision, an experiment, a row's id). Upstream of an artifact are the runs that
    made it, downstream those that read it; upstream of a pipeline are its own runs, whatever others
    made the same. Raises CannotCheck where nothing of that name is known.
    """
    here = {name for name, run in graph.runs.items() if "workspace" in run.places}
    starts: list[str] = []
    own: set[str] | None = None
    if target is None:
        own = here
    elif found := [
        name for name, run in graph.runs.items() if names_run(target, run.run, run.mlflow_run_id)
    ]:
        starts = found
    elif target in STAGES:
        own, starts = here, [name for name in here if graph.runs[name].stage == target]
    elif matches := _matching(graph, target.rstrip("/")):
        side = graph.makers if direction == "upstream" else graph.readers
        starts = sorted(
            {run for artifact in matches for run in side(artifact)}, key=graph.stage_order
        )
        if not re.fullmatch("[0-9a-f]{6,64}", target) and here & set(starts):
            own = here  # a path means what lies here
    else:
        own = set(runs_in(find(target).snapshot)) & set(graph.runs)
    if own is not None and direction == "upstream":
        graph = graph.only(own)
        starts = [name for name in starts if name in own]
    if not starts and own is not None and target not in STAGES:
        starts = _ends(graph, sorted(own), direction)
    return graph.part(graph.reach(starts, direction)), starts


def _matching(graph: Graph, target: str) -> list[str]:
    if re.fullmatch("[0-9a-f]{6,64}", target):
        found = {name for name, one in graph.artifacts.items() if one.sha256.startswith(target)}
        return sorted(
            found.union(*(ids for digest, ids in graph.files.items() if digest.startswith(target)))
        )
    same = [name for name, one in graph.artifacts.items() if one.path == target]
    if not same:
        same = [name for name, one in graph.artifacts.items() if target.startswith(f"{one.path}/")]
    here = {
        a
        for run in graph.runs.values()
        if "workspace" in run.places
        for a in [*run.inputs, *run.outputs]
    }
    return [name for name in same if name in here] or same


def _ends(graph: Graph, runs: list[str], direction: Direction) -> list[str]:
    """Of some runs, those that no other of them comes after (upstream), or before (downstream)."""
    against: Direction = "downstream" if direction == "upstream" else "upstream"
    return sorted(
        (run for run in runs if not set(graph.next_runs(run, against)) & set(runs)),
        key=graph.stage_order,
    )


# --- how it is shown ------------------------------------------------------------------------------


def label(graph: Graph, run: str) -> str:
    one = graph.runs[run]
    own = f"reports/{one.stage}/"
    outputs = [out for out in one.outputs if not out.startswith(f"{own}run.json")]
    made = ", ".join(short_name(graph, out).removeprefix(own) for out in outputs)
    places = ", ".join(one.places[:3]) + f" and {len(one.places) - 3} more" * (len(one.places) > 3)
    return f"{one.stage}  run {(one.mlflow_run_id or one.run)[:12]}  [{places}]  → {made}"


def short_name(graph: Graph, artifact: str) -> str:
    one = graph.artifacts[artifact]
    return f"{one.path} {one.sha256[:8]}"


def sources(graph: Graph, run: str) -> list[str]:
    """A run's inputs that no stage made and that are no code of the stages."""
    return [a for a in graph.runs[run].inputs if not graph.makers(a) and not a.startswith(CODE)]


def tree(graph: Graph, runs: list[str], direction: Direction) -> Iterator[str]:
    """Lines of text; a run that was shown is named again without what follows it."""
    seen: set[str] = set()

    def walk(run: str, prefix: str, turn: str, rest: str) -> Iterator[str]:
        if run in seen:
            yield f"{prefix}{turn}{graph.runs[run].stage}  run {(graph.runs[run].mlflow_run_id or run)[:12]} (above)"
            return
        seen.add(run)
        yield f"{prefix}{turn}{label(graph, run)}"
        below = graph.next_runs(run, direction)
        brought = sources(graph, run) if direction == "upstream" else []
        for index, source in enumerate(brought):
            last = index == len(brought) - 1 and not below
            yield f"{prefix}{rest}{'└─ ' if last else '├─ '}{short_name(graph, source)}"
        for index, other in enumerate(below):
            last = index == len(below) - 1
            yield from walk(
                other, prefix + rest, "└─ " if last else "├─ ", "   " if last else "│  "
            )

    for run in runs:
        if run not in seen:
            yield from walk(run, "", "", "")


def mermaid(graph: Graph) -> str:
    """A Mermaid flowchart: runs are rounded, artifacts square."""
    drawn = _drawn(graph)
    names = {name: f"n{index}" for index, name in enumerate([*graph.runs, *drawn])}
    lines = ["flowchart LR"]
    lines += [
        f'  {names[run]}(["{one.stage}<br/>run {(one.mlflow_run_id or one.run)[:12]}"])'
        for run, one in graph.runs.items()
    ]
    lines += [
        f'  {names[a]}["{text.mermaid(graph.artifacts[a].path)}<br/>{graph.artifacts[a].sha256[:12]}"]'
        for a in drawn
    ]
    for run, one in graph.runs.items():
        lines += [f"  {names[a]} --> {names[run]}" for a in one.inputs if a in names]
        lines += [f"  {names[run]} --> {names[a]}" for a in one.outputs if a in names]
    return "\n".join(lines)


def _drawn(graph: Graph) -> list[str]:
    """The artifacts worth a node: no code, and no stage's own record."""
    return [
        a
        for a, one in graph.artifacts.items()
        if not a.startswith(CODE) and not one.path.endswith("/run.json")
    ]


def plain(graph: Graph) -> dict[str, Any]:
    """The graph as plain data."""
    return {
        "runs": [
            vars(run) | {"made_from": graph.next_runs(name, "upstream")}
            for name, run in graph.runs.items()
        ],
        "artifacts": [
            {"id": one.id, **vars(one), "made_by": graph.makers(one.id)}
            for one in graph.artifacts.values()
        ],
    }
