"""select: the questions that teach go on to grpo.

The warm-started model answers every training question a few times, sampled as grpo will; the share
that the data's verifier finds right is the question's pass rate. The questions in a band of rates
go on, in their order; or, as the control, as many drawn without that look (`choose: random`).
`samples: 0` lets every question pass. Reads models/sft/, data/prepared/train.parquet, dataset.json
and the gate's verdict; writes data/selected/{train,pass_rates}.parquet and
reports/select/metrics.json. Run it by hand: python -m stages.select
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from regrpo.core import conversation, files, hardware, profiles, verifiers
from regrpo.core.answers.protocol import Verifier
from regrpo.inputs import selection
from regrpo.inputs.selection import Selection
from regrpo.records import stage_run
from regrpo.train import generation
from regrpo.train.generation import Sampling
from regrpo.train.groups import Grouped

SFT = Path("models/sft")
DATA = Path("data/prepared")
TRAIN = DATA / "train.parquet"
OUT = Path("data/selected")
SECONDS_BETWEEN_LINES = 5.0


class Params(Selection, Sampling):
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(gt=0)
    deterministic: bool = False
    batch_size: int = Field(default=32, gt=0)  # questions at once


def pass_through(run: stage_run.Run[Params]) -> None:
    """Every question goes on: the split is copied, byte by byte."""
    rows = files.read_json(DATA / "dataset.json")["splits"]["train"]["rows"]
    with files.replacing(OUT) as folder:
        folder.mkdir()
        shutil.copyfile(TRAIN, folder / TRAIN.name)
    shares = dict.fromkeys(("always_right", "always_wrong", "inside", "mean_pass_rate"))
    files.write_json(run.reports / "metrics.json", shares | {"questions": rows, "kept": rows})
    print(f"select: all {rows:,} questions go on to grpo (samples: 0)", flush=True)


def pass_rates(params: Params, rows: list[dict[str, Any]], verifier: Verifier) -> list[float]:
    """The share of each question's sampled answers that are right, in the order of `rows`."""
    from transformers import AutoModelForCausalLM

    device = hardware.find_device(params.device, "select.device")
    hardware.set_up(params.seed, params.threads, params.deterministic and device == "cuda")
    tokenizer = conversation.load_tokenizer(SFT)
    # As evaluate: on CUDA in the type it was saved in.
    dtype = "float32" if device == "cpu" else "auto"
    model = AutoModelForCausalLM.from_pretrained(SFT, dtype=dtype).to(device)
    settings = params.settings | {"num_return_sequences": params.samples}
    prompts = [row["prompt"] for row in rows]
    rates: list[float] = []
    shown = time.monotonic()
    for batch in generation.complete(model, tokenizer, prompts, params.batch_size, **settings):
        for start in range(0, len(batch), params.samples):
            row = rows[len(rates)]
            answers = batch[start : start + params.samples]
            right = sum(verifier.score(answer, row["answer"], row) for answer in answers)
            rates.append(right / params.samples)
        if time.monotonic() - shown > SECONDS_BETWEEN_LINES:
            shown = time.monotonic()
            mean = sum(rates) / len(rates)
            print(f"select: question {len(rates)}/{len(rows)}  right {mean:.3g}", flush=True)
    return rates


def require_enough(params: Params, rates: list[float]) -> None:
    """Refuse a band with less than a split's or a step's questions.

    validate's and grpo's sections are no parameters of this stage: nothing that is written depends
    on them, and grpo looks again at what a step needs.
    """
    profile = profiles.read_profile(profiles.active_profile())
    fewest = profile["validate"]["min_rows"]
    step = Grouped.of_section(profile["grpo"]).prompts_at_once
    why = f"validate.min_rows {fewest}; a step of grpo takes {step}"
    selection.require_enough(rates, max(fewest, step), why, params)


def select(run: stage_run.Run[Params]) -> None:
    """Sample answers to every question, and keep those that the section chooses."""
    import pandas as pd
    import pyarrow.parquet as pq

    params = run.params
    dataset = files.read_json(DATA / "dataset.json")
    verifier = verifiers.of_dataset(dataset)
    if verifier is None:
        raise selection.no_verifier()
    rows = conversation.Cutter(dataset, SFT).rows(files.read_rows(TRAIN))
    smaller = f"batch_size: {max(1, params.batch_size // 2)} (another draw)"
    with hardware.refuse_full_memory("select", [smaller, "fewer samples"]):
        rates = pass_rates(params, rows, verifier)
    require_enough(params, rates)
    chosen = selection.chosen(rows, rates, params)
    table = pd.DataFrame({"id": [row["id"] for row in rows], "pass_rate": rates})
    table["kept"] = table.index.isin(chosen)
    with files.replacing(OUT) as folder:
        folder.mkdir()
        pq.write_table(pq.read_table(TRAIN).take(chosen), folder / TRAIN.name)
        files.write_parquet(folder / "pass_rates.parquet", table)
    metrics = selection.summary(rates, len(chosen), params)
    files.write_json(run.reports / "metrics.json", metrics)
    kept, every, mean = len(chosen), len(rates), metrics["mean_pass_rate"]
    print(f"select: {kept:,} of {every:,} questions go on to grpo; mean pass rate {mean:.3g}")


def main() -> None:
    with stage_run.stage("select", Params) as run:
        if run.params.samples == 0:
            pass_through(run)
        else:
            select(run)


if __name__ == "__main__":
    main()
