"""Detector of losses that fell a little and then stopped."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import MUCH, NOTHING, fell, learning
from mlflow_tfmon.detectors.premises import LINEAR, Layer
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.underfitting import UNRELATED, lighter_penalty

_FEW_OUTPUTS = 20  # units: an autoencoder, whose code may well be short, has more


def detect(history: History, *, max_learned: float = 0.15, max_units: int = 2) -> Iterator[Problem]:
    """Finds losses that closed 5% to 15% of the gap between a constant prediction and zero, then stopped falling.

    They have not fallen for half of the steps so far. Applied once half of the training is over. If more was learned,
    that may well be all there is to learn, unless all goes through a hidden layer of one or two units (which is no
    attention, and not meant to find a short code): then until 70% is learned. Cannot distinguish targets that are
    mostly noise from a model that learns too little of them. Counterpart of SageMaker Debugger's "loss not decreasing".

    Args:
        history: the training up to some step.
        max_learned: share of the gap from which on what is learned may be all there is.
        max_units: units of a hidden layer that is too narrow for all there is to learn.
    """
    state, narrow = learning(history), _narrow(history, max_units)
    if (
        state.known
        # The divergence of a variational autoencoder takes a part of what is learned.
        and not (history.premises is not None and history.premises.divergence)
        and state.share >= 0.5
        and NOTHING <= state.learned < (MUCH if narrow else max_learned)
        and not fell(history, 0.5)
    ):
        yield Problem(
            "plateau", "warning", int(history.at(0.5)), (),
            f"The loss has stayed at {state.now:.3g} since step {history.at(0.5):.0f}, having closed "
            f"{state.learned:.0%} of the gap between a constant prediction ({state.reference:.3g}) and zero "
            f"(threshold: {MUCH if narrow else max_learned:.0%})."
            + (f" All goes through the {narrow.units} unit(s) of {narrow.name}." if narrow else ""),
            (f"Give {narrow.name} more units, 32 say. " if narrow else "") + lighter_penalty(history) + UNRELATED,
            history.step, 0.6,
        )  # fmt: skip


def _narrow(history: History, max_units: int) -> Layer | None:
    """The hidden layer of few units that all goes through, or None."""
    known = history.premises
    out = known.output if known is not None else None
    if known is None or out is None or not known.graph or not 0 < out.units <= _FEW_OUTPUTS:
        return None
    hidden = [one for one in known.layers if not one.is_output]
    beside = any("Attention" in one.kind or one.activation in ("softmax", "sigmoid") for one in hidden)
    found = [one for one in hidden if one.kernel and 0 < one.units <= max_units and _squeezes(one)]
    return found[0] if found and not beside else None


def _squeezes(layer: Layer) -> bool:
    """Whether a layer's few units are all that comes after it, and less than what it is given."""
    if layer.kind == "SimpleRNN":
        return True
    return layer.kind == "Dense" and layer.units < layer.fan_in and layer.activation not in LINEAR
