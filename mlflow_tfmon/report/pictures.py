"""Pictures of the largest kernels' histograms for MLflow's image viewer, where a slider goes through the steps."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from mlflow_tfmon.recorded import RecordedRun
from mlflow_tfmon.report.layers import largest, over_time
from mlflow_tfmon.report.panels import Cells

_VARIABLES, _PICTURES, _RIDGES = 4, 4, 10
_REFUSED = re.compile(r"[^\w\-. /]")  # in the key of an image
_FEWEST = 4  # steps with histograms, below which there is nothing to see
_SIZE = 8.0, 4.5  # inches


def pictures(run: RecordedRun) -> Iterator[tuple[str, int, Any]]:
    """The pictures of a run: for each of its 4 largest kernels, at 4 steps, the histograms until then as ridges.

    Yields:
        The key for `mlflow.log_image`, the step, and the picture (of PIL).
    """
    table = run.histograms
    if table.empty or table.step.nunique() < _FEWEST:
        return
    for name in largest(run, _VARIABLES):
        found = [
            over_time(name, kind, rows)
            for kind in ("weight", "gradient")
            if len(rows := table[(table.variable == name) & (table.kind == kind)]) >= _FEWEST
        ]
        if not found:
            continue
        count = min(len(one.steps) for one in found)
        for last in np.unique(np.linspace(0, count - 1, _PICTURES + 1).round().astype(int))[1:].tolist():
            yield f"histograms/{_REFUSED.sub('_', name)}", found[0].steps[last], _drawn(name, found, last)


def _drawn(name: str, found: list[Cells], last: int) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=_SIZE, dpi=90)
    figure.subplots_adjust(
        left=0.09, right=0.98, bottom=0.08, top=0.86
    )  # a layout engine takes twice the time
    figure.suptitle(f"{name}, until step {found[0].steps[last]}", fontsize=11)
    for axes, title, cells in zip(
        np.atleast_1d(figure.subplots(1, len(found))), ("weights", "gradient"), found, strict=False
    ):
        _ridges(axes, title, cells, last)
    drawn = io.BytesIO()
    FigureCanvasAgg(figure).print_png(drawn)
    return Image.open(drawn)


def _ridges(axes: Any, title: str, cells: Cells, last: int) -> None:
    shares = np.zeros((len(cells.steps), len(cells.rows)))
    for column, row, share in cells.cells:
        shares[column, row] = share
    shares = shares[:, 1:-1]  # the outermost classes also hold what lies beyond
    values = [float(row) for row in cells.rows[1:-1]]
    shown = np.unique(np.linspace(0, last, min(last + 1, _RIDGES)).round().astype(int)).tolist()
    height = 2.5 / max(1e-12, float(shares[shown].max()))
    for place, column in enumerate(shown):
        base = len(shown) - place  # the latest is in front
        newest = column == shown[-1]
        axes.fill_between(
            values, base, base + height * shares[column], color="#d55e00" if newest else "#56b4e9", alpha=0.75,
            linewidth=0.8, edgecolor="#1c2330", zorder=place,
        )  # fmt: skip
    labelled = shown[:: max(1, len(shown) // 6)]
    axes.set_yticks(
        [len(shown) - shown.index(c) for c in labelled], [f"step {cells.steps[c]}" for c in labelled]
    )
    axes.set_title(title, fontsize=10)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
