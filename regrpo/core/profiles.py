"""Profiles: one YAML file with a section per stage, parsed whole, every key known by name.

A key of a section is valid if it is a field of the stage's `Params`, or a field of the library
configuration class that the section passes through to (TRL's GRPOConfig, say) and not one that
regrpo sets itself. The library's fields and types are read from its source text, so that a whole
profile is checked in a second, without importing torch.
"""

from __future__ import annotations

import ast
import importlib.util
import math
import typing
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from regrpo.core.errors import CannotCheck, Refused

S = typing.TypeVar("S", bound="Section")
DEFAULT_PROFILE = Path("params.yaml")
STAGES = ("prepare", "base_model", "validate", "sft", "grpo", "evaluate", "model_card")
"""The stages in running order; also the sections of a profile and the folders of reports/."""
SECTIONS = (*STAGES, "promote")
"""The sections of a profile.

One per stage, and the rule of `regrpo promote`, which no stage reads.
"""


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


@cache
def library_fields(library: str) -> dict[str, Any]:
    """Field names and types of a dataclass ("package.module:Class") and of its bases, read without importing it.

    An annotation that is not made of builtins and typing's names counts as Any.
    """
    module, _, class_name = library.partition(":")
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise CannotCheck(
            package, expected="the package installed", found="nothing", remedy="Run `make install`."
        )
    path = Path(spec.submodule_search_locations[0]).joinpath(*rest)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    definition = next(
        (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name),
        None,
    )
    fields: dict[str, Any] = {}
    if (
        definition is None
    ):  # a base that the module only passes on: mixins have no fields of interest
        return fields
    for base in definition.bases:
        if isinstance(base, ast.Name) and (source := _imported_from(tree, base.id, package, rest)):
            fields |= library_fields(f"{source}:{base.id}")
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            fields[node.target.id] = _annotation(node.annotation)
    return fields


def _imported_from(tree: ast.Module, name: str, package: str, rest: list[str]) -> str | None:
    """The module that `name` comes from in `tree`, where it is a configuration class of TRL or transformers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            if node.level:
                parent = [package, *rest][: -node.level]
                return ".".join([*parent, *(node.module or "").split(".")]).rstrip(".")
            return "transformers.training_args" if name == "TrainingArguments" else node.module
    return None


def _annotation(node: ast.expr) -> Any:
    text = (
        node.value
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        else ast.unparse(node)
    )
    names = {
        name: getattr(typing, name) for name in ("Any", "Literal", "Optional", "Union", "Callable")
    }
    try:
        # The text is the installed library's own source; names beyond typing's and builtin types
        # raise NameError.
        return eval(
            text,
            {"__builtins__": {}},
            names | {t.__name__: t for t in (int, float, str, bool, list, dict, tuple)},
        )
    except (NameError, TypeError, AttributeError):
        return Any


def read_yaml(path: Path) -> Any:
    """A YAML 1.2 file, read as DVC reads it (`1e-4` is a number), safe types only."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise CannotCheck(str(path), expected="a YAML file", found=found, remedy="Check the name.")
    try:
        return YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise Refused(
            str(path),
            expected="YAML",
            found=" ".join(str(error).split())[:300],
            remedy="Mend the file.",
        ) from error


def active_profile() -> Path:
    """The profile that params.yaml names (`profile:`); what `-S profile=…` changes."""
    content = read_yaml(DEFAULT_PROFILE)
    profile = content.get("profile") if isinstance(content, dict) else content
    if not isinstance(profile, str) or Path(profile).is_absolute() or ".." in Path(profile).parts:
        raise Refused(
            f"{DEFAULT_PROFILE}: profile",
            expected="the path of a profile inside the repository",
            found=repr(profile),
            remedy=f"Write `profile: {DEFAULT_PROFILE}` or one of profiles/.",
        )
    return Path(profile)


def read_profile(path: Path, needed: tuple[str, ...] = SECTIONS) -> dict[str, Any]:
    """A whole profile.

    A mapping of exactly SECTIONS (besides `profile:`), or of those `needed` at least.

    Raises Refused for a missing or unknown one.
    """
    profile = read_yaml(path)
    found = set(profile) - {"profile"} if isinstance(profile, dict) else set()
    missing, unknown = sorted(set(needed) - found), sorted(map(str, found - set(SECTIONS)))
    if missing or unknown:
        raise Refused(
            str(path),
            expected=f"one section per stage, and promote ({', '.join(SECTIONS)})",
            found="; ".join(
                part
                for part in (
                    f"missing: {', '.join(missing)}" * bool(missing),
                    f"unknown: {', '.join(unknown)}" * bool(unknown),
                )
                if part
            ),
            remedy="Start from a copy of params.yaml.",
        )
    return typing.cast("dict[str, Any]", profile)


def parse_section(model: type[S], values: object, where: str) -> S:
    """A section as its `Params` model.

    Raises Refused that names every wrong key, what it should be and what it is.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [_problem(one, list(model.model_fields)) for one in error.errors()]
        if issubclass(model, PassThrough) and isinstance(
            values, dict
        ):  # not looked at where a field of ours is wrong
            passed = (
                model._problem(key, one)
                for key, one in values.items()
                if key not in model.model_fields
            )
            problems += [
                problem
                for problem in passed
                if problem and not any(problem in told for told in problems)
            ]
        raise Refused(
            where,
            expected="known keys with values of the right type and range",
            found="; ".join(problems),
            remedy="Correct it in the profile (or in the -S argument).",
        ) from None


def _problem(error: Any, known: list[str]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key `{key}`{did_you_mean(key, known)}"
    if error["type"] == "missing":
        return f"`{key}` is missing"
    if error["type"].startswith("union_tag"):
        kinds = error.get("ctx", {}).get(
            "expected_tags", "the kinds that params.yaml names beside it"
        )
        return f"`{key}.kind` must be one of {kinds}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    given = error.get("input")
    shown = (
        ""
        if error["type"] == "value_error" or isinstance(given, (dict, list, BaseModel))
        else f", found {given!r}"
    )
    return f"`{key}`: {message}{shown}" if key else message


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
