"""One look at a model folder as transformers loads it: does it go together, and what is it?

The weights are opened on torch's meta device, where they take no memory, by the code that trainers
load them with: its report says which tensors the files lack, and tied weights count once.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrpo.core import hub
from regrpo.core.errors import Refused, parsing
from regrpo.core.text import some
from regrpo.core.tokenizers import context_window
from regrpo.inputs import model_folders

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WHERE = "base_model.source"
FLOATS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
"""Types of weights that can be trained, as safetensors and torch name them."""


def inspect(folder: Path, pad_token: str | None = None) -> dict[str, Any]:
    """What source.json says of a model: parameters, architecture, type, window, vocabulary.

    What the files hold that no part of the model reads stands there as well. `pad_token` is one
    that the tokenizer is still to get. Raises Refused for a model or tokenizer that cannot be
    loaded or trained, or that do not go together.
    """
    from transformers import AutoConfig, AutoTokenizer

    stored = model_folders.count_weights(folder)
    # One by one, as transformers does not say which it could not read.
    for file in sorted(folder.glob("*.json")):
        if any(map(file.match, hub.KEPT)):
            hub.read_object(file)
    config_file = folder / "config.json"
    if config_file.is_file():
        hub.require_sizes(hub.read_object(config_file), f"{WHERE}: config.json", stored)
    expected = "a model and tokenizer that transformers can load"
    with parsing(WHERE, expected, "Check the folder's files."):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        require_causal(config)
        dtype = require_floats(config, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model, report = load(folder)
        rows = model.get_input_embeddings().weight.shape[0]
    if pad_token is not None:
        tokenizer.pad_token = pad_token
    _require_tensors(report)
    _require_tokens(tokenizer)
    beyond = _tokens_beyond(tokenizer, config, rows)
    facts = {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "architecture": config.architectures[0],
        "dtype": dtype,
        "window": context_window(config),
        "vocabulary": len(tokenizer),
        "chat_template": tokenizer.chat_template is not None,
    }
    if report["unexpected_keys"]:
        facts["unread_tensors"] = sorted(report["unexpected_keys"])
    if beyond:
        facts["tokens_without_weights"] = beyond
    return facts


def remarks(facts: dict[str, Any]) -> Iterator[str]:
    """A line for each thing in a source.json that is there and no part of the model."""
    if files := facts.get("unread_files"):
        yield f"left out, as transformers does not read them: {some(files)}"
    if tensors := facts.get("unread_tensors"):
        yield f"the model has no place for these tensors: {some(tensors)}"
    if tokens := facts.get("tokens_without_weights"):
        yield f"no text may hold these tokens, which have no row in the embedding: {some(tokens)}"


def require_causal(config: Any) -> None:
    """Refuse what TRL's trainers cannot train: an encoder-decoder, an encoder, a vision model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    causal: set[str] = set()
    for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        causal.update([names] if isinstance(names, str) else names)
    name = (config.architectures or ["no architecture"])[0]
    if config.is_encoder_decoder:
        kind = "an encoder-decoder"
    elif name not in causal:
        kind = "no causal language model"
    else:
        return
    raise Refused(
        WHERE,
        expected="a causal language model of transformers' own, which TRL can train",
        found=f"{name} ({config.model_type}), {kind}",
        remedy="Take one such as Gemma 3, Llama or Qwen.",
    )


def require_floats(config: Any, folder: Path) -> str:
    """The type of most weights, as torch names it. Raises Refused for quantised ones."""
    stored: Counter[str] = Counter()
    for dtype, elements in model_folders.weights(folder):
        stored[dtype] += elements
    [(most, _)] = stored.most_common(1) or [("none", 0)]
    found = f"most weights as {most}"
    about = getattr(config, "quantization_config", None)
    if about is not None:
        about = about if isinstance(about, dict) else about.to_dict()
        found = _quantised(about)
    elif most in FLOATS:
        return FLOATS[most]
    raise Refused(
        WHERE,
        expected="weights that can be trained, in float32, bfloat16 or float16",
        found=found,
        remedy="Bring the model as it was before; `quantization` of sft and grpo loads it in 4 "
        "or 8 bits, to train LoRA on.",
    )


