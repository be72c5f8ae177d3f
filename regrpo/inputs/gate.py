"""The validation gate.

What must hold before anything trains, as a Great Expectations suite run on every split.

`derive` computes columns (prompt tokens, what repeats where, the verifier's scores, …) of some rows
at a time, `suite` declares expectations on them, and Great Expectations does the checking, batch by
batch: what the verdict says of a row does not depend on the rows that lie in its batch. In the
derived columns null means "nothing wrong" or "already told by another check": its column
expectations skip nulls, so that one fault is reported once.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from regrpo.core.errors import CannotCheck
from regrpo.core.verifiers import Verifier
from regrpo.inputs import scratch_db
from regrpo.inputs.duplicates import CHAINS, SPELLINGS, Repeats, spellings

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SHOWN = 20
"""Offending rows of a check that messages and the report show."""
LONGEST_VALUE = 300
"""Characters of an offending value that are kept."""
KEPT = 1000
"""Offending rows of a check in a split that failures.parquet holds; all are counted."""
Row = dict[str, Any]
Prompt = str | list[dict[str, str]]


@dataclass(frozen=True)
class Check:
    """What a check makes sure of, and what to do where it fails."""

    name: str
    holds: str
    remedy: str


_REPEATS = "Remove the repeats from the source, or set prepare.drop_duplicates: true to keep the first of each."
_LEAKS = "Remove them from one split's source, or set prepare.drop_duplicates: true to drop them from training."
_SELF_TEST = "Change the question or prompt template, or choose another prepare.verifier."

CHECKS = {
    check.name: check
    for check in (
        Check(
            "schema",
            "columns and types are the ones that the stages read",
            "Make data/prepared again: `dvc repro`.",
        ),
        Check(
            "row_count", "the split has enough rows", "Bring more data, or lower validate.min_rows."
        ),
        Check(
            "id_present",
            "every row has an id",
            "Give every row an id, or none: prepare then numbers them.",
        ),
        Check(
            "id_unique",
            "no id occurs twice in a split",
            "Give every row its own id, or remove the id column.",
        ),
        Check(
            "id_disjoint",
            "no id occurs in two splits",
            "Give every row its own id, or remove the id column.",
        ),
        Check("not_empty", "no question or prompt is empty", "Fill in or remove the rows."),
        Check(
            "prompt_length",
            "every prompt fits: at least one token, at most the limit, as the base model's tokenizer counts",
            "Remove or shorten the rows, raise validate.max_prompt_tokens, or take a base model with a longer window.",
        ),
        Check("question_unique", "no question occurs twice in a split", _REPEATS),
        Check(
            "question_unique_normalised",
            "nor twice with other case, white space or Unicode forms",
            _REPEATS,
        ),
        Check(
            "class_unique",
            "dev and eval hold one question per canonical class: they are independent",
            _REPEATS,
        ),
        Check("disjoint", "no question occurs in two splits", _LEAKS),
        Check(
            "disjoint_normalised",
            "nor in two with other case, white space or Unicode forms",
            _LEAKS,
        ),
        Check(
            "disjoint_canonical", "nor in two as variants: questions of one canonical form", _LEAKS
        ),
        Check(
            "valid_unicode",
            "text is Unicode scalars without U+FFFD, which stands where a decoder failed",
            "Read the source again in its own encoding and save it as UTF-8.",
        ),
        Check(
            "nfc",
            "text is in Unicode's form NFC",
            "Save the source with unicodedata.normalize('NFC', text).",
        ),
        Check(
            "no_control_characters",
            "text holds no control characters but newline and tab",
            "Remove them (\\r\\n becomes \\n).",
        ),
        Check(
            "answer_parses",
            "the verifier can read every gold answer",
            "Correct the answers, or the prepare.verifier.",
        ),
        Check("gold_scores_1", "self-test: the gold answer scores 1", _SELF_TEST),
        Check(
            "solution_scores_1",
            "self-test: the worked solution scores 1",
            "Correct the solution: it must end in the gold answer in the verifier's form, and state no other.",
        ),
        Check("wrong_scores_0", "self-test: a wrong answer scores 0", _SELF_TEST),
        Check("empty_scores_0", "self-test: an empty completion scores 0", _SELF_TEST),
        Check(
            "echo_scores_0", "self-test: an echo of the question or the prompt scores 0", _SELF_TEST
        ),
        Check(
            "contradiction_scores_0",
            "self-test: two answers that contradict each other score 0",
            _SELF_TEST,
        ),
    )
}
VERIFIED = ("answer_parses", *(name for name in CHECKS if "_scores_" in name))
"""The checks that need a verifier."""
DERIVED = (
    *("row", "id", "source_row", "question", "answer"),
    *("prompt_tokens", "empty", "invalid", "control", "not_nfc", "unparsed", *VERIFIED[1:]),
    "given_id",
    *(f"{name}_{where}" for name in SPELLINGS for where in ("again", "elsewhere")),
)
"""The columns of a derived frame; the first line's identify a row."""


