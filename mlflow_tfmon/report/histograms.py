"""Histograms over time, of the elements of variables and of the norms of all variables, as heatmaps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mlflow_tfmon.reading.recorded import RecordedRun
from mlflow_tfmon.report.panels import Cells, Picture, Section
from mlflow_tfmon.stream.bins import KINDS, NORM_EDGES, PER_OCTAVE, quantiles

NORMS = {"weight_norm": "weight norm", "grad_norm": "gradient norm"}
_COLUMNS, _ROWS, _ROWS_OF_NORMS = 48, 40, 20  # of a picture
_FEWEST = 32  # variables, below which a distribution tells less than the picture with a row for each
_SCALE = "share"
_OF_ELEMENTS = "Each column is the histogram at a step; the color is the share of elements in a bin."
_OF_NORMS = (
    "Each column is the histogram at a step; the color is the share of variables with a norm in a bin."
)


def histograms(run: RecordedRun, names: Sequence[str]) -> Section | None:
    """Returns the section on histograms.

    Args:
        run: as recorded.
        names: the variables that are shown.
    """
    table, pictures = run.histograms, []
    for kind in KINDS if len(table) else ():
        choices = []
        for name in names:
            rows = table[(table.variable == name) & (table.kind == kind)]
            if len(rows):
                choices.append(over_time(name, kind, rows))
        if choices:
            title = "Weights over time" if kind == "weight" else "Gradients over time"
            pictures.append(Picture(f"{kind} histograms", title, tuple(choices), _SCALE, _OF_ELEMENTS))
    for kind, title in NORMS.items():
        if choices := norms_over_time(run, kind):
            title = f"{title.capitalize()}s of all variables over time"
            pictures.append(Picture(f"{kind} histograms", title, tuple(choices), _SCALE, _OF_NORMS))
    return Section("Histograms", tuple(pictures)) if pictures else None


def norms_over_time(run: RecordedRun, kind: str) -> list[Cells]:
    """How the norms of a kind are distributed over all variables at the deep steps, a picture a stream."""
    found, table = [], run.norm_histograms
    for prefix in run.streams:
        rows = table[(table.kind == kind) & (table.prefix == prefix)]
        rows = rows[[bool(counts.any()) for counts in rows.counts]]
        if len(rows) > 1 and rows.iloc[0].counts.sum() >= _FEWEST:
            found.append(_distribution(prefix.rstrip("."), NORMS[kind], rows.iloc[_spaced(len(rows))]))
    return found


def _distribution(stream: str, norm: str, rows: pd.DataFrame) -> Cells:
    firsts = np.searchsorted(NORM_EDGES, [edges[0] for edges in rows.edges])
    low, high = int(firsts.min()), int((firsts + [len(counts) for counts in rows.counts]).max())
    wide = -(-(high - low) // _ROWS_OF_NORMS)  # bins per row
    many = -(-(high - low) // wide)
    cells = []
    for column, (first, counts) in enumerate(zip(firsts, rows.counts, strict=True)):
        classes = np.bincount((np.arange(len(counts)) + first - low) // wide, counts, minlength=many)
        filled = np.flatnonzero(classes)
        cells += [(column, int(at), float(f"{classes[at] / counts.sum():.3g}")) for at in filled]
    middles = NORM_EDGES[low : low + wide * many : wide] * 2 ** (wide / (2 * PER_OCTAVE))
    ends = NORM_EDGES[low], NORM_EDGES[high]
    text = f"{norm} of {rows.iloc[0].counts.sum()} variables, all from {ends[0]:.2g} to {ends[1]:.2g}."
    return Cells(
        stream, rows.step.tolist(), [f"{middle:.3g}" for middle in middles], cells, text, logarithmic=True
    )


def _spaced(count: int) -> np.ndarray:
    """Positions of at most `_COLUMNS` of so many, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, _COLUMNS)).round().astype(int))


def over_time(name: str, kind: str, rows: pd.DataFrame) -> Cells:
    """A variable's histograms side by side, in bins of equal width; outliers are in the outermost ones."""
    rows = rows.sort_values("step")
    rows = rows.iloc[_spaced(len(rows))]
    low, high = _extent(rows)
    edges = np.linspace(low, high, _ROWS + 1)
    cells = []
    for column, row in enumerate(rows.itertuples()):
        for at, share in enumerate(rebinned(row.edges, row.counts, edges, row.min, row.max)):
            if share > 1e-7:
                cells.append((column, at, float(f"{share:.3g}")))
    first, last = rows.iloc[0], rows.iloc[-1]
    text = (
        f"{name}, {kind}: the middle half of the elements lies between {first.q25:.3g} and {first.q75:.3g} at step "
        f"{first.step}, between {last.q25:.3g} and {last.q75:.3g} at step {last.step}."
    )
    labels = [f"{middle:.3g}" for middle in (edges[:-1] + edges[1:]) / 2]
    layer = name.rpartition(".")[0] or name
    return Cells(name, rows.step.tolist(), labels, cells, text, layers=(layer,))


def _extent(rows: pd.DataFrame) -> tuple[float, float]:
    """Where the middle 99% lie in three of four histograms: one with a spike would flatten all others."""
    shares = np.array([0.005, 0.995])
    figures = zip(rows.edges, rows.counts, rows["min"], rows["max"], strict=True)
    found = np.array(
        [quantiles(edges, counts, shares, *ends) for edges, counts, *ends in figures if counts.sum()]
    )
    low, high = (
        (np.quantile(found[:, 0], 0.25), np.quantile(found[:, 1], 0.75)) if len(found) else (-1.0, 1.0)
    )
    return (low, high) if high > low else (low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1))


def rebinned(
    edges: np.ndarray, counts: np.ndarray, onto: np.ndarray, least: float, most: float
) -> np.ndarray:
    """The share of the elements in other bins, by taking those of a bin as evenly spread over it.

    Args:
        edges: of the bins.
        counts: in them.
        onto: edges of the other bins; the first and the last also take what is beyond.
        least: the least element.
        most: the largest element.
    """
    total = counts.sum()
    if not total:
        return np.zeros(len(onto) - 1)
    ends = np.clip(edges, least, most)
    if least == most:
        at = np.clip(np.searchsorted(onto, least, side="right") - 1, 0, len(onto) - 2)
        return np.eye(1, len(onto) - 1, int(at))[0]
    below = np.interp(onto, ends, np.concatenate([[0], np.cumsum(counts)]) / total)
    below[0], below[-1] = 0.0, 1.0
    shares: np.ndarray = np.diff(below)
    return shares
