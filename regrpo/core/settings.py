"""Sections of a profile: our own keys, and those that pass through to a library under its names.

A key of a section is valid if it is a field of the stage's `Params`, or a field of the library
configuration class that the section passes through to (TRL's GRPOConfig, say) and not one that
regrpo sets itself.
"""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from regrpo.core.errors import Refused
from regrpo.core.library import library_fields
from regrpo.core.text import visible

MOST = 20
"""Wrong keys of a section that are named: each is compared with all that are known."""


class Problem(NamedTuple):
    """What is wrong with a key of a section, and a value that would do ("" if none is known)."""

    key: str
    why: str
    would_do: str = ""

    def __str__(self) -> str:
        remedy = f" (would do: {self.would_do})" if self.would_do else ""
        named = f"`{self.key}`: " if self.key else ""
        return f"{named}{self.why}{remedy}"


def invalid(*problems: Problem) -> PydanticCustomError:
    """The error that a validator of a whole section raises; keys are named from that section on."""
    # YAML can spell lone surrogates, pydantic cannot render them.
    text = visible("; ".join(map(str, problems)))
    return PydanticCustomError("settings", "{text}", {"text": text, "problems": problems})


MISSING = "is missing"


class Section(BaseModel):
    """A frozen, strict section of a profile: no unknown key, no coercion of text into numbers."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _name_every_wrong_key(cls, values: Any, parse: ModelWrapValidatorHandler[Self]) -> Self:
        """Refuse a section with one problem a key, in the words of a profile."""
        section, problems = None, []
        try:
            section = parse(values)
        except ValidationError as error:
            for one in error.errors()[:MOST]:
                problems += cls._problems(values, one)
        if isinstance(values, dict):
            problems += cls.problems_of_extras(values)
        found: dict[str, Problem] = {}
        for problem in problems:
            known = found.get(problem.key)
            found[problem.key] = _either(known, problem) if known else problem
        # A key that is misspelt is not missing besides.
        for meant in {problem.would_do for problem in found.values()}:
            if meant in found and found[meant].why == MISSING:
                del found[meant]
        if section is None or found:
            raise invalid(*found.values())
        return section

    @classmethod
    def _problems(cls, values: Any, error: Any) -> list[Problem]:
        """The problems that one of pydantic's errors says."""
        path = _path(error["loc"], values)
        if error["type"] == "settings":  # of a section in this one
            prefix = "".join(f"{part}." for part in path)
            return [
                Problem(f"{prefix}{key}".removesuffix("."), why, would_do)
                for key, why, would_do in error["ctx"]["problems"]
            ]
        if error["type"] == "missing":
            return [Problem(str(error["loc"][-1]), MISSING)]
        key = ".".join(map(str, path))
        if error["type"] == "extra_forbidden":
            near = nearest(key, cls.model_fields) or f"one of {', '.join(cls.model_fields)}"
            return [Problem(key, "unknown key", near)]
        if error["type"].startswith("union_tag"):
            context = error["ctx"]
            kinds = context.get("expected_tags", "the kinds that params.yaml names beside it")
            why = f"names none of the kinds; found {context.get('tag', 'none')!r}"
            return [Problem(f"{key}.kind", why, kinds.replace("'", ""))]
        return [Problem(key, _reason(error))]

    @classmethod
    def problems_of_extras(cls, values: Mapping[Any, Any]) -> list[Problem]:
        """What is wrong with the keys of a section that are not its own fields."""
        return []


def _path(location: Iterable[Any], values: Any) -> list[Any]:
    """An error's keys and indices, without pydantic's names for the branches of a union."""
    path = []
    for part in location:
        is_index = isinstance(values, list) and isinstance(part, int)
        if is_index or (isinstance(values, dict) and part in values):
            values = values[part]
            path.append(part)
    return path


def _reason(error: Any) -> str:
    text = error["msg"].removeprefix("Value error, ")
    text = re.sub(r"a valid dictionary( or [\w ]+)?", "a mapping", text)
    text = text[0].lower() + text[1:]
    if error["type"] == "value_error" or isinstance(error["input"], (dict, list, BaseModel)):
        return text
    return f"{text}; found {error['input']!r}"


def _either(first: Problem, second: Problem) -> Problem:
    """What two branches of a union say of one value."""
    why, _, found = first.why.partition("; found ")
    other = second.why.partition("; found ")[0].removeprefix("input should be ")
    return Problem(first.key, f"{why} or {other}; found {found}", first.would_do)


