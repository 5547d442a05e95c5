"""Tests of event files: TensorBoard's reader returns what was recorded; TensorFlow's files become runs."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import TENSORS, EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from mlflow_tfmon import cli
from mlflow_tfmon.reading.recorded import load_run
from mlflow_tfmon.tensorboard.importing import import_logs
from tests.report import recordings


def read(folder: Path) -> dict[str, list[tuple[int, Any]]]:
    """All tags of an event file, each with its steps and values, as TensorBoard's reader has them."""
    accumulator = EventAccumulator(str(folder), size_guidance={TENSORS: 0})
    accumulator.Reload()
    return {
        tag: [(event.step, make_ndarray(event.tensor_proto)) for event in accumulator.Tensors(tag)]
        for tag in accumulator.Tags()["tensors"]
    }


def ops_of(folder: Path) -> set[str]:
    """The kinds of ops in an event file's graph, as TensorBoard's reader has it."""
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    # In the graph's text the nodes of functions stand as those of the graph itself do.
    return set(re.findall(r'\bop: "(\w+)"', str(accumulator.Graph())))


def event_files(run_id: str, folder: Path) -> Path:
    """The event files of a run's training, which come after its end."""
    client, until = mlflow.MlflowClient(), time.monotonic() + 120
    while not client.list_artifacts(run_id, "tfmon/tensorboard/train"):
        assert time.monotonic() < until
        time.sleep(0.2)
    folder.mkdir(exist_ok=True)
    return Path(client.download_artifacts(run_id, "tfmon/tensorboard/train", str(folder)))


def test_exported_event_files_are_read_back_value_for_value(store: str, home: Path, tmp_path: Path) -> None:
    run_id = recordings.delivered(store, home, *recordings.training(300))
    model = '{"class_name": "Sequential"}'
    mlflow.MlflowClient().log_text(run_id, model, "tfmon/model.json")
    assert cli.main(["export-tensorboard", run_id, str(tmp_path / "logs")]) == 0
    train, validation = read(tmp_path / "logs" / "train"), read(tmp_path / "logs" / "validation")
    run = load_run(run_id)
    for column in ("loss", "learning_rate", "grad_norm", "step_time_ms"):
        expected = [(step, np.float32(value)) for step, value in run.steps[column].dropna().items()]
        assert [(step, value[()]) for step, value in train[f"batch_{column}"]] == expected
    assert [(s, v[()]) for s, v in train["epoch_loss"]] == [(e, np.float32(2 / (e + 1))) for e in range(5)]
    assert [(s, v[()]) for s, v in validation["epoch_loss"]] == [(e, np.float32(1.5)) for e in range(5)]
    assert set(validation) == {"epoch_loss", "epoch_accuracy"}
    assert train["keras"][0][1][()] == model.encode()
    for row in run.histograms.itertuples():
        found = dict(train[f"{row.kind}/{row.variable}"])[row.step]
        np.testing.assert_array_equal(found[:, 2], row.counts)
        np.testing.assert_array_equal(found[1:, 0], row.edges[1:-1])
        assert (found[0, 0], found[-1, 1]) == (row.min, row.max)
    layers = run.layers[run.layers.variable == recordings.KERNELS[0]]
    norms = dict(zip(layers.step, layers.grad_norm, strict=True))
    for step, value in train[f"grad_norm/{recordings.KERNELS[0]}"]:
        assert value[()] == np.float32(norms[step])


