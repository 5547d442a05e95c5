"""Tests of quick runs of the demos: their runs contain what the demo is meant to show.

What is recorded is compared with closed formulas and NumPy, not with what the demos computed themselves.
"""

from __future__ import annotations

import csv
import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow import MlflowClient

from mlflow_tfmon import load_run
from tests.projects.conftest import ROOT, Demo, environment
from tests.projects.test_parameters import ENTRY_POINTS

pytestmark = [pytest.mark.demos, pytest.mark.timeout(660)]

EXAMPLES = 1437  # digits to train on


def text(demo: Demo, run: mlflow.entities.Run, path: str) -> str:
    with open(demo.client.download_artifacts(run.info.run_id, path)) as file:
        return file.read()


def assert_compared(demo: Demo, variants: set[str], name: str = "") -> None:
    """One watched child run for each variant; table, picture and comparison report in the parent."""
    part = f"{name}_" if name else ""
    assert variants <= set(demo.children)
    for variant in variants:
        tags = demo.children[variant].data.tags
        assert tags["tfmon.delivery"] == "complete", variant
        assert demo.children[variant].data.params["variant"] == variant
        # The numbers that Keras puts behind its names would look like a difference between the variants.
        assert not re.search(r"_\d+$", demo.children[variant].data.params.get("opt_name", ""))
        names = recorded(demo, demo.children[variant]).layers.variable.unique()
        assert not [one for one in names if re.match(r"sequential_\d", one)]
        assert variant in demo.printed
    kind = demo.parent.data.tags["mlflow.runName"]
    assert {f"{part}comparison.json", f"{kind}.png"} <= demo.artifacts(demo.parent)
    page = text(demo, demo.parent, f"tfmon/{part}comparison.html")
    assert all(variant in page for variant in variants)


def recorded(demo: Demo, run: mlflow.entities.Run):
    return load_run(run.info.run_id, demo.client.tracking_uri)


