"""Tests of the facts known before the first step, and the detectors' findings, on models as users write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from mlflow_tfmon.detectors import History, Problem, judge
from mlflow_tfmon.detectors.premises import Premises
from mlflow_tfmon.detectors.sample import Sample
from mlflow_tfmon.facts.arguments import bind_fit
from mlflow_tfmon.facts.premises import Telling, premises_of

Dense, Flatten, Input = keras.layers.Dense, keras.layers.Flatten, keras.Input
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(64, 6)).astype("float32")
PICTURES = RANDOM.normal(size=(64, 8, 8, 3)).astype("float32")
SEQUENCES = RANDOM.normal(size=(64, 5, 3)).astype("float32")
CLASSES = np.arange(64) % 4
NUMBERS = RANDOM.normal(size=64).astype("float32")
SPARSE, MSE = "sparse_categorical_crossentropy", "mse"


class Subclassed(keras.Model):
    """The non-linearity is in `call` alone."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = [Dense(8), Dense(8), Dense(4, "softmax")]

    def call(self, x: Any) -> Any:
        return self.parts[2](tf.nn.relu(self.parts[1](tf.nn.relu(self.parts[0](x)))))


class OwnSoftmax(Dense):
    """A layer of the user's, which Keras's attributes do not tell all of."""

    def call(self, x: Any) -> Any:
        return keras.ops.softmax(super().call(x))


def _functional(make: Callable[[Any], Any], shape: tuple[int, ...] = (6,)) -> keras.Model:
    inputs = Input(shape)
    return keras.Model(inputs, make(inputs))


def _compiled(model: keras.Model, loss: Any, x: np.ndarray = X, **more: Any) -> keras.Model:
    model.compile("adam", loss, **more)
    model(x[:2])
    return model


def _before(model: keras.Model, loss: Any, x: Any, y: Any) -> list[Problem]:
    """The problems before the first step."""
    model.compile("adam", loss)
    if not model.built:
        model(x[:2])
    return judge(History(premises=premises_of(model, x, y)))


def _scaled_age(x: Any) -> Any:
    return keras.layers.Rescaling(100.0)(Dense(1, "sigmoid")(Dense(8, "relu")(x)))


def _bound_action(x: Any) -> Any:
    return 3.0 * Dense(1, "tanh")(Dense(8, "relu")(x))


def _pointer(x: Any) -> Any:
    return keras.layers.Softmax()(Flatten()(Dense(1)(keras.layers.LSTM(8, return_sequences=True)(x))))


def _two_heads(x: Any) -> list[Any]:
    trunk = Dense(8, "relu")(x)
    return [
        Dense(4, "softmax", kernel_initializer="zeros")(trunk),
        Dense(1, kernel_initializer="zeros")(trunk),
    ]


def _factors() -> keras.Model:
    users, items = Input(()), Input(())
    vectors = [keras.layers.Embedding(9, 4)(one) for one in (users, items)]
    biases = [keras.layers.Embedding(9, 1, embeddings_initializer="zeros")(one) for one in (users, items)]
    return keras.Model(
        [users, items], keras.layers.Add()([keras.layers.Dot(1)(vectors), *map(Flatten(), biases)])
    )


