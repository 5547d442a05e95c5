"""A long training in a process of its own: `python -m benchmarks.long '{"steps": 100000, "variables": 10}'`.

Its steps are as short as TensorFlow makes them, in a loop in the graph: far more of them a second than a real training
has. It prints what they cost in memory and on the disk, whether any was lost, and how old the newest row was that could
be read in MLflow, as another process sees it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any


def main() -> int:
    """Trains, and prints what was found."""
    case = {"steps": 100_000, "variables": 10, "per_second": 0, **json.loads(sys.argv[1])}
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import mlflow
    import psutil
    import tensorflow as tf

    import mlflow_tfmon

    weights = [tf.Variable(tf.random.normal((4, 4)), name=f"v{n}") for n in range(case["variables"])]
    optimizer = keras.optimizers.SGD(1e-6)

    @tf.function
    def train(count: Any) -> None:
        for _ in tf.range(count):
            with tf.GradientTape() as tape:
                loss = tf.add_n([tf.reduce_sum(w * w) for w in weights])
            optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))

    process = psutil.Process()
    with mlflow_tfmon.Monitor(delivery_wait=600) as monitor:
        run_id = str(monitor.run_id)
        train(tf.constant(200))
        time.sleep(1)
        before, most, done = process.memory_info().rss, 0, 200
        stop = threading.Event()
        disk = _Disk(Path(os.environ["MLFLOW_TFMON_HOME"]))
        threading.Thread(target=disk.watch, args=(stop,), daemon=True).start()
        begun = time.perf_counter()
        while done < case["steps"]:
            train(tf.constant(min(500, case["steps"] - done)))
            done = min(done + 500, case["steps"])
            most = max(most, process.memory_info().rss)
            if case["per_second"]:
                time.sleep(max(0.0, begun + (done - 200) / case["per_second"] - time.perf_counter()))
        seconds = time.perf_counter() - begun
        stop.set()
        ended = time.perf_counter()
    delivered = time.perf_counter() - ended
    run = mlflow.get_run(run_id)
    recorded = mlflow_tfmon.load_run(run_id)
    artifacts = sum(
        item.file_size for item in mlflow.MlflowClient().list_artifacts(run_id, "tfmon/telemetry")
    )
    found = {
        "steps_per_second": (case["steps"] - 200) / seconds,
        "lost": case["steps"] - len(recorded.steps),
        "trainer_mb": (most - before) / 2**20,
        "journal_mb": disk.most / 2**20,
        "parquet_mb": artifacts / 2**20,
        "store_mb": Path(mlflow.get_tracking_uri().removeprefix("sqlite:///")).stat().st_size / 2**20,
        "delivered_after_s": delivered,
        "complete": float(run.data.tags["tfmon.delivery"] == "complete"),
    }
    print(json.dumps(found), flush=True)
    return 0


class _Disk:
    """The most bytes that a folder had."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.most = 0

    def watch(self, stop: threading.Event) -> None:
        while not stop.wait(0.5):
            try:
                size = sum(file.stat().st_size for file in self._folder.rglob("*") if file.is_file())
            except OSError:
                continue  # a file went while it was looked at
            self.most = max(self.most, size)


if __name__ == "__main__":
    sys.exit(main())
