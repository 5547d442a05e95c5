"""Tests of terminal output: in a real terminal (a pty), and in a file."""

import math
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.stream.records import Steps, StreamOpened, Variable
from mlflow_tfmon.tracking.links import where
from mlflow_tfmon.watching.summary import Summary
from mlflow_tfmon.watching.terminal import Figures

ROOT = Path(__file__).parents[2]
LOOP = """
import sys, time
import keras, mlflow, mlflow_tfmon
import tensorflow as tf

keras.utils.set_random_seed(1)
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
x = tf.random.normal((8, 4))
optimizer = keras.optimizers.SGD(0.01)
data = tf.data.Dataset.from_tensors(x).repeat(20)


@tf.function
def step(x):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(x) ** 2)
    optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)


with mlflow_tfmon.Monitor(model, monitor="loss", total_steps=40, silent="silent" in sys.argv) as monitor:
    for epoch in range(2):
        for batch in data:
            step(batch)
            time.sleep(0.02)
        print("epoch", epoch, "is over")
        monitor.log_epoch(epoch, {"loss": 1.5 - epoch})
    if "fit" in sys.argv:
        model.fit(x, x[:, :1], verbose=0, callbacks=[mlflow_tfmon.MonitorCallback(monitor)])
print("the end")
"""

_TENSORFLOW = re.compile(r"WARNING: All log messages before absl|I0000 ")


