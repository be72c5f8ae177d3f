"""Text as people see it: what others wrote made safe to show, one format for each kind of number.

Card, pages and terminal say a text or a number alike because they all take it from here.
"""

from __future__ import annotations

import contextlib
import functools
import html
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any
from urllib.parse import unquote

UNKNOWN = "not available"


# --- text that data, models or users wrote --------------------------------------------------------


def visible(text: object, limit: int = 2000) -> str:
    """Text in which nothing hides: control, escape and direction characters are spelled out.

    Newlines stay, tabs become spaces, and at most `limit` characters are shown.
    """
    lines = cut(str(text).expandtabs(4), limit).split("\n")
    shown = "\n".join(one_line(line, limit) for line in lines)
    # An HTML comment that data opens could pose as one of the marks in the model card.
    return cut(shown.replace("<!--", "<! --"), limit)


def one_line(text: object, limit: int = 2000) -> str:
    """As `visible`, on one line, for terminals and table cells: ⏎ is a newline, ⇥ a tab."""
    return cut(cut(str(text), limit).translate(_IN_A_LINE), limit)


def cut(text: str, limit: int) -> str:
    """At most `limit` characters, the last of them an ellipsis where some were left out."""
    if len(text) <= limit:
        return text
    return text[: max(0, limit - 1)] + "…"


WITHOUT_WIDTH = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)
"""Characters that count as printable and show nothing (Unicode's Default_Ignorable_Code_Point)."""


class _Spelling(dict[int, str]):
    """A table for str.translate: what neither prints nor is kept is spelled out, as \\x1b."""

    def __missing__(self, number: int) -> str:
        character = chr(number)
        if character == "\x7f":
            character = "\\u007f"  # json.dumps leaves it as it is, and JSON knows no \\x7f
        elif not character.isprintable() or WITHOUT_WIDTH.match(character):
            character = character.encode("unicode_escape").decode()
        self[number] = character
        return character


_IN_A_LINE = _Spelling({ord("\n"): "⏎", ord("\t"): "⇥"})


# --- secrets --------------------------------------------------------------------------------------

HIDDEN = "***"
OF_SECRETS = re.compile(
    r"((^|_)(TOKEN|SECRET|PASS|PASSPHRASE|(API|ACCESS|PRIVATE|SIGNING)_?KEY)|PASSWORD|PASSWD|_PWD)"
    r"(_|$)(?!.*(FILE|PATH)$)"
)
"""The names of environment variables whose values are secrets."""
OF_SECRETS_IN_QUERY = re.compile("pass|pwd|token|secret|key|sig|cred", re.IGNORECASE)
ADDRESS = re.compile(r"[\w.+-]+://\S+")
USER_IN_ADDRESS = re.compile(r"(?<=://)[^\s/?#@]+@")
SHORTEST = 3
"""Characters of the shortest secret in an address; of one in another variable, twice as many.

A shorter one would be found in too many words.
"""
TOKEN = 16
"""Characters from which on a user without a password is taken for a token."""


def shown_address(address: str) -> str:
    """A URI for people: without user, password, query and fragment.

    If it can be read in two ways (a `/`, `?`, `#` or `@` in a password that is not percent-encoded)
    only its scheme is shown: libraries disagree on where such a password ends.
    """
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address.rpartition("@")[2]
    if rest.startswith("/"):  # a path: there is no host, and so no user
        return f"{scheme}://{unquote(rest.partition('?')[0])}"
    user, _, place = rest.rpartition("@")
    if re.search("[/?#@]", user):
        return f"{scheme}://{HIDDEN}"
    return f"{scheme}://{re.split('[?#]', place)[0]}"


def without_secrets(text: str) -> str:
    """A text without the secrets that the environment holds, and without users in URIs.

    Libraries quote them in messages. A secret is the value of a variable whose name says so
    (HF_TOKEN, AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_PASSWORD, …), and the password and secrets in
    the query of a URI in any variable (MLFLOW_TRACKING_URI, a proxy's).
    """
    addresses, pattern = _known_secrets(tuple(os.environ.items()))
    for address, shown in addresses.items():
        text = text.replace(address, shown)
    if pattern is not None:
        text = pattern.sub(HIDDEN, text)
    return USER_IN_ADDRESS.sub(f"{HIDDEN}@", text)


