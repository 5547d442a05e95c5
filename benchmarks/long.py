"""Long training in its own process: `python -m benchmarks.long '{"steps": 100000, "variables": 10}'`.

Its steps are as short as TensorFlow makes them, in a loop in the graph: far more of them a second than a real training
has. It prints what they cost in memory and on the disk, whether any was lost, what the report takes to make, and how
long the UI's requests for the run take.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any


def main() -> int:
    """Trains, and prints what was found.

    The case: `steps` to make, or 0 for as many as there are in `seconds`; `variables`; steps `per_second`, or 0 for as
    many as there can be.
    """
    case = {"steps": 100_000, "seconds": 0, "variables": 10, "per_second": 0, **json.loads(sys.argv[1])}
    total = case["steps"] or 2**62
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
        chunk = 500 if not case["per_second"] else max(1, min(500, case["per_second"] // 10))
        while done < total and (case["steps"] or time.perf_counter() - begun < case["seconds"]):
            train(tf.constant(min(chunk, total - done)))
            done = min(done + chunk, total)
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
        "steps_per_second": (done - 200) / seconds,
        "lost": done - len(recorded.steps),
        "trainer_mb": (most - before) / 2**20,
        "journal_mb": disk.most / 2**20,
        "parquet_mb": artifacts / 2**20,
        "store_mb": Path(mlflow.get_tracking_uri().removeprefix("sqlite:///")).stat().st_size / 2**20,
        "delivered_after_s": delivered,
        **_report(run_id),
        **_answers(mlflow.get_tracking_uri(), run_id),
        "complete": float(run.data.tags["tfmon.delivery"] == "complete"),
    }
    print(json.dumps(found), flush=True)
    return 0


def _report(run_id: str) -> dict[str, float]:
    """What the report takes to make, and its size."""
    from mlflow_tfmon.report.making import make

    begun = time.perf_counter()
    page = make(run_id)
    return {"report_s": time.perf_counter() - begun, "report_mb": len(page.encode()) / 2**20}


def _answers(store: str, run_id: str) -> dict[str, float]:
    """How long a server takes to answer what the UI asks for a run's page and for one of its charts."""
    from benchmarks.side_by_side import serving

    with serving(store, Path.cwd()) as uri:
        api = f"{uri}/ajax-api/2.0/mlflow"
        history = f"{api}/metrics/get-history-bulk-interval?run_ids={run_id}"
        asked = {
            "run_page_ms": f"{api}/runs/get?run_id={run_id}",
            "chart_ms": f"{history}&metric_key=batch/loss&max_results=320",
        }
        return {name: statistics.median(_milliseconds(url) for _ in range(7)) for name, url in asked.items()}


def _milliseconds(url: str) -> float:
    begun = time.perf_counter()
    with urllib.request.urlopen(url, timeout=60) as answer:
        answer.read()
    return (time.perf_counter() - begun) * 1000


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
