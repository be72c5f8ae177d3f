"""prepare: questions, prompts and answers from a source at a pinned revision, split by canonical class.

Reads data/raw/ (source kind `local`), a hub dataset or a reasoning-gym task; writes data/prepared/ (one Parquet file per
split, dataset.json) and reports/prepare/metrics.json.  Run it by hand: python -m stages.prepare
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from regrpo import files, records
from regrpo.errors import Refused
from regrpo.formats import Format, PromptStyle, get_format
from regrpo.params import Section
from regrpo.sources import RAW_DATA, Row, file_under, hub_rows, local_rows, reasoning_gym_rows

OUT = Path("data/prepared")
SPLITS = ("sft", "train", "dev", "eval")


class ReasoningGym(Section):
    kind: Literal["reasoning_gym"]
    task: str
    size: int = Field(gt=0)
    config: dict[str, Any] = {}
    license: str

    def parts(self, seed: int) -> dict[str, Iterator[Row]]:
        return {"train": reasoning_gym_rows(self.task, seed, self.size, self.config)}

    def describe(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {"source": f"reasoning-gym task {self.task}", "revision": f"reasoning-gym {version('reasoning-gym')}"}


class Local(Section):
    kind: Literal["local"]
    train: str
    eval: str | None = None
    license: str

    def parts(self, seed: int) -> dict[str, Iterator[Row]]:
        names = {"train": self.train} | ({"eval": self.eval} if self.eval else {})
        return {part: local_rows(file_under(RAW_DATA, name, f"prepare.source.{part}")) for part, name in names.items()}

    def describe(self) -> dict[str, Any]:
        digests = {name: files.sha256(RAW_DATA / name) for name in (self.train, self.eval) if name}
        return {"source": f"files under {RAW_DATA}/", "revision": files.sha256_json(digests), "files": digests}


class Hub(Section):
    kind: Literal["hub"]
    repo: str
    config: str | None = None
    revision: str
    train_split: str = "train"
    eval_split: str | None = None
    license: str

    def parts(self, seed: int) -> dict[str, Iterator[Row]]:
        names = {"train": self.train_split} | ({"eval": self.eval_split} if self.eval_split else {})
        return {part: hub_rows(self.repo, self.config, self.revision, name) for part, name in names.items()}

    def describe(self) -> dict[str, Any]:
        return {"source": f"hub dataset {self.repo}", "repo": self.repo, "config": self.config, "revision": self.revision}


class Params(Section):
    seed: int
    format: str
    source: Annotated[ReasoningGym | Local | Hub, Field(discriminator="kind")]
    columns: dict[str, str] = {}
    prompt_style: PromptStyle | None = None
    prompt_template: str | None = None
    system_prompt: str | None = None
    drop_duplicates: bool = False
    eval: int | None = Field(default=None, gt=0)
    dev: int = Field(gt=0)
    sft: float = Field(ge=0, lt=1)


def read_part(rows: Iterator[Row], params: Params, form: Format, part: str) -> list[Row]:
    """Rows of one part as the format reads them. Raises Refused with the row for a missing column or an unreadable row."""
    style = params.prompt_style or form.prompt_style
    template = params.prompt_template or form.prompt_template
    prepared, seen = [], set()
    for index, raw in enumerate(rows):
        row = raw | {ours: raw[theirs] for ours, theirs in params.columns.items() if theirs in raw}
        if missing := [column for column in form.columns if column not in row]:
            raise Refused(
                f"prepare.source ({part}), row {index}",
                expected=f"columns {', '.join(form.columns)} (format {form.name})",
                found=f"no {', '.join(missing)} among {', '.join(map(str, raw))}",
                remedy="Name your columns in prepare.columns, as {question: your_name}.",
            )
        try:
            example = form.read(row)
        except (ValueError, KeyError, TypeError) as error:
            raise Refused(
                f"prepare.source ({part}), row {index}",
                expected=f"a row in format {form.name}",
                found=str(error),
                remedy="Mend the row, or choose another prepare.format.",
            ) from error
        if params.drop_duplicates and example.question in seen:
            continue
        seen.add(example.question)
        text = template.replace("{question}", example.question)
        system = [{"role": "system", "content": params.system_prompt}] if params.system_prompt else []
        prepared.append(
            {
                "id": str(row.get("id", f"{part}-{index}")),
                "prompt": [*system, {"role": "user", "content": text}] if style == "chat" else text,
                "question": example.question,
                "answer": example.answer,
                "solution": example.solution,
                "source_row": index,
            }
        )
    if not prepared:
        raise Refused(
            f"prepare.source ({part})", expected="at least one row", found="none", remedy="Bring the data in again."
        )
    return prepared


def by_class(rows: list[Row], form: Format) -> dict[str, list[Row]]:
    """Rows by their canonical form; two rows of one class must never lie in two splits."""
    classes: dict[str, list[Row]] = {}
    for row in rows:
        classes.setdefault(form.canonical(row["question"]), []).append(row)
    return classes


def split(parts: dict[str, list[Row]], params: Params, form: Format) -> dict[str, list[Row]]:
    """eval and dev hold one question per class; sft and train share out the remaining classes whole."""
    draw = random.Random(params.seed)
    classes = by_class(parts["train"], form)
    if "eval" in parts:
        held_out = list(by_class(parts["eval"], form).values())
        evaluation = [rows[0] for rows in held_out] if params.drop_duplicates else parts["eval"]
        evaluation = evaluation[: params.eval]
        if params.drop_duplicates:
            for name in by_class(parts["eval"], form):
                classes.pop(name, None)
    names = sorted(classes)
    draw.shuffle(names)
    wanted = params.dev + (0 if "eval" in parts else params.eval or 0)
    if "eval" not in parts and params.eval is None:
        raise Refused("prepare.eval", expected="a number of questions (the source has no evaluation part)", found="null", remedy="Set prepare.eval.")
    if len(names) < wanted + 2:
        raise Refused(
            "prepare",
            expected=f"more than {wanted + 1} classes of questions (eval + dev + training)",
            found=f"{len(names)} in {len(parts['train'])} rows",
            remedy="Lower prepare.eval or prepare.dev, or bring more data.",
        )
    if "eval" not in parts:
        evaluation = [classes[name][0] for name in names[: params.eval]]
        names = names[params.eval :]
    dev, names = [classes[name][0] for name in names[: params.dev]], names[params.dev :]
    cut = round(params.sft * len(names))
    sft = [row for name in names[:cut] for row in classes[name]]
    train = [row for name in names[cut:] for row in classes[name]]
    for rows in (sft, train):
        draw.shuffle(rows)
    return {"sft": sft, "train": train, "dev": dev, "eval": evaluation}


def write(splits: dict[str, list[Row]], params: Params, form: Format) -> dict[str, Any]:
    """Write the Parquet files and dataset.json; returns the counts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    style = params.prompt_style or form.prompt_style
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    prompt = pa.list_(message) if style == "chat" else pa.string()
    schema = pa.schema(
        [("id", pa.string()), ("prompt", prompt), ("question", pa.string()), ("answer", pa.string())]
        + [("solution", pa.string()), ("source_row", pa.int64())]
    )
    counts: dict[str, Any] = {}
    with files.replacing(OUT) as folder:
        folder.mkdir()
        for name in SPLITS:
            pq.write_table(pa.Table.from_pylist(splits[name], schema=schema), folder / f"{name}.parquet")
            counts[name] = {"rows": len(splits[name]), "classes": len(by_class(splits[name], form))}
        description = params.source.describe() | {
            "license": params.source.license,
            "format": form.name,
            "verifier": form.verifier,
            "prompt_style": style,
            "splits": {name: {**counts[name], "sha256": files.sha256(folder / f"{name}.parquet")} for name in SPLITS},
        }
        files.write_json(folder / "dataset.json", description)
    return counts


def main() -> None:
    with records.stage("prepare", Params) as run:
        form = get_format(run.params.format)
        sources = run.params.source.parts(run.params.seed)
        parts = {part: read_part(rows, run.params, form, part) for part, rows in sources.items()}
        counts = write(split(parts, run.params, form), run.params, form)
        files.write_json(run.reports / "metrics.json", counts)
        print("prepare: " + ", ".join(f"{name} {count['rows']}" for name, count in counts.items()) + " rows")


if __name__ == "__main__":
    main()
