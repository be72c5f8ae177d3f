"""validate: the gate - nothing trains on data that it refuses.

Runs a Great Expectations suite, the verifier's self-test included, on every split, and calls each
of grpo's rewards once. Reads data/prepared/, models/base/ (its tokenizer), its source.json and
custom/; writes verdict.json, failures.parquet and report.html under reports/validate/. Run it by
hand: python -m stages.validate
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from regrpo.core import conversation, files, profiles, verifiers
from regrpo.core.answers.protocol import Verifier
from regrpo.core.errors import Refused
from regrpo.core.rendering import RenderingProcess
from regrpo.core.settings import Section
from regrpo.core.text import one_line
from regrpo.core.tokenizers import require_window
from regrpo.inputs import gate
from regrpo.inputs.checks import CHECKS
from regrpo.inputs.formats import SPLITS, get_format
from regrpo.inputs.round_trip import RoundTrip
from regrpo.records import stage_run
from regrpo.train import custom_code, rewards
from regrpo.train.groups import Grouped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREPARED = Path("data/prepared")
BASE = Path("models/base")
SOURCE = Path("reports/base_model/source.json")
OUR_TASKS = Path(__file__).parent / "eval_tasks"
TEMPLATE = Path(__file__).parent / "templates" / "gate_report.html.j2"


class Params(Section):
    max_prompt_tokens: int = Field(gt=0)
    min_rows: int = Field(gt=0)
    # true: texts may come back from the tokenizer otherwise, as long as answers keep their score.
    allow_lossy_tokenizer: bool = False


def require_trainable(
    grpo: Mapping[str, Any],
    dataset: Mapping[str, Any],
    train: files.ParquetFile,
    verifier: Verifier | None,
    tokenizer: PreTrainedTokenizerBase,
) -> list[str]:
    """Refuse what would fail only once grpo trains: too few prompts, a faulty reward.

    Returns what is to be said of the rewards. grpo's section is no parameter of this stage: nothing
    that is written depends on it, and grpo looks again.
    """
    Grouped.of_section(grpo).require_prompts(train.num_rows)
    _, first = next(train.batches(2))
    rows = conversation.Cutter(dataset, BASE, tokenizer=tokenizer).rows(first)
    functions = {}
    for name in grpo["reward_funcs"]:
        if name not in (grpo.get("classifiers") or {}):
            functions[name] = rewards.get_reward(name, verifier, grpo["max_completion_length"])
    encode = partial(tokenizer.encode, add_special_tokens=False)
    notes = custom_code.try_out(functions, verifier, rows, encode)
    return [f"grpo.reward_funcs: {note}" for note in notes]


def require_room(
    profile: Mapping[str, Any], verdict: gate.Verdict, source: Mapping[str, Any]
) -> Iterator[str]:
    """Refuse completions of grpo or evaluate that go beyond the base's window.

    Yields what is to be said of answers that do not fit. Both stages look at the window again.
    """
    grpo, evaluate, longest = profile["grpo"], profile["evaluate"], dict(verdict.longest)
    if grpo["dev_every"]:
        longest["train"] = max(longest["train"], longest["dev"])
    asked = [("train", "grpo.max_completion_length", grpo["max_completion_length"])]
    if any((OUR_TASKS / f"{task}.yaml").exists() for task in evaluate["tasks"]):
        asked.append(("eval", "evaluate.max_gen_toks", evaluate["max_gen_toks"]))
    for split, key, length in asked:
        require_window(source, longest[split] + length, key)
        answers = verdict.answers[split]
        beyond = sum(rows for tokens, rows in answers.items() if tokens > length)
        found = f"{beyond} of {answers.total()} right answers of {split} need more than {length}"
        if beyond:
            yield f"{key}: {found} tokens, and can never be given (the longest: {max(answers)})"


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


def remarks(verdict: gate.Verdict) -> Iterator[str]:
    """What holds, or is accepted, and is to be known all the same."""
    for outcome in verdict.accepted:
        yield f"accepted, as validate.allow_lossy_tokenizer: {gate.with_rows(outcome)}"
    if verdict.unformatted:
        shown = ", ".join(verdict.unformatted[: gate.SHOWN])
        yield (
            f"{len(verdict.unformatted)} solutions score 1 but are not in the asked format "
            f"(answer_format gives them 0): {one_line(shown, 300)}"
        )


def main() -> None:
    from transformers.utils import logging

    with stage_run.stage("validate", Params) as run:
        dataset, source = files.read_json(PREPARED / "dataset.json"), files.read_json(SOURCE)
        splits = {split: files.ParquetFile(PREPARED / f"{split}.parquet") for split in SPLITS}
        longest = min(run.params.max_prompt_tokens, source["window"] or math.inf)
        allowed = ("text_survives",) if run.params.allow_lossy_tokenizer else ()
        limits = gate.Limits(int(longest), run.params.min_rows, allowed)
        verifier, style = verifiers.of_dataset(dataset), dataset["prompt_style"]
        # It would warn of every prompt that is longer than the model's window.
        logging.set_verbosity_error()
        tokenizer = conversation.load_tokenizer(BASE)
        stops = frozenset(conversation.stop_tokens(source, style))
        print(f"validate: {sum(file.num_rows for file in splits.values())} rows ...", flush=True)
        with (
            tempfile.TemporaryDirectory() as docs,
            RenderingProcess(tokenizer, str(BASE)) as renderer,
        ):
            cut = conversation.Cutter(dataset, BASE, tokenizer=tokenizer, renderer=renderer)
            verdict = gate.check(
                splits,
                get_format(dataset["format"]).canonical,
                verifier,
                RoundTrip(tokenizer, style, verifier, renderer, cut, stops),
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
            most = ""
            if any(outcome.check == "prompt_length" for outcome in verdict.failed):
                most = f"; a prompt may have {limits.prompt_tokens} tokens"
            raise Refused(
                str(PREPARED),
                expected="every check to pass",
                found=f"{len(verdict.failed)} of {checks} failed:\n{verdict.message()}",
                remedy=f"\nCorrect the source (its rows count from 0{most}) and run again."
                f" More: {report}.",
            )
        profile = profiles.read_profile(profiles.active_profile())
        notes = [*remarks(verdict), *require_room(profile, verdict, source)]
        notes += require_trainable(profile["grpo"], dataset, splits["train"], verifier, tokenizer)
        for note in notes:
            print(f"validate: {note}", flush=True)
        skipped = shortened = ""
        if verdict.not_applicable:
            skipped = f" ({len(verdict.not_applicable)} not applicable: no verifier)"
        if cut.cut:
            shortened = f"; {cut.cut} prompts are cut to {cut.limit} tokens"
        print(f"validate: all {checks} checks hold{skipped}{shortened} -> {report}")


if __name__ == "__main__":
    main()
