"""What memory and arithmetic of a causal language model depend on, from its configuration alone.

No weights are read.

The model is built on torch's meta device, which allocates nothing, so that parameters and LoRA's
targets are counted by transformers and PEFT themselves, for every architecture that they know.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regrpo.core import files
from regrpo.core.errors import CannotCheck, Refused, first_line, parsing
from regrpo.core.hub import RAW_MODELS, file_under, require_sizes
from regrpo.core.tokenizers import context_window
from regrpo.inputs.base_models import (
    EXPECTED_GGUF,
    REMEDY_GGUF,
    require_bounded_gguf,
    require_gguf,
)

BASE = Path("models/base")
RECORD = Path("reports/base_model/run.json")


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder-only transformer (elements, not bytes).

    `linears` are one layer's, name → (in, out).
    """

    architecture: str
    parameters: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    window: int | None
    sliding_window: int | None
    sliding_layers: int
    linears: dict[str, tuple[int, int]]
    wide_norms: int
    head_norms: bool
    stored_bytes: int
    flops_per_token: int
    """Forward and backward of one token without attention scores, by TRL."""

    @property
    def linear_parameters(self) -> int:
        """Weights of all layers' linear modules: what nf4 quantises and autocast copies."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden

    def cached_tokens(self, tokens: int) -> int:
        """Tokens that the key-value cache holds over all layers for one sequence.

        A sliding layer keeps its window.
        """
        slid = min(tokens, self.sliding_window or tokens)
        return (self.layers - self.sliding_layers) * tokens + self.sliding_layers * slid


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter.

    Trainable parameters, rank, dropout, and the linear modules of a layer that it sits on.
    """

    parameters: int
    r: int
    dropout: bool
    targets: frozenset[str]


def read(config: Any) -> Shape:
    """The shape that a transformers configuration describes.

    Raises Refused for what is no causal language model, CannotCheck for one whose layers are not
    counted here.
    """
    model = _skeleton(config)
    try:
        return _shape(config, model)
    # a state space, experts: no such sizes
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise _unknown(model) from error


def _unknown(model: Any) -> CannotCheck:
    name = type(model).__name__
    return CannotCheck(
        "base_model.source",
        expected="a decoder of equal layers with attention and an MLP",
        found=f"{name}, whose memory, times and window plan cannot count",
        remedy="Measure a run of a few steps (sft.max_steps: 2).",
    )


def _shape(config: Any, model: Any) -> Shape:
    text = config.get_text_config()
    layer = _first_layer(model)
    if layer is None:
        raise _unknown(model)
    linears = _linears(layer)
    in_linears = sum(one.weight.numel() for one in linears.values())
    if in_linears < 0.9 * _parameters(layer):
        raise _unknown(model)  # experts, or weights in modules of another kind
    norms = [module for module in layer.modules() if type(module).__name__.endswith("Norm")]
    weights = [getattr(norm, "weight", None) for norm in norms]
    widths = [weight.numel() for weight in weights if weight is not None]
    types = getattr(text, "layer_types", None) or []
    heads = text.num_attention_heads
    half = str(getattr(config, "dtype", None)).endswith(("bfloat16", "float16"))
    return Shape(
        architecture=type(model).__name__,
        parameters=_parameters(model),
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        intermediate=text.intermediate_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        vocabulary=text.vocab_size,
        window=context_window(config),
        sliding_window=getattr(text, "sliding_window", None),
        sliding_layers=types.count("sliding_attention"),
        linears={name: (one.in_features, one.out_features) for name, one in linears.items()},
        wide_norms=widths.count(text.hidden_size),
        head_norms=any(width < text.hidden_size for width in widths),
        stored_bytes=2 if half else 4,
        flops_per_token=_flops_per_token(text),
    )


def _first_layer(model: Any) -> Any | None:
    for name, module in model.named_modules():
        if name.endswith("layers.0"):
            return module
    return None


def _linears(module: Any) -> dict[str, Any]:
    """The linear modules inside a module, by the last part of their name."""
    return {
        name.rpartition(".")[2]: one
        for name, one in module.named_modules()
        if type(one).__name__ == "Linear"
    }


def _parameters(module: Any) -> int:
    return sum(one.numel() for one in module.parameters())


