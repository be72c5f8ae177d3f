"""A pipeline's reports and records as the stages before the model card write them."""

import copy
import functools
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import pytest

from regrpo.core import files
from regrpo.core.profiles import parse_section, read_yaml
from regrpo.report import card_facts
from stages.model_card import Params, render
from tests.support.projects import ROOT

PROFILE = read_yaml(ROOT / "params.yaml")


BEGIN, END = "<!-- varies from run to run: begin -->", "<!-- varies from run to run: end -->"


COMMIT = "1f0c9d8e7b6a5f4e3d2c1b0a9f8e7d6c5b4a3f2e"


HOSTILE = (
    "```\n---\n<script>alert(1)</script> {{ 7*7 }} {% raw %} | a | b |\n"
    f"# head `x` ![i](http://x/y.png)\n{BEGIN}\n\u202e\x1b[31m"
)


REPORTS = """
data/prepared/dataset.json: {source: reasoning-gym task chain_sum, revision: reasoning-gym 0.1.25,
  license: Apache-2.0, format: chain_sum, verifier: exact_int, prompt_style: text,
  splits: {sft: {rows: 1838, classes: 598}, train: {rows: 947, classes: 322},
           dev: {rows: 100, classes: 97}, eval: {rows: 300, classes: 299}}}
reports/base_model/source.json: {kind: scratch, source: made from scratch, revision: seed 0,
  license: Apache-2.0, parameters: 294144, architecture: Gemma3ForCausalLM, window: 256,
  vocabulary: 106, chat_template: true, files: {}}
reports/validate/verdict.json: {passed: true, rows: {}, failed_checks: 0, checks: [
  {check: unique_ids, split: sft, rows: 1838, failed: 0, passed: true},
  {check: unique_ids, split: eval, rows: 300, failed: 0, passed: true},
  {check: gold_scores_1, split: eval, rows: 300, failed: 0, passed: true}]}
reports/sft/metrics.json: {steps: 1200, rows: 76800, loss: 0.21734, mean_token_accuracy: 0.91862}
reports/select/metrics.json: {questions: 947, kept: 947, always_right: null, always_wrong: null,
  inside: null, mean_pass_rate: null}
reports/grpo/metrics.json: {steps: 80, reward_first: 0.39261, reward_last: 0.94378,
  dev_accuracy_first: 0.37, dev_accuracy_last: 0.951, completion_length_last: 10.834,
  prompts_seen: 1281}
reports/grpo/health.json: {verdict: warnings, fired: 1, rules: [
  {rule: grad_norm, what: norm above 10, verdict: fired, steps: [3, 4, 5, 9], worst: 12.817,
   change: learning_rate (lower)},
  {rule: no_reward, what: reward 0, verdict: clear, steps: [], worst: null, change: temperature},
  {rule: kl, what: KL above 2, verdict: not_applicable, steps: [], worst: null, change: beta}]}
"""
"""What the stages before the card write, by path, with numbers that stand out."""
TOKENS = {"sft": 1124897, "grpo": 301160}


GAIN = {"total": 0.540429, "elicited": 0.5093, "learned": 0.0311}


GAIN_CI = {
    "total_ci95": [0.4812, 0.6037],
    "elicited_ci95": [0.4471, 0.5713],
    "learned_ci95": [-0.0053, 0.0672],
}


PACKAGES = {"trl": "1.16.0", "transformers": "5.23.0", "torch": "2.13.0+cpu", "datasets": "5.2.0"}
PACKAGES |= {"tokenizers": "0.23.3", "lm-eval": "0.4.13", "peft": "0.21.2", "accelerate": "1.15.0"}


INPUTS = {
    "prepare": ["data/raw"],
    "base_model": ["models/raw"],
    "validate": ["data/prepared", "models/base"],
    "sft": ["data/prepared/sft.parquet", "models/base"],
    "select": ["data/prepared/train.parquet", "models/sft"],
    "grpo": ["data/selected", "models/sft", "reports/validate/verdict.json"],
    "evaluate": ["data/prepared/eval.parquet", "models/base", "models/sft", "models/grpo"],
}


OUTPUTS = {
    "prepare": ["data/prepared"],
    "base_model": ["models/base", "reports/base_model/source.json"],
    "validate": ["reports/validate/verdict.json"],
    "sft": ["models/sft", "reports/sft/metrics.json"],
    "select": ["data/selected", "reports/select/metrics.json"],
    "grpo": ["models/grpo", "reports/grpo/metrics.json"],
    "evaluate": ["reports/evaluate/metrics.json", "reports/evaluate/samples.parquet"],
}


def write(path: str, value: Any) -> None:
    files.write_json(Path(path), value)


def task(role: str, base: float, sft: float, grpo: float, kind: str = "binary") -> dict[str, Any]:
    """One task of reports/evaluate/metrics.json, its uncertain numbers made from the values."""
    binary = kind == "binary"
    models = {"base": base, "sft": sft, "grpo": grpo}
    results = {
        name: {
            "value": value,
            "stderr": 0.0217,
            "ci95": [round(value - 0.0411, 6), round(value + 0.0393, 6)],
        }
        for name, value in models.items()
    }
    pairs = {}
    for k, (low, high) in enumerate((("base", "sft"), ("sft", "grpo"), ("base", "grpo"))):
        difference = round(models[high] - models[low], 6)
        pairs[f"{low}_{high}"] = {
            "difference": difference,
            "ci95": [round(difference - 0.0517 - k / 1000, 6), round(difference + 0.0489, 6)],
            "p_mcnemar": 0.0123 * (k + 1) if binary else None,
            "gained": 171 + k if binary else None,
            "lost": 14 + k if binary else None,
            "minimum_detectable_effect": 0.0687 + k / 1000,
        }
    about = {
        "metric": "exact_answer",
        "kind": kind,
        "n": 300,
        "role": role,
        "description": role,
        "version": 1,
    }
    return about | {"models": results, "pairs": pairs}


