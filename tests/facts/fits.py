"""Calls of fit of many kinds, created afresh, so that both sides of a comparison get the same."""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf

ROWS = 100


def arrays(rows=ROWS, dtype="float32"):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, 4)).astype(dtype), rng.normal(size=(rows, 2)).astype("float32")


def small_model(**compile_options):
    """A model that is not traced, unless asked to be: for a handful of steps tracing takes longest."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((4,), name="rows"),
            keras.layers.Dense(3, name="hidden"),
            keras.layers.Dropout(0.5, name="noise"),
            keras.layers.Dense(2, name="out"),
        ],
        name="small",
    )
    model.compile(
        **{"optimizer": "adam", "loss": "mse", "metrics": ["mae"], "run_eagerly": True, **compile_options}
    )
    return model


def generator(seen=None):
    x, y = arrays()
    while True:
        if seen is not None:
            seen.append(1)
        yield x[:10], y[:10]


class Batches(keras.utils.PyDataset):
    """A PyDataset that counts how often it is read."""

    def __init__(self, batch_size=None):
        super().__init__()
        self.data = arrays()
        self.size = batch_size or 20
        if batch_size:
            self.batch_size = batch_size
        self.reads = 0

    def __len__(self):
        return -(-ROWS // self.size)

    def __getitem__(self, index):
        self.reads += 1
        rows = slice(index * self.size, (index + 1) * self.size)
        return self.data[0][rows], self.data[1][rows]


def pipeline(batch=25, rows=ROWS):
    return tf.data.Dataset.from_tensor_slices(arrays(rows)).batch(batch)


def numpy_defaults():
    return arrays(), {"epochs": 2}, small_model()


def numpy_positional():
    x, y = arrays()
    stop = keras.callbacks.EarlyStopping(monitor="loss", patience=7, min_delta=0.25)
    return (x, y, 16, 2, 0, [stop], 0.0, (x[:30], y[:30]), False), {}, small_model()


def numpy_float64_split():
    x, y = arrays(dtype="float64")
    return (x,), {"y": y, "validation_split": 0.25, "batch_size": 10, "validation_freq": 2}, small_model()


def weights():
    x, y = arrays()
    options = {"sample_weight": np.linspace(0, 1, ROWS), "steps_per_epoch": 3}
    return (x, y), options, small_model(optimizer=keras.optimizers.SGD(0.5, momentum=0.9))


def class_weights():
    x, _ = arrays()
    model = small_model(loss="sparse_categorical_crossentropy", metrics=[])
    return (x, np.arange(ROWS) % 2), {"class_weight": {0: 1.0, 1: 2.5}}, model


def schedule():
    rate = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    return arrays(), {}, small_model(optimizer=keras.optimizers.RMSprop(rate))


def tensors():
    # Other data than those of the arrays: MLflow keeps one description for a name and digest.
    x, y = (tf.constant(array) for array in arrays(90))
    return (x, y), {"validation_data": (x[:20], y[:20])}, small_model()


def batched():
    return (pipeline(),), {"validation_data": pipeline(10, 30)}, small_model()


def prefetched():
    return (pipeline(20, 60).prefetch(2),), {}, small_model()


def endless():
    data = pipeline(20).shuffle(5).repeat().prefetch(1)
    return (data,), {"steps_per_epoch": 4, "epochs": 2}, small_model()


def py_dataset():
    return (Batches(),), {}, small_model()


def py_dataset_with_size():
    return (Batches(50),), {}, small_model()


def from_generator():
    return (generator(),), {"steps_per_epoch": 3}, small_model()


def dictionary():
    x, y = arrays()
    left, right = keras.Input((4,), name="left"), keras.Input((4,), name="right")
    out = keras.layers.Dense(2, name="out")(keras.layers.Add(name="sum")([left, right]))
    model = keras.Model({"left": left, "right": right}, out, name="two")
    model.compile("sgd", "mse")
    data = {"left": x, "right": x * 2}
    return (data, y), {"validation_data": ({"left": x[:9], "right": x[:9]}, y[:9])}, model


KINDS = {
    make.__name__: make
    for make in (numpy_defaults, numpy_positional, numpy_float64_split, weights, class_weights, schedule, tensors,
                 batched, prefetched, endless, py_dataset, py_dataset_with_size, from_generator, dictionary)
}  # fmt: skip
