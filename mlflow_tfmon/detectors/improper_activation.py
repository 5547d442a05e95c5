"""Detector of activations that cannot do what their layer is for."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow_tfmon.detectors.history import History
from mlflow_tfmon.detectors.learning import MUCH, diverged, learning
from mlflow_tfmon.detectors.premises import (
    COSINE,
    CROSS_ENTROPIES,
    LINEAR,
    OVER_EXAMPLES,
    REGRESSIONS,
    Premises,
)
from mlflow_tfmon.detectors.problem import Problem

_RANGES = {
    "sigmoid": (0.0, 1.0),
    "hard_sigmoid": (0.0, 1.0),
    "softmax": (0.0, 1.0),
    "tanh": (-1.0, 1.0),
    "softsign": (-1.0, 1.0),
    "relu": (0.0, float("inf")),
    "relu6": (0.0, 6.0),
    "softplus": (0.0, float("inf")),
    "exponential": (0.0, float("inf")),
}
_NEITHER = ("relu", "relu6", "leaky_relu", "elu", "gelu", "silu", "softplus", "tanh", "softsign")
_MIN_NEGATIVE_SHARE = 0.1
_MIXING = ("Dense", "Conv1D", "Conv2D", "Conv3D", "EinsumDense", "SeparableConv2D")


def detect(history: History, *, max_outside: float = 0.01) -> Iterator[Problem]:
    """Finds outputs that cannot reach the targets, or are neither probabilities nor logits, and linear networks.

    A softmax over the examples of a batch instead of the classes (axis 0) is never withdrawn: Keras computes the loss
    from its input, so that it falls while each prediction depends on the other examples. All others are withdrawn if
    70% is learned nevertheless. Targets of a regression are reported if more than a few lie outside the output's range
    by a hundredth of the targets' standard deviation. Three or more kernels with only linear activations are reported;
    two only if nothing is learned. Exponential or softmax in hidden layers is reported if the loss diverges or nothing
    is learned. Does not see what a user's `call` computes between layers, nor an output that is not made by an
    activation. Sources: UMLAUT (CHI 2021), NeuraLint (TOSEM 2021).

    Args:
        history: the training up to some step.
        max_outside: harmless distance of targets from the output's range, in standard deviations of the targets.
    """
    data = history.premises
    if data is None or not data.layers:
        return
    out = data.output
    if out is not None and out.activation == OVER_EXAMPLES:
        yield Problem(
            "improper_activation", "critical", min(1, history.step), (out.name,),
            f"The softmax of {out.name} runs over the examples of a batch (axis 0): each column of the predictions "
            "adds up to 1 instead of each row, and an example alone has the same probability, 1, for each class.",
            "Use the last axis: keras.layers.Softmax(), or tf.nn.softmax(x, axis=-1).",
            history.step, 0.95,
        )  # fmt: skip
        return
    state = learning(history)
    nothing = state.nothing(0.1) or diverged(history)
    if not state.learned >= MUCH:
        yield from _output(history, data, max_outside)
    kernels = [layer for layer in data.layers if layer.kernel]
    linear = data.graph and all(layer.activation in LINEAR or layer.is_output for layer in data.layers)
    plain = all(layer.kind in _MIXING for layer in kernels)
    if linear and plain and len(kernels) >= (2 if nothing else 3) and not state.learned >= MUCH:
        yield Problem(
            "improper_activation", "warning", min(1, history.step), tuple(layer.name for layer in kernels[:-1]),
            f"{len(kernels)} consecutive layers have no non-linear activation between them: together they are one "
            f"linear layer.",
            'Give the hidden layers an activation (activation="relu").',
            history.step, 0.9,
        )  # fmt: skip
    first = history.nonfinite.get("loss")
    if nothing or (first is not None and first.first == 1):
        odd = [
            layer
            for layer in data.layers[: data.layers.index(kernels[-1]) if kernels else 0]
            if not layer.is_output
            and layer.activation in ("exponential", "softmax")
            and not _attends(layer.kind)
        ]
        if odd:
            yield Problem(
                "improper_activation", "critical", 1, tuple(layer.name for layer in odd),
                f"Hidden layers use the activation {odd[0].activation} ({len(odd)}): "
                "exponential grows without bound, softmax passes on almost nothing; nothing has been learned.",
                'Use activation="relu" or "gelu" in the hidden layers.',
                history.step, 0.8,
            )  # fmt: skip


def _output(history: History, data: Premises, max_outside: float) -> Iterator[Problem]:
    out, y = data.output, data.targets
    if out is None:
        return
    low, high = _RANGES.get(out.activation, (-float("inf"), float("inf")))
    if data.loss == COSINE:  # only the signs matter, not the magnitudes
        low, high = (0.0 if low == 0.0 else -float("inf")), float("inf")
    if data.loss in (*REGRESSIONS, COSINE) and y is not None and y.std > 0:
        # A few targets out of reach do no harm.
        least, most = (y.quantiles[0], y.quantiles[-1]) if y.quantiles else (y.least, y.most)
        few = (
            data.loss == COSINE and y.negative < _MIN_NEGATIVE_SHARE
        )  # lengths and small components do not matter
        if max(low - least, most - high) / y.std > max_outside and not few:
            yield Problem(
                "improper_activation", "critical", min(1, history.step), (out.name,),
                f"The output activation {out.activation} yields {low:g} to {high:g}, but the targets range from "
                f"{y.least:.3g} to {y.most:.3g}.",
                f"Remove the activation of the last layer, {out.with_activation(None)}, or scale the "
                "targets into its range.",
                history.step, 0.95,
            )  # fmt: skip
    if data.loss in CROSS_ENTROPIES and out.activation in _NEITHER:
        fitting = "sigmoid" if data.loss == "binary_crossentropy" else "softmax"
        yield Problem(
            "improper_activation", "critical", min(1, history.step), (out.name,),
            f"The output activation {out.activation} yields neither probabilities nor logits, but the loss is "
            f"{data.loss}.",
            f"End the model with {out.with_activation(fitting)}, or with activation=None and "
            "from_logits=True in the loss.",
            history.step, 0.9,
        )  # fmt: skip


def _attends(kind: str) -> bool:
    return "Attention" in kind or kind == "Softmax"
