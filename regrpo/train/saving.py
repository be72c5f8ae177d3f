"""Whole model folders without pickles; LoRA adapters beside the merged weights, with a card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrpo.core import files, processes, tokenizers
from regrpo.core.errors import Refused
from regrpo.core.text import some
from regrpo.train import sharding

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

SOURCE = Path("reports/base_model/source.json")
SETS = ("target_modules", "modules_to_save", "exclude_modules")
"""Keys that PEFT saves from a set, in an order that differs between processes."""


def save_model(trainer: Any, start: Path, folder: Path) -> None:
    """Write what was trained from the model folder `start`: safetensors, config, tokenizer.

    LoRA is merged, its adapter kept in `adapter/`. Every process must call it; the main one writes.
    """
    from peft import PeftModel

    state = sharding.whole_state(trainer)
    if not processes.is_main():
        return
    model = trainer.model
    with files.replacing(folder) as temporary:
        temporary.mkdir()
        if isinstance(model, PeftModel):
            adapter = temporary / "adapter"
            save_adapter(model, start, adapter, folder / "adapter")
            model = merge_adapter(model, start, adapter)
        require_finite(state or model.state_dict(), folder.name)
        model.generation_config = trainer.model.generation_config
        # Trainers turn it off; whoever loads the model generates.
        model.config.use_cache = True
        model.save_pretrained(temporary, state_dict=state)
        tokenizers.save(trainer.processing_class, temporary)


def require_finite(state: Mapping[str, Any], stage: str) -> None:
    """Refuse weights with NaN or infinity: transformers leaves such losses out of what it logs."""
    # The least and the greatest say it without a copy: `isfinite` takes as much as the weights.
    filled = {
        name: weights.detach().aminmax() for name, weights in state.items() if weights.numel()
    }
    broken = [name for name, ends in filled.items() if not all(end.isfinite() for end in ends)]
    if broken:
        raise Refused(
            f"{stage}.learning_rate",
            expected="finite weights after training",
            found=f"NaN or infinity in {some(broken)}",
            remedy="Lower it or max_grad_norm, or leave bf16 and fp16 out; see that the base's own "
            "weights are finite.",
        )


def save_adapter(model: PeftModel, start: Path, folder: Path, home: Path) -> None:
    """Write the adapter and its card to `folder`, which will become `home`.

    It was trained on the model folder `start`.
    """
    model.save_pretrained(folder)
    base = files.read_json(SOURCE)
    weights = {file.name: files.sha256(file) for file in sorted(start.glob("*.safetensors"))}
    of_base = {one["file"]: one["sha256"] for one in base["files"]}
    unchanged = weights.items() <= of_base.items()
    config = files.read_json(folder / "adapter_config.json")
    for key in SETS:
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    config["base_model_name_or_path"] = start.as_posix()
    config["revision"] = None
    if unchanged and base["kind"] == "hub":
        config["base_model_name_or_path"] = base["repo"]
        config["revision"] = base["revision"]
    files.write_json(folder / "adapter_config.json", config)
    files.write_text(folder / "README.md", adapter_card(base, start, home, weights, unchanged))


def merge_adapter(model: PeftModel, start: Path, adapter: Path) -> PreTrainedModel:
    """The adapter added to the weights; quantised ones are read again, as 4 bits hold no sum."""
    inner = model.get_base_model()
    if getattr(inner, "is_loaded_in_4bit", False) or getattr(inner, "is_loaded_in_8bit", False):
        import torch
        from peft import PeftModel

        whole = type(inner).from_pretrained(start, dtype=torch.float32)
        return PeftModel.from_pretrained(whole, adapter).merge_and_unload()
    return model.merge_and_unload()


CARD = """\
---
{head}library_name: peft
pipeline_tag: text-generation
tags: [lora, regrpo, trl]
---

# LoRA adapter for {name}

The base is {base}, {state}. Added to other weights than these, the adapter makes another model:

```text
{weights}
```

From the root of the repository:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{start}"), "{home}")
```

The merged weights lie in the folder above; reports/model_card/README.md is the model's card.
"""


def adapter_card(
    base: Mapping[str, Any], start: Path, home: Path, weights: Mapping[str, str], unchanged: bool
) -> str:
    """The adapter's README: its base, the weights that it is added to, and how to load it.

    `base` is reports/base_model/source.json, `weights` SHA-256 by file of `start`.
    """
    name = base.get("repo") or base.get("published_as")
    head = ""
    if name:
        head = f"base_model: {name}\nbase_model_relation: adapter\n"
    if base["kind"] == "hub":
        described = f"{name} at revision {base['revision']}"
    else:
        made = f"a {base['architecture']} of {base['parameters']:,} parameters ({base['source']})"
        described = name or made
    state = f"after this pipeline's warm start (SFT), that is, the weights in `{start}/`"
    if unchanged:
        state = "as it came"
    return CARD.format(
        head=head,
        name=name or base["architecture"],
        base=described,
        state=state,
        weights="\n".join(f"{digest}  {start}/{file}" for file, digest in weights.items()),
        start=start,
        home=home,
    )
