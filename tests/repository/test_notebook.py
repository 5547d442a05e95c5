"""Tests of the notebook: it runs from start to end, and finds what its text says."""

import re
from pathlib import Path

import pytest

from mlflow_tfmon import load_run
from tests.notebooks import ROOT, execute

NOTEBOOK = ROOT / "docs" / "notebooks" / "diagnose.ipynb"


@pytest.mark.demos
def test_a_model_is_trained_broken_diagnosed_and_mended(tmp_path, store, home):
    nbformat = pytest.importorskip("nbformat")
    from mlflow import MlflowClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kept = outputs(notebook)  # what is checked in shows what somebody will see
    assert "/tmp" not in kept and "/home" not in kept and "Traceback" not in kept
    execute(notebook, tmp_path, MLFLOW_TRACKING_URI=store)
    for text in (kept, outputs(notebook)):
        assert "poor_initialization (critical)" in text and text.count("No problem was found.") == 2
        assert text.count("loss of the step: ") == 3  # a card for each training
    empty = [
        one for cell in notebook.cells for one in cell.get("outputs", []) if "></pre>" in str(one.get("data"))
    ]
    assert not empty
    mlflow = MlflowClient(store)
    experiment = mlflow.get_experiment_by_name("digits in a notebook")
    runs = {run.info.run_name: run for run in mlflow.search_runs([experiment.experiment_id])}
    assert set(runs) == {"good", "broken", "mended"}
    assert all(run.info.status == "FINISHED" for run in runs.values())
    assert runs["good"].data.tags["tfmon.problems"] == runs["mended"].data.tags["tfmon.problems"] == "none"
    assert "poor_initialization" in runs["broken"].data.tags["tfmon.problems"]
    table = mlflow.download_artifacts(runs["good"].info.run_id, "model_summary.txt", str(tmp_path))
    assert "hidden (Dense)" in Path(table).read_text()
    accuracy = {name: run.data.metrics["val_accuracy"] for name, run in runs.items()}
    assert min(accuracy["good"], accuracy["mended"]) > 0.8 > 0.2 > accuracy["broken"]
    hidden = load_run(runs["broken"].info.run_id, store).layers
    assert (hidden[hidden["variable"].str.endswith("hidden.kernel")]["grad_norm"] == 0).all()


def outputs(notebook) -> str:
    """All that the cells of a notebook show."""
    shown = [one for cell in notebook.cells for one in cell.get("outputs", [])]
    return "".join(one.get("text", "") + one.get("data", {}).get("text/html", "") for one in shown)


LOOP = """
import time
import keras, mlflow_tfmon
import tensorflow as tf

model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
optimizer = keras.optimizers.SGD(0.01)
data = tf.data.Dataset.from_tensors(tf.ones((8, 4))).repeat(20)

@tf.function
def step(x):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(x) ** 2)
    optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)

with mlflow_tfmon.Monitor(model, total_steps=60) as monitor:
    for epoch in range(3):
        for batch in data:
            step(batch)
            time.sleep(0.05)
        print("epoch", epoch, "is over")
"""


@pytest.mark.thorough
def test_the_bar_of_a_loop_is_one_output_that_is_replaced(tmp_path, store, home):
    """With what the cell prints beside it, and nothing of it in the way."""
    v4 = pytest.importorskip("nbformat").v4
    notebook = v4.new_notebook(cells=[v4.new_code_cell(LOOP)])
    messages = execute(notebook, tmp_path, MLFLOW_TRACKING_URI=store, MLFLOW_TFMON_REPORT="false")
    (cell,) = notebook.cells
    printed = "".join(
        one.text for one in cell.outputs if one.output_type == "stream" and one.name == "stdout"
    )
    assert printed == "epoch 0 is over\nepoch 1 is over\nepoch 2 is over\n"
    bar, card = (one for one in cell.outputs if one.output_type == "display_data")
    assert bar.data.keys() == {"text/plain"}
    assert re.fullmatch(
        r"step 60  loss [\d.e-]+  lr 0.01  grad norm [\d.e-]+  [\d,]+ examples/s .*",
        bar.data["text/plain"],
    )
    drawn = [one for one in messages if one["msg_type"] == "update_display_data"]
    steps = [int(re.match(r"step (\d+)", one["content"]["data"]["text/plain"])[1]) for one in drawn]
    assert len(set(steps)) >= 3 and steps == sorted(steps) and steps[-1] == 60
    assert len({one["content"]["transient"]["display_id"] for one in drawn}) == 1
    said = "".join(one.text for one in cell.outputs if one.output_type == "stream" and one.name == "stderr")
    assert "examples/s" not in said and "recorded" not in said  # the summary is said once: by a card
    assert "recorded  60 steps" in card.data["text/plain"]
    shown = card.data["text/html"]
    assert "recorded 60 steps" in shown and "mlflow ui --backend-store-uri" in shown
    assert shown.count("<polyline") == 2 and "loss of the step: " in shown and "<script" not in shown
