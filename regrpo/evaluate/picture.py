"""comparison.png, for the card and the reports; the same numbers give the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from regrpo.core import files

COLOURS = {"base": "#999999", "sft": "#E69F00", "grpo": "#0072B2"}
"""Okabe and Ito's colour-blind safe grey, orange and blue."""
BESIDE = ("main", "sampled", "control", "format")
"""The roles of the tasks that are shown beside the headline."""
MOST_TASKS = 8
"""Tasks that are shown where there is no headline."""

Json = Mapping[str, Any]


def draw(metrics: Json, path: Path) -> None:
    """Draw metrics.json's content: the headline, and beside it sampled answers and controls."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    matplotlib.rcdefaults()  # a user's own matplotlibrc must not change the bytes
    tasks, headline = metrics["tasks"], metrics["headline"]
    main, beside = _chosen(tasks, headline)
    alike = all(tasks[name]["kind"] == "binary" for name in main + beside)
    if alike:  # shares fit one axis
        panels = [names for names in (main, beside) if names]
        widths = [len(main) + 0.5, len(beside)] if beside else [1]
    else:  # other measures have each their own scale
        panels = [[name] for name in main + beside]
        widths = [1] * len(panels)
    inches_per_task = 1.75 if alike else 2.3
    figure, axes = plt.subplots(
        1,
        len(panels),
        figsize=(1.6 + inches_per_task * len(main + beside), 4.2),
        width_ratios=widths,
        layout="constrained",
        squeeze=False,
        sharey=alike,
    )
    for axis, panel in zip(axes[0], panels, strict=True):
        is_short = alike and panel is not panels[0]
        labels = [_short(name) if is_short else _label(name, tasks[name]) for name in panel]
        _bars(axis, [tasks[name] for name in panel], labels)
    title = "Headline" if headline else "Tasks"
    axes[0][0].set_title(f"{title}, with 95 % CI", fontsize=11, loc="left")
    if beside and alike:
        axes[0][1].set_title("Beside it: sampled answers and controls", fontsize=11, loc="left")
    elif beside:
        axes[0][len(main)].set_title("Beside it", fontsize=11, loc="left")
    if alike:
        axes[0][0].set_ylim(0, 1.08)
        axes[0][0].set_yticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png", metadata={"Software": None})
    plt.close(figure)


def _chosen(tasks: Json, headline: str | None) -> tuple[list[str], list[str]]:
    """The tasks that come first, and those beside them."""
    main = [name for name, task in tasks.items() if task["role"] not in BESIDE][:MOST_TASKS]
    if headline:
        main = [headline]
    beside = [name for name, task in tasks.items() if task["role"] in BESIDE]
    beside.sort(key=lambda name: (BESIDE.index(tasks[name]["role"]), name))
    if not main:
        return beside, []
    return main, beside


def _label(name: str, task: Json) -> str:
    return f"{name}\n({task['metric']}, n = {task['n']})"


def _short(name: str) -> str:
    """A task's name in a narrow column."""
    short = name.removeprefix("heldout_")
    return "in the asked\nformat" if short == "format" else short.replace("_", "\n")


def _bars(axis: Any, tasks: Sequence[Json], labels: Sequence[str]) -> None:
    """A group of bars per task, one for each model, with its interval and its value on top."""
    models = [model for model in COLOURS if model in tasks[0]["models"]]
    for number, model in enumerate(models):
        shift = (number - (len(models) - 1) / 2) * 0.29
        places = [place + shift for place in range(len(tasks))]
        results = [task["models"][model] for task in tasks]
        values = [one["value"] for one in results]
        below = [max(0.0, one["value"] - one["ci95"][0]) for one in results]
        above = [max(0.0, one["ci95"][1] - one["value"]) for one in results]
        axis.bar(places, values, width=0.27, color=COLOURS[model], label=model)
        axis.errorbar(
            places,
            values,
            yerr=[below, above],
            fmt="none",
            ecolor="black",
            elinewidth=1.1,
            capsize=2.5,
        )
        for place, one in zip(places, results, strict=True):
            axis.annotate(
                f"{one['value']:.2f}",
                (place, one["ci95"][1]),
                (0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
    axis.set_xticks(range(len(tasks)), labels, fontsize=9)
    axis.grid(axis="y", alpha=0.25)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
