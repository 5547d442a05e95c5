"""Benchmark of many optimizers, many fits and many models in one process: time, memory, lines, threads and files.

Run `make bench-many`. A training whose cost grows with the number of those before it has a ratio well above 1.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path


def optimizers() -> Callable[[], None]:
    """An optimizer for each example."""
    import keras
    import tensorflow as tf

    def one() -> None:
        offset, optimizer = tf.Variable(tf.zeros([1, 4])), keras.optimizers.SGD(0.1)
        for _ in range(5):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((offset - 1.0) ** 2)
            optimizer.apply_gradients([(tape.gradient(loss, offset), offset)])

    return one


def _model() -> object:
    import keras

    net = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)])
    net.compile("sgd", "mse")
    return net


def fits() -> Callable[[], None]:
    """A fit of one step, over and over, of one model."""
    import numpy as np

    net, x, y = _model(), np.ones((16, 4), "float32"), np.ones((16, 1), "float32")
    return lambda: net.fit(x, y, verbose=0)  # type: ignore[attr-defined]


def models() -> Callable[[], None]:
    """A new model, fitted for a step."""
    import numpy as np

    x, y = np.ones((16, 4), "float32"), np.ones((16, 1), "float32")
    return lambda: _model().fit(x, y, verbose=0)  # type: ignore[attr-defined]


KINDS = {"optimizers": optimizers, "fits": fits, "models": models}
COUNTS = {"optimizers": 1000, "fits": 1000, "models": 200}


class _Lines(logging.Handler):
    """Counts lines of our log."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += record.getMessage().count("\n") + 1


def main() -> None:
    """Prints a line for each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--count", type=int, help="default: 1,000 optimizers, 1,000 fits, 200 models")
    parser.add_argument("--models", action="store_true", help="log models too")
    parser.add_argument("--unwatched", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"MLFLOW_TFMON_HOME": str(Path(folder) / "home"), "TF_CPP_MIN_LOG_LEVEL": "3"}
        import mlflow
        import psutil

        import mlflow_tfmon

        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        lines = _Lines()
        logging.getLogger("mlflow_tfmon").addHandler(lines)
        if not given.unwatched:
            mlflow_tfmon.autolog(log_models=given.models)
        process = psutil.Process()
        for kind in given.kinds:
            spent, count = [], given.count or COUNTS[kind]
            tenth = max(1, count // 10)
            with mlflow.start_run():
                one = KINDS[kind]()
                one()
                for number in range(count):
                    begun = time.process_time()
                    one()
                    spent.append(time.process_time() - begun)
                    if number == tenth:
                        memory, said, threads = (
                            process.memory_info().rss,
                            lines.count,
                            threading.active_count(),
                        )
                grown = (process.memory_info().rss - memory) / 2**20
                files = sum(1 for path in Path(folder, "home").rglob("*") if path.is_file())
            first, last = sum(spent[:tenth]) / tenth, sum(spent[-tenth:]) / tenth
            print(
                f"{count} {kind}: {first * 1e3:.0f} ms CPU each at first, {last * 1e3:.0f} ms at last, "
                f"{last / first:.2f}; since the first tenth {grown:+.0f} MB, {lines.count - said} lines, "
                f"{threading.active_count() - threads:+d} threads; {files} files wait",
                flush=True,
            )


if __name__ == "__main__":
    main()
