"""A custom callback that times the epochs, and ends the training once the validation accuracy is high enough.

What a callback puts into `logs` is an epoch metric like Keras's own: the monitor records it.
"""

import time
from typing import Any

import keras
import mlflow

import mlflow_tfmon
from projects.shared.data import IMAGES, images
from projects.shared.parameters import Parameters, count, share
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


class StopAtAccuracy(keras.callbacks.Callback):
    """Times each epoch (metric `epoch_seconds`) and stops at a validation accuracy of `target`."""

    def __init__(self, target: float) -> None:
        super().__init__()
        self.target = target

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self._begin = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any]) -> None:
        logs["epoch_seconds"] = time.perf_counter() - self._begin
        if logs["val_accuracy"] >= self.target:
            print(f"epoch {epoch + 1}: validation accuracy {logs['val_accuracy']:.3f}, that will do")
            self.model.stop_training = True


def main() -> None:
    parameters = Parameters("projects.custom_callback", __doc__)
    parameters.add("epochs", count, 30, quick=10)
    parameters.add("target", share, 0.95)
    parameters.add("dataset", str, "digits", choices=IMAGES)
    args = parameters.read()

    keras.utils.set_random_seed(1)
    data = images(args.dataset)
    model = build(data.x.shape[1:])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])

    mlflow_tfmon.autolog()
    with parent_run("custom_callback"):
        model.fit(
            data.x,
            data.y,
            batch_size=32,
            epochs=args.epochs,
            validation_data=data.validation,
            callbacks=[StopAtAccuracy(args.target)],
            verbose=2,
        )
        epochs = mlflow_tfmon.load_run(mlflow.active_run().info.run_id).epochs
        print(epochs[["val_accuracy", "epoch_seconds"]].to_string(float_format="{:.3f}".format))
        mlflow.log_metric("epochs_trained", len(epochs))

        figure, (accuracies, times) = panels(2)
        epochs.plot(y="val_accuracy", ax=accuracies, title="val_accuracy")
        accuracies.axhline(args.target, color="k", linestyle=":")
        epochs.plot(y="epoch_seconds", ax=times, kind="bar", title="seconds of each epoch", legend=False)
        log(figure, "custom_callback")


if __name__ == "__main__":
    main()
