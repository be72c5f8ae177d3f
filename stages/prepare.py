"""prepare: questions, prompts and answers from a source at a pinned revision, split by canonical class.

Reads data/raw/ (source kind `local`), a hub dataset or a reasoning-gym task; writes data/prepared/ (one Parquet file
per split, dataset.json) and reports/prepare/metrics.json.  Run it by hand: python -m stages.prepare
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from regrpo import files, records
from regrpo.examples import Plan, by_class, prompt_template, read_part, split, style
from regrpo.formats import Format, get_format
from regrpo.sources import Hub, Local, ReasoningGym, Row
from regrpo.verifiers import get_verifier

OUT = Path("data/prepared")
SPLITS = ("sft", "train", "dev", "eval")


class Params(Plan):
    source: Annotated[ReasoningGym | Local | Hub, Field(discriminator="kind")]


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
            "classes": f"questions that differ only in {form.classes}",
            "verifier": params.verifier or form.verifier,
            "prompt_style": style(params, form),
            "prompt_template": prompt_template(params, form),
            "max_prompt_tokens": params.max_prompt_tokens,
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