@pytest.mark.usefixtures("fresh")
def test_a_training_leaves_event_files_with_its_run(tmp_path: Path) -> None:
    import mlflow_tfmon
    from tests import trainings

    mlflow_tfmon.autolog(tensorboard=True, report=False, log_models=False, log_datasets=False, deep_every=4)
    net = trainings.model(name="boarded")
    net.compile("sgd", trainings.loss())
    net.fit(*trainings.data(), batch_size=trainings.BATCH, epochs=2, validation_split=0.1, verbose=0)
    run_id, client = trainings.last_run(), mlflow.MlflowClient()
    train = event_files(run_id, tmp_path)
    assert client.list_artifacts(run_id, "tfmon/tensorboard/validation")
    assert not any(item.path == "tfmon/report.html" for item in client.list_artifacts(run_id, "tfmon"))
    found = read(train)
    assert [value[()] for _, value in found["batch_loss"]] == load_run(run_id).steps.loss.tolist()
    assert b"boarded" in found["keras"][0][1][()]
    assert any(tag.startswith("weight/") for tag in found)
    assert {"MatMul", "Relu", "SparseSoftmaxCrossEntropyWithLogits", "ReluGrad"} <= ops_of(train)


@pytest.mark.usefixtures("fresh")
def test_the_graph_of_a_loop_and_of_a_model_that_is_not_made_of_layers(tmp_path: Path) -> None:
    import keras

    import mlflow_tfmon
    from tests import trainings

    class Own(keras.Model):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.inner = inner

        def call(self, x: Any) -> Any:
            return self.inner(x)

    net = Own(trainings.model())
    step = trainings.custom_step(net, keras.optimizers.SGD(0.1))
    with mlflow_tfmon.Monitor(net, tensorboard=True):
        for x, y in trainings.batches(*trainings.data(), 1):
            step(x, y)
    assert {"MatMul", "ReluGrad"} <= ops_of(event_files(trainings.last_run(), tmp_path / "loop"))
    mlflow_tfmon.autolog(tensorboard=True, log_models=False, log_datasets=False)
    net = Own(trainings.model())
    net.compile("sgd", trainings.loss())
    net.fit(*trainings.data(), batch_size=trainings.BATCH, verbose=0)
    assert {"MatMul", "ReluGrad"} <= ops_of(event_files(trainings.last_run(), tmp_path / "fit"))


WRITER = """
import sys, tensorflow as tf
for part, scale in (("train", 1.0), ("validation", 2.0)):
    with tf.summary.create_file_writer(f"{sys.argv[1]}/first/{part}").as_default():
        for step in range(4):
            tf.summary.scalar("epoch_loss", scale / (step + 1), step=step)
            tf.summary.histogram("weights", tf.random.normal([10]), step=step)
with tf.compat.v1.Graph().as_default():
    writer = tf.compat.v1.summary.FileWriter(f"{sys.argv[1]}/second")
    one = tf.compat.v1.Summary.Value(tag="acc@5", simple_value=0.5)
    writer.add_summary(tf.compat.v1.Summary(value=[one]), 7)
    writer.close()
"""


@pytest.mark.thorough
def test_a_log_directory_of_tensorflow_becomes_runs(store: str, tmp_path: Path) -> None:
    mlflow.set_tracking_uri(store)
    logs = tmp_path / "logs"
    subprocess.run([sys.executable, "-c", WRITER, str(logs)], check=True, timeout=120)
    assert cli.main(["import-tensorboard", str(logs), "--experiment", "old"]) == 0
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("old")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"first", "second"}  # train and validation are one
    first = runs["first"].info
    for key, scale in (("loss", 1.0), ("val_loss", 2.0)):
        found = [(m.step, m.value) for m in client.get_metric_history(first.run_id, key)]
        assert found == [(step, float(np.float32(scale / (step + 1)))) for step in range(4)]
    assert set(runs["first"].data.metrics) == {"loss", "val_loss"} and first.status == "FINISHED"
    assert runs["second"].data.metrics == {"acc_5": 0.5}
    with pytest.raises(ValueError, match="no event file"):
        import_logs(tmp_path / "nothing")


def test_a_folder_without_event_files_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["import-tensorboard", ".", "--experiment", "typed in the wrong folder"]) == 1
    said = f"mlflow-tfmon: there is no event file (*tfevents*) in {tmp_path}.\n"
    assert capsys.readouterr().err == said
    assert mlflow.MlflowClient().get_experiment_by_name("typed in the wrong folder") is None
