"""Benchmark of the actions "stop" and "rescue", on trainings with far too high a learning rate and on healthy ones.

    python -m benchmarks.actions

Each configuration of `benchmarks.sets.each_kind` is trained as it is, with `on_problem="rescue"` and with
`on_problem="stop"`, from the same seed. Those that fail as they are count: how many of them go well when rescued, and
what part of the epochs is saved by stopping. The healthy ones must end with the very weights of the training as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import Any

import keras
import mlflow
import numpy as np
import tensorflow as tf

import mlflow_tfmon
from benchmarks.detection import SETTINGS, Job, own_jobs, store

_TOO_HIGH = (
    "mlp rate too high", "mlp sgd diverges", "transformer rate too high", "rmsprop too high", "cnn rate too high",
    "cnn sgd diverges", "swinging", "swinging cnn",
)  # fmt: skip
_HEALTHY = ("mlp adam", "cnn", "lstm", "transformer", "regression")


def train(job: Job, on_problem: str) -> tuple[bool, int, list[Any], dict[str, str]]:
    """Trains a configuration: whether it went well, its epochs, the weights, the run's tags."""
    mlflow_tfmon.autolog(**SETTINGS, on_problem=on_problem or "warn", disable=not on_problem)
    keras.backend.clear_session()
    keras.utils.set_random_seed(job.seed)
    model, arguments = job.make()
    history: dict[str, list[float]] = {}
    with mlflow.start_run() as run, contextlib.suppress(tf.errors.OpError):
        history = model.fit(**arguments, verbose=0).history
    tags = mlflow.get_run(run.info.run_id).data.tags if on_problem else {}
    went_well = bool(history) and job.went_well(history, arguments)
    return went_well, len(history.get("loss", ())), model.get_weights(), tags


def main() -> None:
    """Prints how many were rescued, what was saved by stopping, and whether healthy trainings were left alone."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.actions", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--seeds", type=int, default=1)
    chosen = parser.parse_args()
    failed, rescued, saved, alone, healthy = 0, 0, [], 0, 0
    with store(), contextlib.suppress(KeyboardInterrupt):
        for job in own_jobs("seen", chosen.seeds):
            if job.name not in _TOO_HIGH + _HEALTHY:
                continue
            went_well, epochs, weights, _ = train(job, "")
            if (job.name in _HEALTHY and not went_well) or (job.name in _TOO_HIGH and went_well):
                continue
            told = []
            for on_problem in ("rescue", "stop"):
                well, made, after, tags = train(job, on_problem)
                acted = {"tfmon.stopped", "tfmon.rescues"} & tags.keys()
                if job.name in _HEALTHY:
                    healthy += 1
                    same = all(np.array_equal(one, other) for one, other in zip(weights, after, strict=True))
                    alone += same and not acted
                    told.append(f"{on_problem}: {'left alone' if same and not acted else 'touched'}")
                elif on_problem == "rescue":
                    failed, rescued = failed + 1, rescued + well
                    told.append(f"rescue: {'went well' if well else 'failed all the same'}")
                else:
                    saved.append(1 - made / epochs if epochs else 0.0)
                    told.append(f"stop: after {made} of {epochs} epochs")
            print(f"{job.name} {job.seed}: {', '.join(told)}", file=sys.stderr, flush=True)
    print(f"rescued: {rescued} of {failed} that fail as they are")
    print(
        f"stopped: {sum(one > 0 for one in saved)} of {len(saved)}, {np.mean(saved or [0]):.0%} of the epochs saved"
    )
    print(f"healthy ones left alone, bit for bit: {alone} of {healthy}")


if __name__ == "__main__":
    main()
