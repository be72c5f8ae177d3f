"""Sections of a profile: our own keys, and those that pass through to a library under its names.

A key of a section is valid if it is a field of the stage's `Params`, or a field of the library
configuration class that the section passes through to (TRL's GRPOConfig, say) and not one that
regrpo sets itself.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from regrpo.core.errors import Refused
from regrpo.core.library import library_fields


class Section(BaseModel):
    """A frozen, strict section of a profile: no unknown key, no coercion of text into numbers."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class PassThrough(Section):
    """A section whose remaining keys belong to a library's configuration dataclass and keep their own names.

    Subclasses set `library` ("package.module:Class") and `owned` (the fields that regrpo sets itself, each with why).
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)
    library: ClassVar[str]
    owned: ClassVar[dict[str, str]] = {}

    @model_validator(mode="after")
    def _extras_belong_to_the_library(self) -> Self:
        problems = [
            problem
            for key, value in self.passed_through.items()
            if (problem := self._problem(key, value))
        ]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @classmethod
    def _problem(cls, key: str, value: object) -> str | None:
        """What is wrong with a key that is passed through; None where nothing is."""
        fields = library_fields(cls.library)
        if key in cls.owned:
            return f"`{key}` is set by regrpo: {cls.owned[key]}"
        if key not in fields:
            known = [*cls.model_fields, *(name for name in fields if name not in cls.owned)]
            return f"`{key}` is neither ours nor a field of {cls.library.rpartition(':')[2]}{did_you_mean(key, known)}"
        return runs_remote_code(key, value) or _type_problem(key, value, fields[key])

    @property
    def passed_through(self) -> dict[str, Any]:
        """The keys for the library's configuration class, as the profile writes them."""
        return dict(self.model_extra or {})


def nearest(given: object, known: Iterable[str], alike: float = 0.6) -> str | None:
    """The known name that is most like what was given; None where none is (`alike`.

    Difflib's ratio, 0 to 1).
    """
    import difflib

    return next(iter(difflib.get_close_matches(str(given), list(known), 1, alike)), None)


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """That name in brackets, to end a sentence with; nothing where none is like it."""
    near = nearest(given, known)
    return f" (did you mean `{near}`?)" if near else ""


def runs_remote_code(key: str, value: object) -> str | None:
    """A refusal where `trust_remote_code` stands anywhere inside a value that goes to a library."""
    if key == "trust_remote_code":
        return "`trust_remote_code` is refused: code from a model repository is never run"
    inner = value.items() if isinstance(value, dict) else ()
    return next(
        (problem for name, one in inner if (problem := runs_remote_code(str(name), one))), None
    )


def _type_problem(key: str, value: object, annotation: Any) -> str | None:
    """What is wrong where `value` cannot be what the library's own annotation says."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"`{key}`: input should be a finite number; found {value!r}"
    try:
        if annotation is not Any:
            TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        return f"`{key}`: {error.errors()[0]['msg'].lower()}; found {value!r}"
    return None


class Lora(Section):
    """LoRA (Hu et al. 2021, arXiv:2106.09685), by PEFT's own names."""

    r: int = Field(gt=0)
    lora_alpha: int = Field(gt=0)
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str | list[str] = "all-linear"

    def config(self) -> Any:
        """PEFT's own LoraConfig."""
        from peft import LoraConfig

        return LoraConfig(task_type="CAUSAL_LM", bias="none", **self.model_dump())


class Launch(Section):
    """Several processes for one training, by torchrun or, with a configuration of accelerate's, by accelerate."""

    processes: int = Field(gt=0)
    nodes: int = Field(default=1, gt=0)
    backend: Literal["gloo", "nccl"]
    config: str | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.processes % self.nodes:
            raise ValueError(
                f"`launch`: nodes ({self.nodes}) must divide processes ({self.processes}, of all nodes)"
            )
        if self.config is not None and (
            self.processes == 1 or Path(self.config).parent != LAUNCH_CONFIGS
        ):
            raise ValueError(
                f"`launch.config`: a file in {LAUNCH_CONFIGS}/, which DVC watches, for two processes or more; "
                f"found {self.config} for {self.processes}"
            )
        return self


LAUNCH_CONFIGS = Path("profiles/launch")
"""Where accelerate's configuration files lie."""


class Quantization(Section):
    """bitsandbytes' weights in 4 or 8 bits, by transformers' names (QLoRA: Dettmers et al.

    2023, arXiv:2305.14314).
    """

    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_compute_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    @model_validator(mode="after")
    def _one_width(self) -> Self:
        if self.load_in_4bit == self.load_in_8bit:
            raise ValueError(
                "`quantization`: one of `load_in_4bit` and `load_in_8bit` must be true"
            )
        return self

    def config(self, stage: str) -> Any:
        """transformers' own BitsAndBytesConfig.

        Raises Refused where bitsandbytes is not installed.
        """
        if importlib.util.find_spec("bitsandbytes") is None:
            raise Refused(
                f"{stage}.quantization",
                expected="the package bitsandbytes, which quantises the weights",
                found="none",
                remedy="On a CUDA machine `pip install -c constraints.txt -e '.[cuda]'`; elsewhere set it to null.",
            )
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(**self.model_dump())


