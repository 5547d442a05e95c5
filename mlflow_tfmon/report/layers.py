"""Report sections on a run's layers: norms, update ratios, histograms over time, activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from mlflow_tfmon import signals
from mlflow_tfmon.reading.recorded import RecordedRun
from mlflow_tfmon.report.histograms import histograms
from mlflow_tfmon.report.panels import Cells, Curve, Panel, Picture, Section, needs_log
from mlflow_tfmon.report.thin import Buckets
from mlflow_tfmon.signals.signal import Signal

_MAX_KERNELS = 8  # the largest kernels, which get curves and histograms of their own
_CELLS, _MOST_COLUMNS = 16_000, 300  # of a picture of all variables, at most


def layers(run: RecordedRun) -> list[Section]:
    """Returns the sections on the layers."""
    drawn = [one for one in signals.OF_VARIABLE if one.panel]
    norms = {one.name: _Norms(run) for one in drawn}
    for variables, steps, wide in run.layer_blocks():  # once: of a long training it is half a gigabyte
        for quantity in norms.keys() & wide.keys():
            norms[quantity].add(variables, steps, wide[quantity])
    panels: list[Panel | Picture] = []
    for signal in drawn:
        panels += _panels(norms[signal.name], signal)
    found = Section("Layers", tuple(panels)), histograms(run, largest(run)), _activations(run)
    return [section for section in found if section is not None and section.panels]


def largest(run: RecordedRun, count: int = _MAX_KERNELS) -> list[str]:
    """The names of the largest kernels, in the order of the model; variables of any kind if it has no kernel."""
    sizes = {name: int(np.prod(shape)) for name, (shape, is_kernel) in run.variables.items() if is_kernel}
    sizes = sizes or {name: int(np.prod(shape)) for name, (shape, _) in run.variables.items()}
    chosen = set(sorted(sizes, key=lambda name: -sizes[name])[:count])
    return [name for name in sizes if name in chosen]


class _Norms:
    """One quantity of all variables: its extremes by stretches of steps, and all of it for the largest kernels.

    Args:
        run: what was recorded.
    """

    def __init__(self, run: RecordedRun) -> None:
        self.names = list(run.variables)
        self._position = {one: at for at, one in enumerate(self.names)}
        self._few: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {one: [] for one in largest(run)}
        last = int(run.steps.index.max()) if len(run.steps) else 0
        columns = np.clip(_CELLS // max(1, len(self.names)), 20, _MOST_COLUMNS)
        self.buckets = Buckets(last, int(columns), len(self.names))

    def add(self, variables: list[str], steps: np.ndarray, found: np.ndarray) -> None:
        """Takes a block of shape (steps, variables)."""
        values = found
        if variables != self.names:
            values = np.full((len(steps), len(self.names)), np.nan)
            values[:, [self._position[one] for one in variables]] = found
        self.buckets.add(steps, values)
        for one in self._few.keys() & set(variables):
            self._few[one].append((steps, found[:, variables.index(one)].copy()))

    def largest(self) -> dict[str, tuple[np.ndarray, ...]]:
        """Steps and values by variable."""
        return {
            one: tuple(np.concatenate(part) for part in zip(*parts, strict=True))
            for one, parts in self._few.items()
            if parts
        }


def _panels(norms: _Norms, signal: Signal) -> list[Panel | Picture]:
    """Curves of the largest kernels, how the quantity spreads over all variables, and a picture of all of them."""
    names, buckets, joined = norms.names, norms.buckets, norms.largest()
    shared = _shared(names)
    found = (
        Curve.of(one.removeprefix(shared), steps, values, layer=layer_of(one))
        for one, (steps, values) in joined.items()
    )
    curves = tuple(curve for curve in found if curve.points)
    if not curves:
        return []
    quantity, title, band = signal.name, signal.plural, signal.band
    note = f"Shaded: the usual range in healthy trainings, {band[0]:g} to {band[1]:g}." if band else ""
    if len(names) > len(curves):
        note = f"The {len(curves)} largest kernels, and the layer that is chosen above. {note}"
    log = needs_log(curves)
    return [
        Panel(f"{quantity} by layer", f"{title} by layer", curves, log=log, band=band, note=note),
        *(_all(buckets, names, quantity, signal.label) or _spread(buckets, quantity, title)),
    ]


def layer_of(variable: str) -> str:
    """The layer that a variable is of.

    Example:
        >>> layer_of("net.hidden.kernel")
        'net.hidden'
    """
    return variable.rpartition(".")[0] or variable


def _shared(names: Sequence[str]) -> str:
    """What all names begin with, to its last dot: the model's name, which tells none from another."""
    head = names[0].split(".")[0] + "."
    return head if all(name.startswith(head) and name.count(".") > 1 for name in names) else ""


