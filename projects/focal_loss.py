"""Focal loss against cross-entropy where 3% of the examples are positive.

Cross-entropy is content to call nearly everything negative. The focal loss, -alpha (1 - p)^gamma log(p), turns down
what is classified well already (gamma), and gives the rare class more weight (alpha; Lin et al., 2017): more of the
positive examples are found, at the price of precision, and the examples are put into a better order (the areas under
the curves, which don't depend on the threshold).
"""

import keras
import numpy as np
from sklearn.metrics import ConfusionMatrixDisplay, PrecisionRecallDisplay, RocCurveDisplay

import mlflow_tfmon
from projects.shared.data import Split, classification
from projects.shared.parameters import Parameters, count, rate, share
from projects.shared.pictures import draw_epochs, draw_finals, log, panels
from projects.shared.variants import conclude, parent_run, train_variants

VARIANTS = ("cross-entropy", "focal")
METRICS = ("precision", "recall", "f1", "roc_auc", "pr_auc")


def imbalanced() -> Split:
    """Returns 3% positive examples and 97% negative ones, with some overlap."""
    data = classification(
        n_samples=6000, n_features=12, n_informative=6, weights=[0.97], class_sep=1.0, flip_y=0.0
    )
    return Split(data.x, data.y[:, None].astype("float32"), data.x_val, data.y_val[:, None].astype("float32"))


def build(loss: keras.losses.Loss) -> keras.Model:
    """Returns the model, compiled with the metrics that tell something where classes are imbalanced."""
    model = keras.Sequential(
        [
            keras.Input((12,)),
            keras.layers.Dense(16, activation="relu"),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    metrics = [
        keras.metrics.Precision(name="precision"),
        keras.metrics.Recall(name="recall"),
        keras.metrics.F1Score(name="f1", threshold=0.5, average="micro"),
        keras.metrics.AUC(name="roc_auc"),
        keras.metrics.AUC(name="pr_auc", curve="PR"),
    ]
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=metrics)
    return model


def main() -> None:
    parameters = Parameters("projects.focal_loss", __doc__)
    parameters.add("epochs", count, 20, quick=4)
    parameters.add("seeds", count, 3, quick=1)
    parameters.add("alpha", share, 0.85)
    parameters.add("gamma", rate, 2.0)
    args = parameters.read()
    data = imbalanced()
    probabilities: dict[str, np.ndarray] = {}

    def train(name: str) -> dict[str, float]:
        loss: keras.losses.Loss = keras.losses.BinaryCrossentropy()
        if name == "focal":
            loss = keras.losses.BinaryFocalCrossentropy(
                apply_class_balancing=True, alpha=args.alpha, gamma=args.gamma
            )
        model = build(loss)
        history = model.fit(
            data.x, data.y, batch_size=64, epochs=args.epochs, validation_data=data.validation, verbose=0
        ).history
        probabilities[name] = model.predict(data.x_val, verbose=0)[:, 0]
        return {f"val_{metric}": float(history[f"val_{metric}"][-1]) for metric in METRICS}

    mlflow_tfmon.autolog(log_models=False)
    with parent_run("focal_loss"):
        results = train_variants(train, VARIANTS, args.seeds)
        conclude(results)

        figure, axes = panels(4)
        for name, found in probabilities.items():
            RocCurveDisplay.from_predictions(data.y_val[:, 0], found, name=name, ax=axes[0])
            PrecisionRecallDisplay.from_predictions(data.y_val[:, 0], found, name=name, ax=axes[1])
        draw_epochs(axes[2], results, "val_recall")
        draw_finals(axes[3], results, "val_f1")
        log(figure, "focal_loss")

        figure, axes = panels(len(probabilities))
        for place, (name, found) in zip(axes, probabilities.items(), strict=True):
            ConfusionMatrixDisplay.from_predictions(data.y_val[:, 0], found > 0.5, ax=place, colorbar=False)
            place.set_title(name)
        log(figure, "confusion")


if __name__ == "__main__":
    main()
