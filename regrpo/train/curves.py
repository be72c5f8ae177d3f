"""curves.png: reward, dev accuracy, length and entropy over the steps of a GRPO run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regrpo.core import files


@dataclass(frozen=True)
class Panel:
    """One chart: its title, what its y axis counts, and its lines ({column of history.csv: name}).

    `note` stands in brackets after the title where the axis has no label.
    """

    title: str
    unit: str
    lines: Mapping[str, str]
    note: str = ""


PANELS = (
    Panel(
        "Reward and dev accuracy",
        "share",
        {"reward": "reward (train)", "dev_accuracy": "dev accuracy (greedy)"},
    ),
    Panel("Completion length", "tokens", {"completions/mean_length": "mean"}, "tokens"),
    Panel("Entropy", "nats per token", {"entropy": "mean"}, "nats per token"),
    Panel("Gradient norm", "norm, before clipping", {"grad_norm": "norm"}, "before clipping"),
)
COLOURS = ("#0072B2", "#D55E00")  # Okabe and Ito's colour-blind safe blue and vermilion


def draw(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draw the panels that the history has metrics for; the same history gives the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    # A user's own matplotlibrc must not change the bytes.
    matplotlib.rcdefaults()
    figure, axes = plt.subplots(2, 2, figsize=(9, 5.6), layout="constrained", sharex=True)
    for axis, panel in zip(axes.flat, PANELS, strict=True):
        _draw_panel(axis, panel, rows)
    for axis in axes[1]:
        axis.set_xlabel("optimizer step")
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png", metadata={"Software": None})
    plt.close(figure)


def _draw_panel(axis: Any, panel: Panel, rows: Sequence[Mapping[str, float]]) -> None:
    lowest = 0.0
    for colour, (metric, label) in zip(COLOURS, panel.lines.items(), strict=False):
        logged = [row for row in rows if metric in row]
        if not logged:
            continue
        values = [row[metric] for row in logged]
        lowest = min(lowest, *values)
        axis.plot(
            [row["step"] for row in logged],
            values,
            color=colour,
            label=label,
            marker="o" if len(logged) < 20 else None,
            markersize=4,
            linewidth=1.6,
        )
    title = f"{panel.title} ({panel.note})" if panel.note else panel.title
    axis.set_title(title, fontsize=10, loc="left")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    # A classifier's reward may be negative.
    if lowest >= 0:
        axis.set_ylim(bottom=0)
    if len(panel.lines) > 1:
        axis.legend(frameon=False, fontsize=9, loc="lower right")
