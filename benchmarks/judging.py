"""Benchmark of diagnosis: ms of CPU to gather each second's records and for one diagnosis; and the total, in fit.

python -m benchmarks.judging         # 1,000 steps a second, with 6, 100 and 1,000 variables
python -m benchmarks.judging fit     # CPU seconds of trainings: unwatched, watched, watched but not judged
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import time
from unittest import mock

import numpy as np

from mlflow_tfmon.detectors.premises import Layer
from mlflow_tfmon.detectors.sample import Sample
from mlflow_tfmon.problems.current import Standing
from mlflow_tfmon.problems.replay import Replay
from mlflow_tfmon.stream import records

_SECONDS, _STEPS, _BLOCK = 20, 1000, 50  # of training, a second, taken at once


def _opened(count: int) -> records.StreamOpened:
    variables = tuple(
        records.Variable(f"layer_{at // 2}.{'bias' if at % 2 else 'kernel'}", (64,), at % 2 == 0)
        for at in range(count)
    )
    deep = ("weight_norm", "update_ratio", "grad_zero_fraction")
    columns = ("step", "time", "examples", "loss", "learning_rate", "grad_norm", "applied", "input_wait")
    return records.StreamOpened(0, "", variables, columns, ("grad_norm",), deep, 10 * _SECONDS * _STEPS)


def _premises(count: int) -> records.Premises:
    layers = [
        Layer(
            f"layer_{at}",
            "Dense",
            "relu",
            64,
            f"layer_{at}.kernel",
            64,
            64,
            0.0,
            0.12,
            is_output=at == count // 2 - 1,
        )
        for at in range(count // 2)
    ]
    targets = dataclasses.asdict(Sample.of(np.arange(400) % 4))
    about = {"layers": [dataclasses.asdict(one) for one in layers], "loss": "sparse_categorical_crossentropy"}
    return records.Premises({**about, "optimizer": "Adam", "targets": targets}, "")


def cost(count: int, learns: bool) -> tuple[float, float]:
    """Milliseconds of CPU to gather a second's steps of `count` variables, and for one judgement."""
    random = np.random.default_rng(0)
    replay, standing = Replay(), Standing()
    replay.take(_premises(count))
    replay.take(_opened(count))
    gathering, judging = [], []
    for second in range(_SECONDS):
        blocks: list[records.Record] = []
        for first in range(second * _STEPS + 1, (second + 1) * _STEPS + 1, _BLOCK):
            step = np.arange(first, first + _BLOCK, dtype=float)
            loss = np.log(4) * (np.exp(-step / 3000) if learns else 1.0) + 0.05 * random.normal(size=_BLOCK)
            rest = np.tile([1e-3, 0.5, 1.0, 0.0], (_BLOCK, 1))
            scalars = np.column_stack([step, step / 1000, np.full(_BLOCK, 32.0), loss, rest])
            norms = np.abs(random.normal(size=(_BLOCK, count)))
            blocks.append(records.Steps(0, 0.0, np.hstack([scalars, norms])))
            deep = np.concatenate([[step[0]], np.full(count, 1.0), np.full(count, 1e-3), np.zeros(count)])
            blocks.append(records.DeepSteps(0, 0.0, deep[None]))
        start = time.process_time()
        for block in blocks:
            replay.take(block)
        gathering.append(time.process_time() - start)
        start = time.process_time()
        standing.judge(replay.histories())
        judging.append(time.process_time() - start)
    return 1e3 * statistics.median(gathering), 1e3 * statistics.median(judging)


def in_fit(rounds: int) -> str:
    """CPU seconds of the trainer in the same training, taking turns; the second fit of each model counts."""
    import keras
    import mlflow

    import mlflow_tfmon
    from benchmarks.detection import SETTINGS, own_jobs, store
    from mlflow_tfmon.problems.watch import Watch

    lines = [f"{'':16} {'unwatched':>10} {'watched':>10} {'not judged':>10}"]
    with store():
        for job in own_jobs("seen", 1):
            if job.name not in ("mlp adam", "cnn", "lstm", "transformer"):
                continue
            spent: dict[str, list[float]] = {"unwatched": [], "watched": [], "not judged": []}
            for _ in range(rounds):
                for how, seconds in spent.items():
                    mlflow_tfmon.autolog(**SETTINGS, disable=how == "unwatched")
                    with contextlib.ExitStack() as stack:
                        for name in ("take", "look", "finish") if how == "not judged" else ():
                            stack.enter_context(mock.patch.object(Watch, name, lambda *_: None))
                        keras.backend.clear_session()
                        keras.utils.set_random_seed(0)
                        model, arguments = job.make()
                        with mlflow.start_run():
                            model.fit(**arguments, verbose=0)  # traces
                            start = time.process_time()
                            model.fit(**arguments, verbose=0)
                            seconds.append(time.process_time() - start)
            lines.append(
                f"{job.name:16} " + " ".join(f"{statistics.median(some):10.2f}" for some in spent.values())
            )
    return "\n".join(lines)


def main() -> None:
    """Prints the costs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judging", description="What judging costs.")
    parser.add_argument("what", nargs="?", choices=("looks", "fit"), default="looks")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    if chosen.what == "fit":
        print(in_fit(chosen.rounds))
        return
    print(f"{'variables':>10} {'training':>14} {'gathering, ms a second':>24} {'a judgement, ms':>16}")
    for count in (6, 100, 1000):
        for learns in (True, False):
            gathering, judging = cost(count, learns)
            print(
                f"{count:10} {'learns' if learns else 'does not learn':>14} {gathering:24.1f} {judging:16.1f}"
            )


if __name__ == "__main__":
    main()
