"""Tests that collecting the facts of a fit does not change it."""

import random

import fits
import keras
import numpy as np
import pytest
import tensorflow as tf

from mlflow_tfmon.facts import datasets, geometry, metrics, params, saving, summary
from mlflow_tfmon.facts.arguments import bind_fit


@keras.saving.register_keras_serializable("tests")
class Noisy(keras.Model):
    """Draws random numbers in inference too, from Keras's and from TensorFlow's generator."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(2)
        self.seeds = keras.random.SeedGenerator(3)

    def call(self, x, training=False):
        noise = keras.random.normal((2,), seed=self.seeds) + tf.random.normal((2,))
        return self.dense(x) + noise


def take_all(arguments, folder):
    params.fit_params(arguments)
    geometry.total_steps(arguments)
    datasets.datasets(arguments)
    if summary.can_summarize(arguments.model):
        summary.model_summary(arguments.model)
        saving.save_model(arguments.model, folder, arguments, log_input_examples=True)
    metrics.early_stopping_facts(arguments.callback_list)


def inputs(kind):
    x, y = fits.arrays()
    if kind == "arrays":
        return (x, y), {}
    if kind == "augmenting dataset":

        class Augmenting(fits.Batches):
            def __getitem__(self, index):
                x, y = super().__getitem__(index)
                return x + np.random.normal(size=x.shape).astype("float32"), y

        return (Augmenting(),), {}
    data = (
        tf.data.Dataset.from_tensor_slices((x, y))
        .shuffle(100)
        .map(lambda a, b: (a + tf.random.normal((4,)), b))
    )
    return (data.batch(20).prefetch(1),), {"validation_data": fits.pipeline(10, 30)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind,model",
    [("arrays", "noisy"), ("shuffled pipeline", fits.small_model), ("augmenting dataset", fits.small_model)],
)
def test_weights_and_random_numbers_are_the_same_with_and_without(kind, model, tmp_path):
    def train(watched):
        keras.utils.clear_session()  # before Keras 3.15 the seed leaves the global generator as it is
        keras.utils.set_random_seed(5)
        trained = Noisy() if model == "noisy" else model(run_eagerly=False)
        if model == "noisy":
            trained.compile("sgd", "mse")
        args, kwargs = inputs(kind)
        arguments = bind_fit(keras.Model.fit, trained, args, kwargs)
        for phase in range(2):  # what is taken after the first fit must not show in the second
            if watched:
                take_all(arguments, tmp_path / f"before{phase}")
            trained.fit(*args, **{**kwargs, "verbose": 0, "epochs": 2})
            function = trained.train_function
            if watched:
                take_all(arguments, tmp_path / f"after{phase}")
            assert trained.train_function is function
        drawn = (
            np.random.rand(),
            random.random(),
            float(tf.random.normal(())),
            float(keras.random.normal(())),
        )
        return [np.asarray(v).tobytes() for v in trained.variables], drawn

    assert train(watched=True) == train(watched=False)
