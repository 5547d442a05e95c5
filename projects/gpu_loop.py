"""A training loop made for the GPU: mixed precision, XLA, data kept on the device, and no waiting for the host.

All examples are on the device from the beginning; an epoch is one call of a compiled function, within which each step
takes its batch by index and is one XLA program; the sum of the losses is kept on the device too. The host reads three
numbers an epoch. On a machine without a GPU it says so and runs the same on the CPU.
"""

import time

import keras
import mlflow
import tensorflow as tf

import mlflow_tfmon
from projects.shared.data import IMAGES, images
from projects.shared.parameters import Parameters, count
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
    parameters = Parameters("projects.gpu_loop", __doc__)
    parameters.add("epochs", count, 20, quick=3)
    parameters.add("batch_size", count, 128)
    parameters.add("dataset", str, "digits", choices=IMAGES)
    args = parameters.read()

    gpus = tf.config.list_logical_devices("GPU")
    device = gpus[0].name if gpus else "/device:CPU:0"
    if not gpus:
        print("There is no GPU that TensorFlow can use: the same loop runs on the CPU.")

    keras.utils.set_random_seed(1)
    keras.mixed_precision.set_dtype_policy("mixed_float16")
    data = images(args.dataset)
    batch_size = min(args.batch_size, len(data.x))
    steps = len(data.x) // batch_size  # XLA compiles for one shape, so the last few wait for the next shuffle
    with tf.device(device):
        x, y = tf.constant(data.x, tf.float16), tf.constant(data.y, tf.int32)
        x_val, y_val = tf.constant(data.x_val, tf.float16), tf.constant(data.y_val, tf.int32)
        model = build(data.x.shape[1:])
        # A float16 has no numbers below 6e-8: the loss, and so the gradients, are scaled up, and down again at the end.
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(2e-3))
        optimizer.build(model.trainable_variables)
        total = tf.Variable(0.0)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function(jit_compile=True)
    def train_step(chosen: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            logits = tf.cast(model(tf.gather(x, chosen), training=True), tf.float32)
            loss = loss_of(tf.gather(y, chosen), logits)
            scaled = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        return loss

    @tf.function
    def train_epoch() -> None:
        total.assign(0.0)
        order = tf.random.shuffle(tf.range(len(data.x)))
        for step in tf.range(steps):
            begin = step * batch_size
            total.assign_add(train_step(order[begin : begin + batch_size]))

    @tf.function(jit_compile=True)
    def validate() -> tuple[tf.Tensor, tf.Tensor]:
        logits = tf.cast(model(x_val, training=False), tf.float32)
        right = tf.equal(tf.argmax(logits, axis=1, output_type=tf.int32), y_val)
        return loss_of(y_val, logits), tf.reduce_mean(tf.cast(right, tf.float32))

    history = []
    with parent_run("gpu_loop"), tf.device(device):
        mlflow.log_params({"device": device, "dtype_policy": "mixed_float16", "jit_compile": True})
        with mlflow_tfmon.Monitor(model) as monitor:
            for epoch in range(args.epochs):
                begin = time.perf_counter()
                train_epoch()
                mean = float(total) / steps  # here, once an epoch, the host waits for the device
                rate = steps * batch_size / (time.perf_counter() - begin)
                val_loss, val_accuracy = (float(value) for value in validate())
                results = {"loss": mean, "val_loss": val_loss, "val_accuracy": val_accuracy}
                monitor.log_epoch(epoch, {**results, "train_examples_per_second": rate})
                history.append(results)
                done = f"epoch {epoch + 1} of {args.epochs}"
                print(f"{done}: val_accuracy {val_accuracy:.3f}, {rate:,.0f} examples per second")

        figure, (losses, accuracies) = panels(2)
        for name in ("loss", "val_loss"):
            losses.semilogy([results[name] for results in history], label=name)
        losses.set(title="loss", xlabel="epoch")
        losses.legend(fontsize=8)
        accuracies.plot([results["val_accuracy"] for results in history])
        accuracies.set(title="val_accuracy", xlabel="epoch")
        log(figure, "gpu_loop")


if __name__ == "__main__":
    main()
