"""What the rows of a ring say: from the numbers that the graph writes to the columns that are recorded."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np

from mlflow_tfmon.stream import bins
from mlflow_tfmon.stream.drain import Block
from mlflow_tfmon.stream.ring import APPLIED, DEEP, HEAD, INPUT, TIME, SeldomRows

DEEP_QUANTITIES = ("weight_norm", "update_ratio", "grad_zero_fraction")
_HEAD = {name: index for index, name in enumerate(HEAD)}


def learning_rate(block: Block) -> float:
    """That of a block's last step."""
    return float(block.rows[-1, _HEAD["learning_rate"]])


def columns_of(block: Block, part: slice, offset: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What some rows of a block say, all of which measure the same.

    Args:
        block: with the rows.
        part: which of them.
        offset: what is added to the ring's step to have the recording's.

    Returns:
        The columns of `StreamOpened.columns` by name, and the norms per variable, as wide as there are kinds of norms
        times variables.
    """
    rows = block.rows[part]
    layout, measured = block.ring.layout, int(rows[0, _HEAD["measured"]])
    columns = {"step": rows[:, _HEAD["step"]] + offset}
    if measured & TIME:
        columns["time"] = rows[:, _HEAD["time"]]
    if measured & INPUT:
        for name in ("input_time", "input_wait", "examples"):
            columns[name] = rows[:, _HEAD[name]]
    if rows[0, _HEAD["losses"]]:
        columns["loss"] = rows[:, _HEAD["loss"]] / rows[:, _HEAD["losses"]]
    columns["learning_rate"] = rows[:, _HEAD["learning_rate"]]
    end = block.ring.width - len(layout.scalars)
    scalars = dict(zip(layout.scalars, rows[:, end:].T, strict=True))
    squares = 2 * rows[:, len(HEAD) : end]  # the ring holds halves
    for norm, halves in zip(layout.norms, np.split(squares, len(layout.norms), axis=1), strict=True):
        if APPLIED in scalars and norm == "grad_norm_clipped":
            halves[scalars[APPLIED] == 0] = np.nan  # nothing was clipped there
        columns[norm] = np.sqrt(halves.sum(axis=1))
    for name, values in scalars.items():
        if name not in layout.parts:
            columns[name] = values
        elif "loss" in columns:
            columns[name] = values / rows[:, _HEAD["losses"]]
    if "loss_scale" in scalars:  # Keras's rule for leaving a step out
        columns["skipped"] = 1.0 - np.isfinite(columns["grad_norm"])
    columns["traces"] = np.full(len(rows), float(block.ring.traces))
    columns |= {name: values[part] for name, values in block.more.items()}
    return columns, np.sqrt(squares)


def runs(rows: np.ndarray) -> list[slice]:
    """Splits rows where what they measure changes (another trace of the same training)."""
    measured = np.stack([rows[:, _HEAD["measured"]], rows[:, _HEAD["losses"]] > 0], axis=1)
    edges = np.flatnonzero(np.diff(measured, axis=0).any(axis=1)) + 1
    bounds = [0, *edges.tolist(), len(rows)]
    return [slice(start, end) for start, end in itertools.pairwise(bounds) if end > start]


def timed(block: Block) -> bool:
    """Whether it is known of each row when the step was made."""
    return len(block.rows) > 0 and bool((block.rows[:, _HEAD["measured"]].astype(int) & TIME).all())


def times(block: Block) -> np.ndarray:
    """When the steps of a block were made, Unix seconds."""
    return np.asarray(block.rows[:, _HEAD["time"]])


def piece(block: Block, begin: int, end: int) -> Block:
    """Some consecutive rows of a block, with what else it has of their steps."""
    if (begin, end) == (0, len(block.rows)):
        return block
    first = block.first + block.lost + begin
    upto = first + end - begin - 1

    def of(seldom: SeldomRows) -> SeldomRows:
        of_steps = (seldom.rows[:, 0] >= first) & (seldom.rows[:, 0] <= upto)
        return dataclasses.replace(seldom, rows=seldom.rows[of_steps], lost=0 if begin else seldom.lost)

    return dataclasses.replace(
        block,
        rows=block.rows[begin:end],
        deep=of(block.deep),
        histograms=of(block.histograms),
        first=first if begin else block.first,
        lost=0 if begin else block.lost,
        more={name: values[begin:end] for name, values in block.more.items()},
    )


def with_batches(block: Block, batches: Callable[[float], np.ndarray]) -> Block:
    """Adds to a block which batches eager code took: for each step the last that it had taken before its end.

    Args:
        block: as it was read.
        batches: tells what the thread's eager code took from datasets until a time, and since it was asked last.
    """
    measured = block.rows[:, _HEAD["measured"]].astype(int)
    lacking = (measured & TIME != 0) & (measured & INPUT == 0)
    if not lacking.any():
        return block
    rows = block.rows.copy()
    times = rows[lacking, _HEAD["time"]]
    taken = batches(float(times[-1]))
    if not len(taken):
        return block
    last = np.searchsorted(taken[:, 0], times, side="right") - 1
    fresh = np.diff(last, prepend=-1) > 0  # a step that took no batch of its own has no figures of its own
    columns = [_HEAD[name] for name in ("input_time", "input_wait", "examples")]
    rows[np.ix_(lacking, columns)] = np.where(fresh[:, None], taken[np.maximum(last, 0)], np.nan)
    rows[lacking, _HEAD["measured"]] += INPUT
    return dataclasses.replace(block, rows=rows)


def histograms(block: Block, offset: int) -> np.ndarray:
    """The histograms of a block, with the zeros that sparse gradients leave out."""
    rows = block.histograms.rows.copy()
    rows[:, 0] += offset
    sizes = np.array([variable.size for variable in block.ring.layout.variables], float)
    one = rows[:, 1:].reshape(len(rows), len(bins.KINDS), len(sizes), bins.WIDTH)
    left_out = sizes - one[..., : bins.COUNT + 1].sum(axis=-1)
    one[..., bins.MIDDLE] += left_out
    zeros, least, most = (one[..., at] for at in (-3, -2, -1))
    zeros += left_out
    np.minimum(least, 0, out=least, where=left_out > 0)
    np.maximum(most, 0, out=most, where=left_out > 0)
    return rows


def deep_steps(block: Block, offset: int) -> np.ndarray:
    """The deep rows of a block with the quantities instead of what they are made of.

    The update ratio is ||after - before|| / ||before||, NaN for weights that were all zero. The elements that a sparse
    gradient leaves out are zeros as well.
    """
    sizes = np.array([np.prod(variable.shape) for variable in block.ring.layout.variables], np.float64)
    cuts = 1 + len(sizes) * np.arange(len(DEEP))
    step, after, before, change, nonzero = np.split(block.deep.rows, cuts, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(before > 0, np.sqrt(change / before), np.nan)
        zeros = (sizes - nonzero) / sizes
    return np.concatenate([step + offset, np.sqrt(2 * after), ratios, zeros], axis=1)