@functools.lru_cache(maxsize=1)  # asked for every line that is printed
def _known_secrets(
    variables: tuple[tuple[str, str], ...],
) -> tuple[dict[str, str], re.Pattern[str] | None]:
    """{address: what is shown of it} of the variables, and a pattern of all secrets in them."""
    addresses = {}
    hidden: set[str] = set()
    for name, value in variables:
        if OF_SECRETS.search(name.upper()) and len(value) >= 2 * SHORTEST:
            hidden.add(value)
        if ADDRESS.fullmatch(value):
            addresses[value] = shown_address(value)
            hidden |= _secrets_in(value)
    if not hidden:
        return addresses, None
    longest_first = sorted(hidden, key=len, reverse=True)
    # Not inside a word: a short password may be a part of many.
    return addresses, re.compile(
        rf"(?<![^\W_])({'|'.join(map(re.escape, longest_first))})(?![^\W_])"
    )


def _secrets_in(address: str) -> set[str]:
    """The parts of a URI that are secrets, as they stand there and decoded."""
    rest = address.partition("://")[2]
    user, _, place = rest.rpartition("@")
    if rest.startswith("/"):  # a path: there is no host, and so no user
        user, place = "", rest
    if re.search("[/?#@]", user):  # as in `shown_address`
        has_password = ":" in user.partition("/")[0]
        # Else the @ belongs to a path: docker://host/image@sha256:…
        parts = re.split("[/?#@:&=]", rest)[1:] if has_password else []
    else:
        name, _, password = user.partition(":")
        parts = [password or name] if password or len(name) >= TOKEN else []
        parts.append(place.partition("#")[2])
        for one in re.split("[?&#]", place)[1:]:
            name, _, value = one.partition("=")
            if OF_SECRETS_IN_QUERY.search(name):
                parts.append(value)
    decoded = [unquote(part) for part in parts]
    return {part for part in parts + decoded if len(part) >= SHORTEST}


# --- terminals and logs ---------------------------------------------------------------------------


class Shown:
    """A text stream in which nothing hides, acts on a terminal or is a known secret."""

    def __init__(self, stream: Any, kept: str = "\n\t") -> None:
        self._stream = stream
        self._spelling = _Spelling({ord(character): character for character in kept})

    def write(self, text: str) -> int:
        self._stream.write(without_secrets(text).translate(self._spelling))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def shown_output(progress: bool = False) -> Iterator[None]:
    """Let all that Python code prints here, warns of and logs go through `Shown`.

    Every command, stage and worker and the tracker stand in it, so that no caller can forget it.
    With `progress`, bars on standard error may go back to the start of their line.
    """
    errors = Shown(sys.stderr, "\n\t\r" if progress else "\n\t")
    with contextlib.redirect_stdout(Shown(sys.stdout)), contextlib.redirect_stderr(errors):
        yield


# --- the same, where it becomes markup ------------------------------------------------------------


def prose(text: object, limit: int = 2000) -> str:
    """Text as Markdown that is no markup: on one line, every character of markup escaped."""
    line = html.escape(visible(" ".join(str(text).split()), limit), quote=False)
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", line)


def code(text: object, limit: int = 300) -> str:
    """A code span of Markdown that holds in a sentence and in a table cell, whatever the text."""
    line = one_line(text, limit)
    if line and line == line.strip() and not set(line) & set("`|\\"):
        return f"`{line}`"
    escaped = (c if c.isalnum() or c == " " else f"&#{ord(c)};" for c in line)
    return f"<code>{''.join(escaped)}</code>"


