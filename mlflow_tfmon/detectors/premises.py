"""What is known of a training before its first step: the model, the loss, the optimizer, a sample of the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

LINEAR = ("", "linear")
UNKNOWN = "unknown"  # an operation or a layer of the user's own, and what is more than an activation
PROBABILITIES = ("softmax", "sigmoid", "hard_sigmoid")
# Keras's names of the losses that a constant prediction is worked out for.
CROSS_ENTROPIES = ("categorical_crossentropy", "sparse_categorical_crossentropy", "binary_crossentropy")
_MOST_NUMBERS = 2_000_000  # that are looked at of a data set
_MOST_CHECKED = 50_000_000  # of which it is looked whether they are finite: some 20 ms
SQUARED, ABSOLUTE = "mean_squared_error", "mean_absolute_error"
# Of a target and a prediction: the losses whose best constant is looked for among the targets' quantiles.
_ELEMENTWISE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "huber": lambda y, p: np.where(np.abs(y - p) <= 1, (y - p) ** 2 / 2, np.abs(y - p) - 0.5),
    "log_cosh": lambda y, p: np.logaddexp(y - p, p - y) - np.log(2),
    "mean_squared_logarithmic_error": lambda y, p: (
        (np.log1p(np.maximum(y, 0)) - np.log1p(np.maximum(p, 0))) ** 2
    ),
}
_QUANTILES = 101
# Losses whose target is a number that the output is to come near to.
REGRESSIONS = (SQUARED, ABSOLUTE, "mean_absolute_percentage_error", "huber", "log_cosh")


@dataclass(frozen=True)
class Layer:
    """A layer with an activation or a kernel, or one that may be more than linear, in the order of the calls.

    Attributes:
        name: of the layer.
        kind: its Keras class.
        activation: name of its activation, "linear" for none, `UNKNOWN` where nobody knows.
        units: size of its output's last axis (the model's, of the layer that gives it), 0 if unknown.
        kernel: name of its kernel as in the recording, "" for none.
        fan_in: inputs of one unit.
        fan_out: outputs of one input.
        mean: of the initial kernel.
        std: of the initial kernel; NaN where it is not known, as of one that was loaded.
        trainable: whether it is trained.
        is_output: whether the model's output is its output.
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
    is_output: bool = False

    @property
    def constant(self) -> bool:
        """Whether its initial kernel holds one number only."""
        return bool(self.kernel) and self.std == 0.0 and self.fan_in * self.fan_out > 1


