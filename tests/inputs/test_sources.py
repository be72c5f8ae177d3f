"""Where rows come from: paths that are refused, hubs that cannot be reached, generators."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from regrpo.core.errors import CannotCheck, Refused, RegrpoError
from regrpo.inputs import sources
from tests.support import stand_ins

GOOD = b'{"question": "1+1=", "answer": "2"}\n'


@pytest.mark.parametrize("name", ["/etc/hosts", "../secret.jsonl", "sub/../../secret.jsonl"])
def test_a_path_outside_the_raw_folder_is_refused_with_the_command_that_brings_it_in(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(Refused, match=r"prepare\.source\.train: expected a path under .*cp -r"):
        sources.file_under(tmp_path, name, "prepare.source.train")


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (raw := tmp_path / "raw").mkdir()
    (elsewhere := tmp_path / "elsewhere").mkdir()
    (elsewhere / "a.jsonl").write_bytes(GOOD)
    (raw / "a.jsonl").symlink_to(elsewhere / "a.jsonl")
    (raw / "folder").symlink_to(elsewhere)
    with pytest.raises(Refused, match=r"raw/a\.jsonl: expected regular files .*leads out of it"):
        sources.file_under(raw, "a.jsonl", "key")
    with pytest.raises(Refused, match="a path under"):
        sources.file_under(raw, "folder", "key")


def test_a_missing_file_cannot_be_checked_and_the_message_says_where_it_belongs(
    tmp_path: Path,
) -> None:
    with pytest.raises(
        CannotCheck,
        match=r"prepare\.source\.eval: expected a file or folder at .*none\.jsonl.*Copy it to",
    ):
        sources.file_under(tmp_path, "none.jsonl", "prepare.source.eval")


def test_a_branch_name_is_refused_and_its_commit_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    import huggingface_hub

    commit = "e53f048856ff4f594e959d75785d2c2d37b678ee"
    monkeypatch.setattr(
        huggingface_hub.HfApi, "repo_info", lambda *_, **__: SimpleNamespace(sha=commit)
    )
    sources.require_commit("openai/gsm8k", commit, "dataset", "key")
    with pytest.raises(
        Refused,
        match=rf"key: expected a commit of dataset openai/gsm8k, 40 hex .*"
        rf"'main', which now points to {commit}",
    ):
        sources.require_commit("openai/gsm8k", "main", "dataset", "key")


def hub(repo: str, revision: str, data_dir: str | None = None) -> sources.Hub:
    return sources.Hub(kind="hub", repo=repo, revision=revision, data_dir=data_dir, license="MIT")


def test_a_hub_source_without_network_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("Couldn't reach the Hub\nat all")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", offline)
    with pytest.raises(CannotCheck) as refusal:
        list(hub("openai/gsm8k", "e53f048856ff4f594e959d75785d2c2d37b678ee").rows("train"))
    message = str(refusal.value)
    assert message.startswith(
        "prepare.source: openai/gsm8k at e53f048856ff: expected its files from the hub"
    )
    assert "no way to the hub (ConnectionError: Couldn't reach the Hub)" in message
    assert "copy the files of split 'train' to data/raw/" in message
    assert "\n" not in message
    with pytest.raises(
        Refused, match=r"'main' \(the hub could not be asked for its commit: ConnectionError\)"
    ):
        list(hub("openai/gsm8k", "main").rows("train"))


@pytest.mark.parametrize(
    ("task", "config"),
    [("no_such_task", {}), ("chain_sum", {"min_term": 3}), ("chain_sum", {"min_terms": -1})],
)
def test_a_generator_or_setting_there_is_not_is_refused(task: str, config: dict[str, Any]) -> None:
    source = sources.ReasoningGym(
        kind="reasoning_gym", task=task, size=10, config=config, license="MIT"
    )
    with pytest.raises(
        RegrpoError, match=rf"prepare\.source: expected a reasoning-gym task .*{task}"
    ):
        list(source.rows(seed=0))


@pytest.mark.parametrize(
    "layout", ["ukrainian/{split}/0000.parquet", "ukrainian/xlsum-{split}.parquet"]
)
def test_a_parquet_conversion_is_read_by_its_folder(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both layouts that the hub's conversions have had.

    Other configurations lie beside it and are left alone.
    """
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    stand_ins.xlsum(tmp_path, train=6, evaluation=3)
    for language in ("ukrainian", "welsh"):
        for split in ("train", "test"):
            target = tmp_path / "repo" / layout.replace("ukrainian", language).format(split=split)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(tmp_path / f"{split}.parquet", target)
    source = hub(str(tmp_path / "repo"), "f" * 40, data_dir="ukrainian")
    train = [row for _, row in source.rows("train")]
    assert train == [stand_ins.xlsum_row(index) for index in range(6)]
    assert len(list(source.rows("test"))) == 3
