"""What the rows of a ring say: from the numbers that the graph writes to the columns that are recorded."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping

import numpy as np

from mlflow_tfmon import signals
from mlflow_tfmon.signals import INGREDIENTS
from mlflow_tfmon.signals.signal import Signal
from mlflow_tfmon.stream import bins
from mlflow_tfmon.stream.drain import Block
from mlflow_tfmon.stream.ring import APPLIED, TELLING, SeldomRows


def column(block: Block, name: str) -> np.ndarray:
    """A column of a block's rows, by its name in `RingLayout.columns`: a view."""
    return block.rows[:, block.ring.layout.columns.index(name)]


def steps(block: Block) -> np.ndarray:
    """The ring's own numbers of a block's steps, from 1."""
    return block.first + block.lost + np.arange(len(block.rows))


def learning_rate(block: Block) -> float:
    """That of a block's last step."""
    return float(column(block, "learning_rate")[-1])


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
    layout = block.ring.layout
    rows = _named(block, part)
    norms = []
    for norm in layout.norms:
        halves = np.column_stack([rows[f"{norm}/{at}"] for at in range(len(layout.variables))])
        if APPLIED in rows and norm == "grad_norm_clipped":
            halves[rows[APPLIED] == 0] = np.nan  # nothing was clipped there
        rows[f"{norm}/square"] = 2 * halves.sum(axis=1)
        signal = signals.of_variable(norm)
        assert signal is not None
        norms.append(signal.finish({"half_square": halves}))
    columns = {"step": (steps(block)[part] + offset).astype(float)}
    columns |= {one.name: one.finish(rows) for one in signals.OF_STEP if _is_measured(one, rows)}
    if "loss" in columns:
        columns |= {name: rows[name] / rows["losses"] for name in layout.parts}
    columns |= {name: values[part] for name, values in block.more.items()}
    return columns, np.concatenate(norms, axis=1)


def _named(block: Block, part: slice) -> dict[str, np.ndarray]:
    """Columns of some rows, by name."""
    rows = dict(zip(block.ring.layout.columns, block.rows[part].T, strict=True))
    rows["losses"] = np.where(rows["losses"] > 0, rows["losses"], np.nan)
    rows["traces"] = np.full(len(rows["losses"]), float(block.ring.traces))
    return rows


def _is_measured(signal: Signal, rows: Mapping[str, np.ndarray]) -> bool:
    needs = [str(one) for one in signal.needs]
    return all(one in rows for one in needs) and not any(
        np.isnan(rows[one][0]) for one in needs if one in TELLING
    )


def runs(block: Block) -> list[slice]:
    """Splits a block's rows where what they measure changes (another trace of the same training)."""
    rows = _named(block, slice(None))
    measured = np.stack([~np.isnan(rows[name]) for name in TELLING], axis=1)
    edges = np.flatnonzero(np.diff(measured, axis=0).any(axis=1)) + 1
    bounds = [0, *edges.tolist(), len(block.rows)]
    return [slice(start, end) for start, end in itertools.pairwise(bounds) if end > start]


def timed(block: Block) -> bool:
    """Whether it is known of each row when the step was made."""
    return len(block.rows) > 0 and not np.isnan(column(block, "time")).any()


def times(block: Block) -> np.ndarray:
    """When the steps of a block were made, Unix seconds."""
    return column(block, "time")


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
    lacking = ~np.isnan(column(block, "time")) & np.isnan(column(block, "input_start"))
    if not lacking.any():
        return block
    times = column(block, "time")[lacking]
    taken = batches(float(times[-1]))
    if not len(taken):
        return block
    last = np.searchsorted(taken[:, 0], times, side="right") - 1
    # A step that took no batch of its own has no figures of its own; that this is known, its start tells.
    fresh = np.diff(last, prepend=-1) > 0
    ready, wait, examples = np.where(fresh[:, None], taken[np.maximum(last, 0)], np.nan).T
    block = dataclasses.replace(block, rows=block.rows.copy())
    column(block, "input_start")[lacking] = np.where(fresh, ready - wait, 0.0)
    column(block, "input_time")[lacking] = ready
    column(block, "examples")[lacking] = examples
    return block


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
    """The deep rows of a block with the signals instead of what they are made of."""
    sizes = np.array([variable.size for variable in block.ring.layout.variables], np.float64)
    cuts = 1 + len(sizes) * np.arange(len(INGREDIENTS))
    step, *found = np.split(block.deep.rows, cuts, axis=1)
    arrays = dict(zip((one.name for one in INGREDIENTS), found, strict=True)) | {"size": sizes}
    return np.concatenate([step + offset, *(one.finish(arrays) for one in signals.DEEP)], axis=1)