@dataclass(frozen=True)
class Limits:
    """`prompt_tokens`: the most of a prompt. `rows`: the fewest of a split (sft may be empty.

    Prepare.sft: 0).
    """

    prompt_tokens: int
    rows: int


@dataclass(frozen=True)
class Outcome:
    """One check on one split: of `rows` rows `failed` did.

    `failures` holds the first `KEPT` of these: id, source_row, value, question, answer.
    """

    check: str
    split: str
    expectation: str
    rows: int
    failed: int
    failures: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        return not self.failed


@dataclass(frozen=True)
class Verdict:
    rows: dict[str, int]
    outcomes: tuple[Outcome, ...]
    not_applicable: tuple[str, ...] = ()

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if not outcome.passed]

    def as_json(self) -> dict[str, Any]:
        """verdict.json: pass or fail and the counts of every check."""
        return {
            "passed": not self.failed,
            "failed_checks": len(self.failed),
            "rows": self.rows,
            "checks": [
                {
                    name: getattr(one, name)
                    for name in ("check", "split", "expectation", "rows", "failed", "passed")
                }
                for one in self.outcomes
            ],
            "not_applicable": list(self.not_applicable),
        }

    def failure_table(self) -> pd.DataFrame:
        """failures.parquet.

        Check, split, id, value (all text), in the order of checks, splits and rows.
        """
        import pandas as pd

        columns = ("check", "split", "id", "value")
        rows = [
            {"check": o.check, "split": o.split, **failure}
            for o in self.outcomes
            for failure in o.failures
        ]
        return pd.DataFrame(
            [{c: row[c] for c in columns} for row in rows], columns=columns, dtype="str"
        )

    def message(self) -> str:
        """Each failed check with split, count, the first offending rows and the remedy."""
        lines = []
        for one in self.failed:
            told = "; ".join(
                f"{shown(f['id'], 60)} ({place(f)}{shown(f['value'], 60)})"
                for f in one.failures[:SHOWN]
            )
            more = f"; and {one.failed - SHOWN} more" if one.failed > SHOWN else ""
            lines.append(f"  {one.check} in {one.split}, {one.failed} failed: {told}{more}")
            lines.append(f"    {CHECKS[one.check].remedy}")
        return "\n".join(lines).removesuffix(".")


def place(failure: Row) -> str:
    return "" if failure["source_row"] is None else f"source row {failure['source_row']}: "


def shown(text: str, longest: int = LONGEST_VALUE) -> str:
    """Text of a dataset made safe for a terminal and short: what cannot be printed is escaped."""
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return cut if cut.isprintable() else repr(cut)[1:-1]


class Split(Protocol):
    """A split's rows as a pyarrow.Table gives them, which need not be in memory."""

    @property
    def schema(self) -> pa.Schema: ...
    @property
    def num_rows(self) -> int: ...
    def select(self, columns: list[str]) -> Split: ...
    def to_batches(self, max_chunksize: int) -> Iterable[pa.RecordBatch]: ...


def check(
    tables: Mapping[str, Split],
    canonical: Callable[[str], str],
    verifier: Verifier | None,
    count_tokens: Callable[[Sequence[Prompt]], Sequence[int]],
    limits: Limits,
    docs: Path | None = None,
    batch_rows: int = scratch_db.BATCH,
    progress: Callable[[str, int], None] = lambda split, rows: None,
) -> Verdict:
    """Run every check on every split; `docs` is a folder for Great Expectations' own pages.

    `progress` is told how many rows of a split have been checked. Where the schema does not hold,
    the other checks could not read the rows and are not run. Raises CannotCheck where an
    expectation could not be evaluated.
    """
    suites, tally = Suites(docs), Tally()
    for split, table in tables.items():
        tally.add(suites.run(f"{split} schema", split, *_schema(table.schema)))
    if all(one.passed for one in tally.outcomes.values()):
        with scratch_db.database() as database:
            repeats = Repeats(database, canonical)
            looked_at = {split: table.select(list(CHAINS)) for split, table in tables.items()}
            for split, start, rows in _numbered(looked_at, batch_rows):
                repeats.add(split, start, rows)
            repeats.settle()
            suite_of = {split: suite(split, limits.prompt_tokens, verifier) for split in tables}
            for split, start, rows in _numbered(tables, batch_rows):
                told = repeats.of(split, start, start + len(rows))
                frame = derive(start, rows, told, canonical, verifier, count_tokens)
                tally.add(suites.run(split, split, frame, suite_of[split]))
                progress(split, start + len(rows))
        for split, table in tables.items():
            fewest = 0 if split == "sft" and not table.num_rows else limits.rows
            tally.add(
                suites.run(f"{split} rows", split, *_row_count(split, table.num_rows, fewest))
            )
    suites.write_pages()
    rows_in = {split: table.num_rows for split, table in tables.items()}
    return Verdict(rows_in, tally.in_order(list(tables)), () if verifier else VERIFIED)


