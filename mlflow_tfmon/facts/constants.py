"""Loss of the best constant prediction, found by calling the loss itself, for losses without a formula.

A loss of the user's own may do more than compute: it is called, once and while a graph of it is made, only if it is
seen to keep nothing (`purity`); and the graph is run only if it draws no random numbers and changes nothing. Whatever
it raises is its own affair: then the constant prediction's loss is not known.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from mlflow_tfmon import kerases
from mlflow_tfmon.chance import same_random_numbers
from mlflow_tfmon.facts.purity import leaves_nothing
from mlflow_tfmon.noise import no_warnings

UNKNOWN = (float("nan"), float("nan"))
_KERAS = ("keras", "tf_keras")
# Examples that are looked at: of a loss of the user's own fewer, as it may compare each with each.
_MOST, _MOST_OF_OWN = 4096, 512
# Of large outputs still fewer, but not so few that their own means are much nearer to them than those of all.
_FEWEST, _FEW_NUMBERS, _MOST_NUMBERS = 64, 50_000, 200_000
_QUANTILES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
_MOST_COLUMNS = 8  # whose best number is looked for one by one
_SOFTER = (1.0, 0.7, 0.5, 0.3)  # a focal loss is least for shares that are nearer to each other
_SURE = 20.0  # a logit
_HARMLESS = {"Assert"}  # of the operations that TensorFlow calls stateful
_SEEDS = "global_seed_generator"  # Keras's own


def least_losses(model: Any, targets: Any, weights: Any = None, classes: Any = None) -> tuple[float, float]:
    """The least loss that was found of a constant prediction, and that of a perfect one.

    Args:
        model: a compiled model with one output, whose loss is a mean over the examples.
        targets: of the data, in memory.
        weights: `sample_weight`, as `fit` has it; None for none.
        classes: `class_weight`, the same.

    Returns:
        Both NaN where they are not known: a constant prediction's is at least that of the best one, a perfect one's
        must be less, and not below zero.
    """
    with contextlib.suppress(Exception), contextlib.ExitStack() as stack:
        loss, own = _loss(model)
        shape = getattr(model, "output_shape", None)
        if not isinstance(shape, tuple) or len(shape) < 2 or isinstance(shape[0], (tuple, list)):
            return UNKNOWN
        eager = model.run_eagerly or tf.config.functions_run_eagerly()
        if own and (eager or not leaves_nothing(loss)):
            return UNKNOWN
        if tf.distribute.has_strategy() and tf.distribute.get_strategy().num_replicas_in_sync > 1:
            return UNKNOWN  # there Keras divides each loss by the replicas
        y = np.asarray(targets)
        y = y[:, None] if y.ndim == 1 and kerases.of(model) is not kerases.imported()[0] else y
        shape = tuple(n or (*y.shape, 0)[k] for k, n in enumerate(shape) if k)
        numbers = max(int(np.prod(shape)), y[:1].size)  # an example's
        most = min(_MOST_OF_OWN if own else _MOST, max(_FEWEST, _FEW_NUMBERS // max(1, numbers)))
        chosen = np.linspace(0, len(y) - 1, min(len(y), most)).astype(int)
        if 0 in shape or y.dtype.kind not in "biuf" or len(chosen) * numbers > _MOST_NUMBERS:
            return UNKNOWN
        y = y[chosen].astype("float32") if y.dtype == "float64" else y[chosen]
        w = _weights(y, None if weights is None else np.asarray(weights)[chosen], classes)
        guesses = list(_guesses(y, w, shape))
        perfect = list(_perfect(y, shape))
        for at in (_randomness_kept(), no_warnings(), tf.init_scope(), tf.device("CPU:0")):
            stack.enter_context(at)
        call = _graph(loss, y, w, (len(y), *shape))
        if not _adds_up(call, y, shape):
            return UNKNOWN
        found = [(call(guess), guess) for guess in guesses]
        found = [(value, guess) for value, guess in found if np.isfinite(value)]
        least, best = min(found, key=lambda each: each[0])
        if shape[-1] > 1 and y.size < len(y) * np.prod(shape) and shape[-1] <= _MOST_COLUMNS:
            least = _by_column(call, least, best, guesses)
        ideal = min(value for value in map(call, perfect) if np.isfinite(value))
        # What is not made for a number each may have another perfect prediction, unless nothing is less than this.
        sound = ideal <= 1e-6 * least if y.size != len(y) * np.prod(shape) else ideal < least
        return (least, max(ideal, 0.0)) if least > 0 and ideal > -1e-6 * least and sound else UNKNOWN
    return UNKNOWN


def _loss(model: Any) -> tuple[Any, bool]:
    """The loss as Keras calls it, and whether it is one of the user's own."""
    loss = tf.nest.flatten(model.loss)
    losses = kerases.of(model).losses
    found = losses.get(loss[0]) if len(loss) == 1 else None
    inner = getattr(found, "fn", found)
    own = getattr(inner, "__module__", "").split(".")[0] not in _KERAS
    ways = [getattr(type(model), name) for name in ("train_step", "compute_loss")]
    if found is None or any(way.__module__.split(".")[0] not in _KERAS for way in ways):
        raise ValueError("the minimized loss is not the compiled one")
    wrapper = losses.MeanSquaredError.__base__  # which Keras makes of a function
    return found if isinstance(found, losses.Loss) else wrapper(found), own


def masked(model: Any) -> bool:
    """Whether some of the positions of a model's output may not count."""
    shape = getattr(model, "output_shape", None)
    if not isinstance(shape, tuple) or len(shape) < 3:
        return False
    return any(
        getattr(one, "mask_zero", False) or type(one).__name__ == "Masking" for one in model._flatten_layers()
    )


