"""Detector of sigmoids and the like at the ends of their range, where they have no slope."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import learning
from mlflow_tfmon.detectors.premises import Premises
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.unnormalized_input import scaling

_LARGE = (
    3.0  # mean and standard deviation of inputs that fill the range in which a sigmoid or tanh has a slope
)


def detect(
    history: History, *, min_share: float = 0.5, min_share_if_little: float = 0.8, min_done: float = 0.3
) -> Iterator[Problem]:
    """Finds hidden layers with half of their outputs saturated while nothing is learned; 80% if little is.

    The output layer is not examined: that of a confident classifier is saturated. Source: Glorot and Bengio, 2010.
    Counterpart of SageMaker Debugger's "saturated activation".

    Args:
        history: the training up to some step.
        min_share: least share of a layer's outputs at an end of their range, while nothing is learned.
        min_share_if_little: the same while little is learned.
        min_done: share of the training before which nothing is reported (deep tanh networks that start saturated may
            need that long).
    """
    state = learning(history)
    table = history.activations.get("saturated_fraction")
    if table is None or not (state.nothing(min_done) or state.little(0.5)):
        return
    recent = table.since(history.at(0.5))
    if not len(recent):
        return
    least = min_share if state.nothing(min_done) else min_share_if_little
    share = np.where(np.isfinite(recent.mean).any(axis=0), np.nan_to_num(recent.mean).mean(axis=0), 0.0)
    over = np.flatnonzero(share >= least)
    if len(over):
        worst = over[int(share[over].argmax())]
        yield Problem(
            "saturated_activation", "critical", int(recent.first[0]), tuple(recent.names[at] for at in over),
            f"{share[worst]:.0%} of the outputs of {recent.names[worst]} are at an end of their range (threshold: "
            f"{least:.0%}), and the loss has {state.progress}.",
            f"{_advice(history.premises)} If that does not help, put BatchNormalization before the activation, or use "
            "ReLU or GELU in the hidden layers.",
            history.step, 0.85,
        )  # fmt: skip


def _advice(known: Premises | None) -> str:
    """What to change first: the inputs if their scale is large, else the initial weights if they are, else both."""
    x = known.inputs if known is not None and not known.normalizes else None
    if x is not None and x.std > 0 and abs(x.mean) + x.std > _LARGE:
        return scaling(x)
    return 'Initialize kernels with "glorot_uniform", and lower the learning rate if they are.'
