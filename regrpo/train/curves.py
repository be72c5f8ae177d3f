"""curves.png: reward, dev accuracy, length and entropy over the steps of a GRPO run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

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

    matplotlib.rcdefaults()  # a user's own matplotlibrc must not change the bytes
    figure, axes = plt.subplots(2, 2, figsize=(9, 5.6), layout="constrained", sharex=True)
    for axis, (title, lines) in zip(axes.flat, PANELS, strict=True):
        for colour, (metric, label) in zip(COLOURS, lines, strict=False):
            points = [(row["step"], row[metric]) for row in rows if metric in row]
            if points:
                marker = "o" if len(points) < 20 else None
                axis.plot(
                    *zip(*points, strict=True),
                    color=colour,
                    label=label,
                    marker=marker,
                    markersize=4,
                    linewidth=1.6,
                )
        axis.set_title(title, fontsize=10, loc="left")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        lowest = min(
            (row[metric] for row in rows for metric, _ in lines if metric in row), default=0
        )
        if lowest >= 0:  # a classifier's reward may be negative
            axis.set_ylim(bottom=0)
        if len(lines) > 1:
            axis.legend(frameon=False, fontsize=9, loc="lower right")
    for axis in axes[1]:
        axis.set_xlabel("optimizer step")
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png", metadata={"Software": None})
    plt.close(figure)
