"""Tests of what the graph of a step tells of its loss: read from steps as people write them."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from mlflow_tfmon import probes
from mlflow_tfmon.detectors.premises import OVER_EXAMPLES
from mlflow_tfmon.facts.premises import rate_of
from mlflow_tfmon.probes import objective
from mlflow_tfmon.probes.objective import Objective

X = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
NUMBERS, LABELS = X[:, 0], (X[:, 0] > 0).astype("int64") + (X[:, 1] > 0)
losses, nn = keras.losses, tf.nn
Loss = Callable[[Any, Any], Any]


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    user = object()
    probes.install(user, lambda ring, optimizer: None)
    yield
    probes.remove(user)


def net(units: int, end: str | None = None) -> keras.Model:
    return keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(units, end)]
    )


def noted(
    model: keras.Model, loss_of: Loss, y: np.ndarray, *, eager: bool = False, scale: float = 1.0
) -> Objective:
    def step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(scale * x if scale != 1.0 else x, training=True))
        tape.gradient(loss, model.trainable_variables)

    (step if eager else tf.function(step))(tf.constant(X), tf.constant(y))
    found = objective.of([v.value for v in model.trainable_variables])
    assert found is not None
    return found


def test_a_softmax_over_the_examples_is_told_from_one_over_the_classes() -> None:
    def over(axis: int) -> str:
        return noted(
            net(4), lambda y, p: losses.SparseCategoricalCrossentropy()(y, nn.softmax(p, axis=axis)), LABELS
        ).activation

    def in_model(axis: int) -> str:
        model = keras.Sequential([net(4), keras.layers.Softmax(axis)])
        return noted(model, losses.SparseCategoricalCrossentropy(), LABELS).activation

    assert (over(0), over(1), in_model(0)) == (OVER_EXAMPLES, "softmax", OVER_EXAMPLES)
    assert in_model(1) in ("softmax", "linear")


def test_kernels_before_a_rounding_are_cut_off_and_an_unused_head_is_not() -> None:
    x = keras.Input((6,))
    rounded = keras.layers.Lambda(tf.round)(keras.layers.Dense(4, "sigmoid")(x))
    coder = keras.Model(x, keras.layers.Dense(1)(rounded))
    found = noted(coder, lambda y, p: tf.reduce_mean((y - p[:, 0]) ** 2), NUMBERS)
    assert found.cut and len(found.unreached) == 1
    body = keras.layers.Dense(4)(x)
    heads = keras.Model(x, [keras.layers.Dense(1)(body), keras.layers.Dense(1)(body)])
    found = noted(heads, lambda y, p: tf.reduce_mean((y - p[0][:, 0]) ** 2), NUMBERS)
    assert not found.cut and len(found.unreached) == 1


def name_of(one: Objective) -> tuple[str, bool, float]:
    """Its loss, whether of logits, and how many times the mean over the examples it is; 0 if that is not known."""
    if one.goal is None:
        return one.loss, one.from_logits, np.nan_to_num(one.factor)
    return one.goal.name, one.goal.from_logits, np.nan_to_num(one.factor)


def by_hand(y: Any, p: Any) -> Any:
    return -tf.reduce_mean(tf.reduce_sum(tf.one_hot(y, 4) * tf.math.log(p + 1e-7), axis=1))


SPARSE = "sparse_categorical_crossentropy"
CLASSES: list[tuple[Loss, str | None, tuple[str, bool, float]]] = [
    (losses.SparseCategoricalCrossentropy(from_logits=True), None, (SPARSE, True, 1.0)),
    (losses.SparseCategoricalCrossentropy(), "softmax", (SPARSE, False, 1.0)),
    (losses.SparseCategoricalCrossentropy(), None, (SPARSE, False, 1.0)),
    (lambda y, p: tf.reduce_mean(losses.sparse_categorical_crossentropy(y, p)), None, (SPARSE, False, 1.0)),
    (
        lambda y, p: tf.reduce_mean(nn.sparse_softmax_cross_entropy_with_logits(y, p)),
        None,
        (SPARSE, True, 1.0),
    ),
    (
        lambda y, p: tf.reduce_mean(nn.softmax_cross_entropy_with_logits(tf.one_hot(y, 4), p)),
        None,
        ("categorical_crossentropy", True, 1.0),
    ),
    (by_hand, "softmax", ("categorical_crossentropy", False, 1.0)),
    (
        lambda y, p: losses.SparseCategoricalCrossentropy(from_logits=True)(y, p, tf.ones_like(p[:, 0])),
        None,
        (SPARSE, True, 0.0),
    ),
    (
        lambda y, p: 0.5 * losses.SparseCategoricalCrossentropy(from_logits=True)(y, p),
        None,
        (SPARSE, True, 0.5),
    ),
]


@pytest.mark.parametrize(("loss_of", "end", "expected"), CLASSES)
def test_a_classifier(loss_of: Loss, end: str | None, expected: tuple[str, bool, float]) -> None:
    model = net(4, end)
    found = noted(model, loss_of, LABELS)
    assert name_of(found) == expected
    assert (found.units, found.activation, found.maximized) == (4, end or "linear", False)
    assert found.targets == (tf.int64, ()) and found.inputs == (tf.float32, (6,))
    assert not found.scales and found.broadcast == "" and found.unreached == ()
    assert found.numbered == (name_of(found)[0] == "categorical_crossentropy")
    assert found.kernel == model.layers[-1].kernel.path.replace("/", ".")


NUMERIC: list[tuple[Loss, tuple[str, bool, float]]] = [
    (lambda y, p: tf.reduce_mean((y - p[:, 0]) ** 2), ("mean_squared_error", False, 1.0)),
    (lambda y, p: tf.reduce_mean(tf.square(tf.squeeze(p, -1) - y)), ("mean_squared_error", False, 1.0)),
    (lambda y, p: tf.reduce_mean(tf.math.squared_difference(y[:, None], p)), ("mean_squared_error", False, 1.0)),
    (lambda y, p: tf.reduce_mean(tf.abs(y - p[:, 0])), ("mean_absolute_error", False, 1.0)),
    (losses.MeanSquaredError(), ("mean_squared_error", False, 1.0)),
    (losses.Huber(), ("huber", False, 1.0)),
    (lambda y, p: tf.reduce_mean(losses.mean_squared_error(y, p)), ("mean_squared_error", False, 1.0)),
    (lambda y, p: tf.reduce_sum((y - p[:, 0]) ** 2), ("mean_squared_error", False, 32.0)),
    # of several numbers, one for each example, the sum is differentiated
    (lambda y, p: (y - p[:, 0]) ** 2, ("mean_squared_error", False, 32.0)),
    (lambda y, p: losses.mean_squared_error(y[:, None], p), ("mean_squared_error", False, 32.0)),
    (lambda y, p: tf.reduce_sum((y - p[:, 0]) ** 2) / 32.0, ("mean_squared_error", False, 1.0)),
    (lambda y, p: tf.reduce_mean((y - p[:, 0]) ** 2) + 1e-3 * tf.nn.l2_loss(p), ("mean_squared_error", False, 0.0)),
]  # fmt: skip


@pytest.mark.parametrize(("loss_of", "expected"), NUMERIC)
def test_a_regression(loss_of: Loss, expected: tuple[str, bool, float]) -> None:
    found = noted(net(1), loss_of, NUMBERS)
    assert name_of(found) == expected
    assert found.activation == "linear" and found.targets == (tf.float32, ()) and not found.maximized


def test_labels_of_two_classes() -> None:
    y = (NUMBERS > 0).astype("float32")
    found = noted(net(1), lambda y, p: tf.reduce_mean(nn.sigmoid_cross_entropy_with_logits(y, p[:, 0])), y)
    assert name_of(found) == ("binary_crossentropy", True, 1.0) and found.targets == (tf.float32, ())
    found = noted(net(1), losses.BinaryCrossentropy(), y)
    assert name_of(found) == ("binary_crossentropy", False, 1.0) and found.activation == "linear"


@pytest.mark.parametrize(
    "loss_of",
    [
        lambda y, p: -losses.MeanSquaredError()(y, p),
        lambda y, p: tf.reduce_mean(-tf.square(y - p[:, 0])),
        lambda y, p: 0.0 - 2.0 * tf.reduce_mean(tf.abs(y - p[:, 0])),
    ],
)
def test_a_loss_that_is_maximized(loss_of: Loss) -> None:
    assert noted(net(1), loss_of, NUMBERS).maximized


@pytest.mark.parametrize(
    "loss_of",
    [
        lambda y, p: tf.reduce_mean(y * p[:, 0]),
        lambda y, p: tf.reduce_mean(
            tf.square(tf.stop_gradient(tf.reduce_max(p, 1)) - p[:, 0])
        ),  # its own predictions
        lambda y, p: tf.reduce_mean(tf.square(p[:, 0])),
        # a cross-entropy of two classes by hand, in two terms
        lambda y, p: (
            -tf.reduce_mean(y * tf.math.log_sigmoid(p[:, 0]) + (1 - y) * tf.math.log(1 - tf.sigmoid(p[:, 0])))
        ),
        lambda y, p: -tf.reduce_mean(y * tf.math.log(tf.sigmoid(p[:, 0]))),
        # a reward that is made large: no distance to targets
        lambda y, p: -tf.reduce_mean(tf.math.log(tf.nn.sigmoid(p[:, 0])) * y * tf.stop_gradient(p[:, 0])),
    ],
)
def test_what_is_no_distance_to_targets(loss_of: Loss) -> None:
    found = noted(net(1), loss_of, NUMBERS)
    assert name_of(found)[0] == "" and not found.maximized and found.targets is None


def test_a_variational_autoencoder() -> None:
    encoder, decoder = net(4), keras.Sequential([keras.Input((2,)), keras.layers.Dense(6)])

    @tf.function
    def step(x: Any) -> None:
        with tf.GradientTape() as tape:
            mean, log_var = tf.split(encoder(x, training=True), 2, axis=1)
            z = mean + tf.exp(log_var / 2) * tf.random.normal(tf.shape(mean))
            error = tf.reduce_sum(tf.square(decoder(z) - x), 1)
            divergence = -0.5 * tf.reduce_sum(1 + log_var - mean**2 - tf.exp(log_var), 1)
            loss = tf.reduce_mean(error + 0.1 * divergence)
        weights = encoder.trainable_variables + decoder.trainable_variables
        tape.gradient(loss, weights)

    step(tf.constant(X))
    found = objective.of([v.value for v in encoder.trainable_variables])
    assert found is not None and name_of(found) == ("mean_squared_error", False, 6.0) and found.divergence
    assert found.targets == found.inputs == (tf.float32, (6,))


def test_what_a_generator_makes() -> None:
    """For another network to judge; of that one, and of a network that is all there is, nothing of the kind."""
    maker, judge = (
        net(3),
        keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)]),
    )
    seen: list[Any] = []

    @tf.function
    def step(real: Any, noise: Any) -> tuple[Any, Any]:
        with tf.GradientTape(persistent=True) as tape:
            made = maker(noise, training=True)
            told = judge(made, training=True)
            of_maker = tf.reduce_mean(tf.nn.softplus(-told))
            of_judge = tf.reduce_mean(tf.nn.softplus(told)) + tf.reduce_mean(tf.nn.softplus(-judge(real)))
        for loss, one in ((of_maker, maker), (of_judge, judge)):
            weights = one.trainable_variables
            seen.append(
                objective.made_of([loss], list(zip(weights, tape.gradient(loss, weights), strict=True)))
            )
        return made, objective.spread(seen[0])

    made, spread = step(tf.constant(X[:, :3]), tf.constant(X))
    assert seen[1] is None and seen[0].shape == (32, 3)
    assert float(spread) == pytest.approx(made.numpy().std(axis=0).mean(), rel=1e-5)
    of_maker = objective.of([v.value for v in maker.trainable_variables])
    assert of_maker is not None and of_maker.made == (tf.float32, (3,))


def test_a_transposed_softmax_that_is_computed_with_is_not_the_losss_own() -> None:
    """Attention over the examples beside a classifier of the same numbers."""
    cross = losses.SparseCategoricalCrossentropy(from_logits=True)

    def attends(y: Any, p: Any) -> Any:
        return cross(y, p) + tf.reduce_mean(tf.matmul(nn.softmax(tf.transpose(p)), p) ** 2)

    assert noted(net(4), attends, LABELS).activation != OVER_EXAMPLES


def measured(model: keras.Model, loss_of: Loss, y: np.ndarray) -> dict[str, float]:
    """What is to be measured of a step beside its loss."""
    given: dict[str, list[Any]] = {}

    @tf.function
    def step(x: Any, y: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        weights = model.trainable_variables
        given.update(objective.note([loss], list(zip(weights, tape.gradient(loss, weights), strict=True))))
        return {name: tf.add_n(some) for name, some in given.items()}

    return {name: float(value) for name, value in step(tf.constant(X), tf.constant(y)).items()}


def test_the_distance_to_the_targets_is_measured_apart_from_other_terms() -> None:
    model = net(4)

    def penalty() -> Any:
        return 0.3 * tf.add_n([tf.reduce_sum(v**2) for v in model.trainable_variables])

    def cross(y: Any, p: Any) -> Any:
        return tf.reduce_mean(nn.sparse_softmax_cross_entropy_with_logits(y, p))

    p = model(X).numpy()
    shifted = p - p.max(1, keepdims=True)
    expected = float(np.mean(np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(p)), LABELS]))
    of_keras = losses.SparseCategoricalCrossentropy(from_logits=True)
    for distance in (cross, of_keras):
        assert measured(model, lambda y, p, d=distance: d(y, p) + penalty(), LABELS) == {
            "data_loss": pytest.approx(expected, rel=1e-5)
        }
        assert measured(model, distance, LABELS) == {}


def test_a_critics_error_is_not_measured_apart_from_what_acts() -> None:
    def both(y: Any, p: Any) -> Any:
        return tf.reduce_mean((y - p[:, 0]) ** 2) - tf.reduce_mean(nn.log_softmax(p)[:, 1] * y)

    assert measured(net(3), both, NUMBERS) == {}


def actor_and_critic() -> tuple[Any, keras.Model]:
    actor = net(2)
    critic = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)])
    return lambda x: -critic(tf.concat([x, actor(x)], 1)), actor


def actor_and_critic_of_two_inputs() -> tuple[Any, keras.Model]:
    actor, of_state, of_action = net(2), keras.layers.Dense(4), keras.layers.Dense(4)
    end = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    of_state.build((None, 6))
    of_action.build((None, 2))
    return lambda x: end(tf.nn.relu(of_action(actor(x)) + of_state(x))), actor


def student_and_teacher() -> tuple[Any, keras.Model]:
    student, teacher = net(3), net(3)
    return lambda x: tf.square(student(x) - tf.stop_gradient(teacher(x))), student


def student_and_teacher_of_other_data() -> tuple[Any, keras.Model]:
    student, teacher = net(3), net(3)
    return lambda x, other: tf.square(student(x) - tf.stop_gradient(teacher(other))), student


def last_layer_of_a_frozen_body() -> tuple[Any, keras.Model]:
    body, head = net(3, "relu"), keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, use_bias=False)])
    return lambda x: head(body(x)), head


@pytest.mark.parametrize(
    "make",
    [
        actor_and_critic,
        actor_and_critic_of_two_inputs,
        student_and_teacher,
        student_and_teacher_of_other_data,
        last_layer_of_a_frozen_body,
    ],
)
def test_what_is_no_generator(make: Callable[[], tuple[Any, keras.Model]]) -> None:
    loss_of, model = make()
    seen: list[Any] = []

    @tf.function
    def step(*data: Any) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(loss_of(*data))
        weights = model.trainable_variables
        seen.append(objective.made_of([loss], list(zip(weights, tape.gradient(loss, weights), strict=True))))

    step(*[tf.constant(X)] * (2 if make is student_and_teacher_of_other_data else 1))
    assert seen == [None]


@pytest.mark.parametrize("eager", [True, False])
def test_a_loss_that_refers_to_its_model_does_not_keep_it(eager: bool) -> None:
    class Own(keras.losses.Loss):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def call(self, y_true: Any, y_pred: Any) -> Any:
            return tf.square(y_true[:, None] - y_pred)

    model = net(1)
    own = Own(model)
    variables = [v.value for v in model.trainable_variables]
    noted(model, own, NUMBERS, eager=eager)
    gone = weakref.ref(own)
    del model, own
    gc.collect()
    assert gone() is None and objective.of(variables) is not None


def test_of_eager_code_another_loss_of_keras() -> None:
    model = net(1)
    assert name_of(noted(model, losses.MeanSquaredError(), NUMBERS, eager=True))[0] == "mean_squared_error"
    assert name_of(noted(model, losses.Huber(), NUMBERS, eager=True))[0] == "huber"


def test_a_loss_that_is_added_to_itself_many_times() -> None:
    model = net(1)

    @tf.function
    def step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = losses.MeanSquaredError()(y, model(x))
            for _ in range(30):
                loss = loss + loss
        tape.gradient(loss, model.trainable_variables)

    step.get_concrete_function(tf.constant(X), tf.constant(NUMBERS))  # TensorFlow itself takes long to run it
    found = objective.of([v.value for v in model.trainable_variables])
    assert found is not None and name_of(found)[0] == ""


def test_two_inputs_of_one_kind_are_not_taken_for_one() -> None:
    model = net(1)

    @tf.function
    def step(x: Any, other: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(y - (model(x) - model(other))[:, 0]))
        tape.gradient(loss, model.trainable_variables)

    step(tf.constant(X), tf.constant(X), tf.constant(NUMBERS))
    found = objective.of([v.value for v in model.trainable_variables])
    assert found is not None and found.targets is not None and found.inputs is None


def test_a_rate_that_the_users_own_code_tells_is_not_asked_for() -> None:
    rates = itertools.count(1)
    assert np.isnan(rate_of(keras.optimizers.SGD(lambda: float(next(rates)))))
    assert next(rates) == 1
    assert rate_of(keras.optimizers.SGD(0.25)) == 0.25
    assert rate_of(keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.5, 10, 0.9))) == 0.5


def test_two_losses_are_none_that_is_known() -> None:
    found = noted(
        net(1), lambda y, p: losses.MeanSquaredError()(y, p) + losses.MeanAbsoluteError()(y, p), NUMBERS
    )
    assert name_of(found) == ("", False, 0.0)


def test_inputs_that_are_scaled_in_the_step_or_by_the_model() -> None:
    squared = losses.MeanSquaredError()
    assert noted(net(1), squared, NUMBERS, scale=0.1).scales
    scaled = keras.Sequential([keras.Input((6,)), keras.layers.Rescaling(0.1), keras.layers.Dense(1)])
    assert noted(scaled, squared, NUMBERS).scales
    flat = keras.Sequential(
        [keras.Input((6,)), keras.layers.Reshape((3, 2)), keras.layers.Flatten(), keras.layers.Dense(1)]
    )
    assert not noted(flat, squared, NUMBERS).scales


def test_layers_that_no_gradient_reaches() -> None:
    def cut(y: Any, p: Any) -> Any:
        return losses.MeanSquaredError()(y, p)

    inputs = keras.Input((6,))
    h = keras.layers.Lambda(tf.stop_gradient)(keras.layers.Dense(8, "relu", name="body")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(h))
    assert noted(model, cut, NUMBERS).unreached == ("body.kernel",)
    inputs = keras.Input((6,))
    h = keras.layers.Lambda(tf.stop_gradient)(keras.layers.Dense(8, "relu", name="other")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(h))
    assert noted(model, cut, NUMBERS, eager=True).unreached == ("other.kernel",)


def test_of_eager_code_a_loss_of_keras() -> None:
    found = noted(net(4), losses.SparseCategoricalCrossentropy(), LABELS, eager=True)
    assert name_of(found) == (SPARSE, False, 1.0)
    assert (found.units, found.activation) == (4, "linear")
    found = noted(net(4, "softmax"), losses.SparseCategoricalCrossentropy(), LABELS, eager=True)
    assert (found.units, found.activation) == (4, "")
    assert (
        name_of(noted(net(1), lambda y, p: tf.reduce_mean((y - p[:, 0]) ** 2), NUMBERS, eager=True))[0] == ""
    )