def test_classification_losses(run_demo: Callable[..., Demo]) -> None:
    demo = run_demo("classification_losses")
    assert_compared(demo, {"logits", "probabilities", "hidden logits"}, "binary")
    assert_compared(demo, {"sparse", "one-hot"}, "categorical")

    table = mlflow.artifacts.load_dict(f"{demo.parent.info.artifact_uri}/extremes.json")
    columns = dict(zip(table["columns"], np.array(table["data"]).T, strict=True))
    z = columns["logit"]
    exact, slope = np.log1p(np.exp(-np.abs(z))) + np.maximum(-z, 0), 1 / (1 + np.exp(-z)) - 1
    # MLflow's tables keep ten decimal places.
    np.testing.assert_allclose(columns["loss from logits"], exact, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(columns["gradient from logits"], slope, rtol=1e-6, atol=1e-9)
    # Keras keeps probabilities 1e-7 away from 0 and 1: the loss stops at -log(1e-7), and the gradient with it.
    assert columns["loss from probabilities"].max() == pytest.approx(-math.log(1e-7), rel=1e-3)
    assert (columns["gradient from probabilities"][np.abs(z) >= 20] == 0).all()
    errors = demo.parent.data.metrics
    assert errors["largest_error_from_logits"] < 1e-5
    assert errors["largest_error_from_probabilities"] == pytest.approx(100 + math.log(1e-7), rel=1e-2)

    logits, probabilities, hidden = (
        recorded(demo, demo.children[name]).steps for name in ("logits", "probabilities", "hidden logits")
    )
    np.testing.assert_allclose(logits.loss, probabilities.loss, rtol=1e-4)
    assert logits.loss.iloc[-15:].mean() < 0.75 * logits.loss.iloc[:15].mean()
    assert (hidden.grad_norm == 0).all()
    sparse, one_hot = (recorded(demo, demo.children[name]).steps for name in ("sparse", "one-hot"))
    np.testing.assert_allclose(sparse.loss, one_hot.loss, rtol=1e-6)
    assert errors["sparse_one_hot_difference"] < 1e-6


def test_regression_losses(run_demo: Callable[..., Demo]) -> None:
    demo = run_demo("regression_losses")
    losses = {"MSE", "MAE", "Huber", "MSLE"}
    assert_compared(demo, losses)
    of = demo.parent.data.metrics
    for name in losses:
        (error,) = demo.history(demo.children[name], "val_mae")[-1:]
        assert of[f"val_mae_{name.lower()}"] == pytest.approx(error, rel=1e-6)
    assert of["val_mae_mse"] > 1.5 * max(of["val_mae_mae"], of["val_mae_huber"])
    assert of["val_bias_mse"] > max(of["val_bias_mae"], of["val_bias_huber"], of["val_bias_msle"])
    # A tenth of the examples make most of these losses: they jump, and have not diverged.
    told = {name: demo.children[name].data.tags["tfmon.problems"] for name in losses}
    assert {told["MAE"], told["Huber"], told["MSLE"]} == {"none"}
    assert told["MSE"] in ("none", "overfitting"), (
        "it fits the outliers, of which the validation data has none"
    )


def test_focal_loss(run_demo: Callable[..., Demo]) -> None:
    demo = run_demo("focal_loss")
    assert_compared(demo, {"cross-entropy", "focal"})
    assert "confusion.png" in demo.artifacts(demo.parent)
    for run in demo.children.values():
        of = {
            name: np.array(demo.history(run, f"val_{name}"))
            for name in ("precision", "recall", "f1", "roc_auc", "pr_auc")
        }
        assert {len(values) for values in of.values()} == {4}
        both = of["precision"] + of["recall"]
        harmonic = np.where(both > 0, 2 * of["precision"] * of["recall"] / np.where(both > 0, both, 1), 0)
        np.testing.assert_allclose(of["f1"], harmonic, atol=1e-5)
        assert (of["roc_auc"] > 0.5).all()
    of = demo.parent.data.metrics
    assert of["val_recall_focal"] > of["val_recall_cross_entropy"]


def test_optimizers(run_demo: Callable[..., Demo]) -> None:
    demo = run_demo("optimizers")
    names = {"SGD", "momentum", "Adam", "AdamW", "Nadam", "RMSprop", "Adagrad", "Lion"}
    assert_compared(demo, {f"quadratic {name}" for name in names}, "quadratic")
    assert_compared(demo, {f"digits {name}" for name in names}, "digits")
    curvature = np.array([1.0, 100.0])

    def heights(momentum: float) -> list[float]:
        """The recursion by hand, in float64."""
        place, speed, found = np.ones(2), np.zeros(2), []
        for _ in range(21):
            found.append(0.5 * float(curvature @ place**2))
            speed = momentum * speed - 0.015 * curvature * place
            place = place + speed
        return found

    for name, momentum in (("SGD", 0.0), ("momentum", 0.9)):
        expected = heights(momentum)
        loss = recorded(demo, demo.children[f"quadratic {name}"]).steps.loss
        np.testing.assert_allclose(loss, expected[:-1], rtol=1e-3)
        final = demo.parent.data.metrics[f"final_loss_quadratic_{name.lower()}"]
        assert final == pytest.approx(expected[-1], rel=1e-3)
    # The first step of each is known: Adam's is as long as its rate in each direction, whatever the slope.
    second = recorded(demo, demo.children["quadratic Adam"]).steps.loss[2]
    assert second == pytest.approx(0.5 * curvature.sum() * 0.95**2, rel=1e-4)


def test_lr_schedules(run_demo: Callable[..., Demo]) -> None:
    demo = run_demo("lr_schedules")
    steps = math.ceil(EXAMPLES / 32)  # of one epoch
    at = np.arange(steps)
    warm_up, done = steps // 10, np.minimum(1, (at - steps // 10) / (steps - steps // 10))
    formulas = {
        "exponential staircase": 0.05 * 0.5 ** (at // (steps // 5)),
        "polynomial": 0.001 + (0.05 - 0.001) * (1 - at / steps) ** 2,
        "piecewise constant": np.select([at <= steps // 3, at <= 2 * steps // 3], [0.05, 0.02], 0.005),
        "cosine": 0.025 * (1 + np.cos(np.pi * at / steps)),
        "warm-up and cosine": np.where(at < warm_up, 0.05 * at / warm_up, 0.025 * (1 + np.cos(np.pi * done))),
    }
    assert_compared(demo, set(formulas))
    for name, expected in formulas.items():
        found = recorded(demo, demo.children[name]).steps.learning_rate
        assert list(found.index) == list(range(1, steps + 1))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)
    of = demo.parent.data.metrics
    assert all(value < 1e-7 for name, value in of.items() if name.startswith("difference_to_formula"))
    assert all(value == 0 for name, value in of.items() if name.startswith("difference_once_saved"))

    tested = recorded(demo, demo.children["range test"]).steps
    np.testing.assert_allclose(tested.learning_rate, 1e-5 * 1e6 ** (at / steps), rtol=1e-4)
    assert 1e-4 < of["range_test_rate"] < 1


def test_basic_loop(run_demo: Callable[..., Demo]) -> None:
    demo = run_demo("basic_loop")
    run = demo.parent
    assert run.data.tags["tfmon.delivery"] == "complete"
    assert "basic_loop.png" in demo.artifacts(run)
    loss = recorded(demo, run).steps.loss
    assert len(loss) == 2 * math.ceil(EXAMPLES / 32)
    # The loss of an epoch is the mean over its examples, and the last batch is smaller.
    sizes = np.minimum(32, EXAMPLES - 32 * np.arange(math.ceil(EXAMPLES / 32)))
    for epoch, value in enumerate(demo.history(run, "loss")):
        of_epoch = loss.iloc[epoch * len(sizes) : (epoch + 1) * len(sizes)]
        assert value == pytest.approx(np.average(of_epoch, weights=sizes), rel=1e-5)
    assert run.data.metrics["val_accuracy"] > 0.8
    assert run.data.metrics["best/val_loss"] == pytest.approx(min(demo.history(run, "val_loss")))


def test_advanced_trainer(run_demo: Callable[..., Demo]) -> None:
    demo = run_demo("advanced_trainer", epochs=12, patience=1)
    run, losses = demo.parent, demo.history(demo.parent, "val_loss")
    of = run.data.metrics
    assert "advanced_trainer.png" in demo.artifacts(run)
    best, end = early_stopping(losses, patience=1)
    assert of["epochs_trained"] == len(losses) == end < 12
    assert of["best_epoch"] == best
    assert of["restored_val_loss"] == pytest.approx(min(losses), rel=1e-5)
    steps = recorded(demo, run).steps
    np.testing.assert_allclose(steps.grad_norm_clipped, np.minimum(steps.grad_norm, 1.0), rtol=1e-4)
    total = 12 * math.ceil(EXAMPLES / 32)  # what the schedule reckons with, although it ends earlier
    at, warm_up = np.arange(len(steps)), total // 20
    expected = np.where(
        at < warm_up,
        5e-3 * at / warm_up,
        5e-3 / 2 * (1 + np.cos(np.pi * (at - warm_up) / (total - warm_up))),
    )
    np.testing.assert_allclose(steps.learning_rate, expected, rtol=1e-4, atol=1e-8)


def early_stopping(losses: list[float], patience: int) -> tuple[int, int]:
    """The best epoch, and how many are trained: until so many have followed it."""
    for epoch in range(len(losses)):
        best = int(np.argmin(losses[: epoch + 1]))
        if epoch - best >= patience:
            break
    return best, epoch + 1


def test_the_advanced_trainer_stops_early(tmp_path) -> None:
    """The rule alone, with losses made up."""
    import keras

    from projects.advanced_trainer import Trainer

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    trainer = Trainer(model, keras.optimizers.SGD(), tmp_path / "best.weights.h5", patience=2)
    going_on = []
    for epoch, loss in enumerate([3.0, 1.0, 2.0, 0.9, 0.95, 0.91]):
        model.layers[0].bias.assign([float(epoch)])
        going_on.append(trainer.better(epoch, {"val_loss": loss}))
    assert going_on == [True, True, True, True, True, False]
    assert (trainer.best_epoch, trainer.best_loss) == (3, 0.9)
    model.load_weights(tmp_path / "best.weights.h5")
    assert model.layers[0].bias.numpy() == [3.0]


def test_gpu_loop(run_demo: Callable[..., Demo]) -> None:
    demo = run_demo("gpu_loop")
    run = demo.parent
    assert "no GPU" in demo.printed or "GPU" in run.data.params["device"]
    assert "gpu_loop.png" in demo.artifacts(run)
    steps = recorded(demo, run).steps
    each = EXAMPLES // 128
    assert len(steps) == 3 * each
    # Keras begins at 2^15, and halves it at each step that it leaves out; of 33, it doubles it at none.
    left_out = steps.skipped.cumsum().shift(fill_value=0)
    np.testing.assert_array_equal(steps.loss_scale, 2.0 ** (15 - left_out))
    assert run.data.metrics["train_examples_per_second"] > 0
    for epoch, value in enumerate(demo.history(run, "loss")):
        assert value == pytest.approx(steps.loss.iloc[epoch * each : (epoch + 1) * each].mean(), rel=1e-4)
    assert run.data.metrics["val_accuracy"] > 0.5


def test_regularization(run_demo: Callable[..., Demo]) -> None:
    demo = run_demo("regularization")
    variants = {"none", "dropout", "batch normalization", "both"}
    assert_compared(demo, variants)
    for name in variants:
        last = demo.history(demo.children[name], "val_accuracy")[-1]
        assert demo.parent.data.metrics[f"val_accuracy_{name.replace(' ', '_')}"] == pytest.approx(last)
        found = set(recorded(demo, demo.children[name]).layers.variable)
        assert any("gamma" in variable for variable in found) == (name in ("batch normalization", "both"))
    # Dropout makes the training harder, not the validation.
    of = demo.parent.data.metrics
    assert of["accuracy_dropout"] < of["val_accuracy_dropout"]


def test_weight_regularization(run_demo: Callable[..., Demo]) -> None:
    demo = run_demo("weight_regularization")
    assert_compared(demo, {"none", "L1", "L2", "L1 and L2"})
    of = demo.parent.data.metrics
    for key in ("l1", "l2", "l1_and_l2"):
        assert of[f"l1_norm_{key}"] < of["l1_norm_none"] and of[f"l2_norm_{key}"] < of["l2_norm_none"]
    assert of["zeros_l1"] > 0.2 > of["zeros_none"]
    for name, run in demo.children.items():
        found = recorded(demo, run)
        assert ("regularization_loss" in found.steps) == (name != "none")
        if name != "none":
            # The penalty is what the loss of an epoch has beyond the cross-entropy. Batches are of 32, the last of 26.
            penalty = found.steps.regularization_loss.to_numpy().reshape(10, 8)
            beyond = np.subtract(demo.history(run, "loss"), demo.history(run, "entropy"))
            np.testing.assert_allclose(
                np.average(penalty, axis=1, weights=[32] * 7 + [26]), beyond, rtol=1e-3
            )
        # The last histogram, of bins a quarter of an octave wide, is of the weights that the norms are of.
        weights = found.histograms.query(
            "variable == 'digits.first.kernel' and kind == 'weight' and step == 80"
        )
        (edges, counts), key = weights[["edges", "counts"]].iloc[0], name.lower().replace(" ", "_")
        assert counts.sum() == 64 * 128
        middles = np.abs(edges[1:] + edges[:-1]) / 2
        assert of[f"l1_norm_{key}"] == pytest.approx(counts @ middles, rel=0.05)
        assert of[f"l2_norm_{key}"] == pytest.approx(np.sqrt(counts @ middles**2), rel=0.05)


def test_callbacks(run_demo: Callable[..., Demo]) -> None:
    demo = run_demo("callbacks")
    run = demo.parent
    rows = list(csv.DictReader(text(demo, run, "callbacks/epochs.csv").splitlines()))
    rates = [float(row["learning_rate"]) for row in rows]
    np.testing.assert_allclose(rates[:3], [1e-3, 2e-3, 3e-3], rtol=1e-6)
    for key in ("loss", "val_loss", "accuracy", "val_accuracy"):
        np.testing.assert_allclose(demo.history(run, key), [float(row[key]) for row in rows], rtol=1e-6)
    steps = recorded(demo, run).steps.learning_rate.to_numpy()
    each = math.ceil(EXAMPLES / 32)
    np.testing.assert_allclose(steps[:each], 1e-3, rtol=1e-6)
    np.testing.assert_allclose(steps[2 * each : 3 * each], 3e-3, rtol=1e-6)
    losses = [float(row["val_loss"]) for row in rows]
    assert early_stopping(losses, patience=5) == (np.argmin(losses), len(losses))
    expected, bar, waited = [1e-3, 2e-3, 3e-3], math.inf, 0
    for epoch, value in enumerate(losses):  # ReduceLROnPlateau's rule, by hand
        bar, waited = (value, 0) if value < bar - 1e-4 else (bar, waited + 1)
        rate = expected[epoch]
        if waited == 2:
            rate, waited = 0.3 * rate, 0
        if epoch + 1 >= len(expected):
            expected.append(rate)
    np.testing.assert_allclose(rates, expected[: len(rates)], rtol=1e-5)
    assert rates[-1] < 3e-3 and len(rows) < 40
    of = run.data.metrics
    assert (of["stopped_epoch"], of["restored_epoch"]) == (len(rows) - 1, np.argmin(losses))
    assert min(demo.history(run, "learning_rate_changed")) == pytest.approx(expected[-1], rel=1e-5)
    best = min(losses)
    assert run.data.metrics["checkpoint_val_loss"] == pytest.approx(best, rel=1e-4)
    assert run.data.metrics["best/val_loss"] == pytest.approx(best, rel=1e-6)
    assert {"callbacks/best.keras", "callbacks/tensorboard"} <= demo.artifacts(run, "callbacks")


def test_custom_callback(run_demo: Callable[..., Demo]) -> None:
    demo = run_demo("custom_callback")
    run = demo.parent
    accuracies, seconds = (demo.history(run, key) for key in ("val_accuracy", "epoch_seconds"))
    assert len(seconds) == len(accuracies) == run.data.metrics["epochs_trained"]
    assert accuracies[-1] >= 0.95 and all(value < 0.95 for value in accuracies[:-1])
    assert all(value > 0 for value in seconds)
    assert "that will do" in demo.printed


def write_mnist(path: Path, examples: int = 320) -> dict[str, np.ndarray]:
    """A file like the one that Keras keeps once it has fetched MNIST, with fewer images."""
    random, parts = np.random.default_rng(0), {}
    for name, rows in (("train", examples), ("test", 64)):
        parts[f"y_{name}"] = random.integers(0, 10, rows, "uint8")
        parts[f"x_{name}"] = random.integers(0, 56, (rows, 28, 28), "uint8")
        parts[f"x_{name}"][np.arange(rows), 2 * parts[f"y_{name}"] + 4] = (
            255  # a line, at a height for each label
        )
    np.savez(path, **parts)
    return parts


@pytest.fixture
def cached_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Such a file where Keras finds it. Its checksum is not asked."""
    from keras.src.datasets import mnist

    monkeypatch.setattr(mnist, "get_file", lambda **about: str(tmp_path / about["fname"]))
    return write_mnist(tmp_path / "mnist.npz")


def test_mnist_is_taken_as_keras_gives_it(cached_mnist, monkeypatch) -> None:
    import keras

    from projects.shared.data import images

    split = images("mnist")
    assert split.x.shape == (320, 28, 28, 1) and split.x_val.shape == (64, 28, 28, 1)
    assert split.x.dtype == "float32" and split.x.min() >= 0 and split.x.max() == 1
    np.testing.assert_array_equal(split.x_val[..., 0], cached_mnist["x_test"].astype("float32") / 255)
    np.testing.assert_array_equal(split.y, cached_mnist["y_train"])

    def away() -> None:
        raise OSError("no such host")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", away)
    with pytest.raises(SystemExit, match=r"no such host.*dataset=digits"):
        images("mnist")


@pytest.mark.demos
def test_a_demo_learns_from_mnist(cached_mnist, store, home, monkeypatch) -> None:
    from projects import basic_loop

    monkeypatch.setattr("sys.argv", ["basic_loop", "--dataset=mnist", "--epochs=4"])
    mlflow.set_tracking_uri(store)
    basic_loop.main()
    (run,) = mlflow.search_runs(output_format="list")
    assert len(load_run(run.info.run_id).steps) == 4 * 320 / 32
    assert run.data.metrics["val_accuracy"] > 0.5


# What a demo's own processes import as well, being started by this file: in them, too, Keras finds it.
WITH_MNIST = """
import sys
from importlib import import_module
from pathlib import Path

from keras.src.datasets import mnist


def get_file(**about):
    print("MNIST is taken", flush=True)
    return str(Path(__file__).with_name("mnist.npz"))


mnist.get_file = get_file
if __name__ == "__main__":
    import_module(sys.argv.pop(1)).main()
"""


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", [name for name in ENTRY_POINTS if "dataset" in ENTRY_POINTS[name]["parameters"]]
)
def test_each_demo_of_digits_takes_mnist(name: str, store: str, tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist.npz", examples=800)
    (tmp_path / "with_mnist.py").write_text(WITH_MNIST)
    module = re.match(r"python -m ([\w.]+) ", ENTRY_POINTS[name]["command"])[1]
    module = f"{module}.__main__" if (ROOT / module.replace(".", "/")).is_dir() else module
    own = {**environment(store), "PYTHONPATH": str(ROOT), "MLFLOW_TFMON_REPORT": "False"}
    command = [sys.executable, tmp_path / "with_mnist.py", module, "--quick=true", "--dataset=mnist"]
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "MNIST is taken" in done.stdout
    client = MlflowClient(store)
    runs = client.search_runs(["0"])
    assert {run.info.status for run in runs} == {"FINISHED"}
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert parent.info.run_name == name
    assert f"{name}.png" in {file.path for file in client.list_artifacts(parent.info.run_id)}
