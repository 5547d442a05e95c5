import itertools

import fits
import keras
import numpy as np
import pytest
import tensorflow as tf

from mlflow_tfmon.facts import pipelines
from mlflow_tfmon.facts.arguments import bind_fit
from mlflow_tfmon.facts.geometry import batch_size, total_steps

X, Y = fits.arrays()


def steps_cases():
    options = {"verbose": 0}
    return {
        "arrays": ((X, Y), {"epochs": 2}, 1, 8),
        "split": ((X, Y), {"validation_split": 0.29, "batch_size": 10}, 1, 8),
        "split beaten by data": (
            (X, Y),
            {"validation_split": 0.29, "validation_data": (X, Y), "batch_size": 50},
            1,
            2,
        ),
        "later epochs": ((X, Y, 50), {"epochs": 5, "initial_epoch": 3}, 1, 4),
        "steps of arrays": ((X, Y), {"steps_per_epoch": 3, "epochs": 2}, 1, 6),
        "pipeline": ((fits.pipeline(30),), {"epochs": 2}, 1, 8),
        "pipeline cut": ((fits.pipeline(25),), {"steps_per_epoch": 3, "epochs": 3}, 1, 3 + 1 + 3),
        "endless": ((fits.pipeline(25).repeat(),), {"steps_per_epoch": 5, "epochs": 2}, 1, 10),
        "several at once": ((X, Y), {"batch_size": 10, "epochs": 2}, 4, 20),
        "several at once, endless": (
            (fits.pipeline(25).repeat(),),
            {"steps_per_epoch": 5, "epochs": 2},
            4,
            16,
        ),
        "py dataset": ((fits.Batches(),), {"epochs": 2}, 1, 10),
        "generator": ((fits.generator(),), {"steps_per_epoch": 4, "epochs": 2}, 1, 8),
    } | {"": ((X, Y), options, 1, 4)}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("case", steps_cases())
def test_total_steps_are_those_that_fit_makes(case):
    args, kwargs, at_once, expected = steps_cases()[case]
    model = fits.small_model(steps_per_execution=at_once, metrics=[], run_eagerly=at_once == 1)
    assert total_steps(bind_fit(keras.Model.fit, model, args, kwargs)) == expected
    model.fit(*args, **{**kwargs, "verbose": 0})
    assert int(model.optimizer.iterations) == expected


@pytest.mark.parametrize(
    "x,options",
    [
        (fits.generator(), {}),
        (fits.pipeline().repeat(), {}),
        (fits.pipeline().filter(lambda x, y: True), {}),
        (object(), {}),
        (None, {}),
        (X, {"epochs": "three"}),
    ],
)
def test_steps_that_cannot_be_known_are_none(x, options):
    assert total_steps(bind_fit(keras.Model.fit, fits.small_model(), (x,), options)) is None


def count_up():
    yield from ((np.ones(4, "float32"), np.ones(2, "float32")) for _ in itertools.count())


@pytest.mark.parametrize(
    "make,expected",
    [
        (lambda: fits.pipeline(7), 7),
        (lambda: fits.pipeline(7).prefetch(2).cache().repeat(3).take(2), 7),
        (lambda: fits.pipeline(7).map(lambda x, y: (x * 2, y), num_parallel_calls=2).shuffle(3), 7),
        (lambda: fits.pipeline(7).with_options(tf.data.Options()).skip(1), 7),
        (
            lambda: (
                tf.data.Dataset.from_tensor_slices(fits.arrays())
                .batch(7, drop_remainder=True)
                .map(lambda x, y: (y, x))
            ),
            7,
        ),
        (lambda: tf.data.Dataset.from_tensor_slices({"a": X}).batch(7, num_parallel_calls=2), 7),
        (lambda: tf.data.Dataset.from_generator(count_up, output_types=("float32", "float32")).batch(7), 7),
        (lambda: fits.pipeline(7).unbatch().padded_batch(6, ((4,), (2,))), 6),
        (lambda: tf.data.Dataset.from_generator(count_up, output_types=("float32", "float32")), None),
        (lambda: tf.data.Dataset.zip(fits.pipeline(7), fits.pipeline(7)), None),
    ],
)
def test_the_batch_size_of_a_pipeline(make, expected):
    assert pipelines.batch_size(make()) == expected


def test_nothing_is_read_to_find_the_batch_size():
    seen, data = [], fits.Batches()
    for x in (fits.generator(seen), data):
        assert batch_size(bind_fit(keras.Model.fit, fits.small_model(), (x,), {})) is None
    assert seen == [] and data.reads == 0