class PassThrough(Section):
    """A section whose remaining keys belong to a library's configuration dataclass.

    Subclasses set `library` ("package.module:Class") and `owned` (the fields that regrpo sets
    itself, each with why).
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)
    library: ClassVar[str]
    owned: ClassVar[dict[str, str]] = {}

    @classmethod
    def problems_of_extras(cls, values: Mapping[Any, Any]) -> list[Problem]:
        found: list[Problem] = []
        for key, value in values.items():
            problem = cls._problem(key, value) if isinstance(key, str) else None
            if problem:
                found.append(problem)
            if len(found) == MOST:
                break
        return found

    @classmethod
    def _problem(cls, key: str, value: object) -> Problem | None:
        if key in cls.model_fields:
            return None
        if key in cls.owned:
            return Problem(key, f"is set by regrpo: {cls.owned[key]}", "leave it out")
        fields = library_fields(cls.library)
        if key not in fields:
            known = {*cls.model_fields, *fields} - set(cls.owned)
            why = f"is neither ours nor a field of {cls.library.rpartition(':')[2]}"
            return Problem(key, why, nearest(key, sorted(known)) or "leave it out")
        if runs_remote_code(key, value):
            why = "is refused: code from a model repository is never run"
            return Problem("trust_remote_code", why, "leave it out")
        return _type_problem(key, value, fields[key])

    @property
    def passed_through(self) -> dict[str, Any]:
        """The keys for the library's configuration class, as the profile writes them."""
        return dict(self.model_extra or {})


def nearest(given: object, known: Iterable[str], alike: float = 0.6) -> str | None:
    """The known name that is most like what was given. Returns None if none is like it.

    `alike` is difflib's ratio, 0 to 1.
    """
    import difflib

    return next(iter(difflib.get_close_matches(str(given), list(known), 1, alike)), None)


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """That name in brackets, to end a sentence with, or "" if none is like it."""
    near = nearest(given, known)
    return f" (did you mean `{near}`?)" if near else ""


def runs_remote_code(key: str, value: object) -> bool:
    """Whether `trust_remote_code` stands anywhere inside a value that goes to a library."""
    if key == "trust_remote_code":
        return True
    inner = value if isinstance(value, dict) else {}
    return any(runs_remote_code(str(name), one) for name, one in inner.items())


def _type_problem(key: str, value: object, annotation: Any) -> Problem | None:
    """What is wrong with a value that cannot be what the library's own annotation says."""
    if isinstance(value, float) and not math.isfinite(value):
        return Problem(key, f"input should be a finite number; found {value!r}")
    if annotation is Any:
        return None
    try:
        TypeAdapter(annotation).validate_python(value, strict=True)
    except ValidationError as error:
        return Problem(key, f"{error.errors()[0]['msg'].lower()}; found {value!r}")
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
    """Several processes for one training, by torchrun or, with its configuration, accelerate."""

    processes: int = Field(gt=0)
    nodes: int = Field(default=1, gt=0)
    backend: Literal["gloo", "nccl"]
    config: str | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.processes % self.nodes:
            whole = -(-self.processes // self.nodes) * self.nodes
            why = f"nodes ({self.nodes}) must divide processes ({self.processes}, of all nodes)"
            raise invalid(Problem("processes", why, str(whole)))
        if self.config is None:
            return self
        if self.processes == 1 or Path(self.config).parent != LAUNCH_CONFIGS:
            why = (
                f"a file in {LAUNCH_CONFIGS}/, which DVC watches, for two processes or more; "
                f"found {self.config} for {self.processes}"
            )
            raise invalid(Problem("config", why, f"{LAUNCH_CONFIGS}/fsdp2.yaml"))
        return self


LAUNCH_CONFIGS = Path("profiles/launch")
"""Where accelerate's configuration files lie."""


class Quantization(Section):
    """bitsandbytes' weights in 4 or 8 bits, by transformers' names.

    QLoRA: Dettmers et al. 2023, arXiv:2305.14314.
    """

    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = "nf4"
    bnb_4bit_use_double_quant: bool = False
    bnb_4bit_compute_dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"

    @model_validator(mode="after")
    def _one_width(self) -> Self:
        if self.load_in_4bit == self.load_in_8bit:
            why = "one of `load_in_4bit` and `load_in_8bit` must be true"
            raise invalid(Problem("load_in_4bit", why, str(not self.load_in_8bit).lower()))
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
                remedy="On a CUDA machine `pip install -c constraints.txt -e '.[cuda]'`; "
                "elsewhere set it to null.",
            )
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(**self.model_dump())


