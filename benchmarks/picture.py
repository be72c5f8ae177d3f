"""The ratios of benchmarks/results.json as a picture: benchmarks/results.svg."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("results.svg")
INCHES_A_ROW = 0.3
OURS, BUSY = "#1f6f8b", "#b0b0b0"


def draw(rows: Sequence[Mapping[str, Any]], path: Path = FILE) -> None:
    """Each ratio with its least and greatest, on a logarithmic axis, and a line at 1.

    What was measured on a busy machine is grey. Rows without a peer are left out.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "regrpo"  # the same figures, the same bytes
    from matplotlib import pyplot

    shown = [row for row in rows if row["ratio"] is not None]
    figure, axis = pyplot.subplots(figsize=(9, 1.2 + INCHES_A_ROW * len(shown)))
    for place, row in enumerate(shown):
        colour = BUSY if row["busy"] else OURS
        axis.plot([row["min"], row["max"]], [place, place], color=colour, linewidth=3, alpha=0.4)
        axis.plot(row["ratio"], place, "o", color=colour, markersize=5)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xscale("log")
    ticks = ticks_between([row["min"] for row in shown], [row["max"] for row in shown])
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.set_yticks(range(len(shown)), [f"{row['subject']}: {row['what']}" for row in shown])
    axis.tick_params(axis="y", labelsize=8)
    axis.invert_yaxis()
    axis.grid(axis="x", linewidth=0.3)
    axis.set_xlabel("ours / peer (median of rounds, least to greatest; logarithmic)")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    pyplot.close(figure)


COARSE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
FINE = (0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.5, 2)
"""For ratios that all lie within these."""


def ticks_between(lows: Sequence[float], highs: Sequence[float]) -> list[float]:
    """The round numbers that lie between the extremes, and one beyond each of these."""
    low, high = min([*lows, 1.0]), max([*highs, 1.0])
    ticks = FINE if FINE[0] < low and high < FINE[-1] else COARSE
    below = [tick for tick in ticks if tick < low][-1:]
    above = [tick for tick in ticks if tick > high][:1]
    return below + [tick for tick in ticks if low <= tick <= high] + above