class Tally:
    """The batches' outcomes as one for each check and split."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, str], Outcome] = {}

    def add(self, outcomes: Iterable[Outcome]) -> None:
        for one in outcomes:
            if known := self.outcomes.get((one.check, one.split)):
                one = dataclasses.replace(
                    known,
                    rows=known.rows + one.rows,
                    failed=known.failed + one.failed,
                    failures=(known.failures + one.failures)[:KEPT],
                )
            self.outcomes[one.check, one.split] = one

    def in_order(self, splits: Sequence[str]) -> tuple[Outcome, ...]:
        """In the order of checks, then splits."""
        keys = [(name, split) for name in CHECKS for split in splits]
        return tuple(self.outcomes[key] for key in keys if key in self.outcomes)


def _numbered(tables: Mapping[str, Split], batch_rows: int) -> Iterator[tuple[str, int, list[Row]]]:
    """Split, number of the first row, and rows of each batch.

    An empty split is one batch without rows.
    """
    for split, table in tables.items():
        start = 0
        for batch in table.to_batches(max_chunksize=batch_rows):
            yield split, start, batch.to_pylist()
            start += batch.num_rows
        if not start:
            yield split, 0, []


def suite(split: str, longest_prompt: int, verifier: Verifier | None) -> dict[str, Any]:
    """The expectations on a derived frame, by the name of the check."""
    import great_expectations.expectations as gxe

    def nothing_in(column: str) -> Any:
        return gxe.ExpectColumnValuesToBeNull(column=column)

    def score(column: str) -> Any:
        return gxe.ExpectColumnValuesToBeInSet(column=column, value_set=[float(column[-1])])

    expectations = {
        "id_present": gxe.ExpectColumnValuesToNotBeNull(column="given_id"),
        "id_unique": nothing_in("given_id_again"),
        "id_disjoint": nothing_in("given_id_elsewhere"),
        "not_empty": nothing_in("empty"),
        "prompt_length": gxe.ExpectColumnValuesToBeBetween(
            column="prompt_tokens", min_value=1, max_value=longest_prompt
        ),
        "question_unique": nothing_in("exact_again"),
        "question_unique_normalised": nothing_in("normalised_again"),
        "disjoint": nothing_in("exact_elsewhere"),
        "disjoint_normalised": nothing_in("normalised_elsewhere"),
        "disjoint_canonical": nothing_in("canonical_elsewhere"),
        "valid_unicode": nothing_in("invalid"),
        "nfc": nothing_in("not_nfc"),
        "no_control_characters": nothing_in("control"),
    }
    if split in ("dev", "eval"):
        expectations["class_unique"] = nothing_in("canonical_again")
    if verifier:
        expectations["answer_parses"] = nothing_in("unparsed")
        expectations |= {name: score(name) for name in VERIFIED[1:]}
    return expectations


def derive(
    start: int,
    rows: list[Row],
    repeats: Mapping[int, Row],
    canonical: Callable[[str], str],
    verifier: Verifier | None,
    count_tokens: Callable[[Sequence[Prompt]], Sequence[int]],
) -> pd.DataFrame:
    """The columns that `suite` looks at, those that identify a row, and `row`, its position in the split.

    `repeats`: of each row that repeats anything, what `Repeats.of` says.
    """
    import pandas as pd

    tokens = iter(
        count_tokens([row["prompt"] for row in rows if row["prompt"]])
    )  # an absent one is told by not_empty
    for index, row in enumerate(rows, start):
        row |= {"row": index, "prompt_tokens": next(tokens) if row["prompt"] else None}
        row["given_id"] = row["id"] if row["id"] and row["id"].strip() else None
        row |= _repeated(row, repeats.get(index, {}), canonical)
        row |= _text_faults(row) | (_self_test(row, verifier) if verifier else {})
    # A null would make floats of all, and 70 tokens "70.0" in what is told of them.
    return pd.DataFrame(rows, columns=DERIVED).astype({"prompt_tokens": "Int64"})


def _repeated(row: Row, repeats: Row, canonical: Callable[[str], str]) -> Row:
    """`<spelling>_again`, the text that the split holds twice, and `<spelling>_elsewhere`, who else has it."""
    spelled = spellings(canonical)
    texts = {
        f"{name}_again": spelled[name](row[column]) if repeats.get(f"{name}_again") else None
        for column, chain in CHAINS.items()
        for name in chain
    }
    return {name: repeats.get(name) for name in DERIVED if name.endswith("_elsewhere")} | texts


def prompt_text(prompt: Prompt | None) -> str:
    """A prompt's text; of chat messages the contents, a line each."""
    return (
        prompt
        if isinstance(prompt, str)
        else "\n".join(message["content"] or "" for message in prompt or [])
    )


