"""Releases put onto a hub that is played on 127.0.0.1, and when none is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from regrpo import cli
from regrpo.core import files
from regrpo.release.layout import ABOUT, CARD, SUMS
from tests.support.hub import READ_ONLY, TOKEN, Hub, hub
from tests.support.releases import released, write_keys

__all__ = ["hub"]
REPO = "me/sums"
# huggingface_hub's own call of its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


@pytest.fixture
def folder(signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the signed release `model`, beside it its signature; its parent is current."""
    shutil.copytree(signed / "made", tmp_path / "here")
    shutil.copyfile(signed / "ours.pub", tmp_path / "here/ours.pub")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here/model"


def published(*options: str, repo: str = REPO) -> int:
    return cli.main(["publish", "model", "--repo-id", repo, "--no-mlflow", *options])


def test_a_dry_run_lists_everything_and_asks_nobody(
    folder: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert published() == 0
    said = capsys.readouterr().out
    size = (folder / "model.safetensors").stat().st_size
    assert f" {size}  model.safetensors\n" in said
    assert "metadata language: en" in said
    assert "model.sig" in said
    assert "nothing was sent" in said
    assert hub.requests == []


def test_what_is_got_from_the_hub_is_the_folder_and_verifies(
    folder: Path, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from model_signing import verifying

    assert published("--yes", "--json", "--pubkey", "ours.pub") == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert result["commit"] == hub.oid(REPO)
    assert len(hub.repos[REPO]) == 2, "the hub's own first commit, and one of ours"
    got = hub.download(REPO, tmp_path / "got")
    assert cli.main(["verify", str(got), "--pubkey", "ours.pub"]) == 0
    theirs = verifying.Config().use_elliptic_key_verifier(public_key=Path("ours.pub"))
    theirs.verify(got, got / "model.sig")
    (got / "config.json").write_text("other")
    assert cli.main(["verify", str(got), "--pubkey", "ours.pub"]) == 1
    held = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not [data for data in [*held, said.out.encode(), said.err.encode()] if b"hf_" in data]


def test_publishing_again_changes_and_sends_nothing(folder: Path, hub: Hub) -> None:
    assert published("--yes") == 0
    sent = len([one for one in hub.requests if one[0] == "PUT"])
    assert sent > 0
    assert published("--yes") == 0
    assert len(hub.repos[REPO]) == 2
    assert len([one for one in hub.requests if one[0] == "PUT"]) == sent


def test_what_a_repository_held_besides_is_removed_and_said(
    folder: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.create(REPO, **{"old.safetensors": b"old", "README.md": b"an old card"})
    assert published("--yes") == 0
    assert "note no part of the release, removed: old.safetensors" in capsys.readouterr().out
    assert "old.safetensors" not in hub.repos[REPO][-1]
    assert hub.repos[REPO][-1][CARD] == (folder / CARD).read_bytes()


def test_an_upload_that_is_interrupted_commits_nothing_and_goes_on_later(
    folder: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.drops = True
    assert published("--yes") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "Nothing was committed: publish again" in said
    assert len(hub.repos[REPO]) == 1
    hub.drops = False
    assert published("--yes") == 0
    assert len(hub.repos[REPO]) == 2


# --- when nothing is published --------------------------------------------------------------------


@pytest.mark.parametrize("exists", [True, False])
def test_a_token_that_may_not_write_is_refused(
    folder: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    exists: bool,
) -> None:
    monkeypatch.setenv("HF_TOKEN", READ_ONLY)
    if exists:
        hub.create(REPO)
    assert published("--yes") == 1
    said = capsys.readouterr().err
    assert "expected a login that may write to me; found one that may not (403)" in said
    assert said.count("\n") == 1
    assert READ_ONLY not in said


def test_no_login_and_an_unknown_token_are_refused(
    folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    assert published("--yes") == 1
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(folder / "no token"))
    assert published("--yes") == 1
    said = capsys.readouterr().err.splitlines()
    assert ["`hf auth login`, or set HF_TOKEN." in line for line in said] == [True, True]


@pytest.mark.parametrize("how", ["offline", "unreachable"])
def test_no_way_to_the_hub_is_one_line(
    folder: Path,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
) -> None:
    if how == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert published("--yes") == 2
    said = capsys.readouterr().err
    assert "the hub (me/sums): expected a way to it; found none" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("repo", ["sums", "me/a b", "me/--a", "me/you/sums"])
def test_a_name_that_the_hub_would_refuse_is_refused_before_anything_else(
    folder: Path, hub: Hub, capsys: pytest.CaptureFixture[str], repo: str
) -> None:
    (folder / SUMS).unlink()
    assert published("--yes", repo=repo) == 1
    assert "--repo-id: expected OWNER/NAME" in capsys.readouterr().err
    assert hub.requests == []


def test_a_folder_that_is_not_whole_is_refused_before_anybody_is_asked(
    folder: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "model.safetensors").write_text("other weights")
    assert published("--yes") == 1
    assert "model.safetensors: expected SHA-256" in capsys.readouterr().err
    assert hub.requests == []


def test_a_signature_by_another_key_is_refused(folder: Path, hub: Hub) -> None:
    _, other = write_keys(folder.parent, "another")
    assert published("--yes", "--pubkey", str(other)) == 1
    assert hub.requests == []


def test_a_card_that_names_another_repository_is_refused(
    signed: Path,
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(signed / "run")
    released(tmp_path / "model", repo_id="me/others")
    monkeypatch.chdir(tmp_path)
    assert published("--yes") == 1
    assert "expected me/sums; found me/others" in capsys.readouterr().err
    assert published(repo="me/others") == 0
    assert "note the card's quick start" not in capsys.readouterr().out
    assert hub.requests == []


def test_metadata_that_the_hub_refuses_are_named_before_a_file_is_sent(
    folder: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.refuses_card = True
    assert published("--yes") == 1
    assert '"license" must be one of' in capsys.readouterr().err
    assert not [one for one in hub.requests if one[0] == "PUT"]


def test_a_commit_that_lacks_a_file_is_no_success(
    folder: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.ignores = "tokenizer.json"
    assert published("--yes") == 1
    assert "found other bytes or none of tokenizer.json" in capsys.readouterr().err


# --- MLflow ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_mlflows_version_names_the_commit(
    signed: Path, folder: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from regrpo.compare.promote import promote
    from regrpo.tracking.sync import opened
    from tests.support.audited import at_home, audited

    run = shutil.copytree(signed / "run", tmp_path / "run", symlinks=True)
    monkeypatch.chdir(run)
    for name in ("DVC_ROOT", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    at_home(run)
    promoted = promote("workspace", run)
    assert cli.main(["publish", str(folder), "--repo-id", REPO, "--yes"]) == 0
    key = files.read_json(folder / ABOUT)["pipeline_key"]
    with opened(create=False) as store:
        registry = store.registry()
        version = registry.version_of(promoted["model"], key)
        assert version
        assert version["tags"]["regrpo.release.hub"] == f"{REPO}@{hub.oid(REPO)}"
        assert version["tags"]["regrpo.release"] == files.sha256(folder / SUMS)
        assert TOKEN not in str(version)
    assert audited(mlflow=True)["faults"] == []
