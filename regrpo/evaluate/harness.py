"""lm-eval as a library: load a model, ask it one task, get one row per question and metric."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from regrpo.core import conversation, hardware
from regrpo.core.errors import Refused
from regrpo.evaluate.tasks import Metric, Row, Task

if TYPE_CHECKING:
    from lm_eval.api.model import LM


@contextlib.contextmanager
def surroundings() -> Iterator[None]:
    """What must hold before lm-eval is imported: this run's own cache, quiet logs, few bars."""
    import logging

    # `datasets` reuses its cache for a file that was rewritten with the same time stamp, hence a
    # fresh one each time.
    with tempfile.TemporaryDirectory() as cache:
        os.environ["HF_DATASETS_CACHE"] = cache
        # tqdm reads its defaults here: a bar after 5 s on a terminal, none in a log file, none left
        # standing.
        os.environ["TQDM_DELAY"] = "5" if sys.stderr.isatty() else "inf"
        os.environ["TQDM_LEAVE"] = ""
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        # It warns where it cuts a prompt to fit the window.
        logging.getLogger("lm_eval.models").setLevel(logging.WARNING)
        yield


def load_model(
    folder: Path,
    *,
    backend: str,
    device: str,
    batch_size: int | str,
    seed: int,
    model_args: dict[str, Any],
    stops: Sequence[int],
) -> LM:
    """A model folder behind lm-eval's interface; `stops` are the tokens that end a completion.

    On a CPU in float32, on CUDA in the type it was saved in. Raises Refused for model_args that the
    backend does not take.
    """
    arguments = {"pretrained": str(folder), "batch_size": batch_size} | model_args
    try:
        if backend == "vllm":
            keys = ("gpu_memory_utilization", "max_model_len")
            share, length = (f"evaluate.model_args.{key}" for key in keys)
            with hardware.refuse_vllm_failure("evaluate.backend", share, length, "backend: hf"):
                from lm_eval.models.vllm_causallms import VLLM

                return VLLM(**arguments, dtype="auto", seed=seed)
        from lm_eval.models.huggingface import HFLM

        dtype = "float32" if device == "cpu" else "auto"
        lm = HFLM(**arguments, device=device, dtype=dtype)
        conversation.stop_at(lm.model.generation_config, stops)
        return lm
    except (TypeError, ValueError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        raise Refused(
            "evaluate.model_args",
            expected=f"arguments of lm-eval's {backend} backend, "
            f"and a model that it loads ({folder})",
            found=lines[0],
            remedy="Correct them in the profile.",
        ) from error


def decoding_by(backend: str, stops: Sequence[int]) -> dict[str, Any]:
    """What a task must tell the backend, so that text ends and reads as training's rewards see it.

    vLLM knows the model folder's stop tokens only, and lm-eval has it show special tokens.
    """
    if backend == "vllm":
        return {"stop_token_ids": list(stops), "skip_special_tokens": True}
    return {}


def ask(
    task: Task,
    lm: LM,
    *,
    chat: bool,
    max_gen_toks: int,
    limit: int | None,
    seed: int,
    decoding: Mapping[str, Any] = MappingProxyType({}),
    gen_kwargs: Mapping[str, Any] = MappingProxyType({}),
    kept: Mapping[str, Row] = MappingProxyType({}),
) -> list[Row]:
    """One model's answers: a row per question and metric, of the first `limit` questions or all.

    `decoding` is what `decoding_by` says, `gen_kwargs` the profile's, for our tasks. `kept` are the
    further columns of the data's questions by id, which their rows get.

    With `chat`, prompts go through the model's chat template: ours with the generation prompt and
    then the opening of the completion, others as lm-eval does it. Raises Refused for a value that
    is no number.
    """
    import lm_eval

    harness = task.harness
    plain = harness.get_config("doc_to_text")
    harness.set_fewshot_seed(seed)
    if task.origin == "ours":
        harness.set_config("generation_kwargs", dict(gen_kwargs), update=True)
        if chat:  # the template writes the tokens that a text begins with, here as in training
            lm.add_bos_token = False
            harness.set_config("doc_to_text", partial(plain, render=lm.apply_chat_template))
        _limit_tokens(task, lm, max_gen_toks, limit)
    if harness.get_config("output_type") == "generate_until":
        harness.set_config("generation_kwargs", dict(decoding), update=True)
    results = lm_eval.evaluate(
        lm=lm,
        task_dict={"tasks": {task.name: harness}},
        limit=limit,
        bootstrap_iters=0,  # intervals are ours, paired (regrpo/evaluate/stats.py)
        apply_chat_template=chat and task.origin != "ours",
        fewshot_as_multiturn=True,
    )
    # A task that held on to its model would keep it in memory.
    harness.set_config("doc_to_text", plain)
    rows = []
    for metric in task.metrics:
        for sample in results["samples"][task.name]:
            if sample["filter"] == metric.filter:
                rows.append(_row(task, metric, sample) | _columns(sample["doc"], kept))
    return rows


def _limit_tokens(task: Task, lm: LM, max_gen_toks: int, limit: int | None) -> None:
    """Set how long a completion of one of our tasks may be.

    Raises Refused if it goes beyond the model's window: lm-eval would cut the prompt's beginning.
    """
    harness = task.harness
    about = harness.get_config("metadata") or {}
    tokens = max_gen_toks * about.get("max_gen_toks_times", 1)
    prompts = [harness.doc_to_text(doc) for doc in islice(harness.eval_docs, limit)]
    longest = max(len(lm.tok_encode(prompt)) for prompt in prompts)
    if longest + tokens > lm.max_length:
        raise Refused(
            "evaluate.max_gen_toks",
            expected=f"prompt and completion within the model's window ({lm.max_length} tokens)",
            found=f"{longest} + {tokens} for {task.name}",
            remedy="Lower it or prepare.max_prompt_tokens, or take the task off the list.",
        )
    harness.set_config("generation_kwargs", {"max_gen_toks": tokens}, update=True)


def _columns(doc: Any, kept: Mapping[str, Row]) -> Row:
    """The further columns of a question, where it is one of the data's with them."""
    found = kept.get(str(doc.get("id")), {}) if isinstance(doc, Mapping) else {}
    return found if found.keys() <= doc.keys() else {}


def _row(task: Task, metric: Metric, sample: dict[str, Any]) -> Row:
    question = f"{sample['doc_id']:06d}"
    if task.origin == "ours":
        question = str(sample["doc"]["id"])
    value = sample.get(metric.name)
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise Refused(
            f"evaluate: {task.name}, question {question}",
            expected=f"a finite number as {metric.name}",
            found=repr(value),
            remedy="Mend the task's process_results or metric.",
        )
    completion, answer = sample["resps"][0][0], sample["target"]
    return {
        "task": metric.key,
        "id": question,
        "prompt": sample["arguments"][0][0],
        # Where choices were scored, none was written.
        "completion": completion if isinstance(completion, str) else None,
        "answer": None if answer is None else str(answer),
        "value": float(value),
    }