Seed: Any = Field(ge=0, lt=2**32)
"""What NumPy's generator takes, and with it transformers' set_seed."""


class Training(PassThrough):
    """What sft and grpo share around one of TRL's trainers."""

    owned: ClassVar[dict[str, str]] = {
        "output_dir": "models/<stage>, which DVC tracks",
        "report_to": "MLflow gets the same files by `regrpo sync`",
        "use_cpu": "it follows from `device`",
        "ddp_backend": "it is `launch.backend`",
        "data_seed": "it is `seed`",
        "trust_remote_code": "code from a model repository is never run",
        "push_to_hub": "regrpo writes to the workspace only",
        "save_strategy": "checkpoints are for resuming a killed run only; `save_steps` says how often",
        "save_total_limit": "at most two checkpoints are kept, none after success",
        "resume_from_checkpoint": "regrpo chooses the newest complete checkpoint",
        **dict.fromkeys(
            (
                "save_only_model",
                "ignore_data_skip",
                "restore_callback_states_from_checkpoint",
                "enable_jit_checkpoint",
            ),
            "a resumed run must have everything to end in the same bytes",
        ),
        **dict.fromkeys(
            (
                "load_best_model_at_end",
                "auto_find_batch_size",
                "eval_on_start",
                "logging_strategy",
                "logging_first_step",
            ),
            "it would change what a step, a batch or the last model is",
        ),
        **dict.fromkeys(
            (
                "hub_token",
                "hub_model_id",
                "hub_strategy",
                "hub_private_repo",
                "hub_always_push",
                "hub_revision",
            ),
            "regrpo writes to the workspace only",
        ),
        "chat_template_path": "the template lies with the base model's tokenizer",
        "disable_tqdm": "progress is printed by regrpo",
        "eval_strategy": "evaluation inside training changes the weights; the evaluate stage measures",
        "do_eval": "the evaluate stage measures",
    }
    seed: int = Seed
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(gt=0)
    deterministic: bool = False
    lora: Lora | None = None
    launch: Launch | None = None
    quantization: Quantization | None = None
    max_steps: int = Field(ge=-1)
    save_steps: int = Field(default=100, gt=0)
    per_device_train_batch_size: int = Field(gt=0)
    gradient_accumulation_steps: int = Field(default=1, gt=0)
    learning_rate: float = Field(gt=0)
    logging_steps: int = Field(default=10, gt=0)

    @model_validator(mode="after")
    def _launch_fits(self) -> Self:
        if self.launch and self.launch.backend == "nccl" and self.device == "cpu":
            raise ValueError(
                "`launch.backend`: nccl needs `device: cuda` (or auto); on CPUs it is gloo"
            )
        if self.launch and self.launch.config and self.lora:
            raise ValueError(
                "`lora`: its adapter cannot be merged out of shards; drop `launch.config`, or `lora`"
            )
        return self

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return self.launch.processes if self.launch else 1

    @model_validator(mode="after")
    def _quantised_weights_stay(self) -> Self:
        if self.quantization and not self.lora:
            raise ValueError(
                "`quantization` needs `lora`: quantised weights are not trained themselves"
            )
        return self

    @property
    def wants_bf16(self) -> bool:
        """Whether bfloat16 is asked for; TRL's default where neither it nor float16 is."""
        asked = self.passed_through.get("bf16")
        return bool(not self.passed_through.get("fp16", False) if asked is None else asked)

    @property
    def cycle(self) -> int:
        """Optimizer steps after which nothing is in flight, so that a run can be resumed to the same bits."""
        return 1

    def trainer_settings(self, device: str) -> dict[str, Any]:
        """Arguments for the library's configuration class.

        What the profile says, and what follows from the device.
        """
        fields = library_fields(self.library)
        named = {name: getattr(self, name) for name in type(self).model_fields if name in fields}
        fixed = {
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": device == "cpu",
            "save_strategy": "steps",
        }
        # A checkpoint falls on the end of a cycle and of a logging window, whatever the profile
        # asks.
        boundary = math.lcm(self.cycle, self.logging_steps)
        fixed["save_steps"] = -(-self.save_steps // boundary) * boundary
        together = {}
        if self.launch and self.processes > 1:
            fixed["ddp_backend"] = self.launch.backend
            together["ddp_find_unused_parameters"] = (
                False  # there are none, and the search costs time
            )
        return (
            {"dataloader_pin_memory": device != "cpu"}
            | together
            | self.passed_through
            | named
            | fixed
        )
