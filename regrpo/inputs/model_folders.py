"""A folder as somebody brings it: what it is, and which weight files transformers reads of it."""

from __future__ import annotations

import json
import math
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from regrpo.core.errors import Refused, parsing
from regrpo.core.hub import KEPT, RAW_MODELS, read_object, require_safetensors
from regrpo.core.text import some

WHERE = "base_model.source"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The names under which transformers looks for weights, in this order."""
ADAPTER = "adapter_config.json"
"""What PEFT saves beside an adapter's weights."""
LFS = b"version https://git-lfs"
"""How a file begins that Git LFS has not fetched."""
UNMERGEABLE = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING")
"""PEFT's kinds of adapters that lie in the prompt and in no weight."""
GATHERED = "name the folder that it writes in base_model.source."
OTHERS = (
    ("zero_to_fp32.py", "a checkpoint of DeepSpeed", f"Gather it with that script, {GATHERED}"),
    ("*.distcp", "a checkpoint of FSDP", f"Gather it with `accelerate merge-weights`, {GATHERED}"),
    (
        "pytorch_model_fsdp*",
        "one of FSDP",
        f"Gather it with `accelerate merge-weights`, {GATHERED}",
    ),
    ("params.json", "the publisher's own format", "Take the model's Hugging Face files instead."),
    ("*.gguf", "a GGUF file", "Use source kind `gguf`, and name the file."),
    ("tf_model.h5", "TensorFlow's weights", "Save them again with `save_pretrained`."),
    ("flax_model.msgpack", "Flax's weights", "Save them again with `save_pretrained`."),
)
"""(what lies in a folder, what that is, what to do): models that transformers does not read."""


def copy_model(source: Path, folder: Path, name: str) -> dict[str, list[str]]:
    """Copy exactly the files that a model is made of; `name` is the source's, for messages.

    Returns {unread_files}, the weight files that are left out since transformers does not read
    them, or {} if there are none. Raises Refused for what is no whole model as safetensors.
    """
    require_model(source, name)
    weights = weight_files(source)
    folder.mkdir()
    left_out = []
    for pattern in KEPT:
        for file in sorted(source.glob(pattern)):
            if ".safetensors" in file.suffixes and file.name not in weights:
                left_out.append(file.name)
            else:
                shutil.copyfile(file, folder / file.name)
    return {"unread_files": left_out} if left_out else {}


def require_model(folder: Path, name: str) -> None:
    """Refuse a folder that is no model of transformers' with safetensors and a tokenizer."""
    recognise(folder, name)
    require_safetensors(folder)
    parts = {"config.json": "a model configuration", "tokenizer*, vocab.*": "a tokenizer"}
    for patterns, what in parts.items():
        if not any(any(folder.glob(pattern)) for pattern in patterns.split(", ")):
            raise Refused(
                WHERE,
                expected=f"{what} ({patterns})",
                found=f"none in {folder}",
                remedy="Save it into the folder with `save_pretrained`.",
            )


def recognise(folder: Path, name: str) -> None:
    """Refuse an adapter, and a model in another form or in a folder inside, as what it is."""
    if (folder / ADAPTER).is_file():
        raise _adapter(folder, name)
    if (folder / WHOLE).is_file() or (folder / INDEX).is_file():
        return
    known: list[tuple[str, str, str]] = []
    for pattern, what, remedy in OTHERS:
        for file in sorted(folder.glob(pattern)):
            known.append((file.name, what, remedy))
    if not (folder / "config.json").is_file():
        for config in sorted(folder.glob("**/config.json")):
            inner = str(config.parent.relative_to(folder))
            known.append((inner, "a model in a folder inside", f"Name {name}/{inner} instead."))
    for file_name, what, remedy in known:
        raise Refused(
            WHERE,
            expected=f"weights as {WHOLE}, or as shards with {INDEX}",
            found=f"{what} ({file_name}) in {folder}",
            remedy=remedy,
        )


