"""The user's rewards: what their import raises, what they ask for, one call before training."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import pytest

from regrpo.core.errors import Refused
from regrpo.core.verifiers import VERIFIERS
from regrpo.train import custom_code, rewards
from tests.support.custom_code import BROKEN

EXACT = VERIFIERS["exact_int"]


@pytest.mark.parametrize(("source", "said"), BROKEN.items())
def test_whatever_an_import_raises_is_one_line_with_the_place(
    custom: Callable[[str], None], source: str, said: str
) -> None:
    custom(source)
    with pytest.raises(Refused) as caught:
        rewards.get_reward("custom.judge:judged", EXACT, 16)
    assert f"found custom/judge.py, {said}" in str(caught.value)
    assert "grpo.reward_funcs: custom.judge:judged: expected a function judged" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "if True:\n    def judged(completions, **columns): return [1, 2, 3]",
        "try:\n    import no_such\nexcept ImportError:\n"
        "    def judged(completions, **_): return [1, 2, 3]",
        "async def judged(completions, **columns): return [1, 2, 3]",
        "import asyncio\nasync def one(x): return 1\n"
        "def judged(completions, **_): return [asyncio.run(one(x)) for x in completions]",
        "judged = lambda completions, **columns: (x for x in (True, None, 1))",
        "class Judge:\n    async def __call__(self, completions, **_): return [1, 2, 3]\n"
        "judged = Judge()",
        "import functools\ndef f(scale, completions, **_): return [scale] * len(completions)\n"
        "judged = functools.partial(f, 2)",
        "import numpy\ndef judged(completions, **_):\n"
        "    return numpy.array([len(one) for one in completions]) < 40",
        "import torch\ndef judged(completions, **_): return torch.tensor([1.0, 2.0, 3.0]) < 2",
        "def judged(completions, log_extra, log_metric, trainer_state, **_):\n"
        "    log_metric('m', 1.0); log_extra('c', completions)\n"
        "    return [trainer_state.global_step / trainer_state.max_steps] * 3",
    ],
)
def test_what_trl_accepts_is_accepted(custom: Callable[[str], None], source: str) -> None:
    custom(source)
    assert trial() == []


ROWS = [
    {
        "id": "a",
        "prompt": "1+1=",
        "question": "1+1=",
        "answer": "2",
        "solution": "<answer>2</answer>",
    },
    {"id": "b", "prompt": "2+2=", "question": "2+2=", "answer": "4", "solution": None},
]


def trial(rows: list[dict[str, Any]] = ROWS, name: str = "custom.judge:judged") -> list[str]:
    function = rewards.get_reward(name, EXACT, 16)
    return custom_code.try_out({name: function}, EXACT, rows, lambda text: list(range(len(text))))


def test_a_trial_passes_the_shapes_that_trl_passes(custom: Callable[[str], None]) -> None:
    custom(
        "seen = {}\n"
        "def judged(prompts, completions, completion_ids, id, answer, **columns):\n"
        "    seen.update(columns, prompts=prompts, completions=completions)\n"
        "    seen.update(ids=completion_ids, id=id)\n"
        "    return [1.0] * len(completions)"
    )
    trial()
    seen = sys.modules["custom.judge"].seen
    assert seen["prompts"] == ["1+1=", "2+2=", "2+2="]
    assert seen["completions"] == ["<answer>2</answer>", "I do not know.", ""]
    assert [len(ids) for ids in seen["ids"]] == [18, 14, 0]
    assert (seen["id"], seen["question"]) == (["a", "b", "b"], ["1+1=", "2+2=", "2+2="])
    assert "prompt" not in seen
    chat = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
    trial(chat)
    seen = sys.modules["custom.judge"].seen
    assert seen["completions"][1] == [{"role": "assistant", "content": "I do not know."}]
    assert seen["prompts"][0] == [{"role": "user", "content": "1+1="}]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            "def judged(completions, level, **_): return level",
            "it needs level. Set prepare.keep: [level]",
        ),
        ("def judged(completions, answer): return [1, 2]", "a function that ends in **columns"),
        ("def judged(completions, **_): return [1]", "found 1 values"),
        ("def judged(completions, **_): return 1", "'int' object is not iterable"),
        ("def judged(completions, **_): return None", "'NoneType' object is not iterable"),
        ("def judged(completions, **_): return ['1', 2, 3]", "found '1' for completion 0"),
        ("def judged(completions, **_): return [[1], [2], 3]", "found [1] for completion 0"),
        ("def judged(completions, **_): return [float('nan'), 1, 2]", "found nan for completion 0"),
        (
            "def judged(completions, **_): return [len(one.split()[0]) for one in completions]",
            "custom/judge.py, line 1: IndexError: list index out of range",
        ),
        ("import sys\ndef judged(completions, **_): sys.exit('bye')", "line 2: SystemExit: bye"),
        (
            "import re\ndef judged(completions, **_):\n"
            "    return [len(re.search('<answer>(.*)</answer>', c).group(1)) for c in completions]",
            "custom/judge.py, line 3: AttributeError: 'NoneType' object has no attribute 'group'",
        ),
        (
            "def judged(completions, **columns): return columns['tests']",
            "KeyError: 'tests'; it looks up tests, which the data lack (prepare.keep)",
        ),
        ("async def judged(completions, **_): return [1 / 0]", "line 1: ZeroDivisionError"),
        ("judged = 3", "found int 3"),
    ],
)
def test_what_a_reward_does_wrong_is_one_line_before_anything_is_trained(
    custom: Callable[[str], None], source: str, said: str
) -> None:
    custom(source)
    with pytest.raises(Refused) as caught:
        trial()
    assert said in str(caught.value)
    assert "custom.judge:judged" in caught.value.where
    assert "\n" not in str(caught.value)


def test_a_column_that_is_only_looked_up_is_said(custom: Callable[[str], None]) -> None:
    custom(
        "def judged(completions, hint=None, **columns):\n"
        "    return [float(columns.get('level') is None)] * len(completions)"
    )
    note = "custom.judge:judged looks up hint, level, which the data lack (prepare.keep)"
    assert trial() == [note]
    assert trial([row | {"level": 1, "hint": None} for row in ROWS]) == []


def test_a_reward_of_trl_that_wants_chat_is_refused_on_text() -> None:
    with pytest.raises(Refused, match="think_format_reward: expected 3 finite numbers"):
        trial(name="think_format_reward")
    chat = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in ROWS]
    (note,) = trial(chat, "think_format_reward")
    assert note == (
        "think_format_reward pays for reasoning (<think>…</think>) and gives 0.0 to the answer of "
        "row a, as the data show it: sft teaches none"
    )
    thought = "<think>\n1 and 1\n</think>\n<answer>2</answer>"
    assert trial([row | {"solution": thought} for row in chat], "think_format_reward") == []


@pytest.mark.parametrize("value", ["0", "None", "-0.5", "1", "float('<think>' not in one)"])
def test_a_reward_that_does_not_look_for_reasoning_is_no_note(
    custom: Callable[[str], None], value: str
) -> None:
    custom(f"def judged(completions, **columns): return [{value} for one in completions]")
    assert trial() == []


def test_a_guarded_reward_is_awaited_if_it_was(custom: Callable[[str], None]) -> None:
    custom("async def judged(completions, **columns): return [True] * len(completions)")
    function = rewards.get_reward("custom.judge:judged", EXACT, 16)
    samples = rewards.Samples([1.0], every=1, group=1)
    (watched,) = samples.watching([function])
    from trl.trainer.utils import is_async_callable

    assert is_async_callable(watched)
    assert not is_async_callable(rewards.get_reward("exact_answer", EXACT, 16))
    state = type("State", (), {"global_step": 0})
    batch = {"prompts": ["p"], "completions": ["c"], "answer": ["1"], "id": ["i"]}
    call: Any = watched(**batch, trainer_state=state)
    assert asyncio.run(call) == [1.0]
    assert samples.frame()["judged"].tolist() == [1.0]