def _no_fault() -> dict[str, tuple[keras.Model, Any, Any, Any]]:
    """By name: model, loss, inputs, targets."""
    layers, ops = keras.layers, keras.ops
    masks = np.where(RANDOM.random((64, 8, 8, 1)) < 0.2, 255, RANDOM.integers(0, 4, (64, 8, 8, 1)))
    seq = layers.TimeDistributed(Dense(4, "softmax"))
    return {
        "tf.nn.relu in a call": (Subclassed(), SPARSE, X, CLASSES),
        "activations that are operations": (
            _functional(lambda x: ops.softmax(Dense(4)(keras.activations.gelu(Dense(8)(ops.relu(Dense(8)(x))))))),
            SPARSE, X, CLASSES,
        ),
        "a softmax in a Lambda": (
            keras.Sequential([Input((6,)), Dense(8, "relu"), Dense(4), layers.Lambda(lambda x: tf.nn.softmax(x))]),
            SPARSE, X, CLASSES,
        ),
        "a softmax in a layer of the user's": (
            keras.Sequential([Input((6,)), Dense(8, "relu"), OwnSoftmax(4)]), SPARSE, X, CLASSES,
        ),
        "a layer around the last one": (
            keras.Sequential([Input((5, 3)), Dense(8, "relu"), seq]), SPARSE, SEQUENCES, np.tile(CLASSES[:, None], 5),
        ),
        "a number for each moment": (
            keras.Sequential([Input((5, 3)), Dense(8, "relu"), layers.TimeDistributed(Dense(1))]),
            MSE, SEQUENCES, SEQUENCES[..., :1],
        ),
        "recurrent both ways at the end": (
            keras.Sequential([Input((5, 3)), Dense(8, "relu"), layers.Bidirectional(layers.LSTM(1))]),
            MSE, SEQUENCES, SEQUENCES[:, 0, :2],
        ),
        "a sigmoid that is scaled": (_functional(_scaled_age), MSE, X, 100 * RANDOM.random(64)),
        "a tanh that is multiplied": (_functional(_bound_action), MSE, X, 5 * RANDOM.random(64) - 2.5),
        "rectified and added": (
            _functional(lambda x: layers.Add()([x, Dense(6, "relu")(Dense(6, "relu")(x))])), MSE, X, X,
        ),
        "a softmax over positions": (_functional(_pointer, (5, 3)), SPARSE, SEQUENCES, CLASSES),
        "labels that are left out": (
            keras.Sequential([Input((8, 8, 3)), layers.Conv2D(4, 1, activation="softmax")]),
            keras.losses.SparseCategoricalCrossentropy(ignore_class=255), PICTURES, masks,
        ),
        "two outputs that begin with zeros": (_functional(_two_heads), [SPARSE, MSE], X, None),
        "biases that begin with zeros": (_factors(), MSE, None, NUMBERS),
        "a transposed convolution for ten classes": (
            keras.Sequential([Input((8, 8, 3)), layers.Conv2DTranspose(10, 2, activation="softmax")]),
            SPARSE, PICTURES, RANDOM.integers(0, 10, (64, 9, 9, 1)),
        ),
        "several labels at once": (
            keras.Sequential([Input((6,)), Dense(8, "relu"), Dense(3, "sigmoid")]),
            "binary_crossentropy", X, RANDOM.integers(0, 2, (64, 3)),
        ),
        "linear regression": (
            keras.Sequential([Input((6,)), Dense(1, kernel_initializer="zeros")]), MSE, X, NUMBERS,
        ),
        "a linear autoencoder": (keras.Sequential([Input((6,)), Dense(2), Dense(6)]), MSE, X, X),
        "attention without activations": (
            _functional(
                lambda x: Dense(1)(layers.Flatten()(Dense(4)(layers.MultiHeadAttention(2, 2)(Dense(4)(x), x)))), (5, 3)
            ),
            MSE, SEQUENCES, NUMBERS,
        ),
    }  # fmt: skip


def test_what_is_no_fault_is_not_said_before_the_first_step() -> None:
    said = {}
    for name, (model, loss, x, y) in _no_fault().items():
        said[name] = [problem.kind for problem in _before(model, loss, x, y)]
    assert said == {name: [] for name in said}


def _ahead(*layers: Any, shape: tuple[int, ...] = (6,)) -> keras.Model:
    return keras.Sequential([Input(shape), *layers])