def _flops_per_token(text: Any) -> int:
    from trl.trainer.utils import compute_flops_per_token

    return int(compute_flops_per_token(text, 0))


def _skeleton(config: Any) -> Any:
    """The model on torch's meta device. Raises Refused for sizes that make none."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except Exception as error:  # whatever an architecture's own code raises of its sizes
        raise Refused(
            "base_model.source",
            expected="a causal language model that transformers can build",
            found=first_line(error)[:300],
            remedy="Correct its configuration, or take another base.",
        ) from error


def adapter(config: Any, lora: Any, key: str) -> Adapter:
    """What PEFT makes of a profile's `lora` on a model of this configuration.

    Raises Refused if no module fits.
    """
    import warnings

    import torch
    from peft import get_peft_model

    model = _skeleton(config)
    names = sorted(_linears(model).keys() - {"lm_head"})
    try:
        with torch.device("meta"), warnings.catch_warnings():
            # PEFT reads a name that transformers 5 renamed
            warnings.simplefilter("ignore", FutureWarning)
            model = get_peft_model(model, lora.config())
    except ValueError as error:
        raise Refused(
            f"{key}.target_modules",
            expected="modules of the base model",
            found=str(error).split(" Please")[0].removesuffix("."),
            remedy=f"all-linear, or some of {', '.join(names)}",
        ) from error
    targets = frozenset(name.rpartition(".")[2] for name in model.targeted_module_names)
    trainable, _ = model.get_nb_trainable_parameters()
    return Adapter(trainable, lora.r, lora.lora_dropout > 0, targets)


def on_all_linears(shape: Shape, r: int) -> Adapter:
    """The adapter that `lora: {r: …, target_modules: all-linear}` would make.

    Hu et al. 2021: r × (in + out) parameters each.
    """
    of_a_layer = r * sum(map(sum, shape.linears.values()))
    return Adapter(shape.layers * of_a_layer, r, False, frozenset(shape.linears))


def find_config(section: Any) -> Any | None:
    """The transformers configuration of the base that `base_model` names.

    Looked for in the profile (`scratch`; `hub` with `config`), under models/raw/ (`local`, `gguf`),
    in an installed package (`package`), in the hub's local cache, and in models/base/ if it was
    made with these very parameters. Returns None while it cannot be known offline.
    """
    from huggingface_hub import try_to_load_from_cache

    source = section.source
    if source.kind == "scratch":
        return source.configuration()
    if source.kind == "local":
        folder = file_under(RAW_MODELS, source.path, "base_model.source.path")
        return _config_in(folder)
    if source.kind in ("gguf", "package"):
        return _gguf_config(source)
    if is_made(section):
        return _config_in(BASE)
    cached = try_to_load_from_cache(source.repo, "config.json", revision=source.revision)
    if isinstance(cached, str):
        return _config_in(Path(cached).parent)
    return source.configuration()


def _config_in(folder: Path) -> Any:
    """The configuration in a folder. Raises Refused for one that transformers cannot read."""
    from transformers import AutoConfig

    where = "base_model.source"
    with parsing(where, "config.json of a model of transformers'", "Check the file."):
        path = folder / "config.json"
        about = files.read_json(path) if path.is_file() else None
        if isinstance(about, dict):
            require_sizes(about, f"{where}: config.json")
        return AutoConfig.from_pretrained(folder)


def is_made(section: Any) -> bool:
    """Whether models/base/ was made with these parameters, by its stage's record."""
    return (BASE / "config.json").exists() and was_made_with(section, RECORD, "base_model")


def was_made_with(section: Any, record: Path, stage: str) -> bool:
    """Whether a stage's run.json says that it ran with this very section."""
    if not record.exists():
        return False
    content = files.read_json(record)
    first = content[0] if isinstance(content, list) else content
    for profile in first["parameters"].values():
        try:
            if type(section).model_validate(profile.get(stage)) == section:
                return True
        except ValueError:  # the section has had other keys since
            continue
    return False


def _gguf_config(source: Any) -> Any:
    from transformers import AutoConfig

    require_gguf()
    packaged = source.kind == "package"
    key = "base_model.source.file"
    path = source.find() if packaged else file_under(RAW_MODELS, source.file, key)
    require_bounded_gguf(path)
    with parsing(path.name, EXPECTED_GGUF, REMEDY_GGUF):
        return AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
