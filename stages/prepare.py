"""prepare: questions, prompts and answers from a source at a pinned revision, split by canonical class.

Reads data/raw/ (source kind `local`), a hub dataset or a reasoning-gym task; writes data/prepared/ (one Parquet file
per split, dataset.json) and reports/prepare/metrics.json.  Run it by hand: python -m stages.prepare
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from regrpo import files, records
from regrpo.errors import Refused
from regrpo.formats import Format, PromptStyle, get_format, normalise
from regrpo.params import Section
from regrpo.sources import Hub, Local, ReasoningGym, Row, Rows
from regrpo.verifiers import get_verifier

OUT = Path("data/prepared")
SPLITS = ("sft", "train", "dev", "eval")


class Params(Section):
    seed: int
    format: str
    source: Annotated[ReasoningGym | Local | Hub, Field(discriminator="kind")]
    columns: dict[Literal["id", "question", "answer", "solution"], str] = Field(default={})
    verifier: str | None = None  # null = the format's own
    prompt_style: PromptStyle | None = None  # null = the format's own, as for prompt_template
    prompt_template: str | None = Field(default=None, pattern=r"\{question\}")
    system_prompt: str | None = None
    drop_duplicates: bool = False
    eval: int | None = Field(default=None, gt=0)
    dev: int = Field(gt=0)
    sft: float = Field(ge=0, lt=1)


def read_part(rows: Rows, params: Params, form: Format, part: str) -> list[Row]:
    """Rows of one part as the format reads them. Raises Refused with the row's place for one that it cannot read."""
    template = params.prompt_template or form.prompt_template
    chat = style(params, form) == "chat"
    system = [{"role": "system", "content": params.system_prompt}] if params.system_prompt else []
    needed = set(params.columns.values()) | (set(form.columns) - set(params.columns))
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
        row = raw | {ours: raw[theirs] for ours, theirs in params.columns.items()}
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
        if params.drop_duplicates and key in seen:
            continue
        seen.add(key)
        text = template.replace("{question}", example.question)
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


def style(params: Params, form: Format) -> PromptStyle:
    """Text or chat. Raises Refused for a system prompt that plain text has no place for."""
    chosen = params.prompt_style or form.prompt_style
    if params.system_prompt and chosen == "text":
        raise Refused(
            "prepare.system_prompt",
            expected="no system prompt beside prompt_style: text",
            found=repr(params.system_prompt),
            remedy="Set prepare.prompt_style: chat, or write it into prepare.prompt_template.",
        )
    return chosen


def by_class(rows: list[Row], form: Format) -> dict[str, list[Row]]:
    """Rows by their canonical form; two rows of one class must never lie in two splits."""
    classes: dict[str, list[Row]] = {}
    for row in rows:
        classes.setdefault(form.canonical(row["question"]), []).append(row)
    return classes


def split(parts: dict[str, list[Row]], params: Params, form: Format) -> dict[str, list[Row]]:
    """eval and dev hold one question per class; sft and train share out the remaining classes whole.

    Variants of a question that eval or dev holds are left out. Repeats and leaks of data that was brought are not
    (drop_duplicates: false): the gate names them.
    """
    draw = random.Random(params.seed)
    classes = by_class(parts["train"], form)
    evaluation: list[Row] = []
    everything = [row for rows in parts.values() for row in rows]
    ids = Counter(row["id"] for row in everything)
    questions = Counter(normalise(row["question"]) for row in everything)

    def one_each(rows: list[Row]) -> list[Row]:
        repeats = [row for row in rows[1:] if ids[row["id"]] > 1 or questions[normalise(row["question"])] > 1]
        return rows[:1] if params.drop_duplicates else rows[:1] + repeats

    if "eval" in parts:
        held_out = by_class(parts["eval"], form)
        evaluation = [rows[0] for rows in held_out.values()] if params.drop_duplicates else parts["eval"]
        if params.drop_duplicates:
            classes = {name: rows for name, rows in classes.items() if name not in held_out}
        require(len(evaluation), params.eval or 1, "prepare.eval", "questions in the source's evaluation part")
        evaluation = evaluation[: params.eval]
    elif params.eval is None:
        raise Refused(
            "prepare.eval",
            expected="a number of questions (the source has no evaluation part)",
            found="null",
            remedy="Set prepare.eval.",
        )
    names = sorted(classes)
    draw.shuffle(names)
    from_train = 0 if "eval" in parts else params.eval or 0
    require(len(names), from_train + params.dev + 2, "prepare", "classes of questions (eval, dev and training)")

    evaluation = evaluation or [row for name in names[:from_train] for row in one_each(classes[name])]
    dev = [row for name in names[from_train : from_train + params.dev] for row in one_each(classes[name])]
    names = names[from_train + params.dev :]
    cut = min(max(round(params.sft * len(names)), params.sft > 0), len(names) - 1)
    sft = [row for name in names[:cut] for row in classes[name]]
    train = [row for name in names[cut:] for row in classes[name]]
    for rows in (sft, train):
        draw.shuffle(rows)
    return {"sft": sft, "train": train, "dev": dev, "eval": evaluation}


def require(found: int, wanted: int, key: str, what: str) -> None:
    """Refuse a profile that asks for more than the source has."""
    if found < wanted:
        raise Refused(
            key,
            expected=f"at least {wanted} {what}",
            found=str(found),
            remedy="Lower prepare.eval or prepare.dev, or bring more data.",
        )


def write(splits: dict[str, list[Row]], params: Params, form: Format) -> dict[str, Any]:
    """Write the Parquet files and dataset.json; returns the counts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    prompt = pa.list_(message) if style(params, form) == "chat" else pa.string()
    text = dict.fromkeys(("id", "prompt", "question", "answer", "solution"), pa.string())
    schema = pa.schema(text | {"prompt": prompt, "source_row": pa.int64()})
    counts: dict[str, Any] = {}
    with files.replacing(OUT) as folder:
        folder.mkdir()
        for name in SPLITS:
            pq.write_table(pa.Table.from_pylist(splits[name], schema=schema), folder / f"{name}.parquet")
            counts[name] = {"rows": len(splits[name]), "classes": len(by_class(splits[name], form))}
        description = params.source.describe() | {
            "license": params.source.license,
            "format": form.name,
            "verifier": params.verifier or form.verifier,
            "prompt_style": style(params, form),
            "splits": {name: {**counts[name], "sha256": files.sha256(folder / f"{name}.parquet")} for name in SPLITS},
        }
        files.write_json(folder / "dataset.json", description)
    return counts


def main() -> None:
    with records.stage("prepare", Params) as run:
        form = get_format(run.params.format)
        get_verifier(run.params.verifier or form.verifier)
        sources = run.params.source.parts(run.params.seed)
        parts = {part: read_part(rows, run.params, form, part) for part, rows in sources.items()}
        counts = write(split(parts, run.params, form), run.params, form)
        files.write_json(run.reports / "metrics.json", counts)
        given = sum(map(len, parts.values()))
        used = ", ".join(f"{name} {count['rows']}" for name, count in counts.items())
        print(f"prepare: {given} rows -> {used} (left out: {given - sum(c['rows'] for c in counts.values())})")


if __name__ == "__main__":
    main()
