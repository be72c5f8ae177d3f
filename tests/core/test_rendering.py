"""Chat templates under limits: the same text as in this process, or one line."""

from __future__ import annotations

import time
from typing import Any

import pytest

from regrpo.core import rendering
from regrpo.core.errors import Refused
from tests.support import templates
from tests.support.templates import GEMMA

ASKED = [{"role": "user", "content": "1+1= é"}]
TURNS = [*ASKED, {"role": "assistant", "content": " 2 "}]


def refusal(template: str, *conversations: Any) -> str:
    tokenizer = templates.tokenizer()
    tokenizer.chat_template = template
    with (
        rendering.RenderingProcess(tokenizer, "models/base") as render,
        pytest.raises(Refused) as caught,
    ):
        render(list(conversations or (ASKED,)), True)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("models/base: chat template: expected to render the")
    assert "prepare.prompt_style: text" in caught.value.remedy
    return caught.value.found


def test_the_process_renders_what_the_tokenizer_renders() -> None:
    tokenizer = templates.tokenizer(GEMMA)
    here = rendering.in_process(tokenizer, "models/base")
    long = [{"role": "user", "content": "a" * 1_100_000}]  # not the template's doing
    with rendering.RenderingProcess(tokenizer, "models/base") as render:
        for prompt in (True, False):
            assert render([ASKED, TURNS, long], prompt) == here([ASKED, TURNS, long], prompt)


def test_what_a_template_raises_is_one_line_in_either_process() -> None:
    template = "{{ raise_exception('no system role') }}"
    assert refusal(template) == "TemplateError: no system role"
    tokenizer = templates.tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(Refused, match=r"chat template: .*no system role\. Set prepare"):
        rendering.in_process(tokenizer, "models/base")([ASKED], True)


def test_a_template_that_loops_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "SECONDS", 1.0)
    loop = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    began = time.monotonic()
    assert refusal(loop) == "no end within 1 seconds"
    assert time.monotonic() - began < 60


def test_a_template_that_returns_megabytes_or_takes_all_memory_is_refused() -> None:
    assert refusal("{{ 'a' * 1000007 }}").endswith("1,000,001 characters besides the messages' own")
    assert refusal("{{ 'a' * 9000000000 }}").startswith("MemoryError")
