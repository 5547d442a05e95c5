"""Runner of the demos as a user would start them, `mlflow run . -e NAME`, in a store of the test module."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

ROOT = Path(__file__).parents[2]
WITH_REPORT = ("monitored_training", "weight_regularization")
# What fails, learns slowly on purpose, or has not learned much by the end of the quick form; all else is healthy.
ILL = {
    "classification_losses": {"hidden logits"},
    "gradient_monitor": {"exploding", "vanishing"},
    "hyperparameters": {"trial 0", "trial 1", "trial 2"},
    "lr_schedules": {"range test"},
    "monitored_training": {"monitored_training"},
    "optimizers": {"digits Lion", "digits Nadam"},
    "ray": {"learning rate 0.01"},
    "registry": {"4 units"},
    "regularization": {
        "batch normalization",
        "both",
    },  # moving averages lag behind the 32 steps of the quick form
    "regression_losses": {"MSE"},  # which fits outliers that the validation data has none of
}


def environment(store: str) -> dict[str, str]:
    """As in an activated environment: `python` is the one that runs the tests."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {
        name: value
        for name, value in os.environ.items()
        # Users do not train in MLflow's test mode, which wants each run of a fit to be made by autologging.
        if name != "MLFLOW_AUTOLOGGING_TESTING"
    }
    home = str(Path(store.removeprefix("sqlite:///")).parent / "home")
    return {**kept, "MLFLOW_TRACKING_URI": store, "MLFLOW_TFMON_HOME": home, "PATH": path}


@dataclass(frozen=True)
class Demo:
    """A demo that has run: its parent run, the child runs by name, and what it printed."""

    client: MlflowClient
    parent: mlflow.entities.Run
    children: dict[str, mlflow.entities.Run]
    printed: str

    def history(self, run: mlflow.entities.Run, key: str) -> list[float]:
        """A metric's values in the order of their steps."""
        points = self.client.get_metric_history(run.info.run_id, key)
        return [point.value for point in sorted(points, key=lambda point: point.step)]

    def artifacts(self, run: mlflow.entities.Run, folder: str | None = None) -> set[str]:
        return {file.path for file in self.client.list_artifacts(run.info.run_id, folder)}


@pytest.fixture(scope="module")
def run_demo(store_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Demo]:
    """A function that runs an entry point in its quick form and looks up its runs."""
    folder = tmp_path_factory.mktemp("demos")
    shutil.copyfile(store_template, folder / "mlflow.db")
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")

    def run(entry_point: str, **parameters: object) -> Demo:
        experiment = client.create_experiment(entry_point, artifact_location=str(folder / entry_point))
        given = [f"{name}={value}" for name, value in {"quick": "true", **parameters}.items()]
        command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "-e", entry_point]
        command += ["--env-manager", "local", "--experiment-name", entry_point]
        done = subprocess.run(
            [*command, *(part for one in given for part in ("-P", one))],
            # Reports take delivery seconds: only the demos whose pages are looked into have them.
            env={**environment(client.tracking_uri), "MLFLOW_TFMON_REPORT": str(entry_point in WITH_REPORT)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        runs = client.search_runs([experiment])
        (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
        children = [run for run in runs if run is not parent]
        assert {run.info.status for run in runs} == {"FINISHED"}
        assert {run.data.tags["mlflow.parentRunId"] for run in children} <= {parent.info.run_id}
        told = {run.info.run_name: run.data.tags.get("tfmon.problems", "none") for run in runs}
        healthy = told.keys() - ILL.get(entry_point, set())
        assert {name: told[name] for name in healthy if told[name] != "none"} == {}
        return Demo(client, parent, {run.info.run_name: run for run in children}, done.stdout)

    return run
