"""Benchmark of the detectors: trains published and own configurations under `autolog()` and scores the diagnoses.

    python -m benchmarks.detection --seeds 3            # the published configurations
    python -m benchmarks.detection seen --seeds 2       # our own, those that were looked at
    python -m benchmarks.detection aside --seeds 2      # our own, those that were set aside
    python -m benchmarks.detection loops --seeds 2      # our own, in custom loops
    python -m benchmarks.detection loops-aside          # further ones, those that were set aside
    python -m benchmarks.detection fresh                # fits and loops, written by someone who knew no detector
    python -m benchmarks.detection second               # further ones, written in the same way

Each training is judged by its real outcome. A training of the zoo went well when its loss stayed finite and both its
best validation accuracy and the mean of its last five are at least 0.70; of our own, as its configuration says. With
`--keep DIR` a run that is cut off (by `--minutes`, say) goes on where it was, and `--again` judges its trainings anew
without training; `--check` asks `mlflow-tfmon check` about each of them. What it costs is printed by
`benchmarks.judging`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import io
import itertools
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")

import keras
import mlflow
import numpy as np
import tensorflow as tf

import mlflow_tfmon
from benchmarks import verdicts
from benchmarks.verdicts import Job, Result
from mlflow_tfmon.problems.rediagnosis import diagnose

_ZOO = Path(__file__).resolve().parents[2] / "shared" / "zoo"


SETTINGS: dict[str, Any] = {"log_models": False, "log_datasets": False, "report": False, "silent": True}


def zoo_jobs(folder: Path, seeds: int) -> Iterator[Job]:
    """The published configurations."""
    cases = json.loads((folder / "cases.json").read_text("utf-8"))
    data = np.load(folder / "blob.npz")
    for seed in range(seeds):
        for case in cases:
            make = functools.partial(_zoo_model, case, data)
            yield Job(case["id"], seed, tuple(case["published_problems"]), make, _zoo_score, 0.70)


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


def _zoo_score(history: dict[str, list[float]], _: Any) -> float:
    return _late(history, "val_accuracy")


def _late(history: dict[str, list[float]], name: str) -> float:
    """The mean of the last five epochs."""
    return float(np.mean(history[name][-5:])) if np.isfinite(history["loss"]).all() else -np.inf


def own_jobs(what: str, seeds: int) -> Iterator[Job]:
    """Our own configurations: those "seen", those set "aside", or the "fresh" or "second" ones."""
    from benchmarks.sets import aside, each_kind, fresh_fits, second_fits, sizes, tasks, ways
    from benchmarks.sets.recipes import Configuration

    def make(one: Configuration, seed: int) -> tuple[Any, dict[str, Any]]:
        model, (x, y, x_val, y_val) = one.recipe(seed, **one.changes)
        given = {"validation_data": (x_val, y_val), "epochs": one.epochs, **one.fit()}
        if one.feed is not None:
            return model, {**given, "x": one.feed(x, y, one.batch_size)}
        return model, {**given, "x": x, "y": y, "batch_size": one.batch_size}

    sets = {
        "seen": (each_kind, sizes, ways, tasks),
        "aside": (aside,),
        "fresh": (fresh_fits,),
        "second": (second_fits,),
    }[what]
    for seed in range(seeds):
        for one in itertools.chain.from_iterable(each.CONFIGURATIONS for each in sets):
            yield Job(
                one.name,
                seed,
                one.kinds,
                functools.partial(make, one, seed),
                functools.partial(_own_score, one),
                np.inf if one.wasteful else one.good,
            )


def _own_score(one: Any, history: dict[str, list[float]], fit: dict[str, Any]) -> float:
    for name in (one.judged_by, "val_accuracy", "val_binary_accuracy"):
        if name in history:
            return _late(history, name)
    error = _late(history, "val_mse" if "val_mse" in history else "val_loss")
    explained = 1 - error / np.asarray(fit["validation_data"][1], float).var()
    return float(explained) if np.isfinite(error) else -np.inf


def loop_jobs(what: str, seeds: int) -> Iterator[Job]:
    """Our own configurations in custom loops: "loops", "loops-aside", or the "fresh" or "second" ones."""
    from benchmarks.sets import fresh_loops, loops, loops_aside, second_loops

    modules = {"loops": loops, "loops-aside": loops_aside, "fresh": fresh_loops, "second": second_loops}
    for seed in range(seeds):
        for one in modules[what].CONFIGURATIONS:
            make = functools.partial(one.make, seed)
            yield Job(one.name, seed, one.kinds, make, lambda history, _: history["score"][-1], one.good)


def train(job: Job, watched: bool = True) -> Result:
    """Trains one configuration, under autologging if it is watched."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(job.seed)
    model, arguments = job.make()
    history = None
    name = f"{job.name} {job.seed}"
    run: Any = mlflow.start_run(run_name=name) if watched else contextlib.nullcontext()
    start = time.perf_counter()
    with run as active, contextlib.suppress(tf.errors.OpError):
        history = model.fit(**arguments, verbose=0).history
    seconds = time.perf_counter() - start
    score = -np.inf if history is None else float(job.score(history, arguments))
    result = Result(job.name, job.seed, job.kinds, score >= job.good, (), None, seconds, score=score)
    return judged(result, active.info.run_id) if watched else result


