"""Eight optimizers on a narrow quadratic valley and on a classifier of handwritten digits.

The quadratic is a hundred times steeper in one direction than in the other. That bounds the learning rate of plain
SGD by the steep one, so that it creeps along the flat one; momentum and the adaptive rules don't. Lion, whose steps
are all of about the same length, comes to the bottom sooner or later, but not to rest there.
"""

import keras
import tensorflow as tf

import mlflow_tfmon
from mlflow_tfmon import load_run
from projects.shared.data import IMAGES, Split, images
from projects.shared.parameters import Parameters, count
from projects.shared.pictures import draw_epochs, log, panels
from projects.shared.variants import conclude, parent_run, train_variants

CURVATURES = (1.0, 100.0)

# For each its class, further arguments, and its learning rates on the quadratic and on the digits.
OPTIMIZERS = {
    "SGD": (keras.optimizers.SGD, {}, 0.015, 0.1),
    "momentum": (keras.optimizers.SGD, {"momentum": 0.9}, 0.015, 0.02),
    "Adam": (keras.optimizers.Adam, {}, 0.05, 1e-3),
    "AdamW": (keras.optimizers.AdamW, {"weight_decay": 0.004}, 0.05, 1e-3),
    "Nadam": (keras.optimizers.Nadam, {}, 0.05, 1e-3),
    "RMSprop": (keras.optimizers.RMSprop, {}, 0.01, 1e-3),
    "Adagrad": (keras.optimizers.Adagrad, {}, 0.5, 0.02),
    "Lion": (keras.optimizers.Lion, {}, 0.01, 3e-4),
}


def on_quadratic(optimizer: keras.optimizers.Optimizer, steps: int) -> dict[str, float]:
    """Goes downhill from (1, 1) and returns how high that ends."""
    place = keras.Variable([1.0, 1.0], name="place")

    @tf.function
    def height() -> tf.Tensor:
        return 0.5 * tf.reduce_sum(tf.constant(CURVATURES) * tf.square(place))

    @tf.function
    def train_step() -> None:
        with tf.GradientTape() as tape:
            loss = height()
        optimizer.apply(tape.gradient(loss, [place]), [place])

    for _ in range(steps):
        train_step()
    return {"final_loss": float(height())}


def on_digits(optimizer: keras.optimizers.Optimizer, digits: Split, epochs: int) -> dict[str, float]:
    """Trains a classifier and returns its last metrics."""
    model = keras.Sequential(
        [
            keras.Input(digits.x.shape[1:]),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu", name="hidden"),
            keras.layers.Dense(10, name="logits"),
        ],
        name="digits",
    )
    model.compile(
        optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"]
    )
    history = model.fit(digits.x, digits.y, epochs=epochs, validation_data=digits.validation, verbose=0)
    return {name: history.history[name][-1] for name in ("loss", "val_loss", "val_accuracy")}


def main() -> None:
    parameters = Parameters("projects.optimizers", __doc__)
    parameters.add("steps", count, 200, quick=20)
    parameters.add("epochs", count, 15, quick=1)
    parameters.add("dataset", str, "digits", choices=IMAGES)
    args = parameters.read()
    digits = images(args.dataset)

    def train_on_quadratic(name: str) -> dict[str, float]:
        make, more, rate, _ = OPTIMIZERS[name.removeprefix("quadratic ")]
        return on_quadratic(make(rate, **more), args.steps)

    def train_on_digits(name: str) -> dict[str, float]:
        make, more, _, rate = OPTIMIZERS[name.removeprefix("digits ")]
        return on_digits(make(rate, **more), digits, args.epochs)

    mlflow_tfmon.autolog(log_models=False)
    with parent_run("optimizers"):
        quadratic = train_variants(train_on_quadratic, [f"quadratic {name}" for name in OPTIMIZERS])
        conclude(quadratic, "quadratic")
        on_data = train_variants(train_on_digits, [f"digits {name}" for name in OPTIMIZERS])
        conclude(on_data, "digits")

        figure, (heights, losses, accuracies) = panels(3)
        for name, run_id in zip(OPTIMIZERS, quadratic.run_id, strict=True):
            heights.semilogy(load_run(run_id).steps.loss, label=name, linewidth=1.2)
        heights.set(title="loss on the quadratic", xlabel="step", ylim=(1e-12, 1e3))
        heights.legend(fontsize=8)
        draw_epochs(losses, on_data, "loss", log=True)
        draw_epochs(accuracies, on_data, "val_accuracy")
        log(figure, "optimizers")


if __name__ == "__main__":
    main()
