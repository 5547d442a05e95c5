"""Regularization: nothing, dropout, batch normalization and both, on data prone to overfitting.

A network of 300,000 weights learns 250 digits by heart: the loss goes to zero, the validation loss does not follow.
"""

import keras

import mlflow_tfmon
from projects.shared.data import IMAGES, images
from projects.shared.parameters import Parameters, count
from projects.shared.pictures import draw_epochs, draw_finals, log, panels
from projects.shared.variants import conclude, parent_run, train_variants

VARIANTS = ("none", "dropout", "batch normalization", "both")


def build(variant: str, shape: tuple[int, ...]) -> keras.Model:
    """Returns the classifier, with what the variant puts between its layers."""
    layers = [keras.Input(shape), keras.layers.Flatten()]
    for name in ("hidden1", "hidden2"):
        layers.append(keras.layers.Dense(512, name=name))
        if variant in ("batch normalization", "both"):
            layers.append(keras.layers.BatchNormalization())
        layers.append(keras.layers.ReLU())
        if variant in ("dropout", "both"):
            layers.append(keras.layers.Dropout(0.5))
    return keras.Sequential([*layers, keras.layers.Dense(10, name="logits")], name="digits")


def main() -> None:
    parameters = Parameters("projects.regularization", __doc__)
    parameters.add("epochs", count, 60, quick=4)
    parameters.add("seeds", count, 3, quick=1)
    parameters.add("dataset", str, "digits", choices=IMAGES)
    args = parameters.read()

    digits = images(args.dataset)
    few = slice(0, 250)

    def train(variant: str) -> dict[str, float]:
        model = build(variant, digits.x.shape[1:])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
        history = model.fit(
            digits.x[few],
            digits.y[few],
            batch_size=32,
            epochs=args.epochs,
            validation_data=digits.validation,
            verbose=0,
        ).history
        return {name: values[-1] for name, values in history.items()}

    mlflow_tfmon.autolog(log_models=False)
    with parent_run("regularization"):
        results = train_variants(train, VARIANTS, args.seeds)
        conclude(results)
        figure, (losses, accuracies, finals) = panels(3)
        draw_epochs(losses, results, "val_loss", log=True)
        draw_epochs(accuracies, results, "val_accuracy")
        draw_finals(finals, results, "val_accuracy")
        log(figure, "regularization")


if __name__ == "__main__":
    main()
