"""Tests under `tf.distribute`: the recording equals a plain loop over the global batches."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_tfmon
from mlflow_tfmon import cluster
from mlflow_tfmon.signals import INGREDIENTS
from mlflow_tfmon.stream import workers
from mlflow_tfmon.stream.drain import Reading
from mlflow_tfmon.stream.records import Variable
from mlflow_tfmon.stream.ring import RingLayout, SeldomRows
from tests import trainings
from tests.distributed import CLIP, FEW, RATE, SLEEP, STEPS
from tests.promises.test_exactness import compare, renamed
from tests.trainings import BATCH, Reference, by_hand

SUMMED = {"fit": STEPS, "fit, eager": FEW, "fit, loss scaling": STEPS, "loop": STEPS, "loop, eager": FEW}
# Keras 3.7's fit minimizes the sum of the replicas' mean losses, later ones minimize their mean.
MEAN = hasattr(keras.src.losses.loss, "scale_loss_for_distribution")


def ports(count: int) -> list[str]:
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in found:
            one.bind(("127.0.0.1", 0))
        return [str(one.getsockname()[1]) for one in found]


def start(store: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store}
    command = [sys.executable, "-m", "tests.distributed", *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(*processes: subprocess.Popen[str], seconds: float = 240) -> list[str]:
    try:
        output = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, output, strict=True):
        assert process.returncode == 0, text[-4000:]
    return output


def reference(variables: Sequence[str], count: int = STEPS) -> Reference:
    net = trainings.model()
    steps = itertools.islice(trainings.batches(*trainings.data(), 1), count)
    seen = by_hand(net, keras.optimizers.SGD(RATE, momentum=0.9), steps, lambda step: RATE)
    return renamed(seen, net, named(variables))


def named(variables: Sequence[str]) -> Any:
    return SimpleNamespace(trainable_variables=[SimpleNamespace(path=path) for path in variables])


def clipped_by_replica() -> tuple[list[float], list[float]]:
    """The losses and the norms of the applied gradient where each half of a batch is clipped by itself."""
    net, optimizer = trainings.model(), keras.optimizers.SGD(RATE, momentum=0.9)
    losses, norms = [], []
    for x, y in trainings.batches(*trainings.data(), 1):
        parts = []
        losses.append(0.0)
        for half in (slice(0, BATCH // 2), slice(BATCH // 2, BATCH)):
            with tf.GradientTape() as tape:
                loss = trainings.loss()(y[half], net(x[half], training=True)) / (2 if MEAN else 1)
            gradients = [g.numpy() for g in tape.gradient(loss, net.trainable_variables)]
            scale = min(1.0, CLIP / trainings.norm(gradients))
            parts.append([(g * scale).astype("float32") for g in gradients])
            losses[-1] += float(loss)
        summed = [a + b for a, b in zip(*parts, strict=True)]
        norms.append(trainings.norm(summed))
        optimizer.apply([tf.constant(g) for g in summed], net.trainable_variables)
    return losses, norms


@pytest.mark.thorough
def test_two_replicas_in_one_process(store: str, home: Path, tmp_path: Path) -> None:
    output = finish(start(store, "mirrored", str(tmp_path)))[0]
    mlflow.set_tracking_uri(store)
    seen = json.loads((tmp_path / "mirrored.json").read_text())
    assert [name for name, mode in seen.items() if not mode["same"]] == []  # watching changed no bit
    for name, count in SUMMED.items():
        if name.startswith("fit") and not MEAN:
            continue
        compare(seen[name]["run_id"], reference(seen[name]["variables"], count), clipped=False)
    for name in seen:
        steps = mlflow_tfmon.load_run(seen[name]["run_id"]).steps
        assert (steps.examples == BATCH).all()  # of both replicas
        assert steps.step_time_ms[1:].gt(0).all()
        assert steps.input_wait_share[1:].between(0, 1).all()
    for name in ("fit, clipping", "loop, clipping"):
        if name.startswith("fit") and not MEAN:
            continue
        steps = mlflow_tfmon.load_run(seen[name]["run_id"]).steps
        losses, norms = clipped_by_replica()
        np.testing.assert_allclose(steps.loss, losses, rtol=1e-5)
        np.testing.assert_allclose(steps.grad_norm_clipped, norms, rtol=1e-5)
        assert "grad_norm" not in steps  # Keras never makes the sum of what is not clipped
        assert mlflow.get_run(seen[name]["run_id"]).data.tags["tfmon.absent"] == "batch/grad_norm"
    if MEAN:
        net, bad = trainings.model(), 3
        batches = [batch for at, batch in enumerate(trainings.batches(*trainings.data(), 1)) if at != bad]
        expected = by_hand(net, keras.optimizers.SGD(RATE, momentum=0.9), iter(batches), lambda step: RATE)
        steps = mlflow_tfmon.load_run(seen["fit, a bad batch"]["run_id"]).steps
        np.testing.assert_allclose(steps.loss, expected.loss, rtol=1e-5)
        np.testing.assert_allclose(steps.grad_norm, expected.grad_norm, rtol=1e-5)
    assert output.count("before clipping is not recorded") == 1


@pytest.fixture
def processes(store: str, home: Path, tmp_path: Path) -> list[str]:
    given = ports(2)
    output = finish(*(start(store, "worker", str(tmp_path), str(index), *given) for index in range(2)))
    mlflow.set_tracking_uri(store)
    return output


@pytest.mark.thorough
def test_two_workers(processes: list[str], tmp_path: Path) -> None:
    chief, other = (json.loads((tmp_path / f"worker{index}.json").read_text()) for index in range(2))
    assert chief["same"] and other["same"]
    runs = mlflow.search_runs(output_format="list", order_by=["attributes.start_time ASC"])
    assert len(runs) == 3  # the chief's trainings
    run = mlflow_tfmon.load_run(runs[0].info.run_id)
    compare(run.run_id, reference(chief["variables"]), clipped=False)
    assert (run.steps.examples == BATCH).all()  # of both workers
    own = run.steps[["worker_0/step_time_ms", "worker_1/step_time_ms"]][1:]
    assert own.ge(0).all(axis=None)
    assert (own["worker_1/step_time_ms"] >= 1e3 * SLEEP).all()  # the straggler
    assert own["worker_0/step_time_ms"].median() < own["worker_1/step_time_ms"].median()
    assert (run.steps.step_time_ms[1:] >= own["worker_0/step_time_ms"]).all()  # which the chief's includes
    assert {"batch/loss", "worker_0/step_time_ms", "worker_1/step_time_ms"} <= set(runs[0].data.metrics)

    # Clipping, and batches for which each worker waits: the chief's share is what its loop saw.
    steps = mlflow_tfmon.load_run(runs[1].info.run_id).steps
    losses, norms = clipped_by_replica()
    np.testing.assert_allclose(steps.loss, losses, rtol=1e-5)
    np.testing.assert_allclose(steps.grad_norm_clipped, norms, rtol=1e-5)
    assert "grad_norm" not in steps and runs[1].data.tags["tfmon.absent"] == "batch/grad_norm"
    assert processes[0].count("before clipping is not recorded") == 1
    waited = steps.input_wait_share * steps.step_time_ms / 1e3
    assert max(chief["waited"][1:]) > SLEEP / 2  # it did wait
    np.testing.assert_allclose(waited[1:], chief["waited"][1:], atol=SLEEP / 5)

    # Where another worker is not watched, the figures of the whole batch are absent, and it is said once.
    steps = mlflow_tfmon.load_run(runs[2].info.run_id).steps
    np.testing.assert_allclose(steps.grad_norm, reference(chief["variables"]).grad_norm, rtol=1e-5)
    assert len(steps) == STEPS
    assert "loss" not in steps and "examples_per_second" not in runs[2].data.metrics
    assert "worker_1/step_time_ms" not in steps and "worker_1/step_time_ms" not in runs[2].data.metrics
    assert steps["worker_0/step_time_ms"][1:].ge(0).all()
    assert processes[0].count("worker 1 does not report its steps") == 1


class _Ring:
    """Stands in for a ring of which only the layout is asked."""

    layout = RingLayout((Variable("kernel", (2, 2), True),), frozenset(), ("grad_norm",), workers=3)


def _block(ring: _Ring, first: int, norms: np.ndarray) -> Reading:
    rows = np.ones((len(norms), len(ring.layout.columns)))
    rows[:, ring.layout.columns.index("grad_norm/0")] = norms**2 / 2
    empty = SeldomRows(np.empty((0, 1)), 0, 0)
    deep = SeldomRows(np.full((1, 1 + len(INGREDIENTS)), float(first)), 0, 0)
    return Reading(ring, rows, deep, empty, first, 0, 0.0)  # type: ignore[arg-type]


def test_a_worker_with_another_gradient_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of three workers, as they are sent; one is another's after 6 of 20 steps, and one rounded otherwise."""
    ring = _Ring()
    monkeypatch.setitem(workers._number_of, ring, 0)  # type: ignore[arg-type]
    norms = np.linspace(3.0, 1.0, 20)
    sent: dict[str, bytes] = {}
    monkeypatch.setattr(cluster, "send", lambda key, data: sent.update({key: data}) or True)
    monkeypatch.setattr(cluster, "receive", lambda key, seconds: sent.pop(key, None))
    monkeypatch.setattr(cluster, "forget", lambda key: None)
    reporters = {index: workers.Reporter(ring, index) for index in (1, 2)}  # type: ignore[arg-type]
    whole = workers.gathered(ring)  # type: ignore[arg-type]
    lost, apart = [], []
    for first in (1, 11):
        mine = norms[first - 1 : first + 9]
        theirs = {1: mine * (1 + 1e-5), 2: mine.copy()}
        if first == 1:
            theirs[2][6:] *= 1.5
        for index, reporter in reporters.items():
            reporter.take(_block(ring, first, theirs[index]))
        reading = whole(_block(ring, first, mine))
        lost += np.isnan(reading.rows[:, ring.layout.columns.index("loss")]).tolist()
        apart.append({name: values for name, values in reading.more.items() if name.endswith("_apart")})
        assert [apart[-1][f"worker_{index}/weights_apart"][0] for index in (1, 2)] == [0, 0]
    gradients = [np.concatenate([one[f"worker_{index}/gradient_apart"] for one in apart]) for index in (1, 2)]
    np.testing.assert_allclose(gradients[0], 1e-5, rtol=1e-5)
    np.testing.assert_allclose(gradients[1], [0.0] * 6 + [0.5] * 4 + [0.0] * 10, rtol=1e-5)
    assert lost == [True] * 20  # what is rounded otherwise is not taken for the same