def fence(text: str, language: str = "") -> str:
    """A fenced block of Markdown, its fence longer than any run of backticks in the text."""
    longest = max(map(len, re.findall(r"`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{text}\n{ticks}"


def mermaid(text: object, limit: int = 60) -> str:
    """A label in a Mermaid diagram; what its grammar might read becomes a character code."""
    line = one_line(text, limit)
    return re.sub(r"[^\w ./:+-]", lambda found: f"#{ord(found[0])};", line)


# --- numbers --------------------------------------------------------------------------------------
# `kind` is that of a metric: shares ("binary") are said in percent, differences of them in
# percentage points, measures ("continuous") with four digits, other numbers with three decimals.


def number(value: float | None, digits: int = 3) -> str:
    """Thousands separated; a fraction with `digits` decimals, a small one with `digits` digits."""
    if value is None:
        return UNKNOWN
    if isinstance(value, int):
        return f"{value:,}"
    if 0 < abs(value) < 0.01:
        return f"{value:.{digits}g}"
    return f"{value:,.{digits}f}"


def or_dash(value: float | str | None, form: str = "") -> str:
    """The value in a format of Python's, or a dash for None."""
    if value is None:
        return "—"
    return format(value, form)


def count(n: int, noun: str, plural: str | None = None) -> str:
    """1 run, 1,200 runs."""
    if n == 1:
        return f"1 {noun}"
    return f"{n:,} {plural or noun + 's'}"


def some(names: Sequence[str], most: int = 3) -> str:
    """The first names, and how many more there are: a, b, c and 14 more."""
    shown = ", ".join(names[:most])
    left = len(names) - most
    return f"{shown} and {left:,} more" if left > 0 else shown


def gigabytes(size: float) -> str:
    """Bytes as disks count them: 8.0 GB."""
    return f"{size / 1e9:.1f} GB"


def score(value: float, kind: str | None = None) -> str:
    """A result: 28.0 %, or a measure's number."""
    return f"{_figure(value, kind)} %" if kind == "binary" else _figure(value, kind)


def signed(difference: float, kind: str | None = None) -> str:
    """A difference with its sign: +68.7 points."""
    figure = _figure(difference, kind, "+")
    return f"{figure} points" if kind == "binary" else figure


def size(difference: float | None, kind: str | None = None) -> str:
    """A difference without sign: 4.9 points."""
    if difference is None:
        return UNKNOWN
    figure = _figure(difference, kind)
    return f"{figure} points" if kind == "binary" else figure


def interval(ci95: Sequence[float], kind: str | None = None, *, sign: bool = False) -> str:
    """A confidence interval: [63.3, 74.0]; with `sign`, that of a difference: [+63.3, +74.0]."""
    low, high = (_figure(bound, kind, "+" if sign else "") for bound in ci95)
    return f"[{low}, {high}]"


def estimate(value: float, ci95: Sequence[float], kind: str | None = None) -> str:
    """A result with its confidence interval: 28.0 % [23.2, 33.3]."""
    return f"{score(value, kind)} {interval(ci95, kind)}"


def change(difference: float, ci95: Sequence[float], kind: str | None = None) -> str:
    """A difference with its confidence interval: +68.7 points [+63.3, +74.0]."""
    return f"{signed(difference, kind)} {interval(ci95, kind, sign=True)}"


def _figure(value: float, kind: str | None, sign: str = "") -> str:
    if kind == "binary":
        return f"{100 * value:{sign}.1f}"
    if kind == "continuous":
        return f"{value:{sign}.4g}"
    return f"{value:{sign}.3f}"


def memory(size: int) -> str:
    """Bytes: 512.0 MiB, 1.25 GiB, 80.0 GiB."""
    if size < 2**30 / 10:
        return f"{size / 2**20:.1f} MiB"
    digits = 1 if size >= 10 * 2**30 else 2
    return f"{size / 2**30:.{digits}f} GiB"


def duration(seconds: float) -> str:
    """Seconds, to be read at a glance: 0.25 s, 42 s, 12 min, 3.5 h; "" for none."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    if seconds >= 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.2g} s" if seconds else ""


def p_value(p: float | None) -> str:
    """A p-value alone, as in a table: 0.031, < 0.001."""
    if p is not None and p < 0.001:
        return "< 0.001"
    return or_dash(p, ".3f")


def p_equals(p: float) -> str:
    """A p-value in a sentence: p = 0.031, p < 0.001."""
    return f"p {p_value(p)}" if p < 0.001 else f"p = {p_value(p)}"


def distinguishable(ci95: Sequence[float]) -> str:
    """Whether a difference's confidence interval leaves zero out, in words."""
    if ci95[0] <= 0 <= ci95[1]:
        return "not distinguishable from zero"
    return "distinguishable from zero"


def ranges(numbers: Iterable[int], most: int = 8) -> str:
    """Whole numbers as ranges: 3–5, 9; of more than `most` ranges the middle is left out."""
    # Neighbours have the same distance to their place in the sorted list.
    runs = groupby(enumerate(sorted(set(numbers))), key=lambda item: item[1] - item[0])
    shown = []
    for _, run in runs:
        members = [value for _, value in run]
        first, last = members[0], members[-1]
        shown.append(str(first) if first == last else f"{first}–{last}")
    if len(shown) > most:
        shown = [*shown[: most - 2], "…", shown[-1]]
    return ", ".join(shown)
