"""Losses of classifiers: binary cross-entropy from logits and from probabilities, sparse and one-hot categorical.

A sigmoid in float32 is exactly 1 from a logit of 17 on, so a loss made of the probability knows no difference beyond,
and has no gradient: a model that is confidently wrong stays so. Made of the logit, the loss is exact. Keras finds the
logit behind a sigmoid if that is the very last thing that the model does; behind another layer, it can't.
"""

import keras
import mlflow
import numpy as np
import pandas as pd
import tensorflow as tf

import mlflow_tfmon
from projects.shared.data import Split, breast_cancer, wine
from projects.shared.parameters import Parameters, count
from projects.shared.pictures import draw_epochs, log, panels
from projects.shared.variants import conclude, parent_run, train_variants

BINARY = ("logits", "probabilities", "hidden logits")
CATEGORICAL = ("sparse", "one-hot")


def at_extremes() -> pd.DataFrame:
    """Loss and gradient at logits from -100 to 100 for the label 1, by both ways, beside the exact value."""
    logits = np.array([-100, -50, -20, -10, -1, 0, 1, 10, 20, 50, 100], "float32")[:, None]
    table = {"logit": logits[:, 0], "exact loss": np.logaddexp(0, -logits[:, 0].astype("float64"))}
    for way in ("logits", "probabilities"):
        loss = keras.losses.BinaryCrossentropy(from_logits=way == "logits", reduction=None)
        with tf.GradientTape() as tape:
            z = tf.constant(logits)
            tape.watch(z)
            given = z if way == "logits" else tf.sigmoid(z)
            losses = loss(tf.ones_like(z), given)
        table[f"loss from {way}"] = losses.numpy()
        table[f"gradient from {way}"] = tape.gradient(losses, z).numpy()[:, 0]
    return pd.DataFrame(table)


def train_binary(data: Split, way: str, epochs: int) -> dict[str, float]:
    """Trains a model that begins by being sure that every tumour is malignant: its first logits are about -30."""
    model = keras.Sequential(
        [
            keras.Input((30,)),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(1, bias_initializer=keras.initializers.Constant(-30)),
        ]
    )
    if way != "logits":
        model.add(keras.layers.Activation("sigmoid"))
    if way == "hidden logits":
        model.add(keras.layers.Reshape((1,)))  # does nothing, but hides the sigmoid from the loss
    # Half-way between the classes are the logit 0 and the probability 0.5.
    accuracy = keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0 if way == "logits" else 0.5)
    loss = keras.losses.BinaryCrossentropy(from_logits=way == "logits")
    model.compile(keras.optimizers.Adam(0.02), loss, metrics=[accuracy])
    return fit(model, data, epochs)


def train_categorical(data: Split, way: str, epochs: int) -> dict[str, float]:
    """Trains with labels as numbers, or as vectors of a one and zeros."""
    model = keras.Sequential(
        [keras.Input((13,)), keras.layers.Dense(16, activation="relu"), keras.layers.Dense(3)]
    )
    loss: keras.losses.Loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if way == "one-hot":
        data = Split(data.x, np.eye(3)[data.y], data.x_val, np.eye(3)[data.y_val])
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    return fit(model, data, epochs)


def fit(model: keras.Model, data: Split, epochs: int) -> dict[str, float]:
    """Returns what the metrics were last."""
    history = model.fit(data.x, data.y, epochs=epochs, validation_data=data.validation, verbose=0)
    return {name: values[-1] for name, values in history.history.items()}


def main() -> None:
    parameters = Parameters("projects.classification_losses", __doc__)
    parameters.add("epochs", count, 25, quick=5)
    parameters.add("seeds", count, 3, quick=1)
    args = parameters.read()
    tumours, wines = breast_cancer(), wine()

    def train(way: str) -> dict[str, float]:
        if way in BINARY:
            return train_binary(tumours, way, args.epochs)
        return train_categorical(wines, way, args.epochs)

    mlflow_tfmon.autolog(log_models=False)
    with parent_run("classification_losses"):
        extremes = at_extremes()
        print(extremes.to_string(index=False, float_format="{:.4g}".format))
        mlflow.log_table(extremes, "extremes.json")
        for way in ("logits", "probabilities"):
            error = (extremes[f"loss from {way}"] - extremes["exact loss"]).abs().max()
            mlflow.log_metric(f"largest_error_from_{way}", error)

        results = train_variants(train, BINARY, args.seeds)
        conclude(results, "binary")
        categorical = conclude(train_variants(train, CATEGORICAL, args.seeds), "categorical")
        difference = abs(categorical.loss["sparse"] - categorical.loss["one-hot"])
        mlflow.log_metric("sparse_one_hot_difference", difference)
        print(f"sparse and one-hot losses differ by {difference:.2g}")

        figure, (losses, gradients, curves) = panels(3)
        for way, style in {"logits": "-", "probabilities": "--"}.items():
            losses.plot(extremes.logit, extremes[f"loss from {way}"], style, label=f"from {way}")
            gradients.plot(extremes.logit, extremes[f"gradient from {way}"], style, label=f"from {way}")
        losses.set(title="loss for the label 1", xlabel="logit")
        gradients.set(title="its gradient", xlabel="logit")
        losses.legend(fontsize=8)
        draw_epochs(curves, results, "val_accuracy")
        log(figure, "classification_losses")


if __name__ == "__main__":
    main()