_NONCHARACTERS = "".join(
    chr(plane * 0x10000 + last) for plane in range(17) for last in (0xFFFE, 0xFFFF)
)
_INVALID = re.compile(f"[\ufdd0-\ufdef\ufffd{_NONCHARACTERS}]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def _text_faults(row: Row) -> Row:
    texts = {name: row[name] or "" for name in ("id", "question", "answer", "solution")}
    texts["prompt"] = prompt_text(row["prompt"])
    faults = {
        "empty": [name for name in ("question", "prompt") if not texts[name].strip()],
        "invalid": _characters(_INVALID, texts),
        "control": _characters(_CONTROL, texts),
        "not_nfc": [
            name for name, text in texts.items() if not unicodedata.is_normalized("NFC", text)
        ],
    }
    return {fault: "; ".join(told) or None for fault, told in faults.items()}


def _characters(pattern: re.Pattern[str], texts: Mapping[str, str]) -> list[str]:
    found = {name: sorted(set(pattern.findall(text))) for name, text in texts.items()}
    return [
        f"{name} holds {', '.join(f'U+{ord(c):04X}' for c in chars)}"
        for name, chars in found.items()
        if chars
    ]


def _self_test(row: Row, verifier: Verifier) -> Row:
    """The verifier's scores of completions whose score is known.

    None where it cannot read the gold answer.
    """
    gold, solution = row["answer"], row["solution"]
    if not verifier.can_parse(gold):
        return {"unparsed": "null" if gold is None else repr(gold)}
    right, wrong = verifier.render(gold), verifier.render(verifier.wrong(gold))
    echoes = (row["question"] or "", prompt_text(row["prompt"]))
    return {
        "unparsed": None,
        "gold_scores_1": verifier.score(right, gold),
        "solution_scores_1": None if solution is None else verifier.score(solution, gold),
        "wrong_scores_0": verifier.score(wrong, gold),
        "empty_scores_0": verifier.score("", gold),
        "echo_scores_0": max(verifier.score(echo, gold) for echo in echoes),
        "contradiction_scores_0": max(
            verifier.score(f"{a}\n{b}", gold) for a, b in ((right, wrong), (wrong, right))
        ),
    }


def _schema(given: pa.Schema) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The columns and types that are expected and found, a row per column, and the expectation that they are equal."""
    import great_expectations.expectations as gxe
    import pandas as pd
    import pyarrow as pa

    text = dict.fromkeys(("id", "prompt", "question", "answer", "solution"), pa.string())
    expected = text | {"source_row": pa.int64()}
    found = dict(zip(given.names, given.types, strict=True))
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    if found.get("prompt") == messages:
        expected["prompt"] = found["prompt"]
    names = [*expected, *(name for name in found if name not in expected)]
    frame = pd.DataFrame(
        {
            "row": range(len(names)),
            "id": names,
            "expected": [str(expected.get(name, "no such column")) for name in names],
            "found": [str(found.get(name, "no such column")) for name in names],
        }
    )
    return frame, {
        "schema": gxe.ExpectColumnPairValuesToBeEqual(column_A="expected", column_B="found")
    }


def _row_count(split: str, rows: int, fewest: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    import great_expectations.expectations as gxe
    import pandas as pd

    enough = gxe.ExpectColumnPairValuesAToBeGreaterThanB(
        column_A="rows", column_B="fewest", or_equal=True
    )
    return pd.DataFrame([{"row": 0, "id": split, "rows": rows, "fewest": fewest}]), {
        "row_count": enough
    }


class Suites:
    """Great Expectations' suites, run on frames.

    Its own pages show each's first frame and the first that fails.
    """

    def __init__(self, docs: Path | None) -> None:
        self.docs, self.context = docs, _context(docs)
        self._known: dict[str, Any] = {}
        self._failed: set[str] = set()

    def run(
        self, name: str, split: str, frame: pd.DataFrame, expectations: Mapping[str, Any]
    ) -> Iterator[Outcome]:
        """Evaluate named expectations on a frame, as one suite.

        Raises CannotCheck for one that cannot be.
        """
        for result in self._results(name, frame, expectations):
            config, found = result.expectation_config, result.result
            if "unexpected_index_list" not in found:
                raise CannotCheck(
                    f"{config.meta['check']} in {split}",
                    expected=f"Great Expectations to evaluate {config.type}",
                    found=str(result.exception_info)[:500],
                    remedy="Please report this: the gate refuses what it cannot check.",
                )
            unexpected = found["unexpected_index_list"] or []
            first = int(frame["row"].iloc[0]) if unexpected else 0
            failures = [
                _failure(frame.iloc[one["row"] - first].to_dict(), one) for one in unexpected[:KEPT]
            ]
            yield Outcome(
                config.meta["check"],
                split,
                config.type,
                len(frame),
                len(unexpected),
                tuple(failures),
            )

    def _results(self, name: str, frame: pd.DataFrame, expectations: Mapping[str, Any]) -> Any:
        import great_expectations as gx

        how = {
            "result_format": "COMPLETE",
            "unexpected_index_column_names": ["row"],
            "include_unexpected_rows": False,
        }
        if name not in self._known:
            for check_name, expectation in expectations.items():
                expectation.meta = {"check": check_name}
                expectation.description = CHECKS[check_name].holds
            suite = self.context.suites.add(
                gx.ExpectationSuite(name=name, expectations=list(expectations.values()))
            )
            asset = self.context.data_sources.get("prepared").add_dataframe_asset(name)
            data = asset.add_batch_definition_whole_dataframe("all")
            shown = self.context.validation_definitions.add(
                gx.ValidationDefinition(name=name, data=data, suite=suite)
            )
            self._known[name] = shown
            found = shown.run(batch_parameters={"dataframe": frame}, result_format=how)
        else:
            shown = self._known[name]
            found = shown.data.get_batch({"dataframe": frame}).validate(
                shown.suite, result_format=how
            )
            if not found.success and name not in self._failed:
                shown.run(batch_parameters={"dataframe": frame}, result_format=how)
        if not found.success:
            self._failed.add(name)
        return found.results

    def write_pages(self) -> None:
        """Great Expectations' own pages, where they were asked for."""
        if self.docs is not None:
            self.context.build_data_docs()
            shutil.rmtree(
                self.docs / "static" / "images", ignore_errors=True
            )  # 3 MB of stock pictures for every run


def _context(docs: Path | None) -> Any:
    """An in-memory Great Expectations context that is silent and sends nothing.

    Its pages go to `docs`.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    logging.getLogger("great_expectations").setLevel(logging.CRITICAL)  # failures are told by us
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    for site in context.get_site_names():
        context.delete_data_docs_site(site)
    if docs is not None:
        store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs)}
        index = {"class_name": "DefaultSiteIndexBuilder"}
        site = {"class_name": "SiteBuilder", "store_backend": store, "site_index_builder": index}
        context.add_data_docs_site("gate", site)
    context.data_sources.add_pandas("prepared")
    return context


def _failure(row: Row, found: Row) -> Row:
    """What is kept of an offending row.

    Its id, where it comes from, the value found, the question and the answer.
    """
    import pandas as pd

    values: dict[str, str] = {
        column: "null" if pd.isna(value) else str(value)
        for column, value in found.items()
        if column != "row"
    }
    told = ", ".join(f"{column} {text}" for column, text in values.items())
    known = {
        column: row[column]
        for column in ("id", "source_row", "question", "answer")
        if pd.notna(row.get(column))
    }
    return {
        "id": str(known.get("id", "null")),
        "source_row": int(known["source_row"]) if "source_row" in known else None,
        "value": (told if len(values) > 1 else next(iter(values.values())))[:LONGEST_VALUE],
        "question": str(known.get("question", ""))[:LONGEST_VALUE],
        "answer": str(known.get("answer", ""))[:LONGEST_VALUE],
    }
