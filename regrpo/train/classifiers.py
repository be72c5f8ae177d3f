"""Sequence classifiers as judges of text: any of transformers', frozen, at a pinned revision.

A text's value is P(positive labels) − P(negative labels), from -1 to 1, the labels by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, StringConstraints, model_validator

from regrpo.core import files, hardware
from regrpo.core.errors import Refused, parsing
from regrpo.core.hub import (
    KEPT,
    RAW_MODELS,
    file_under,
    read_object,
    require_safetensors,
    require_sizes,
    snapshot,
)
from regrpo.core.settings import Problem, Section, invalid

if TYPE_CHECKING:
    import torch

ClassifierName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]*$")]
"""What a profile calls a classifier; rewards, metrics and columns bear it."""


class Classifier(Section):
    """A hub repository at a commit, or a folder under models/raw/, and what its labels mean."""

    repo: str | None = None
    revision: str | None = None
    path: str | None = None
    license: str = "unknown"
    positive: list[str] = Field(default=[])
    negative: list[str] = Field(default=[])
    max_length: int = Field(default=512, gt=2)
    batch_size: int = Field(default=32, gt=0)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")

    @model_validator(mode="after")
    def _one_place_and_labels(self) -> Self:
        if (self.repo is None) == (self.path is None):
            why = "has either `repo` and `revision` or `path` (a folder under models/raw/)"
            raise invalid(Problem("", why))
        if (self.repo is None) != (self.revision is None):
            raise invalid(Problem("revision", "the commit of `repo`, and of nothing else"))
        labels = [*self.positive, *self.negative]
        if not labels or len(set(labels)) < len(labels):
            why = "`positive` and `negative` are labels by name, each once, at least one in all"
            raise invalid(Problem("positive", why))
        return self

    @property
    def source(self) -> str:
        return f"hub model {self.repo}" if self.repo else f"folder {self.path} under {RAW_MODELS}/"

    def bring(self, key: str) -> Path:
        """The folder with its files. Raises Refused and CannotCheck as regrpo.core.hub does."""
        folder = snapshot(self.repo, str(self.revision), key) if self.repo else self._folder(key)
        require_safetensors(folder)
        return folder

    def look_up(self, key: str) -> None:
        """Refuse a missing folder and labels that there are not, without loading anything.

        A hub classifier's labels are looked at if its configuration lies in the hub's cache.
        """
        if self.repo:
            from huggingface_hub import try_to_load_from_cache

            cached = try_to_load_from_cache(self.repo, "config.json", revision=self.revision)
            config = Path(cached) if isinstance(cached, str) else None
        else:
            config = self._folder(key) / "config.json"
        if config is not None and config.exists():
            labels = read_object(config).get("id2label")
            labels = labels or {"0": "LABEL_0", "1": "LABEL_1"}  # transformers' own default
            self.require_labels(list(labels.values()), key)

    def require_labels(self, found: Sequence[str], key: str) -> None:
        """Raises Refused for a label of the profile that is none of the classifier's."""
        wrong = [label for label in [*self.positive, *self.negative] if label not in found]
        if wrong:
            raise Refused(
                key,
                expected=f"labels of {self.source}: {', '.join(found)}",
                found=f"{', '.join(wrong)}, which it does not have",
                remedy="Name its own labels under `positive` and `negative`.",
            )

    def _folder(self, key: str) -> Path:
        folder = file_under(RAW_MODELS, str(self.path), f"{key}.path")
        if not (folder / "config.json").exists():
            raise Refused(
                f"{key}.path",
                expected="a model folder (config.json, safetensors, tokenizer)",
                found=f"{folder} without config.json",
                remedy="Save the classifier into it with `save_pretrained`.",
            )
        return folder


