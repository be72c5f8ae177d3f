"""One look at a base as transformers loads it: what is counted, said and refused."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from regrpo.core import files
from regrpo.core.errors import Refused
from regrpo.core.tokenizers import amend, context_window
from regrpo.inputs import inspection, model_folders
from regrpo.inputs.base_models import Local
from tests.support import stand_ins

WHOLE = "model.safetensors"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied Llama, in one file."""
    folder = tmp_path_factory.mktemp("llama") / "made"
    stand_ins.causal(folder, "llama")
    return folder


@pytest.fixture
def mine(tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """models/raw/mine, a copy that a test may change, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(llama, "models/raw/mine")
    return Path("models/raw/mine")


def bring(name: str = "mine") -> dict[str, Any]:
    """What base_model writes to source.json of a local folder."""
    out = Path("models/base")
    shutil.rmtree(out, ignore_errors=True)
    origin = Local(kind="local", path=name, license="MIT").bring(out, 0)
    return origin | inspection.inspect(out)


def refusal(name: str = "mine") -> str:
    with pytest.raises(Refused) as caught:
        bring(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def loaded_parameters(folder: Path) -> int:
    from transformers import AutoModelForCausalLM

    return sum(one.numel() for one in AutoModelForCausalLM.from_pretrained(folder).parameters())


def change_config(folder: Path, **values: Any) -> None:
    files.write_json(folder / "config.json", files.read_json(folder / "config.json") | values)


def shard(folder: Path) -> list[Path]:
    """Save the folder's model again, in shards."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / WHOLE).unlink()
    model.save_pretrained(folder, max_shard_size="20KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    return shards


# --- weights --------------------------------------------------------------------------------------


def test_parameters_are_those_of_the_loaded_model_whatever_else_lies_in_the_folder(
    mine: Path,
) -> None:
    expected = loaded_parameters(mine)
    assert bring()["parameters"] == expected
    shutil.copyfile(mine / WHOLE, mine / "consolidated.safetensors")
    shutil.copyfile(mine / WHOLE, mine / "model.fp16.safetensors")
    facts = bring()
    assert facts["parameters"] == expected
    assert facts["unread_files"] == ["consolidated.safetensors", "model.fp16.safetensors"]
    assert [file.name for file in Path("models/base").glob("*.safetensors")] == [WHOLE]
    (said,) = inspection.remarks(facts)
    assert said == (
        "left out, as transformers does not read them: "
        "consolidated.safetensors, model.fp16.safetensors"
    )


def test_shards_are_those_that_the_index_names(mine: Path) -> None:
    expected = loaded_parameters(mine)
    shards = shard(mine)
    shutil.copyfile(shards[0], mine / "model-00009-of-00009.safetensors")
    facts = bring()
    assert facts["parameters"] == expected == loaded_parameters(Path("models/base"))
    assert facts["unread_files"] == ["model-00009-of-00009.safetensors"]
    shards[1].unlink()
    assert f"found no {shards[1].name} in models/raw/mine. Bring the files" in refusal()
    (mine / model_folders.INDEX).unlink()
    assert f"{shards[0].name}, {shards[2].name}" in refusal()


def test_a_shard_of_another_model_and_an_index_that_is_no_json_are_refused(mine: Path) -> None:
    shards = shard(mine)
    tensors = load_file(shards[-1])
    save_file({name: tensor[:1].clone() for name, tensor in tensors.items()}, shards[-1])
    assert "where config.json makes it" in refusal()
    (mine / model_folders.INDEX).write_text("{")
    assert "expected a JSON object" in refusal()


def test_a_shard_that_git_lfs_has_not_fetched_is_named(mine: Path) -> None:
    shards = shard(mine)
    shards[0].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert f"expected weights in {shards[0].name}; found a pointer of Git LFS" in refusal()
    shards[0].write_bytes(b"")
    assert f"expected weights in {shards[0].name}; found " in refusal()


def test_a_tied_weight_counts_once_whether_the_files_hold_it_once_or_twice(mine: Path) -> None:
    untied = bring()["parameters"]
    tensors = load_file(mine / WHOLE)
    head = tensors["lm_head.weight"]
    change_config(mine, tie_word_embeddings=True)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, mine / WHOLE)
    assert bring()["parameters"] == untied - head.numel() == loaded_parameters(mine)
    # What config.json calls tied, and the files hold with two values, is not tied when loaded.
    tensors["lm_head.weight"] = head + 1
    save_file(tensors, mine / WHOLE)
    assert bring()["parameters"] == untied == loaded_parameters(mine)
    del tensors["lm_head.weight"]
    save_file(tensors, mine / WHOLE)
    assert bring()["parameters"] == untied - head.numel() == loaded_parameters(mine)


def test_a_tensor_that_would_be_drawn_at_random_is_refused_by_name(mine: Path) -> None:
    tensors = load_file(mine / WHOLE)
    del tensors["model.norm.weight"]
    save_file(tensors, mine / WHOLE)
    assert "found none for model.norm.weight. transformers would draw" in refusal()
    tensors["model.layers.0.mlp.up_proj.qweight"] = tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, mine / WHOLE)
    said = refusal()
    assert "none for model.layers.0.mlp.up_proj.weight, model.norm.weight" in said
    assert "but model.layers.0.mlp.up_proj.qweight" in said


