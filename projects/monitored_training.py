"""One training with the full monitor: a custom loop's six panels, its problems and its report.

A large network learns 200 digits, a fifth of which have labels drawn at random: the monitor says when it begins to
learn these by heart.
"""

import keras
import mlflow
import numpy as np
import pandas as pd
import tensorflow as tf
from matplotlib.figure import Figure

import mlflow_tfmon
from projects.shared.data import IMAGES, images
from projects.shared.parameters import Parameters, count, rate
from projects.shared.pictures import log
from projects.shared.variants import parent_run


def build(shape: tuple[int, ...]) -> keras.Model:
    hidden = [keras.layers.Dense(256, "relu", name=f"hidden{i}") for i in (1, 2)]
    logits = keras.layers.Dense(10, name="logits")
    return keras.Sequential([keras.Input(shape), keras.layers.Flatten(), *hidden, logits], name="digits")


def draw(steps: pd.DataFrame, epochs: pd.DataFrame) -> Figure:
    """Draws the six panels as a picture; the report has them to zoom into."""
    figure = Figure(figsize=(11, 6), dpi=80, layout="constrained")
    loss, accuracy, rate, norm, gap, stability = figure.subplots(2, 3).flat
    epochs[["loss", "val_loss"]].plot(ax=loss, title="loss", logy=True)
    epochs[["accuracy", "val_accuracy"]].plot(ax=accuracy, title="accuracy")
    steps[["learning_rate"]].plot(ax=rate, title="learning rate", legend=False)
    steps[["grad_norm", "grad_norm_clipped"]].plot(ax=norm, title="gradient norm", logy=True, linewidth=0.7)
    (epochs.val_loss - epochs.loss).plot(ax=gap, title="overfitting gap")
    steps.loss.plot(ax=stability, alpha=0.3, title="stability", logy=True)
    steps.loss.ewm(halflife=len(steps) / 50).mean().plot(ax=stability)
    return figure


def main() -> None:
    parameters = Parameters("projects.monitored_training", __doc__)
    parameters.add("epochs", count, 80)  # seconds, and fewer are not learned by heart
    parameters.add("learning_rate", rate, 3e-3)
    parameters.add("seed", count, 1)
    parameters.add("dataset", str, "digits", choices=IMAGES)
    args = parameters.read()

    keras.utils.set_random_seed(args.seed)
    digits = images(args.dataset)
    random = np.random.default_rng(args.seed)
    labels = np.where(random.random(200) < 0.2, random.integers(0, 10, 200), digits.y[:200])
    training = tf.data.Dataset.from_tensor_slices((digits.x[:200], labels)).shuffle(200).batch(20)
    model = build(digits.x.shape[1:])
    schedule = keras.optimizers.schedules.CosineDecay(args.learning_rate, 10 * args.epochs)
    optimizer = keras.optimizers.Adam(schedule, global_clipnorm=1.0)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    mean_loss, accuracy = keras.metrics.Mean(), keras.metrics.SparseCategoricalAccuracy()

    @tf.function
    def train_step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            logits = model(x, training=True)
            loss = loss_of(y, logits)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        mean_loss.update_state(loss)
        accuracy.update_state(y, logits)

    def validate(model: keras.Model) -> dict[str, float]:
        logits = model(digits.x_val)
        right = keras.metrics.sparse_categorical_accuracy(digits.y_val, logits)
        return {
            "val_loss": float(loss_of(digits.y_val, logits)),
            "val_accuracy": float(tf.reduce_mean(right)),
        }

    with parent_run("monitored_training") as run:
        with mlflow_tfmon.Monitor(
            model,
            epoch_metrics=validate,
            monitor="val_loss",
            mode="min",
            deep_every=20,
            predictions=(digits.x_val[:12], digits.y_val[:12]),
        ) as monitor:
            for epoch in range(args.epochs):
                for x, y in training:
                    train_step(x, y)
                monitor.log_epoch(
                    epoch, {"loss": float(mean_loss.result()), "accuracy": float(accuracy.result())}
                )
                mean_loss.reset_state()
                accuracy.reset_state()
        recorded = mlflow_tfmon.load_run(run.info.run_id)
        log(draw(recorded.steps, recorded.epochs), "monitored_training")
        best = recorded.epochs.val_loss.idxmin()
        mlflow.log_metric("final_gap", recorded.epochs.val_loss.iloc[-1] - recorded.epochs.loss.iloc[-1])
        print(f"\nbest epoch {best + 1}: validation loss {recorded.epochs.val_loss[best]:.3f}; last:")
        print(recorded.epochs.tail(1).to_string())
    for problem in mlflow_tfmon.load_run(run.info.run_id).problems:  # now that the run has ended
        print(f"{problem.kind}: {problem.evidence} {problem.advice}")


if __name__ == "__main__":
    main()