def run(arguments: list[str], folder: Path, store: str, stdout: int | None = None) -> tuple[str, str]:
    """What the loop writes to its terminal, and to stdout where that is a file."""
    (folder / "loop.py").write_text(LOOP)
    own = {"MLFLOW_TRACKING_URI": store, "MLFLOW_TFMON_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)}
    own |= {"TERM": "xterm-256color", "COLUMNS": "160", "MLFLOW_TFMON_REPORT": "false", "NO_COLOR": "1"}
    ours, theirs = pty.openpty()
    with open(folder / "out", "wb") as file:
        process = subprocess.Popen(
            [sys.executable, "loop.py", *arguments],
            cwd=folder, env={**os.environ, **own}, stdin=theirs, stderr=theirs,
            stdout=file if stdout is None else theirs,
        )  # fmt: skip
        os.close(theirs)
        seen = b""
        while True:
            try:
                more = os.read(ours, 4096)
            except OSError:  # Linux's way to say that nobody has the terminal open any more
                break
            if not more:
                break
            seen += more
        assert process.wait(60) == 0, seen.decode()
    os.close(ours)
    # TensorFlow's own words as it is imported, which `TF_CPP_MIN_LOG_LEVEL` no longer keeps back (2.21).
    lines = seen.decode().splitlines(keepends=True)
    return "".join(line for line in lines if not _TENSORFLOW.match(line)), (folder / "out").read_text()


@pytest.mark.thorough
def test_a_bar_while_it_trains_and_a_summary_at_its_end(tmp_path, store):
    seen, printed = run([], tmp_path, store)
    assert printed == "epoch 0 is over\nepoch 1 is over\nthe end\n"
    drawn = re.findall(r"step (\d+)  loss ([\d.e-]+)  lr 0.01  grad norm [\d.e-]+  ([\d,]+) examples/s", seen)
    steps = [int(step) for step, _, _ in drawn]
    assert steps == sorted(steps) and len(set(steps)) > 3 and steps[-1] == 40
    assert re.search(r"0:00:\d\d 0:00:\d\d", seen)  # the time that has gone and the time that is left
    (found,) = MlflowClient(store).search_runs(["0"])
    summary = seen[seen.index(f"mlflow_tfmon: run {found.info.run_id}") :]
    assert "40 steps, 2 epochs" in summary and "loss 0.5 at epoch 2 of 2" in summary and "problem" in summary
    assert f"mlflow ui --backend-store-uri {store}" in summary
    assert f"/#/experiments/0/runs/{found.info.run_id}" in summary


@pytest.mark.thorough
def test_what_is_printed_meanwhile_stands_by_itself_and_fit_has_no_bar(tmp_path, store):
    seen, printed = run(["fit"], tmp_path, store, stdout=1)
    assert printed == ""
    assert re.search(r"epoch 0 is over\s", seen) and "examples/s" in seen.split("epoch 1 is over")[0]
    assert "examples/s" not in seen.split("the end")[1]


@pytest.mark.thorough
def test_silent_says_nothing_at_all(tmp_path, store):
    seen, printed = run(["silent"], tmp_path, store)
    assert seen == "" and printed == "epoch 0 is over\nepoch 1 is over\nthe end\n"


def rows(first: int, count: int, seconds: float) -> Steps:
    values = np.zeros((count, 5))
    values[:, 0] = np.arange(first, first + count)
    values[:, 1] = 100 + seconds * values[:, 0]
    values[:, 2], values[:, 3], values[:, 4] = 8, 0.25, math.nan
    return Steps(0, 0.0, values)


def test_the_figures_of_the_bar():
    figures = Figures()
    columns = ("step", "time", "examples", "loss", "grad_norm")
    figures.take(
        [StreamOpened(0, "", (Variable("a", (1,), True),), columns, (), (), 1000, "net"), rows(1, 10, 0.5)]
    )
    assert figures.text() == "step 10  loss 0.25"
    figures.take([rows(11, 1990, 0.5)])
    assert figures.text() == "step 2,000  loss 0.25  16 examples/s"
    assert (figures.step, figures.total) == (2000, 1000)


def test_the_summary():
    problem = Problem("overfitting", "warning", 900, (), "It rose.", "Stop early.")
    summary = Summary(
        "8f3a", "3", "https://me:secret@example.org/mlflow/", 1350, 10, ("val_loss 0.1 at epoch 7",)
    )
    assert summary.calm and summary.text().splitlines() == [
        "mlflow_tfmon: run 8f3a",
        "  recorded  1,350 steps, 10 epochs",
        "  best      val_loss 0.1 at epoch 7",
        "  look at   https://example.org/mlflow/#/experiments/3/runs/8f3a?workflowType=machine_learning",
        "  charts    https://example.org/mlflow/#/experiments/3/runs?viewStateShareKey=tfmon&compareRunsMode=CHART"
        "&workflowType=machine_learning",
        "  problems  none",
    ]
    many = Summary(None, "", "sqlite:////a/b.db", 1, 0, (), (problem,) * 30, 12, "refused")
    fewer, done = replace(many, waiting=1), replace(many, waiting=0)
    assert many.is_news(None) and not fewer.is_news(many) and not done.is_news(many) and many.is_news(done)
    assert replace(many, steps=2).is_news(many) and replace(many, why="full").is_news(many)
    assert not many.calm and len(many.text().splitlines()) < 24
    assert "warning: overfitting since step 900: It rose. Stop early." in many.text()
    assert "  recorded  1 step\n" in many.text() and "24 more" in many.text()
    assert (
        "12 records are still being uploaded (refused)" in many.text() and "mlflow-tfmon sync" in many.text()
    )


def test_the_card_of_a_notebook_says_the_same():
    problem = Problem("overfitting", "warning", 900, (), "It <rose>.", "Stop early.", 1350, 0.9)
    curves = {"loss of the step": np.array([2.0, 1.0, 0.5]), "val_loss": np.array([3.0])}
    best = ("val_loss 0.1 at epoch 7",)
    shown = Summary(
        "8f3a",
        "3",
        "https://me:secret@example.org/m/",
        1350,
        10,
        best,
        [problem],
        0,
        None,
        "3 steps",
        "digits",
        curves,
    ).card()
    assert (
        "<b>digits (8f3a)</b>" in shown
        and "recorded 1,350 steps, 10 epochs" in shown
        and "best val_loss 0.1 at epoch 7" in shown
    )
    assert "warning: overfitting since step 900: It &lt;rose&gt;. Stop early." in shown
    assert "not kept: 3 steps" in shown and "secret" not in shown
    assert shown.count("<polyline") == 1 and "loss of the step: 0.5" in shown  # one point is no curve
    links = re.findall(r'href="([^"]+)"', shown)
    assert links[0] == "https://example.org/m/#/experiments/3/runs/8f3a?workflowType=machine_learning"
    assert len(links) == 2 and "compareRunsMode=CHART" in links[1]
    local = Summary("8f3a", "3", "sqlite:////a/b.db", 1, 0).card()
    assert (
        "<a " not in local and "mlflow ui --backend-store-uri" in local and "No problem was found." in local
    )


def test_where_to_look():
    assert where("sqlite:////a/b.db", "0", "r").endswith(
        "/b.db`, then http://127.0.0.1:5000/#/experiments/0/runs/r?workflowType=machine_learning"
    )