def test_a_model_of_other_sizes_than_its_weights_is_refused(mine: Path) -> None:
    change_config(mine, vocab_size=200)
    assert "lm_head.weight of 104 × 32 where config.json makes it 200 × 32" in refusal()


def test_a_tensor_without_a_place_is_named_and_not_counted(mine: Path) -> None:
    expected = bring()["parameters"]
    tensors = load_file(mine / WHOLE)
    tensors["v_head.summary.weight"] = tensors["model.norm.weight"].clone()
    save_file(tensors, mine / WHOLE)
    facts = bring()
    assert facts["parameters"] == expected
    assert facts["unread_tensors"] == ["v_head.summary.weight"]
    assert "no place for these tensors: v_head.summary.weight" in "".join(inspection.remarks(facts))


@pytest.mark.parametrize(
    ("quantization", "found"),
    [
        ({"quant_method": "gptq", "bits": 4}, "weights quantised by gptq to 4 bits"),
        ({"load_in_4bit": True, "quant_method": "bitsandbytes"}, "by bitsandbytes to 4 bits"),
        ({"quant_method": "fp8"}, "weights quantised by fp8"),
    ],
)
def test_a_quantised_checkpoint_is_refused_as_what_it_is(
    mine: Path, quantization: dict[str, Any], found: str
) -> None:
    change_config(mine, quantization_config=quantization)
    assert found in refusal()


def test_weights_are_said_in_the_type_that_they_are_stored_in(mine: Path) -> None:
    import torch

    assert bring()["dtype"] == "float32"
    tensors = load_file(mine / WHOLE)
    # config.json goes on saying float32.
    save_file({name: one.bfloat16() for name, one in tensors.items()}, mine / WHOLE)
    assert bring()["dtype"] == "bfloat16"
    save_file({name: one.to(torch.float8_e4m3fn) for name, one in tensors.items()}, mine / WHOLE)
    assert "found most weights as F8_E4M3" in refusal()


def test_a_model_with_an_image_tower_is_looked_at_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stand_ins.causal(Path("models/raw/mine"), "gemma_with_images")
    facts = bring()
    assert facts["architecture"] == "Gemma3ForConditionalGeneration"
    assert (facts["window"], facts["parameters"]) == (1024, loaded_parameters(Path("models/base")))


# --- tokens ---------------------------------------------------------------------------------------


def add_token(folder: Path, token: str, special: bool = True, **names: str) -> int:
    """Add a token to the folder's tokenizer alone. Returns its id."""
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    while len(tokenizer) < 104:  # the rows that round the vocabulary up
        tokenizer.add_tokens([f"<filler {len(tokenizer)}>"])
    tokenizer.add_tokens([AddedToken(token, special=special)], special_tokens=special)
    for name, value in names.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    return int(tokenizer.convert_tokens_to_ids(token))


def test_a_padding_token_without_a_row_is_refused_until_another_one_pads(mine: Path) -> None:
    number = add_token(mine, "[PAD]", pad_token="[PAD]")
    said = refusal()
    assert f"which has 104, for each token id; found none for '[PAD]' ({number})" in said
    assert "resize_token_embeddings(105)" in said
    assert "base_model.pad_token" in said
    amend(mine, "<eos>", None)
    facts = bring()
    assert facts["tokens_without_weights"] == ["[PAD]"]
    assert "which have no row in the embedding: [PAD]" in "".join(inspection.remarks(facts))


@pytest.mark.parametrize("use", ["text", "template"])
def test_a_new_token_that_text_or_the_template_holds_is_refused(mine: Path, use: str) -> None:
    add_token(mine, "<think>", special=use == "template")
    if use == "template":
        (mine / "chat_template.jinja").write_text("<think>{{ messages[0]['content'] }}")
    assert "found none for '<think>' (104)" in refusal()


def test_another_models_tokenizer_is_refused(mine: Path) -> None:
    from regrpo.core.tokenizers import character_tokenizer

    character_tokenizer([f"<{index}>" for index in range(300)]).save_pretrained(mine)
    assert "found none for '<2>' (104), '<3>' (105), '<4>' (106) and 295 more" in refusal()