def weight_files(folder: Path) -> set[str]:
    """The names of the weight files that transformers reads, and of their index if there is one.

    As `_get_resolved_checkpoint_files` of transformers' modeling_utils chooses them. Raises Refused
    for shards that are not there, and for weights under names that it does not look for.
    """
    config = folder / "config.json"
    named = read_object(config).get("transformers_weights") if config.is_file() else None
    chosen = named or (WHOLE if (folder / WHOLE).is_file() else INDEX)
    if not isinstance(chosen, str) or Path(chosen).name != chosen:
        raise Refused(
            f"{config}: transformers_weights",
            expected="the name of a file beside it",
            found=repr(chosen),
            remedy="Mend it, or remove the key.",
        )
    if not (folder / chosen).is_file():
        found = some(sorted(file.name for file in folder.glob("*.safetensors")))
        raise Refused(
            WHERE,
            expected=f"weights as {WHOLE}, or as shards with {INDEX}",
            found=f"{found} in {folder}, which transformers does not read",
            remedy="Bring the index as well, or save the model again with `save_pretrained`.",
        )
    if not chosen.endswith(".json"):
        return {chosen}
    weight_map = read_object(folder / chosen).get("weight_map")
    if not isinstance(weight_map, dict):
        weight_map = {}
    shards = set(map(str, weight_map.values()))
    missing = sorted(shards - {file.name for file in folder.iterdir()})
    if missing or not shards:
        raise Refused(
            WHERE,
            expected=f"all {len(shards)} weight files that {chosen} names",
            found=f"no {some(missing)} in {folder}" if missing else "an index that names none",
            remedy="Bring the files that are missing, or save the model again.",
        )
    return shards | {chosen}


def count_weights(folder: Path) -> int:
    """How many weights the files of a folder hold."""
    return sum(elements for _, elements in weights(folder))


def weights(folder: Path) -> Iterator[tuple[str, int]]:
    """(type as safetensors names it, elements) of each stored tensor, without reading it.

    Raises Refused for a file that is none of safetensors', or not whole.
    """
    for name in sorted(weight_files(folder)):
        if not name.endswith(".json"):
            yield from _tensors(folder / name)


def _tensors(path: Path) -> Iterator[tuple[str, int]]:
    from safetensors import safe_open

    with path.open("rb") as file:
        is_pointer = file.read(len(LFS)) == LFS
    if is_pointer:
        raise Refused(
            WHERE,
            expected=f"weights in {path.name}",
            found="a pointer of Git LFS",
            remedy="Fetch the file itself: `git lfs pull`.",
        )
    with (
        parsing(WHERE, f"weights in {path.name}", "Bring it again: it is truncated or damaged."),
        safe_open(path, framework="pt") as tensors,
    ):
        for key in tensors.keys():  # noqa: SIM118 - it is no mapping
            stored = tensors.get_slice(key)
            yield stored.get_dtype(), math.prod(stored.get_shape())


def _adapter(folder: Path, name: str) -> Refused:
    """What to do with a PEFT adapter: the command that merges it with its base."""
    about = read_object(folder / ADAPTER)
    base, kind = about.get("base_model_name_or_path"), str(about.get("peft_type", "LoRA"))
    of = base or "a base that it does not name"
    found = f"an adapter ({kind}) of {of} in {folder}"
    if kind in UNMERGEABLE:
        remedy = "An adapter of this kind cannot be merged: bring a whole model."
    else:
        merged = f"{Path(name).name}-merged"
        remedy = (
            f"Merge it with its base: `{_merging(folder, base, RAW_MODELS / merged)}`, "
            f"then set base_model.source to {{kind: local, path: {merged}}}."
        )
        if not base:
            remedy += " Write the base's folder or name for BASE."
    if (folder / WHOLE).is_file():
        remedy += f" If {WHOLE} is merged already, remove {ADAPTER}."
    return Refused(WHERE, expected="a whole model", found=found, remedy=remedy)


def _merging(folder: Path, base: str | None, merged: Path) -> str:
    """A command that adds an adapter to its base's weights, and saves both with the tokenizer."""
    adapter, out = json.dumps(str(folder)), json.dumps(str(merged))
    imports = "from peft import AutoPeftModelForCausalLM as Model"
    model = f"Model.from_pretrained({adapter})"
    if not base:
        imports = (
            "from peft import PeftModel as Model; from transformers import AutoModelForCausalLM"
        )
        model = f'Model.from_pretrained(AutoModelForCausalLM.from_pretrained("BASE"), {adapter})'
    tokenizer = adapter if any(folder.glob("tokenizer*")) else json.dumps(base or "BASE")
    steps = (
        f"{imports}; from transformers import AutoTokenizer",
        f"{model}.merge_and_unload().save_pretrained({out})",
        f"AutoTokenizer.from_pretrained({tokenizer}).save_pretrained({out})",
    )
    return f"python -c {shlex.quote('; '.join(steps))}"
