"""Bytes of outputs: changed, missing and extra ones here, in the cache and on the remote."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.audited import (
    MODEL,
    Fault,
    Named,
    assert_complete,
    audited,
    cached,
    edit_whole_lock,
    flip,
    found,
    listing_of,
    require_found,
)
from tests.support.projects import run


def rewrite_listing() -> None:
    path = listing_of("models/sft")
    path.chmod(0o644)
    path.write_text(path.read_text().replace("model.safetensors", "weights.safetensors"))


def other_digit() -> None:
    """One digit of an MD5 in a cached listing, which then names an object that is not there."""
    path = listing_of("data/prepared")
    text = path.read_text()
    at = text.index('"md5": "') + len('"md5": "')
    path.chmod(0o644)
    path.write_text(text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :])


FAULTS: dict[str, Fault] = {
    "weights": (lambda: flip(MODEL), ("output", "grpo", MODEL), {}),
    "base weights": (
        lambda: flip("models/base/model.safetensors"),
        ("output", "base_model", "models/base/model.safetensors"),
        {},
    ),
    "prepared data": (
        lambda: flip("data/prepared/eval.parquet"),
        ("output", "prepare", "data/prepared/eval.parquet"),
        {},
    ),
    "card": (
        lambda: flip("reports/model_card/README.md"),
        ("output", "model_card", "reports/model_card/README.md"),
        {},
    ),
    "evaluation samples": (
        lambda: flip("reports/evaluate/samples.parquet"),
        ("output", "evaluate", "reports/evaluate/samples.parquet"),
        {},
    ),
    "reward history": (
        lambda: flip("reports/grpo/history.csv"),
        ("output", "grpo", "reports/grpo/history.csv"),
        {},
    ),
    "cached weights": (lambda: flip(cached(MODEL)), ("cache", "grpo", MODEL), {}),
    "cached data": (
        lambda: flip(cached("data/prepared/dev.parquet")),
        ("cache", "prepare", "data/prepared/dev.parquet"),
        {},
    ),
    "cached listing": (rewrite_listing, ("cache", "sft", "models/sft"), {}),
    "digit of a cached listing": (other_digit, ("cache", "prepare", "data/prepared"), {}),
    "run-cache's metrics": (
        lambda: flip(cached("reports/grpo/metrics.json")),
        ("cache", "grpo", "reports/grpo/metrics.json"),
        {},
    ),
    "remote weights": (
        lambda: flip(cached(MODEL, "../remote/files/md5")),
        ("remote", "grpo", MODEL),
        {"remote": True},
    ),
    "remote samples": (
        lambda: flip(cached("reports/grpo/samples.parquet", "../remote/files/md5")),
        ("remote", "grpo", "reports/grpo/samples.parquet"),
        {"remote": "store"},
    ),
    "missing file": (
        lambda: Path("models/sft/tokenizer.json").unlink(),
        ("output", "sft", "models/sft/tokenizer.json"),
        {},
    ),
    "missing folder": (lambda: shutil.rmtree("models/grpo"), ("output", "grpo", "models/grpo"), {}),
    "missing report": (
        lambda: Path("reports/sft/metrics.json").unlink(),
        ("output", "sft", "reports/sft/metrics.json"),
        {},
    ),
    "missing record": (
        lambda: Path("reports/sft/run.json").unlink(),
        ("output", "sft", "reports/sft/run.json"),
        {},
    ),
    "extra file": (
        lambda: Path("models/grpo/extra.bin").write_text("x"),
        ("output", "grpo", "models/grpo/extra.bin"),
        {},
    ),
    "extra split": (
        lambda: Path("data/prepared/more.parquet").write_text("x"),
        ("output", "prepare", "data/prepared/more.parquet"),
        {},
    ),
    "dangling link": (
        lambda: Path("models/grpo/adapter.safetensors").symlink_to("nowhere"),
        ("output", "grpo", "models/grpo/adapter.safetensors"),
        {},
    ),
    "link to a folder": (
        lambda: Path("models/grpo/more").symlink_to("../base", target_is_directory=True),
        ("output", "grpo", "models/grpo/more"),
        {},
    ),
    "link to a file": (
        lambda: Path("models/grpo/other.safetensors").symlink_to("model.safetensors"),
        ("output", "grpo", "models/grpo/other.safetensors"),
        {},
    ),
    "pipe": (lambda: os.mkfifo("models/sft/pipe"), ("output", "sft", "models/sft/pipe"), {}),
    "renamed file": (
        lambda: Path("models/base/config.json").rename("models/base/conf.json"),
        ("output", "base_model", "models/base/conf.json"),
        {},
    ),
}
ALSO: dict[str, set[Named]] = {
    "cached weights": {("cache", "sft", "models/sft/model.safetensors")},
    "remote weights": {("remote", "sft", "models/sft/model.safetensors")},
    "renamed file": {("output", "base_model", "models/base/config.json")},
}
"""What else a planted fault makes untrue; nothing besides may be accused."""


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_and_named(copy: Path, name: str) -> None:
    require_found(FAULTS[name], ALSO.get(name, set()))


def test_new_times_of_change_are_no_fault(copy: Path) -> None:
    for file in copy.rglob("*"):
        if file.is_file() and ".git" not in file.parts:
            os.utime(file, (1, 1))
    assert_complete(audited())


def test_objects_that_were_only_fetched_are_checked_in_the_cache(copy: Path) -> None:
    models = ("models/base", "models/sft", "models/grpo")
    for path in ("data/prepared", "data/selected", *models):
        shutil.rmtree(path)
    for path in (
        "reports/validate/failures.parquet",
        "reports/validate/report.html",
        "reports/grpo/samples.parquet",
        "reports/evaluate/samples.parquet",
        "reports/model_card/README.md",
    ):
        Path(path).unlink()
    assert_complete(audited())


def test_no_remote_and_a_remote_without_the_object_are_not_checkable(copy: Path) -> None:
    weights = "models/base/model.safetensors"
    cached(weights, "../remote/files/md5").unlink()
    result = audited(remote=True)
    assert found(result, "unchecked") == {("remote", "base_model", weights)}
    assert "dvc push" in result["unchecked"][0]["text"]
    run(copy, "dvc", "remote", "remove", "store")
    assert found(audited(remote=True), "unchecked") == {("remote", None, "remote (default)")}
    assert found(audited(remote="other"), "unchecked") == {("remote", None, "remote other")}


def test_what_no_hash_tells_of_is_noted(copy: Path) -> None:
    Path("models/grpo/.DS_Store").write_text("hidden")
    Path("models/grpo/.gitignore").write_text("*.bin")
    Path("models/sft/empty/inner").mkdir(parents=True)
    shutil.move("models/base/config.json", copy.parent / "config.json")
    Path("models/base/config.json").symlink_to(copy.parent / "config.json")
    result = audited()
    assert_complete(result)
    assert found(result, "notes") == {
        ("output", "grpo", "models/grpo/.DS_Store"),
        ("output", "grpo", "models/grpo/.gitignore"),
        ("output", "sft", "models/sft/empty/inner"),
        ("output", "base_model", "models/base/config.json"),
    }


def test_dvcs_own_links_and_a_lock_without_sizes_are_nothing_to_tell_of(copy: Path) -> None:
    target = cached(MODEL).resolve()
    Path(MODEL).unlink()
    Path(MODEL).symlink_to(target)
    assert audited()["notes"] == []
    edit_whole_lock(
        lambda stages: [
            one.pop(key, None)
            for entry in stages.values()
            for one in [*entry["outs"], *entry["deps"]]
            for key in ("size", "nfiles")
        ]
    )
    assert (
        run(copy, "dvc", "status", DVC_SITE_CACHE_DIR=str(copy / "site"))
        .stdout.strip()
        .endswith("up to date.")
    )
    result = audited()
    assert_complete(result)
    assert found(result, "notes") == {("uncommitted", None, "dvc.lock")}
    assert audited("HEAD")["notes"] == []