def test_an_id_of_config_json_without_a_row_is_refused(mine: Path) -> None:
    change_config(mine, eos_token_id=[1, 128_009])
    assert "config.json's eos_token_id (128009)" in refusal()


# --- the window -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "sizes", "window"),
    [
        ("GPT2Config", {"n_positions": 32}, 32),
        ("GPTJConfig", {"n_positions": 48}, 48),
        ("MptConfig", {"max_seq_len": 40}, 40),
        ("BloomConfig", {"seq_length": 56}, 56),
        ("LlamaConfig", {"max_position_embeddings": 64}, 64),
        ("OPTConfig", {"max_position_embeddings": 72}, 72),
        ("MambaConfig", {}, None),
    ],
)
def test_the_window_is_found_by_whatever_name_an_architecture_has_for_it(
    kind: str, sizes: dict[str, int], window: int | None
) -> None:
    import transformers

    assert context_window(getattr(transformers, kind)(**sizes)) == window


# --- what a folder is -----------------------------------------------------------------------------


@pytest.fixture
def adapter(mine: Path) -> Path:
    """models/raw/adapter: LoRA on models/raw/mine, with a tokenizer beside it."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    set_seed(0)
    base = AutoModelForCausalLM.from_pretrained(mine)
    lora = LoraConfig(
        r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
    )
    get_peft_model(base, lora).save_pretrained("models/raw/adapter")
    AutoTokenizer.from_pretrained(mine).save_pretrained("models/raw/adapter")
    return Path("models/raw/adapter")


def test_an_adapter_is_refused_with_the_command_that_merges_it(adapter: Path, mine: Path) -> None:
    said = refusal("adapter")
    assert "found an adapter (LORA) of models/raw/mine in models/raw/adapter. Merge it" in said
    assert "{kind: local, path: adapter-merged}" in said
    _, option, code = shlex.split(said.split("`")[1])
    assert option == "-c"
    exec(code, {})  # the very command, in this process
    merged = bring("adapter-merged")
    assert merged["parameters"] == bring()["parameters"]
    weights = (load_file(folder / WHOLE) for folder in (mine, Path("models/raw/adapter-merged")))
    first, second = (tensors["model.layers.0.mlp.up_proj.weight"] for tensors in weights)
    assert not first.equal(second)


def test_an_adapter_that_names_no_base_or_lies_beside_weights_is_told_so(
    adapter: Path, mine: Path
) -> None:
    about = files.read_json(adapter / "adapter_config.json")
    files.write_json(adapter / "adapter_config.json", about | {"base_model_name_or_path": None})
    said = refusal("adapter")
    assert "a base that it does not name" in said
    assert 'AutoModelForCausalLM.from_pretrained("BASE")' in said
    assert said.endswith("Write the base's folder or name for BASE.")
    shutil.copyfile(adapter / "adapter_config.json", mine / "adapter_config.json")
    assert f"If {WHOLE} is merged already, remove adapter_config.json." in refusal()
    files.write_json(adapter / "adapter_config.json", about | {"peft_type": "PROMPT_TUNING"})
    assert "cannot be merged" in refusal("adapter")


def as_publisher(folder: Path) -> None:
    (folder / WHOLE).rename(folder / "consolidated.safetensors")
    (folder / "params.json").write_text("{}")


def as_nested(folder: Path) -> None:
    inner = folder / "snapshots/abc"
    inner.mkdir(parents=True)
    for file in [file for file in folder.iterdir() if file.is_file()]:
        file.rename(inner / file.name)


def as_deepspeed(folder: Path) -> None:
    (folder / WHOLE).unlink()
    (folder / "zero_to_fp32.py").write_text("")


def as_gguf(folder: Path) -> None:
    (folder / WHOLE).rename(folder / "model.q4.gguf")


def as_gptq(folder: Path) -> None:
    (folder / WHOLE).rename(folder / "gptq_model-4bit-128g.safetensors")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            as_publisher,
            "found the publisher's own format (params.json) in models/raw/mine. Take the",
        ),
        (as_nested, "(snapshots/abc) in models/raw/mine. Name mine/snapshots/abc instead"),
        (
            as_deepspeed,
            "found a checkpoint of DeepSpeed (zero_to_fp32.py) in models/raw/mine. Gather",
        ),
        (as_gguf, "a GGUF file (model.q4.gguf) in models/raw/mine. Use source kind `gguf`"),
        (as_gptq, "gptq_model-4bit-128g.safetensors in models/raw/mine, which transformers"),
    ],
)
def test_a_folder_of_another_form_is_refused_as_what_it_is(
    mine: Path, make: Callable[[Path], None], words: str
) -> None:
    make(mine)
    assert words in refusal()
