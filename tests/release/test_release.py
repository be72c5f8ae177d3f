"""What a release holds, and when none is made."""

from __future__ import annotations

import json
import re
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regrpo import cli
from regrpo.core import files
from regrpo.core.errors import CannotCheck, Refused
from regrpo.release import release as releases
from regrpo.release.layout import ABOUT, CARD, CRATE, METRICS, SUMS
from tests.support.releases import released, write_keys, write_private

MODEL_FILES = {"config.json", "tokenizer.json", "model.safetensors"}


@pytest.fixture
def run(signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished pipeline that `signed` was made of; the current folder."""
    shutil.copytree(signed / "run", tmp_path / "run", symlinks=True)
    monkeypatch.chdir(tmp_path / "run")
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_a_release_holds_model_card_results_and_provenance(signed: Path) -> None:
    made = contents(signed / "made/model")
    weights = (signed / "run/models/grpo/model.safetensors").read_bytes()
    assert made["model.safetensors"] == weights
    assert made.keys() >= MODEL_FILES
    assert made.keys() >= {"adapter/adapter_model.safetensors", "LICENSE", "NOTICE", "dvc.lock"}
    assert made.keys() >= {METRICS, "reports/evaluate/samples.parquet", "reports/grpo/curves.png"}
    assert made.keys() >= {"reports/grpo/run.json", "params.yaml", "dvc.yaml", CRATE, SUMS, ABOUT}
    assert "reports/grpo/samples.parquet" not in made, "texts of the training data stay"
    assert not [name for name in made if name.startswith(("models/", "data/prepared/train"))]
    assert b"CC-BY-4.0" in made["NOTICE"]


def test_every_link_and_picture_of_the_card_is_in_the_folder(signed: Path) -> None:
    folder = signed / "made/model"
    card = (folder / CARD).read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", card) if "://" not in link]
    assert links == ["reports/evaluate/comparison.png"]
    assert all((folder / link).is_file() for link in links)
    assert 'model="."' in card
    assert "`adapter`" in card
    assert "models/grpo/adapter" not in card


def test_the_same_run_gives_the_same_bytes_from_workspace_and_commit(
    signed: Path, run: Path, tmp_path: Path
) -> None:
    shutil.rmtree("models/grpo")  # git and DVC's cache are enough
    released(tmp_path / "again", "HEAD")
    assert contents(tmp_path / "again") == contents(signed / "made/model")
    times = {path.stat().st_mtime for path in (tmp_path / "again").rglob("*") if path.is_file()}
    assert len(times) == 1


def test_the_crate_names_every_step_input_output_parameter_and_version(signed: Path) -> None:
    folder = signed / "made/model"
    graph = {one["@id"]: one for one in files.read_json(folder / CRATE)["@graph"]}
    (record,) = files.read_json(folder / "reports/sft/run.json")
    action = graph[f"#run/{record['run']}"]
    inputs = {graph[one["@id"]]["name"] for one in action["object"]}
    assert {item["path"] for item in record["inputs"]} - inputs <= {
        "data/prepared/dataset.json",
        "reports/base_model/source.json",
        "reports/validate/verdict.json",
    }
    parameters = next(iter(record["parameters"].values()))["sft"]
    assert {f"sft.{name}" for name in parameters} <= inputs
    made = {graph[one["@id"]]["name"]: graph[one["@id"]]["sha256"] for one in action["result"]}
    (model,) = [item for item in record["outputs"] if item["path"] == "models/sft"]
    assert made["models/sft"] == model["sha256"]
    tool = graph[action["instrument"]["@id"]]
    versions = [graph[one["@id"]] for one in tool["softwareRequirements"]]
    torch = record["environment"]["packages"]["torch"]
    assert torch in [one["version"] for one in versions if one["name"] == "torch"]
    assert graph["model.safetensors"]["sha256"] == files.sha256(folder / "model.safetensors")
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}-4", json.dumps(graph)), "a random id"


def test_the_hubs_name_stands_in_the_quick_start(run: Path, tmp_path: Path) -> None:
    released(tmp_path / "named", repo_id="me/sums")
    assert 'model="me/sums"' in (tmp_path / "named" / CARD).read_text()
    assert cli.main(["verify", str(tmp_path / "named")]) == 0


@pytest.mark.parametrize("name", ["sums", "me/you/sums", "me/", "me/a b", "me/--a", "a" * 97])
def test_a_name_that_the_hub_would_refuse_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(Refused, match="--repo-id: expected OWNER/NAME"):
        released(tmp_path / "out", repo_id=name)
    assert not (tmp_path / "out").exists()


def test_signed_by_certificate_is_verified_by_its_root(run: Path, tmp_path: Path) -> None:
    from tests.support.releases import write_certificates

    key, certificate, root = write_certificates(tmp_path)
    released(tmp_path / "out", key=key, certificate=certificate, chain=[root])
    assert cli.main(["verify", str(tmp_path / "out"), "--trust", str(root)]) == 0
    (tmp_path / "other").mkdir()
    _, _, stranger = write_certificates(tmp_path / "other")
    assert cli.main(["verify", str(tmp_path / "out"), "--trust", str(stranger)]) == 1


def test_a_licence_that_the_bases_may_not_allow_is_a_line_of_two_names(
    run: Path, tmp_path: Path
) -> None:
    source = Path("reports/base_model/source.json")
    text = source.read_text().replace("Apache-2.0", "gemma")
    source.unlink()
    source.write_text(text)
    (note,) = released(tmp_path / "out", force=True)["notes"]
    assert "The model is called Apache-2.0, its base weights are gemma" in note
    assert note in (tmp_path / "out/NOTICE").read_text()


# --- when none is made ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["out", "out.sig"])
def test_what_lies_in_the_way_is_left_alone(run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(Refused, match=f"{name}: expected no such file"):
        released(tmp_path / "out")
    assert (tmp_path / name).read_text() == "mine"


def test_an_empty_folder_is_filled_and_a_full_one_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    released(tmp_path / "out")
    with pytest.raises(Refused, match="found one that holds something"):
        released(tmp_path / "out")


def encrypted(folder: Path) -> Path:
    from cryptography.hazmat.primitives.asymmetric import ec

    return write_private(folder / "k.pem", ec.generate_private_key(ec.SECP256R1()), b"secret")


def of_rsa(folder: Path) -> Path:
    from cryptography.hazmat.primitives.asymmetric import rsa

    return write_private(folder / "k.pem", rsa.generate_private_key(65537, 2048))


def of_another_curve(folder: Path) -> Path:
    from cryptography.hazmat.primitives.asymmetric import ec

    return write_private(folder / "k.pem", ec.generate_private_key(ec.SECP256K1()))


def of_text(folder: Path) -> Path:
    (folder / "k.pem").write_text("no key")
    return folder / "k.pem"


def only_public(folder: Path) -> Path:
    return write_keys(folder, "k")[1]


@pytest.mark.parametrize("make", [encrypted, of_rsa, of_another_curve, of_text, only_public])
def test_a_key_that_cannot_sign_is_refused_before_anything_is_written(
    run: Path, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    key = make(tmp_path)
    with pytest.raises(Refused, match="expected an elliptic curve's private key"):
        released(tmp_path / "out", key=key)
    assert not (tmp_path / "out").exists()


def test_a_key_that_is_not_there_cannot_be_checked(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotCheck, match=r"none\.pem: expected"):
        released(tmp_path / "out", key=tmp_path / "none.pem")


def test_a_signature_that_fails_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, _ = write_keys(tmp_path, "k")
    monkeypatch.setattr("model_signing.signing.Config.sign", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        released(tmp_path / "out", key=key)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k.pem", "k.pub", "run"]


def test_no_room_is_said_before_anything_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(releases.shutil, "disk_usage", lambda _: usage(1, 1, 1000))
    with pytest.raises(CannotCheck, match="expected 17 MB free"):
        released(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_full_disk_leaves_nothing(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(releases, "crate_json", full)
    with pytest.raises(OSError, match="No space"):
        released(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(("target", "fetch"), [(None, "dvc pull"), ("HEAD", "dvc fetch")])
def test_bytes_that_are_only_on_a_remote_are_asked_for(
    run: Path, tmp_path: Path, target: str | None, fetch: str
) -> None:
    shutil.rmtree("models/grpo")
    shutil.rmtree(".dvc/cache")
    with pytest.raises(CannotCheck, match=f"models/grpo/.*`{fetch}"):
        released(tmp_path / "out", target)


def test_a_run_that_does_not_audit_clean_is_refused_and_named(run: Path, tmp_path: Path) -> None:
    weights = Path("models/grpo/model.safetensors")
    weights.unlink()
    weights.write_text("other weights")
    with pytest.raises(Refused, match=r"models/grpo/model\.safetensors: changed.*--force"):
        released(tmp_path / "out")
    released(tmp_path / "out", force=True)
    assert cli.main(["verify", str(tmp_path / "out")]) == 1


def test_a_card_of_another_template_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = Path("reports/model_card/README.md")
    text = card.read_text().replace("## Lineage", "## Origin")
    card.unlink()
    card.write_text(text)
    out = ["release", "workspace", "--out", str(tmp_path / "out"), "--no-mlflow", "--force"]
    assert cli.main(out) == 1
    assert "expected a card with '## Lineage'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_certificate_without_its_key_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["release", "workspace", "--out", "out", "--certificate", "c.pem"]) == 1
    assert "--certificate: expected the certificate's private key" in capsys.readouterr().err


# --- MLflow ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_mlflows_version_leads_to_the_release(run: Path, tmp_path: Path) -> None:
    from regrpo.compare.promote import promote
    from regrpo.tracking.sync import opened
    from tests.support.audited import at_home, audited

    at_home(run)
    promoted = promote("workspace", run)
    key, _ = write_keys(tmp_path, "k")
    result = released(tmp_path / "out", key=key, mlflow=True)
    assert result["notes"] == []
    with opened(create=False) as store:
        registry = store.registry()
        version = registry.holder(promoted["model"], "released")
        assert version
        assert version["version"] == promoted["version"]
        assert version["tags"]["regrpo.release"] == files.sha256(tmp_path / "out" / SUMS)
        signature = files.sha256(tmp_path / "out.sig")
        assert version["tags"]["regrpo.release.signature"] == signature
        row = registry.row(result["pipeline_key"])
        assert registry.artifact(row, f"release/{SUMS}") == (tmp_path / "out" / SUMS).read_bytes()
    assert audited(mlflow=True)["faults"] == []


def test_an_mlflow_that_is_gone_stops_no_release(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere/mlflow.db")
    result = released(tmp_path / "out", mlflow=True)
    assert result["notes"] == ["MLflow was not told: no such file"]
    assert cli.main(["verify", str(tmp_path / "out")]) == 0
