"""One classifier, trained twice on scikit-learn's handwritten digits: by `fit` and by a custom loop.

Both trainings are watched by the one line `mlflow_tfmon.autolog()`. They start from the same weights, so that the
curves of the two runs can be laid on each other in the MLflow UI.
"""

import keras
import mlflow
import tensorflow as tf

import mlflow_tfmon
from projects.shared.data import images
from projects.shared.models import classifier


def train_both(epochs: int, batch_size: int, learning_rate: float, optimizer: str) -> dict[str, float]:
    """Trains by `fit` and by a custom loop, each in a run of its own below one parent run.

    Args:
        epochs: passes over the training data.
        batch_size: examples per step.
        learning_rate: of the optimizer.
        optimizer: Keras's name of it, such as "adam".

    Returns:
        The validation accuracy after the last epoch, by the name of the run.
    """
    mlflow_tfmon.autolog()
    accuracy = {}
    with mlflow.start_run():  # under `mlflow run` this is the project's own run
        for name, train in {"fit": train_by_fit, "custom loop": train_by_loop}.items():
            keras.utils.set_random_seed(1)
            training, validation = images("digits").batches(batch_size)
            model = classifier()
            rule = keras.optimizers.get({"class_name": optimizer, "config": {"learning_rate": learning_rate}})
            with mlflow.start_run(run_name=name, nested=True):
                accuracy[name] = train(model, rule, training, validation, epochs)
    return accuracy


def train_by_fit(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    training: tf.data.Dataset,
    validation: tf.data.Dataset,
    epochs: int,
) -> float:
    """Trains with Keras's own loop and returns the last validation accuracy."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, metrics=["accuracy"])
    # The dataset shuffles itself, so Keras need not.
    history = model.fit(training, validation_data=validation, epochs=epochs, shuffle=False, verbose=2)
    return float(history.history["val_accuracy"][-1])


def train_by_loop(
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer,
    training: tf.data.Dataset,
    validation: tf.data.Dataset,
    epochs: int,
) -> float:
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
    return results["val_accuracy"]