def pipeline() -> None:
    """Write what the stages before the card leave behind into the current folder."""
    from ruamel.yaml import YAML

    for path, value in YAML(typ="safe").load(REPORTS).items():
        write(path, value)
    rows = [
        {"id": f"train-{i}", "prompt": f"{i}+1-2=", "question": f"{i}+1-2=", "answer": str(i - 1)}
        for i in (6, 7)
    ]
    for name in ("sft", "train", "dev", "eval"):
        files.write_parquet(Path(f"data/prepared/{name}.parquet"), pd.DataFrame(rows))
    files.write_parquet(Path("data/selected/train.parquet"), pd.DataFrame(rows))
    for name in ("base", "sft", "grpo"):
        files.write_text(Path(f"models/{name}/model.safetensors"), f"weights of {name}")
    for stage, tokens in TOKENS.items():
        history = f"step,loss,num_tokens\n1,0.5,300.0\n2,0.25,{tokens}.0\n"
        files.write_text(Path(f"reports/{stage}/history.csv"), history)
    tasks = {
        "heldout": task("headline", 0.023457, 0.385714, 0.926143),
        "heldout_sampled": task("sampled", 0.011714, 0.397286, 0.906571),
        "heldout_format": task("format", 0.0, 0.992857, 0.998143),
        "bits": task("custom", 2.71828, 1.61803, 0.57721, kind="continuous"),
    }
    evaluation = {
        "headline": "heldout",
        "verifier": "exact_int",
        "tasks": tasks,
        "gain": GAIN | GAIN_CI,
    }
    write("reports/evaluate/metrics.json", evaluation)
    answers = {
        "base": "8=",
        "sft": "<answer>4</answer>",
        "grpo": "<think>7</think><answer>5</answer>",
    }
    samples("train-6", answers)
    for picture in card_facts.PICTURES:
        files.write_text(picture, "picture")
    records()


def samples(row: str, completions: dict[str, str]) -> None:
    lines = [
        {"task": "heldout", "model": m, "id": row, "completion": text}
        for m, text in completions.items()
    ]
    files.write_parquet(Path("reports/evaluate/samples.parquet"), pd.DataFrame(lines))


def fingerprint(path: str) -> dict[str, Any]:
    root = Path(path)
    if root.is_file():
        return {"path": path, "sha256": files.sha256(root), "size": 1}
    content = {
        f.relative_to(root).as_posix(): files.sha256(f)
        for f in sorted(root.rglob("*"))
        if f.is_file()
    }
    return {
        "path": path,
        "sha256": files.sha256_json(content),
        "size": len(content),
        "files": content,
    }


def records(*, number: int = 0, **changes: dict[str, Any]) -> None:
    """(Re)write each stage's run.json for the files that lie there.

    `number` makes another run, `changes` other settings.
    """
    for order, stage in enumerate(card_facts.RECORDED):
        section = copy.deepcopy(PROFILE[stage]) | changes.get(stage, {})
        environment = {
            "cpu": f"AMD EPYC {number}",
            "cuda": [],
            "python": "3.11.7",
            "system": "Linux x86_64",
        }
        record = {
            "schema_version": 1,
            "stage": stage,
            "run": f"run-{number}",
            "parameters": {"params.yaml": {stage: section}},
            "inputs": [fingerprint(path) for path in INPUTS[stage]],
            "outputs": [fingerprint(path) for path in OUTPUTS[stage]],
            "code": {
                "revision": None if number else COMMIT,
                "dirty": bool(number),
                "diff_sha256": None,
            },
            "environment": environment | {"sha256": "e" * 64, "packages": PACKAGES},
            "started": f"2026-11-2{number}T12:51:3{order}.249+00:00",
            "ended": f"2026-11-2{number}T12:52:3{order}.878+00:00",
            "seconds": 17.314 + order + number / 7,
            "peak_memory_mb": 1873 + order + 11 * number,
            "mlflow_run_id": None if number else "0a1b2c",
        }
        write(f"reports/{stage}/run.json", [record])


COMPILE_ONCE = functools.cache(jinja2.Environment.compile)


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Those reports in the current folder; the card's template is compiled once for all tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jinja2.Environment, "compile", COMPILE_ONCE)
    pipeline()
    return tmp_path


def the_card(**params: Any) -> str:
    return render(
        parse_section(Params, PROFILE["model_card"] | params, "model_card"), card_facts.read_facts()
    )


def edit(path: str, **changes: Any) -> None:
    """Change keys of a JSON file, and let the records follow."""
    write(path, files.read_json(Path(path)) | changes)
    records()


def outside(text: str) -> str:
    """The card without its marked block, which must be there exactly once."""
    lines = text.splitlines()
    assert (lines.count(BEGIN), lines.count(END)) == (1, 1)
    return "\n".join(lines[: lines.index(BEGIN)] + lines[lines.index(END) :])
