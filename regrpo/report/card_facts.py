"""What the model card says of a pipeline, read from its files and checked to belong together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regrpo.core import files, verifiers
from regrpo.core.answers.protocol import Verifier
from regrpo.core.conversation import Cutter
from regrpo.core.errors import CannotCheck, Refused
from regrpo.core.files import file_hashes
from regrpo.core.library import library_defaults
from regrpo.core.pipeline import Misfit, chain_misfits
from regrpo.core.profiles import STAGES
from regrpo.evaluate.results import METRICS, SAMPLES, Evaluation, parse_metrics, read_samples

RECORDED = STAGES[:-1]
"""The stages that come before the card, whose run.json it reads."""
FILES = {
    "dataset": Path("data/prepared/dataset.json"),
    "base": Path("reports/base_model/source.json"),
    "verdict": Path("reports/validate/verdict.json"),
    "sft": Path("reports/sft/metrics.json"),
    "select": Path("reports/select/metrics.json"),
    "grpo": Path("reports/grpo/metrics.json"),
    "health": Path("reports/grpo/health.json"),
}
"""The reports that become facts as they are, by the fact's name."""
HISTORIES = {"sft": Path("reports/sft/history.csv"), "grpo": Path("reports/grpo/history.csv")}
QUESTIONS = Path("data/prepared/eval.parquet")
PICTURES = (Path("reports/grpo/curves.png"), Path("reports/evaluate/comparison.png"))
TRAINERS = {
    "sft": "trl.trainer.sft_config:SFTConfig",
    "grpo": "trl.trainer.grpo_config:GRPOConfig",
}
"""Each trained stage's configuration class, whose defaults the card names."""
Json = dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """Everything the card is rendered from.

    `example` is the first evaluation question, `samples` its completions by model, `tokens` what
    TRL counted by trained stage.
    """

    dataset: Json
    base: Json
    verdict: Json
    sft: Json
    select: Json
    grpo: Json
    health: Json
    evaluation: Evaluation
    runs: Mapping[str, Json]
    example: Json
    samples: Mapping[str, str]
    tokens: Mapping[str, int]

    @property
    def profile(self) -> str:
        """The profile that the GRPO model was trained with."""
        return str(next(iter(self.runs["grpo"]["parameters"])))

    @property
    def verifier(self) -> Verifier | None:
        return verifiers.of_dataset(self.dataset)

    @property
    def trained(self) -> list[str]:
        """The stages that trained: sft may be skipped."""
        return ["sft", "grpo"] if self.sft["steps"] else ["grpo"]

    def section(self, stage: str) -> Json:
        """A stage's parameters, as its record holds them."""
        section: Json = next(iter(self.runs[stage]["parameters"].values()))[stage]
        return section

    def setting(self, stage: str, key: str) -> Any:
        """One of a trainer's settings: the profile's, else the library's default."""
        return self.section(stage).get(key, library_defaults(TRAINERS[stage]).get(key))

    def adapter(self, stage: str) -> str | None:
        """The folder of the LoRA adapter that a stage trained; None for all weights, or none."""
        if stage == "sft" and not self.sft["steps"]:
            return None
        return f"models/{stage}/adapter" if self.section(stage).get("lora") else None

    def files(self, side: str) -> Iterator[tuple[str, str, str]]:
        """(stage, path, SHA-256) of every file in the records' "inputs" or "outputs"."""
        for stage in RECORDED:
            for item in self.runs[stage][side]:
                for path, digest in sorted(file_hashes(item).items()):
                    yield stage, path, digest


# --- reading --------------------------------------------------------------------------------------


def read_facts() -> Facts:
    """Read the pipeline's files in the current folder.

    Raises CannotCheck for a missing one, Refused where the records do not fit together (the card
    would mix two models).
    """
    records = {stage: Path("reports") / stage / "run.json" for stage in RECORDED}
    needed = [*FILES.values(), *HISTORIES.values(), *records.values()]
    for path in (*needed, QUESTIONS, Path(METRICS), Path(SAMPLES), *PICTURES):
        if not path.exists():
            raise CannotCheck(
                str(path),
                expected="what an earlier stage wrote",
                found="nothing there",
                remedy="Run `dvc repro` (or `dvc checkout`).",
            )
    contents = {name: files.read_json(path) for name, path in FILES.items()}
    row = files.read_parquet(QUESTIONS).iloc[0]
    evaluation = parse_metrics(Path(METRICS).read_bytes())
    headline = evaluation.headline or ""
    answers = read_samples(Path(SAMPLES).read_bytes(), task=headline, id=row["id"])
    facts = Facts(
        **contents,
        evaluation=evaluation,
        runs={stage: files.read_json(path)[0] for stage, path in records.items()},
        example={"prompt": _prompt(row["prompt"], contents["dataset"]), "answer": row["answer"]},
        samples=dict(zip(answers["model"], answers["completion"].map(str), strict=True)),
        tokens={stage: _tokens(path) for stage, path in HISTORIES.items()},
    )
    require_one_chain(facts)
    return facts


def _tokens(history: Path) -> int:
    """The tokens of a training, padding left out, as its last logged row has them."""
    counts = [row.get("num_tokens", 0.0) for row in files.parse_history(history.read_bytes())]
    return int(max(counts, default=0))


def _prompt(stored: Any, dataset: Json) -> Any:
    """A prompt as the model got it: text or chat messages, cut where the dataset says so."""
    prompt = stored if isinstance(stored, str) else [dict(message) for message in stored]
    if not dataset.get("max_prompt_tokens"):
        return prompt
    return Cutter(dataset, Path("models/grpo"))([prompt])[0]


def require_one_chain(facts: Facts) -> None:
    """Raise Refused unless each stage read what the last wrote, and models/grpo is grpo's."""
    for misfit in chain_misfits(facts.runs):
        raise _mixed(misfit)
    for stage, path, expected in facts.files("outputs"):
        if not path.startswith("models/grpo/"):
            continue
        place = Path(path)
        found = files.sha256(place) if place.exists() else None
        if found != expected:
            raise _mixed(Misfit("model_card", "input", path, expected, found, maker=stage))


def _mixed(misfit: Misfit) -> Refused:
    return Refused(
        f"{misfit.path}, as {misfit.stage} read it",
        expected=f"SHA-256 {(misfit.expected or 'none')[:12]}, as {misfit.maker} wrote it",
        found=(misfit.found or "no file")[:12],
        remedy="These are files of different runs: run `dvc repro`.",
    )
