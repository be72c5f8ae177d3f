"""The card, the licence and the notice as a released folder has them."""

from __future__ import annotations

import re

from regrpo.core.errors import Refused
from regrpo.core.files import Json
from regrpo.core.text import code, count, prose
from regrpo.release.layout import RUN_CARD

QUICK_START = "From the root of the repository, with its environment active:"
LOADING = 'generator = pipeline("text-generation", model="models/grpo", device_map="auto")'
NEEDED = ("torch", "transformers", "accelerate")
"""What the quick start imports."""
ANY_NAME = ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "isc", "unlicense", "cc0-1.0")
"""Licences whose text lets a derived model carry another's name, by the hub's id."""
FOLDER = """\
## This folder

It is complete in itself. The model lies on top: its files are those under `models/grpo/` in the
lineage below. All else has the path that it has in the repository.

| what | where |
|---|---|
| weights and tokenizer | on top{adapter} |
| results and samples of the evaluation, curves, a record of each stage | `reports/` |
| commands, parameters and hashes of the pipeline | `dvc.yaml`, `dvc.lock`, {profile} |
| all of that as a Provenance Run Crate | `ro-crate-metadata.json` |
| the SHA-256 of every file | `SHA256SUMS` |
| licence; whose work it builds on | `LICENSE`, `NOTICE` |

```bash
sha256sum --check --quiet SHA256SUMS   # every byte
regrpo verify .                        # and that card, results and provenance say the same
```

A signature, if there is one, lies beside the folder. {audit}

"""


def release_card(card: str, about: Json) -> str:
    """The run's card, rewritten for a folder whose release.json is `about`.

    Raises Refused for a card that has not the parts that change.
    """
    loaded, heading = ".", _from_folder(about["packages"])
    if about["repo_id"]:
        loaded, heading = about["repo_id"], _from_hub(about["packages"])
    card = _replace(card, QUICK_START, heading)
    card = _replace(card, f"\n{LOADING}\n", f"\n{LOADING.replace('models/grpo', loaded)}\n")
    card = card.replace("](../", "](reports/").replace("`models/grpo/adapter`", "`adapter`")
    if about["audit"]["findings"]:
        card = _replace(card, "\n## Quick start\n", f"\n{_warning(about)}\n\n## Quick start\n")
    folder = FOLDER.format(
        adapter=", the LoRA adapter before it was merged in `adapter/`" * about["adapter"],
        profile=code(about["profile"]),
        audit=_audited(about),
    )
    return _replace(card, "\n## Lineage\n", f"\n{folder}## Lineage\n")


def _replace(card: str, old: str, new: str) -> str:
    if old not in card:
        raise Refused(
            RUN_CARD,
            expected=f"a card with {old.strip()!r}",
            found="one without: of another template, or of an older run",
            remedy="Make it again with `dvc repro model_card`.",
        )
    return card.replace(old, new, 1)


def _from_folder(packages: Json) -> str:
    return f"In this folder, with Python and {_installed(packages)}:"


def _from_hub(packages: Json) -> str:
    return f'With Python and {_installed(packages)} (in this folder, `model="."` does the same):'


def _installed(packages: Json) -> str:
    pinned = [f"{name}=={packages[name]}" for name in NEEDED if name in packages]
    return code(f"pip install {' '.join(pinned)}")


def _audited(about: Json) -> str:
    if about["audit"]["findings"]:
        return "What its audit found is said above."
    return "`regrpo audit` found nothing wrong with the run when this folder was made."


def _warning(about: Json) -> str:
    audit = about["audit"]
    found = count(len(audit["findings"]), "finding")
    lines = [
        f"**The run did not pass its audit ({prose(audit['verdict'])}, {found}); "
        "it was released all the same (`--force`):**",
        "",
        *(f"- {prose(line)}" for line in audit["findings"]),
    ]
    return "\n".join(lines)


# --- licences -------------------------------------------------------------------------------------


def license_text(name: str, known: str) -> str:
    """LICENSE: the licence's text if it is Apache's (`known` is that), else its name and where.

    No text of another licence is at hand without a network.
    """
    if name.lower() == "apache-2.0" and "Apache License" in known:
        return known
    return (
        f"This model is licensed under: {prose(name)}\n\n"
        "The licence's text is not part of this folder. Licences with an SPDX identifier are at\n"
        f"https://spdx.org/licenses/; others (as gemma) at the base model's page.\n"
    )


def notice(model: Json, base: Json, dataset: Json) -> str:
    """NOTICE: base weights and data, with source, revision and licence.

    `model`: the profile's model_card section; `base`: reports/base_model/source.json; `dataset`:
    data/prepared/dataset.json.
    """
    weights = base.get("repo") or base.get("published_as") or base["source"]
    data = dataset.get("repo") or dataset["source"]
    lines = [
        f"{model['model_name']}, by {model['author']}. Licence: {model['license']}.",
        "",
        "It was trained from base weights:",
        f"  {weights}, revision {base['revision']}. Licence: {base['license']}.",
        "",
        "and on data:",
        f"  {data}, revision {dataset['revision']}. Licence: {dataset['license']}.",
    ]
    warning = license_conflict(model["license"], base["license"])
    if warning:
        lines += ["", warning]
    return "\n".join(re.sub(r"[^\S ]+", " ", line) for line in lines) + "\n"


def license_conflict(model: str, base: str) -> str | None:
    """A warning if the base's licence may not let the model carry another one's name."""
    if base.lower() in (model.lower(), *ANY_NAME):
        return None
    return (
        f"The model is called {model}, its base weights are {base}: "
        "the base's terms may not allow the other name."
    )