@dataclass(frozen=True)
class Sample:
    """Statistics of the first few thousand inputs or targets.

    Attributes:
        count: examples looked at.
        nonfinite: how many numbers are NaN or infinite, of all if these are not too many to look at.
        nonfinite_at: the first example that holds one, -1 for none.
        least: smallest number.
        most: largest number.
        mean: of all numbers.
        std: of all numbers.
        whole: whether all numbers are whole.
        columns: size of the last axis (1 for a plain vector).
        feature_std: smallest and largest standard deviation of a feature that is neither constant nor made of 0 and 1.
        feature_offset: largest distance of such a feature's mean from 0, in its standard deviations.
        spread: mean absolute distance from the median.
        class_counts: how often each class occurs, where these are labels.
        one_hot: whether each row holds a single 1.
        negative: share of numbers below 0.
        quantiles: of the numbers, at equal distances, where an example is one number.
    """

    count: int = 0
    nonfinite: int = 0
    nonfinite_at: int = -1
    least: float = float("nan")
    most: float = float("nan")
    mean: float = float("nan")
    std: float = float("nan")
    whole: bool = False
    columns: int = 1
    feature_std: tuple[float, float] = (float("nan"), float("nan"))
    feature_offset: float = float("nan")
    spread: float = float("nan")
    class_counts: tuple[int, ...] = ()
    one_hot: bool = False
    negative: float = 0.0
    quantiles: tuple[float, ...] = ()

    @classmethod
    def of(cls, values: Any, most: int = 4096) -> Sample:
        """Looks at up to `most` examples, spread evenly over an array."""
        array = np.asarray(values)
        if array.dtype == object or array.dtype.kind not in "biuf" or not array.size:
            return cls(count=len(array) if array.ndim else 0)
        most = min(most, max(16, _MOST_NUMBERS * len(array) // array.size))
        stride = max(1, len(array) // most)
        # A file that is mapped into memory would be read as a whole.
        small = array.size <= _MOST_CHECKED and not isinstance(values, np.memmap)
        lost, lost_at = _nonfinite(array) if small else _nonfinite(array[::stride][:most], stride)
        array = array[::stride][:most].astype(np.float64)
        flat = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(-1, 1)
        finite = flat[np.isfinite(flat).all(axis=1)]
        if not len(finite):
            return cls(count=len(array), nonfinite=lost, nonfinite_at=lost_at, columns=flat.shape[1])
        std, mean = finite.std(axis=0), finite.mean(axis=0)
        # How far an indicator varies tells how rare it is, not its scale.
        varies = (std > 0) & ~((finite == 0) | (finite == 1)).all(axis=0)
        whole = bool((finite == np.round(finite)).all())
        one_hot = (
            flat.shape[1] > 1
            and whole
            and bool(((finite == 1).sum(1) == 1).all() & (finite.sum(1) == 1).all())
        )
        classes: tuple[int, ...] = ()
        if one_hot:
            classes = tuple(int(n) for n in finite.sum(axis=0))
        elif whole and flat.shape[1] == 1 and finite.min() >= 0 and finite.max() < 100_000:
            classes = tuple(int(n) for n in np.bincount(finite[:, 0].astype(np.int64)))
        return cls(
            count=len(array), nonfinite=lost, nonfinite_at=lost_at, least=float(finite.min()), most=float(finite.max()),
            mean=float(finite.mean()), std=float(finite.std()), whole=whole, columns=flat.shape[1],
            feature_std=(float(std[varies].min()), float(std[varies].max())) if varies.any() else (0.0, 0.0),
            feature_offset=float((np.abs(mean[varies]) / std[varies]).max()) if varies.any() else 0.0,
            spread=float(np.abs(finite - np.median(finite, axis=0)).mean()),
            class_counts=classes, one_hot=one_hot, negative=float((finite < 0).mean()),
            quantiles=_quantiles(finite) if flat.shape[1] == 1 else (),
        )  # fmt: skip


@dataclass(frozen=True)
class Premises:
    """What is known of a training before its first step.

    Attributes:
        layers: those with an activation or a kernel, and what may be more than linear.
        loss: Keras's name of the loss, in snake case; "" if it is not one of Keras's or there are several.
        goal: what tells the loss from others.
        from_logits: as the loss has it.
        optimizer: class of the optimizer.
        learning_rate: at the start.
        clips: whether the optimizer clips gradients.
        normalizes: whether the model scales its inputs itself (`Normalization`, `Rescaling`, batch normalization
            first) or takes indices (`Embedding`).
        graph: whether all that the model computes is known: its layers are all there is.
        inputs: of the data.
        targets: of the data.
        weighted: whether the loss is not a plain mean over the examples (these or the classes are weighted, it is a
            sum), so that a constant prediction's is not known.
        trained_before: whether its optimizer had made steps before.
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
    weighted: bool = False
    trained_before: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Premises:
        """Premises as `dataclasses.asdict` tells them."""
        found = dict(values)
        found["layers"] = tuple(_plain(Layer, one) for one in found.get("layers", ()))
        for name in ("inputs", "targets"):
            found[name] = _plain(Sample, found[name]) if found.get(name) else None
        premises: Premises = _plain(cls, found)
        return premises

    def since(self, before: Premises) -> Premises:
        """The same of a further training of a model: its initial kernels are those that it had first."""
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
        """The loss of the best constant prediction; NaN where it is not known.

        For cross-entropy it is the entropy of the classes, for the squared error the variance, for the absolute error
        the mean distance from the median, for other losses that of the best of the targets' quantiles. Where no targets
        are known, all classes are taken to be as frequent.
        """
        y = self.targets
        if self.weighted:
            return float("nan")
        if y is None or not y.count or y.nonfinite:
            return self._undecided()
        if self.loss in CROSS_ENTROPIES:
            return _entropy(y, self.loss == "binary_crossentropy")
        if self.loss in _ELEMENTWISE and y.quantiles:
            return _best_constant(self.loss, y.quantiles)
        return {SQUARED: y.std**2 if y.columns == 1 else float("nan"), ABSOLUTE: y.spread}.get(
            self.loss, float("nan")
        )

    def _undecided(self) -> float:
        """The cross-entropy of a prediction that gives all classes the same share."""
        if self.loss not in CROSS_ENTROPIES or self.output is None or not self.output.units:
            return float("nan")
        return float(np.log(2.0 if self.loss == "binary_crossentropy" else max(2, self.output.units)))

    def chance(self) -> float:
        """The accuracy of always naming the most frequent class, all being as frequent where no targets are known.

        NaN where it is not known.
        """
        counts = self.targets.class_counts if self.targets is not None else ()
        if not counts:
            # exp of the entropy of equal classes is their number
            return float(np.exp(-self._undecided())) if self.targets is None else float("nan")
        return max(counts) / sum(counts)


def _nonfinite(array: np.ndarray, stride: int = 1) -> tuple[int, int]:
    """How many numbers are not finite, and in which example the first of them is (-1 for none)."""
    if array.dtype.kind != "f":
        return 0, -1
    with np.errstate(all="ignore"):  # a sum takes less time, and is not finite if one number is not
        if np.isfinite(array.sum(dtype=np.float32 if array.dtype == np.float16 else None)):
            return 0, -1
    bad = ~np.isfinite(array.reshape(len(array), -1))
    return int(bad.sum()), int(bad.any(axis=1).argmax()) * stride if bad.any() else -1


def _quantiles(values: np.ndarray) -> tuple[float, ...]:
    """As plain numbers, each in the middle of an equal share of the values."""
    found = np.quantile(values, (np.arange(_QUANTILES) + 0.5) / _QUANTILES)
    return tuple(float(one) for one in found)


@lru_cache(maxsize=64)
def _best_constant(loss: str, quantiles: tuple[float, ...]) -> float:
    y = np.array(quantiles)
    return float(_ELEMENTWISE[loss](y[:, None], y[None]).mean(axis=0).min())


def _entropy(y: Sample, binary: bool) -> float:
    if not y.class_counts:
        return float("nan")
    shares = np.array(y.class_counts, float) / sum(y.class_counts)
    if binary and y.columns > 1:  # an average over the outputs
        return float(np.mean([_plogp(np.array([p, 1 - p])) for p in shares]))
    return _plogp(shares)


def _plogp(shares: np.ndarray) -> float:
    shares = shares[shares > 0]
    return float(-(shares * np.log(shares)).sum())


def _plain(cls: type[Any], values: Mapping[str, Any]) -> Any:
    known = {item.name for item in dataclasses.fields(cls)}
    return cls(
        **{name: tuple(v) if isinstance(v, list) else v for name, v in values.items() if name in known}
    )
