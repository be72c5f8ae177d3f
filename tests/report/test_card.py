"""The model card, rendered from a folder of report files as the other stages write them."""

import ast
import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from huggingface_hub import ModelCard

from regrpo.core import files
from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.library import library_defaults
from regrpo.core.profiles import parse_section, read_yaml
from regrpo.report import card, card_facts
from stages.model_card import TEMPLATE, Params, render
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
    "grpo": ["models/sft", "reports/validate/verdict.json"],
    "evaluate": ["data/prepared/eval.parquet", "models/base", "models/sft", "models/grpo"],
}
OUTPUTS = {
    "prepare": ["data/prepared"],
    "base_model": ["models/base", "reports/base_model/source.json"],
    "validate": ["reports/validate/verdict.json"],
    "sft": ["models/sft", "reports/sft/metrics.json"],
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
    """Write what the six stages before the card leave behind into the current folder."""
    from ruamel.yaml import YAML

    for path, value in YAML(typ="safe").load(REPORTS).items():
        write(path, value)
    rows = [
        {"id": f"train-{i}", "prompt": f"{i}+1-2=", "question": f"{i}+1-2=", "answer": str(i - 1)}
        for i in (6, 7)
    ]
    for name in ("sft", "train", "dev", "eval"):
        files.write_parquet(Path(f"data/prepared/{name}.parquet"), pd.DataFrame(rows))
    for name in ("base", "sft", "grpo"):
        files.write_text(Path(f"models/{name}/model.safetensors"), f"weights of {name}")
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
    """(Re)write the six run.json for the files that lie there.

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


@pytest.fixture
def reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
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


def test_the_metadata_is_valid_and_holds_every_result_of_the_model(reports: Path) -> None:
    text = the_card(license="Apache-2.0", tags=["regrpo"])
    files.write_text(Path("README.md"), text)
    data = ModelCard.load("README.md").data
    assert data.license == "apache-2.0"
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-generation"
    assert data.tags == ["generated_from_trainer", "trl", "sft", "grpo", "regrpo"]
    evaluated = {
        name: one["models"]["grpo"]["value"]
        for name, one in files.read_json(Path("reports/evaluate/metrics.json"))["tasks"].items()
    }
    assert {result.metric_name: result.metric_value for result in data.eval_results} == evaluated
    assert "licence" not in data.to_dict()
    assert text.endswith("```\n")


def test_a_base_that_is_not_on_the_hub_is_described_and_never_none(reports: Path) -> None:
    text = the_card()
    assert "base_model:" not in text
    assert "datasets:" not in text
    assert "made from scratch (seed 0; there is no published base model)" in text
    edit(
        "reports/base_model/source.json",
        kind="local",
        source="folder my model under models/raw/",
        revision="see files",
    )
    text += the_card()
    assert "`folder my model under models/raw/`" in text
    edit(
        "reports/base_model/source.json", kind="gguf", source="GGUF file a.gguf", revision="b" * 64
    )
    text += the_card()
    assert "None" not in text.replace("| `null` |", "")


def test_hub_repositories_are_linked_and_named_in_the_metadata(reports: Path) -> None:
    edit(
        "reports/base_model/source.json",
        kind="hub",
        repo="google/gemma-3-1b-pt",
        revision=COMMIT,
        source="hub model google/gemma-3-1b-pt",
    )
    edit(
        "data/prepared/dataset.json",
        repo="openai/gsm8k",
        revision=COMMIT,
        format="gsm8k",
        verifier="final_number",
    )
    text = the_card()
    data = ModelCard(text).data
    assert (data.base_model, data.datasets) == ("google/gemma-3-1b-pt", ["openai/gsm8k"])
    assert "[google/gemma-3-1b-pt](https://huggingface.co/google/gemma-3-1b-pt)" in text
    assert "[openai/gsm8k](https://huggingface.co/datasets/openai/gsm8k)" in text
    assert "@article{cobbe2021gsm8k" in text


def test_everything_that_trl_says_on_its_own_card_is_on_ours(reports: Path) -> None:
    text = the_card()
    for said in (
        "## Quick start",
        "(https://huggingface.co/papers/2402.03300)",
        "### Framework versions",
        "@article{shao2024deepseekmath",
        "@software{vonwerra2020trl",
        "TRL: 1.16.0",
        "Transformers: 5.23.0",
        "PyTorch: 2.13.0",
        "Datasets: 5.2.0",
        "Tokenizers: 0.23.3",
    ):
        assert said in text, said


# Numbers ------------------------------------------------------------------------------------------

PROSE = {"95", "0.001", "256", "2402.03300"}
"""Numbers of the template's own words: 95 % intervals, p < 0.001, SHA-256, the paper."""


def known_numbers() -> list[float]:
    """Every number in the pipeline's files.

    Values, lengths of lists, and the numbers within strings.
    """
    found: list[float] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key, one in value.items():
                walk(key)
                walk(one)
        elif isinstance(value, list):
            found.append(len(value))
            for one in value:
                walk(one)
        elif isinstance(value, str):
            found.extend(float(n) for n in re.findall(r"\d+(?:\.\d+)?", value))
        elif value is not None:
            found.append(float(value))

    for path in [*Path("reports").rglob("*.json"), Path("data/prepared/dataset.json")]:
        walk(files.read_json(path))
    for path in (Path("data/prepared/eval.parquet"), Path("reports/evaluate/samples.parquet")):
        walk(files.read_parquet(path).to_dict("records"))
    for stage in ("sft", "grpo"):
        walk(list(library_defaults(card_facts.TRAINERS[stage]).values()))
    return found


def unaccounted(text: str) -> set[str]:
    """Numbers of the card that no file holds.

    Within the rounding that they are shown with; shares also as percent.
    """
    text = re.sub(r"```bibtex\n.*?```", "", text, flags=re.DOTALL)
    text = re.sub(
        r"```(text|mermaid)\n.*?```", "", text, flags=re.DOTALL
    )  # completions and hashes, tested on their own
    text = re.sub(r"\b[0-9a-f]{10,64}\b|\b0a1b2c\b|[A-Za-z_]+\d\w*|UTF-8", " ", text)
    known = {abs(n) for n in known_numbers()}

    def accounted(token: str) -> bool:
        plain = token.replace(",", "")
        value, decimals = float(plain), len(plain.partition(".")[2]) if "e" not in plain else 12
        slack = 0.5 * 10**-decimals + 1e-9
        return any(abs(value - n) <= slack or abs(value - 100 * n) <= slack for n in known)

    tokens = set(re.findall(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)*(?:e[-+]?\d+)?", text)) - PROSE
    return {token for token in tokens if token.count(".") < 2 and not accounted(token)}


def test_every_number_of_the_card_is_in_a_file_of_the_pipeline(reports: Path) -> None:
    text = the_card()
    assert unaccounted(text) == set()
    assert unaccounted(text + "\nIt was right 4,321 times, 83.2 % of all.") == {"4,321", "83.2"}


def test_the_template_itself_holds_no_number_of_a_run() -> None:
    words = re.sub(
        r"\{%.*?%\}|\{\{.*?\}\}|```bibtex.*?```", "", TEMPLATE.read_text(), flags=re.DOTALL
    )
    numbers = set(
        re.findall(r"(?<![\w.-])\d[\d.,]*", re.sub(r"SHA-256|sha256sum|\b\d+\.\s\*\*", "", words))
    )
    assert {number.rstrip(".,") for number in numbers} <= PROSE | {"0"}, (
        "max_steps: 0 is the only other one"
    )


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(one, (*path, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


@pytest.mark.parametrize(
    "path",
    [
        "reports/evaluate/metrics.json",
        "reports/grpo/metrics.json",
        "reports/sft/metrics.json",
        "data/prepared/dataset.json",
    ],
)
def test_any_changed_number_changes_the_card(reports: Path, path: str) -> None:
    original, before = files.read_json(Path(path)), without_hashes(the_card())
    unused = ("stderr", "version")
    for leaf in leaves(original):
        if leaf[-1] in unused:
            continue
        changed = copy.deepcopy(original)
        place = changed
        for key in leaf[:-1]:
            place = place[key]
        place[leaf[-1]] = (
            place[leaf[-1]] * 2 + 0.1 if isinstance(place[leaf[-1]], float) else place[leaf[-1]] + 7
        )
        # The file's own hash on the card changes too: compare what a reader of the sentences and
        # tables sees.
        assert shown(changed, path) != before, f"{path}: {leaf} is not on the card"
    assert shown(original, path) == before


def shown(value: Any, path: str) -> str:
    write(path, value)
    records()
    return without_hashes(the_card())


def without_hashes(text: str) -> str:
    return re.sub(r"\b[0-9a-f]{12,64}\b", "", text)


# What varies --------------------------------------------------------------------------------------


def test_two_runs_differ_in_the_marked_block_only(reports: Path) -> None:
    first = the_card()
    records(number=1)
    second = the_card()
    assert first != second
    assert outside(first) == outside(second)
    assert "AMD EPYC" not in outside(first)
    assert COMMIT not in outside(first)
    assert "not tracked" in second
    assert "No git revision was recorded" in second
    assert "no CUDA device used" in second


def test_rendering_twice_gives_the_same_bytes(reports: Path) -> None:
    assert the_card() == the_card()


# Hostile text -------------------------------------------------------------------------------------


def html(text: str) -> str:
    from markdown_it import MarkdownIt

    return str(
        MarkdownIt("gfm-like", {"html": True, "linkify": False}).render(ModelCard(text).text)
    )


def test_hostile_text_of_data_and_samples_stays_text(reports: Path) -> None:
    rows = pd.DataFrame([{"id": "x", "prompt": HOSTILE, "question": HOSTILE, "answer": HOSTILE}])
    files.write_parquet(Path("data/prepared/eval.parquet"), rows)
    samples("x", dict.fromkeys(("base", "sft", "grpo"), HOSTILE))
    edit("data/prepared/dataset.json", source=HOSTILE, license=HOSTILE)
    text = the_card(purpose=HOSTILE, author=HOSTILE)
    outside(text)
    ModelCard(text)
    page = html(text)
    assert "<script" not in page
    assert 'src="http' not in page
    assert "{{ 7*7 }}" in page
    assert "<h1>head" not in page
    assert not set(text) & set("\u202e\x1b")
    assert page.count("<h1>") == 1
    assert page.count("<h2>") == html_of_plain_card_headings()
    assert quick_start_prompt(text) == HOSTILE


def html_of_plain_card_headings() -> int:
    return len(re.findall(r"^## ", TEMPLATE.read_text(), flags=re.MULTILINE))


def quick_start_prompt(text: str) -> Any:
    tree = ast.parse(snippet(text))
    return next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "prompt"
    )  # type: ignore[attr-defined]


# Not available ------------------------------------------------------------------------------------


def test_what_was_not_measured_is_said_to_be_not_available(reports: Path) -> None:
    edit("data/prepared/dataset.json", verifier="none")
    edit("reports/grpo/metrics.json", dev_accuracy_first=None, dev_accuracy_last=None)
    edit("reports/sft/metrics.json", steps=0, rows=0, loss=None, mean_token_accuracy=None)
    only = {"perplexity": task("stock", 9.1, 8.2, 7.3, kind="continuous")}
    edit("reports/evaluate/metrics.json", headline=None, tasks=only, gain=None)
    text = the_card()
    assert "No headline task was evaluated" in text
    assert "accuracy on dev not measured" in text
    assert "**SFT** was skipped" in text
    assert "The data has no verifier" in text
    assert "cannot be told apart" in text
    assert "LoRA was not used" in text
    assert "None" not in text
    assert ModelCard(text).data.tags[:3] == ["generated_from_trainer", "trl", "grpo"]


def test_a_lora_run_names_adapter_and_real_base(reports: Path) -> None:
    lora = {"lora": {"r": 8, "lora_alpha": 16}}
    records(sft=lora, grpo=lora)
    text = the_card()
    start = "for the model that the stage started from"
    assert (
        "merged into the weights here; "
        f"the adapter itself is `models/grpo/adapter`, {start} (`models/sft`)" in text
    )
    assert f"`models/sft/adapter`, {start} (weights made from scratch" in text
    assert "LoRA was not used" not in text


def test_stock_gsm8k_says_that_its_few_shot_examples_were_trained_on(reports: Path) -> None:
    metrics = files.read_json(Path("reports/evaluate/metrics.json"))
    stock = {
        name: task("stock", 0.1, 0.2, 0.3)
        | {"few_shot": {"examples": 5, "dataset": dataset, "split": split}}
        for name, dataset, split in (
            ("gsm8k", "openai/gsm8k", "train"),
            ("platinum", "madrylab/gsm8k-platinum", "test"),
        )
    }
    edit("reports/evaluate/metrics.json", tasks=metrics["tasks"] | stock)
    assert "few-shot" not in the_card()
    edit("data/prepared/dataset.json", format="gsm8k", verifier="final_number")
    text = the_card()
    assert (
        "`gsm8k` draws its 5 few-shot examples from split `train` of `openai/gsm8k`, "
        "which is also the data" in text
    )
    assert "`platinum` draws" not in text
    stock["gsm8k"]["few_shot"] = None
    edit("reports/evaluate/metrics.json", tasks=metrics["tasks"] | stock)
    assert "few-shot" not in the_card()


def test_the_gain_is_told_by_what_is_distinguishable(reports: Path) -> None:
    text = the_card()
    assert "Opening `<think>` for the model that GRPO started from" in text
    assert "moves it by +50.9 points [+44.7, +57.1], distinguishable from zero" in text
    assert "The remaining +3.1 points [-0.5, +6.7] is not distinguishable from zero" in text


def test_what_users_brought_in_is_in_the_lineage(reports: Path) -> None:
    files.write_text(Path("data/raw/README.md"), "put your data here")
    records()
    assert "brought in" not in the_card()
    files.write_text(Path("data/raw/mine.jsonl"), "{}")
    records()
    text = the_card()
    assert f"| `data/raw` | `{fingerprint('data/raw')['sha256'][:12]}` | brought in |" in text
    assert "bring back what lay in `data/raw` first" in text


def test_what_the_doctor_found_is_shown_with_steps_and_remedy(reports: Path) -> None:
    text = the_card()
    assert "**GRPO doctor: warnings.**" in text
    assert "| `grad_norm` | norm above 10 | 3–5, 9 | 12.817 | learning\\_rate (lower) |" in text
    assert "Not applicable (TRL logged no such metric): `kl`." in text


# Settings -----------------------------------------------------------------------------------------


def test_the_card_says_what_of_the_deterministic_mode_was_on(reports: Path) -> None:
    assert "Deterministic mode (for CUDA) was not asked for." in the_card()
    records(grpo={"deterministic": True})
    assert "Deterministic mode — grpo: nothing to turn on, it ran without CUDA." in the_card()
    edit("reports/grpo/metrics.json", deterministic=["torch.use_deterministic_algorithms=True"])
    assert "grpo: `torch.use_deterministic_algorithms=True`." in the_card()


def test_settings_at_the_default_are_set_apart(reports: Path) -> None:
    different, same = card.settings(card_facts.read_facts(), "grpo")
    rows = {key: (value, default) for key, value, default in different}
    assert rows["`learning_rate`"] == ("`0.0003`", "`1e-06`")
    assert rows["`threads`"] == (f"`{PROFILE['grpo']['threads']}`", "—")
    assert "`beta` `0.0`" in same
    assert not any(key == "`beta`" for key in rows)


# Records that do not fit together -----------------------------------------------------------------


def test_an_evaluation_of_another_model_is_refused(reports: Path) -> None:
    [record] = files.read_json(Path("reports/evaluate/run.json"))
    record["inputs"][-1]["files"]["model.safetensors"] = "0" * 64
    write("reports/evaluate/run.json", [record])
    file = "models/grpo/model.safetensors"
    with pytest.raises(Refused, match=rf"{file}, as evaluate read it: .* as grpo wrote it"):
        card_facts.read_facts()


def test_weights_that_are_not_those_of_the_record_are_refused(reports: Path) -> None:
    files.write_text(Path("models/grpo/model.safetensors"), "other weights")
    with pytest.raises(Refused, match=r"models/grpo/model.safetensors, as model_card read it"):
        card_facts.read_facts()


def test_a_missing_report_is_named(reports: Path) -> None:
    Path("reports/grpo/curves.png").unlink()
    with pytest.raises(CannotCheck, match=r"reports/grpo/curves.png: .* `dvc repro`"):
        card_facts.read_facts()


def test_the_checksums_are_what_sha256sum_checks(reports: Path) -> None:
    listing = re.search(r"```text\n((?:[0-9a-f]{64}  .*\n)+)```", the_card())
    assert listing
    done = subprocess.run(
        ["sha256sum", "--check", "--quiet"], input=listing[1], text=True, check=False
    )
    assert done.returncode == 0


# Commands -----------------------------------------------------------------------------------------


@pytest.fixture
def committed(reports: Path) -> str:
    """A git repository whose commit holds the default profile, and a second one of other sizes."""

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(
            ["git", *identity, *arguments], check=True, capture_output=True, text=True
        ).stdout.strip()

    files.write_text(Path("params.yaml"), (ROOT / "params.yaml").read_text())
    git("init", "-q")
    git("add", "params.yaml")
    git("commit", "-qm", "profile")
    return git("rev-parse", "HEAD")


def test_an_unchanged_profile_is_made_again_by_make_repro(committed: str) -> None:
    assert (
        card.commands(card_facts.read_facts(), committed) == f"git checkout {committed}\nmake repro"
    )


def test_another_profile_is_named_in_the_command(committed: str) -> None:
    for stage in card_facts.RECORDED:
        [record] = files.read_json(Path(f"reports/{stage}/run.json"))
        record["parameters"] = {"profiles/big one.yaml": record["parameters"]["params.yaml"]}
        write(f"reports/{stage}/run.json", [record])
    assert card.commands(card_facts.read_facts(), committed).endswith(
        "make repro PROFILE='profiles/big one.yaml'"
    )


def test_the_overrides_give_dvc_the_parameters_of_the_run(committed: str) -> None:
    from dvc.utils.hydra import apply_overrides

    changes = {
        "max_steps": 20,
        "learning_rate": 1e-6,
        "lora": {"r": 8, "target_modules": "all-linear"},
        "epsilon_high": 0.28,
        "reward_funcs": {"exact_answer": 0.5, "answer_format": 0.25},
        "doctor": "stop",
    }
    phases = [{"share": 1.0, "worked": 0.5}]
    records(grpo=changes, sft={"curriculum": phases})
    [record] = files.read_json(Path("reports/grpo/run.json"))
    del record["parameters"]["params.yaml"]["grpo"]["warmup_steps"]
    write("reports/grpo/run.json", [record])
    facts = card_facts.read_facts()
    assert card.commands(facts, committed).splitlines()[1] == "make install"
    apply_overrides("params.yaml", card.overrides(facts, committed))
    profile = read_yaml(Path("params.yaml"))
    assert profile["grpo"] == facts.section("grpo")
    assert profile["sft"] == facts.section("sft")


def test_what_hydra_cannot_say_is_left_to_be_set_by_hand(committed: str) -> None:
    records(grpo={"reward_funcs": {"exact_answer": 1.0, "custom.mine:brief": 0.5}})
    lines = card.commands(card_facts.read_facts(), committed).splitlines()
    assert lines[1] == "# set in params.yaml by hand: +grpo.reward_funcs.custom.mine:brief=0.5"
    assert lines[2] == "make repro"


# The quick start ----------------------------------------------------------------------------------


def snippet(text: str) -> str:
    found = re.search(
        r"## Quick start\n.*?^(`{3,})python\n(.*?)\n\1$", text, flags=re.DOTALL | re.MULTILINE
    )
    assert found
    return found[2]


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What the card's own snippet prints for a text and for a chat prompt.

    The model has learned both by heart.
    """
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    from regrpo.core.tokenizers import character_tokenizer

    root = tmp_path_factory.mktemp("quick_start")
    tokenizer = character_tokenizer(["<think>", "</think>", "<answer>", "</answer>"])
    config = Gemma3TextConfig(
        vocab_size=112,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=128,
        initializer_range=0.08,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    torch.manual_seed(0)
    model = Gemma3ForCausalLM(config)
    prompts = ["6+1-2=", [{"role": "user", "content": "6+1-2="}]]
    rendered = [
        tokenizer.bos_token + prompts[0],
        tokenizer.apply_chat_template(prompts[1], tokenize=False, add_generation_prompt=True),
    ]
    batch = [
        tokenizer(
            text + "<think>7</think><answer>5</answer><eos>",
            add_special_tokens=False,
            return_tensors="pt",
        ).input_ids
        for text in rendered
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        sum(model(input_ids=ids, labels=ids).loss for ids in batch).backward()
        optimizer.step()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        pipeline()
        model.save_pretrained("models/grpo")
        tokenizer.save_pretrained("models/grpo")
        scripts = []
        for style, prompt in zip(("text", "chat"), prompts, strict=True):
            frame = pd.DataFrame(
                [{"id": "train-6", "prompt": prompt, "question": "6+1-2=", "answer": "5"}]
            )
            files.write_parquet(Path("data/prepared/eval.parquet"), frame)
            edit("data/prepared/dataset.json", prompt_style=style)
            script = Path(f"{style}.py")
            script.write_text(snippet(the_card()))
            scripts.append(str(script))
        run = (
            "import runpy, sys\n"
            "for script in sys.argv[1:]: runpy.run_path(script, run_name='__main__')"
        )
        done = subprocess.run(
            [sys.executable, "-c", run, *scripts], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("style", ["text", "chat"])
def test_the_quick_start_runs_as_written_and_answers_in_the_asked_format(
    printed: list[str], style: str
) -> None:
    from regrpo.core.verifiers import VERIFIERS

    answer = printed[["text", "chat"].index(style)]
    assert VERIFIERS["exact_int"].is_formatted(answer)
    assert VERIFIERS["exact_int"].extract(answer) == 5
    assert len(printed) == 2


def test_the_front_matter_is_plain_yaml(reports: Path) -> None:
    head = the_card().split("---\n")[1]
    assert (
        json.loads(json.dumps(ModelCard(f"---\n{head}---\n").data.to_dict()))["model-index"][0][
            "name"
        ]
        == PROFILE["model_card"]["model_name"]
    )


def test_classifiers_cut_and_early_end_are_told(reports: Path) -> None:
    judge = {
        "source": "hub model a/toxicity",
        "repo": "a/toxicity",
        "revision": COMMIT,
        "license": "MIT",
        "sha256": "ab" * 32,
        "labels": ["ok", "bad"],
        "positive": ["ok"],
        "negative": ["bad"],
    }
    stopped = {"reason": "no reward (mean of 10) above 0.5 for 40 logged steps", "step": 77}
    edit("reports/grpo/metrics.json", classifiers={"tox": judge}, stopped_early=stopped)
    edit("data/prepared/dataset.json", verifier="none", max_prompt_tokens=None)
    tasks = {
        "text": task("headline", 0.11, 0.22, 0.21, "continuous"),
        "text_chrf": task("main", 14, 25, 24, "continuous"),
    }
    edit("reports/evaluate/metrics.json", headline="text", tasks=tasks, gain=None)
    records(
        grpo={
            "reward_funcs": {"tox": 0.5},
            "classifiers": {"tox": {"repo": "a/toxicity"}},
            "max_steps": 90,
        }
    )
    text = the_card()
    assert (
        "| `tox`: P(`ok`) − P(`bad`) by [a/toxicity](https://huggingface.co/a/toxicity) at" in text
    )
    assert "**stopped early** at step 77 of 90: no reward (mean of 10) above 0.5" in text
    assert "Every reward is a classifier's opinion" in text
    assert "| grpo | 0.21 [0.1689, 0.2493] |\n" in text, (
        "no column for a format that nothing asks for"
    )
    assert "McNemar p not available)" not in text
    assert "correct was checked neither in training nor in evaluation" in text
    records(
        grpo={
            "reward_funcs": {"tox": 0.5, "exact_answer": 1.0},
            "classifiers": {"tox": {"repo": "a/toxicity"}},
        }
    )
    assert "Every reward is a classifier's opinion" not in the_card()
