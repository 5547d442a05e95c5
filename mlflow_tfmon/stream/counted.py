"""A text that says how much was not kept."""

from __future__ import annotations

from collections.abc import Mapping

_CALLED = {
    "Steps": "steps", "DeepSteps": "rows of weight figures", "Histograms": "rows of histograms",
    "Logged": "figures of the user's own", "EpochEnded": "epochs",
}  # fmt: skip


def counted(rows: Mapping[str, int]) -> str:
    """A count of rows, as `LeftOut` has it, in words.

    Example:
        >>> counted({"Steps": 1200, "Facts": 3})
        '1,200 steps, 3 other records'
    """
    known = [f"{rows[kind]:,} {called}" for kind, called in _CALLED.items() if rows.get(kind)]
    others = sum(count for kind, count in rows.items() if kind not in _CALLED)
    return ", ".join([*known, *([f"{others:,} other records"] if others else [])])
