"""From a source's rows to examples, and from examples to prompts."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from regrpo.core.conversation import QUESTION
from regrpo.core.errors import Refused
from regrpo.core.files import characters
from regrpo.core.settings import Problem, Section, Seed, invalid
from regrpo.core.text import some
from regrpo.core.verifiers import NONE
from regrpo.inputs.formats import Format, PromptStyle, as_text
from regrpo.inputs.readers import Row, Rows

TAKEN = {
    *("id", "prompt", "question", "answer", "solution", "turns", "source_row"),  # ours
    *("prompts", "completion", "completions", "completion_ids", "trainer_state"),  # TRL's words
    *("log_extra", "log_metric", "environment", "environments", "image", "images", "tools"),
    *("step", "reward"),  # samples.parquet's
}
"""Names that no further column may have."""
WHOLE = re.compile(r"[-+]?[0-9]+\.0+")
"""A whole number written with decimals."""
NAMED = 20
"""Rows with too long a cell that a refusal names; reading ends with the last of them."""


class Plan(Section):
    """How a source's rows become examples and splits: prepare's parameters but the source.

    A null `verifier`, `prompt_style` or `prompt_template` is the format's own. `train` is the most
    rows that grpo gets, null for all that are left.
    """

    seed: int = Seed
    format: str
    columns: dict[Literal["id", "question", "answer", "solution"], str] = Field(default={})
    # Further columns of the source, for rewards, custom tasks and samples.parquet.
    keep: list[str] = Field(default=[])
    verifier: str | None = None
    prompt_style: PromptStyle | None = None
    prompt_template: str | None = Field(default=None, pattern=r"\{question\}")
    system_prompt: str | None = None
    # Longer questions lose their end; null cuts none.
    max_prompt_tokens: int | None = Field(default=None, gt=0)
    # Of a cell that is read: lists and objects count with all their text.
    max_cell_characters: int = Field(default=1_000_000, gt=0, le=100_000_000)
    drop_duplicates: bool = False
    eval: int | None = Field(default=None, gt=0)
    dev: int = Field(gt=0)
    sft: float = Field(ge=0, lt=1)
    train: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _kept_names_are_free(self) -> Self:
        if taken := sorted(TAKEN.intersection(self.keep)):
            why = f"{', '.join(taken)}: prepare, TRL or samples.parquet has a column of that name"
            raise invalid(Problem("keep", why, "another name in the source, or leave it out"))
        if len(set(self.keep)) < len(self.keep):
            raise invalid(Problem("keep", "names a column twice"))
        return self

    @model_validator(mode="after")
    def _one_place_to_cut(self) -> Self:
        template = self.prompt_template or QUESTION
        if self.max_prompt_tokens and template.count(QUESTION) != 1:
            why = f"`prompt_template` must hold {QUESTION} once, to be cut there"
            raise invalid(Problem("max_prompt_tokens", why))
        return self


def read_part(rows: Rows, plan: Plan, form: Format, part: str) -> Iterator[Row]:
    """Rows of one part as the format reads them: id, question, answer, solution, turns, source_row.

    With prepare.keep, `raw` is the source's own row besides. `source_row` is the row's number in
    its part, from 0. Raises Refused with the row's place for one that cannot be read.
    """
    counts_integers = (plan.verifier or form.verifier) != NONE
    for index, (place, raw) in enumerate(_of_bounded_cells(rows, plan, form)):
        _require_columns(raw, plan, form, place)
        row = raw | {ours: column(raw, theirs) for ours, theirs in plan.columns.items()}
        name = as_text(row.get("id", f"{part}-{index}"))
        answer = row.get("answer")
        # pandas writes integers beside an empty cell so, and CSV knows no numbers.
        if counts_integers and isinstance(answer, str) and WHOLE.fullmatch(answer.strip()):
            row["answer"] = answer.partition(".")[0]
        try:
            example = dataclasses.asdict(form.read(row))
            # JSON can spell lone surrogates, Parquet cannot hold them.
            " ".join(map(str, (name, *example.values()))).encode()
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(
                place,
                expected=f"a row in format {form.name}",
                found=str(error),
                remedy=getattr(error, "remedy", "Mend the row, or choose another prepare.format."),
            ) from error
        if example["turns"] and style(plan, form) == "text":
            raise Refused(
                place,
                expected="a question that is one text, for prompt_style: text",
                found="chat turns",
                remedy="Set prepare.prompt_style: chat, for a base with a chat template.",
            )
        example["id"] = None if name is None else str(name)
        example["source_row"] = index
        if plan.keep:
            example["raw"] = raw
        yield example


def _of_bounded_cells(rows: Rows, plan: Plan, form: Format) -> Rows:
    """The rows. Raises Refused, which names those whose cells are too long."""
    read = {*form.columns, "id", "answer", "solution", "metadata", *plan.keep}
    for name in plan.columns.values():  # the cell around what lies inside one, too
        read |= {name, name.partition(".")[0]}
    long = []
    for place, row in rows:
        for name in read & row.keys():
            length = characters(row[name])
            if length > plan.max_cell_characters:
                long.append(f"{place}: {name} of {length:,}")
        if not long:
            yield place, row
        if len(long) >= NAMED:
            break
    if long:
        raise Refused(
            "prepare.max_cell_characters",
            expected=f"at most {plan.max_cell_characters:,} characters in a cell",
            found=some(long, NAMED),
            remedy="Shorten or remove them, or raise it.",
        )


def column(row: Row, name: str) -> Any:
    """A row's column, or what lies inside one (`reward_model.ground_truth`).

    Raises KeyError if there is none.
    """
    if name in row:
        return row[name]
    outer, _, inner = name.partition(".")
    if inner and isinstance(row.get(outer), dict):
        return column(row[outer], inner)
    raise KeyError(name)


def _require_columns(row: Row, plan: Plan, form: Format, place: str) -> None:
    """Refuse a row without a column that the format reads or that prepare.columns names."""
    missing = []
    for name in sorted({*plan.columns.values(), *(set(form.columns) - set(plan.columns))}):
        try:
            column(row, name)
        except KeyError:
            missing.append(name)
    if missing:
        turns = [name for name, value in row.items() if isinstance(value, list)]
        example = turns[0] if turns and "question" in missing else "your_name"
        raise Refused(
            place,
            expected=f"columns {', '.join(form.columns)} (format {form.name})",
            found=f"no {', '.join(missing)} among {some(list(map(str, row)), 20)}",
            remedy=f"Name your columns in prepare.columns, as {{question: {example}}}.",
        )


def prompted(row: Row, plan: Plan, form: Format) -> Row:
    """The row with its prompt: text, or chat messages.

    A conversation keeps its turns, and a system prompt of its own; the template is around the last.
    """
    question = row["question"]
    messages = json.loads(row["turns"]) if row["turns"] else [{"role": "user", "content": question}]
    # Not `format`: braces in a template or a question are text.
    text = prompt_template(plan, form).replace(QUESTION, messages[-1]["content"])
    if style(plan, form) == "text":
        return row | {"prompt": text}
    messages[-1]["content"] = text
    if plan.system_prompt and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": plan.system_prompt})
    return row | {"prompt": messages}


def prompt_template(plan: Plan, form: Format) -> str:
    """The text around the question: {question} alone is replaced, and nothing in it is run."""
    return plan.prompt_template or form.prompt_template


def style(plan: Plan, form: Format) -> PromptStyle:
    """Text or chat. Raises Refused for a system prompt that plain text has no place for."""
    chosen = plan.prompt_style or form.prompt_style
    if plan.system_prompt and chosen == "text":
        raise Refused(
            "prepare.system_prompt",
            expected="no system prompt beside prompt_style: text",
            found=repr(plan.system_prompt),
            remedy="Set prepare.prompt_style: chat, or write it into prepare.prompt_template.",
        )
    return chosen
