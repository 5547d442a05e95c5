"""Tests of the batches of bad steps: planted examples are kept, named, found again in the data, and replayed."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

import mlflow_tfmon
from mlflow_tfmon import cli
from mlflow_tfmon.probes import batches
from mlflow_tfmon.reading.batches import KeptBatch, load_batch
from tests.daily import thorough

pytestmark = pytest.mark.usefixtures("fresh")
ROWS, BATCH, BAD = 1280, 16, 1000
STEP, PLACE = BAD // BATCH + 1, BAD % BATCH  # without a shuffle
Data = tuple[np.ndarray, np.ndarray]


def data(planted: str) -> Data:
    """Examples of which one is bad: a NaN, an outlier of 100 deviations, or a wrong label."""
    random = np.random.default_rng(3)
    x = random.normal(size=(ROWS, 6)).astype("float32")
    y = (x @ random.normal(size=6) + 0.1 * random.normal(size=ROWS)).astype("float32")
    if planted == "nan":
        x[BAD, 3] = np.nan
    elif planted == "outlier":
        x[BAD, 3] = 100.0
    elif planted == "label":
        y = (np.arange(ROWS) % 3).astype("int32")
        x += 8 * np.eye(6, dtype="float32")[y]
        y[BAD] = (y[BAD] + 1) % 3
    return x, y


def net(planted: str, **options: Any) -> keras.Model:
    keras.utils.set_random_seed(2)
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3 if planted == "label" else 1)]
    )
    model.compile(keras.optimizers.Adam(0.03), criterion(planted), **options)
    return model


def criterion(planted: str) -> keras.losses.Loss:
    if planted == "label":
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return keras.losses.MeanSquaredError()


def dataset(x: np.ndarray, y: np.ndarray) -> tf.data.Dataset:
    return tf.data.Dataset.from_tensor_slices((x, y[:, None] if y.dtype == np.float32 else y)).batch(BATCH)


def pieces(x: np.ndarray, y: np.ndarray) -> Iterator[Data]:
    for at in range(0, len(x), BATCH):
        yield x[at : at + BATCH], y[at : at + BATCH, None] if y.dtype == np.float32 else y[at : at + BATCH]


# -- ways to train -------------------------------------------------------------------------------------------------
def fit_arrays(planted: str) -> None:
    net(planted).fit(*data(planted), batch_size=BATCH, verbose=0)


def fit_dataset(planted: str, **options: Any) -> None:
    net(planted, **options).fit(dataset(*data(planted)), verbose=0)


def fit_generator(planted: str) -> None:
    net(planted).fit(pieces(*data(planted)), verbose=0)


def fit_eagerly(planted: str) -> None:
    fit_dataset(planted, run_eagerly=True)


def fit_several_at_once(planted: str) -> None:
    fit_dataset(planted, steps_per_execution=8)


def fit_compiled(planted: str) -> None:
    fit_dataset(planted, jit_compile=True)


def fit_in_halves(planted: str) -> None:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        fit_dataset(planted)
    finally:
        keras.config.set_dtype_policy(before)


def loop(planted: str, given: Any, **options: Any) -> None:
    model, loss, optimizer = net(planted), criterion(planted), keras.optimizers.Adam(0.03)

    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        optimizer.apply(tape.gradient(value, model.trainable_variables), model.trainable_variables)
        return value

    if options.pop("in_graph", True):
        step = tf.function(step, **options)
    for x, y in given:
        step(x, y)


def loop_dataset(planted: str) -> None:
    loop(planted, dataset(*data(planted)))


def loop_arrays(planted: str) -> None:
    loop(planted, pieces(*data(planted)))


def loop_eagerly(planted: str) -> None:
    loop(planted, dataset(*data(planted)), in_graph=False)


def loop_compiled(planted: str) -> None:
    loop(planted, dataset(*data(planted)), jit_compile=True)


def loop_within(planted: str) -> None:
    """One function that loops over all data, which are no batch."""
    model, loss, optimizer = net(planted), criterion(planted), keras.optimizers.Adam(0.03)
    optimizer.build(model.trainable_variables)

    @tf.function
    def epoch(x: tf.Tensor, y: tf.Tensor) -> None:
        for at in tf.range(len(x) // BATCH):
            rows = tf.range(at * BATCH, (at + 1) * BATCH)
            with tf.GradientTape() as tape:
                value = loss(tf.gather(y, rows), model(tf.gather(x, rows), training=True))
            optimizer.apply(tape.gradient(value, model.trainable_variables), model.trainable_variables)

    x, y = data(planted)
    epoch(tf.constant(x), tf.constant(y[:, None] if y.dtype == np.float32 else y))


def trained(train: Callable[[str], None], planted: str) -> Any:
    with mlflow.start_run() as active:
        train(planted)
    return mlflow_tfmon.load_run(active.info.run_id)


def kept(train: Callable[[str], None], planted: str) -> tuple[Any, KeptBatch]:
    """The run of a training, and the kept batch of its planted example."""
    mlflow_tfmon.autolog(log_models=False, log_datasets=False)
    run = trained(train, planted)
    wanted = "not_finite" if planted == "nan" else "spike"
    found = [one for one in run.batches if one.kind == wanted and one.odd]
    assert found, [(one.step, one.kind, one.text) for one in run.batches]
    return run, max(found, key=lambda one: one.loss) if planted != "nan" else found[0]


DAILY = [(fit_arrays, "nan"), (fit_dataset, "outlier"), (loop_dataset, "label"), (loop_arrays, "nan")]
SLOW = [
    (fit_dataset, "label"), (fit_arrays, "label"), (fit_generator, "nan"), (fit_eagerly, "label"),
    (fit_several_at_once, "nan"), (fit_compiled, "outlier"), (fit_in_halves, "nan"), (loop_dataset, "outlier"),
    (loop_arrays, "label"), (loop_eagerly, "nan"),
]  # fmt: skip
RARE = [
    (fit_arrays, "outlier"), (fit_dataset, "nan"), (fit_generator, "outlier"), (fit_compiled, "nan"),
    (fit_in_halves, "outlier"), (loop_dataset, "nan"), (loop_arrays, "outlier"), (loop_eagerly, "label"),
]  # fmt: skip


@pytest.mark.parametrize("train, planted", thorough([*DAILY, *SLOW, *RARE], RARE, DAILY))
def test_the_batch_and_its_planted_example_are_named(train: Callable[[str], None], planted: str) -> None:
    run, batch = kept(train, planted)
    x, y = data(planted)
    worst = batch.odd[0]
    arrays = batch.arrays()
    row = batch.kept.index(worst)
    np.testing.assert_array_equal(arrays["inputs"][row], x[BAD])
    assert np.ravel(arrays["targets"][row]) == y[BAD]
    assert f"xample {worst} of the batch of step {batch.step}" in batch.text
    if train is not fit_arrays:  # which is shuffled
        assert (batch.step, worst) == (STEP, PLACE)
    if train in (fit_arrays, fit_dataset):  # of data in memory
        assert batch.indices is not None and batch.indices[row] == BAD
        assert f"x[{BAD}]" in batch.text
    np.testing.assert_allclose(run.steps.loss[batch.step], batch.loss)
    places = mlflow_tfmon.find_batch(run, batch.step, (x, y))
    assert places[worst] == BAD and len(places) == BATCH
    assert mlflow_tfmon.find_batch(run, batch.step, dataset(x, y)) == places
    assert mlflow_tfmon.find_batch(run, batch.step, dataset(x, y).unbatch()) == places
    if planted == "nan" and train is not fit_in_halves:  # where loss scaling leaves the step out
        (problem,) = [one for one in run.problems if one.kind == "nan_or_inf"]
        assert batch.text in problem.evidence and "feature 3 is NaN" in problem.evidence
    if batch.losses is not None and planted != "nan":
        np.testing.assert_allclose(np.mean(batch.losses), batch.loss, rtol=2e-2)
        assert int(np.argmax(batch.losses)) == worst


@pytest.mark.parametrize("train", [loop_compiled, loop_within])
def test_what_python_does_not_see_is_said_to_be_absent(train: Callable[[str], None]) -> None:
    mlflow_tfmon.autolog(log_models=False)
    run = trained(train, "nan")
    (batch,) = run.batches
    assert (batch.step, batch.kept, batch.arrays()) == (STEP, (), {})
    assert "could not be kept" in next(one.evidence for one in run.problems if one.kind == "nan_or_inf")
    with pytest.raises(ValueError, match="no inputs that were kept"):
        mlflow_tfmon.find_batch(run, STEP, data("nan"))


def test_none_is_kept_where_none_is_wanted() -> None:
    mlflow_tfmon.autolog(log_models=False, keep_batches=False)
    run = trained(fit_arrays, "nan")
    assert run.batches == []
    client = mlflow.MlflowClient()
    assert "tfmon/evidence" not in [one.path for one in client.list_artifacts(run.run_id, "tfmon")]


def test_a_healthy_training_keeps_none() -> None:
    mlflow_tfmon.autolog(log_models=False, log_datasets=False)
    assert trained(fit_dataset, "none").batches == []


def test_references_are_bounded_in_bytes() -> None:
    batch = tf.zeros([1024, 1024])  # 4 MB
    held = batches.Held((batch,), tf.float64)

    @tf.function
    def take(key: tf.Tensor) -> None:
        held.put(key, (batch,))

    for key in range(1, 30):
        take(tf.constant(float(key), tf.float64))
    assert held.depth == 8
    assert held.find(29.0) is not None and held.find(22.0) is not None and held.find(21.0) is None
    held.follow(1000)
    assert held.depth == 8
    held.put(tf.constant(30.0, tf.float64), (batch[:1],))  # an epoch's last batch is small
    held.follow(1000)
    assert held.depth == 8
    held.rest()
    assert held.depth == 1 and held.newest() is not None and held.find(29.0) is None


def test_a_further_fit_of_small_batches_fills_nothing_again() -> None:
    held = batches.Held((tf.zeros([32, 4]),), tf.float64)
    held.put(tf.constant(1.0, tf.float64), (tf.zeros([32, 4]),))
    before = held.depth
    held.rest()
    assert held.depth == before > 1


@pytest.mark.slow
def test_a_bad_step_is_replayed_from_the_checkpoint_before_it(tmp_path: Any) -> None:
    mlflow_tfmon.autolog(monitor="loss", report=True)
    model = net("nan")
    with mlflow.start_run() as active:
        model.fit(dataset(*data("none")), verbose=0)
        model.fit(dataset(*data("nan")), verbose=0)
    run_id, step = active.info.run_id, ROWS // BATCH + STEP
    batch = load_batch(run_id, step)
    assert batch.odd[0] == PLACE
    done = CliRunner().invoke(cli.group, ["replay", run_id, str(step)])
    assert done.exit_code == 0, done.output
    assert f"the checkpoint of step {ROWS // BATCH}, the nearest one before it" in done.output
    first = rf"First layer whose output is not finite: (\S+/)?{model.layers[0].name}, of example {PLACE}\."
    assert re.search(first, done.output), done.output
    assert "Largest losses" in done.output
    np.save(tmp_path / "x.npy", data("nan")[0])
    found = CliRunner().invoke(cli.group, ["find-batch", run_id, str(step), str(tmp_path / "x.npy")])
    assert f"example {PLACE} of the batch: {BAD}" in found.output, found.output
    missing = CliRunner().invoke(cli.group, ["replay", run_id, "3"])
    assert missing.exit_code == 1 and "no batch of step 3 is kept" in missing.output
    out = tmp_path / "report.html"
    assert CliRunner().invoke(cli.group, ["report", run_id, "--output", str(out)]).exit_code == 0
    assert "Batches of bad steps" in out.read_text() and "inputs[3]" in out.read_text()