def _faults() -> dict[str, tuple[keras.Model, Any, Any, Any, str]]:
    """By name: model, loss, inputs, targets, kind."""
    return {
        "logits": (_ahead(Dense(8, "relu"), Dense(4)), SPARSE, X, CLASSES, "loss_output_mismatch"),
        "logits, arranged anew": (
            _ahead(Dense(8, "relu"), Dense(8), keras.layers.Reshape((2, 4)), keras.layers.Dropout(0.1)),
            SPARSE, X, np.tile(CLASSES[:, None], 2), "loss_output_mismatch",
        ),
        "the mean of logits": (
            _ahead(keras.layers.Conv2D(4, 3), keras.layers.GlobalAveragePooling2D(), shape=(8, 8, 3)),
            SPARSE, PICTURES, CLASSES, "loss_output_mismatch",
        ),
        "logits at each moment": (
            _ahead(keras.layers.TimeDistributed(Dense(4)), shape=(5, 3)),
            SPARSE, SEQUENCES, np.tile(CLASSES[:, None], 5), "loss_output_mismatch",
        ),
        "logits of a model within a model": (
            keras.Sequential([Input((6,)), keras.Sequential([Input((6,)), Dense(8, "relu"), Dense(4)])]),
            SPARSE, X, CLASSES, "loss_output_mismatch",
        ),
        "another name of a loss": (_ahead(Dense(8, "relu"), Dense(1)), "BCE", X, CLASSES % 2, "loss_output_mismatch"),
        "one unit for classes": (
            _ahead(Dense(8, "relu"), Dense(1, "sigmoid")), "categorical_crossentropy", X, CLASSES[:, None] % 2,
            "loss_output_mismatch",
        ),
        "a softmax over one unit": (
            _ahead(Dense(8, "relu"), Dense(1), keras.layers.Softmax()), "binary_crossentropy", X, CLASSES % 2,
            "loss_output_mismatch",
        ),
        "labels of sequences": (
            _ahead(Dense(3, "softmax"), shape=(5, 3)), SPARSE, SEQUENCES, np.tile(CLASSES[:, None], 5),
            "loss_output_mismatch",
        ),
        "labels of whatever the model does": (
            _functional(lambda x: keras.ops.softmax(Dense(3)(x))), SPARSE, X, CLASSES, "loss_output_mismatch",
        ),
        "rectified numbers": (_ahead(Dense(8, "relu"), Dense(1, "relu")), MSE, X, NUMBERS, "improper_activation"),
        "rectified numbers, by another loss": (
            _ahead(Dense(8, "relu"), Dense(1), keras.layers.ReLU()), "huber", X, NUMBERS, "improper_activation",
        ),
        "a rectified classifier": (
            _ahead(Dense(8, "relu"), Dense(4, keras.layers.LeakyReLU())), SPARSE, X, CLASSES, "improper_activation",
        ),
        "a softmax over the examples": (
            _ahead(Dense(8, "relu"), Dense(4), keras.layers.Softmax(axis=0)), SPARSE, X, CLASSES, "improper_activation",
        ),
        "nothing but linear layers": (_ahead(Dense(8), Dense(8), Dense(1)), MSE, X, NUMBERS, "improper_activation"),
        "constant weights": (
            _ahead(Dense(8, "relu", kernel_initializer="ones"), Dense(8, kernel_initializer="ones"), Dense(1)),
            MSE, X, NUMBERS, "poor_initialization",
        ),
        "NaN in one row of many": (
            _ahead(Dense(1)), MSE, np.where(np.arange(20_001)[:, None] == 20_000, np.nan, np.ones((20_001, 6))), None,
            "nan_or_inf",
        ),
    }  # fmt: skip


def test_a_fault_is_said_before_the_first_step() -> None:
    said, expected = {}, {}
    for name, (model, loss, x, y, kind) in _faults().items():
        said[name] = [(problem.kind, problem.first_step) for problem in _before(model, loss, x, y)]
        expected[name] = [(kind, 0)]
    assert said == expected


def test_the_row_of_a_nan_is_named() -> None:
    x = np.ones((9, 6))
    x[5, 2:4] = np.nan
    problem = judge(History(premises=premises_of(_compiled(_ahead(Dense(1)), MSE), x, NUMBERS[:9])))[0]
    assert "2 non-finite values" in problem.evidence
    assert "x[5]" in problem.evidence
    assert problem.severity == "critical"


def test_what_a_loss_of_the_users_may_leave_out_is_a_warning() -> None:
    """Targets that are missing for some tasks are masked in such a loss."""
    y = np.where(CLASSES == 0, np.nan, NUMBERS)
    losses = {
        "critical": MSE,
        "warning": lambda y, p: tf.reduce_mean(tf.where(tf.math.is_nan(y), 0.0, (y - p) ** 2)),
    }
    for severity, loss in losses.items():
        known = premises_of(_compiled(_ahead(Dense(1)), loss), X, y)
        assert [problem.severity for problem in judge(History(premises=known))] == [severity]


def _base(trainable: bool) -> keras.Model:
    base = keras.Sequential([Input((8, 8, 3)), keras.layers.Conv2D(4, 3, activation="relu"), Flatten()])
    base.trainable = trainable
    return base


