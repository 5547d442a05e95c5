"""Tests that several processes train as without monitoring: nothing that one does alone involves the others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_tfmon
from tests import trainings
from tests.promises.test_distribute import finish, ports

# Keras 3.15's fit fails under MultiWorkerMirroredStrategy, watched or not.
LOOPS = ("loop", "loop inside the scope")
DIVERGING = ("fit that diverges", "loop that diverges")  # which on one process would be stopped
ALL = (
    "fit",
    "fit inside the scope",
    "fit that the chief alone watches",
    "fit of a class of one's own",
    *LOOPS,
)


def start(store: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store}
    command = [sys.executable, "-m", "tests.several_processes", *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def told(folder: Path, kind: str, store: str, keras: str, cases: tuple[str, ...]) -> list[dict[str, Any]]:
    """What each process tells of its trainings."""
    given = ports(2)
    places: list[list[str]] = [["0", *given], ["1", *given]] if kind == "workers" else [[]]
    finish(
        *(start(store, str(folder), keras, kind, ",".join(cases), *place) for place in places), seconds=900
    )
    return [json.loads((folder / f"{kind}{at}.json").read_text()) for at in range(len(places))]


def same_losses(processes: list[dict[str, Any]]) -> None:
    for cases in processes:
        for name, losses in cases.items():
            for watched in ("log_models=True", "log_models=False"):
                np.testing.assert_array_equal(losses[watched], losses["unwatched"], f"{name}, {watched}")


@pytest.mark.usefixtures("fresh")
def test_nothing_is_reduced_or_sent_for_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process: what would be a collective among several is asked for as often as unwatched."""
    asked: list[str] = []
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])

    def counted(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            asked.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    counted(tf.distribute.Strategy, "reduce")
    counted(type(strategy.extended), "_create_variable")

    def train() -> Any:
        with strategy.scope():
            net = trainings.model(name="net")
            net.compile(keras.optimizers.SGD(0.05), trainings.loss(), metrics=["accuracy"])
        asked.clear()
        with strategy.scope():
            net.fit(*trainings.data(64), batch_size=trainings.BATCH, shuffle=False, verbose=0)
        return net

    before, unwatched = train(), list(asked)
    mlflow_tfmon.autolog()
    after = train()
    assert asked == unwatched
    for one, expected in zip(after.get_weights(), before.get_weights(), strict=True):
        np.testing.assert_array_equal(one, expected)
    run = mlflow.last_active_run()
    assert run is not None and {"tfmon.best_model", "mlflow.tfmon.model"} <= set(run.data.tags)


@pytest.mark.thorough
@pytest.mark.timeout(1200)
def test_a_chief_saves_without_the_other_workers(store: str, home: Path, tmp_path: Path) -> None:
    processes = told(tmp_path, "workers", store, "2", ("fit",))
    same_losses(processes)
    assert set(processes[0]["fit"]["kept"]) == {
        "tfmon.best_model",
        "mlflow.tfmon.last_model",
        "mlflow.tfmon.model",
    }


@pytest.mark.thorough
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("keras", ["2", "3"])
def test_no_worker_stops_before_the_others(keras: str, store: str, home: Path, tmp_path: Path) -> None:
    same_losses(told(tmp_path, "workers", store, keras, DIVERGING if keras == "2" else DIVERGING[1:]))


@pytest.mark.thorough
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("kind", "keras", "cases"),
    [("workers", "2", ALL), ("workers", "3", LOOPS), ("mirrored", "2", ALL), ("mirrored", "3", ALL)],
)
def test_matrix(
    kind: str, keras: str, cases: tuple[str, ...], store: str, home: Path, tmp_path: Path
) -> None:
    processes = told(tmp_path, kind, store, keras, cases)
    same_losses(processes)
    for name, found in processes[0].items():
        models = found["kept"]
        assert {"tfmon.best_model", "mlflow.tfmon.last_model"} <= set(models), name
        assert name in LOOPS or "mlflow.tfmon.model" in models
        for kept in (models["mlflow.tfmon.last_model"], models.get("mlflow.tfmon.model", [])):
            for one, expected in zip(kept, found["weights"], strict=bool(kept)):
                # Keras 2 has the averages of batch normalization by replica: a worker has its own.
                if kind == "mirrored" or keras == "3" or np.shape(one) != (8,):
                    np.testing.assert_allclose(one, expected, rtol=1e-6)
