"""From a source's rows to examples, and from examples to prompts."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from regrpo.core.answers.choice import OPTIONS, listed
from regrpo.core.answers.protocol import GOLDS, Verifier, column
from regrpo.core.conversation import QUESTION
from regrpo.core.errors import Refused
from regrpo.core.files import characters
from regrpo.core.settings import Problem, Section, Seed, invalid
from regrpo.core.text import some
from regrpo.core.verifiers import get_verifier
from regrpo.inputs.conversations import UnreadableRow, turns_in
from regrpo.inputs.formats import Format, PromptStyle, as_text, get_format
from regrpo.inputs.readers import Row, Rows

TAKEN = {
    *("id", "prompt", "question", "answer", "solution", "turns", "source_row", GOLDS),  # ours
    *("prompts", "completion", "completions", "completion_ids", "trainer_state"),  # TRL's words
    *("log_extra", "log_metric", "environment", "environments", "image", "images", "tools"),
    *("step", "reward"),  # samples.parquet's
}
"""Names that no further column may have."""
CHOICES = "{options}"
"""Where a prompt template shows the options of a row (verifier `choice`)."""
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
    verifier_settings: dict[str, Any] = Field(default={})
    # true: an answer may be a list, and any of it counts.
    several_answers: bool = False
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
        cuttable = template.count(QUESTION) == 1 and CHOICES not in template
        if self.max_prompt_tokens and not cuttable:
            why = f"`prompt_template` must hold {QUESTION} once and no {CHOICES}, to be cut there"
            raise invalid(Problem("max_prompt_tokens", why))
        return self


def read_part(rows: Rows, plan: Plan, form: Format, part: str) -> Iterator[Row]:
    """Rows of one part as the format reads them: id, question, answer, solution, turns, source_row.

    What a format of the user's returns takes the place of the source's columns. With prepare.keep,
    `raw` is the source's own row besides. `source_row` is the row's number in its part, from 0.
    Raises Refused with the row's place for one that cannot be read.
    """
    verifier = verifier_of(plan, form)
    counts_integers = verifier is not None and verifier.reads_integers
    for index, (place, raw) in enumerate(_of_bounded_cells(rows, plan, form)):
        _require_columns(raw, plan, form, place)
        row = raw | {ours: column(raw, theirs) for ours, theirs in plan.columns.items()}
        try:
            if form.convert:
                row = form.convert(row)
                raw = raw | row
            name = as_text(row.get("id", f"{part}-{index}"))
            answer = row.get("answer")
            # pandas writes integers beside an empty cell so, and CSV knows no numbers.
            if counts_integers and isinstance(answer, str) and WHOLE.fullmatch(answer.strip()):
                row["answer"] = answer.partition(".")[0]
            row, golds = _several(row, plan)
            example = dataclasses.asdict(form.read(row))
            added = {GOLDS: golds} if golds else {}
            if verifier:
                example["answer"], columns = verifier.bring(raw, example["answer"])
                added |= columns
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
        if plan.keep or added:
            example["raw"] = raw | added
        yield example


def verifier_of(plan: Plan, form: Format) -> Verifier | None:
    """The verifier that a profile names, or else the format's own."""
    return get_verifier(plan.verifier or form.verifier, plan.verifier_settings)


def kept_columns(plan: Plan, of_verifier: Sequence[str] | None = None) -> list[str]:
    """What a prepared row has besides the usual columns: prepare.keep, and the verifier's own.

    `of_verifier` are the latter where they are known already. Raises Refused for a name that stands
    in both, and for one of the verifier's that is taken.
    """
    if of_verifier is None:
        verifier = verifier_of(plan, get_format(plan.format))
        of_verifier = verifier.columns if verifier else ()
    if taken := sorted(TAKEN.intersection(of_verifier)):
        raise Refused(
            f"prepare.verifier: {plan.verifier}",
            expected="columns with names that prepare, TRL and samples.parquet do not use",
            found=", ".join(taken),
            remedy="Give them other names.",
        )
    own = [GOLDS] if plan.several_answers else []
    own += of_verifier
    if taken := sorted(set(own).intersection(plan.keep)):
        raise Refused(
            "prepare.keep",
            expected=f"other columns than the verifier's ({', '.join(own)})",
            found=", ".join(taken),
            remedy="Take them out: rewards are given the verifier's as well.",
        )
    return [*plan.keep, *own]


def require_plan(plan: Plan, of_verifier: Sequence[str] | None = None) -> None:
    """Raise Refused where format, verifier, columns and template do not go together.

    `of_verifier` as in `kept_columns`.
    """
    columns = kept_columns(plan, of_verifier)
    if CHOICES in (plan.prompt_template or "") and OPTIONS not in columns:
        raise Refused(
            "prepare.prompt_template",
            expected=f"no {CHOICES} but with verifier: choice",
            found=plan.prompt_template or "",
            remedy="Set prepare.verifier: choice, or write the options into the question.",
        )


def _several(row: Row, plan: Plan) -> tuple[Row, list[str]]:
    """The row with the first of its answers, and all of them; none if it may have but one.

    Raises UnreadableRow for a list where it may not be one, and for answers that are no texts.
    """
    given = row.get("answer")
    if not plan.several_answers:
        if isinstance(given, list) and turns_in(given) is None:
            why = "column answer holds list instead of text"
            raise UnreadableRow(why, "Set prepare.several_answers: true if any of it counts.")
        return row, []
    answers = given if isinstance(given, list) else [given]
    golds = [str(as_text(one)).strip() for one in answers if as_text(one) not in (None, "")]
    if not golds or any(isinstance(one, list | dict) for one in answers):
        found = f"column answer holds {str(given)[:60]!r} instead of one text or more"
        raise UnreadableRow(found, "Mend the row.")
    return row | {"answer": golds[0]}, golds


def _of_bounded_cells(rows: Rows, plan: Plan, form: Format) -> Rows:
    """The rows. Raises Refused, which names those whose cells are too long."""
    read = {*form.columns, "id", "answer", "solution", "metadata", *plan.keep}
    options = plan.verifier_settings.get(OPTIONS, OPTIONS)
    for name in (*plan.columns.values(), str(options)):  # the cell around what lies inside, too
        read |= {name, name.partition(".")[0]}
    long = []
    for place, row in rows:
        for name in row.keys() if form.convert else read & row.keys():
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
            expected=f"columns {', '.join(form.columns or missing)} (format {form.name})",
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
    before, shows_options, after = prompt_template(plan, form).partition(CHOICES)
    before, after = (part.replace(QUESTION, messages[-1]["content"]) for part in (before, after))
    text = before + (listed(row[OPTIONS]) if shows_options else "") + after
    if style(plan, form) == "text":
        return row | {"prompt": text}
    messages[-1]["content"] = text
    if plan.system_prompt and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": plan.system_prompt})
    return row | {"prompt": messages}


def prompt_template(plan: Plan, form: Format) -> str:
    """The text around the question: {question} and, of a choice, {options} are replaced.

    Nothing in it is run.
    """
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