def judged(result: Result, run_id: str, again: bool = False) -> Result:
    """A result, with what was said of its run; or what would be said of it now."""
    try:
        run = mlflow_tfmon.load_run(run_id)
    except ValueError:  # nothing was recorded, as of a descent by hand: so nothing was said
        return dataclasses.replace(result, run_id=run_id)
    problems = diagnose(run) if again else run.problems
    said = [problem.said_at for problem in problems]
    first = min(said) / max(1, len(run.steps)) if said else None
    kinds = tuple(one.kind for one in problems)
    return dataclasses.replace(result, kinds=kinds, first=first, run_id=run_id)


def gated(results: Iterable[Result]) -> str:
    """What `mlflow-tfmon check` says of the runs of results: how many it fails of the failed and of the healthy."""
    from mlflow_tfmon import cli

    found = []
    for what in ("critical", "warning"):
        said: dict[bool, list[int]] = {False: [], True: []}
        for one in results:
            with contextlib.redirect_stdout(io.StringIO()):
                said[one.well].append(cli.main(["check", one.run_id, "--fail-on", what]))
        found.append((f"mlflow-tfmon check --fail-on {what}", said[False], said[True]))
    return verdicts.gate(found)


@contextlib.contextmanager
def store(keep: Path | None = None, watch: bool = True) -> Iterator[None]:
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
        if watch:
            mlflow_tfmon.autolog(**SETTINGS)
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        yield


def main(arguments: list[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.detection", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "what",
        nargs="?",
        choices=("zoo", "seen", "aside", "loops", "loops-aside", "fresh", "second"),
        default="zoo",
    )
    parser.add_argument("--zoo", type=Path, default=_ZOO, help="folder of the published configurations")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each")
    parser.add_argument("--only", default="", help="configurations whose name holds this")
    parser.add_argument(
        "--keep", type=Path, help="folder that keeps runs and results, to go on with and judge again"
    )
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="no training begins after that long"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--again", action="store_true", help="judge the runs in --keep again, without training")
    how.add_argument("--unwatched", action="store_true", help="only tell which trainings go well")
    parser.add_argument(
        "--check", action="store_true", help="tell what `mlflow-tfmon check` says of the runs in --keep"
    )
    chosen = parser.parse_args(arguments)
    if chosen.check and (chosen.keep is None or chosen.unwatched):
        parser.error("--check needs --keep DIR, the folder of watched trainings")
    if chosen.again and chosen.keep is None:
        parser.error("--again needs --keep DIR, the folder of the trainings to judge again")
    if chosen.what == "zoo" and not (chosen.zoo / "cases.json").is_file():
        parser.error(f"no published configurations are in {chosen.zoo}; seen, aside and loops need none")
    jobs = zoo_jobs(chosen.zoo, chosen.seeds) if chosen.what == "zoo" else iter(())
    if "loops" in chosen.what or chosen.what in ("fresh", "second"):
        jobs = loop_jobs(chosen.what, chosen.seeds)
    if chosen.what in ("seen", "aside", "fresh", "second"):
        jobs = itertools.chain(jobs, own_jobs(chosen.what, chosen.seeds))
    end = time.monotonic() + 60 * chosen.minutes
    with store(chosen.keep, not (chosen.unwatched or chosen.again)):
        kept = chosen.keep / f"{chosen.what}.jsonl" if chosen.keep and not chosen.unwatched else None
        results = {(one.name, one.seed): one for one in verdicts.read(kept)} if kept else {}
        with contextlib.suppress(KeyboardInterrupt):  # the report of what was done by then
            for job in jobs:
                known = results.get((job.name, job.seed))
                if (
                    chosen.only not in job.name
                    or (known is None) == chosen.again
                    or (known and not chosen.again)
                ):
                    continue
                if time.monotonic() > end:
                    break
                one = judged(known, known.run_id, again=True) if known else train(job, not chosen.unwatched)
                results[job.name, job.seed] = one
                if kept and not known:
                    verdicts.add(kept, one)
                print(one.line(), file=sys.stderr, flush=True)
        print(verdicts.report(results.values()))
        if chosen.check:
            print(gated([one for one in results.values() if chosen.only in one.name]))


if __name__ == "__main__":
    main()
