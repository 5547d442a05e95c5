"""Images of histograms for MLflow's image viewer, which has a step slider."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from mlflow_tfmon.reading.recorded import RecordedRun
from mlflow_tfmon.report.histograms import NORMS, norms_over_time, over_time
from mlflow_tfmon.report.layers import largest
from mlflow_tfmon.report.panels import Cells
from mlflow_tfmon.stream.bins import KINDS

_VARIABLES, _PICTURES, _RIDGES = 4, 3, 10
_REFUSED = re.compile(r"[^\w\-. /]")  # in the key of an image
_FEWEST = 4  # steps with histograms, below which there is nothing to see
_SIZE, _DPI = (6.4, 6.4), 110  # inches; MLflow's cards are square
_WHOLE = 0  # the step of the slider with which MLflow's cards begin (3.17)


def pictures(run: RecordedRun) -> Iterator[tuple[str, int, Any]]:
    """The pictures of a run, as ridges: each of its 4 largest kernels, and the norms of all variables.

    There is one at each of 3 steps of the training, of the histograms until then; the last of them, which is of the
    whole training, is at step 0 as well, where MLflow's slider stands at first.

    Yields:
        The key for `mlflow.log_image`, the step, and the picture (of PIL).
    """
    table = run.histograms
    for name in largest(run, _VARIABLES) if len(table) else ():
        rows = [(kind, table[(table.variable == name) & (table.kind == kind)]) for kind in KINDS]
        found = [over_time(name, kind, one) for kind, one in rows if one.step.nunique() >= _FEWEST]
        yield from _series(f"histograms/{_REFUSED.sub('_', name)}", name, found, ("weights", "gradient"))
    norms = [one for kind in NORMS for one in norms_over_time(run, kind)[:1] if len(one.steps) >= _FEWEST]
    yield from _series("histograms/norms of all variables", "all variables", norms, tuple(NORMS.values()))


def _series(
    key: str, name: str, found: list[Cells], titles: tuple[str, ...]
) -> Iterator[tuple[str, int, Any]]:
    if not found:
        return
    steps = found[0].steps
    ends = np.unique(np.linspace(0, len(steps) - 1, _PICTURES + 1).round().astype(int))[1:].tolist()
    drawn = [(steps[at], _drawn(name, found, titles, steps[at])) for at in ends]
    for step, picture in [(_WHOLE, drawn[-1][1]), *drawn]:
        yield key, step, picture


def _drawn(name: str, found: list[Cells], titles: tuple[str, ...], last: int) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=_SIZE, dpi=_DPI)
    # A layout engine takes twice the time.
    figure.subplots_adjust(left=0.16, right=0.97, bottom=0.06, top=0.89, hspace=0.3)
    figure.suptitle(f"{name}, until step {last}", fontsize=13)
    rows = np.atleast_1d(figure.subplots(len(found), 1))
    for axes, said, cells in zip(rows, titles, found, strict=False):
        _ridges(axes, said, cells, sum(step <= last for step in cells.steps) - 1)
    drawn = io.BytesIO()
    FigureCanvasAgg(figure).print_png(drawn)
    return Image.open(drawn)


def _ridges(axes: Any, title: str, cells: Cells, last: int) -> None:
    shares = np.zeros((len(cells.steps), len(cells.rows)))
    for column, row, share in cells.cells:
        shares[column, row] = share
    values = [float(row) for row in cells.rows]
    if not cells.logarithmic:  # the outermost bins also hold what lies beyond
        shares, values = shares[:, 1:-1], values[1:-1]
    shown = np.unique(np.linspace(0, last, min(last + 1, _RIDGES)).round().astype(int)).tolist()
    height = 2.5 / max(1e-12, float(shares[shown].max()))
    for place, column in enumerate(shown):
        base = len(shown) - place  # the latest is in front
        newest = column == shown[-1]
        axes.fill_between(
            values, base, base + height * shares[column], color="#d55e00" if newest else "#56b4e9", alpha=0.75,
            linewidth=0.8, edgecolor="#1c2330", zorder=place,
        )  # fmt: skip
    labelled = shown[:: -max(1, len(shown) // 5)]
    if cells.logarithmic:
        axes.set_xscale("log")
    axes.set_yticks(
        [len(shown) - shown.index(c) for c in labelled], [f"step {cells.steps[c]}" for c in labelled]
    )
    axes.set_title(title, fontsize=12)
    axes.tick_params(labelsize=10)
    axes.spines[["top", "right", "left"]].set_visible(False)
