"""Learning rate schedules, including a custom one, and a learning rate range test.

The rate that was in force at each step is what the monitor records: laid on the schedule's own formula, the two are
one curve. The range test raises the rate from step to step until the loss explodes; a good rate is some way below.
"""

import math
import tempfile
from pathlib import Path

import keras
import mlflow
import numpy as np
import tensorflow as tf

import mlflow_tfmon
from mlflow_tfmon import load_run
from projects.shared.data import IMAGES, images
from projects.shared.parameters import Parameters, count
from projects.shared.pictures import draw_epochs, log, panels
from projects.shared.variants import conclude, parent_run, train_variants

BATCH_SIZE = 32
LOWEST, HIGHEST = 1e-5, 10.0  # rates of the range test


@keras.saving.register_keras_serializable("projects")
class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly from 0 to `peak` in `warmup` steps, then falls to 0 at `total` steps along a cosine.

    The step is a tensor within `tf.function`, so the choice between the two is made by `tf.where`, not by `if`.
    """

    def __init__(self, peak: float, warmup: int, total: int) -> None:
        self.peak, self.warmup, self.total = peak, warmup, total

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        step = tf.cast(step, tf.float32)
        rising = step / max(1, self.warmup)
        done = tf.minimum(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        return self.peak * tf.where(step < self.warmup, rising, 0.5 * (1 + tf.cos(math.pi * done)))

    def get_config(self) -> dict[str, float]:
        """What a saved model makes it of again."""
        return {"peak": self.peak, "warmup": self.warmup, "total": self.total}


def schedules(steps: int) -> dict[str, keras.optimizers.schedules.LearningRateSchedule]:
    """Returns the schedules for a training of so many steps."""
    rules = keras.optimizers.schedules
    thirds = [steps // 3, 2 * steps // 3]
    return {
        "exponential staircase": rules.ExponentialDecay(0.05, max(1, steps // 5), 0.5, staircase=True),
        "polynomial": rules.PolynomialDecay(0.05, steps, 0.001, power=2.0),
        "piecewise constant": rules.PiecewiseConstantDecay(thirds, [0.05, 0.02, 0.005]),
        "cosine": rules.CosineDecay(0.05, steps),
        "warm-up and cosine": WarmupCosine(0.05, steps // 10, steps),
    }


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


def compiled(
    schedule: keras.optimizers.schedules.LearningRateSchedule, shape: tuple[int, ...]
) -> keras.Model:
    """Returns the classifier, trained by SGD at the schedule's rates."""
    model = build(shape)
    model.compile(
        keras.optimizers.SGD(schedule, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def main() -> None:
    parameters = Parameters("projects.lr_schedules", __doc__)
    parameters.add("epochs", count, 10, quick=1)
    parameters.add("dataset", str, "digits", choices=IMAGES)
    args = parameters.read()
    digits = images(args.dataset)
    steps = args.epochs * math.ceil(len(digits.x) / BATCH_SIZE)
    rules = schedules(steps)

    def train(name: str) -> dict[str, float]:
        model = compiled(rules[name], digits.x.shape[1:])
        history = model.fit(
            digits.x,
            digits.y,
            batch_size=BATCH_SIZE,
            epochs=args.epochs,
            validation_data=digits.validation,
            verbose=0,
        ).history
        with tempfile.TemporaryDirectory() as folder:
            model.save(Path(folder, "model.keras"))
            loaded = keras.saving.load_model(Path(folder, "model.keras"))
        saved = keras.saving.deserialize_keras_object(loaded.optimizer.get_config()["learning_rate"])
        difference = max(abs(float(rules[name](step)) - float(saved(step))) for step in range(0, steps, 5))
        return {"val_accuracy": history["val_accuracy"][-1], "difference_once_saved": difference}

    def range_test(name: str) -> dict[str, float]:
        growing = keras.optimizers.schedules.ExponentialDecay(LOWEST, steps, HIGHEST / LOWEST)
        model = compiled(growing, digits.x.shape[1:])
        model.fit(digits.x, digits.y, batch_size=BATCH_SIZE, epochs=args.epochs, verbose=0)
        return {}

    mlflow_tfmon.autolog(log_models=False)
    with parent_run("lr_schedules"):
        results = train_variants(train, list(rules))
        figure, (rates, accuracies, tested) = panels(3)
        differences = []
        for name, run_id in zip(results.variant, results.run_id, strict=True):
            recorded = load_run(run_id).steps.learning_rate  # step 1 was made at the schedule's rate of 0
            formula = [float(rules[name](step - 1)) for step in recorded.index]
            differences.append(np.abs(recorded - formula).max())
            rates.plot(recorded, label=name, linewidth=1.3)
            rates.plot(recorded.index, formula, "k:", linewidth=0.8)
        conclude(results.assign(difference_to_formula=differences))

        (run_id,) = train_variants(range_test, ["range test"]).run_id
        found = load_run(run_id).steps
        smooth = found.loss.ewm(alpha=0.1).mean()
        rate = float(found.learning_rate[smooth.idxmin()]) / 10
        mlflow.log_metric("range_test_rate", rate)
        print(f"range test: the loss is lowest at {10 * rate:.2g}; train with a tenth of it, {rate:.2g}")

        rates.set(title="learning rate: recorded; dotted: by formula", xlabel="step")
        rates.legend(fontsize=8)
        draw_epochs(accuracies, results, "val_accuracy")
        tested.loglog(found.learning_rate, found.loss, alpha=0.3)
        exploded = smooth.idxmax()  # what follows is its echo
        tested.loglog(found.learning_rate[:exploded], smooth[:exploded])
        tested.axvline(rate, color="k", linestyle=":")
        tested.set(title="range test: loss over learning rate", xlabel="learning rate")
        log(figure, "lr_schedules")


if __name__ == "__main__":
    main()
