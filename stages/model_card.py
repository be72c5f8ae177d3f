"""model_card: the Hugging Face model card, from the pipeline's files only.

Reads every earlier stage's reports and run.json, data/prepared/ and models/grpo/ (whose bytes it
checks against the record); writes reports/model_card/README.md, in which all that varies from run
to run is in one marked block, and metrics.json, the SHA-256 of the rest of the card. Run it by
hand: python -m stages.model_card
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from regrpo.core import files, text
from regrpo.core.settings import Section
from regrpo.evaluate.results import MODELS, PAIRS
from regrpo.records import stage_run
from regrpo.report import card
from regrpo.report.card_facts import Facts, read_facts

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

Stated = Annotated[str, Field(min_length=1, max_length=2000)]
TEMPLATE = Path(__file__).parent / "templates" / "model_card.md.j2"


class Statement(Section):
    """What whoever trains owes to say and no file can: each key in a sentence or two."""

    data_source: Stated
    data_rights: Stated
    personal_data: Stated
    data_processing: Stated
    intended_use: Stated
    contact: Stated


class Params(Section):
    model_name: str
    author: str
    language: str
    license: str
    tags: list[str] = Field(default_factory=list)
    purpose: str | None = None
    statement: Statement | None = None


def metadata(params: Params, facts: Facts) -> ModelCardData:
    """The card's YAML head. base_model and datasets name hub repositories only.

    A link to nothing helps nobody.
    """
    from huggingface_hub import EvalResult, ModelCardData

    dataset = facts.dataset
    ours = {
        "dataset_type": dataset.get("repo") or dataset["format"],
        "dataset_name": text.visible(dataset["source"]),
    }
    ours |= {"dataset_split": "eval", "dataset_revision": dataset["revision"]}
    results = [
        EvalResult(
            task_type="text-generation",
            metric_type=task.metric,
            metric_name=name,
            metric_value=task.models["grpo"].value,
            **({"dataset_type": name, "dataset_name": name} if task.role == "stock" else ours),
        )
        for name, task in facts.evaluation.shown_tasks.items()
        if "grpo" in task.models
    ]
    return ModelCardData(
        model_name=params.model_name,
        base_model=facts.base.get("repo") or facts.base.get("published_as"),
        datasets=[dataset["repo"]] if dataset.get("repo") else None,
        language=params.language,
        license=params.license.lower(),  # the hub's licence ids are lower case
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=list(dict.fromkeys(["generated_from_trainer", "trl", *facts.trained, *params.tags])),
        eval_results=results,
    )


def render(params: Params, facts: Facts) -> str:
    """The whole card, ending in a newline."""
    from huggingface_hub import ModelCard

    content = ModelCard.from_template(
        metadata(params, facts),
        template_path=str(TEMPLATE),
        params=params,
        facts=facts,
        card=card,
        text=text,
        MODELS=MODELS,
        PAIRS=PAIRS,
    )
    return str(content).rstrip("\n") + "\n"


def main() -> None:
    with stage_run.stage("model_card", Params) as run:
        content = render(run.params, read_facts())
        constant = card.without_varying_block(content)
        files.write_text(run.reports / "README.md", content)
        files.write_json(
            run.reports / "metrics.json",
            {"sha256_without_marked_block": [files.sha256_text(constant)]},
        )
        print(f"model_card: {run.reports / 'README.md'}")


if __name__ == "__main__":
    main()
