"""A trainer for custom loops: compiled steps, clipping, a schedule, early stopping, best weights kept.

What `fit` does with callbacks, in a class of a hundred lines that does it in plain sight.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import keras
import mlflow
import tensorflow as tf

import mlflow_tfmon
from projects.shared.data import IMAGES, images
from projects.shared.parameters import Parameters, count
from projects.shared.pictures import log, panels
from projects.shared.variants import parent_run


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


class Trainer:
    """Trains a classifier with labels as numbers.

    Args:
        model: gives logits.
        optimizer: clips gradients itself, where it is told to (`global_clipnorm=1.0`).
        weights: file that keeps the best weights, ending in ".weights.h5".
        patience: after so many epochs without a better validation loss the training ends.
    """

    def __init__(
        self, model: keras.Model, optimizer: keras.optimizers.Optimizer, weights: Path, patience: int
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.weights = weights
        self.patience = patience
        self.best_epoch, self.best_loss = -1, math.inf
        self._loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self._metrics = {
            "loss": keras.metrics.Mean(),
            "accuracy": keras.metrics.SparseCategoricalAccuracy(),
            "val_loss": keras.metrics.Mean(),
            "val_accuracy": keras.metrics.SparseCategoricalAccuracy(),
        }

    @tf.function
    def train_step(self, x: tf.Tensor, y: tf.Tensor) -> None:
        """Makes one step."""
        with tf.GradientTape() as tape:
            logits = self.model(x, training=True)
            loss = self._loss(y, logits)
        variables = self.model.trainable_variables
        self.optimizer.apply(tape.gradient(loss, variables), variables)
        self._metrics["loss"].update_state(loss, sample_weight=tf.shape(x)[0])
        self._metrics["accuracy"].update_state(y, logits)

    @tf.function
    def validation_step(self, x: tf.Tensor, y: tf.Tensor) -> None:
        """Looks at one batch without learning from it."""
        logits = self.model(x, training=False)
        self._metrics["val_loss"].update_state(self._loss(y, logits), sample_weight=tf.shape(x)[0])
        self._metrics["val_accuracy"].update_state(y, logits)

    def evaluate(self, validation: tf.data.Dataset) -> None:
        """Brings the validation's metrics up to date."""
        for x, y in validation:
            self.validation_step(x, y)

    def results(self) -> dict[str, float]:
        """Returns the metrics and begins them anew."""
        found = {name: float(metric.result()) for name, metric in self._metrics.items()}
        for metric in self._metrics.values():
            metric.reset_state()
        return found

    def better(self, epoch: int, results: Mapping[str, float]) -> bool:
        """Keeps the weights if they are the best so far; returns whether it is worth going on."""
        if results["val_loss"] < self.best_loss:
            self.best_epoch, self.best_loss = epoch, results["val_loss"]
            self.model.save_weights(self.weights)
        return epoch - self.best_epoch < self.patience

    def train(
        self, training: tf.data.Dataset, validation: tf.data.Dataset, epochs: int
    ) -> list[dict[str, float]]:
        """Trains until nothing gets better, and goes back to the best weights.

        Returns:
            The metrics of each epoch.
        """
        history = []
        with mlflow_tfmon.Monitor(self.model) as monitor:
            for epoch in range(epochs):
                for x, y in training:
                    self.train_step(x, y)
                self.evaluate(validation)
                history.append(self.results())
                monitor.log_epoch(epoch, history[-1])
                print(
                    f"epoch {epoch + 1} of {epochs}: "
                    + ", ".join(f"{k} {v:.4f}" for k, v in history[-1].items())
                )
                if not self.better(epoch, history[-1]):
                    break
        if self.best_epoch >= 0:  # a loss that was never a number has no best
            self.model.load_weights(self.weights)
        return history


def main() -> None:
    parameters = Parameters("projects.advanced_trainer", __doc__)
    parameters.add("epochs", count, 60, quick=4)
    parameters.add("batch_size", count, 32)
    parameters.add("patience", count, 8)
    parameters.add("dataset", str, "digits", choices=IMAGES)
    args = parameters.read()

    keras.utils.set_random_seed(1)
    data = images(args.dataset)
    training = (
        tf.data.Dataset.from_tensor_slices((data.x, data.y)).shuffle(len(data.x)).batch(args.batch_size)
    )
    training = training.prefetch(tf.data.AUTOTUNE)
    validation = tf.data.Dataset.from_tensor_slices(data.validation).batch(512)
    model = build(data.x.shape[1:])
    steps = args.epochs * math.ceil(len(data.x) / args.batch_size)
    rising = steps // 20
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps - rising, warmup_target=5e-3, warmup_steps=rising
    )
    optimizer = keras.optimizers.Adam(rate, global_clipnorm=1.0)

    with parent_run("advanced_trainer"), TemporaryDirectory() as folder:
        trainer = Trainer(model, optimizer, Path(folder, "best.weights.h5"), args.patience)
        history = trainer.train(training, validation, args.epochs)
        trainer.evaluate(validation)
        restored = trainer.results()
        numbers = {
            "epochs_trained": len(history),
            "best_epoch": trainer.best_epoch,
            "best_val_loss": trainer.best_loss,
            "restored_val_loss": restored["val_loss"],
            "restored_val_accuracy": restored["val_accuracy"],
        }
        mlflow.log_metrics(numbers)
        for name, value in numbers.items():
            print(f"{name:>22} {value:.5g}")

        figure, (losses, norms, rates) = panels(3)
        losses.semilogy([results["loss"] for results in history], label="training")
        losses.semilogy([results["val_loss"] for results in history], label="validation")
        losses.axvline(trainer.best_epoch, color="k", linestyle=":", label="best")
        losses.set(title="loss", xlabel="epoch")
        losses.legend(fontsize=8)
        steps_made = mlflow_tfmon.load_run(mlflow.active_run().info.run_id).steps
        norms.semilogy(steps_made.grad_norm, label="before clipping", linewidth=0.6)
        norms.semilogy(steps_made.grad_norm_clipped, label="after", linewidth=0.6)
        norms.set(title="gradient norm", xlabel="step")
        norms.legend(fontsize=8)
        rates.plot(steps_made.learning_rate)
        rates.set(title="learning rate", xlabel="step")
        log(figure, "advanced_trainer")


if __name__ == "__main__":
    main()
