"""Models that somebody spoiled on purpose: each ends in one line, in seconds, in little memory."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from regrpo.core import conversation, files, profiles, rendering, tokenizers
from regrpo.core.errors import Refused
from regrpo.inputs import base_models, inspection
from stages import base_model
from tests.support import hostile
from tests.support.projects import ROOT

Spoil = Callable[[Path], object]
SCRATCH = profiles.read_profile(ROOT / "params.yaml")["base_model"]
HEADER = b'{"a":{"dtype":"F32","shape":[1000000000,1000000000],"data_offsets":[0,4]}}'
EVIL = "raise SystemExit('code of a model ran')\n"


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (EVIL,)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # What a child imports in its first call would take its time.
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("model") / "made"
    profiles.parse_section(base_model.Params, SCRATCH, "base_model").source.bring(folder, 0)
    for kind in (AutoConfig, AutoModelForCausalLM, AutoTokenizer):
        kind.from_pretrained(folder)
    return folder


def bring(**source: Any) -> None:
    """As base_model does."""
    made = profiles.parse_section(base_model.Params, {"seed": 0, "source": source}, "base_model")
    with files.replacing(Path("models/base")) as folder:
        made.source.bring(folder, 0)
        tokenizers.amend(folder, None, None)
        inspection.inspect(folder)
        conversation.settle(folder)


def bring_mine() -> None:
    bring(kind="local", path="mine", license="MIT")


def config(**changes: Any) -> Spoil:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(files.read_json(path) | changes))

    return spoil


def write(name: str, content: bytes | str) -> Spoil:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def weights(content: bytes) -> Spoil:
    return write("model.safetensors", content)


SPOILED = [
    (weights(struct.pack("<Q", 2**62) + b"{}"), "expected weights in model.safetensors"),
    (write("config.json", "[]"), "config.json: expected a JSON object; found list"),
    (write("config.json", '{"x":' + "[" * 100_000), "config.json: expected a JSON object"),
    (config(hidden_size=10**9), "config.json: hidden_size: expected at most 134,217,728"),
    (config(num_hidden_layers=10**9), "num_hidden_layers: expected at most 10,000"),
    (config(vocab_size=10**8), "vocab_size, hidden_size: expected sizes that fit the 231,"),
    (config(head_dim=10**7), "a weight in the files for every tensor"),
    (config(model_type="\x1b]0;pwned\x07"), "base_model.source"),
    (config(model_type="zzz", auto_map={"AutoConfig": "evil.X"}), "base_model.source"),
    (write("tokenizer.json", "[" * 1_000_000), "tokenizer.json: expected a JSON object"),
    (write("generation_config.json", "[" * 100_000), "generation_config.json"),
]
OTHERS = [
    (weights(struct.pack("<Q", 99_000_000) + b"{"), "expected weights in model.safetensors"),
    (weights(struct.pack("<Q", len(HEADER)) + HEADER + b"0000"), "model.safetensors"),
    (write("config.json", "{"), "config.json: expected a JSON object"),
    (write("config.json", b"\xff"), "config.json: expected a JSON object"),
    (config(hidden_size="abc"), "base_model.source"),
    (config(num_hidden_layers=-1), "base_model.source"),
    (config(num_attention_heads=10**6), "num_attention_heads: expected at most 10,000"),
    (config(intermediate_size=10**8), "hidden_size, intermediate_size: expected sizes"),
    (config(architectures=[1]), "base_model.source"),
    (config(architectures="Gemma3ForCausalLM"), "base_model.source"),
    (config(max_position_embeddings="many"), "base_model.source"),
    (write("tokenizer.json", "{}"), "expected a model and tokenizer"),
    (write("tokenizer.json", "nope"), "tokenizer.json: expected a JSON object"),
    (write("tokenizer.json", b"\xff\xfe"), "tokenizer.json: expected a JSON object"),
    (write("tokenizer_config.json", "[]"), "tokenizer_config.json: expected a JSON object"),
    (write("generation_config.json", '{"eos_token_id": "x"}'), "generation_config.json"),
]


def slow(case: tuple[Spoil, str]) -> Any:
    return pytest.param(*case, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [*SPOILED, *map(slow, OTHERS)],
    ids=lambda value: value if isinstance(value, str) else "spoiled",
)
def test_a_spoiled_model_ends_in_one_line(raw: Path, spoil: Spoil, message: str) -> None:
    (raw / "evil.py").write_text(EVIL)
    spoil(raw)
    said = hostile.ended(bring_mine, memory=4 * 2**30)
    assert message in said
    assert "\n" not in said
    assert "\x1b" not in said
    assert len(said) < 1000
    assert not Path("models/base").exists()


def test_pickles_beside_the_weights_are_left_where_they_are(raw: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin"):
        (raw / name).write_bytes(pickle.dumps(Evil()))
    assert hostile.ended(bring_mine, memory=4 * 2**30) == ""
    assert not list(Path("models/base").glob("*.bin"))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"GGUF\x03\x00\x00\x00" + struct.pack("<QQ", 2**40, 2**40),
        b"GGUF\x03\x00\x00\x00" + struct.pack("<QQ", 1, 1) + b"\x05",
        # An array of 2⁶⁰ bytes that the file does not hold: its reader goes through all of them.
        b"GGUF\x03\x00\x00\x00"
        + struct.pack("<QQQ", 0, 1, 1)
        + b"a"
        + struct.pack("<IIQ", 9, 0, 2**60),
    ],
    ids=["empty", "cut off", "counts that lie", "a short key", "an array that lies"],
)
def test_a_gguf_that_states_what_it_does_not_hold_is_refused(
    raw: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    monkeypatch.setattr(base_models, "GGUF_SECONDS", 5)
    monkeypatch.setattr(rendering, "MEMORY", 2**30)
    (raw / "m.gguf").write_bytes(content)
    with pytest.raises(Refused, match=r"m\.gguf: expected a GGUF file.*; found .+\. Convert"):
        bring(kind="gguf", file="mine/m.gguf", license="MIT")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"hidden_size": 10**9}, "source.config: hidden_size: expected at most 134,217,728"),
        ({"num_hidden_layers": 10**9}, "source.config: num_hidden_layers: expected at most"),
        ({"intermediate_size": 10**8, "hidden_size": 10**6}, "GB of memory; found"),
    ],
    ids=lambda value: value if isinstance(value, str) else "spoiled",
)
def test_sizes_of_a_model_from_scratch_that_no_memory_holds_are_refused(
    sizes: dict[str, int], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = SCRATCH["source"] | {"config": SCRATCH["source"]["config"] | sizes}
    assert message in hostile.ended(lambda: bring(**source), memory=4 * 2**30)


@pytest.mark.slow
@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 9**(9**9) }}",
        "{{ 'x' * 30000000000 }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for",
    ],
    ids=lambda value: value if isinstance(value, str) else "spoiled",
)
def test_a_hostile_template_ends_under_its_limits(
    raw: Path, template: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 1.0)
    (raw / "chat_template.jinja").write_text(template)
    tokenizer = conversation.load_tokenizer(raw)
    with (
        rendering.RenderingProcess(tokenizer, "models/base") as renderer,
        pytest.raises(Refused, match="models/base: chat template: expected to render"),
    ):
        renderer([[{"role": "user", "content": "x"}]], True)
