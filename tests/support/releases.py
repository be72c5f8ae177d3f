"""Signed releases of the finished pipeline, and what its card and sources need for them."""

from __future__ import annotations

import json
import re
import shutil
import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from regrpo.core import files
from regrpo.core.text import code, estimate
from regrpo.records.find import Finder
from regrpo.release.handover import LOADING, QUICK_START
from regrpo.release.layout import CRATE, SUMS
from regrpo.release.release import Options, release
from tests.support.projects import run

CARD = """\
---
language: en
model-index:
- name: regrpo-chain-sum
  results:
{results}
---

# regrpo-chain-sum

## Quick start

{quick_start}

```python
{loading}
```

## Evaluation

![Accuracy](../evaluate/comparison.png)

| task | n | base | sft | grpo |
|---|---|---|---|---|
{rows}

The adapter itself is `models/grpo/adapter`.

## Lineage

Everything.
"""
RESULT = """\
  - task:
      type: text-generation
    dataset:
      type: sums
      name: sums
    metrics:
    - type: {metric}
      value: {value}
      name: {name}"""
SOURCE = {"kind": "scratch", "source": "made from scratch", "revision": "seed 0"}
DATASET = {"source": "sums", "revision": "1", "license": "CC-BY-4.0"}


def write_facts(root: Path) -> None:
    """Over what `write_results` made: a card of its numbers, base and data with licences."""
    metrics = files.read_json(root / "reports/evaluate/metrics.json")
    results, rows = [], []
    for name, task in metrics["tasks"].items():
        models = task["models"]
        final = models["grpo"]["value"]
        results.append(RESULT.format(metric=task["metric"], value=final, name=name))
        scores = [models[model] for model in ("base", "sft", "grpo")]
        cells = [estimate(one["value"], one["ci95"], task["kind"]) for one in scores]
        rows.append(f"| {code(name)} | {task['n']} | {' | '.join(cells)} |")
    text = CARD.format(
        results="\n".join(results),
        rows="\n".join(rows),
        quick_start=QUICK_START,
        loading=LOADING,
    )
    files.write_text(root / "reports/model_card/README.md", text)
    files.write_json(root / "reports/base_model/source.json", SOURCE | {"license": "Apache-2.0"})
    files.write_json(root / "data/prepared/dataset.json", DATASET)


def write_keys(folder: Path, name: str) -> tuple[Path, Path]:
    """A P-256 key pair in PEM files: (private, public)."""
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    return write_private(folder / f"{name}.pem", key), write_public(folder / f"{name}.pub", key)


def write_private(path: Path, key: Any, passphrase: bytes | None = None) -> Path:
    from cryptography.hazmat.primitives import serialization as to

    encryption: Any = to.NoEncryption()
    if passphrase is not None:
        encryption = to.BestAvailableEncryption(passphrase)
    path.write_bytes(key.private_bytes(to.Encoding.PEM, to.PrivateFormat.PKCS8, encryption))
    return path


def write_public(path: Path, key: Any) -> Path:
    from cryptography.hazmat.primitives import serialization as to

    form = to.PublicFormat.SubjectPublicKeyInfo
    path.write_bytes(key.public_key().public_bytes(to.Encoding.PEM, form))
    return path


def write_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """A key, its certificate, and the root certificate that signed that."""
    from datetime import UTC, datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def certify(name: str, key: Any, issuer: str, by: Any, usage: dict[str, bool]) -> Path:
        names = [
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, n)]) for n in (name, issuer)
        ]
        unused = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
        all_uses = dict.fromkeys([*unused, "crl_sign", "encipher_only", "decipher_only"], False)
        made = (
            x509.CertificateBuilder(*names[::-1], key.public_key(), x509.random_serial_number())
            .not_valid_before(datetime(2020, 1, 1, tzinfo=UTC))
            .not_valid_after(datetime(2100, 1, 1, tzinfo=UTC))
            .add_extension(x509.BasicConstraints(usage["key_cert_sign"], None), critical=True)
            .add_extension(x509.KeyUsage(**all_uses, **usage), critical=True)
            .sign(by, hashes.SHA256())
        )
        (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        return folder / f"{name}.pem"

    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root_use = {"digital_signature": False, "key_cert_sign": True}
    root = certify("root", root_key, "root", root_key, root_use)
    use = {"digital_signature": True, "key_cert_sign": False}
    return write_private(folder / "key.pem", key), certify("us", key, "root", root_key, use), root


def quick_start_output(folder: Path) -> str:
    """What the code on a release's card prints, run in that folder with nothing of ours around."""
    card = (folder / "README.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    (folder / "quick_start.py").write_text(script)
    return run(folder, sys.executable, "-I", "quick_start.py").stdout


def released(out: Path, target: str | None = None, **options: Any) -> dict[str, Any]:
    """Release a run of the current folder; without MLflow, unless `mlflow` says otherwise."""
    return release(Finder(Path.cwd()).find(target), out, Options(**({"mlflow": False} | options)))


@pytest.fixture(scope="session")
def signed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A signed release of the finished pipeline (made/model), with both keys; never changed."""
    pytest.importorskip("rocrate", reason="make install: the extra `release`")
    pytest.importorskip("model_signing", reason="make install: the extra `release`")
    folder = tmp_path_factory.mktemp("release")
    shutil.copytree(finished, folder / "run", symlinks=True)
    private, _ = write_keys(folder, "ours")
    write_keys(folder, "another")
    (folder / "made").mkdir()
    with chdir(folder / "run"), pytest.MonkeyPatch.context() as patch:
        for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        released(folder / "made/model", key=private)
    return folder


def rehash(folder: Path, *, crate: bool = True) -> None:
    """Make SHA256SUMS, and with `crate` the crate, say of every file what it is now."""
    if crate:
        content = files.read_json(folder / CRATE)
        for entity in content["@graph"]:
            if "File" in entity["@type"] and (folder / entity["@id"]).is_file():
                entity["sha256"] = files.sha256(folder / entity["@id"])
        files.write_json(folder / CRATE, content)
    names = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != SUMS]
    lines = [f"{files.sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in names]
    (folder / SUMS).write_text("".join(lines))


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path.name} has no {old!r}"
    path.write_text(text.replace(old, new, 1))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(files.read_json(path) | changes))
