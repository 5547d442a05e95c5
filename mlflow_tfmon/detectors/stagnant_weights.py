"""Detector of weights that get no gradient at all."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import MUCH, learning
from mlflow_tfmon.detectors.problem import Problem

_ADVICE = (
    "Check that the outputs of these layers reach the loss (no stop_gradient, argmax or rounding in between, no "
    "ReLU that is always zero); freeze the layers (layer.trainable = False) if they are not meant to be trained."
)


def detect(
    history: History, *, min_steps: int = 50, min_done: float = 0.05, min_done_frozen: float = 0.2
) -> Iterator[Problem]:
    """Finds kernels whose gradient was exactly zero at each recent step, after 50 steps and 5% of the training.

    In a loop also kernels for which its tape gave none, until 70% is learned; if they come before others that have one,
    until that is known by a constant prediction. Frozen layers (`trainable=False`) are not examined, but for those that
    never learned anything: with biases of exactly zero, after 20% of the training and until 70% is learned. Counterpart
    of SageMaker Debugger's "unchanged tensor" and "all zero". Does not find weights that move without getting anywhere.

    Args:
        history: the training up to some step.
        min_steps: steps before which nothing is reported.
        min_done: share of the training before which nothing is reported.
        min_done_frozen: share of the training before which nothing is reported of frozen layers.
    """
    table = history.over_kernels(history.gradients)
    known = history.premises
    # Layers that a fit unfreezes have no gradients before its first step.
    begun = history.step > history.premises_step
    if known is not None and known.loss and history.alone and len(table) and begun:
        kernels = [one.kernel for one in known.layers if one.kernel and one.trainable]
        without = [name for name in kernels if name not in history.sizes]
        if without and len(without) < len(kernels):
            # An auxiliary output may well be left out of the loss: the other kernels may learn all there is.
            little = learning(history).little(min_done)
            yield Problem(
                "stagnant_weights", "critical" if little else "warning", 1, tuple(without),
                f"No gradient reaches {len(without)} of {len(kernels)} trainable kernels: the loss does not depend on "
                "them.",
                _ADVICE, history.step, 0.95,
            )  # fmt: skip
            return
    state = learning(history)
    layers = known.layers if known is not None else ()
    frozen = [one.kernel for one in layers if not one.trainable and one.untouched]
    if frozen and history.alone and state.share >= min_done_frozen and not state.learned >= MUCH:
        yield Problem(
            "stagnant_weights", "critical" if state.little(min_done_frozen) else "warning", 1, tuple(frozen),
            f"{len(frozen)} layers are frozen (trainable=False) with biases of exactly zero, as layers have that were "
            f"never trained. The loss has {state.progress}.",
            "Set layer.trainable = True, also of the model that they are in, and compile again; or load the weights "
            "that they are meant to have.",
            history.step, 0.85,
        )  # fmt: skip
        return
    # Of a loop: what its tape was asked for, in vain. (Another output may be trained later, with all that is learned;
    # but if layers after them learn, how far the loss of the first steps fell tells nothing of that.)
    cut = [name for name in known.unreached if name not in history.sizes] if known is not None else []
    all_learned = state.learned >= MUCH and (state.known or not (known is not None and known.cut))
    if cut and history.alone and state.share > 0 and not all_learned:
        every = len(cut) + sum(name in history.sizes for name in history.kernels)
        yield Problem(
            "stagnant_weights", "critical" if state.little(min_done) else "warning", 1, tuple(cut),
            f"The tape gave no gradient for {len(cut)} of {every} kernels that it was asked for: the loss does not "
            "depend on them, so they are not being trained.",
            _ADVICE, history.step, 0.9,
        )  # fmt: skip
        return
    if not history.alone or history.step < min_steps or state.share < min_done or not len(table):
        return
    recent = table.since(history.at(0.5))
    still = [
        name
        for at, name in enumerate(recent.names)
        if np.isfinite(recent.most[:, at]).any() and np.nanmax(recent.most[:, at]) == 0.0
    ]
    if not still:
        return
    every = len(still) == len(recent.names)
    yield Problem(
        "stagnant_weights", "critical" if every else "warning", int(recent.first[0]), tuple(still),
        f"The gradient of {len(still)} of {len(recent.names)} kernels has been exactly zero at each of the last "
        f"{history.step - recent.first[0] + 1:.0f} steps: they are not being trained.",
        _ADVICE,
        history.step, 0.9,
    )  # fmt: skip
