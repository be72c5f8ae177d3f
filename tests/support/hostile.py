"""A megabyte of each text that is hard on somebody, and calls in a process that can be killed."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from regrpo.core.errors import RegrpoError

MEGABYTE = 1_000_000


def repeated(piece: str) -> str:
    return piece * (MEGABYTE // len(piece.encode()))


TEXTS = {
    "answers opened": repeated("<answer>"),
    "answers of open integers": repeated("<answer>1,111"),
    "an answer of spaces": "<answer>" + repeated(" "),
    "an answer of digits": "<answer>" + repeated("1"),
    "an answer and spaces": "<answer>1" + repeated(" \n"),
    "a long integer with separators": "<answer>1" + repeated(",111"),
    "thoughts opened": repeated("<think>"),
    "thoughts closed": repeated("</think>"),
    "a thought without an end": "<think>" + repeated("a"),
    "a thought and spaces": "<think></think>" + repeated(" "),
    "marks of an answer": repeated("####"),
    "boxes opened": repeated(r"\boxed{"),
    "a box of braces": r"\boxed{" + repeated("{"),
    "hashes": repeated("#"),
    "lines with answers": repeated("#### 1\n"),
    "calculations opened": repeated("<<"),
    "angles": repeated("<"),
    "combining marks": "a" + repeated("\u0315\u0300"),
    "combining marks in two runs": "a" + "\u0315" * 200_000 + "\u0300" * 200_000,
    "marks only after NFKC": repeated("\u0300\uff9e"),
    "no spaces": repeated("字"),
    "no spaces, then a word": repeated("字") + " bbbb",
    "ligatures": repeated("\ufdfa"),
    "numbers with points": repeated("1."),
    "a sum without an end": repeated("1+") + "x",
    "a sum": "1" + repeated("+1"),
    "a sum of long numbers": "1" + repeated("+" + "1" * 1001),
    "zeros behind a point": "1." + repeated("0") + "x",
    "spaces": repeated(" "),
    "newlines": repeated("\n"),
    "escapes": repeated("\x1b"),
    "turns of lists": "[{'role':" + repeated("["),
    "turns of parentheses": "[{'role':" + repeated("(") + "}]",
    "turns of signs": "[{'role':" + repeated("-") + "1}]",
    "turns of sums": "[{'role':" + repeated("1+") + "1}]",
    "turns of objects": '[{"role":' + repeated('{"a":'),
    "brackets apart": repeated("[ "),
    "words apart": repeated("a'"),
}


def ended(call: Callable[[], object], seconds: int = 10, memory: int | None = None) -> str:
    """What a call says that runs in a process of its own: "" or the message of an error of ours.

    Fails where it takes more seconds of a processor, is ended by the system, or raises anything
    else. `memory` bounds the bytes of address space that it may take besides what there is.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _answer(call, writer, seconds, memory)
    os.close(writer)
    try:
        # A busy machine gives little of a processor.
        readable, _, _ = select.select([reader], [], [], 20 * seconds)
        said = b""
        while readable and (chunk := os.read(reader, 2**16)):
            said += chunk
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    if not said:
        pytest.fail(f"no end within {seconds} s of a processor, or killed by the system")
    message, is_ours = json.loads(said)
    assert is_ours, message
    return str(message)


def _answer(call: Callable[[], object], writer: int, seconds: int, memory: int | None) -> None:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    used = int(usage.ru_utime + usage.ru_stime)
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, used + seconds))
    if memory:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + memory
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    said = ("", True)
    try:
        call()
    except RegrpoError as error:
        said = (str(error), True)
    except BaseException as error:
        said = (f"{type(error).__name__}: {error}"[:2000], False)
    os.write(writer, json.dumps(said).encode())
    os._exit(0)
