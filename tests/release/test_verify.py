"""Twenty ways to tamper with a signed release, each found and named; and what is no tampering."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from regrpo import cli
from regrpo.core import files
from regrpo.release.layout import ABOUT, CARD, CRATE, METRICS, RUN_CARD, SUMS
from tests.support.projects import ROOT
from tests.support.releases import edit_json, rehash, released, replace

WEIGHTS = "model.safetensors"
SCORE = "75.0 %"
"""GRPO's accuracy, as the card has it."""


def verified(folder: Path, *options: str) -> int:
    return cli.main(["verify", str(folder), *options])


@pytest.fixture
def here(signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the signed release `model`, with its signature and the keys; the current folder."""
    shutil.copytree(signed / "made", tmp_path / "here")
    for name in ("ours.pem", "ours.pub", "another.pem", "another.pub"):
        shutil.copyfile(signed / name, tmp_path / "here" / name)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


MODEL = Path("model")
SIGNATURE = Path("model.sig")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap() -> None:
    (MODEL / "config.json").write_text("1")
    rehash(MODEL)
    for name in ("config.json", "tokenizer.json"):
        (MODEL / name).rename(f"{name}.aside")
    Path("config.json.aside").rename(MODEL / "tokenizer.json")
    Path("tokenizer.json.aside").rename(MODEL / "config.json")


def better() -> None:
    """Another number in the results, on the card, in the run's card, hashed again everywhere."""
    replace(MODEL / METRICS, "0.75", "0.76")
    for card in (CARD, RUN_CARD):
        replace(MODEL / card, "value: 0.75", "value: 0.76")
    rehash(MODEL)


def signed_by_another() -> None:
    from model_signing import signing

    better()
    signing.Config().use_elliptic_key_signer(private_key="another.pem").sign(MODEL, SIGNATURE)


def drop_line() -> None:
    lines = (MODEL / SUMS).read_text().splitlines(keepends=True)
    (MODEL / SUMS).write_text("".join(line for line in lines if WEIGHTS not in line))


def link() -> None:
    (MODEL / WEIGHTS).rename("aside")
    (MODEL / WEIGHTS).symlink_to(Path("aside").absolute())


TAMPERINGS: dict[str, tuple[Callable[[], object], str]] = {
    "a bit of a weight": (lambda: flip(MODEL / WEIGHTS), f"{WEIGHTS}: expected SHA-256"),
    "a bit of the adapter": (
        lambda: flip(MODEL / "adapter/adapter_model.safetensors"),
        "adapter/adapter_model.safetensors: expected SHA-256",
    ),
    "a number on the card": (
        lambda: replace(MODEL / CARD, SCORE, "99.0 %"),
        f"{CARD}: expected SHA-256",
    ),
    "a file added": (lambda: (MODEL / "more.py").write_text("1"), "more.py: expected no file"),
    "a hidden file added": (lambda: (MODEL / ".gitignore").touch(), ".gitignore: expected no file"),
    "a file removed": (lambda: (MODEL / "config.json").unlink(), "config.json: expected the file"),
    "a file renamed": (
        lambda: (MODEL / WEIGHTS).rename(MODEL / "weights.safetensors"),
        f"{WEIGHTS}: expected the file",
    ),
    "a file moved": (
        lambda: (MODEL / "config.json").rename(MODEL / "reports/config.json"),
        "config.json: expected the file",
    ),
    "two files swapped": (swap, "config.json: expected SHA-256"),
    "a file emptied": (
        lambda: (MODEL / "reports/evaluate/samples.parquet").write_bytes(b""),
        "reports/evaluate/samples.parquet: expected SHA-256",
    ),
    "a link instead of a file": (link, f"{WEIGHTS}: expected a file"),
    "no list of hashes": (lambda: (MODEL / SUMS).unlink(), f"{SUMS}: expected the SHA-256"),
    "a line of the list removed": (drop_line, f"{WEIGHTS}: expected no file"),
    "the list hashed again": (
        lambda: (flip(MODEL / WEIGHTS), rehash(MODEL)),
        f"other bytes than were signed in SHA256SUMS, {WEIGHTS}, {CRATE}",
    ),
    "another number, hashed again": (better, "other bytes than were signed in"),
    "signed by another key": (signed_by_another, "model.sig: expected the signature"),
    "a truncated signature": (
        lambda: SIGNATURE.write_bytes(SIGNATURE.read_bytes()[:-100]),
        "model.sig: expected the signature",
    ),
    "an empty signature": (lambda: SIGNATURE.write_text(""), "model.sig: expected the signature"),
    "a signature altered": (
        lambda: replace(SIGNATURE, '"sig":', '"sig": "MEUC", "was":'),
        "model.sig: expected the signature",
    ),
    "no signature": (SIGNATURE.unlink, "model.sig: expected the folder's signature"),
    "a record of another run": (
        lambda: (edit_record("0" * 64), rehash(MODEL)),
        "other bytes than were signed in SHA256SUMS, reports/grpo/run.json",
    ),
}


def edit_record(sha256: str) -> None:
    path = MODEL / "reports/grpo/run.json"
    replace(path, files.sha256(MODEL / WEIGHTS), sha256)


@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_a_tampering_of_a_signed_folder_is_named(
    here: Path, capsys: pytest.CaptureFixture[str], tampering: str
) -> None:
    tamper, named = TAMPERINGS[tampering]
    tamper()
    assert verified(MODEL, "--pubkey", "ours.pub") == 1
    said = capsys.readouterr()
    assert named in said.err, said.err
    assert (said.out, said.err.count("\n")) == ("", 1)


def better_crate() -> None:
    replace(MODEL / CRATE, '"value": 0.75', '"value": 0.76')
    rehash(MODEL, crate=False)


WITHOUT_A_KEY: dict[str, tuple[Callable[[], object], str]] = {
    "a number on the card": (
        lambda: (replace(MODEL / CARD, SCORE, "99.0 %"), rehash(MODEL)),
        f"{CARD}, line 42: expected text",
    ),
    "a number on both cards": (
        lambda: (
            [replace(MODEL / card, "value: 0.75", "value: 0.99") for card in (CARD, RUN_CARD)],
            rehash(MODEL),
        ),
        f"{RUN_CARD}: expected SHA-256",
    ),
    "a number of the crate": (better_crate, f"{CRATE}: expected asked grpo: 0.75"),
    "a hash of the crate": (
        lambda: (
            replace(MODEL / CRATE, files.sha256(MODEL / WEIGHTS), "0" * 64),
            rehash(MODEL, crate=False),
        ),
        "model.safetensors: expected SHA-256",
    ),
    "results that are not the run's": (better, f"{METRICS}: expected SHA-256"),
    "weights that are not the run's": (
        lambda: (flip(MODEL / WEIGHTS), rehash(MODEL)),
        f"{WEIGHTS}: expected SHA-256",
    ),
    "a crate that is none": (
        lambda: ((MODEL / CRATE).write_text("{}"), rehash(MODEL, crate=False)),
        "model: expected the files of a release",
    ),
}


@pytest.mark.parametrize("tampering", WITHOUT_A_KEY)
def test_parts_that_do_not_say_the_same_are_named_without_a_key_too(
    here: Path, capsys: pytest.CaptureFixture[str], tampering: str
) -> None:
    tamper, named = WITHOUT_A_KEY[tampering]
    tamper()
    assert verified(MODEL) == 1
    said = capsys.readouterr().err
    assert named in said, said


def test_numbers_that_were_changed_in_every_record_still_have_to_be_equal(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files.sha256(MODEL / METRICS)
    replace(MODEL / METRICS, "0.75", "0.76")
    for stage in ("evaluate", "model_card"):
        replace(MODEL / f"reports/{stage}/run.json", before, files.sha256(MODEL / METRICS))
    record = MODEL / "reports/evaluate/run.json"
    listed = files.read_json(MODEL / "reports/model_card/run.json")[0]["inputs"]
    (was,) = [item["sha256"] for item in listed if item["path"] == "reports/evaluate/run.json"]
    replace(MODEL / "reports/model_card/run.json", was, files.sha256(record))
    rehash(MODEL)
    assert verified(MODEL) == 1
    assert f"{CRATE}: expected asked grpo: 0.76, as {METRICS} has it" in capsys.readouterr().err


# --- what is no tampering -------------------------------------------------------------------------


def test_a_whole_release_says_what_it_is_and_what_was_not_looked_at(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verified(MODEL, "--pubkey", "ours.pub") == 0
    said = capsys.readouterr().out
    assert said.startswith("whole: regrpo-chain-sum, ")
    assert "signature verified: model.sig" in said
    assert verified(MODEL) == 0
    assert "not looked at: model.sig" in capsys.readouterr().out
    SIGNATURE.unlink()
    assert verified(MODEL) == 0
    assert "signature none" in capsys.readouterr().out


def test_a_copy_through_a_zip_with_other_times_and_rights_is_whole(here: Path) -> None:
    with zipfile.ZipFile("model.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(MODEL.rglob("*")):
            archive.writestr(path.as_posix(), path.read_bytes() if path.is_file() else b"")
    with zipfile.ZipFile("model.zip") as archive:
        files_only = [name for name in archive.namelist() if (here / name).is_file()]
        archive.extractall("elsewhere/deep", files_only)
    copy = Path("elsewhere/deep/model").rename("elsewhere/another-name")
    shutil.copyfile(SIGNATURE, "elsewhere/another-name.sig")
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    assert verified(copy, "--pubkey", "ours.pub") == 0


def test_nothing_but_python_is_needed_and_nothing_heavy_is_loaded(here: Path) -> None:
    command = [sys.executable, "-S", "-P", "-m", "regrpo.cli", "verify", "model"]
    done = subprocess.run(
        command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("prepare", "named"),
    [
        (lambda: edit_json(MODEL / ABOUT, schema_version=2), "schema_version 2"),
        (lambda: (MODEL / ABOUT).unlink(), f"no {ABOUT} in it"),
        (lambda: shutil.rmtree(MODEL), "no folder"),
    ],
)
def test_what_cannot_be_checked_is_exit_code_2(
    here: Path, capsys: pytest.CaptureFixture[str], prepare: Callable[[], object], named: str
) -> None:
    prepare()
    assert verified(MODEL) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "code"), [("ours.pem", 1), ("model/config.json", 1), ("none.pub", 2)]
)
def test_a_public_key_that_is_none_is_one_line(
    here: Path, capsys: pytest.CaptureFixture[str], key: str, code: int
) -> None:
    assert verified(MODEL, "--pubkey", key) == code
    said = capsys.readouterr().err
    assert said.startswith(f"regrpo verify: {key}: expected")
    assert said.count("\n") == 1


def test_a_release_that_was_forced_says_what_its_audit_found(
    signed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(signed / "run", tmp_path / "run", symlinks=True)
    monkeypatch.chdir(tmp_path / "run")
    with Path("stages/sft.py").open("a") as script:
        script.write("\n# changed since\n")
    released(tmp_path / "forced", force=True)
    assert "**The run did not pass its audit" in (tmp_path / "forced" / CARD).read_text()
    assert verified(tmp_path / "forced") == 0
    assert "note its audit found: input, sft: stages/sft.py" in capsys.readouterr().out