def _quantised(about: dict[str, Any]) -> str:
    """What a config.json's quantization_config says, in words."""
    bits = about.get("bits")
    for key, width in (("load_in_4bit", 4), ("load_in_8bit", 8)):
        if about.get(key):
            bits = width
    method = about.get("quant_method", "an unknown method")
    return f"weights quantised by {method}" + (f" to {bits} bits" if bits else "")


def load(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The model without memory for its weights, and transformers' report of loading them."""
    with _quietly():
        try:
            model, report = _load(folder, "meta")
        except Exception:  # whatever an architecture's own code raises of weights without values
            return _load(folder, "cpu")
        if report["missing_keys"] or report["mismatched_keys"]:
            return model, report  # refused; their sizes may be anything
        # Where the files hold both of two tied weights, only their values say whether transformers
        # ties them.
        for names in model.all_tied_weights_keys.items():
            first, second = map(model.get_parameter, names)
            if first is not second:
                return _load(folder, "cpu")
        return model, report


def _load(folder: Path, device: str) -> tuple[Any, dict[str, Any]]:
    from transformers import AutoModelForCausalLM

    loaded: tuple[Any, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(
        folder,
        device_map=device,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are in the report
        trust_remote_code=False,
        use_safetensors=True,
    )
    return loaded


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' own report and bar: what they say is said here."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _require_tensors(report: dict[str, Any]) -> None:
    """Refuse weights that transformers would draw at random: missing ones, or of another shape."""
    missing = sorted(report["missing_keys"])
    if missing:
        found = f"none for {some(missing)}"
        if report["unexpected_keys"]:
            found += f", but {some(sorted(report['unexpected_keys']))}"
    elif report["mismatched_keys"]:
        name, stored, wanted = sorted(report["mismatched_keys"])[0]
        found = f"{name} of {_shape(stored)} where config.json makes it {_shape(wanted)}"
    else:
        return
    raise Refused(
        WHERE,
        expected="a weight in the files for every tensor of the model",
        found=found,
        remedy="transformers would draw them at random: bring the weights that belong to this "
        "config.json.",
    )


def _shape(sizes: Any) -> str:
    return " × ".join(map(str, sizes))


def _require_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer without an end-of-sequence or a padding token."""
    if tokenizer.eos_token is None:
        raise Refused(
            WHERE,
            expected="a tokenizer with an end-of-sequence token",
            found="none",
            remedy="Set `eos_token` and save the tokenizer again.",
        )
    if tokenizer.pad_token is None:
        likely = sorted(
            token
            for token in tokenizer.get_vocab()
            if re.match(r"[<\[].*pad", token, re.IGNORECASE)
        )
        tokens = ", ".join([*likely[:5], tokenizer.eos_token])
        raise Refused(
            WHERE,
            expected="a tokenizer with a padding token",
            found="none",
            remedy=f"Set base_model.pad_token to one of its tokens ({tokens}).",
        )


def _tokens_beyond(tokenizer: PreTrainedTokenizerBase, config: Any, rows: int) -> list[str]:
    """The tokens without a row in the embedding, all of which nothing uses.

    Published models have such: Gemma 3 1B's tokenizer knows an image token that only its larger
    siblings embed. Raises Refused for one that text, padding, a turn or a template may bring up.
    """
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    special = {str(one) for one in tokenizer.added_tokens_decoder.values() if one.special}
    used = set(tokenizer.convert_ids_to_tokens(tokenizer("")["input_ids"]))
    for name in ("eos_token", "bos_token", "pad_token", "unk_token"):
        used.add(getattr(tokenizer, name))
    template = str(tokenizer.chat_template)
    needed = [
        f"{token!r} ({number})"
        for token, number in sorted(beyond.items(), key=lambda item: item[1])
        if token in used or token not in special or token in template
    ]
    for name in ("eos_token_id", "bos_token_id", "pad_token_id"):
        numbers = getattr(config, name, None)
        for number in numbers if isinstance(numbers, list) else [numbers]:
            if number is not None and number >= rows:
                needed.append(f"config.json's {name} ({number})")
    if needed:
        raise Refused(
            WHERE,
            expected=f"a row of the embedding, which has {rows:,}, for each token id",
            found=f"none for {some(needed)}",
            remedy=f"Save the model again after `model.resize_token_embeddings({len(tokenizer)})`, "
            "or set base_model.pad_token to a token that has a row, if padding alone uses the new "
            "one.",
        )
    return sorted(beyond)
