"""The whole model card, rendered from a folder of report files as the other stages write them."""

import ast
import contextlib
import copy
import io
import json
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from huggingface_hub import ModelCard

from regrpo.core import files
from regrpo.core import text as text_module
from regrpo.core.errors import Refused
from regrpo.core.library import library_defaults
from regrpo.report import card_facts
from stages.model_card import TEMPLATE
from tests.support.cards import (
    COMMIT,
    HOSTILE,
    PROFILE,
    TOKENS,
    edit,
    outside,
    pipeline,
    records,
    samples,
    task,
    the_card,
    write,
)


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


PROSE = {"95", "0.001", "256", "2402.03300", "2020", "2001.08361", "2022", "2203.15556"}
"""Numbers of the card's own words: 95 % intervals, p < 0.001, SHA-256, the papers."""
PARAMETERS = 294144
TFLOP = {
    "sft": 6 * PARAMETERS * TOKENS["sft"] / 1e12,
    "grpo": 8 * PARAMETERS * TOKENS["grpo"] / 1e12,
}
STATEMENT = {
    "data_source": "sums by a generator",
    "data_rights": "Apache-2.0",
    "personal_data": "none",
    "data_processing": "split by question",
    "intended_use": "to show how",
    "contact": "us@example.org",
}


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

    walk([*TOKENS.values(), *TFLOP.values()])
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
    statement = dict.fromkeys(STATEMENT, HOSTILE)
    text = the_card(purpose=HOSTILE, author=HOSTILE, statement=statement)
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


def test_tokens_and_operations_are_counted_from_what_was_recorded(reports: Path) -> None:
    text = the_card()
    assert "| sft | 1,124,897 | 6·N·D | 1.985 |" in text
    assert "| grpo | 301,160 | 6·N·D + 2·N·D to generate | 0.709 |" in text
    records(grpo={"lora": {"r": 4}, "beta": 0.04, "num_iterations": 3})
    formula = "4·N·D × 3 + 2·N·D to generate + 2·N·D for the reference"
    assert f"| grpo | 301,160 | {formula} | 1.417 |" in the_card()
    edit("reports/sft/metrics.json", steps=0)
    assert "| sft | 1,124,897" not in the_card()


def test_a_statement_stands_on_the_card_as_it_was_written(reports: Path) -> None:
    assert "## Statement" not in the_card()
    text = the_card(statement=STATEMENT)
    assert text.index("## Statement") < text.index("## Limitations")
    rows = re.findall(r"^\| ([a-z ]+) \| (.+) \|$", text.partition("## Statement")[2], re.MULTILINE)
    said = dict(zip(STATEMENT, rows, strict=False))
    assert {key: name for key, (name, _) in said.items()} == {
        key: key.replace("_", " ") for key in STATEMENT
    }
    assert said["data_rights"][1] == text_module.prose("Apache-2.0")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"contact": None}, "statement.contact"),
        ({"contact": ""}, "statement.contact"),
        ({"licence": "MIT"}, "statement.licence"),
    ],
)
def test_a_statement_that_lacks_something_is_refused_by_name(
    reports: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(Refused, match=named):
        the_card(statement=STATEMENT | changes)
    whole = {key: value for key, value in STATEMENT.items() if key != "contact"}
    with pytest.raises(Refused, match="contact"):
        the_card(statement=whole)


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
        said = io.StringIO()
        for style, prompt in zip(("text", "chat"), prompts, strict=True):
            frame = pd.DataFrame(
                [{"id": "train-6", "prompt": prompt, "question": "6+1-2=", "answer": "5"}]
            )
            files.write_parquet(Path("data/prepared/eval.parquet"), frame)
            edit("data/prepared/dataset.json", prompt_style=style)
            script = Path(f"{style}.py")
            script.write_text(snippet(the_card()))
            with contextlib.redirect_stdout(said):
                runpy.run_path(str(script), run_name="__main__")
    return said.getvalue().splitlines()


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
