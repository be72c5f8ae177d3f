"""prepare.

Questions, prompts and answers from a source at a pinned revision, split by canonical class.

Reads data/raw/ (source kind `local`), a hub dataset or a reasoning-gym task; writes data/prepared/
(one Parquet file per split, dataset.json) and reports/prepare/metrics.json.  Run it by hand: python
-m stages.prepare
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from regrpo.core import files
from regrpo.core.verifiers import get_verifier
from regrpo.inputs import scratch_db
from regrpo.inputs.examples import Plan, prompt_template, prompted, read_part, style
from regrpo.inputs.formats import SPLITS, Format, get_format
from regrpo.inputs.sources import Hub, Local, ReasoningGym
from regrpo.inputs.splits import Splits, batches
from regrpo.records import stage_run

OUT = Path("data/prepared")


class Params(Plan):
    source: Annotated[ReasoningGym | Local | Hub, Field(discriminator="kind")]


def write(splits: Splits, params: Params, form: Format) -> dict[str, dict[str, int]]:
    """Write the Parquet files and dataset.json; returns each split's counts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    prompt = pa.list_(message) if style(params, form) == "chat" else pa.string()
    text = dict.fromkeys(("id", "prompt", "question", "answer", "solution"), pa.string())
    schema = pa.schema(text | {"prompt": prompt, "source_row": pa.int64()})
    counts = {name: splits.count(name) for name in SPLITS}
    with files.replacing(OUT) as folder:
        folder.mkdir()
        for name in SPLITS:
            with pq.ParquetWriter(folder / f"{name}.parquet", schema) as file:
                for rows in batches(prompted(row, params, form) for row in splits.rows(name)):
                    file.write_table(pa.Table.from_pylist(rows, schema=schema))
        description = params.source.describe() | {
            "license": params.source.license,
            "format": form.name,
            "classes": f"questions that differ only in {form.classes}",
            "verifier": params.verifier or form.verifier,
            "prompt_style": style(params, form),
            "prompt_template": prompt_template(params, form),
            "max_prompt_tokens": params.max_prompt_tokens,
            "splits": {
                name: {**counts[name], "sha256": files.sha256(folder / f"{name}.parquet")}
                for name in SPLITS
            },
        }
        files.write_json(folder / "dataset.json", description)
    return counts


def prepare(params: Params) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """Source to data/prepared/: the rows given of each part, and the counts of each split."""
    form = get_format(params.format)
    get_verifier(params.verifier or form.verifier)
    style(params, form)
    with scratch_db.database() as database:
        splits = Splits(database, params, form)
        for part, rows in params.source.parts(params.seed).items():
            splits.add(part, read_part(rows, params, form, part))
        splits.divide()
        return splits.given, write(splits, params, form)


def main() -> None:
    with stage_run.stage("prepare", Params) as run:
        given, counts = prepare(run.params)
        files.write_json(run.reports / "metrics.json", counts)
        used = ", ".join(f"{name} {count['rows']}" for name, count in counts.items())
        left_out = sum(given.values()) - sum(count["rows"] for count in counts.values())
        print(f"prepare: {sum(given.values())} rows -> {used} (left out: {left_out})")


if __name__ == "__main__":
    main()
