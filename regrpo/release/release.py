"""A run's model, results and provenance as a folder that is complete in itself.

The same run gives the same bytes, but for a signature: nothing in it is of the day or the machine
that it was released on.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from regrpo import __version__
from regrpo.audit.audit import audit
from regrpo.audit.evidence import Cache
from regrpo.core import files
from regrpo.core.errors import CannotCheck, Refused, RegrpoError
from regrpo.core.files import Json, file_hashes
from regrpo.core.pipeline import out_md5s, record_path
from regrpo.core.text import some
from regrpo.evaluate.results import parse_metrics
from regrpo.records.find import Place
from regrpo.records.record import read_records
from regrpo.release import signature as signatures
from regrpo.release.crate import Released, crate_json
from regrpo.release.handover import (
    NEEDED,
    license_conflict,
    license_text,
    notice,
    release_card,
)
from regrpo.release.hub import require_repo_id
from regrpo.release.layout import (
    ABOUT,
    CARD,
    CRATE,
    DATASET,
    LICENSE,
    METRICS,
    MODEL,
    NOTICE,
    PIPELINE,
    RUN_CARD,
    SCHEMA_VERSION,
    SUMS,
    WRITTEN,
    released_path,
)
from regrpo.tracking.sync import opened

SPARE = 2**24
"""Bytes that are to stay free on the disk."""
Source = Path | bytes


@dataclass(frozen=True)
class Options:
    """How a release is made: key, certificate and its chain sign; `force` in spite of the audit."""

    key: Path | None = None
    certificate: Path | None = None
    chain: Sequence[Path] = ()
    repo_id: str | None = None
    force: bool = False
    mlflow: bool = True


def release(place: Place, out: Path, options: Options) -> Json:
    """Write the release of a run to the folder `out`; the current folder is the run's root.

    Raises Refused for a run that does not audit clean (unless forced), a folder that is not empty,
    a key that cannot sign; CannotCheck if files are not here, or there is no room. Whatever is
    raised, `out` is as it was. Returns {folder, files, bytes, sha256 (of SHA256SUMS), signature,
    pipeline_key, audit, notes}.
    """
    signature = signatures.beside(out)
    _require_free(out, signature)
    if options.repo_id is not None:
        require_repo_id(options.repo_id)
    signer = None
    if options.key is not None:
        signer = signatures.read_signer(options.key, options.certificate, options.chain)
    run = _Run(place)
    sources = run.sources()
    _require_room(out, sources)
    audited = _audit(place, options.force)
    about = run.about(audited, options.repo_id)
    with files.replacing(out) as folder:
        _write(folder, run, sources, about)
    if signer is not None:
        _sign(signer, out, signature)
    sizes = [path.stat().st_size for path in _files(out)]
    result = {
        "folder": str(out),
        "files": len(sizes),
        "bytes": sum(sizes),
        "sha256": files.sha256(out / SUMS),
        "signature": str(signature) if signer is not None else None,
        "pipeline_key": about["pipeline_key"],
        "audit": about["audit"],
        "notes": run.notes(),
    }
    if options.mlflow:
        result["notes"] += _tell_mlflow(run, out, result)
    return result


# --- what must hold before a byte is written ------------------------------------------------------


def _require_free(out: Path, signature: Path) -> None:
    """Raise Refused if something lies where the folder or its signature is to be."""
    for path in (out, signature):
        is_empty = path.is_dir() and not path.is_symlink() and not any(path.iterdir())
        if path != signature and is_empty:
            continue
        if path.exists() or path.is_symlink():
            raise Refused(
                str(path),
                expected="no such file, or an empty folder",
                found="one that holds something" if path.is_dir() else "a file",
                remedy="Name another folder with --out, or remove this.",
            )


def _require_room(out: Path, sources: Mapping[str, Source]) -> None:
    needed = SPARE
    for source in sources.values():
        needed += len(source) if isinstance(source, bytes) else source.stat().st_size
    existing = next(parent for parent in out.absolute().parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise CannotCheck(
            str(out),
            expected=f"{needed / 1e6:,.0f} MB free on its disk",
            found=f"{free / 1e6:,.0f} MB",
            remedy="Free some, or name a folder on another disk with --out.",
        )


def _audit(place: Place, force: bool) -> Json:
    """The audit's verdict and findings, as release.json has them."""
    # Files are the record: a release needs no MLflow.
    result = audit(place, mlflow=False)
    findings = []
    for one in result["faults"] + result["unchecked"]:
        findings.append(
            f"{one['kind']}, {one['stage'] or 'pipeline'}: {one['path']}: {one['text']}"
        )
    if result["verdict"] != "complete" and not force:
        kind = Refused if result["verdict"] == "broken" else CannotCheck
        raise kind(
            place.name,
            expected="a run whose audit is complete",
            found=f"{result['verdict']}: {some(findings)}",
            remedy="`regrpo audit` names everything. --force releases it, and the card says so.",
        )
    return {"verdict": result["verdict"], "findings": findings}


