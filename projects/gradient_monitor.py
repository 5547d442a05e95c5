"""Gradients that are healthy, vanish (ten sigmoid layers) or explode (a learning rate far too high).

What to look at: the gradient norm of each layer, and what the monitor says of each training.
"""

import keras
import mlflow
import numpy as np
import pandas as pd

import mlflow_tfmon
from projects.shared.data import IMAGES, images
from projects.shared.parameters import Parameters, count
from projects.shared.pictures import log, panels
from projects.shared.variants import conclude, parent_run, train_variants

VARIANTS = {  # hidden layers, their activation, learning rate
    "healthy": (3, "relu", 0.1),
    "vanishing": (10, "sigmoid", 0.1),
    "exploding": (10, "relu", 100.0),
}


def build(variant: str, shape: tuple[int, ...]) -> keras.Model:
    """Returns a classifier that trains by plain gradient descent, so that the gradient alone makes the steps."""
    depth, activation, rate = VARIANTS[variant]
    layers = [keras.Input(shape), keras.layers.Flatten()]
    layers += [keras.layers.Dense(32, activation, name=f"hidden{i + 1:02}") for i in range(depth)]
    model = keras.Sequential([*layers, keras.layers.Dense(10, name="logits")], name="digits")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(rate), loss, metrics=["accuracy"])
    return model


def layer_norms(run_id: str) -> pd.DataFrame:
    """Returns the gradient norms of the kernels: a row per step, a column per layer from the first to the last."""
    layers = mlflow_tfmon.load_run(run_id).layers
    kernels = layers[layers.variable.str.endswith(".kernel")]
    norms = kernels.pivot(index="step", columns="variable", values="grad_norm")
    return norms.replace([np.inf, -np.inf], np.nan)


def main() -> None:
    parameters = Parameters("projects.gradient_monitor", __doc__)
    parameters.add("epochs", count, 10, quick=4)
    parameters.add("seeds", count, 3, quick=1)
    parameters.add("dataset", str, "digits", choices=IMAGES)
    args = parameters.read()
    digits = images(args.dataset)

    def train(variant: str) -> dict[str, float]:
        model = build(variant, digits.x.shape[1:])
        history = model.fit(
            digits.x, digits.y, 32, args.epochs, validation_data=digits.validation, verbose=0
        ).history
        return {"val_accuracy": history["val_accuracy"][-1]}

    mlflow_tfmon.autolog(checkpoint=False)
    with parent_run("gradient_monitor"):
        results = train_variants(train, list(VARIANTS), args.seeds)
        norms = {run_id: layer_norms(run_id) for run_id in results.run_id}
        results["largest_norm"] = [layers.max(axis=None) for layers in norms.values()]
        # Of the first layer to the last, in the middle of the steps.
        results["first_to_last"] = [(one.iloc[:, 0] / one.iloc[:, -1]).median() for one in norms.values()]
        conclude(results)

        figure, axes = panels(len(VARIANTS))
        for ax, row in zip(axes, results[results.seed == 1].itertuples(), strict=True):
            shown = norms[row.run_id]
            shown = shown[(shown > 0).any(axis=1)]  # once all units are dead, there is nothing to see
            shown.plot(ax=ax, logy=True, title=row.variant, legend=False, colormap="viridis", lw=0.8)
            ax.set_ylabel("gradient norm of each kernel")
        log(figure, "gradient_monitor")

        for variant, rows in results.groupby("variant", sort=False):
            found = [{one.kind for one in mlflow_tfmon.load_run(run_id).problems} for run_id in rows.run_id]
            kinds = ", ".join(sorted(set.intersection(*found))) or "none"
            mlflow.set_tag(f"problems.{variant}", kinds)
            print(f"{variant}: problems found with every seed: {kinds}")


if __name__ == "__main__":
    main()
