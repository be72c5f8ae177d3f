"""Pictures for the card and the reports; the same numbers give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regrpo.core import files

COLOURS = {"base": "#999999", "sft": "#E69F00", "grpo": "#0072B2"}
"""Okabe and Ito's colour-blind safe grey, orange and blue."""
BESIDE = ("main", "sampled", "control", "format")
"""The roles of the tasks that are shown beside the headline."""


def draw(metrics: Mapping[str, Any], path: Path) -> None:
    """comparison.png from metrics.json's content.

    The headline, sampled answers and controls beside it, 95 % CIs.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    matplotlib.rcdefaults()  # a user's own matplotlibrc must not change the bytes
    tasks, headline = metrics["tasks"], metrics["headline"]
    main = (
        [headline]
        if headline
        else [name for name in tasks if tasks[name]["role"] not in BESIDE][:8]
    )
    beside = sorted(
        (name for name, task in tasks.items() if task["role"] in BESIDE),
        key=lambda name: (BESIDE.index(tasks[name]["role"]), name),
    )
    if not main:
        main, beside = beside, []
    alike = all(tasks[name]["kind"] == "binary" for name in (*main, *beside))
    # Shares fit one axis; other measures have each their own scale, hence an axis of their own.
    panels = (
        [one for one in (main, beside) if one] if alike else [[name] for name in (*main, *beside)]
    )
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(1.6 + (1.75 if alike else 2.3) * (len(main) + len(beside)), 4.2),
        width_ratios=[len(main) + 0.5, len(beside)] if alike and beside else [1] * len(panels),
        layout="constrained",
        squeeze=False,
        sharey=alike,
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        full = [f"{name}\n({tasks[name]['metric']}, n = {tasks[name]['n']})" for name in panel]
        labels = full if panel[0] in main or not alike else [_wrapped(name) for name in panel]
        _bars(axis, [tasks[name] for name in panel], labels)
    axes[0][0].set_title(
        f"{'Headline' if headline else 'Tasks'}, with 95 % CI", fontsize=11, loc="left"
    )
    if beside:
        told = "Beside it: sampled answers and controls" if alike else "Beside it"
        axes[0][1 if alike else len(main)].set_title(told, fontsize=11, loc="left")
    if alike:
        axes[0][0].set_ylim(0, 1.08)
        axes[0][0].set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png", metadata={"Software": None})
    plt.close(figure)


def _bars(axis: Any, tasks: list[Mapping[str, Any]], labels: list[str]) -> None:
    models = [model for model in COLOURS if model in tasks[0]["models"]]
    for shift, model in enumerate(models):
        places = [place + (shift - (len(models) - 1) / 2) * 0.29 for place in range(len(tasks))]
        found = [task["models"][model] for task in tasks]
        values = [one["value"] for one in found]
        errors = [
            [max(0.0, one["value"] - one["ci95"][0]) for one in found],
            [max(0.0, one["ci95"][1] - one["value"]) for one in found],
        ]
        axis.bar(places, values, width=0.27, color=COLOURS[model], label=model)
        axis.errorbar(
            places, values, yerr=errors, fmt="none", ecolor="black", elinewidth=1.1, capsize=2.5
        )
        for place, one in zip(places, found, strict=True):
            top = (place, one["ci95"][1])
            axis.annotate(
                f"{one['value']:.2f}",
                top,
                (0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
    axis.set_xticks(range(len(tasks)), labels, fontsize=9)
    axis.grid(axis="y", alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _wrapped(name: str) -> str:
    short = name.removeprefix("heldout_").replace("_", "\n")
    return "in the asked\nformat" if short == "format" else short