# --- the run --------------------------------------------------------------------------------------


class _Run:
    """What is released of a run, and where its bytes are: workspace, git or DVC's cache."""

    def __init__(self, place: Place) -> None:
        self.place, self.snapshot = place, place.snapshot
        self.records = read_records(place.snapshot)
        self.params = self.snapshot.params()
        self.profile = self.snapshot.profile()

    @cached_property
    def outputs(self) -> dict[str, str]:
        """{path in the repository: SHA-256} of the outputs that are handed on, as recorded."""
        found: dict[str, str] = {}
        for record in self.records.values():
            for item in record["outputs"]:
                found |= file_hashes(item)
        return {path: sha256 for path, sha256 in found.items() if released_path(path)}

    @property
    def hashes(self) -> dict[str, str]:
        """{released path: SHA-256} of the same."""
        return {released_path(path) or path: sha256 for path, sha256 in self.outputs.items()}

    def sources(self) -> dict[str, Source]:
        """{released path: file or bytes} of all that is copied. Raises CannotCheck if some lack."""
        paths = [record_path(stage) for stage in self.records]
        paths += [*PIPELINE, self.profile, *self.outputs]
        found, missing = {}, []
        for path in paths:
            source = self._source(path)
            if source is None:
                missing.append(path)
            else:
                found[released_path(path) or path] = source
        if missing:
            fetch = "dvc pull" if self.snapshot.is_workspace else "dvc fetch --all-commits"
            raise CannotCheck(
                self.place.name,
                expected="every file of the run here",
                found=f"neither in the workspace nor in DVC's cache: {some(missing)}",
                remedy=f"`{fetch}` brings what a remote has.",
            )
        return dict(sorted(found.items()))

    def _source(self, path: str) -> Source | None:
        here = self.snapshot.root / path
        if self.snapshot.is_workspace and here.is_file():
            return here
        cached = self._objects.get(path)
        if cached is not None and cached.is_file():
            return cached
        return None if self.snapshot.is_workspace else self.snapshot.read(path)

    @cached_property
    def _objects(self) -> dict[str, Path]:
        """{path: object in DVC's cache} of every output, and of every file in one."""
        cache = Cache(self.snapshot.root)
        found = {}
        for entry in self.snapshot.lock()["stages"].values():
            for path, md5 in out_md5s(entry).items():
                for name, one in (cache.listing(md5) or {}).items():
                    found[f"{path}/{name}".rstrip("/")] = cache.path(one)
        return found

    def json(self, path: str) -> Any:
        """A JSON file among the sources."""
        return json.loads(_bytes(self._source(path) or b"null"))

    @cached_property
    def base(self) -> Json:
        return dict(self.json("reports/base_model/source.json"))

    @cached_property
    def dataset(self) -> Json:
        return dict(self.json(DATASET))

    @property
    def model(self) -> Json:
        """The profile's model_card section."""
        section: Json = self.params["model_card"]
        return section

    def about(self, audited: Json, repo_id: str | None) -> Json:
        """release.json."""
        packages = self.records["grpo"]["environment"]["packages"]
        versions = {name: packages[name].partition("+")[0] for name in NEEDED if name in packages}
        return {
            "schema_version": SCHEMA_VERSION,
            "regrpo": __version__,
            "model": self.model["model_name"],
            "pipeline_key": self.snapshot.pipeline_key(),
            "profile": self.profile,
            "repo_id": repo_id,
            "packages": versions,
            "adapter": any(name.startswith("adapter/") for name in self.hashes),
            "audit": audited,
        }

    def notes(self) -> list[str]:
        conflict = license_conflict(self.model["license"], self.base["license"])
        return [conflict] if conflict else []


