"""The signals as tables in Markdown, for the documentation."""

from __future__ import annotations

from collections.abc import Sequence

from mlflow_tfmon import signals
from mlflow_tfmon.signals.signal import Signal

_WHERE = {True: "MLflow, files", False: "files"}


def of_step() -> str:
    """The signals of a step that people look at."""
    rows = [
        (f"`{one.name}`", one.formula, one.healthy)
        for one in (*signals.OF_STEP, *signals.MEASURES)
        if one.label
    ]
    return _table(("signal", "formula, unit", "healthy"), rows)


def of_variable() -> str:
    """The signals of each variable."""
    rows = [
        (f"`{one.name}/<variable>`", one.formula, one.when.value, _healthy(one), _WHERE[one.curve])
        for one in signals.OF_VARIABLE
    ]
    return _table(("signal", "formula", "when", "healthy", "where"), rows)


def _healthy(signal: Signal) -> str:
    return f"{signal.healthy}. NaN: {signal.undefined}" if signal.undefined else signal.healthy


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    cells = (head, ("---",) * len(head), *rows)
    return "\n".join("| " + " | ".join(one.replace("|", "\\|") for one in row) + " |" for row in cells)
