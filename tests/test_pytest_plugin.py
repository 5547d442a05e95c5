"""Tests of `mlflow_tfmon.testing`, and of the pytest plugin by a pytest of its own that finds it as it is declared."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import mlflow
import pytest

from mlflow_tfmon import load_run
from mlflow_tfmon.sources import tomllib
from mlflow_tfmon.testing import assert_healthy
from tests.report import recordings

ROOT = Path(__file__).parents[1]
TESTS = """
import os

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

from mlflow_tfmon.integration import is_on
from mlflow_tfmon.testing import assert_healthy

random = np.random.default_rng(0)
x = random.normal(size=(256, 4)).astype("float32")
y = (x[:, 0] + x[:, 1] > 0).astype("int64")


def model(kernel="glorot_uniform"):
    keras.utils.set_random_seed(1)
    layers = [keras.layers.Dense(8, "relu", kernel_initializer=kernel) for _ in range(2)]
    made = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(1, "sigmoid")])
    made.compile(keras.optimizers.Adam(0.01), "binary_crossentropy", metrics=["accuracy"])
    return made


def train(kernel="glorot_uniform", epochs=12):
    return model(kernel).fit(x[:200], y[:200], epochs=epochs, validation_data=(x[200:], y[200:]), verbose=0)


def loop():
    net, optimizer = model(), keras.optimizers.Adam(0.01)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(keras.losses.binary_crossentropy(y[:, None], net(x)))
        optimizer.apply_gradients(zip(tape.gradient(loss, net.trainable_variables), net.trainable_variables))

    for _ in range(60):
        step()


def test_healthy(healthy_training):
    history = healthy_training(train, metrics=["val_accuracy>=0.7", "best(val_loss)<0.9"])
    assert len(history.history["loss"]) == 12 and not is_on()
    run = mlflow.last_active_run()
    assert_healthy(run)
    assert_healthy(run.info.run_id, fail_on="warning")
    with pytest.raises(AssertionError, match="accuracy>=2 does not hold"):
        assert_healthy(run, metrics=["accuracy>=2"])
    with pytest.raises(ValueError, match="no condition"):
        assert_healthy(run, metrics=["accuracy"])
    assert not mlflow.MlflowClient().search_logged_models([run.info.experiment_id])  # in a store that nobody looks at


def test_loop(healthy_training):
    healthy_training(loop, fail_on="nan_or_inf")


def test_failing(healthy_training):
    healthy_training(lambda: train("zeros", epochs=6))


def test_metric(healthy_training):
    healthy_training(train, fail_on="nan_or_inf", metrics=["val_accuracy>=1.5"])


def test_nothing(healthy_training):
    healthy_training(lambda: None)


def test_wrong(healthy_training):
    healthy_training(lambda: pytest.fail("trained"), metrics=["accuracy"])


def test_error(healthy_training):
    try:
        healthy_training(lambda: 1 / 0)
    finally:
        assert not is_on()
"""
CONFIGURED = """
import mlflow, os

def test_configured(healthy_training):
    assert mlflow.get_tracking_uri() == os.environ["MLFLOW_TRACKING_URI"] == os.environ["GIVEN"]
"""


@pytest.fixture
def declared(tmp_path: Path) -> Path:
    """A folder with the package's entry points, as an installer writes them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    info = tmp_path / "site" / "mlflow_tfmon-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mlflow-tfmon\nVersion: 0.1.0\n")
    groups = project["entry-points"]
    lines = [
        f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in groups.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return info.parent


def run_pytest(folder: Path, declared: Path, source: str, *arguments: str, **environment: str):
    (folder / "test_it.py").write_text(source)
    ours = {name for name in os.environ if name.startswith(("MLFLOW_TFMON_", "PYTEST_"))}
    left = {"MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID", "MLFLOW_AUTOLOGGING_TESTING"} | ours
    kept = {name: value for name, value in os.environ.items() if name not in left}
    path = os.pathsep.join([str(declared), str(ROOT)])
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(folder),
            *arguments,
            "test_it.py",
        ],
        cwd=folder,
        env={**kept, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_a_recorded_run_is_asserted_to_be_healthy(store: str, home: Path) -> None:
    good, bad = (
        recordings.delivered(store, home, *recordings.training(400, nan_at=nan_at), name=name)
        for name, nan_at in (("good", None), ("bad", 200))
    )
    client = mlflow.MlflowClient()
    for run in (good, load_run(good), client.get_run(good)):
        assert_healthy(run, metrics=["accuracy>=0.7"])
    with pytest.raises(
        AssertionError, match=r"^failed: run bad \(\w+\): nan_or_inf \(critical\)\ncritical: nan_or_inf"
    ):
        assert_healthy(bad)
    assert_healthy(bad, fail_on="overfitting")
    with pytest.raises(AssertionError, match=r"^undecided: .*did you mean 'accuracy'\?"):
        assert_healthy(good, metrics=["acuracy>=0.7"])
    with pytest.raises(ValueError, match="'critcal' is no severity"):
        assert_healthy(good, fail_on="critcal")
    client.set_tag(good, "tfmon.delivery", "streaming")
    with pytest.raises(AssertionError, match="it has not ended"):
        assert_healthy(good)


@pytest.mark.thorough
def test_trainings_that_are_not_healthy_fail_their_tests_with_the_diagnosis(
    declared: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    report = tmp_path / "report.xml"
    done = run_pytest(folder, declared, TESTS, f"--junit-xml={report}", f"--basetemp={tmp_path / 'made'}")
    failures = {
        case.get("name"): "".join(failure.text or "" for failure in case.iter("failure"))
        for case in ElementTree.parse(report).iter("testcase")
    }
    assert set(failures) == set(re.findall(r"^def (test_\w+)", TESTS, re.MULTILINE)), done.stdout[-3000:]
    assert failures["test_healthy"] == failures["test_loop"] == "", done.stdout[-6000:]
    said = failures["test_failing"]
    assert re.search(
        r"^E +AssertionError: failed: run .* \(\w{32}\): poor_initialization \(critical\)", said, re.M
    )
    assert re.search(r"^E +critical: poor_initialization .* Initialize kernels at random", said, re.M)
    assert "def assert_" not in said  # it ends where the test called the fixture
    assert "val_accuracy>=1.5 does not hold: " in failures["test_metric"]
    assert "no training step was recorded" in failures["test_nothing"]
    assert "ValueError: 'accuracy' is no condition" in failures["test_wrong"]
    assert "ZeroDivisionError" in failures["test_error"]
    assert [path.name for path in folder.iterdir()] == ["test_it.py"]  # nothing is left where the tests ran


def test_the_configured_store_is_used(declared: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'given.db'}"
    done = run_pytest(tmp_path, declared, CONFIGURED, "-q", MLFLOW_TRACKING_URI=uri, GIVEN=uri)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_plugin_imports_nothing_heavy_until_it_is_used(declared: Path, tmp_path: Path) -> None:
    source = """
import json, sys

def test_it(request):
    assert request.config.pluginmanager.has_plugin("mlflow_tfmon")
    print("MODULES", json.dumps(sorted(sys.modules)))
"""
    done = run_pytest(tmp_path, declared, source, "-q", "-s")
    assert done.returncode == 0, done.stdout + done.stderr
    loaded = set(json.loads(done.stdout.split("MODULES ")[1].split("\n")[0]))
    assert not loaded & {"tensorflow", "keras", "mlflow", "numpy", "pandas"}
    ours = {name for name in loaded if name.startswith("mlflow_tfmon")}
    assert ours == {"mlflow_tfmon", "mlflow_tfmon.pytest_plugin"}
