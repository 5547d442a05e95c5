"""How well problems are found: trains published and own configurations under `autolog()` and judges the judgements.

    python -m benchmarks.detection                  # the published configurations, one seed
    python -m benchmarks.detection --half seen      # our own, the half that the detectors were made with
    python -m benchmarks.detection --half aside     # the half that was set aside

Each training is judged by its real outcome. A training of the zoo went well when its loss stayed finite and both its
best validation accuracy and the mean of its last five are at least 0.70; of our own, as its configuration says.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_ZOO = Path(__file__).resolve().parents[2] / "shared" / "zoo"
# Of the zoo's paper and its reproduction package: (flagged of the faulty, flagged of the healthy).
_PUBLISHED = {
    "DeepDiagnosis, all": ("138 of 203", "68 of 188"),
    "DeepLocalize, all": ("191 of 203", "133 of 186"),
    "DeepDiagnosis, Blob": ("34 of 48", "8 of 39"),
    "DeepLocalize, Blob": ("44 of 48", "16 of 39"),
    "AutoTrainer's rules under Keras 3, Blob": ("143 of 155", "2 of 73"),
}


@dataclass(frozen=True)
class Job:
    """A training to be.

    Attributes:
        name: of the configuration.
        seed: of it.
        kinds: that would be right; none if unknown or healthy.
        make: the compiled model and the arguments of fit.
        went_well: judges what fit returned, and the model.
    """

    name: str
    seed: int
    kinds: tuple[str, ...]
    make: Callable[[], tuple[Any, dict[str, Any]]]
    went_well: Callable[[dict[str, list[float]], Any], bool]


@dataclass(frozen=True)
class Result:
    """What became of a training, and what was said of it."""

    job: Job
    well: bool
    kinds: tuple[str, ...]
    first: float | None  # share of the training that was over when the first problem was said
    seconds: float


def zoo_jobs(folder: Path, seeds: int) -> Iterator[Job]:
    """The published configurations."""
    cases = json.loads((folder / "cases.json").read_text("utf-8"))
    data = np.load(folder / "blob.npz")
    for seed in range(seeds):
        for case in cases:
            make = functools.partial(_zoo_model, case, data)
            yield Job(case["id"], seed, tuple(case["published_problems"]), make, _zoo_well)


def _zoo_model(case: dict[str, Any], data: Any) -> tuple[Any, dict[str, Any]]:
    import keras

    model = keras.Sequential([keras.Input((2,))])
    for about in case["layers"]:
        arguments = {k: v for k, v in about.items() if k not in ("type", "input_shape", "shape")}
        if about["type"] == "InputLayer":
            continue
        for name, made in list(arguments.items()):
            if name.endswith("_initializer"):
                arguments[name] = getattr(keras.initializers, made["class"])(**made["config"])
        model.add(getattr(keras.layers, about["type"])(**arguments))
    optimizer = getattr(keras.optimizers, case["optimizer"])(**case["optimizer_kwargs"])
    model.compile(optimizer, case["loss"], metrics=["accuracy"])
    return model, {
        "x": data["x_train"],
        "y": data["y_train"],
        "validation_data": (data["x_val"], data["y_val"]),
        "batch_size": case["batch_size"],
        "epochs": case["epochs"],
    }


def _zoo_well(history: dict[str, list[float]], _: Any) -> bool:
    return _accurate(history, 0.70)


def _accurate(history: dict[str, list[float]], good: float) -> bool:
    accuracy = history["val_accuracy"]
    return bool(
        np.isfinite(history["loss"]).all() and max(accuracy) >= good and np.mean(accuracy[-5:]) >= good
    )


def own_jobs(held_out: bool, seeds: int) -> Iterator[Job]:
    """Our own configurations."""
    from benchmarks.configurations import configurations

    for seed in range(seeds):
        for one in configurations(held_out):

            def make(one: Any = one, seed: int = seed) -> tuple[Any, dict[str, Any]]:
                model, (x, y, x_val, y_val) = one.recipe(seed, **one.changes)
                return model, {
                    "x": x,
                    "y": y,
                    "validation_data": (x_val, y_val),
                    "batch_size": one.batch_size,
                    "epochs": one.epochs,
                }

            def well(history: dict[str, list[float]], fit: Any, one: Any = one) -> bool:
                if "val_accuracy" in history:
                    return _accurate(history, one.good)
                y = np.asarray(fit["validation_data"][1], float)
                explained = 1 - np.array(history["val_loss"][-5:]) / y.var()
                return bool(np.isfinite(history["loss"]).all() and explained.mean() >= one.good)

            yield Job(one.name, seed, one.kinds, make, well)


def train(job: Job) -> Result:
    """Trains one configuration under autologging."""
    import keras
    import mlflow
    import tensorflow as tf

    import mlflow_tfmon

    keras.backend.clear_session()
    keras.utils.set_random_seed(job.seed)
    model, arguments = job.make()
    start = time.perf_counter()
    history = None
    with (
        mlflow.start_run(run_name=f"{job.name} {job.seed}") as active,
        contextlib.suppress(tf.errors.OpError),
    ):
        history = model.fit(**arguments, verbose=0).history
    seconds = time.perf_counter() - start
    run = mlflow_tfmon.load_run(active.info.run_id)
    said = [problem.said_at for problem in run.problems]
    first = min(said) / max(1, len(run.steps)) if said else None
    well = history is not None and job.went_well(history, arguments)
    return Result(job, well, tuple(one.kind for one in run.problems), first, seconds)


def report(results: list[Result]) -> str:
    """The figures, and each training of which something was missed or wrongly said."""
    failed, well = [one for one in results if not one.well], [one for one in results if one.well]
    found = [one for one in failed if one.kinds]
    wrong = [one for one in well if one.kinds]
    named = [one for one in failed if one.job.kinds]
    right = [one for one in named if set(one.kinds) & set(one.job.kinds)]
    firsts = [one.first for one in found if one.first is not None]
    lines = [
        f"{'tool':42} {'flagged of the failed':>22} {'flagged of the healthy':>22}",
        f"{'mlflow_tfmon':42} {_of(found, failed):>22} {_of(wrong, well):>22}",
        *(f"{name:42} {a:>22} {b:>22}" for name, (a, b) in _PUBLISHED.items()),
        "",
        f"right kind named: {_of(right, named)} of those whose kind is known",
        f"first said after {statistics.median(firsts):.1%} of the training, in the median" if firsts else "",
        f"{sum(one.seconds for one in results):.0f} s of training in all",
        "",
    ]
    for one in results:
        if bool(one.kinds) == one.well:
            what = "healthy, but said:" if one.well else "failed, but nothing said"
            lines.append(f"{one.job.name} (seed {one.job.seed}): {what} {', '.join(one.kinds)}")
        elif not one.well and one.job.kinds and not set(one.kinds) & set(one.job.kinds):
            lines.append(
                f"{one.job.name} (seed {one.job.seed}): said {', '.join(one.kinds)}, not {' or '.join(one.job.kinds)}"
            )
    return "\n".join(lines)


def _of(some: list[Result], all_of_them: list[Result]) -> str:
    return f"{len(some)} of {len(all_of_them)}"


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.detection", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--half", choices=("seen", "aside"), help="our own configurations instead of the zoo")
    parser.add_argument("--zoo", type=Path, default=_ZOO, help="folder of the published configurations")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--only", default="", help="configurations whose name holds this")
    chosen = parser.parse_args(arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import mlflow

    import mlflow_tfmon

    with tempfile.TemporaryDirectory(prefix="detection-") as folder:
        os.environ.setdefault("MLFLOW_TFMON_HOME", f"{folder}/home")
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.set_experiment(
            experiment_id=mlflow.create_experiment("detection", (Path(folder) / "artifacts").as_uri())
        )
        mlflow_tfmon.autolog(log_models=False, log_datasets=False, silent=True)
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        jobs = (
            own_jobs(chosen.half == "aside", chosen.seeds)
            if chosen.half
            else zoo_jobs(chosen.zoo, chosen.seeds)
        )
        results = []
        for job in jobs:
            if chosen.only in job.name:
                results.append(train(job))
                one = results[-1]
                print(
                    f"{one.seconds:6.1f} s  {'well  ' if one.well else 'failed'}  {job.name}: "
                    f"{', '.join(one.kinds) or 'none'}",
                    file=sys.stderr,
                    flush=True,
                )
        print(report(results))


if __name__ == "__main__":
    main()
