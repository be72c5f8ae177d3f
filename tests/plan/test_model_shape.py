"""The base is counted from its configuration, wherever that lies."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from regrpo import cli
from regrpo.commands import plan as command
from regrpo.core.errors import Refused
from regrpo.inputs import base_models
from regrpo.plan import (
    memory,
    model_shape,
)
from tests.support import stand_ins
from tests.support.plans import HERE, small_config
from tests.support.projects import edit_yaml


def save_config(folder: Path, kind: str, **sizes: Any) -> None:
    import transformers

    config = getattr(transformers, f"{kind}Config")(vocab_size=256, **sizes)
    config.architectures = [f"{kind}{'LMHeadModel' if kind == 'GPT2' else 'ForCausalLM'}"]
    config.save_pretrained(folder)
    for name in ("tokenizer.json", "model.safetensors"):
        (folder / name).write_text("")


UNKNOWN = {
    "GPT2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0},
    "Mamba": {"hidden_size": 64, "num_hidden_layers": 2},
    "Mixtral": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
    },
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_an_architecture_that_plan_cannot_count_is_unchecked_not_wrong(
    here: Path, kind: str
) -> None:
    save_config(here / "models/raw/mine", kind, **UNKNOWN[kind])
    edit_yaml(
        here / "params.yaml",
        {"base_model": {"source": {"kind": "local", "path": "mine", "license": "MIT"}}},
    )
    told = command.make(Path("params.yaml"), HERE)
    assert told["verdict"] == "unknown"
    (found,) = [one for one in told["findings"] if one["key"] == "base_model.source"]
    assert found["level"] == "unchecked"
    assert f"found {kind}" in found["why"]


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({}, "Should have a `model_type` key in its config.json"),
        ({"config.json": "{not json"}, "Expecting property name"),
        ({"config.json": '{"model_type": "llama", "hidden_size": "big"}'}, "expected int, got str"),
        (
            {"config.json": '{"model_type": "bert", "architectures": ["BertForMaskedLM"]}'},
            "no causal language model",
        ),
    ],
)
def test_a_broken_local_base_is_wrong(here: Path, files: Mapping[str, str], why: str) -> None:
    (here / "models/raw/mine").mkdir()
    for name, content in (
        {"tokenizer.json": "", "model.safetensors": ""} | dict(files) if files else {}
    ).items():
        (here / "models/raw/mine" / name).write_text(content)
    edit_yaml(
        here / "params.yaml",
        {"base_model": {"source": {"kind": "local", "path": "mine", "license": "MIT"}}},
    )
    (found,) = [
        one
        for one in command.make(Path("params.yaml"), HERE)["findings"]
        if one["level"] == "wrong"
    ]
    assert found["key"] == "base_model.source"
    assert why in found["why"]
    assert not found["why"].endswith(".")


def test_a_base_that_is_not_here_leaves_memory_unknown_and_says_so(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = {"kind": "hub", "repo": "nobody/nothing", "revision": "TODO", "license": "MIT"}
    edit_yaml(here / "params.yaml", {"base_model": {"source": source}})
    assert cli.main(["plan"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("params.yaml: nothing is wrong; whether it fits is unknown")
    assert "base_model.source.revision: expected a commit of model nobody/nothing" in said
    assert "unknown until base_model has run" in said


def test_a_local_base_is_read_from_its_folder(here: Path) -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        vocab_size=256,
        max_position_embeddings=70,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(here / "models/raw/mine")
    edit_yaml(
        here / "params.yaml",
        {"base_model": {"source": {"kind": "local", "path": "mine", "license": "MIT"}}},
    )
    told = command.make(Path("params.yaml"), HERE)
    assert told["base"]["architecture"] == "LlamaForCausalLM"
    assert "grpo.max_completion_length" in [
        one["key"] for one in told["findings"] if one["level"] == "wrong"
    ]


def test_a_made_base_counts_only_where_it_was_made_with_these_parameters(here: Path) -> None:
    from transformers import LlamaConfig

    source = {"kind": "hub", "repo": "nobody/nothing", "revision": "0" * 40, "license": "MIT"}
    edit_yaml(here / "params.yaml", {"base_model": {"seed": 0, "source": source}})
    LlamaConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        vocab_size=256,
    ).save_pretrained(here / "models/base")
    (here / "reports/base_model").mkdir(parents=True)
    record = {"parameters": {"params.yaml": {"base_model": {"seed": 0, "source": source}}}}
    (here / model_shape.RECORD).write_text(json.dumps([record]))
    assert command.make(Path("params.yaml"), HERE)["base"]["layers"] == 2
    edit_yaml(here / "params.yaml", {"base_model": {"seed": 1}})
    assert command.make(Path("params.yaml"), HERE)["base"] is None


def test_a_hub_base_that_is_not_what_its_profile_says_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 64, "model_type": "llama"}))
    said = {"model_type": "llama", "hidden_size": 128}
    source = base_models.Hub(kind="hub", repo="a/b", revision="0" * 40, license="MIT", config=said)
    with pytest.raises(Refused, match=r"base_model\.source\.config\.hidden_size: .* 64; found 128"):
        source.require_stated(tmp_path)


def test_a_sliding_layer_caches_its_window_only() -> None:
    shape = model_shape.read(small_config("Llama", 2))
    slid = dataclasses.replace(shape, sliding_window=32, sliding_layers=1)
    assert shape.cached_tokens(100) == 200
    assert slid.cached_tokens(100) == 132
    assert memory.cache_per_sequence(shape, 100, 2) == 2 * 2 * 16 * 2 * 200


def test_what_base_model_refuses_of_a_local_folder_plan_says_before(here: Path) -> None:
    folder = here / "models/raw/mine"
    stand_ins.causal(folder, "llama")
    source = {"kind": "local", "path": "mine", "license": "MIT"}
    edit_yaml(here / "params.yaml", {"base_model": {"source": source}})

    def wrong() -> list[str]:
        found = command.make(Path("params.yaml"), HERE)["findings"]
        return [one["why"] for one in found if one["key"] == "base_model.source"]

    assert wrong() == []
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    assert "found none for model.layers.2." in " ".join(wrong())
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b"}')
    (found,) = wrong()
    assert "an adapter (LoRA) of a/b" in found
