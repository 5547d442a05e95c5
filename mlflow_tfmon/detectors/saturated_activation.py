"""Detector of sigmoids and the like at the ends of their range, where they have no slope."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import learning
from mlflow_tfmon.detectors.problem import Problem

_SATURATED = 0.5
_NEARLY_ALL = 0.8
_PATIENCE = 0.3  # deep tanh networks that start saturated may need that long to get going


def detect(history: History) -> Iterator[Problem]:
    """Finds hidden layers with half of their outputs saturated while nothing is learned; 80% if little is.

    The output layer is not examined: that of a confident classifier is saturated. Source: Glorot and Bengio, 2010.
    Counterpart of SageMaker Debugger's "saturated activation".
    """
    state = learning(history)
    table = history.activations.get("saturated_fraction")
    if table is None or not (state.nothing(_PATIENCE) or state.little(0.5)):
        return
    recent = table.since(history.at(0.5))
    if not len(recent):
        return
    least = _SATURATED if state.nothing(_PATIENCE) else _NEARLY_ALL
    share = np.where(np.isfinite(recent.mean).any(axis=0), np.nan_to_num(recent.mean).mean(axis=0), 0.0)
    over = np.flatnonzero(share >= least)
    if len(over):
        worst = over[int(share[over].argmax())]
        yield Problem(
            "saturated_activation", "critical", int(recent.first[0]), tuple(recent.names[at] for at in over),
            f"{share[worst]:.0%} of the outputs of {recent.names[worst]} are at an end of their range (threshold: "
            f"{least:.0%}), and the loss has {state.progress}.",
            "Scale the inputs to mean 0 and standard deviation 1, use glorot_uniform, put BatchNormalization before "
            "the activation, or use ReLU or GELU in the hidden layers.",
            history.step, 0.85,
        )  # fmt: skip
