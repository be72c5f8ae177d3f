"""validate: the gate - nothing trains on data that it refuses.

Runs a Great Expectations suite, the verifier's self-test included, on every split, and calls each
of grpo's rewards once. Reads data/prepared/, models/base/ (its tokenizer and window) and custom/;
writes verdict.json, failures.parquet and report.html under reports/validate/. Run it by hand:
python -m stages.validate
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field

from regrpo.core import conversation, files, profiles
from regrpo.core.errors import Refused
from regrpo.core.rendering import RenderingProcess
from regrpo.core.settings import Section
from regrpo.core.text import one_line
from regrpo.core.tokenizers import context_window
from regrpo.core.verifiers import Verifier, get_verifier
from regrpo.inputs import gate
from regrpo.inputs.checks import CHECKS
from regrpo.inputs.formats import SPLITS, get_format
from regrpo.inputs.round_trip import RoundTrip
from regrpo.records import stage_run
from regrpo.train import custom_code, rewards
from regrpo.train.groups import Grouped

PREPARED = Path("data/prepared")
BASE = Path("models/base")
TEMPLATE = Path(__file__).parent / "templates" / "gate_report.html.j2"


class Params(Section):
    max_prompt_tokens: int = Field(gt=0)
    min_rows: int = Field(gt=0)
    # true: texts may come back from the tokenizer otherwise, as long as answers keep their score.
    allow_lossy_tokenizer: bool = False


def window(model: Path) -> int | None:
    """The most tokens that the model can look at, or None if its configuration does not say."""
    from transformers import AutoConfig

    return context_window(AutoConfig.from_pretrained(model))


def round_trip(
    model: Path,
    dataset: Mapping[str, Any],
    verifier: Verifier | None,
    renderer: RenderingProcess,
    cutter: conversation.Cutter,
) -> RoundTrip:
    """What the base's template, tokenizer and stop tokens do to the rows of this dataset."""
    style = dataset["prompt_style"]
    stops = frozenset(conversation.stop_tokens(model, style))
    return RoundTrip(renderer.tokenizer, style, verifier, renderer, cutter, stops)


def require_trainable(
    grpo: Mapping[str, Any],
    dataset: Mapping[str, Any],
    train: files.ParquetFile,
    verifier: Verifier | None,
) -> list[str]:
    """Refuse what would fail only once grpo trains: too few prompts, a faulty reward.

    Returns what is to be said of the rewards. grpo's section is no parameter of this stage: nothing
    that is written depends on it, and grpo looks again.
    """
    Grouped.of_section(grpo).require_prompts(train.num_rows)
    _, first = next(train.batches(2))
    rows = conversation.Cutter(dataset, BASE).rows(first)
    encode = partial(conversation.load_tokenizer(BASE).encode, add_special_tokens=False)
    functions = {}
    for name in grpo["reward_funcs"]:
        if name not in (grpo.get("classifiers") or {}):
            functions[name] = rewards.get_reward(name, verifier, grpo["max_completion_length"])
    return custom_code.try_out(functions, verifier, rows, encode)


def page(
    verdict: gate.Verdict, dataset: Mapping[str, Any], limits: gate.Limits, cut: int = 0
) -> str:
    """The report: one HTML file that needs nothing else; every value from the data is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["one_line"] = one_line
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        verdict=verdict,
        outcomes={(outcome.check, outcome.split): outcome for outcome in verdict.outcomes},
        dataset=dataset,
        limits=limits,
        cut=cut,
        checks=CHECKS,
        first=gate.SHOWN,
    )


def main() -> None:
    from transformers.utils import logging

    with stage_run.stage("validate", Params) as run:
        dataset = files.read_json(PREPARED / "dataset.json")
        splits = {split: files.ParquetFile(PREPARED / f"{split}.parquet") for split in SPLITS}
        longest = min(run.params.max_prompt_tokens, window(BASE) or run.params.max_prompt_tokens)
        allowed = ("text_survives",) if run.params.allow_lossy_tokenizer else ()
        limits = gate.Limits(longest, run.params.min_rows, allowed)
        verifier = get_verifier(dataset["verifier"])
        # It would warn of every prompt that is longer than the model's window.
        logging.set_verbosity_error()
        tokenizer = conversation.load_tokenizer(BASE)
        print(f"validate: {sum(file.num_rows for file in splits.values())} rows ...", flush=True)
        with (
            tempfile.TemporaryDirectory() as docs,
            RenderingProcess(tokenizer, str(BASE)) as renderer,
        ):
            cut = conversation.Cutter(dataset, BASE, renderer=renderer)
            verdict = gate.check(
                splits,
                get_format(dataset["format"]).canonical,
                verifier,
                round_trip(BASE, dataset, verifier, renderer, cut),
                limits,
                Path(docs),
                dataset.get("keep", ()),
            )
            run.attach(Path(docs), "data_docs")
        files.write_json(run.reports / "verdict.json", verdict.as_json() | {"cut_prompts": cut.cut})
        files.write_parquet(run.reports / "failures.parquet", verdict.failure_table())
        report = run.reports / "report.html"
        files.write_text(report, page(verdict, dataset, limits, cut.cut))
        checks = len(verdict.outcomes)
        if verdict.failed:
            raise Refused(
                str(PREPARED),
                expected="every check to pass",
                found=f"{len(verdict.failed)} of {checks} failed:\n{verdict.message()}",
                remedy="\nCorrect the source (its rows count from 0) and run again."
                f" More: {report}.",
            )
        for outcome in verdict.accepted:
            print(
                f"validate: accepted, as validate.allow_lossy_tokenizer: {gate.with_rows(outcome)}"
            )
        grpo = profiles.read_profile(profiles.active_profile())["grpo"]
        for note in require_trainable(grpo, dataset, splits["train"], verifier):
            print(f"validate: grpo.reward_funcs: {note}", flush=True)
        if verdict.unformatted:
            shown = ", ".join(verdict.unformatted[: gate.SHOWN])
            print(
                f"validate: {len(verdict.unformatted)} solutions score 1 but are not in the asked "
                f"format (answer_format gives them 0): {one_line(shown, 300)}"
            )
        skipped = shortened = ""
        if verdict.not_applicable:
            skipped = f" ({len(verdict.not_applicable)} not applicable: no verifier)"
        if cut.cut:
            shortened = f"; {cut.cut} prompts are cut to {cut.limit} tokens"
        print(f"validate: all {checks} checks hold{skipped}{shortened} -> {report}")


if __name__ == "__main__":
    main()
