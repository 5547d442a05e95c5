"""Keras's callbacks together with the monitor, which records their actions.

A LearningRateScheduler warms up and then leaves the rate alone; ReduceLROnPlateau lowers it; EarlyStopping ends the
training and goes back to the best weights; ModelCheckpoint, CSVLogger and TensorBoard write files, which become the
run's artifacts.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import keras
import mlflow
import pandas as pd

import mlflow_tfmon
from projects.shared.data import IMAGES, images
from projects.shared.parameters import Parameters, count
from projects.shared.pictures import log, panels
from projects.shared.variants import parent_run

RATE, WARM_UP = 3e-3, 3


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


def warm_up(epoch: int, rate: float) -> float:
    """The learning rate of an epoch: rising for the first few, then what the others made of it."""
    return RATE * (epoch + 1) / WARM_UP if epoch < WARM_UP else rate


def main() -> None:
    parameters = Parameters("projects.callbacks", __doc__)
    parameters.add("epochs", count, 60, quick=40)
    parameters.add("dataset", str, "digits", choices=IMAGES)
    args = parameters.read()

    keras.utils.set_random_seed(1)
    data = images(args.dataset)
    model = build(data.x.shape[1:])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(RATE), loss, metrics=["accuracy"])

    mlflow_tfmon.autolog()
    with parent_run("callbacks"), TemporaryDirectory() as folder:
        files = Path(folder)
        callbacks = [
            keras.callbacks.LearningRateScheduler(warm_up),
            keras.callbacks.ReduceLROnPlateau(patience=2, factor=0.3),
            keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True),
            keras.callbacks.ModelCheckpoint(files / "best.keras", save_best_only=True),
            keras.callbacks.CSVLogger(files / "epochs.csv"),
            keras.callbacks.TensorBoard(files / "tensorboard"),
        ]
        model.fit(
            data.x,
            data.y,
            batch_size=32,
            epochs=args.epochs,
            validation_data=data.validation,
            callbacks=callbacks,
            verbose=2,
        )
        mlflow.log_artifacts(folder, "callbacks")
        epochs = pd.read_csv(files / "epochs.csv", index_col="epoch")

        best = keras.saving.load_model(files / "best.keras")
        found = best.evaluate(*data.validation, verbose=0, return_dict=True)
        mlflow.log_metric("checkpoint_val_loss", found["loss"])
        print(
            f"{len(epochs)} epochs, best {epochs.val_loss.idxmin() + 1}: val_loss {epochs.val_loss.min():.4f}"
        )
        print(f"loaded from the checkpoint:  val_loss {found['loss']:.4f}, accuracy {found['accuracy']:.3f}")

        figure, (losses, rates) = panels(2)
        epochs.plot(y=["loss", "val_loss"], ax=losses, logy=True, title="loss")
        losses.axvline(epochs.val_loss.idxmin(), color="k", linestyle=":")
        epochs.plot(y="learning_rate", ax=rates, drawstyle="steps-mid", logy=True, title="learning rate")
        log(figure, "callbacks")


if __name__ == "__main__":
    main()
