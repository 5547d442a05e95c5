"""A hand-written training loop: GradientTape, accuracy, validation, and three plots.

Loss and accuracy say how well it learns; the gap between training and validation says when it begins to learn by heart.
"""

import keras
import tensorflow as tf

import mlflow_tfmon
from projects.shared.data import IMAGES, images
from projects.shared.parameters import Parameters, count, rate
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


def main() -> None:
    parameters = Parameters("projects.basic_loop", __doc__)
    parameters.add("epochs", count, 20, quick=2)
    parameters.add("batch_size", count, 32)
    parameters.add("learning_rate", rate, 1e-3)
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
    optimizer = keras.optimizers.Adam(args.learning_rate)
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

    history: dict[str, list[float]] = {name: [] for name in metrics}
    with parent_run("basic_loop"):
        with mlflow_tfmon.Monitor(model) as monitor:
            for epoch in range(args.epochs):
                for x, y in training:
                    train_step(x, y)
                for x, y in validation:
                    validation_step(x, y)
                results = {name: float(metric.result()) for name, metric in metrics.items()}
                monitor.log_epoch(epoch, results)
                print(
                    f"epoch {epoch + 1} of {args.epochs}: "
                    + ", ".join(f"{name} {value:.4f}" for name, value in results.items())
                )
                for name, metric in metrics.items():
                    history[name].append(results[name])
                    metric.reset_state()

        figure, (losses, accuracies, gaps) = panels(3)
        for axes, metric in ((losses, "loss"), (accuracies, "accuracy")):
            axes.plot(history[metric], label="training")
            axes.plot(history[f"val_{metric}"], label="validation")
            axes.set(title=metric, xlabel="epoch")
            axes.legend(fontsize=8)
        gap = [val - train for train, val in zip(history["loss"], history["val_loss"], strict=True)]
        gaps.axhline(0, color="k", linewidth=0.6)
        gaps.plot(gap, "C3")
        gaps.set(title="overfitting gap: validation loss - loss", xlabel="epoch")
        log(figure, "basic_loop")


if __name__ == "__main__":
    main()
