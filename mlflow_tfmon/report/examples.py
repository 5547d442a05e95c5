"""The odd examples of a run's kept batches, as pictures where they are pictures, else as tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlflow_tfmon.errors import contained
from mlflow_tfmon.facts.examples import INPUTS, picture
from mlflow_tfmon.reading.batches import KeptBatch
from mlflow_tfmon.report.page import Example

_MOST = 4  # batches that are shown: that of the first step that is not finite, and the highest spikes
_ROWS = 20  # values of an example


def examples(batches: Sequence[KeptBatch]) -> list[Example]:
    """What the page shows of kept batches, in the order of the steps."""
    chosen = sorted(batches, key=lambda one: (one.kind != "not_finite", -one.loss))[:_MOST]
    found = []
    for batch in sorted(chosen, key=lambda one: one.step):
        with contained(f"showing the batch of step {batch.step}", "the report lacks it"):
            found.append(_example(batch))
    return found


def _example(batch: KeptBatch) -> Example:
    step = f"{batch.prefix}step {batch.step}"
    arrays = batch.arrays() if batch.kept else {}
    if not arrays:
        return Example(step, batch.text)
    row = next((batch.kept.index(one) for one in batch.odd if one in batch.kept), 0)
    title = f"{step}: example {batch.kept[row]} of {batch.examples}"
    if INPUTS in arrays and (shown := picture(arrays[INPUTS][row])):
        rows = [line for name in arrays if name != INPUTS for line in _values(name, arrays[name], row)]
        return Example(title, batch.text, shown, rows[:_ROWS])
    lines = [line for name, array in arrays.items() for line in _values(name, array, row)]
    return Example(title, batch.text, "", lines[:_ROWS])


def _values(name: str, array: np.ndarray, row: int) -> list[tuple[str, str, str]]:
    """The values of an example beside the batch's medians, those that are farthest from them first."""
    if array.dtype.kind not in "biuf":
        return [(name, str(array[row])[:100], "")]
    values = array.reshape(len(array), -1).astype(np.float64)
    with np.errstate(all="ignore"):
        median = np.median(np.where(np.isfinite(values), values, 0.0), axis=0)
        spread = np.abs(np.nan_to_num(values) - median)
        far = np.abs(values[row] - median) / (np.median(spread, axis=0) + np.median(spread) + 1e-12)
    order = np.argsort(-np.nan_to_num(far, nan=np.inf, posinf=np.inf), kind="stable")[:_ROWS]
    places = [np.unravel_index(at, array.shape[1:] or (1,)) for at in order]
    labels = [f"{name}[{', '.join(str(int(n)) for n in at)}]" if array.ndim > 1 else name for at in places]
    return [
        (label, f"{values[row, at]:.6g}", f"{median[at]:.6g}")
        for label, at in zip(labels, order, strict=True)
    ]
