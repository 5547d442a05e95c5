"""Plots of the demos: overlaid curves of the variants, and bars of their final numbers."""

from __future__ import annotations

from functools import cache
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import AutoLocator, MaxNLocator

from mlflow_tfmon import load_run


def panels(count: int) -> tuple[Figure, list[Any]]:
    """A figure with `count` axes in a row."""
    figure = Figure(figsize=(4.2 * count, 3.4), dpi=100, layout="constrained")
    return figure, list(np.atleast_1d(figure.subplots(1, count)))


def draw_epochs(axes: Any, results: pd.DataFrame, metric: str, log: bool = False) -> None:
    """Draws an epoch metric of each variant: the mean over its seeds, from the lowest to the highest shaded.

    Args:
        axes: where.
        results: as `train_variants` returns them.
        metric: its name, such as "val_loss".
        log: whether the scale is logarithmic.
    """
    for variant, rows in results.groupby("variant", sort=False):
        seeds = pd.concat([_epochs(run_id)[metric] for run_id in rows.run_id], axis=1)
        (line,) = axes.plot(seeds.index, seeds.mean(axis=1), label=variant, linewidth=1.3)
        axes.fill_between(
            seeds.index, seeds.min(axis=1), seeds.max(axis=1), color=line.get_color(), alpha=0.15, lw=0
        )
    if log:
        axes.set_yscale("log")
    axes.set(title=metric, xlabel="epoch")
    axes.legend(fontsize=8)


@cache
def _epochs(run_id: str) -> pd.DataFrame:
    return load_run(run_id).epochs


def draw_finals(axes: Any, results: pd.DataFrame, number: str) -> None:
    """Draws a number that the variants came to: each seed as a dot, the mean as a line with its value."""
    groups = results.groupby("variant", sort=False)[number]
    for place, (_, values) in enumerate(groups):
        axes.plot([place] * len(values), values, ".", color=f"C{place}")
        axes.hlines(values.mean(), place - 0.3, place + 0.3, color=f"C{place}")
        axes.annotate(f"{values.mean():.3g}", (place + 0.05, values.mean()), fontsize=8, va="bottom")
    axes.set_xticks(range(len(groups)), groups.groups, fontsize=8)
    axes.set_title(number)
    axes.margins(x=0.1, y=0.12)


def log(figure: Figure, name: str) -> None:
    """Logs a figure to the active run, as `<name>.png`; ticks are at whole epochs."""
    for axes in figure.axes:
        if axes.get_xlabel() == "epoch" and isinstance(axes.xaxis.get_major_locator(), AutoLocator):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    mlflow.log_figure(figure, f"{name}.png")
