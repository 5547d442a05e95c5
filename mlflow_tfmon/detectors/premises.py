"""Facts about a training that are known before its first step: model, loss, optimizer, a sample of the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from mlflow_tfmon.detectors.sample import Sample

LINEAR = ("", "linear")
UNKNOWN = "unknown"  # a custom operation or layer, or one that does more than an activation
OVER_EXAMPLES = "softmax over the examples"  # of a batch (axis 0) instead of the units
PROBABILITIES = ("softmax", "sigmoid", "hard_sigmoid")
# Keras's names of the losses for which the best constant prediction is computed.
CROSS_ENTROPIES = ("categorical_crossentropy", "sparse_categorical_crossentropy", "binary_crossentropy")
SQUARED, ABSOLUTE, COSINE = "mean_squared_error", "mean_absolute_error", "cosine_similarity"
# Losses of a target and a prediction whose best constant is searched for among the targets' quantiles.
_ELEMENTWISE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "huber": lambda y, p: np.where(np.abs(y - p) <= 1, (y - p) ** 2 / 2, np.abs(y - p) - 0.5),
    "mean_absolute_percentage_error": lambda y, p: 100 * np.abs(y - p) / np.maximum(np.abs(y), 1e-7),
    "log_cosh": lambda y, p: np.logaddexp(y - p, p - y) - np.log(2),
    "mean_squared_logarithmic_error": lambda y, p: (
        (np.log1p(np.maximum(y, 0)) - np.log1p(np.maximum(p, 0))) ** 2
    ),
}
# Losses whose target is a number that the output should approach.
REGRESSIONS = (SQUARED, ABSOLUTE, "mean_absolute_percentage_error", "huber", "log_cosh")


@dataclass(frozen=True)
class Layer:
    """A layer with an activation or a kernel, or one that may be non-linear, in the order of the calls.

    Attributes:
        name: of the layer.
        kind: its Keras class.
        activation: name of its activation, "linear" for none, `UNKNOWN` if it cannot be determined.
        units: size of the last axis of its output (for the output layer, of the model's output), 0 if unknown.
        kernel: name of its kernel as in the recording, "" for none.
        fan_in: inputs of one unit.
        fan_out: outputs of one input.
        mean: of the initial kernel.
        std: of the initial kernel; NaN if unknown, as for one that was loaded.
        trainable: whether it is trained.
        untouched: of a frozen layer: whether its biases are exactly the zeros that an untrained one begins with.
        is_output: whether the model's output is its output.
        radius: about the spectral radius of its initial recurrent kernel (of each gate); NaN without one.
    """

    name: str
    kind: str
    activation: str = "linear"
    units: int = 0
    kernel: str = ""
    fan_in: int = 0
    fan_out: int = 0
    mean: float = float("nan")
    std: float = float("nan")
    trainable: bool = True
    untouched: bool = False
    is_output: bool = False
    radius: float = float("nan")

    @property
    def constant(self) -> bool:
        """Whether all numbers of its initial kernel are equal."""
        return bool(self.kernel) and self.std == 0.0 and self.fan_in * self.fan_out > 1

    def with_activation(self, activation: str | None) -> str:
        """The layer with another activation, as code: whole for `Dense`, else that argument alone."""
        argument = f'activation="{activation}"' if activation else "activation=None"
        return f"Dense({self.units}, {argument})" if self.kind == "Dense" else argument


@dataclass(frozen=True)
class Premises:
    """Facts about a training that are known before its first step.

    Attributes:
        layers: those with an activation or a kernel, and those that may be non-linear.
        loss: Keras's name of the loss, in snake case; "" if it is not one of Keras's or there are several.
        goal: identifies the loss.
        from_logits: the loss's setting of that name.
        optimizer: class of the optimizer.
        learning_rate: at the start.
        clips: whether the optimizer clips gradients.
        normalizes: whether the model scales its inputs itself (`Normalization`, `Rescaling`, batch normalization
            first) or takes indices (`Embedding`).
        graph: whether `layers` are all that the model computes.
        inputs: sample of the inputs.
        targets: sample of the targets.
        val_inputs: sample of the inputs of the validation data.
        val_targets: sample of the targets of the validation data.
        weighted: whether the loss is not a plain mean over the examples (weighted examples or classes, or a sum), so
            that the formulas for a constant prediction do not hold.
        in_order: whether the examples are fed in the order in which the sample of them is.
        trained_before: whether the optimizer had made steps before.
        broadcast: the two shapes that the loss broadcasts to each other, or "".
        norm_momentum: the largest momentum of trainable BatchNormalization layers; NaN without any.
        factor: how many times the mean over the examples the loss is.
        divergence: whether a divergence is a part of it, as of a variational autoencoder, in addition to that.
        fed: sample of what comes second in the batches of a loop, targets or not, whose loss is not known.
        maximized: whether a loss that is a distance to targets has a minus sign.
        piles: whether each step applies the gradient of the step before with its own added to it.
        spread: how far apart the data are that a generator imitates: the standard deviation of each of their numbers,
            in the mean; NaN if unknown.
        unreached: kernels for which a tape was asked and gave no gradient.
        cut: whether one of these comes before one that has a gradient: the way to the loss is cut between them.
        optimizers: how many optimizers have trained the variables of a loop so far, one after another.
        repeated: of how many batches of its dataset a loop takes the same one again and again; 0 if it does not.
        suggested_rate: the learning rate that a range test suggested before the training; NaN without one.
        more: whether this only adds to what was told of the same training.
    """

    layers: tuple[Layer, ...] = ()
    loss: str = ""
    goal: str = ""
    from_logits: bool = False
    optimizer: str = ""
    learning_rate: float = float("nan")
    clips: bool = False
    normalizes: bool = False
    graph: bool = True
    inputs: Sample | None = None
    targets: Sample | None = None
    val_inputs: Sample | None = None
    val_targets: Sample | None = None
    weighted: bool = False
    in_order: bool = False
    trained_before: bool = False
    norm_momentum: float = float("nan")
    broadcast: str = ""
    factor: float = 1.0
    divergence: bool = False
    fed: Sample | None = None
    maximized: bool = False
    piles: bool = False
    spread: float = float("nan")
    unreached: tuple[str, ...] = ()
    cut: bool = False
    optimizers: int = 1
    repeated: int = 0
    suggested_rate: float = float("nan")
    more: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Premises:
        """Returns the premises in a dict made by `dataclasses.asdict`."""
        found = dict(values)
        found["layers"] = tuple(_plain(Layer, one) for one in found.get("layers", ()))
        for name in ("inputs", "targets", "val_inputs", "val_targets", "fed"):
            found[name] = _plain(Sample, found[name]) if found.get(name) else None
        premises: Premises = _plain(cls, found)
        return premises

    def since(self, before: Premises) -> Premises:
        """Returns these premises of a further training of a model, with the initial kernels of its first training."""
        first = {layer.kernel: layer for layer in before.layers if layer.kernel}
        layers = (
            dataclasses.replace(one, mean=first[one.kernel].mean, std=first[one.kernel].std)
            if one.kernel in first
            else one
            for one in self.layers
        )
        return dataclasses.replace(self, layers=tuple(layers))

    @property
    def output(self) -> Layer | None:
        """The layer whose output is the model's, where it has one output."""
        found = [layer for layer in self.layers if layer.is_output]
        return found[0] if len(found) == 1 else None

    def constant_loss(self) -> float:
        """Returns the loss of the best constant prediction; NaN if unknown.

        For cross-entropy it is the entropy of the classes, for the squared error the variance, for the absolute error
        the mean distance from the median, for some other losses that of the best of the targets' quantiles. If the
        targets are unknown, all classes are assumed to be equally frequent. A loss of the user's own is never called:
        that could change the training.
        """
        return float("nan") if self.weighted else self.factor * self._mean_constant_loss()

    def _mean_constant_loss(self) -> float:
        y = self.targets
        if y is None or not y.count or y.nonfinite:
            return self._undecided()
        if self.loss == "binary_crossentropy":
            return y.binary[0] if y.binary else float("nan")
        if self.loss == "categorical_crossentropy" and not y.one_hot:
            return float("nan")
        if self.loss in CROSS_ENTROPIES:
            # In sequences of labels the zeros may be padding, which is masked.
            return max(
                _entropy(y.class_counts),
                _entropy(y.class_counts[1:]) if y.columns > 1 and y.axes <= 2 and not y.one_hot else 0,
            )
        if self.loss in _ELEMENTWISE and y.quantiles:
            return _best_constant(self.loss, y.quantiles)
        return {SQUARED: y.variance, ABSOLUTE: y.spread}.get(self.loss, float("nan"))

    def least_loss(self) -> float:
        """Returns the loss of a perfect prediction; not 0 for binary cross-entropy with targets between 0 and 1."""
        y = self.targets
        known = self.loss == "binary_crossentropy" and y is not None and y.binary
        return self.factor * y.binary[1] if known and y is not None else 0.0

    def _undecided(self) -> float:
        """The cross-entropy of a prediction that gives all classes the same probability."""
        if self.loss not in CROSS_ENTROPIES or self.output is None or not self.output.units:
            return float("nan")
        return float(np.log(2.0 if self.loss == "binary_crossentropy" else max(2, self.output.units)))

    def constant_losses(self) -> dict[str, float]:
        """Usual losses of the best constant prediction if what is `fed` were the targets, by what they are of them."""
        y = self.fed
        if y is None or not y.count or y.nonfinite or not y.std > 0:
            return {}
        found = {"variance": y.variance, "mean distance from the median": y.spread}
        if y.whole and len(y.class_counts) > 1:
            found["entropy"] = _entropy(y.class_counts)
        return found

    def chance(self) -> float:
        """Returns the accuracy of always naming the most frequent class; NaN if unknown.

        If the targets are unknown, all classes are assumed to be equally frequent.
        """
        counts = self.targets.class_counts if self.targets is not None else ()
        if not counts:
            # exp of the entropy of equal classes is their number
            return float(np.exp(-self._undecided())) if self.targets is None else float("nan")
        y = self.targets
        assert y is not None
        tags = y.columns > 1 and not y.one_hot and self.loss != "sparse_categorical_crossentropy"
        return float("nan") if tags else max(counts) / sum(counts)


@lru_cache(maxsize=64)
def _best_constant(loss: str, quantiles: tuple[float, ...]) -> float:
    y = np.array(quantiles)
    return float(_ELEMENTWISE[loss](y[:, None], y[None]).mean(axis=0).min())


def _entropy(counts: tuple[int, ...]) -> float:
    if not sum(counts):
        return float("nan")
    shares = np.array([one for one in counts if one], float) / sum(counts)
    return float(-(shares * np.log(shares)).sum())


def _plain(cls: type[Any], values: Mapping[str, Any]) -> Any:
    known = {item.name for item in dataclasses.fields(cls)}
    return cls(
        **{name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if name in known}
    )