@dataclass(frozen=True)
class Judge:
    """A loaded classifier; `positive` and `negative` are its labels' columns.

    `facts` is what the records hold of it: where from, labels, SHA-256 of every file.
    """

    name: str
    spec: Classifier
    model: Any
    tokenizer: Any
    positive: list[int]
    negative: list[int]
    facts: dict[str, Any]

    def values(self, texts: Sequence[str]) -> list[float]:
        """One value a text, in order: P(positive labels) − P(negative labels), -1 to 1."""
        import torch

        # Texts of like lengths go together: they need little padding.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        values = [0.0] * len(texts)
        for start in range(0, len(order), self.spec.batch_size):
            chosen = order[start : start + self.spec.batch_size]
            batch = self.tokenizer(
                [texts[index] for index in chosen],
                truncation=True,
                max_length=self.spec.max_length,
                padding=True,
                return_tensors="pt",
            ).to(self.model.device)
            with torch.inference_mode():
                logits = self.model(**batch).logits.float()
            difference = self._side(logits, self.positive) - self._side(logits, self.negative)
            for index, value in zip(chosen, difference.tolist(), strict=True):
                values[index] = value
        return values

    def _side(self, logits: torch.Tensor, columns: list[int]) -> torch.Tensor:
        """P of these labels, a text each.

        Of labels that exclude each other (softmax) probabilities are added; of labels that do not
        (a configuration with problem_type multi_label_classification: sigmoids) the likeliest
        stands for its side.
        """
        import torch

        if not columns:
            return torch.zeros(len(logits))
        if self.model.config.problem_type == "multi_label_classification":
            return logits.sigmoid()[:, columns].amax(-1).cpu()
        return logits.softmax(-1)[:, columns].sum(-1).cpu()


def load_all(specs: Mapping[str, Classifier], stage: str, device: str) -> dict[str, Judge]:
    """Every classifier of a section by its name."""
    judges = {}
    for name, spec in specs.items():
        judges[name] = load(name, spec, f"{stage}.classifiers.{name}", device)
    return judges


def load(name: str, spec: Classifier, key: str, default_device: str) -> Judge:
    """Bring a classifier, check it and load it: float32, evaluation mode, no code of its own.

    Raises Refused for pickled weights, a model without a trained head, labels that it does not
    have, a `max_length` beyond its window, and a device that is not there.
    """
    folder = spec.bring(key)
    model, tokenizer = _read(folder, spec, key)
    labels = [model.config.id2label[index] for index in range(model.config.num_labels)]
    spec.require_labels(labels, key)
    if len(labels) < 2 and model.config.problem_type != "multi_label_classification":
        raise Refused(
            key,
            expected="a classifier with two labels or more",
            found=f"one ({labels[0]}): a regression",
            remedy="Use it through a reward function of your own (custom/).",
        )
    longest = getattr(model.config, "max_position_embeddings", None) or spec.max_length
    window = min(tokenizer.model_max_length, longest)
    if spec.max_length > window:
        raise Refused(
            f"{key}.max_length",
            expected=f"at most the window of {spec.source}, {window} tokens",
            found=str(spec.max_length),
            remedy="Lower it.",
        )
    device = default_device
    if spec.device != "auto":
        device = hardware.find_device(spec.device, f"{key}.device")
    model = model.eval().requires_grad_(False).to(device)
    positive = [labels.index(label) for label in spec.positive]
    negative = [labels.index(label) for label in spec.negative]
    facts = describe(spec, folder, labels)
    return Judge(name, spec, model, tokenizer, positive, negative, facts)


def _read(folder: Path, spec: Classifier, key: str) -> tuple[Any, Any]:
    """(model, tokenizer) of a classifier's folder; refused if its head is not among the weights."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    # What it would warn of is refused below.
    logging.set_verbosity_error()
    expected = f"a sequence classifier that transformers can load ({spec.source})"
    with parsing(key, expected, "Check its files, or take another."):
        require_sizes(read_object(folder / "config.json"), f"{key}: config.json")
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder)
    untrained = sorted(report["missing_keys"])
    if untrained:
        raise Refused(
            key,
            expected=f"a classification head among the weights of {spec.source}",
            found=f"none: {', '.join(untrained[:4])} would be drawn at random",
            remedy="Take a trained classifier.",
        )
    return model, tokenizer


def describe(spec: Classifier, folder: Path, labels: Sequence[str]) -> dict[str, Any]:
    """What the records hold of a classifier; `sha256` is that of its files' digests."""
    digests = {}
    for pattern in KEPT:
        for file in folder.glob(pattern):
            digests[file.name] = files.sha256(file)
    digest = files.sha256_json(digests)
    of_profile = {"repo", "license", "positive", "negative", "max_length"}
    return spec.model_dump(include=of_profile) | {
        "source": spec.source,
        "revision": spec.revision or digest,
        "labels": list(labels),
        "files": digests,
        "sha256": digest,
    }
