"""Losses of regressions on data with outliers: MSE, MAE, Huber, MSLE.

A tenth of the targets to train on have their decimal point one place too far to the right. The validation data is
clean, so its mean absolute error tells what the outliers did to the fit, and its bias in which direction: the squared
error chases them, the others hardly.
"""

import keras
import numpy as np

import mlflow_tfmon
from projects.shared.data import Split, diabetes
from projects.shared.parameters import Parameters, count, share
from projects.shared.pictures import draw_epochs, draw_finals, log, panels
from projects.shared.variants import conclude, parent_run, train_variants

LOSSES = {
    "MSE": keras.losses.MeanSquaredError,
    "MAE": keras.losses.MeanAbsoluteError,
    "Huber": keras.losses.Huber,
    "MSLE": keras.losses.MeanSquaredLogarithmicError,
}


def with_outliers(data: Split, outliers: float) -> Split:
    """Returns the data, in hundreds, with ten times the target in a share of what is trained on."""
    y = data.y / 100
    chosen = np.random.default_rng(1).random(len(y)) < outliers
    return Split(data.x, np.where(chosen, 10 * y, y), data.x_val, data.y_val / 100)


def main() -> None:
    parameters = Parameters("projects.regression_losses", __doc__)
    parameters.add("epochs", count, 40, quick=20)
    parameters.add("seeds", count, 3, quick=1)
    parameters.add("outliers", share, 0.1)
    args = parameters.read()
    data = with_outliers(diabetes(), args.outliers)
    predictions = {}

    def train(name: str) -> dict[str, float]:
        model = keras.Sequential(
            [
                keras.Input((10,)),
                keras.layers.Dense(32, activation="relu"),
                # Positive, as MSLE wants it.
                keras.layers.Dense(1, activation="softplus"),
            ]
        )
        model.compile(keras.optimizers.Adam(3e-3), LOSSES[name](), metrics=["mae"])
        history = model.fit(data.x, data.y, epochs=args.epochs, validation_data=data.validation, verbose=0)
        predictions[name] = keras.ops.convert_to_numpy(model(data.x_val))[:, 0]
        bias = float(np.mean(predictions[name] - data.y_val))
        return {"val_mae": history.history["val_mae"][-1], "val_bias": bias}

    mlflow_tfmon.autolog(log_models=False)
    with parent_run("regression_losses"):
        results = train_variants(train, list(LOSSES), args.seeds)
        conclude(results)
        figure, (fits, curves, finals) = panels(3)
        for name, predicted in predictions.items():
            fits.plot(data.y_val, predicted, ".", markersize=4, label=name)
        fits.plot([0, 3.5], [0, 3.5], "k-", linewidth=0.8)
        fits.set(title="prediction over truth", xlabel="truth")
        fits.legend(fontsize=8)
        draw_epochs(curves, results, "val_mae", log=True)
        draw_finals(finals, results, "val_mae")
        log(figure, "regression_losses")


if __name__ == "__main__":
    main()
