"""From a source's rows to examples, and from examples to the four splits."""

from __future__ import annotations

import random
from collections import Counter
from typing import Literal, Self

from pydantic import Field, model_validator

from regrpo.errors import Refused
from regrpo.formats import Format, PromptStyle, normalise
from regrpo.params import Section, Seed
from regrpo.prompts import QUESTION
from regrpo.sources import Row, Rows


class Plan(Section):
    """How a source's rows become examples and splits: prepare's parameters but the source."""

    seed: int = Seed
    format: str
    columns: dict[Literal["id", "question", "answer", "solution"], str] = Field(default={})
    verifier: str | None = None  # null = the format's own
    prompt_style: PromptStyle | None = None  # null = the format's own, as for prompt_template
    prompt_template: str | None = Field(default=None, pattern=r"\{question\}")
    system_prompt: str | None = None
    max_prompt_tokens: int | None = Field(default=None, gt=0)  # longer questions lose their end; null = none is cut
    drop_duplicates: bool = False
    eval: int | None = Field(default=None, gt=0)
    dev: int = Field(gt=0)
    sft: float = Field(ge=0, lt=1)
    train: int | None = Field(default=None, gt=0)  # rows for grpo at most; null = all that are left

    @model_validator(mode="after")
    def _one_place_to_cut(self) -> Self:
        template = self.prompt_template or QUESTION
        if self.max_prompt_tokens and template.count(QUESTION) != 1:
            raise ValueError(f"`max_prompt_tokens`: `prompt_template` must hold {QUESTION} once, to be cut there")
        return self


def read_part(rows: Rows, plan: Plan, form: Format, part: str) -> list[Row]:
    """Rows of one part as the format reads them. Raises Refused with the row's place for one that it cannot read."""
    template = prompt_template(plan, form)
    chat = style(plan, form) == "chat"
    system = [{"role": "system", "content": plan.system_prompt}] if plan.system_prompt else []
    needed = set(plan.columns.values()) | (set(form.columns) - set(plan.columns))
    prepared: list[Row] = []
    seen = set()
    for index, (place, raw) in enumerate(rows):
        if missing := sorted(needed - set(raw)):
            raise Refused(
                place,
                expected=f"columns {', '.join(form.columns)} (format {form.name})",
                found=f"no {', '.join(missing)} among {', '.join(map(str, raw))}",
                remedy="Name your columns in prepare.columns, as {question: your_name}.",
            )
        row = raw | {ours: raw[theirs] for ours, theirs in plan.columns.items()}
        name = row.get("id", f"{part}-{index}")
        try:
            example = form.read(row)
            # JSON can spell lone surrogates, Parquet cannot hold them.
            " ".join(map(str, (name, example.question, example.answer, example.solution))).encode()
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(
                place,
                expected=f"a row in format {form.name}",
                found=str(error),
                remedy="Mend the row, or choose another prepare.format.",
            ) from error
        key = normalise(example.question)
        if plan.drop_duplicates and key in seen:
            continue
        seen.add(key)
        text = template.replace(QUESTION, example.question)
        prepared.append(
            {
                "id": None if name is None else str(name),
                "prompt": [*system, {"role": "user", "content": text}] if chat else text,
                "question": example.question,
                "answer": example.answer,
                "solution": example.solution,
                "source_row": index,
            }
        )
    if not prepared:
        raise Refused(
            f"prepare.source.{part}", expected="at least one row", found="none", remedy="Bring the data again."
        )
    return prepared


def prompt_template(plan: Plan, form: Format) -> str:
    """The text around the question: plain text in which {question} alone is replaced, once; nothing in it is run."""
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


def by_class(rows: list[Row], form: Format) -> dict[str, list[Row]]:
    """Rows by their canonical form; two rows of one class must never lie in two splits."""
    classes: dict[str, list[Row]] = {}
    for row in rows:
        classes.setdefault(form.canonical(row["question"]), []).append(row)
    return classes


def split(parts: dict[str, list[Row]], plan: Plan, form: Format) -> dict[str, list[Row]]:
    """eval and dev hold one question per class; sft and train share out the remaining classes whole.

    Variants of a question that eval or dev holds are left out. Repeats and leaks of data that was brought are not
    (drop_duplicates: false): the gate names them.
    """
    draw = random.Random(plan.seed)
    classes = by_class(parts["train"], form)
    evaluation: list[Row] = []
    everything = [row for rows in parts.values() for row in rows]
    ids = Counter(row["id"] for row in everything)
    questions = Counter(normalise(row["question"]) for row in everything)

    def one_each(rows: list[Row]) -> list[Row]:
        repeats = [row for row in rows[1:] if ids[row["id"]] > 1 or questions[normalise(row["question"])] > 1]
        return rows[:1] if plan.drop_duplicates else rows[:1] + repeats

    if "eval" in parts:
        held_out = by_class(parts["eval"], form)
        evaluation = [rows[0] for rows in held_out.values()] if plan.drop_duplicates else parts["eval"]
        if plan.drop_duplicates:
            classes = {name: rows for name, rows in classes.items() if name not in held_out}
        require(len(evaluation), plan.eval or 1, "prepare.eval", "questions in the source's evaluation part")
        evaluation = evaluation[: plan.eval]
    elif plan.eval is None:
        raise Refused(
            "prepare.eval",
            expected="a number of questions (the source has no evaluation part)",
            found="null",
            remedy="Set prepare.eval.",
        )
    names = sorted(classes)
    draw.shuffle(names)
    from_train = 0 if "eval" in parts else plan.eval or 0
    require(len(names), from_train + plan.dev + 2, "prepare", "classes of questions (eval, dev and training)")

    evaluation = evaluation or [row for name in names[:from_train] for row in one_each(classes[name])]
    dev = [row for name in names[from_train : from_train + plan.dev] for row in one_each(classes[name])]
    names = names[from_train + plan.dev :]
    cut = min(max(round(plan.sft * len(names)), plan.sft > 0), len(names) - 1)
    sft = [row for name in names[:cut] for row in classes[name]]
    train = [row for name in names[cut:] for row in classes[name]]
    for rows in (sft, train):
        draw.shuffle(rows)
    return {"sft": sft, "train": train[: plan.train], "dev": dev, "eval": evaluation}


def require(found: int, wanted: int, key: str, what: str) -> None:
    """Refuse a profile that asks for more than the source has."""
    if found < wanted:
        raise Refused(
            key,
            expected=f"at least {wanted} {what}",
            found=str(found),
            remedy="Lower prepare.eval or prepare.dev, or bring more data.",
        )
