"""Initial weights from which nothing can be learned, or only with luck."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import LITTLE, MUCH, diverged, learning
from mlflow_tfmon.detectors.premises import Layer
from mlflow_tfmon.detectors.problem import Problem

_FAR = 10.0


def detect(history: History) -> Iterator[Problem]:
    """Sees kernels that begin constant, and those far from He's and Glorot's standard deviation.

    Two layers in a row that begin constant: their units get the same gradients. That is said before the first step, and
    taken back if 70% is learned all the same (at the edges of pictures the units of a convolution differ). A standard
    deviation ten times above or below sqrt(2 / (fan_in + fan_out)) is said where the loss diverges, nothing is learned,
    or less than 70% of the way from a constant prediction to zero in half of the training (30%, where it is too small);
    one layer that begins constant, but not at zero, is too small. Not of weights that were loaded, nor of an output
    that begins near zero. Sources: Glorot and Bengio, 2010; He et al., 2015. Counterpart of SageMaker Debugger's "poor
    weight initialization".
    """
    if history.premises is None:
        return
    state = learning(history)
    layers = [layer for layer in history.premises.layers if layer.kernel and layer.trainable]
    pairs = [(a, b) for a, b in itertools.pairwise(layers) if a.constant and b.constant and _feeds(a, b)]
    if pairs and not state.learned >= MUCH:
        names = tuple(dict.fromkeys(layer.kernel for pair in pairs for layer in pair))
        yield Problem(
            "poor_initialization", "critical", min(1, history.step), names,
            f"{len(names)} kernels in a row begin constant ({layers[0].mean:.3g} in {names[0]}): the units of a "
            f"layer are "
            "all alike and stay so, since they get the same gradients.",
            'Initialize kernels at random (kernel_initializer="glorot_uniform", or "he_normal" for ReLU).',
            history.step, 1.0,
        )  # fmt: skip
        return
    first = history.nonfinite.get("loss")
    overflow = first is not None and first.first == 1
    half = state.share >= 0.5 and state.learned < MUCH
    if not (state.nothing(0.1) or half or diverged(history) or overflow):
        return
    far = [
        (layer, layer.std / _expected(layer))
        for layer in layers
        # Zeros are meant where a layer is to add nothing at first.
        if (layer.std > 0 or (layer.constant and layer.mean != 0)) and layer.kind != "Embedding"
    ]
    # An output that begins near zero is a good beginning: the layers before it are as they should be.
    # And weights that are too small grow as something is learned; too large ones stay.
    small = not state.learned >= LITTLE
    far = [
        (one, ratio)
        for one, ratio in far
        if ratio >= _FAR or (ratio <= 1 / _FAR and small and not one.is_output)
    ]
    if far:
        worst, ratio = max(far, key=lambda one: abs(np.log(max(one[1], 1e-9))))
        yield Problem(
            "poor_initialization", "critical", 1, tuple(layer.kernel for layer, _ in far),
            f"{worst.kernel} begins with a standard deviation of {worst.std:.2g}, {ratio:.2g} times Glorot's (a "
            f"factor of "
            f"{_FAR:.0f} counts), and the loss has made {max(state.learned, 0):.0%} of the way from a constant "
            "prediction to zero.",
            'Initialize kernels with "glorot_uniform", or "he_normal" for ReLU.',
            history.step, 0.85,
        )  # fmt: skip


def _feeds(before: Layer, after: Layer) -> bool:
    """Whether a layer may get what the one before it in the list gives, as neither a second output nor indices do."""
    return not before.is_output and after.kind != "Embedding"


def _expected(layer: Layer) -> float:
    return float(np.sqrt(2.0 / max(1, layer.fan_in + layer.fan_out)))
