"""How one generation's completions fall into groups, steps and processes, as TRL counts them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from regrpo.core.errors import Refused
from regrpo.core.settings import Problem, Training


class Grouped(Training):
    """A training on groups of completions, all generated for the same prompt."""

    library = "trl.trainer.grpo_config:GRPOConfig"
    num_generations: int = Field(ge=2)

    @classmethod
    def of_section(cls, section: Mapping[str, Any]) -> Grouped:
        """What grpo's section of a profile says about groups, its other keys left alone."""
        wanted = {*Grouped.model_fields, "generation_batch_size", "steps_per_generation"}
        known = {key: value for key, value in section.items() if key in wanted}
        return Grouped.model_validate(known)

    @property
    def completions_at_once(self) -> int:
        """Completions of one generation, of all processes."""
        return self.per_device_train_batch_size * self.processes * self.generation_steps

    @property
    def prompts_at_once(self) -> int:
        """Different prompts of one generation."""
        return self.completions_at_once // self.num_generations

    def require_prompts(self, rows: int) -> None:
        """Refuse fewer rows than one generation takes: TRL makes no batch of them, and no step."""
        at_once, needed = self.completions_at_once, self.prompts_at_once
        if rows < needed:
            raise Refused(
                "grpo.per_device_train_batch_size",
                expected=f"a step that needs no more prompts than there are: it takes {needed} "
                f"different ones ({at_once} completions, {self.num_generations} a prompt)",
                found=f"{rows} in train",
                remedy="Lower it, raise num_generations, or bring more data (prepare.sft leaves "
                "train the rest).",
            )

    def group_problem(self, processes: int) -> Problem | None:
        """What is wrong if the completions generated at once are not whole batches and groups."""
        # Completions of one micro-step.
        at_once = self.per_device_train_batch_size * processes
        stated = self.passed_through.get("generation_batch_size")
        completions = stated or at_once * self.generation_steps
        shape = f"per_device_train_batch_size {self.per_device_train_batch_size}"
        if processes > 1:
            shape += f" × {processes} processes"
        if completions % at_once:
            why = f"({completions}) must be a multiple of {at_once} ({shape})"
            whole = -(-completions // at_once) * at_once
            return Problem("generation_batch_size", why, str(whole))
        if completions % self.num_generations:
            why = (
                f"({self.num_generations}) must divide the completions generated at once, "
                f"{completions} ({shape} × {completions // at_once})"
            )
            return Problem("num_generations", why, _group_sizes(completions, self.num_generations))
        return None

    @property
    def generation_steps(self) -> int:
        """Micro-steps that use one generation's completions, as TRL counts them."""
        at_once = self.per_device_train_batch_size * self.processes
        generated = self.passed_through.get("generation_batch_size") or 0
        return (
            self.passed_through.get("steps_per_generation")
            or generated // at_once
            or self.gradient_accumulation_steps
        )

    @property
    def cycle(self) -> int:
        """Optimizer steps of one generation's use: TRL does not save its buffer of completions."""
        micro_steps = math.lcm(
            self.generation_steps * self.passed_through.get("num_iterations", 1),
            self.gradient_accumulation_steps,
        )
        return micro_steps // self.gradient_accumulation_steps


def _group_sizes(completions: int, near: int) -> str:
    """The divisors of the completions generated at once that are next to a group size."""
    divisors = [n for n in range(2, completions + 1) if completions % n == 0]
    below = [n for n in divisors if n < near][-1:]
    above = [n for n in divisors if n > near][:1]
    return " or ".join(map(str, below + above)) or "none: raise per_device_train_batch_size"