FIT_OF_WORKERS = """
import json, os, sys
index, given = int(sys.argv[1]), sys.argv[2:]
cluster = {"worker": [f"127.0.0.1:{port}" for port in given]}
os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
import tensorflow as tf
import mlflow_tfmon
from tests import trainings

mlflow_tfmon.autolog(log_models=False)
with tf.distribute.MultiWorkerMirroredStrategy().scope():
    net = trainings.model()
    net.compile("sgd", trainings.loss())
try:
    net.fit(*trainings.data(), batch_size=16, verbose=0)
except ValueError as error:
    print("Keras says:", " ".join(str(error).split())[:60], flush=True)
os._exit(0)
"""


@pytest.mark.thorough
@pytest.mark.parametrize("workers", [1, 2])
def test_that_the_fit_of_several_workers_fails_is_said_before(workers: int, store: str, home: Path) -> None:
    """Once by each of them; where there is one worker Keras can, and nothing is said."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store}
    given = ports(workers)
    out = finish(
        *(
            subprocess.Popen(
                [sys.executable, "-c", FIT_OF_WORKERS, str(index), *given],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for index in range(workers)
        )
    )  # fmt: skip
    for text in out:
        said, keras_says = text.find("TF_USE_LEGACY_KERAS=1"), text.find("Keras says: Attempt to convert")
        assert (0 <= said < keras_says) if workers > 1 else (said == keras_says == -1), text[-3000:]
        assert text.count("keras issue 20585") == (workers > 1)
