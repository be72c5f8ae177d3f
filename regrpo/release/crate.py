"""The provenance of a release as an RO-Crate, by the Provenance Run Crate profile 0.5.

dvc.yaml is the workflow, DVC the engine that ran it, each stage a step, its tool and an action with
inputs, outputs and parameters. https://w3id.org/ro/wfrun/provenance/0.5
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from regrpo.core.errors import importing
from regrpo.core.files import Json, canonical_json, file_hashes
from regrpo.core.text import visible
from regrpo.release.layout import CARD, LICENSE, measured, released_path

if TYPE_CHECKING:
    from rocrate.model.entity import Entity
    from rocrate.rocrate import ROCrate

PROFILES = {
    "https://w3id.org/ro/wfrun/process/0.5": "Process Run Crate",
    "https://w3id.org/ro/wfrun/workflow/0.5": "Workflow Run Crate",
    "https://w3id.org/ro/wfrun/provenance/0.5": "Provenance Run Crate",
    "https://w3id.org/workflowhub/workflow-ro-crate/1.0": "Workflow RO-Crate",
}
"""What the crate conforms to."""
TERMS = {
    "sha256": "https://w3id.org/ro/terms/workflow-run#sha256",
    # RO-Crate 1.1 defines it so; later contexts, which readers offline may hold, otherwise.
    "ComputationalWorkflow": "https://bioschemas.org/ComputationalWorkflow",
}
"""Terms that the crate's context adds."""
FORMATS = {
    ".csv": "text/csv",
    ".json": "application/json",
    ".md": "text/markdown",
    ".png": "image/png",
    ".yaml": "application/yaml",
}
"""Media types by the end of a file's name."""


@dataclass(frozen=True)
class Released:
    """A file of the release: its SHA-256 and its size in bytes."""

    sha256: str
    size: int


def crate_json(
    about: Json,
    model: Json,
    released: Mapping[str, Released],
    records: Mapping[str, Json],
    metrics: Json,
) -> Json:
    """ro-crate-metadata.json's content; equal arguments give an equal one.

    `about`: release.json; `model`: the profile's model_card section; `released`: every other file;
    `records`: each stage's run.json; `metrics`: the evaluation's. Raises CannotCheck where rocrate
    is not installed.
    """
    crate = _new_crate()
    author = _add(crate, "#author", "Person", name=visible(model["author"]))
    root = crate.root_dataset
    root["name"] = visible(model["model_name"])
    root["description"] = visible(model.get("purpose") or f"The model {model['model_name']}")
    root["author"] = author
    root["datePublished"] = max(record["ended"] for record in records.values())
    root["identifier"] = about["pipeline_key"]
    root["conformsTo"] = [_add_profile(crate, *profile) for profile in PROFILES.items()]
    for name, file in released.items():
        _add_file(crate, name, file)
    root["license"] = crate.get(LICENSE)
    values = measured(metrics).items()
    root["variableMeasured"] = [
        _add(crate, f"#metric/{quote(name)}", "PropertyValue", name=name, value=value)
        for name, value in values
    ]
    steps = [
        _Step(crate, released, stage, position, record)
        for position, (stage, record) in enumerate(records.items(), 1)
    ]
    _add_workflow(crate, steps, records, about["profile"])
    content: Json = crate.metadata.generate()
    content["@graph"].sort(key=lambda entity: entity["@id"])
    return content


def _new_crate() -> ROCrate:
    with importing("rocrate", "the package that writes a release's provenance", "release"):
        from rocrate.rocrate import ROCrate
    # roc-validator 0.13 has the run profiles for RO-Crate 1.1 alone.
    crate = ROCrate(version="1.1")
    crate.metadata.extra_terms.update(TERMS)
    return crate


def _add(crate: ROCrate, entity_id: str, kind: str, **properties: Any) -> Entity:
    """The entity of that id, made if it is new."""
    known = crate.get(entity_id)
    return known or crate.add_jsonld({"@id": entity_id, "@type": kind} | properties)


def _add_profile(crate: ROCrate, identifier: str, name: str) -> Entity:
    version = identifier.rpartition("/")[2]
    return _add(crate, identifier, "CreativeWork", name=name, version=version)