def test_who_sees_to_the_scale_of_the_inputs() -> None:
    layers = keras.layers
    itself = {
        "scaled after augmentation": [layers.RandomFlip(), layers.Rescaling(1 / 255), Flatten(), Dense(1)],
        "normalized at once": [layers.ZeroPadding2D(), layers.Conv2D(4, 3), layers.BatchNormalization()],
        "whatever a Lambda does": [layers.Lambda(lambda x: x / 255), Flatten(), Dense(1)],
        "frozen": [_base(trainable=False), Dense(1)],
        "not frozen": [_base(trainable=True), Dense(1)],
        "augmented only": [layers.RandomFlip(), layers.Conv2D(4, 3, activation="relu"), Flatten(), Dense(1)],
        "normalized too late": [layers.Conv2D(4, 3, activation="relu"), layers.BatchNormalization()],
    }
    found = [name for name, made in itself.items() if premises_of(_ahead(*made, shape=(8, 8, 3))).normalizes]
    assert found == list(itself)[:4]


def test_an_operation_may_scale_the_inputs() -> None:
    assert premises_of(_functional(lambda x: Dense(1)(x / 127.5 - 1.0))).normalizes


def test_weights_that_were_loaded_are_not_initial_ones() -> None:
    """Of a pretrained MobileNet the kernels of depthwise convolutions are many times as wide as Glorot's."""
    model = _ahead(
        keras.layers.DepthwiseConv2D(3), Flatten(), Dense(4, kernel_initializer="he_normal"), shape=(8, 8, 3)
    )
    drawn = premises_of(model).layers
    model.set_weights([30 * one for one in model.get_weights()])
    for before, after in zip(drawn, premises_of(model).layers, strict=True):
        assert before.std > 0
        assert np.isnan(after.std)
    wide = _ahead(Dense(8, kernel_initializer=keras.initializers.VarianceScaling(900.0)))
    assert premises_of(wide).layers[0].std > 1.0


def test_the_optimizer_is_named_within_what_scales_its_loss() -> None:
    class Mine(keras.optimizers.SGD):
        pass

    for optimizer in (
        keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1, clipnorm=1.0)),
        Mine(0.1, clipnorm=1),
    ):
        model = _ahead(Dense(1))
        model.compile(optimizer, MSE)
        known = premises_of(model)
        assert (known.optimizer, known.clips) == ("SGD", True)


@pytest.mark.parametrize(
    ("loss", "more", "plain"),
    [
        (MSE, {}, True),
        ("MeanSquaredError", {}, True),
        (keras.losses.MeanSquaredError(reduction="sum"), {}, False),
        (keras.losses.MeanSquaredError(reduction=None), {}, False),
        (MSE, {"loss_weights": [100.0]}, False),
    ],
)
def test_a_constant_prediction_tells_of_a_plain_mean_alone(
    loss: Any, more: dict[str, Any], plain: bool
) -> None:
    known = premises_of(_compiled(_ahead(Dense(1)), loss, **more), X, NUMBERS)
    assert known.loss == "mean_squared_error"
    assert np.isfinite(known.constant_loss()) == plain


@pytest.mark.parametrize(
    ("feed", "known", "weighted"),
    [
        (lambda data: data((X, NUMBERS)).shuffle(64).cache().batch(8).repeat().prefetch(2), True, False),
        (lambda data: data((X, NUMBERS, NUMBERS)).batch(8), True, True),
        (lambda data: data((X, NUMBERS)).map(lambda x, y: (x, 100 * y)).batch(8), False, False),
        (lambda data: data((X, NUMBERS)).map(lambda x, y: (x, y, y)).batch(8), False, True),
        (lambda data: data(({"a": X, "b": X}, NUMBERS)).batch(8), False, False),
        (lambda data: data(X).batch(8), False, False),
    ],
)
def test_a_pipeline_of_arrays_is_known_as_they_are(feed: Any, known: bool, weighted: bool) -> None:
    """It isn't read for that: its shuffling would go on elsewhere."""
    model = _compiled(_ahead(Dense(1)), MSE)
    telling = Telling(model)
    telling.arguments = bind_fit(keras.Model.fit, model, (feed(tf.data.Dataset.from_tensor_slices),), {})
    about = Premises.from_dict(telling.tell("")[0].about)
    assert about.weighted == weighted
    assert about.targets == (Sample.of(NUMBERS) if known else None)


def test_frozen_layers_that_never_learned_are_told_from_those_that_did() -> None:
    model = _ahead(Dense(8, "relu"), Dense(8, "relu"), Dense(1))
    for layer in model.layers[:2]:
        layer.trainable = False
    model.layers[1].bias.assign(np.full(8, 0.01))
    layers = premises_of(_compiled(model, MSE), X, NUMBERS).layers
    assert [one.untouched for one in layers] == [True, False, False]
