"""validate: the gate - nothing trains on data that it refuses.

Runs a Great Expectations suite, the verifier's self-test included, on every split. Reads
data/prepared/ and models/base/ (its tokenizer and window); writes verdict.json, failures.parquet
and report.html under reports/validate/. Run it by hand: python -m stages.validate
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from regrpo.core import files, prompts
from regrpo.core.errors import Refused
from regrpo.core.settings import Section
from regrpo.core.verifiers import get_verifier
from regrpo.inputs import gate, scratch_db
from regrpo.inputs.checks import CHECKS, Prompt
from regrpo.inputs.formats import SPLITS, get_format
from regrpo.records import stage_run

if TYPE_CHECKING:
    import pyarrow as pa

PREPARED = Path("data/prepared")
BASE = Path("models/base")
TEMPLATE = Path(__file__).parent / "templates" / "gate_report.html.j2"


class Params(Section):
    max_prompt_tokens: int = Field(gt=0)
    min_rows: int = Field(gt=0)


class Parquet:
    """A split's file, read some rows at a time, its text checked to be UTF-8.

    Raises Refused for a damaged one.
    """

    def __init__(self, path: Path, columns: list[str] | None = None) -> None:
        import pyarrow.parquet as pq

        self.path, self.columns = path, columns
        with files.told_if_no_parquet(path), path.open("rb") as file:
            metadata = pq.read_metadata(file)
            self.num_rows, self.schema = metadata.num_rows, metadata.schema.to_arrow_schema()

    def select(self, columns: list[str]) -> Parquet:
        return Parquet(self.path, columns)

    def to_batches(self, max_chunksize: int) -> Iterator[pa.RecordBatch]:
        import pyarrow.parquet as pq

        with files.told_if_no_parquet(self.path), self.path.open("rb") as file:
            for batch in pq.ParquetFile(file).iter_batches(max_chunksize, columns=self.columns):
                batch.validate(full=True)
                yield batch


def window(model: Path) -> int | None:
    """The most tokens that the model can look at, as its configuration says.

    None where it does not.
    """
    config = files.read_json(model / "config.json")
    found = config.get("max_position_embeddings") or config.get("text_config", {}).get(
        "max_position_embeddings"
    )
    return int(found) if found else None


def token_counter(model: Path) -> Callable[[Sequence[Prompt]], list[int]]:
    """Counts a prompt's tokens as the trainers do.

    Special tokens and, for messages, the chat template included.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(model)
    return lambda given: prompts.count_tokens(tokenizer, given, str(model))


def show_progress(split: str, checked: int, rows: int) -> None:
    """Show how far a split that takes a while is checked."""
    if rows > scratch_db.BATCH:
        print(f"validate: {split} {checked:,} of {rows:,} rows", flush=True)


def page(
    verdict: gate.Verdict, dataset: Mapping[str, Any], limits: gate.Limits, cut: int = 0
) -> str:
    """The report: one HTML file that needs nothing else; every value from the data is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["shown"] = gate.shown
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        verdict=verdict,
        outcomes={(one.check, one.split): one for one in verdict.outcomes},
        dataset=dataset,
        limits=limits,
        cut=cut,
        checks=CHECKS,
        first=gate.SHOWN,
    )


def main() -> None:
    with stage_run.stage("validate", Params) as run:
        dataset = files.read_json(PREPARED / "dataset.json")
        tables = {split: Parquet(PREPARED / f"{split}.parquet") for split in SPLITS}
        longest = min(run.params.max_prompt_tokens, window(BASE) or run.params.max_prompt_tokens)
        limits = gate.Limits(prompt_tokens=longest, rows=run.params.min_rows)
        cut, count = prompts.Cutter(dataset, BASE), token_counter(BASE)
        print(f"validate: {sum(table.num_rows for table in tables.values())} rows ...", flush=True)
        with tempfile.TemporaryDirectory() as docs:
            verdict = gate.check(
                tables,
                get_format(dataset["format"]).canonical,
                get_verifier(dataset["verifier"]),
                lambda given: count(cut(given)),
                limits,
                Path(docs),
                progress=lambda split, rows: show_progress(split, rows, tables[split].num_rows),
            )
            run.attach(Path(docs), "data_docs")
        files.write_json(run.reports / "verdict.json", verdict.as_json() | {"cut_prompts": cut.cut})
        files.write_parquet(run.reports / "failures.parquet", verdict.failure_table())
        files.write_text(run.reports / "report.html", page(verdict, dataset, limits, cut.cut))
        if verdict.failed:
            raise Refused(
                str(PREPARED),
                expected="every check to pass",
                found=f"{len(verdict.failed)} of {len(verdict.outcomes)} failed:\n{verdict.message()}",
                remedy=f"\nCorrect the source (its rows count from 0) and run again. More: {run.reports}/report.html.",
            )
        skipped = (
            f" ({len(verdict.not_applicable)} not applicable: no verifier)"
            if verdict.not_applicable
            else ""
        )
        shortened = f"; {cut.cut} prompts are cut to {cut.limit} tokens" if cut.cut else ""
        print(
            f"validate: all {len(verdict.outcomes)} checks hold{skipped}{shortened} -> {run.reports}/report.html"
        )


if __name__ == "__main__":
    main()
