"""Training with timed epoch ends, in its own process: `python -m benchmarks.epoch_ends '{"epochs": 5}'`.

It prints how long each epoch's end held the loop up, what the snapshot of its variables alone takes, and, where the
store answers, after how many seconds MLflow had a checkpoint of that epoch or a later one.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from typing import Any


def main() -> int:
    """Trains, and prints what was found."""
    case = {
        "store": "",
        "checkpoint": True,
        "units": 512,
        "epochs": 12,
        "seconds": 2.0,
        **json.loads(sys.argv[1]),
    }
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import mlflow
    import numpy as np
    import tensorflow as tf

    import mlflow_tfmon
    from mlflow_tfmon.checkpoints.snapshot import Camera

    nobody = socket.create_server(("127.0.0.1", 0))  # takes connections, and never answers
    port = nobody.getsockname()[1]
    if case["store"] == "dead":
        nobody.close()
    if case["store"]:
        mlflow.set_tracking_uri(f"http://127.0.0.1:{port}")

    units = int(case["units"])
    model = keras.Sequential(
        [keras.Input((units,)), *(keras.layers.Dense(units, "relu") for _ in range(4)), keras.layers.Dense(1)]
    )
    optimizer = keras.optimizers.Adam(1e-4)
    model.compile(optimizer, "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(32, units)).astype("float32"), rng.normal(size=(32, 1)).astype("float32")

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        return loss

    held, held_cpu, ends = [], [], []
    wait = 0.0 if case["store"] else 60.0
    settings = {"checkpoint": case["checkpoint"], "report": False, "delivery_wait": wait}
    with mlflow_tfmon.Monitor(model, **settings) as monitor:
        arrivals = Arrivals(None if case["store"] else monitor.run_id)
        for epoch in range(int(case["epochs"])):
            until = time.perf_counter() + case["seconds"]
            while time.perf_counter() < until:
                loss = float(step())
            began, cpu = time.perf_counter(), time.thread_time()
            monitor.log_epoch(epoch, {"loss": loss})
            held.append((time.perf_counter() - began) * 1000)
            held_cpu.append((time.thread_time() - cpu) * 1000)
            ends.append(time.time())
        camera, snapshots = Camera(), []
        for _ in range(30):
            step()
            began = time.perf_counter()
            camera.take(model)
            snapshots.append((time.perf_counter() - began) * 1000)
    found = arrivals.stop()
    after = [
        min((at - end for of, at in found if of >= epoch), default=None) for epoch, end in enumerate(ends)
    ]
    print(
        json.dumps(
            {"held_ms": held, "held_cpu_ms": held_cpu, "snapshot_ms": snapshots[1:], "arrived_after_s": after}
        ),
        flush=True,
    )
    os._exit(0)  # what waits for a store that does not answer is of no interest


class Arrivals:
    """When which epoch's checkpoint was the last in MLflow: (epoch, Unix time).

    Args:
        run_id: of the run; None for a store that is not asked.
    """

    def __init__(self, run_id: str | None) -> None:
        self._run_id, self._found = run_id, dict[str, tuple[int, float]]()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> list[tuple[int, float]]:
        """All that came."""
        self._over.set()
        self._thread.join()
        return list(self._found.values())

    def _watch(self) -> None:
        import mlflow

        client, over = mlflow.MlflowClient(), self._run_id is None
        while not over:
            over = self._over.wait(0.1)  # and a last look after that
            model_id = client.get_run(self._run_id).data.tags.get("mlflow.tfmon.last_model")
            if model_id is not None and model_id not in self._found:
                at = time.time()
                self._found[model_id] = int(client.get_logged_model(model_id).tags["tfmon.epoch"]), at


if __name__ == "__main__":
    sys.exit(main())
