"""SVG elements, written as text: how pages' drawings escape, name and place what they show.

Colours and fonts are classes that `templates/page.html.j2` styles, so that a drawing follows
light, dark and print. Every word is escaped here: a drawing may stand in a page as it is.
"""

from __future__ import annotations

import html

from regrpo.core.text import one_line

LONGEST = 20_000
"""Characters of a text; the description of a drawing, which has many numbers, is the longest."""


def document(
    css: str, title: str, width: int, height: int, inner: str, words: str = "", **attributes: str
) -> str:
    """A whole drawing of that many units, with its name and what it shows for screen readers."""
    name = element("title", content=escaped(title))
    if words:
        name += element("desc", content=escaped(words))
    view = f"0 0 {width} {height}"
    return element("svg", css, f"{name}\n{inner}\n", role="img", viewBox=view, **attributes)


def text(css: str, x: float, y: float, content: str) -> str:
    """Words at a point."""
    return element("text", css, escaped(content), x=x, y=y)


def path(css: str, *commands: float | str) -> str:
    """A line by path commands and coordinates; pairs that follow M's first are lined to."""
    return element("path", css, d=" ".join(map(_shown, commands)))


def element(tag: str, css: str = "", content: str = "", **attributes: float | str) -> str:
    """An element with its class and attributes; `content` is markup."""
    start = f"<{tag}"
    if css:
        start += f' class="{css}"'
    for name, value in attributes.items():
        start += f' {name}="{_shown(value)}"'
    if not content:
        return f"{start}/>"
    return f"{start}>{content}</{tag}>"


def _shown(value: float | str) -> str:
    """A coordinate to a tenth of a pixel, which the eye cannot part; other values as they are."""
    if isinstance(value, str):
        return value
    return f"{value:.1f}".removesuffix(".0")


def escaped(content: str) -> str:
    """Text on one line, without markup and with nothing hidden: XML forbids some controls."""
    return html.escape(one_line(content, LONGEST))


def cut_start(content: str, width: int) -> str:
    """At most `width` characters, the last ones: of a path the file's name."""
    if len(content) <= width:
        return content
    return f"…{content[-width + 1 :]}"