def _weights(y: np.ndarray, weights: Any, classes: Any) -> np.ndarray | None:
    """Each example's weight, as Keras makes it of both kinds."""
    if classes:
        label = y.argmax(-1) if y.ndim == 2 and y.shape[1] > 1 else y.reshape(len(y))
        of_class = np.array([classes[one] for one in range(len(classes))], "float32")[label.astype(int)]
        weights = of_class if weights is None else weights * of_class
    return None if weights is None else np.asarray(weights, "float32")


def _targets(y: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The targets in the shape of the output, where they are numbers."""
    if y[0].size == np.prod(shape):
        yield y.reshape(-1, *shape)
    elif y[0].size == np.prod(shape[:-1]) and shape[-1] <= _MOST_COLUMNS:
        yield np.broadcast_to(y.reshape(-1, *shape[:-1], 1), (len(y), *shape))


def _labels(y: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The targets as one-hot rows, where they are the indices of classes."""
    whole = y.min() >= 0 and y.max() < shape[-1] and (y == np.round(y)).all()
    if shape[-1] > 1 and whole and y[0].size == np.prod(shape[:-1]):
        yield np.eye(shape[-1], dtype="float32")[y.astype(int).reshape(-1, *shape[:-1])]


def _guesses(y: np.ndarray, weights: np.ndarray | None, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Constant predictions, one of which may be good."""
    y = np.concatenate([y, _resampled(y, weights)]) if weights is not None else y
    parts = [y] if weights is None else np.split(y, 2)
    for part in parts:
        for rows in _labels(part, shape):
            for soft in _SOFTER:
                share = rows.reshape(-1, shape[-1]).mean(axis=0) ** soft
                yield np.broadcast_to(share / share.sum(), shape)
                yield np.broadcast_to(np.log(share + 1e-7), shape)
        for numbers in _targets(part, shape):
            mean = numbers.mean(axis=0)
            yield mean
            if numbers.min() >= 0 and numbers.max() <= 1:
                yield np.log(mean + 1e-7)  # of classes that exclude each other
                for soft in _SOFTER:
                    logits = soft * (np.log(mean + 1e-7) - np.log(1 - mean + 1e-7))
                    yield logits
                    yield 1 / (1 + np.exp(-logits))
                yield np.ones(shape)
    for numbers in _targets(parts[-1], shape):
        yield from np.quantile(numbers, _QUANTILES, axis=0)
    yield np.zeros(shape)


def _resampled(y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """As many examples, each as often as its weight asks for."""
    until = np.cumsum(weights.reshape(len(y), -1).mean(axis=1), dtype=float)
    at = np.searchsorted(until, (np.arange(len(y)) + 0.5) / len(y) * until[-1])
    return y[np.minimum(at, len(y) - 1)]


def _perfect(y: np.ndarray, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Predictions that are the targets themselves, as numbers, probabilities or logits."""
    for rows in (*_labels(y, shape), *_targets(y, shape)):
        yield rows
        if rows.min() >= 0 and rows.max() <= 1:
            yield _SURE * (2 * rows - 1)


def _by_column(call: Any, least: float, best: np.ndarray, guesses: list[np.ndarray]) -> float:
    """Tries each output's number for itself: several quantiles of one target have several best ones."""
    for column in range(best.shape[-1]):
        for guess in guesses:
            tried = np.array(best)
            tried[..., column] = guess[..., column]
            value = call(tried)
            if value < least:
                least, best = value, tried
    return least


def _graph(loss: Any, y: np.ndarray, weights: np.ndarray | None, shape: tuple[int, ...]) -> Any:
    """A function of a prediction; what it computes is looked at before it is run."""
    function = tf.function(lambda y, p: loss(y, p, sample_weight=weights), autograph=False)
    truth = tf.constant(y)
    traced = function.get_concrete_function(
        tf.TensorSpec(truth.shape, truth.dtype), tf.TensorSpec(shape, "float32")
    )
    kinds = {(one.op_def.is_stateful, one.type) for one in traced.graph.get_operations() if one.op_def}
    if any(stateful and kind not in _HARMLESS for stateful, kind in kinds):
        raise ValueError("a loss that draws random numbers or keeps state")

    def call(p: np.ndarray, y: tf.Tensor = truth) -> float:
        return float(np.mean(traced(y, tf.constant(np.broadcast_to(p, shape), tf.float32)).numpy()))

    return call


def _adds_up(call: Any, y: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether a loss is a mean of what each example gives: one that compares examples is another for each batch.

    Of two halves of the examples, each in its place and in the other's gives as much as each of them twice.
    """
    guess = np.random.default_rng(0).uniform(0.1, 0.9, (len(y), *shape))
    half = len(y) // 2
    parts, rest = (np.arange(half), half + np.arange(half)), np.arange(2 * half, len(y))

    def of(first: int, second: int) -> float:
        which = np.concatenate([parts[first], parts[second], rest])
        return call(guess[which], tf.constant(y[which]))

    return bool(np.isclose(of(0, 1) + of(1, 0), of(0, 0) + of(1, 1), rtol=1e-4))


@contextlib.contextmanager
def _randomness_kept() -> Iterator[None]:
    """What draws random numbers as its graph is made takes none from the training."""
    from keras.src.backend.common import global_state  # not public: without it no loss is called

    seeds = global_state.get_global_attribute(_SEEDS)
    try:
        with same_random_numbers():
            yield
    finally:
        global_state.set_global_attribute(_SEEDS, seeds)
