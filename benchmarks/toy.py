"""Toy training of five epochs in its own process.

It is called as `python -m benchmarks.toy '{"watcher": "ours", "within": false}'`.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time


def main() -> int:
    """Trains, and prints what took how long."""
    case = json.loads(sys.argv[1])
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import mlflow
    import numpy as np
    import tensorflow as tf

    from benchmarks.models import TASKS, data
    from benchmarks.watchers import WATCHERS

    assert mlflow and tf  # imported before the clock starts: every variant needs them
    begun = time.perf_counter()
    callbacks = WATCHERS[case["watcher"]]()
    imported = time.perf_counter() - begun

    class Clock(keras.callbacks.Callback):
        first: float | None = None

        def on_train_batch_end(self, batch: int, logs: object = None) -> None:
            self.last = time.time()
            self.first = self.first or self.last

    clock, task = Clock(), TASKS["mlp"]
    x, y = data(task, 20)
    model = task.model()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with mlflow.start_run() if case["within"] else contextlib.nullcontext():
        called = time.time()
        model.fit(x, y, batch_size=task.batch, epochs=5, verbose=0, callbacks=[*callbacks, clock])
        returned = time.time()
    assert np.isfinite(returned) and clock.first is not None
    found = {
        "import_s": imported,
        "first_step_s": clock.first - called,
        "return_s": returned - clock.last,
        "last": clock.last,
    }
    print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
