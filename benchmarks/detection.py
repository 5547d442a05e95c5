"""How well problems are found: trains published and own configurations under `autolog()` and judges the judgements.

    python -m benchmarks.detection --seeds 3            # the published configurations
    python -m benchmarks.detection seen --seeds 2       # our own, those that the detectors were made with
    python -m benchmarks.detection aside --seeds 2      # our own, those that were set aside

Each training is judged by its real outcome. A training of the zoo went well when its loss stayed finite and both its
best validation accuracy and the mean of its last five are at least 0.70; of our own, as its configuration says. What
it costs is printed by `benchmarks.judging`.
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

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import keras
import mlflow
import numpy as np
import tensorflow as tf

import mlflow_tfmon

_ZOO = Path(__file__).resolve().parents[2] / "shared" / "zoo"
# Of the zoo's paper and its reproduction package: (flagged of the faulty, flagged of the healthy).
_PUBLISHED = {
    "DeepDiagnosis, all": ("138 of 203", "68 of 188"),
    "DeepLocalize, all": ("191 of 203", "133 of 186"),
    "DeepDiagnosis, Blob": ("34 of 48", "8 of 39"),
    "DeepLocalize, Blob": ("44 of 48", "16 of 39"),
    "AutoTrainer's rules under Keras 3, Blob": ("143 of 155", "2 of 73"),
}


SETTINGS: dict[str, Any] = {"log_models": False, "log_datasets": False, "report": False, "silent": True}


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
    steps = -(-len(data["x_train"]) // case["batch_size"])  # of an epoch, in one call: three times as fast
    model.compile(optimizer, case["loss"], metrics=["accuracy"], steps_per_execution=steps)
    return model, {
        "x": data["x_train"],
        "y": data["y_train"],
        "validation_data": (data["x_val"], data["y_val"]),
        "batch_size": case["batch_size"],
        "epochs": case["epochs"],
    }


def _zoo_well(history: dict[str, list[float]], _: Any) -> bool:
    return _accurate(history, 0.70)


def _accurate(history: dict[str, list[float]], good: float, name: str = "val_accuracy") -> bool:
    accuracy = history[name]
    return bool(
        np.isfinite(history["loss"]).all() and max(accuracy) >= good and np.mean(accuracy[-5:]) >= good
    )


def own_jobs(aside: bool, seeds: int) -> Iterator[Job]:
    """Our own configurations."""
    from benchmarks import aside as set_aside
    from benchmarks import configurations
    from benchmarks.recipes import Configuration

    def make(one: Configuration, seed: int) -> tuple[Any, dict[str, Any]]:
        model, (x, y, x_val, y_val) = one.recipe(seed, **one.changes)
        given = {"validation_data": (x_val, y_val), "epochs": one.epochs}
        if one.feed is not None:
            return model, {**given, "x": one.feed(x, y, one.batch_size)}
        return model, {**given, "x": x, "y": y, "batch_size": one.batch_size}

    for seed in range(seeds):
        for one in (set_aside if aside else configurations).CONFIGURATIONS:
            yield Job(
                one.name,
                seed,
                one.kinds,
                functools.partial(make, one, seed),
                functools.partial(_own_well, one),
            )


def _own_well(one: Any, history: dict[str, list[float]], fit: dict[str, Any]) -> bool:
    if one.wasteful:
        return False
    for name in ("accuracy", "binary_accuracy"):
        if f"val_{name}" in history:
            return _accurate(history, one.good, f"val_{name}")
    error = history.get("val_mse", history["val_loss"])
    explained = 1 - np.mean(error[-5:]) / np.asarray(fit["validation_data"][1], float).var()
    return bool(np.isfinite(history["loss"]).all() and explained >= one.good)


def train(job: Job) -> Result:
    """Trains one configuration under autologging."""
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
    share = f" ({len(some) / len(all_of_them):.1%})" if all_of_them else ""
    return f"{len(some)} of {len(all_of_them)}{share}"


@contextlib.contextmanager
def store(keep: Path | None = None) -> Iterator[None]:
    """Autologging into a store of its own; on one thread, and without what makes graphs faster but takes longer."""
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    with tempfile.TemporaryDirectory(prefix="detection-") as temporary:
        folder = (keep or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("MLFLOW_TFMON_HOME", f"{folder}/home")
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        if mlflow.get_experiment_by_name("detection") is None:
            mlflow.create_experiment("detection", (folder / "artifacts").as_uri())
        mlflow.set_experiment("detection")
        mlflow_tfmon.autolog(**SETTINGS)
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        yield


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.detection", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("what", nargs="?", choices=("zoo", "seen", "aside"), default="zoo")
    parser.add_argument("--zoo", type=Path, default=_ZOO, help="folder of the published configurations")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each")
    parser.add_argument("--only", default="", help="configurations whose name holds this")
    parser.add_argument(
        "--keep", type=Path, help="folder that keeps the runs, so that they can be judged again"
    )
    chosen = parser.parse_args(arguments)
    with store(chosen.keep):
        jobs = zoo_jobs(chosen.zoo, chosen.seeds)
        if chosen.what != "zoo":
            jobs = own_jobs(chosen.what == "aside", chosen.seeds)
        results: list[Result] = []
        with contextlib.suppress(KeyboardInterrupt):  # the report of what was done by then
            for job in jobs:
                if chosen.only not in job.name:
                    continue
                results.append(train(job))
                one = results[-1]
                print(
                    f"{one.seconds:6.1f} s  {'well  ' if one.well else 'failed'}  {job.name} {job.seed}: "
                    f"{', '.join(one.kinds) or 'none'}",
                    file=sys.stderr,
                    flush=True,
                )
        print(report(results))


if __name__ == "__main__":
    main()
