"""What all pages share: short texts, and colours that can be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from regrpo.report import pages


def test_text_keeps_its_lines_few() -> None:
    assert pages._brief("a\n" * 50, 1000).count("\n") == 12
    assert pages._brief("x" * 50, 10) == "x" * 9 + "…"


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance."""
    digits = colour.lstrip("#")
    digits = digits if len(digits) == 6 else "".join(2 * digit for digit in digits)
    channels = (int(digits[index : index + 2], 16) / 255 for index in (0, 2, 4))
    red, green, blue = (
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_aa_contrast_and_chart_lines_stand_out(scheme: str) -> None:
    style = (Path(pages.__file__).parent / "templates/page.html.j2").read_text()
    blocks = re.findall(r":root \{\s*(--page[^}]*--c5[^}]*)\}", style)
    assert len(blocks) == 2
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", blocks[scheme == "dark"]))

    def contrast(one: str, other: str) -> float:
        dark, light = sorted((luminance(colours[one]), luminance(colours[other])))
        return (light + 0.05) / (dark + 0.05)

    for ground in ("page", "card"):
        for ink in ("ink", "soft", "link", "good", "bad", "unsure"):
            assert contrast(ink, ground) >= 4.5, (ink, ground)
        for line in ("c0", "c1", "c2", "c3", "c4", "c5"):
            assert contrast(line, ground) >= 3, (line, ground)
    for kind in ("good", "bad", "unsure"):
        assert min(contrast(kind, f"{kind}-bg"), contrast("ink", f"{kind}-bg")) >= 4.5
