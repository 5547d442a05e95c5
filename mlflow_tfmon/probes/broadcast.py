"""Losses that compare every prediction with every target, since their shapes (n, 1) and (n,) broadcast to (n, n)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlflow_tfmon.probes.origin import op_of, outward

_DIFFERENCES = frozenset({"Sub", "SquaredDifference"})
_MOST_OPS = 200  # between a loss and what it compares there are few


def broadcast(losses: Sequence[Any]) -> str:
    """The two shapes that a loss broadcasts, such as "(32,) and (32, 1)"; "" if it does not, or runs eagerly.

    A difference of tensors of equal rank may be meant to be of all pairs, as in contrastive losses. One of (n,) and
    (n, 1) hardly is: nobody writes that but by mistake.

    Args:
        losses: tensors of a graph that is being traced.
    """
    pending, seen = list(losses), set[int]()
    while pending and len(seen) < _MOST_OPS:
        op = op_of(outward(pending.pop(0)))
        if op is None or id(op) in seen:
            continue
        seen.add(id(op))
        if op.type in _DIFFERENCES:
            flat, column = sorted((one.shape for one in op.inputs), key=lambda shape: shape.rank or 0)
            if _broadcasts(flat, column):
                return f"{_text(flat)} and {_text(column)}"
        pending += op.inputs
    return ""


def _broadcasts(flat: Any, column: Any) -> bool:
    if flat.rank != 1 or column.rank != 2 or column[1] != 1 or flat[0] == 1 or column[0] == 1:
        return False
    return flat[0] is None or column[0] is None or flat[0] == column[0]


def _text(shape: Any) -> str:
    return str(tuple("n" if size is None else size for size in shape)).replace("'", "")
