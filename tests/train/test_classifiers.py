"""Classifiers as rewards.

What a value is, what is refused, and that nothing of it is left to chance.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regrpo.core import profiles
from regrpo.core.errors import CannotCheck, Refused
from regrpo.train.classifiers import Classifier, Judge, load
from regrpo.train.rewards import get_reward
from tests.support import stand_ins

TEXTS = ["Добрий день!", "", "У Києві відкрили міст.", "x" * 900, "погано", "Так"]


def spec(**changes: Any) -> Classifier:
    values = {"path": "tox", "positive": ["neutral"], "negative": ["toxic"]} | changes
    return profiles.parse_section(Classifier, values, "grpo.classifiers.tox")


def loaded(**changes: Any) -> Judge:
    return load("tox", spec(**changes), "grpo.classifiers.tox", "cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifiers")
    stand_ins.classifier(folder / "tox", ("neutral", "toxic"))
    stand_ins.classifier(
        folder / "several", ("rude", "threat", "kind"), problem_type="multi_label_classification"
    )
    return folder


@pytest.fixture
def raw(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """models/raw/ with the two classifiers, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, tmp_path / "models/raw")
    return tmp_path / "models/raw"


def probabilities(folder: Path, text: str) -> Any:
    """The classifier's own probabilities of one text, by transformers alone."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    batch = AutoTokenizer.from_pretrained(folder)(
        text, truncation=True, max_length=512, return_tensors="pt"
    )
    with torch.no_grad():
        return model(**batch).logits[0]


def test_a_value_is_p_of_the_positive_labels_minus_p_of_the_negative_ones(raw: Path) -> None:
    values = loaded().values(TEXTS)
    for text, value in zip(TEXTS, values, strict=True):
        neutral, toxic = probabilities(raw / "tox", text).softmax(-1).tolist()
        assert value == pytest.approx(neutral - toxic, abs=1e-5)
    assert max(values) - min(values) > 0.1, "the stand-in tells texts apart"
    turned = loaded(positive=["toxic"], negative=["neutral"]).values(TEXTS)
    assert turned == pytest.approx([-value for value in values])


def test_of_labels_that_do_not_exclude_each_other_the_likeliest_counts(raw: Path) -> None:
    judge = loaded(path="several", positive=["kind"], negative=["rude", "threat"])
    for text, value in zip(TEXTS, judge.values(TEXTS), strict=True):
        rude, threat, kind = probabilities(raw / "several", text).sigmoid().tolist()
        assert value == pytest.approx(kind - max(rude, threat), abs=1e-5)


def test_one_side_may_be_empty(raw: Path) -> None:
    value = loaded(path="several", positive=[], negative=["rude"]).values(["Так"])[0]
    assert value == pytest.approx(
        -probabilities(raw / "several", "Так").sigmoid()[0].item(), abs=1e-5
    )


def test_order_and_batches_do_not_matter(raw: Path) -> None:
    texts = [f"{'слово ' * (index % 7)}{index}" for index in range(40)]
    values = dict(zip(texts, loaded(batch_size=3).values(texts), strict=True))
    random.Random(0).shuffle(texts)
    again = dict(zip(texts, loaded(batch_size=16).values(texts), strict=True))
    assert again == pytest.approx(values, abs=1e-6)


def test_the_same_calls_give_the_same_bits_and_the_generators_stay_where_they_were(
    raw: Path,
) -> None:
    import torch

    before = torch.get_rng_state()
    one, two = (loaded().values(TEXTS) for _ in range(2))
    assert one == two
    assert torch.equal(before, torch.get_rng_state())


def test_a_classifier_is_frozen_and_its_files_are_recorded(raw: Path) -> None:
    judge = loaded()
    assert not judge.model.training
    assert not any(parameter.requires_grad for parameter in judge.model.parameters())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(judge.facts["files"])
    assert judge.facts["labels"] == ["neutral", "toxic"]
    assert str(raw.parent) not in json.dumps(judge.facts), "no path of this machine"
    (raw / "tox/generation_config.json").write_text("{}")
    assert loaded().facts["sha256"] != judge.facts["sha256"]


def test_the_reward_bears_the_profiles_name_and_reads_chat_completions(raw: Path) -> None:
    reward = get_reward("tox", None, 16, {"tox": loaded()})
    assert reward.__name__ == "tox"
    plain = reward(completions=["Так", "погано"])
    chat = reward(
        completions=[[{"role": "assistant", "content": text}] for text in ("Так", "погано")]
    )
    assert plain == chat == pytest.approx(loaded().values(["Так", "погано"]))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_a_head(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if not name.startswith("classifier")}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def a_language_model(folder: Path) -> None:
    shutil.rmtree(folder)
    stand_ins.causal(folder)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            pickled,
            r"expected weights as \*\.safetensors; found pickled weights \(pytorch_model\.bin\)",
        ),
        (without_a_head, r"expected a classification head.*found none: classifier\.dense\.bias"),
        (a_language_model, r"expected a classification head.*found none"),
        (
            lambda folder: (folder / "config.json").unlink(),
            "found models/raw/tox without config.json",
        ),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"no"),
            "a sequence classifier that transformers",
        ),
    ],
)
def test_a_folder_that_is_no_trained_classifier_is_refused_in_one_line(
    raw: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(raw / "tox")
    with pytest.raises(Refused, match=words) as caught:
        loaded()
    assert "\n" not in str(caught.value)


def test_unexpected_labels_are_refused_naming_those_that_exist(raw: Path) -> None:
    with pytest.raises(
        Refused,
        match=r"classifiers\.tox: expected labels of .*: neutral, toxic; found LABEL_0, which",
    ):
        loaded(positive=["LABEL_0"])
    with pytest.raises(Refused, match=r"expected labels of .*: neutral, toxic; found LABEL_0"):
        spec(positive=["LABEL_0"]).look_up(
            "grpo.classifiers.tox"
        )  # `regrpo check`: before anything trains


def test_a_length_beyond_the_window_and_a_path_outside_are_refused(raw: Path) -> None:
    with pytest.raises(Refused, match=r"expected at most the window.*512 tokens; found 513"):
        loaded(max_length=513)
    with pytest.raises(Refused, match="expected a path under models/raw/"):
        loaded(path="../tox")
    with pytest.raises(CannotCheck, match="expected a file or folder at models/raw/none"):
        loaded(path="none")


def test_a_cuda_device_is_refused_where_there_is_none(raw: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("CUDA is there")
    with pytest.raises(
        Refused, match=r"classifiers\.tox\.device: expected a CUDA device.*found none"
    ):
        loaded(device="cuda:1")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"repo": "a/b", "revision": "0" * 40}, "either `repo` and `revision` or `path`"),
        ({"path": None}, "either `repo` and `revision` or `path`"),
        ({"path": None, "repo": "a/b"}, "`revision`: the commit of `repo`"),
        ({"positive": ["toxic"]}, "labels by name, each once"),
        ({"positive": [], "negative": []}, "at least one in all"),
        ({"device": "gpu"}, "`device`"),
        ({"trust_remote_code": True}, "`trust_remote_code`: unknown key"),
    ],
)
def test_a_specification_that_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        spec(**changes)
