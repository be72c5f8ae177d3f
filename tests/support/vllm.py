"""A stand-in for vLLM 0.30, which needs a GPU: an installed package whose engine keeps what it got.

It draws its answers by its seed, as vLLM does: tokens of no meaning, with log-probabilities.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ENGINE = '''
import random
from types import SimpleNamespace

__version__ = "0.30.0"
ENGINES = []
"""Every engine that was started, in order."""


class SamplingParams:
    def __init__(self, **arguments):
        self.arguments = arguments


class TokensPrompt(dict):
    pass


class RequestOutput:
    pass


class LLM:
    def __init__(self, **arguments):
        self.arguments, self.asked, self.answers, self.loaded = arguments, [], [], []
        self.draw = random.Random(arguments["seed"])
        runner = SimpleNamespace(model=SimpleNamespace(load_weights=self.loaded.extend))
        worker = SimpleNamespace(model_runner=runner)
        self.llm_engine = SimpleNamespace(
            model_executor=SimpleNamespace(driver_worker=worker),
            model_config=SimpleNamespace(max_model_len=arguments["max_model_len"]),
        )
        ENGINES.append(self)

    def reset_prefix_cache(self):
        pass

    def generate(self, prompts, sampling_params, use_tqdm):
        self.asked.append(sampling_params.arguments)
        length = sampling_params.arguments["max_tokens"]
        outputs = []
        for prompt in prompts:
            tokens = [self.draw.randrange(10, 90) for _ in range(length)]
            self.answers.append(tokens)
            scored = [{token: SimpleNamespace(logprob=-1.0, rank=1)} for token in tokens]
            answer = SimpleNamespace(token_ids=tokens, logprobs=scored)
            ids = prompt["prompt_token_ids"]
            outputs.append(SimpleNamespace(prompt_token_ids=ids, outputs=[answer]))
        return outputs
'''
MODULES = {
    "vllm/__init__.py": ENGINE,
    "vllm/sampling_params.py": "class StructuredOutputsParams:\n    pass\n",
    "vllm/lora/__init__.py": "",
    "vllm/lora/request.py": "class LoRARequest:\n    pass\n",
    "vllm/renderers/__init__.py": "",
    "vllm/renderers/hf.py": "def resolve_chat_template(**arguments):\n    return None\n",
    "vllm/tokenizers.py": "def get_tokenizer(name, **arguments):\n"
    "    from transformers import AutoTokenizer\n\n"
    "    return AutoTokenizer.from_pretrained(name)\n",
    "vllm-0.30.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: 0.30.0\n",
}
SET_BY_TRL = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What TRL writes into the environment before it starts an engine."""


@contextmanager
def installed(folder: Path) -> Iterator[Any]:
    """The package, installed in `folder` and used by TRL, until the context ends."""
    for name, text in MODULES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        import trl.trainer.grpo_trainer  # noqa: F401  # as without vLLM, whose client it would take

        patch.syspath_prepend(folder)
        for name in SET_BY_TRL:
            patch.setenv(name, "")  # so that it is restored
            patch.delenv(name)
        try:
            import vllm
            from trl.generation import vllm_generation
            from vllm.sampling_params import StructuredOutputsParams

            # TRL imports them where vLLM is installed, which it was not when TRL was imported.
            for value in (vllm.LLM, vllm.SamplingParams, StructuredOutputsParams):
                patch.setattr(vllm_generation, value.__name__, value, raising=False)
            yield vllm
        finally:
            for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
                del sys.modules[name]
