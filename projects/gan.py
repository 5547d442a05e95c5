"""A GAN on handwritten digits: two alternating optimizers, recorded as two streams of one run.

How good it is tells an outsider: a logistic regression that tries to tell the generator's digits from real ones. It is
right always at first; the nearer to 0.5, the better the generator.
"""

import math

import keras
import mlflow
import numpy as np
import tensorflow as tf
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score

import mlflow_tfmon
from projects.shared.data import IMAGES, images
from projects.shared.parameters import Parameters, count
from projects.shared.pictures import log, panels
from projects.shared.variants import parent_run

NOISE = 32
BATCH = 64
layers = keras.layers


def build(shape: tuple[int, ...]) -> tuple[keras.Model, keras.Model]:
    """Returns the generator and the discriminator, which gives a logit: above 0 for real."""
    generator = keras.Sequential(
        [
            keras.Input((NOISE,)),
            layers.Dense(128, "relu", name="hidden1"),
            layers.Dense(128, "relu", name="hidden2"),
            layers.Dense(math.prod(shape), "sigmoid", name="pixels"),
            layers.Reshape(shape),
        ],
        name="generator",
    )
    discriminator = keras.Sequential(
        [
            keras.Input(shape),
            layers.Flatten(),
            layers.Dense(128, layers.LeakyReLU(0.2), name="hidden1"),
            layers.Dropout(0.3),
            layers.Dense(64, layers.LeakyReLU(0.2), name="hidden2"),
            layers.Dense(1, name="real"),
        ],
        name="discriminator",
    )
    return generator, discriminator


def main() -> None:
    parameters = Parameters("projects.gan", __doc__)
    parameters.add("epochs", count, 120, quick=4)
    parameters.add("seed", count, 1)
    parameters.add("dataset", str, "digits", choices=IMAGES)
    args = parameters.read()

    keras.utils.set_random_seed(args.seed)
    digits = images(args.dataset)
    batches = tf.data.Dataset.from_tensor_slices(digits.x).shuffle(len(digits.x)).batch(BATCH, True)
    generator, discriminator = build(digits.x.shape[1:])
    generating, judging = (keras.optimizers.Adam(rate, beta_1=0.5) for rate in (2e-3, 1e-3))
    loss_of = keras.losses.BinaryCrossentropy(from_logits=True)
    ones, zeros = tf.ones((BATCH, 1)), tf.zeros((BATCH, 1))

    @tf.function
    def train_step(real: tf.Tensor) -> None:
        noise = tf.random.normal((BATCH, NOISE))
        with tf.GradientTape() as tape:
            fake = generator(noise, training=True)
            told = discriminator(real, training=True), discriminator(fake, training=True)
            # Real digits count as 0.9, so that the discriminator is never too sure.
            loss = loss_of(0.9 * ones, told[0]) + loss_of(zeros, told[1])
        variables = discriminator.trainable_variables
        judging.apply(tape.gradient(loss, variables), variables)
        with tf.GradientTape() as tape:
            loss = loss_of(ones, discriminator(generator(noise, training=True), training=True))
        variables = generator.trainable_variables
        generating.apply(tape.gradient(loss, variables), variables)

    unseen = digits.x_val[:360]
    fixed = np.random.default_rng(0).normal(size=(len(unseen), NOISE)).astype("float32")
    told_apart = np.concatenate([np.ones(len(unseen)), np.zeros(len(fixed))])

    def outsider(_: keras.Model) -> dict[str, float]:
        pixels = np.concatenate([unseen, generator.predict(fixed, verbose=0)]).reshape(len(told_apart), -1)
        return {
            "told_apart": cross_val_score(LogisticRegression(max_iter=200), pixels, told_apart, cv=3).mean()
        }

    with parent_run("gan") as run:
        with mlflow_tfmon.Monitor(epoch_metrics=outsider, monitor="told_apart", mode="min") as monitor:
            for epoch in range(args.epochs):
                for real in batches:
                    train_step(real)
                metrics = monitor.log_epoch(epoch)
                print(
                    f"epoch {epoch + 1} of {args.epochs}: told apart {metrics['told_apart']:.3f}", flush=True
                )
        recorded = mlflow_tfmon.load_run(run.info.run_id)
        figure, (losses, norms, outside, pictures) = panels(4)
        for name in ("generator", "discriminator"):
            recorded.steps[f"{name}.loss"].plot(ax=losses, label=name, linewidth=0.7, legend=True)
            recorded.steps[f"{name}.grad_norm"].plot(ax=norms, label=name, linewidth=0.7, logy=True)
        losses.set_title("losses")
        norms.set_title("gradient norms")
        recorded.epochs.told_apart.plot(ax=outside, title="told apart by an outsider", ylim=(0.45, 1.02))
        made = generator.predict(fixed[:36], verbose=0)[..., 0]
        apart = np.pad(made, ((0, 0), (1, 1), (1, 1)))  # six rows of six digits, with room between them
        rows = apart.reshape(6, 6, *apart.shape[1:]).swapaxes(1, 2)
        pictures.imshow(rows.reshape(6 * apart.shape[1], -1), cmap="gray_r")
        pictures.set(title="generated", xticks=[], yticks=[])
        log(figure, "gan")
        mlflow.log_metric("told_apart_first", recorded.epochs.told_apart.iloc[0])
        last = recorded.steps.iloc[-1]
        print("\nlast step:", {name: round(float(last[name]), 3) for name in last.index if "loss" in name})
        print(f"told apart by an outsider: {metrics['told_apart']:.3f} (0.5 is chance)")


if __name__ == "__main__":
    main()
