"""One classifier, trained twice on handwritten digits: with `fit` and in a custom loop.

Both trainings are watched by the one line `mlflow_tfmon.autolog()`. They start from the same weights, so that the
curves of the two runs can be laid on each other in the MLflow UI.
"""

import keras
import mlflow
import pandas as pd
import tensorflow as tf

import mlflow_tfmon
from projects.shared.data import images
from projects.shared.pictures import log, panels
from projects.shared.variants import conclude, parent_run, train_variants


def build(shape: tuple[int, ...]) -> keras.Model:
    """Returns a small convolutional classifier of ten digits, which gives logits."""
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Conv2D(16, 3, activation="relu", name="conv1"),
            keras.layers.Conv2D(32, 3, activation="relu", name="conv2"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu", name="hidden"),
            keras.layers.Dense(10, name="logits"),
        ],
        name="digits",
    )


def train_both(epochs: int, batch_size: int, learning_rate: float, optimizer: str, dataset: str) -> None:
    """Trains by `fit` and by a custom loop, each in a run of its own below one parent run.

    Args:
        epochs: passes over the training data.
        batch_size: examples per step.
        learning_rate: of the optimizer.
        optimizer: Keras's name of it, such as "adam".
        dataset: "digits" or "mnist".
    """
    data = images(dataset)

    def train(how: str) -> dict[str, float]:
        training = tf.data.Dataset.from_tensor_slices((data.x, data.y)).shuffle(len(data.x)).batch(batch_size)
        training = training.prefetch(tf.data.AUTOTUNE)
        validation = tf.data.Dataset.from_tensor_slices(data.validation).batch(512)
        model = build(data.x.shape[1:])
        rule = keras.optimizers.get({"class_name": optimizer, "config": {"learning_rate": learning_rate}})
        by = {"fit": train_by_fit, "custom loop": train_by_loop}[how]
        return by(model, rule, training, validation, epochs)

    mlflow_tfmon.autolog()
    with parent_run("main"):
        results = train_variants(train, ["fit", "custom loop"])
        conclude(results)
        draw(results)


def draw(results: pd.DataFrame) -> None:
    """Logs a picture of both losses: of the first steps, which are the same, and of all."""
    figure, (first, smooth) = panels(2)
    for how, run_id, style in zip(results.variant, results.run_id, ("-", "--"), strict=True):
        loss = mlflow_tfmon.load_run(run_id).steps.loss
        first.semilogy(loss[:100], style, label=how, linewidth=1)
        smooth.semilogy(loss.ewm(halflife=20).mean(), style, label=how, linewidth=1)
    first.set(title="loss of the first hundred steps", xlabel="step")
    smooth.set(title="loss, smoothed", xlabel="step")
    first.legend(fontsize=8)
    log(figure, "main")


def train_by_fit(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    training: tf.data.Dataset,
    validation: tf.data.Dataset,
    epochs: int,
) -> dict[str, float]:
    """Trains with Keras's own loop and returns what the metrics were last."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    # The dataset shuffles itself, so Keras need not.
    history = model.fit(training, validation_data=validation, epochs=epochs, shuffle=False, verbose=2)
    return {name: values[-1] for name, values in history.history.items()}


def train_by_loop(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    training: tf.data.Dataset,
    validation: tf.data.Dataset,
    epochs: int,
) -> dict[str, float]:
    """Trains with a loop of its own, as it would be written without a monitor, and returns the same."""
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    metrics = {
        "loss": keras.metrics.Mean(),
        "accuracy": keras.metrics.SparseCategoricalAccuracy(),
        "val_loss": keras.metrics.Mean(),
        "val_accuracy": keras.metrics.SparseCategoricalAccuracy(),
    }

    @tf.function
    def train_step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            loss = loss_of(y, logits)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        metrics["loss"].update_state(loss, sample_weight=len(x))
        metrics["accuracy"].update_state(y, logits)

    @tf.function
    def validation_step(x: tf.Tensor, y: tf.Tensor) -> None:
        logits = model(x, training=False)
        metrics["val_loss"].update_state(loss_of(y, logits), sample_weight=len(x))
        metrics["val_accuracy"].update_state(y, logits)

    for epoch in range(epochs):
        for x, y in training:
            train_step(x, y)
        for x, y in validation:
            validation_step(x, y)
        results = {name: float(metric.result()) for name, metric in metrics.items()}
        mlflow.log_metrics(results, step=epoch)
        figures = " - ".join(f"{name}: {value:.4f}" for name, value in results.items())
        print(f"Epoch {epoch + 1}/{epochs} - {figures}")
        for metric in metrics.values():
            metric.reset_state()
    return results
