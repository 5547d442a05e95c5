"""Gradients that are healthy, vanish (ten sigmoid layers) or explode (a learning rate far too high).

What to look at: the gradient norm of each layer, and what the monitor says of each training.
"""

from typing import Any

import keras
import mlflow
import numpy as np

import mlflow_tfmon
from projects.shared.data import images
from projects.shared.parameters import Parameters, count
from projects.shared.pictures import log, panels
from projects.shared.variants import conclude, parent_run, train_variants

VARIANTS = {  # hidden layers, their activation, learning rate
    "healthy": (3, "relu", 0.1),
    "vanishing": (10, "sigmoid", 0.1),
    "exploding": (10, "relu", 100.0),
}


def build(variant: str) -> keras.Model:
    """Returns a classifier that trains by plain gradient descent, so that the gradient alone makes the steps."""
    depth, activation, rate = VARIANTS[variant]
    layers = [keras.Input((8, 8, 1)), keras.layers.Flatten()]
    layers += [keras.layers.Dense(32, activation, name=f"hidden{i + 1:02}") for i in range(depth)]
    model = keras.Sequential([*layers, keras.layers.Dense(10, name="logits")], name="digits")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate), loss, metrics=["accuracy"])
    return model


def layer_norms(run_id: str) -> Any:
    """Returns the gradient norms of the kernels: a row per step, a column per layer from the first to the last."""
    layers = mlflow_tfmon.load_run(run_id).layers
    kernels = layers[layers.variable.str.endswith(".kernel")]
    return kernels.pivot(index="step", columns="variable", values="grad_norm")


def main() -> None:
    parameters = Parameters("projects.gradient_monitor", __doc__)
    parameters.add("epochs", count, 20, quick=4)
    args = parameters.read()
    digits = images("digits")

    def train(variant: str) -> dict[str, float]:
        model = build(variant)
        history = model.fit(
            digits.x, digits.y, 32, args.epochs, validation_data=digits.validation, verbose=0
        ).history
        return {"val_accuracy": history["val_accuracy"][-1]}

    mlflow_tfmon.autolog(checkpoint=False)
    with parent_run("gradient_monitor"):
        results = train_variants(train, list(VARIANTS))
        norms = {row.variant: layer_norms(row.run_id) for row in results.itertuples()}
        for name, layers in norms.items():
            finite = layers.replace([np.inf, -np.inf], np.nan)
            found = results.variant == name
            results.loc[found, "largest_norm"] = finite.max(axis=None)
            # Of the first layer to the last, in the middle of the training's steps.
            results.loc[found, "first_to_last"] = (finite.iloc[:, 0] / finite.iloc[:, -1]).median()
        conclude(results)

        figure, axes = panels(len(norms))
        for ax, (name, layers) in zip(axes, norms.items(), strict=True):
            layers.plot(ax=ax, logy=True, title=name, legend=False, colormap="viridis", linewidth=0.8)
        log(figure, "gradient_monitor")

        for row in results.itertuples():
            kinds = [problem.kind for problem in mlflow_tfmon.load_run(row.run_id).problems]
            mlflow.set_tag(f"problems.{row.variant}", ",".join(kinds) or "none")
            print(f"{row.variant}: {', '.join(kinds) or 'no problem'}")


if __name__ == "__main__":
    main()
