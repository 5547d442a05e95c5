"""The notebook runs from its first cell to its last, and finds what it says it finds."""

import os
import sys
from pathlib import Path

import pytest

from mlflow_tfmon import load_run

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "diagnose.ipynb"


@pytest.mark.thorough
def test_a_model_is_trained_broken_diagnosed_and_mended(tmp_path, store, home, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    from jupyter_client import KernelManager
    from jupyter_client.kernelspec import KernelSpec
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[2]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # what is checked in has no outputs
    kernel = KernelManager()
    kernel._kernel_spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python"
    )
    client = nbclient.NotebookClient(
        notebook, km=kernel, timeout=280, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=dict(os.environ))
    text = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "poor_initialization (critical)" in text
    mlflow = MlflowClient(store)
    experiment = mlflow.get_experiment_by_name("digits in a notebook")
    runs = {run.info.run_name: run for run in mlflow.search_runs([experiment.experiment_id])}
    assert set(runs) == {"good", "broken", "mended"}
    assert all(run.info.status == "FINISHED" for run in runs.values())
    assert runs["good"].data.tags["tfmon.problems"] == runs["mended"].data.tags["tfmon.problems"] == "none"
    assert "poor_initialization" in runs["broken"].data.tags["tfmon.problems"]
    accuracy = {name: run.data.metrics["val_accuracy"] for name, run in runs.items()}
    assert min(accuracy["good"], accuracy["mended"]) > 0.8 > 0.2 > accuracy["broken"]
    hidden = load_run(runs["broken"].info.run_id, store).layers
    assert (hidden[hidden["variable"].str.endswith("hidden.kernel")]["grad_norm"] == 0).all()
