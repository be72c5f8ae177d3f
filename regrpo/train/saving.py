"""LoRA adapters.

Kept beside the merged weights, with a card that names the model they belong to.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regrpo.core import files

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

SOURCE = Path("reports/base_model/source.json")


def save(model: PeftModel, start: Path, folder: Path, home: Path) -> None:
    """Write the adapter and its card to `folder`, which will be `home`.

    It was trained on the model folder `start`.
    """
    model.save_pretrained(folder)
    base = files.read_json(SOURCE)
    weights = {file.name: files.sha256(file) for file in sorted(start.glob("*.safetensors"))}
    unchanged = weights.items() <= {one["file"]: one["sha256"] for one in base["files"]}.items()
    config = files.read_json(folder / "adapter_config.json")
    for key in ("target_modules", "modules_to_save", "exclude_modules"):
        if isinstance(
            config.get(key), list
        ):  # PEFT saves them from a set, in an order that differs between processes
            config[key] = sorted(config[key])
    on_hub = unchanged and base["kind"] == "hub"
    config["base_model_name_or_path"] = base["repo"] if on_hub else start.as_posix()
    config["revision"] = base["revision"] if on_hub else None
    files.write_json(folder / "adapter_config.json", config)
    files.write_text(folder / "README.md", card(base, start, home, weights, unchanged))


def merge(model: PeftModel, start: Path, adapter: Path) -> PreTrainedModel:
    """The adapter added to the weights. Quantised ones are read again as they were.

    4 bits cannot hold the sum.
    """
    inner = model.get_base_model()
    if getattr(inner, "is_loaded_in_4bit", False) or getattr(inner, "is_loaded_in_8bit", False):
        import torch
        from peft import PeftModel

        whole = type(inner).from_pretrained(start, dtype=torch.float32)
        return PeftModel.from_pretrained(whole, adapter).merge_and_unload()
    return model.merge_and_unload()


def card(
    base: Mapping[str, Any], start: Path, home: Path, weights: Mapping[str, str], unchanged: bool
) -> str:
    """The adapter's README: the base that it goes back to, the weights that it is added to, how to load it."""
    name = base.get("repo") or base.get("published_as")
    what = f"{name} at revision {base['revision']}" if base["kind"] == "hub" else name
    what = (
        what or f"a {base['architecture']} of {base['parameters']:,} parameters ({base['source']})"
    )
    head = [f"base_model: {name}", "base_model_relation: adapter"] if name else []
    state = (
        "as it came"
        if unchanged
        else f"after this pipeline's warm start (SFT), that is, the weights in `{start}/`"
    )
    lines = (
        "---",
        *head,
        "library_name: peft",
        "pipeline_tag: text-generation",
        "tags: [lora, regrpo, trl]",
        "---",
        "",
        f"# LoRA adapter for {name or base['architecture']}",
        "",
        f"The base is {what}, {state}. Added to other weights than these, the adapter makes another model:",
        "",
        "```text",
        *(f"{digest}  {start}/{file}" for file, digest in weights.items()),
        "```",
        "",
        "From the root of the repository:",
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("{start}"), "{home}")',
        "```",
        "",
        "The merged weights lie in the folder above; reports/model_card/README.md is the model's card.",
        "",
    )
    return "\n".join(lines)
