"""Penalties on the weights: none, L1, L2 and both, on 250 handwritten digits.

L2 makes all weights smaller, L1 makes most of them zero: the histograms of the first layer show which is at work.
"""

import keras
import numpy as np

import mlflow_tfmon
from projects.shared.data import IMAGES, images
from projects.shared.parameters import Parameters, count
from projects.shared.pictures import draw_epochs, draw_finals, log, panels
from projects.shared.variants import conclude, parent_run, train_variants

PENALTIES = {
    "none": None,
    "L1": keras.regularizers.L1(1e-3),
    "L2": keras.regularizers.L2(3e-3),
    "L1 and L2": keras.regularizers.L1L2(5e-4, 1.5e-3),
}


def build(penalty: keras.regularizers.Regularizer | None, shape: tuple[int, ...]) -> keras.Model:
    """Returns the classifier, with the penalty on each of its kernels."""
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu", kernel_regularizer=penalty, name="first"),
            keras.layers.Dense(10, kernel_regularizer=penalty, name="logits"),
        ],
        name="digits",
    )


def main() -> None:
    parameters = Parameters("projects.weight_regularization", __doc__)
    parameters.add("epochs", count, 40, quick=10)
    parameters.add("seeds", count, 3, quick=1)
    parameters.add("dataset", str, "digits", choices=IMAGES)
    args = parameters.read()
    digits = images(args.dataset)
    few = slice(0, 250)
    first_layers = {}

    def train(name: str) -> dict[str, float]:
        model = build(PENALTIES[name], digits.x.shape[1:])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        # The loss that Keras shows has the penalty in it; this metric is the cross-entropy alone.
        entropy = keras.metrics.SparseCategoricalCrossentropy(name="entropy", from_logits=True)
        model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy", entropy])
        history = model.fit(
            digits.x[few],
            digits.y[few],
            epochs=args.epochs,
            validation_data=digits.validation,
            verbose=0,
        ).history
        weights = first_layers[name] = np.ravel(model.get_layer("first").get_weights()[0])
        return {
            "val_accuracy": history["val_accuracy"][-1],
            "val_entropy": history["val_entropy"][-1],
            "l1_norm": float(np.abs(weights).sum()),
            "l2_norm": float(np.linalg.norm(weights)),
            "zeros": float(np.mean(np.abs(weights) < 1e-3)),
        }

    mlflow_tfmon.autolog(log_models=False)
    with parent_run("weight_regularization"):
        results = train_variants(train, list(PENALTIES), args.seeds)
        conclude(results)
        figure, (curves, histograms, l1_norms, l2_norms) = panels(4)
        draw_epochs(curves, results, "val_entropy")
        for name, weights in first_layers.items():
            histograms.hist(weights, bins=np.linspace(-0.4, 0.4, 81), histtype="step", label=name)
        histograms.set_yscale("log")
        histograms.set(title="weights of the first layer")
        histograms.legend(fontsize=8)
        draw_finals(l1_norms, results, "l1_norm")
        draw_finals(l2_norms, results, "l2_norm")
        log(figure, "weight_regularization")


if __name__ == "__main__":
    main()
