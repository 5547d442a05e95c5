"""The registry of signals: everything that is recorded of a training, each declared once.

A family of signals is a module with a tuple `SIGNALS`, and a line in `_FAMILIES`. All else follows from the
declarations: what is traced into the step, the rings' and the journal's columns, MLflow's metrics, the columns of the
files and of `load_run`, what detectors ask for by name, the report's panels and the tables of the documentation.
Nothing in here imports TensorFlow.
"""

from __future__ import annotations

from collections.abc import Collection

from mlflow_tfmon.signals import checksum, gradient_snr, gradients, largest, steps, update_norm, weights
from mlflow_tfmon.signals.signal import Ingredient, Of, Signal, When

_FAMILIES = (gradients, weights, update_norm, largest, gradient_snr, checksum)

OF_STEP = steps.SIGNALS
MEASURES = steps.MEASURES
OF_VARIABLE: tuple[Signal, ...] = tuple(one for family in _FAMILIES for one in family.SIGNALS)
NORMS = tuple(one for one in OF_VARIABLE if one.when is When.STEP)
DEEP = tuple(one for one in OF_VARIABLE if one.when is When.DEEP)


def _ingredients() -> tuple[Ingredient, ...]:
    """Those of the deep signals, each once: of the weights, of the gradient, and those with a state."""
    every = {one.name: one for signal in DEEP for one in signal.ingredients}
    return tuple(sorted(every.values(), key=lambda one: (one.state > 0, one.of is Of.GRADIENT)))


INGREDIENTS = _ingredients()


def of_step(name: str) -> Signal | None:
    """The signal of a step that has a name; None where it has no declaration of its own (a part of the loss)."""
    return next((one for one in (*OF_STEP, *MEASURES) if one.name == name), None)


def of_variable(name: str) -> Signal | None:
    """The signal of a variable that has a name; None for one of another version."""
    return next((one for one in OF_VARIABLE if one.name == name), None)


def is_drawn(name: str) -> bool:
    """Whether anybody looks at a signal of a variable; one of another version may be looked at."""
    signal = of_variable(name)
    return signal is None or bool(signal.label)


def measures(columns: Collection[str]) -> tuple[Signal, ...]:
    """The measures that can be computed of a step's columns."""
    known = {*columns, steps.SECONDS} if {"time", "input_time"} & set(columns) else set(columns)
    return tuple(one for one in MEASURES if known >= set(one.needs))


def absent(columns: Collection[str]) -> list[str]:
    """The expected signals of a step that neither are among its columns nor can be computed of them."""
    found = {*columns, *(one.name for one in measures(columns))}
    return [one.name for one in (*OF_STEP, *MEASURES) if one.expected and one.name not in found]
