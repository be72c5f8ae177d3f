"""One piece of work on data, in a process of its own that says what it took: for data_speed.py.

    python benchmarks/data_case.py CASE [FILE...]

CASE is prepare, validate, sft, grpo, frames, great_expectations or pyarrow, which reads the files.

Run in a copy of the project. The last line is JSON: `seconds` without imports, `peak` memory in
MB (10^6 bytes), and of validate the seconds of its `parts`.
"""

from __future__ import annotations

import functools
import importlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from regrpo.core import hardware

FRAMES = Path("frames")
"""What the gate declares its expectations on, a Parquet file each split."""
REST = "all else"


class Parts:
    """Seconds of named parts. What one part calls of another counts for the other alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running = [REST]
        self._since = time.perf_counter()

    def credit(self) -> None:
        """Give the seconds since the last call to the part that runs."""
        now = time.perf_counter()
        part = self._running[-1]
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        self.credit()
        self._running.append(name)
        try:
            yield
        finally:
            self.credit()
            self._running.pop()

    def watch(self, name: str, owner: Any, function: str) -> None:
        """Count the calls of a function, or of a method, as the part `name`."""
        plain = getattr(owner, function)

        @functools.wraps(plain)
        def watched(*arguments: Any, **named: Any) -> Any:
            with self.of(name):
                return plain(*arguments, **named)

        setattr(owner, function, watched)

    def watch_rows(self, name: str, owner: Any, function: str) -> None:
        """The same for one that yields: its caller's time between two rows is not counted."""
        plain = getattr(owner, function)

        @functools.wraps(plain)
        def watched(*arguments: Any, **named: Any) -> Iterator[Any]:
            rows = plain(*arguments, **named)
            while True:
                with self.of(name):
                    row = next(rows, self)
                if row is self:
                    return
                yield row

        setattr(owner, function, watched)


# --- the works: each imports, and returns what is to be timed -------------------------------------


def prepare() -> Callable[[], object]:
    importlib.import_module("pyarrow.parquet")
    from stages import prepare

    return prepare.main


def validate(parts: Parts) -> Callable[[], object]:
    """The stage with the gate's parts watched."""
    for name in ("great_expectations.expectations", "jinja2", "pyarrow.dataset"):
        importlib.import_module(name)
    from regrpo.core import conversation, files
    from regrpo.inputs import checks, duplicates, expectations, gate, round_trip
    from stages import validate

    conversation.load_tokenizer(validate.BASE)  # imports what its class needs
    parts.watch_rows("reading the splits", files.ParquetFile, "batches")
    for name in ("add", "settle", "of"):
        parts.watch("what repeats", duplicates.Repeats, name)
    parts.watch("round trip, the base's tokenizer", conversation, "encode")
    parts.watch("round trip, the base's tokenizer", conversation, "decode")
    parts.watch("round trip, what came back", round_trip.RoundTrip, "columns")
    parts.watch("the verifier's self-test", checks, "_self_test")
    parts.watch("characters of texts", checks, "_text_faults")
    parts.watch("the frame of what is found", gate, "derive")
    parts.watch("Great Expectations", expectations.Suite, "run")
    parts.watch("Great Expectations", expectations.Suites, "add")
    parts.watch("Great Expectations' pages", expectations.Suites, "write_pages")
    parts.watch("rewards tried out", validate, "require_trainable")
    return validate.main


def trained(stage: str) -> Callable[[], object]:
    main: Callable[[], object] = importlib.import_module(f"stages.{stage}").main
    return main


def frames() -> Callable[[], object]:
    """The stage, keeping what Great Expectations is given: a frame each split."""
    import pandas as pd

    from regrpo.inputs import gate
    from stages import validate

    kept: dict[str, list[pd.DataFrame]] = {}
    run = gate.expectations.Suite.run

    def keeping(suite: Any, frame: pd.DataFrame) -> None:
        kept.setdefault(suite.definition.name, []).append(frame)
        run(suite, frame)

    def write() -> None:
        gate.expectations.Suite.run = keeping  # type: ignore[method-assign]
        validate.main()
        FRAMES.mkdir()
        for name, found in kept.items():
            if " " not in name:  # not those of schemas and of row counts
                pd.concat(found).to_parquet(FRAMES / f"{name}.parquet")

    return write


def great_expectations() -> Callable[[], object]:
    """The gate's expectations alone, on whole frames that are there already."""
    import great_expectations as gx
    import great_expectations.expectations
    import pandas as pd

    from regrpo.core import files, profiles, verifiers
    from regrpo.inputs import expectations

    dataset = files.read_json(Path("data/prepared/dataset.json"))
    most = profiles.read_profile(Path("params.yaml"))["validate"]["max_prompt_tokens"]
    verifier, style = verifiers.of_dataset(dataset), dataset["prompt_style"]
    read = {path.stem: pd.read_parquet(path) for path in sorted(FRAMES.glob("*.parquet"))}

    def check() -> None:
        context = gx.get_context(mode="ephemeral")
        source = context.data_sources.add_pandas("frames")
        for split, frame in read.items():
            rules = expectations.on_rows(split, most, verifier, style)
            suite = gx.ExpectationSuite(name=split, expectations=list(rules.values()))
            whole = source.add_dataframe_asset(split).add_batch_definition_whole_dataframe("all")
            found = whole.get_batch({"dataframe": frame}).validate(suite)
            if not found.success:
                raise RuntimeError(f"{split}: Great Expectations finds what the gate does not")

    return check


def pyarrow(paths: list[str]) -> Callable[[], object]:
    import pyarrow.dataset  # which read_table imports, and pandas with it
    import pyarrow.json
    import pyarrow.parquet

    def read() -> None:
        for path in paths:
            if path.endswith(".parquet"):
                pyarrow.parquet.read_table(path)
            else:
                pyarrow.json.read_json(path)

    return read


def main() -> None:
    case, *paths = sys.argv[1:]
    parts = Parts()
    works: dict[str, Callable[[], Callable[[], object]]] = {
        "prepare": prepare,
        "validate": lambda: validate(parts),
        "sft": lambda: trained("sft"),
        "grpo": lambda: trained("grpo"),
        "frames": frames,
        "great_expectations": great_expectations,
        "pyarrow": lambda: pyarrow(paths),
    }
    work = works[case]()
    parts.credit()
    parts.seconds.clear()
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    parts.credit()
    print(
        json.dumps({"seconds": seconds, "peak": hardware.peak_memory_mb(), "parts": parts.seconds})
    )


if __name__ == "__main__":
    main()
