"""The meaning of a ring's rows: from the numbers that the graph writes to the columns that are recorded."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping

import numpy as np

from mlflow_tfmon import signals
from mlflow_tfmon.signals import INGREDIENTS
from mlflow_tfmon.signals.signal import Signal
from mlflow_tfmon.stream import bins
from mlflow_tfmon.stream.drain import Reading
from mlflow_tfmon.stream.ring import APPLIED, TELLING, SeldomRows


def column(reading: Reading, name: str) -> np.ndarray:
    """A column of a reading's rows, by its name in `RingLayout.columns`: a view."""
    return reading.rows[:, reading.ring.layout.columns.index(name)]


def steps(reading: Reading) -> np.ndarray:
    """The ring's own numbers of a reading's steps, from 1."""
    return reading.first + reading.lost + np.arange(len(reading.rows))


def learning_rate(reading: Reading) -> float:
    """That of a reading's last step."""
    return float(column(reading, "learning_rate")[-1])


def columns_of(reading: Reading, part: slice, offset: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What some rows of a reading say, all of which measure the same.

    Args:
        reading: with the rows.
        part: which of them.
        offset: what is added to the ring's step to have the recording's.

    Returns:
        The columns of `StreamOpened.columns` by name, and the norms per variable, as wide as there are kinds of norms
        times variables.
    """
    layout = reading.ring.layout
    rows = _named(reading, part)
    norms = []
    for norm in layout.norms:
        halves = np.column_stack([rows[f"{norm}/{at}"] for at in range(len(layout.variables))])
        if APPLIED in rows and norm == "grad_norm_clipped":
            halves[rows[APPLIED] == 0] = np.nan  # nothing was clipped there
        rows[f"{norm}/square"] = 2 * halves.sum(axis=1)
        signal = signals.of_variable(norm)
        assert signal is not None
        norms.append(signal.finish({"half_square": halves}))
    columns = {"step": (steps(reading)[part] + offset).astype(float)}
    with np.errstate(all="ignore"):
        columns |= {one.name: one.finish(rows) for one in signals.OF_STEP if _is_measured(one, rows)}
    if "loss" in columns:
        columns |= {name: rows[name] / rows["losses"] for name in layout.parts}
    columns |= {name: values[part] for name, values in reading.more.items()}
    return columns, np.concatenate(norms, axis=1)


def _named(reading: Reading, part: slice) -> dict[str, np.ndarray]:
    """Columns of some rows, by name."""
    rows = dict(zip(reading.ring.layout.columns, reading.rows[part].T, strict=True))
    rows["losses"] = np.where(rows["losses"] > 0, rows["losses"], np.nan)
    rows["traces"] = np.full(len(rows["losses"]), float(reading.ring.traces))
    return rows


def _is_measured(signal: Signal, rows: Mapping[str, np.ndarray]) -> bool:
    needs = [str(one) for one in signal.needs]
    return all(one in rows for one in needs) and not any(
        np.isnan(rows[one][0]) for one in needs if one in TELLING
    )


def runs(reading: Reading) -> list[slice]:
    """Splits a reading's rows where what they measure changes (another trace of the same training)."""
    rows = _named(reading, slice(None))
    measured = np.stack([~np.isnan(rows[name]) for name in TELLING], axis=1)
    edges = np.flatnonzero(np.diff(measured, axis=0).any(axis=1)) + 1
    bounds = [0, *edges.tolist(), len(reading.rows)]
    return [slice(start, end) for start, end in itertools.pairwise(bounds) if end > start]


def timed(reading: Reading) -> bool:
    """Whether it is known of each row when the step was made."""
    return len(reading.rows) > 0 and not np.isnan(column(reading, "time")).any()


def times(reading: Reading) -> np.ndarray:
    """When the steps of a reading were made, Unix seconds."""
    return column(reading, "time")


def piece(reading: Reading, begin: int, end: int) -> Reading:
    """Some consecutive rows of a reading, with what else it has of their steps."""
    if (begin, end) == (0, len(reading.rows)):
        return reading
    first = reading.first + reading.lost + begin
    upto = first + end - begin - 1

    def of(seldom: SeldomRows) -> SeldomRows:
        of_steps = (seldom.rows[:, 0] >= first) & (seldom.rows[:, 0] <= upto)
        return dataclasses.replace(seldom, rows=seldom.rows[of_steps], lost=0 if begin else seldom.lost)

    return dataclasses.replace(
        reading,
        rows=reading.rows[begin:end],
        deep=of(reading.deep),
        histograms=of(reading.histograms),
        first=first if begin else reading.first,
        lost=0 if begin else reading.lost,
        more={name: values[begin:end] for name, values in reading.more.items()},
    )


def with_batches(reading: Reading, batches: Callable[[float], np.ndarray]) -> Reading:
    """Adds to a reading which batches eager code took: for each step the last that it had taken before its end.

    Args:
        reading: as it was read.
        batches: tells what the thread's eager code took from datasets until a time, and since it was asked last.
    """
    lacking = ~np.isnan(column(reading, "time")) & np.isnan(column(reading, "input_start"))
    if not lacking.any():
        return reading
    times = column(reading, "time")[lacking]
    taken = batches(float(times[-1]))
    if not len(taken):
        return reading
    last = np.searchsorted(taken[:, 0], times, side="right") - 1
    # A step that took no batch of its own has no figures of its own; that this is known, its start tells.
    fresh = np.diff(last, prepend=-1) > 0
    ready, wait, examples = np.where(fresh[:, None], taken[np.maximum(last, 0)], np.nan).T
    reading = dataclasses.replace(reading, rows=reading.rows.copy())
    column(reading, "input_start")[lacking] = np.where(fresh, ready - wait, 0.0)
    column(reading, "input_time")[lacking] = ready
    column(reading, "examples")[lacking] = examples
    return reading


def histograms(reading: Reading, offset: int) -> np.ndarray:
    """The histograms of a reading, with the zeros that sparse gradients leave out."""
    rows = reading.histograms.rows.copy()
    rows[:, 0] += offset
    sizes = np.array([variable.size for variable in reading.ring.layout.variables], float)
    one = rows[:, 1:].reshape(len(rows), len(bins.KINDS), len(sizes), bins.WIDTH)
    left_out = sizes - one[..., : bins.COUNT + 1].sum(axis=-1)
    one[..., bins.MIDDLE] += left_out
    zeros, least, most = (one[..., at] for at in (-3, -2, -1))
    zeros += left_out
    np.minimum(least, 0, out=least, where=left_out > 0)
    np.maximum(most, 0, out=most, where=left_out > 0)
    return rows


def deep_steps(reading: Reading, offset: int) -> np.ndarray:
    """The deep rows of a reading with the signals instead of what they are made of."""
    sizes = np.array([variable.size for variable in reading.ring.layout.variables], np.float64)
    cuts = 1 + len(sizes) * np.arange(len(INGREDIENTS))
    step, *parts = np.split(reading.deep.rows, cuts, axis=1)
    arrays = dict(zip((one.name for one in INGREDIENTS), parts, strict=True)) | {"size": sizes}
    with np.errstate(all="ignore"):
        found = [one.finish(arrays) for one in signals.DEEP]
    return np.concatenate([step + offset, *found], axis=1)
