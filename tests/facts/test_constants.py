"""Tests of the best constant prediction's loss, found by calling the loss, against SciPy and scikit-learn."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.metrics import log_loss, mean_absolute_percentage_error, mean_squared_error

from mlflow_tfmon.detectors.premises import Premises
from mlflow_tfmon.facts.arguments import bind_fit
from mlflow_tfmon.facts.premises import Telling, premises_of

Dense, Input, Sequential, losses = keras.layers.Dense, keras.Input, keras.Sequential, keras.losses
RANDOM = np.random.default_rng(0)
N = 500
X = RANDOM.normal(size=(N, 3)).astype("float32")
NUMBERS = (10 + 2 * RANDOM.normal(size=N)).astype("float32")
COUNTS = RANDOM.poisson(1.0, N).astype("float32")
RARE = (RANDOM.random(N) < 0.1).astype("int64")
THREE = RANDOM.choice(3, N, p=[0.6, 0.3, 0.1])
WEIGHTS = RANDOM.uniform(0.1, 3.0, N).astype("float32")
PROFILE = (np.sin(np.arange(6))[None, :, None] * 5 + RANDOM.normal(size=(N, 6, 1))).astype("float32")
MASKS = RANDOM.choice(3, (N, 4, 4), p=[0.9, 0.05, 0.05])
LEVELS = (0.1, 0.5, 0.9)


def own_mse(y: Any, p: Any) -> Any:
    return tf.reduce_mean((y - p) ** 2, axis=-1)


class Squared(losses.Loss):
    def call(self, y: Any, p: Any) -> Any:
        return tf.reduce_mean((y - p) ** 2, axis=-1)


def pinball(y: Any, p: Any) -> Any:
    q = tf.constant(LEVELS)
    return tf.reduce_mean(tf.maximum(q * (y - p), (q - 1) * (y - p)), axis=-1)


def _pinball(y: np.ndarray, p: np.ndarray) -> float:
    q = np.array(LEVELS)
    return float(np.mean(np.maximum(q * (y[:, None] - p), (q - 1) * (y[:, None] - p))))


def _net(units: int = 1, activation: str | None = None, shape: tuple[int, ...] = (3,)) -> keras.Model:
    return Sequential([Input(shape), Dense(units, activation)])


def _known(model: keras.Model, loss: Any, y: Any, **more: Any) -> float:
    model.compile("adam", loss)
    telling = Telling(model)
    telling.arguments = bind_fit(keras.Model.fit, model, (None, y), more)
    about = telling.tell("")[0].about
    return Premises.from_dict(about).constant_loss()


def _least(loss: Callable[[np.ndarray], float], start: Any) -> float:
    return float(
        minimize(loss, np.asarray(start, float), method="Nelder-Mead", options={"maxiter": 4000}).fun
    )


def _focal(z: np.ndarray) -> float:
    p = expit(z[0])
    right = np.where(RARE == 1, p, 1 - p)
    return float(np.mean(-((1 - right) ** 2) * np.log(right)))


def _weighted_entropy(y: np.ndarray, w: np.ndarray) -> float:
    found = DummyClassifier(strategy="prior").fit(y[:, None], y, sample_weight=w)
    return float(log_loss(y, found.predict_proba(y[:, None]), sample_weight=w) * w.mean())


def _weighted_square() -> float:
    found = DummyRegressor().fit(X, NUMBERS, sample_weight=WEIGHTS).predict(X)
    return float(mean_squared_error(NUMBERS, found, sample_weight=WEIGHTS) * WEIGHTS.mean())


def _poisson(p: np.ndarray) -> float:
    return float(np.mean(p - COUNTS * np.log(np.maximum(p, 1e-9))))


BALANCE = {0: 0.5, 1: 5.0}
OF_CLASS = np.where(RARE == 1, 5.0, 0.5)
CASES: dict[str, tuple[keras.Model, Any, np.ndarray, dict[str, Any], Callable[[], float]]] = {
    "a function": (_net(), own_mse, NUMBERS[:, None], {}, lambda: float(NUMBERS.var())),
    "a function, a vector": (_net(), own_mse, NUMBERS, {}, lambda: float(NUMBERS.var())),
    "a class": (_net(), Squared(), NUMBERS[:, None], {}, lambda: float(NUMBERS.var())),
    "a function, weighted": (_net(), own_mse, NUMBERS, {"sample_weight": WEIGHTS}, _weighted_square),
    "squares, weighted": (_net(), "mse", NUMBERS, {"sample_weight": WEIGHTS}, _weighted_square),
    "absolute, weighted": (
        _net(), "mae", NUMBERS, {"sample_weight": WEIGHTS},
        lambda: _least(lambda p: float(np.mean(WEIGHTS * np.abs(NUMBERS - p))), [10.0]),
    ),
    "sequences": (
        _net(shape=(6, 2)), own_mse, PROFILE, {},
        lambda: float(mean_squared_error(PROFILE[..., 0], DummyRegressor().fit(np.zeros((N, 1)), PROFILE[..., 0])
                                         .predict(np.zeros((N, 1))))),
    ),
    "sequences, Keras's": (_net(shape=(6, 2)), "mse", PROFILE, {}, lambda: float(PROFILE.var(axis=0).mean())),
    "sequences, absolute": (
        _net(shape=(6, 2)), "mae", PROFILE, {},
        lambda: float(np.abs(PROFILE - np.median(PROFILE, axis=0)).mean()),
    ),
    "relative": (
        _net(), "mape", NUMBERS, {},
        lambda: min(100 * mean_absolute_percentage_error(NUMBERS, np.full(N, p)) for p in np.linspace(5, 15, 1001)),
    ),
    "classes, weighted": (
        _net(1, "sigmoid"), "binary_crossentropy", RARE, {"class_weight": BALANCE},
        lambda: _weighted_entropy(RARE, OF_CLASS),
    ),
    "classes, weighted twice": (
        _net(1, "sigmoid"), "binary_crossentropy", RARE, {"class_weight": BALANCE, "sample_weight": WEIGHTS},
        lambda: _weighted_entropy(RARE, OF_CLASS * WEIGHTS),
    ),
    "logits, weighted": (
        _net(1), losses.BinaryCrossentropy(from_logits=True), RARE, {"class_weight": BALANCE},
        lambda: _weighted_entropy(RARE, OF_CLASS),
    ),
    "three classes, logits, weighted": (
        _net(3), losses.SparseCategoricalCrossentropy(from_logits=True), THREE, {"sample_weight": WEIGHTS},
        lambda: _weighted_entropy(THREE, WEIGHTS),
    ),
    "three classes as rows, of the user's own": (
        _net(3), lambda y, p: tf.nn.softmax_cross_entropy_with_logits(y, p), np.eye(3, dtype="float32")[THREE], {},
        lambda: _weighted_entropy(THREE, np.ones(N)),
    ),
    "masks, of the user's own": (
        _net(3, shape=(4, 4, 2)), lambda y, p: tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(y, "int32"), p),
        MASKS, {}, lambda: _weighted_entropy(MASKS.ravel(), np.ones(MASKS.size)),
    ),
    "masks": (
        _net(3, "softmax", (4, 4, 2)), "sparse_categorical_crossentropy", MASKS, {},
        lambda: _weighted_entropy(MASKS.ravel(), np.ones(MASKS.size)),
    ),
    "focal": (
        _net(1, "sigmoid"), losses.BinaryFocalCrossentropy(gamma=2.0), RARE, {}, lambda: _least(_focal, [-1.0]),
    ),
    "quantiles": (
        _net(3), pinball, NUMBERS[:, None], {}, lambda: _least(lambda p: _pinball(NUMBERS, p), [8.0, 10.0, 12.0]),
    ),
    "counts": (_net(1, "exponential"), "poisson", COUNTS, {}, lambda: _least(_poisson, [1.0])),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_constant_prediction_loses_what_the_best_one_does(name: str) -> None:
    model, loss, y, more, reference = CASES[name]
    best = reference()
    found = _known(model, loss, y, **more)
    assert found >= best * (1 - 1e-4)  # what was tried is no better than the best
    assert found == pytest.approx(best, rel=0.04)


def test_a_perfect_prediction_of_counts_does_not_lose_nothing() -> None:
    model = _net(1, "exponential")
    model.compile("adam", "poisson")
    perfect = np.mean(COUNTS - COUNTS * np.log(np.maximum(COUNTS, 1e-9)))
    assert premises_of(model, X, COUNTS).least_loss() == pytest.approx(perfect, rel=1e-4)


def _raises(y: Any, p: Any) -> Any:
    raise RuntimeError("not for such an input")


def _likelihood(y: Any, p: Any) -> Any:
    return 0.5 * ((y - p[:, :1]) ** 2 * tf.exp(-2 * p[:, 1:]) + 2 * p[:, 1:]) + 0.92


def _counting(calls: list[int]) -> Any:
    def loss(y: Any, p: Any) -> Any:
        calls[0] += 1
        return own_mse(y, p)

    return loss


def _with_model(model: keras.Model) -> Any:
    return lambda y, p: own_mse(model(y), p)


CALLS = [0]
COUNTER = tf.Variable(0.0)


def _assigns(y: Any, p: Any) -> Any:
    COUNTER.assign_add(1.0)
    return own_mse(y, p)


SEEN: list[int] = []


class Anneals(losses.Loss):
    times = 0

    def factor(self) -> float:
        self.times += 1
        CALLS[0] += 1
        return 1.0 / self.times

    def call(self, y: Any, p: Any) -> Any:
        return self.factor() * own_mse(y, p)


class Remembers(losses.Loss):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = SEEN

    def call(self, y: Any, p: Any) -> Any:
        self.note()
        return own_mse(y, p)

    def note(self) -> None:
        self.seen.append(1)


def _helped(y: Any, p: Any) -> Any:
    _count()
    return own_mse(y, p)


def _count() -> None:
    CALLS[0] += 1


def _remembers(y: Any, p: Any) -> Any:
    SEEN.append(1)
    return own_mse(y, p)


@pytest.mark.parametrize(
    ("loss", "units", "more"),
    [
        (Anneals(), 1, {}),
        (Remembers(), 1, {}),
        (_helped, 1, {}),
        (_remembers, 1, {}),
        (_raises, 1, {}),
        (lambda y, p: own_mse(y, p) * float("nan"), 1, {}),
        (lambda y, p: own_mse(y, p) - 1e3, 1, {}),
        (_likelihood, 2, {}),
        (_counting(CALLS), 1, {}),
        (_with_model(_net(shape=(1,))), 1, {}),
        (_assigns, 1, {}),
        (lambda y, p: own_mse(y, p) + tf.random.uniform(()), 1, {}),
        (lambda y, p: own_mse(y, p) + keras.random.uniform(()), 1, {}),
        (losses.MeanSquaredError(reduction="sum"), 1, {}),
        ("mse", 1, {"sample_weight": np.zeros(3)}),
    ],
)
def test_what_can_not_be_known_is_not_said(loss: Any, units: int, more: Any) -> None:
    assert np.isnan(_known(_net(units), loss, NUMBERS[:, None], **more))
    assert CALLS == [0]
    assert SEEN == []
    assert float(COUNTER) == 0.0


def test_a_loss_that_compares_examples_is_another_for_each_batch() -> None:
    def nearest(
        y: Any, p: Any
    ) -> Any:  # of triplets: the farthest of its own class against the nearest other
        away = tf.reduce_sum((p[:, None] - p[None]) ** 2, axis=-1)
        same = tf.reshape(y, (-1, 1)) == tf.reshape(y, (1, -1))
        own, others = tf.where(same, away, 0.0), tf.where(same, 9.0, away)
        return tf.nn.relu(tf.reduce_max(own, axis=1) - tf.reduce_min(others, axis=1) + 0.5)

    assert np.isnan(_known(_net(4), nearest, THREE))

    def away(y: Any, p: Any) -> Any:  # of each for itself
        return tf.reduce_sum((p - tf.one_hot(tf.cast(tf.reshape(y, (-1,)), "int32"), 4)) ** 2, axis=-1)

    expected = np.var(np.eye(4)[THREE], axis=0).sum()
    assert _known(_net(4), away, THREE) == pytest.approx(expected, rel=1e-3)


def test_positions_that_are_masked_do_not_count() -> None:
    inner = Sequential([Input((6, 2)), keras.layers.Masking(), keras.layers.LSTM(4, return_sequences=True)])
    model = Sequential([Input((6, 2)), inner, Dense(1)])
    for loss in ("mse", own_mse):
        model.compile("adam", loss)
        assert np.isnan(premises_of(model, np.zeros((N, 6, 2)), PROFILE).constant_loss())


def test_several_outputs_are_left_out() -> None:
    inputs = Input((3,))
    model = keras.Model(inputs, [Dense(1)(inputs), Dense(1)(inputs)])
    model.compile("adam", [own_mse, own_mse])
    assert np.isnan(premises_of(model, X, NUMBERS).constant_loss())


def _draws(y: Any, p: Any) -> Any:
    noise = keras.random.normal(()) + tf.random.normal(()) + random.random() + np.random.random()
    return tf.reduce_mean((y - p) ** 2, axis=-1) * (1 + 0.1 * noise)


@pytest.mark.parametrize("loss", [own_mse, Squared(), _draws, pinball])
@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("seed", ["keras", "alone"])
def test_a_training_is_the_same_bit_by_bit_when_it_was_looked_at(loss: Any, eager: bool, seed: str) -> None:
    def train(look: bool) -> tuple[list[Any], Any]:
        keras.utils.clear_session()
        keras.utils.set_random_seed(3)
        if seed == "alone":
            keras.config.set_floatx("float32")
            random.seed(7)
        model = Sequential([Input((3,)), Dense(4, "relu"), keras.layers.Dropout(0.5), Dense(1)])
        model.compile("adam", loss, run_eagerly=eager)
        if look:
            before = len(tf.compat.v1.get_default_graph().get_operations())
            premises_of(model, X, NUMBERS[:, None])
            assert len(tf.compat.v1.get_default_graph().get_operations()) == before
        seen = model.fit(X[:96], NUMBERS[:96, None], epochs=2, verbose=0).history["loss"]
        drawn = (
            tf.random.normal((2,)).numpy(),
            keras.random.normal((2,)).numpy(),
            random.random(),
            np.random.random(),
        )
        return [*model.get_weights(), *drawn], seen

    (plain, losses_), (looked, same) = train(look=False), train(look=True)
    assert losses_ == same
    for one, other in zip(plain, looked, strict=True):
        np.testing.assert_array_equal(one, other)