def _add_file(crate: ROCrate, name: str, file: Released) -> None:
    properties: Json = {"sha256": file.sha256, "contentSize": str(file.size), "name": name}
    for end, media_type in FORMATS.items():
        if name.endswith(end):
            properties["encodingFormat"] = media_type
    if name != "dvc.yaml":
        crate.add_file(dest_path=quote(name), properties=properties)
        return
    from rocrate.model.computerlanguage import ComputerLanguage

    language = ComputerLanguage(crate, "#dvc.yaml", properties={"name": "DVC pipeline (dvc.yaml)"})
    kinds = ["File", "SoftwareSourceCode", "ComputationalWorkflow", "HowTo"]
    crate.add(language)
    crate.add_workflow(
        dest_path=name, main=True, lang=language, properties=properties | {"@type": kinds}
    )


class _Step:
    """A stage as step of the workflow, tool, and action with what it read and made."""

    def __init__(
        self,
        crate: ROCrate,
        released: Mapping[str, Released],
        stage: str,
        position: int,
        record: Json,
    ) -> None:
        self.crate, self.released = crate, released
        self.tool = _add(
            crate,
            f"#stage/{stage}",
            "SoftwareApplication",
            name=record["command"],
            version=record["code"]["revision"] or "(not in git)",
            softwareRequirements=list(self._packages(record["environment"])),
        )
        self.step = _add(
            crate,
            f"#step/{stage}",
            "HowToStep",
            name=stage,
            position=str(position),
            workExample=self.tool,
        )
        self.inputs = list(self._items(record["inputs"]))
        self.parameters = list(self._parameters(record["parameters"]))
        self.outputs = list(self._items(record["outputs"]))
        self.action = _add(
            crate,
            f"#run/{record['run']}",
            "CreateAction",
            name=f"{stage}, run {record['run']}",
            startTime=record["started"],
            endTime=record["ended"],
            identifier=record["key"],
            instrument=self.tool,
            object=self.inputs + self.parameters,
            result=self.outputs,
        )
        self.control = _add(
            crate,
            f"#control/{stage}",
            "ControlAction",
            name=f"DVC running {stage}",
            instrument=self.step,
            object=self.action,
        )

    def _packages(self, environment: Json) -> Iterable[Entity]:
        versions = {"Python": environment["python"]} | environment["packages"]
        for name, version in sorted(versions.items()):
            identifier = f"#package/{quote(f'{name}=={version}')}"
            yield _add(self.crate, identifier, "SoftwareApplication", name=name, version=version)

    def _items(self, items: Iterable[Json]) -> Iterable[Entity]:
        """What of them is in the release as files, and all else by path and SHA-256."""
        for item in items:
            paths = list(file_hashes(item))
            names = [released_path(path) or "" for path in paths]
            here = [name for name in names if name in self.released]
            yield from (self.crate.get(quote(name)) for name in here)
            if len(here) < len(paths) or not paths:
                yield _add(
                    self.crate,
                    f"#{quote(item['path'])}-{item['sha256'][:12]}",
                    "CreativeWork",
                    name=item["path"],
                    sha256=item["sha256"],
                )

    def _parameters(self, parameters: Json) -> Iterable[Entity]:
        for sections in parameters.values():
            for section, values in sections.items():
                for key, value in sorted(values.items()):
                    name = f"{section}.{key}"
                    identifier = f"#parameter/{quote(name)}"
                    given = canonical_json(value)
                    yield _add(self.crate, identifier, "PropertyValue", name=name, value=given)


def _add_workflow(
    crate: ROCrate, steps: list[_Step], records: Mapping[str, Json], profile: str
) -> None:
    """The workflow's run, and DVC organizing the steps in it."""
    workflow = crate.mainEntity
    workflow["hasPart"] = [step.tool for step in steps]
    workflow["step"] = [step.step for step in steps]
    made = {entity.id for step in steps for entity in step.outputs}
    brought = [entity for step in steps for entity in step.inputs if entity.id not in made]
    run = _add(
        crate,
        "#run",
        "CreateAction",
        name="The run of the whole pipeline",
        startTime=min(record["started"] for record in records.values()),
        endTime=max(record["ended"] for record in records.values()),
        instrument=workflow,
        object=[*dict.fromkeys([crate.get(quote(profile)), *brought])],
        result=[*dict.fromkeys([crate.get(CARD), *steps[-1].outputs])],
        agent=crate.get("#author"),
    )
    last = list(records.values())[-1]
    version = last["environment"]["packages"].get("dvc", "unknown")
    engine = _add(crate, "#dvc", "SoftwareApplication", name="DVC", version=version)
    organized = _add(
        crate,
        "#organize",
        "OrganizeAction",
        name="DVC running the pipeline",
        instrument=engine,
        object=[step.control for step in steps],
        result=run,
    )
    crate.root_dataset["mentions"] = [run, organized, *(step.action for step in steps)]