Seed: Any = Field(ge=0, lt=2**32)
"""What NumPy's generator takes, and with it transformers' set_seed."""


RESUMED = "a resumed run must have everything to end in the same bytes"
CHANGED = "it would change what a step, a batch or the last model is"
LOCAL = "regrpo writes to the workspace only"


class Training(PassThrough):
    """What sft and grpo share around one of TRL's trainers."""

    owned: ClassVar[dict[str, str]] = {
        "output_dir": "models/<stage>, which DVC tracks",
        "report_to": "MLflow gets the same files by `regrpo sync`",
        "use_cpu": "it follows from `device`",
        "ddp_backend": "it is `launch.backend`",
        "data_seed": "it is `seed`",
        "trust_remote_code": "code from a model repository is never run",
        "save_strategy": "checkpoints are for resuming a killed run; `save_steps` says how often",
        "save_total_limit": "at most two checkpoints are kept, none after success",
        "resume_from_checkpoint": "regrpo chooses the newest complete checkpoint",
        "save_only_model": RESUMED,
        "ignore_data_skip": RESUMED,
        "restore_callback_states_from_checkpoint": RESUMED,
        "enable_jit_checkpoint": RESUMED,
        "load_best_model_at_end": CHANGED,
        "auto_find_batch_size": CHANGED,
        "eval_on_start": CHANGED,
        "logging_strategy": CHANGED,
        "logging_first_step": CHANGED,
        "push_to_hub": LOCAL,
        "hub_token": LOCAL,
        "hub_model_id": LOCAL,
        "hub_strategy": LOCAL,
        "hub_private_repo": LOCAL,
        "hub_always_push": LOCAL,
        "hub_revision": LOCAL,
        "chat_template_path": "the template lies with the base model's tokenizer",
        "disable_tqdm": "progress is printed by regrpo",
        "eval_strategy": "evaluation in training changes the weights; the evaluate stage measures",
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
            why = "nccl needs `device: cuda` (or auto); on CPUs it is gloo"
            raise invalid(Problem("launch.backend", why, "gloo"))
        if self.launch and self.launch.config and self.lora:
            why = "its adapter cannot be merged out of shards; drop `launch.config`, or `lora`"
            raise invalid(Problem("lora", why, "null"))
        return self

    @property
    def processes(self) -> int:
        """How many processes train together."""
        return self.launch.processes if self.launch else 1

    @model_validator(mode="after")
    def _quantised_weights_stay(self) -> Self:
        if self.quantization and not self.lora:
            why = "needs `lora`: quantised weights are not trained themselves"
            raise invalid(Problem("quantization", why, "lora: {r: 16, lora_alpha: 32}"))
        return self

    @property
    def wants_bf16(self) -> bool:
        """Whether bfloat16 is used; TRL's default unless it or float16 is set."""
        bf16 = self.passed_through.get("bf16")
        if bf16 is None:
            return not self.passed_through.get("fp16", False)
        return bool(bf16)

    @property
    def cycle(self) -> int:
        """Optimizer steps after which nothing is in flight: a run resumes to the same bits."""
        return 1

    def trainer_settings(self, device: str) -> dict[str, Any]:
        """Arguments for the library's configuration class: the profile's and the device's."""
        fields = library_fields(self.library)
        named = {name: getattr(self, name) for name in type(self).model_fields if name in fields}
        settings: dict[str, Any] = {"dataloader_pin_memory": device != "cpu"}
        if self.launch and self.processes > 1:
            settings["ddp_find_unused_parameters"] = False  # none are, and the search costs time
        settings |= self.passed_through | named
        if self.launch and self.processes > 1:
            settings["ddp_backend"] = self.launch.backend
        # A checkpoint falls on the end of a cycle and of a logging window for any profile.
        boundary = math.lcm(self.cycle, self.logging_steps)
        return settings | {
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": device == "cpu",
            "save_strategy": "steps",
            "save_steps": -(-self.save_steps // boundary) * boundary,
        }
