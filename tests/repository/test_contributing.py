"""CONTRIBUTING's recipes work as they are printed: each is followed in a copy of the package."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
RECIPES = dict(
    re.findall(
        r"^```python\n# (mlflow_tfmon/\S+)\n(.*?)^```$", (ROOT / "CONTRIBUTING.md").read_text(), re.M | re.S
    )
)
HOOK_LINE, NOTE_LINE = re.findall(r"`(Hook\(.*\),)`", (ROOT / "CONTRIBUTING.md").read_text())
(MEASURE,) = re.findall(r"`(_Of\(.*\),)`", (ROOT / "CONTRIBUTING.md").read_text())
HOOKS_BEGIN = "    return [\n"
TRAINING = """
import json, sys
import keras, mlflow, mlflow_tfmon, numpy as np
from mlflow_tfmon.delivery import process
from mlflow_tfmon.problems.rediagnosis import diagnose, replayed
from mlflow_tfmon.signals import table

model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, kernel_initializer="ones", name="head")], name="net")
model.compile(keras.optimizers.SGD(0.0), "mse")
mlflow_tfmon.autolog(deep_every=10, report=True, sinks="csv:.", delivery_wait=60)
keras.utils.set_random_seed(7)
with mlflow.start_run() as active:
    model.fit(np.ones((128, 4)), np.zeros((128, 3)), batch_size=1, verbose=0)
    model.save("mine.keras")
run_id = active.info.run_id
process.DeliveryProcess.finish(120)
run = mlflow_tfmon.load_run(run_id)
layers = run.layers[run.layers.step == 10].set_index("variable")
replay, standing = replayed(run, ended=True)
print(json.dumps({
    "positive": layers.positive_fraction.to_dict(), "peak": layers.peak_to_rms.astype(float).to_dict(),
    "metrics": sorted(mlflow.get_run(run_id).data.metrics), "kinds": [one.kind for one in diagnose(run)],
    "deep": sorted(next(iter(replay.histories().values())).deep), "csv": open(f"{run_id}.csv").read().splitlines(),
    "report": mlflow.artifacts.load_text(f"runs:/{run_id}/tfmon/report.html").count("peak_to_rms"),
    "seeds": sys.modules["mlflow_tfmon.probes.seeds"].seeds, "table": table.of_variable(),
    "losses": run.steps.loss.tolist(), "logs": run.steps.log_loss.tolist(),
    "saved": [(one.step, one.value) for one in mlflow.MlflowClient().get_metric_history(run_id, "batch/saved")],
}))
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, store_template: Path) -> dict[str, Any]:
    """What a training gives with all recipes followed."""
    folder = tmp_path_factory.mktemp("stranger")
    shutil.copytree(ROOT / "mlflow_tfmon", folder / "mlflow_tfmon")
    shutil.copyfile(store_template, folder / "mlflow.db")
    (folder / "work").mkdir()
    for path, code in RECIPES.items():
        (folder / path).write_text(code)
    for path, before, after in (
        ("detectors/__init__.py", "    dead_relu,\n", "    dead_relu,\n    loss_stuck,\n"),
        (
            "detectors/__init__.py",
            "CAUSES: tuple[Detect, ...] = (\n",
            "CAUSES: tuple[Detect, ...] = (\n    loss_stuck.detect,\n",
        ),
        ("signals/__init__.py", "import checksum,", "import spread, checksum,"),
        ("signals/__init__.py", "_FAMILIES = (", "_FAMILIES = (spread, "),
        ("probes/hooks/keras3.py", "import batches, ", "import batches, seeds, "),
        ("probes/hooks/keras3.py", HOOKS_BEGIN, f"{HOOKS_BEGIN}        {HOOK_LINE}\n"),
        ("signals/steps.py", "MEASURES = (\n", f"MEASURES = (\n    {MEASURE}\n"),
        ("integration.py", "pipeline, resuming", "pipeline, resuming, saves"),
        (
            "integration.py",
            "        [mlflow_hooks.run_ends(",
            f"        [\n            {NOTE_LINE} mlflow_hooks.run_ends(",
        ),
        ("sinks/sinks.py", "_OURS = {\n", '_OURS = {\n    "csv": "mlflow_tfmon.sinks.csv:Csv",\n'),
    ):
        text = (folder / "mlflow_tfmon" / path).read_text()
        assert text.count(before) == 1, f"{path} has no {before!r}"
        (folder / "mlflow_tfmon" / path).write_text(text.replace(before, after))
    own = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "MLFLOW_TFMON_HOME": f"{folder}/home",
        "PYTHONPATH": str(folder),
    }  # fmt: skip
    environment = {**os.environ, **own}
    command, work = [sys.executable, "-c", TRAINING], folder / "work"
    done = subprocess.run(
        command, cwd=work, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_all_recipes_are_followed() -> None:
    assert {path.split("/")[1] for path in RECIPES} == {"detectors", "signals", "sinks", "probes", "watching"}


def test_the_detector_finds_what_it_is_for(found: dict[str, Any]) -> None:
    assert "loss_stuck" in found["kinds"]


def test_the_signals_are_wherever_the_others_are(found: dict[str, Any]) -> None:
    assert found["positive"] == {"net.head.kernel": 1.0, "net.head.bias": 0.0}
    assert found["peak"]["net.head.kernel"] == 1.0
    assert found["peak"]["net.head.bias"] != found["peak"]["net.head.bias"]  # NaN: all zero
    assert [name for name in found["metrics"] if "positive" in name] == ["positive_fraction/net.head.kernel"]
    assert not [name for name in found["metrics"] if "peak_to_rms" in name]
    assert {"positive_fraction", "peak_to_rms"} <= set(found["deep"])
    assert "| `peak_to_rms/<variable>` | max \\|w\\| / root mean square of w |" in found["table"]
    assert found["report"]


def test_the_measure_is_made_of_each_step(found: dict[str, Any]) -> None:
    assert "batch/log_loss" in found["metrics"]
    np.testing.assert_allclose(found["logs"], np.log10(found["losses"]))


def test_the_sink_has_every_step(found: dict[str, Any]) -> None:
    assert [line.split(",")[0] for line in found["csv"]] == [str(step) for step in range(1, 129)]
    assert [float(line.split(",")[1]) for line in found["csv"]] == found["losses"]


def test_the_hook_is_called(found: dict[str, Any]) -> None:
    assert found["seeds"] == [7]


def test_what_belongs_to_the_run_is_noted_in_it(found: dict[str, Any]) -> None:
    assert found["saved"] == [[128, 1.0]]  # not the models that we save
