"""curves.png: reward, dev accuracy, length and entropy over the steps of a GRPO run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regrpo.core import files

PANELS = (
    (
        "Reward and dev accuracy",
        (("reward", "reward (train)"), ("dev_accuracy", "dev accuracy (greedy)")),
    ),
    ("Completion length (tokens)", (("completions/mean_length", "mean"),)),
    ("Entropy (nats per token)", (("entropy", "mean"),)),
    ("Gradient norm (before clipping)", (("grad_norm", "norm"),)),
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
    for axis, (title, lines) in zip(axes.flat, PANELS, strict=True):
        _draw_panel(axis, title, lines, rows)
    for axis in axes[1]:
        axis.set_xlabel("optimizer step")
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png", metadata={"Software": None})
    plt.close(figure)


def _draw_panel(
    axis: Any, title: str, lines: Sequence[tuple[str, str]], rows: Sequence[Mapping[str, float]]
) -> None:
    """One line per (metric, label)."""
    lowest = 0.0
    for colour, (metric, label) in zip(COLOURS, lines, strict=False):
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
    axis.set_title(title, fontsize=10, loc="left")
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    # A classifier's reward may be negative.
    if lowest >= 0:
        axis.set_ylim(bottom=0)
    if len(lines) > 1:
        axis.legend(frameon=False, fontsize=9, loc="lower right")