# --- writing --------------------------------------------------------------------------------------


def _write(folder: Path, run: _Run, sources: Mapping[str, Source], about: Json) -> None:
    """All files of the release, the hashes last."""
    clash = sorted(set(sources) & set(WRITTEN))
    if clash:
        raise Refused(
            f"{MODEL}{clash[0]}",
            expected="no model file by the name of a file of the release",
            found="one",
            remedy="Rename it in the base model, or leave it out there.",
        )
    released = {name: _copy(source, folder / name) for name, source in sources.items()}
    for name, sha256 in run.hashes.items():
        if released[name].sha256 != sha256 and not about["audit"]["findings"]:
            raise Refused(
                name,
                expected=f"SHA-256 {sha256[:12]}, as it was audited",
                found=released[name].sha256[:12],
                remedy="Something wrote to it meanwhile: release again.",
            )
    card = _bytes(sources[RUN_CARD]).decode()
    known = run.snapshot.read("LICENSE")
    text = license_text(run.model["license"], (known or b"").decode())
    written = {
        CARD: release_card(card, about).encode(),
        LICENSE: text.encode(),
        NOTICE: notice(run.model, run.base, run.dataset).encode(),
        ABOUT: files.json_text(about).encode(),
    }
    for name, data in written.items():
        released[name] = _copy(data, folder / name)
    metrics = run.json(METRICS)
    parse_metrics(files.canonical_json(metrics))
    crate = crate_json(about, run.model, dict(sorted(released.items())), run.records, metrics)
    released[CRATE] = _copy(files.json_text(crate).encode(), folder / CRATE)
    lines = [f"{file.sha256}  {name}\n" for name, file in sorted(released.items())]
    _copy("".join(lines).encode(), folder / SUMS)
    ended = max(datetime.fromisoformat(one["ended"]) for one in run.records.values()).timestamp()
    for path in _files(folder):
        os.utime(path, (ended, ended))


def _copy(source: Source, target: Path) -> Released:
    """Write a file, hashed as it is read."""
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with target.open("wb") as file:
        for chunk in _chunks(source):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return Released(digest.hexdigest(), size)


def _chunks(source: Source) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with source.open("rb") as file:
        while chunk := file.read(2**20):
            yield chunk


def _bytes(source: Source) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _sign(signer: Any, out: Path, signature: Path) -> None:
    """Sign the folder; what cannot be signed is taken away again."""
    try:
        with files.replacing(signature) as temporary:
            signer.sign(out, temporary)
    except BaseException:
        with contextlib.suppress(OSError):
            files.remove(out)
        raise


# --- MLflow ---------------------------------------------------------------------------------------


def _tell_mlflow(run: _Run, out: Path, result: Json) -> list[str]:
    """Tag the model version; returns what could not be done: a release needs no MLflow."""
    tags = {"regrpo.release": result["sha256"]}
    if result["signature"]:
        tags["regrpo.release.signature"] = files.sha256(Path(result["signature"]))
    return tell_mlflow(run.model["model_name"], result["pipeline_key"], tags, out / SUMS)


def tell_mlflow(model: str, pipeline_key: str, tags: Mapping[str, str], sums: Path) -> list[str]:
    """Tag a released pipeline's row and model version; returns what could not be done."""
    try:
        with opened(create=False) as store:
            done = store.registry().add_release(model, pipeline_key, tags, sums)
    except RegrpoError as error:
        return [f"MLflow was not told: {error.found}"]
    return [] if done else ["MLflow has no version of this model: `regrpo promote` makes one"]
