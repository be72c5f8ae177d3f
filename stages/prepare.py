"""prepare: questions, prompts and answers from a source at a pinned revision, split by class.

Reads data/raw/ (source kind `local`), a hub dataset or a reasoning-gym task; writes data/prepared/
(one Parquet file per split, dataset.json) and reports/prepare/metrics.json.
Run it by hand: python -m stages.prepare
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from regrpo.core import files
from regrpo.core.custom import loading
from regrpo.core.verifiers import OWN
from regrpo.inputs import scratch_db
from regrpo.inputs.examples import (
    Plan,
    kept_columns,
    prompt_template,
    prompted,
    read_part,
    require_plan,
    style,
)
from regrpo.inputs.formats import SPLITS, Format, get_format
from regrpo.inputs.sources import Hub, Local, ReasoningGym
from regrpo.inputs.splits import Splits, batches
from regrpo.records import stage_run

OUT = Path("data/prepared")


class Params(Plan):
    source: Annotated[ReasoningGym | Local | Hub, Field(discriminator="kind")]


def write_split(path: Path, splits: Splits, params: Params, form: Format) -> None:
    """Write a split's rows with their prompts, some at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = ("id", "prompt", "question", "answer", "solution")
    columns = {name: pa.string() for name in text} | {"source_row": pa.int64()}
    if style(params, form) == "chat":
        message = pa.struct([("role", pa.string()), ("content", pa.string())])
        columns["prompt"] = pa.list_(message)
    schema = pa.schema(columns)
    # Further columns, with the types that they have over all rows.
    for field in splits.kept.schema or []:
        schema = schema.append(field)
    with pq.ParquetWriter(path, schema) as file:
        for rows in batches(prompted(row, params, form) for row in splits.rows(path.stem)):
            file.write_table(pa.Table.from_pylist(rows, schema=schema))


def write(splits: Splits, params: Params, form: Format) -> dict[str, dict[str, int]]:
    """Write the Parquet files and dataset.json; returns each split's counts."""
    counts = {split: splits.count(split) for split in SPLITS}
    described: dict[str, Any] = {}
    with files.replacing(OUT) as folder:
        folder.mkdir()
        for split in SPLITS:
            path = folder / f"{split}.parquet"
            write_split(path, splits, params, form)
            described[split] = counts[split] | {"sha256": files.sha256(path)}
        dataset = params.source.describe() | {
            "license": params.source.license,
            "format": form.name,
            "classes": f"questions that differ only in {form.classes}",
            "verifier": params.verifier or form.verifier,
            "prompt_style": style(params, form),
            "prompt_template": prompt_template(params, form),
            "max_prompt_tokens": params.max_prompt_tokens,
            "splits": described,
        }
        if params.verifier_settings:
            dataset["verifier_settings"] = params.verifier_settings
        if dataset["verifier"].startswith(OWN):
            # Two of one name may judge otherwise, and `compare` pairs no answers of these.
            dataset["verifier_code"] = files.sha256(loading.ALONE[loading.VERIFIERS])
        if kept := kept_columns(params):
            dataset["keep"] = kept
        files.write_json(folder / "dataset.json", dataset)
    return counts


def prepare(params: Params) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """Source to data/prepared/: the rows given of each part, and the counts of each split."""
    form = get_format(params.format)
    # Refuse what cannot be before the source is read, which may take long.
    require_plan(params)
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
        read = sum(given.values())
        used = sum(count["rows"] for count in counts.values())
        each = ", ".join(f"{split} {count['rows']}" for split, count in counts.items())
        print(f"prepare: {read} rows -> {each} (left out: {read - used})")


if __name__ == "__main__":
    main()
