"""Chat templates under a limit of time, memory and length, in a process that can be killed.

A template comes with a base model. transformers' sandbox keeps it from files and from Python, but
not from looping for ever or from writing gigabytes. Run as a module, this is that process: a line
of JSON in, a line of JSON out.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

from regrpo.core import processes
from regrpo.core.errors import Refused, class_and_message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]
Render = Callable[[Sequence[Messages], bool], list[str]]
"""(conversations, add_generation_prompt) → the text of each. Raises Refused if one has none."""

STARTING = 120.0
"""Seconds that the process may take to import what renders."""
SECONDS = 20.0
"""Seconds that the conversations of one call may take: a few hundred, of milliseconds each."""
MEMORY = 4 << 30
"""Bytes of address space, most of them the interpreter's libraries."""
LONGEST = 1_000_000
"""Characters that a template may add to the messages of one conversation."""


def unrenderable(where: str, found: str) -> Refused:
    """The refusal of a template that does not render; `where` is the model folder."""
    return Refused(
        f"{where}: chat template",
        expected="to render the prompts",
        found=found,
        remedy="Set prepare.prompt_style: text, or give the base one (base_model.chat_template).",
    )


def in_process(tokenizer: PreTrainedTokenizerBase, where: str) -> Render:
    """Renders here, without limits: for prompts that the gate has seen."""

    def render(conversations: Sequence[Messages], add_generation_prompt: bool) -> list[str]:
        try:
            texts: list[str] = tokenizer.apply_chat_template(
                list(conversations), tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # a template may raise anything
            raise unrenderable(where, class_and_message(error)) from error
        return texts

    return render


class RenderingProcess:
    """Renders as `in_process` does, in a process that starts with the first call and has limits."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, where: str) -> None:
        self.tokenizer = tokenizer
        self.where = where
        self.process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()

    def __call__(self, conversations: Sequence[Messages], add_generation_prompt: bool) -> list[str]:
        if self.process is None:
            self._start()
        request = {"conversations": conversations, "add_generation_prompt": add_generation_prompt}
        texts: list[str] = self._answer(request, SECONDS)
        return texts

    def _start(self) -> None:
        try:
            template = self.tokenizer.get_chat_template()
        except ValueError as error:
            raise unrenderable(self.where, class_and_message(error)) from error
        self.process = subprocess.Popen(
            [sys.executable, "-m", "regrpo.core.rendering"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        tokens = self.tokenizer.special_tokens_map
        self._answer({"template": template, "special_tokens": tokens}, STARTING)

    def _answer(self, request: object, seconds: float) -> Any:
        """The process's reply. Raises Refused for an error, or for no reply in that time."""
        assert self.process  # noqa: S101  (tells mypy a type, checks no input)
        assert self.process.stdin  # noqa: S101  (tells mypy a type, checks no input)
        assert self.process.stdout  # noqa: S101  (tells mypy a type, checks no input)
        began = time.monotonic()
        killer = threading.Timer(seconds, self.process.kill)
        killer.start()
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            reply = self.process.stdout.readline()
        except BrokenPipeError:
            reply = ""
        finally:
            killer.cancel()
        if reply.endswith("\n"):
            answer = json.loads(reply)
            if "error" not in answer:
                return answer["texts"]
            found = answer["error"]
        elif time.monotonic() - began >= seconds:
            found = f"no end within {seconds:.0f} seconds"
        else:
            found = "that its process ended, as for want of memory"
        # One that was killed, or ended, answers no more: the next call starts another.
        if not reply.endswith("\n"):
            self.__exit__()
            self.process = None
        raise unrenderable(self.where, found)


# --- the process ----------------------------------------------------------------------------------


def main() -> None:
    """Answer requests on standard input until it ends."""
    if sys.platform == "linux":
        processes.end_with_parent()
    limit_memory(MEMORY)
    from transformers.utils.chat_template_utils import render_jinja_template

    settings = json.loads(sys.stdin.readline())
    _reply({"texts": []})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            texts = []
            for conversation in request["conversations"]:
                # As apply_chat_template does.
                messages = [_without_null(message) for message in conversation]
                (text,), _ = render_jinja_template(
                    conversations=[messages],
                    chat_template=settings["template"],
                    add_generation_prompt=request["add_generation_prompt"],
                    **settings["special_tokens"],
                )
                texts.append(text)
                added = len(text) - sum(len(message.get("content", "")) for message in messages)
                if added > LONGEST:
                    raise OverflowError(f"{added:,} characters besides the messages' own")
            _reply({"texts": texts})
        except Exception as error:  # a template may raise anything
            _reply({"error": class_and_message(error)})


def _reply(answer: object) -> None:
    print(json.dumps(answer), flush=True)


def _without_null(message: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in message.items() if value is not None}


def limit_memory(size: int) -> None:
    """Let this process take at most so many bytes of address space."""
    import resource

    with contextlib.suppress(ValueError, OSError):  # a lower limit may be in force
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


if __name__ == "__main__":
    main()
