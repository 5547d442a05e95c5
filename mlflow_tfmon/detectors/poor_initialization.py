"""Detector of initial weights from which nothing can be learned, or only with luck."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import LITTLE, MUCH, diverged, learning
from mlflow_tfmon.detectors.premises import Layer
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.detectors.updates import BANDS


def detect(history: History, *, min_factor: float = 10.0, max_radius: float = 3.0) -> Iterator[Problem]:
    """Finds kernels with a constant initial value, and those far from He's and Glorot's standard deviation.

    The units of two consecutive constant layers get the same gradients. That is reported before the first step, and
    withdrawn if 70% is learned nevertheless (at the edges of images the units of a convolution differ). A standard
    deviation ten times above or below sqrt(2 / (fan_in + fan_out)) is reported if the loss diverges, if nothing is
    learned, or if less than 70% is learned in half of the training (30% for one that is too small); a single constant
    layer counts as too small unless it is zero. In the same cases recurrent kernels are reported whose spectral radius,
    the standard deviation times the square root of the units, is above 3. Weights that were loaded, and an output that
    starts near zero, are not reported. Sources: Glorot and Bengio, 2010; He et al., 2015. Counterpart of SageMaker
    Debugger's "poor weight initialization".

    Args:
        history: the training up to some step.
        min_factor: least ratio of the standard deviation to Glorot's, or of Glorot's to it.
        max_radius: largest harmless spectral radius of a recurrent kernel.
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
            f"{len(names)} consecutive kernels are initialized to a constant ({layers[0].mean:.3g} in {names[0]}): "
            "all units of a layer are identical and stay so, since they get the same gradients.",
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
        # Zeros are intended where a layer shall add nothing at first.
        if (layer.std > 0 or (layer.constant and layer.mean != 0)) and layer.kind != "Embedding"
    ]
    # An output that starts near zero is good practice.
    # Weights that are too small grow as something is learned; weights that are too large stay so.
    small = not state.learned >= LITTLE
    far = [
        (one, ratio)
        for one, ratio in far
        if ratio >= min_factor or (ratio <= 1 / min_factor and small and not one.is_output)
    ]
    if far:
        worst, ratio = max(far, key=lambda one: abs(np.log(max(one[1], 1e-9))))
        yield Problem(
            "poor_initialization", "critical", 1, tuple(layer.kernel for layer, _ in far),
            f"{worst.kernel} is initialized with a standard deviation of {worst.std:.2g}, {ratio:.2g} times Glorot's "
            f"(threshold: a factor of {min_factor:.0f}), and the loss has {state.progress}.",
            f'Initialize kernels with "glorot_uniform", or "he_normal" for ReLU.{_afterwards(history)}',
            history.step, 0.85,
        )  # fmt: skip
        return
    recurrent = [one for one in history.premises.layers if one.trainable and one.radius >= max_radius]
    if recurrent:
        worst = max(recurrent, key=lambda one: one.radius)
        yield Problem(
            "poor_initialization", "critical", 1, tuple(one.name for one in recurrent),
            f"The recurrent kernel of {worst.name} is initialized so that it makes its state about {worst.radius:.2g} "
            f"times as large at each step of a sequence (threshold: {max_radius:g}), and the loss has "
            f"{state.progress}.",
            'Initialize recurrent kernels with recurrent_initializer="orthogonal", and use clipnorm=1.0 in the '
            "optimizer.",
            history.step, 0.85,
        )  # fmt: skip


def _afterwards(history: History) -> str:
    """Advice on steps that are as large as gradients: with other weights these are others."""
    known = history.premises
    steady = known is not None and known.optimizer.lower() in BANDS
    return (
        " Then use keras.optimizers.Adam(), whose steps do not depend on how large gradients are."
        if steady
        else ""
    )


def _feeds(before: Layer, after: Layer) -> bool:
    """Whether a layer may take the output of the one before it in the list (second outputs and embeddings do not)."""
    return not before.is_output and after.kind != "Embedding"


def _expected(layer: Layer) -> float:
    return float(np.sqrt(2.0 / max(1, layer.fan_in + layer.fan_out)))
