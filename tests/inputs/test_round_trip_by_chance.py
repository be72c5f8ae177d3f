"""The gate's round trip over random tokenizers and texts: whatever passes it earns its reward."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("hypothesis", reason="of the extra dev")

from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from regrpo.inputs.checks import ON_ROUND_TRIP
from tests.support import templates
from tests.support.splits import EXACT, trip_on
from tests.support.templates import TAGS

HARD = tuple(column for column in ON_ROUND_TRIP.values() if column != "changed")


@st.composite
def tokenizers(draw: st.DrawFn) -> Any:
    """A small tokenizer of any kind: letters, words or bytes; tags special or not; normalisers."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rare = draw(st.sets(st.sampled_from("<>/+= AÉ#")))
    letters = sorted({*"0123456789-thinkaswer<>/", *rare} - draw(st.sets(st.sampled_from("<9=k"))))
    special = ["<unk>", "<eos>", "<bos>", "<pad>", *draw(st.sets(st.sampled_from(TAGS)))]
    kind = draw(st.sampled_from(["letters", "bytes", "words"]))
    if kind == "bytes":
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=draw(st.booleans()))
        core.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        core.train_from_iterator(
            ["<think>1</think><answer>12</answer>"],
            trainers.BpeTrainer(
                vocab_size=280,
                special_tokens=special,
                initial_alphabet=alphabet,
                show_progress=False,
            ),
        )
    else:
        words = letters if kind == "letters" else ["<answer>", "2", "</answer>", *letters]
        core = Tokenizer(
            models.WordLevel({t: i for i, t in enumerate([*special, *words])}, unk_token="<unk>")
        )
        if kind == "letters":
            core.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
            core.decoder = decoders.Fuse()
        else:
            core.pre_tokenizer = pre_tokenizers.Whitespace()
    if draw(st.booleans()):
        core.normalizer = draw(
            st.sampled_from([normalizers.Lowercase(), normalizers.NFKC(), normalizers.Strip()])
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        eos_token="<eos>",
        bos_token="<bos>",
        pad_token="<pad>",
        clean_up_tokenization_spaces=draw(st.booleans()),
    )
    made.add_tokens(sorted(draw(st.sets(st.sampled_from(TAGS)))))
    return made


@given(
    made=tokenizers(),
    answer=st.integers(-20, 999).map(str),
    think=st.text("0123456789+= aA<#", max_size=6),
    question=st.text("0123456789+= aÉ<", min_size=1, max_size=8),
    split=st.sampled_from(["sft", "train"]),
)
@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_whatever_passes_scores_1_after_decoding(
    tmp_path: Path, made: Any, answer: str, think: str, question: str, split: str
) -> None:
    solution = f"<think>{think}</think><answer>{answer}</answer>"
    texts = {"answer": answer, "solution": solution, "source_row": 0, "id": "a"}
    asked = {"prompt": question, "question": question}
    base = templates.write_base(tmp_path, made)
    trip = trip_on(base)
    (columns,) = trip.columns(split, [texts | asked])
    tokenizer = trip.tokenizer
    passes = not any(columns.get(name) for name in HARD)
    event("passes" if passes else "refused")
    if not passes:
        return
    prompt = tokenizer(question)["input_ids"]
    for text in (EXACT.render(answer), solution):
        written = tokenizer(text, add_special_tokens=False)["input_ids"]
        seen = tokenizer.decode(written, skip_special_tokens=True)
        assert EXACT.score(text, answer) <= EXACT.score(seen, answer)
        if split == "sft":
            whole = tokenizer(f"{question}{text}<eos>")["input_ids"]
            same = max(i for i in range(len(prompt) + 1) if whole[:i] == prompt[:i])
            ended = whole[same : whole.index(tokenizer.eos_token_id, same)]
            seen = tokenizer.decode(ended, skip_special_tokens=True)
            assert EXACT.score(text, answer) <= EXACT.score(seen, answer)