def _spread(buckets: Buckets, quantity: str, title: str) -> list[Panel]:
    filled = np.isfinite(buckets.largest).any(axis=1)
    values = np.where(np.isfinite(buckets.largest), buckets.largest, np.nan)[filled]
    if values.shape[1] < 4:
        return []
    steps = buckets.steps[filled]
    shares = {"largest": 1.0, "upper quarter": 0.75, "median": 0.5, "lower quarter": 0.25, "least": 0.0}
    found = pd.DataFrame(values.T).quantile(list(shares.values())).to_numpy()
    curves = tuple(Curve.of(name, steps, one) for name, one in zip(shares, found, strict=True))
    return [
        Panel(f"{quantity} spread", f"{title} of all variables: distribution", curves, log=needs_log(curves))
    ]


def _all(buckets: Buckets, names: Sequence[str], quantity: str, name: str) -> list[Picture]:
    """A row a variable, a column a stretch of steps; left out where there are too many variables to see any."""
    if len(names) < 2 or len(names) > _CELLS // 20:
        return []
    filled = np.isfinite(buckets.largest).any(axis=1)
    values, steps = buckets.largest[filled], buckets.steps[filled].tolist()
    cells = [
        (column, len(names) - 1 - row, float(f"{values[column, row]:.3g}"))
        for column, row in np.argwhere(np.isfinite(values) & (values > 0)).tolist()
    ]
    if not cells:
        return []
    found = [value for _, _, value in cells]
    text = f"{name} of {len(names)} variables, from {min(found):.3g} to {max(found):.3g}."
    shared, rows = _shared(names), list(reversed(names))
    picture = Cells(
        "", steps, [one.removeprefix(shared) for one in rows], cells, text, layers=tuple(map(layer_of, rows))
    )
    title = f"{name.capitalize()} of every variable"
    empty = "; empty where it is 0 or not defined" if len(cells) < values.size else ""
    note = f"The largest value in each stretch of steps{empty}."
    return [Picture(f"{quantity} of all", title, (picture,), name, note, log=True)]


def _labelled(layer: str, activation: str) -> str:
    return f"{layer} ({activation})" if activation not in ("", "linear") else layer


def _activations(run: RecordedRun) -> Section | None:
    table = run.activations
    if table.empty:
        return None
    panels, shared = [], _shared([f"{layer}." for layer in table.layer])
    for column, key, title in (
        ("zero_fraction", "zeros", "Share of outputs that are zero"),
        ("dead_fraction", "dead", "Share of dead units"),
        ("saturated_fraction", "saturated", "Share of saturated outputs"),
        ("mean", "activation mean", "Mean of the outputs"),
        ("std", "activation std", "Standard deviation of the outputs"),
    ):
        rows = table.dropna(subset=[column])
        if column in ("zero_fraction", "dead_fraction"):
            rows = rows[rows.groupby("layer")[column].transform("max") > 0]
        chosen = list(dict.fromkeys(rows.layer))[: 2 * _MAX_KERNELS]
        curves = tuple(
            Curve.of(
                _labelled(layer.removeprefix(shared), one.activation.iloc[0]),
                one.step,
                one[column],
                layer=layer,
            )
            for layer in chosen
            if len(one := rows[rows.layer == layer])
        )
        share = column.endswith("_fraction")
        panels.append(Panel(key, title, tuple(c for c in curves if c.points), share=share))
    rows_seen = int(table.examples.max())
    note = f"At each epoch's end, for {rows_seen} training examples."
    kept = tuple(replace(panel, note=note) for panel in panels if panel.curves)
    return Section("Activations", kept) if kept else None
