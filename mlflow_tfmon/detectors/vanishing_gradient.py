"""Detector of gradients that shrink from layer to layer until the early layers get none."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import learning
from mlflow_tfmon.detectors.problem import Problem


def detect(history: History, *, min_ratio: float = 1e-3) -> Iterator[Problem]:
    """Finds kernels whose gradient norm is less than a thousandth of the largest kernel's, while nothing is learned.

    Norms are divided by the square root of the kernel's size, so that wide layers compare with narrow ones; the median
    over the second half of the steps is used, once a tenth of the training is over. Sources: Hochreiter, 1991; the
    ratio is AutoTrainer's (ICSE 2021). Does not find a network that learns with its last layers alone.

    Args:
        history: the training up to some step.
        min_ratio: least harmless gradient per element, as a share of the largest kernel's.
    """
    state = learning(history)
    table = history.over_kernels(history.gradients)
    if not state.nothing(0.1) or len(table.names) < 3 or not len(table):
        return
    table = table.only(history.dense(table.names)).since(history.at(0.5))
    if len(table.names) < 3:
        return
    sizes = np.array([history.sizes[name] for name in table.names], float)
    each = table.medians() / np.sqrt(sizes)
    if not np.isfinite(each).any() or np.nanmax(each) <= 0:
        return
    top = int(np.nanargmax(each))
    small = [at for at in range(top) if each[at] < min_ratio * each[top]]
    if not small or not any(each[at] > 0 for at in small):
        return  # gradients of exactly zero come from dead units
    worst = min(small, key=lambda at: each[at])
    yield Problem(
        "vanishing_gradient", "critical", 1, tuple(table.names[at] for at in small),
        f"The gradient of {table.names[worst]} is {each[worst]:.2g} per element, that of {table.names[top]} "
        f"{each[top]:.2g} (threshold: {min_ratio:g} of it), and the loss has {state.progress}.",
        instead_of_sigmoid(history),
        history.step, 0.9,
    )  # fmt: skip


def instead_of_sigmoid(history: History) -> str:
    """Advice on layers that leave little of a gradient."""
    layers = history.premises.layers if history.premises is not None else ()
    if any(layer.kind == "SimpleRNN" for layer in layers):
        first = 'Use keras.layers.LSTM or GRU instead of SimpleRNN, or at least its own activation="tanh"'
    else:
        first = (
            "Use ReLU, GELU or SELU instead of sigmoid or tanh in the hidden layers with an initializer made for them "
            "(he_normal for ReLU)"
        )
    return f"{first}. If that does not help, add BatchNormalization or residual connections, or use fewer layers."
