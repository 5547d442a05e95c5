"""Detector of units that output zero for every example, and so no longer get a gradient."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import learning
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.table import Table
from mlflow_tfmon.detectors.updates import lower

_ZERO_AT = ("relu", "relu6", "relu_squared", "relu2")
_FROM_START = 0.9  # share of zeros in a kernel's first gradient: its units were dead before any step
_ELSE = (
    " If that does not help, use LeakyReLU or GELU instead of ReLU, or put BatchNormalization before it; very deep or "
    "narrow ReLU networks need residual connections."
)


def detect(
    history: History, *, min_share: float = 0.7, min_share_if_little: float = 0.9
) -> Iterator[Problem]:
    """Finds layers in which 70% of the units are zero for a whole batch while nothing is learned; 90% if little is.

    If activations were not recorded, the share of zeros in a kernel's gradient stands in for that of dead units.
    The 70% are AutoTrainer's (ICSE 2021); Lu et al., 2019, give the reason. Many dead units in a network that learns
    are not a problem. Counterpart of SageMaker Debugger's "dead ReLU".

    Args:
        history: the training up to some step.
        min_share: least share of a layer's units that are zero, while nothing is learned.
        min_share_if_little: the same while little is learned.
    """
    state = learning(history)
    if not (state.nothing(0.1) or state.little(0.5)):
        return
    least = min_share if state.nothing(0.1) else min_share_if_little
    table, what = history.activations.get("dead_fraction"), "of the units of {} output 0 for a whole batch"
    names = [n for n, kind in history.activation_names.items() if kind in _ZERO_AT]
    if table is None or not np.isfinite(table.mean).any() or not names:
        table, what = history.deep.get("grad_zero_fraction"), "of the gradient of {} is 0"
        if (
            (history.activation_names and not names)
            or table is None
            or not len(table)
            or not _rectifies(history)
        ):
            return
        names = [name for name in history.dense(history.kernels) if name in table]
    table = table.only([name for name in names if name in table])
    recent = table.since(history.at(0.5))
    recent = recent if len(recent) else table.rows(slice(-1, None))
    if not len(recent) or not len(recent.names):
        return
    share = recent.medians()
    dead = np.flatnonzero(share >= least)
    if not len(dead):
        return
    worst = dead[int(share[dead].argmax())]
    since = table.first[int(np.argmax(table.mean[:, worst] >= least))]
    yield Problem(
        "dead_relu", "critical", int(since), tuple(table.names[at] for at in dead),
        f"{share[worst]:.0%} {what.format(table.names[worst])} (threshold: {least:.0%}), and the loss has "
        f"{state.progress}.",
        _advice(history, table.names[worst]) + _ELSE, history.step, 0.9,
    )  # fmt: skip


def _advice(history: History, layer: str) -> str:
    """What to change first: how the units begin, if they were dead before the first step, else the steps."""
    kernel, zeros = (
        layer if layer in history.sizes else f"{layer}.kernel",
        history.deep.get("grad_zero_fraction"),
    )
    begun = zeros.column(kernel).rows(slice(0, 1)) if zeros is not None else Table()
    if len(begun) and begun.first[0] <= history.start + 1 and begun.mean[0, 0] >= _FROM_START:
        return (
            'The units are dead from the first step: initialize with he_normal (kernel_initializer="he_normal"), '
            'biases with 0 (bias_initializer="zeros"), and look at the scale of the inputs.'
        )
    return f"{lower(history)}, and initialize with he_normal."


def _rectifies(history: History) -> bool:
    layers = history.premises.layers if history.premises is not None else ()
    # Of a loop's model that is not known, the output alone may be.
    return all(one.is_output for one in layers) or any(layer.activation in _ZERO_AT for layer in layers)
