"""What sft shows of the rows, and in which order: examples, drawn by the curriculum's phases."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, model_validator

from regrpo.core.answers.protocol import Verifier
from regrpo.core.errors import Refused
from regrpo.core.files import ParquetFile
from regrpo.core.settings import Problem, Section, Training, invalid

if TYPE_CHECKING:
    import pyarrow as pa

Row = dict[str, Any]


class Phase(Section):
    """A share of the steps, and the share of its rows that show the reasoning before the answer."""

    share: float = Field(gt=0, le=1)
    worked: float = Field(ge=0, le=1)


class Curriculum(Training):
    """A supervised training, its rows in the order of phases or shuffled."""

    library = "trl.trainer.sft_config:SFTConfig"
    curriculum: list[Phase] | None = None

    @model_validator(mode="after")
    def _phases_add_up(self) -> Self:
        if self.curriculum is not None:
            if abs(sum(phase.share for phase in self.curriculum) - 1) > 1e-9:
                raise invalid(Problem("curriculum", "the shares must add up to 1"))
            if self.max_steps < 0:
                raise invalid(Problem("max_steps", "a curriculum needs a number of steps"))
        return self

    def draw_order(self, count: int) -> list[int]:
        """Indices into the `Examples` of `count` rows: by phase, with replacement, by the seed."""
        draw = random.Random(self.seed)  # noqa: S311  (a seeded order, no secret)
        batch = self.per_device_train_batch_size * self.gradient_accumulation_steps
        batch *= self.processes
        order: list[int] = []
        for phase in self.curriculum or []:
            for _ in range(round(phase.share * self.max_steps) * batch):
                row = draw.randrange(count)
                is_bare = draw.random() >= phase.worked
                order.append(2 * row + is_bare)
        # The phases' rounded steps may be some more than max_steps, or fewer: then the last again.
        missing = self.max_steps * batch - len(order)
        if missing < 0:
            return order[:missing]
        return order + order[len(order) - missing :]


@dataclass
class Examples:
    """What sft shows of each row, twice, as it is read: the worked solution, then the bare answer.

    A row without a solution shows its answer both times; one without an answer that the verifier
    renders shows its solution both times. `path` names the rows' file.
    """

    verifier: Verifier | None
    path: Path
    unsolved: int = 0
    """Rows so far that have no solution."""

    def schema(self, rows: pa.Schema) -> pa.Schema:
        """Arrow's types of the examples of such rows: a completion is what its prompt is."""
        import pyarrow as pa

        kind = rows.field("prompt").type
        return pa.schema([("prompt", kind), ("completion", kind)])

    def of(self, rows: list[Row]) -> list[Row]:
        """TRL's prompt and completion, two examples a row.

        Raises Refused for a row without a solution or an answer to be rendered.
        """
        found, empty = [], []
        for row in rows:
            answer = row["solution"]
            if self.verifier and row["answer"] is not None:
                answer = self.verifier.render(row["answer"])
            solution = answer if row["solution"] is None else row["solution"]
            self.unsolved += row["solution"] is None
            if solution is None:
                empty.append(str(row["id"]))
            found += [_example(row["prompt"], solution), _example(row["prompt"], answer)]
        if empty:
            raise _no_targets(self.path, f"none for {', '.join(empty[:20])}")
        return found


def require_rows(file: ParquetFile) -> None:
    """Raises Refused for a file without rows."""
    if not file.num_rows:
        raise _no_targets(file.path, "no rows (prepare.sft: 0)")


def _no_targets(path: Path, found: str) -> Refused:
    return Refused(
        str(path),
        expected="rows with a solution, or an answer that the verifier can render",
        found=found,
        remedy="Bring solutions, raise prepare.sft, or set sft.max_steps: 0.",
    )


def _example(prompt: Any, text: str) -> Row:
    """Plain text after plain text, a message after messages."""
    if isinstance(prompt, str):
        return {"prompt": prompt, "completion": text}
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": text}]}


def require_left(given: int, lengths: list[int], params: Curriculum) -> list[str]:
    """What of the examples TRL dropped or cut at `max_length`, a sentence each.

    `lengths` are the tokens of those that are left. Raises Refused if it dropped every example, or
    some that the curriculum's order counts on: those whose prompt alone fills `max_length`.
    """
    limit, dropped = params.passed_through.get("max_length", 1024), given - len(lengths)
    if not lengths or (dropped and params.curriculum):
        raise Refused(
            "sft.max_length",
            expected="room for a prompt and the beginning of its answer",
            found=f"{dropped} of {given} examples whose prompt alone fills it ({limit} tokens)",
            remedy="Raise it, or bring shorter prompts (prepare.max_prompt_tokens cuts them).",
        )
    if params.passed_through.get("packing"):
        return []
    found = []
    if dropped:
        found.append(f"{dropped} of {given} examples teach nothing: their prompt fills max_length")
    if cut := lengths.count(limit):
        found.append(
            f"{cut} examples fill max_length ({limit}): longer ones lost their answer's end"
        )
    return found
