"""Tests of the main project under `mlflow run`: two monitored child runs; an invalid parameter ends in one line."""

import shutil
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from mlflow_tfmon import load_run
from tests.projects.conftest import ROOT, environment

EPOCHS, STEPS = 2, 2 * 45  # 1,437 digits in batches of 32


@pytest.fixture(scope="module")
def project_store(store_template: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("main")
    shutil.copyfile(store_template, folder / "mlflow.db")
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    for name in ("digits", "uv", "wrong"):
        client.create_experiment(name, artifact_location=str(folder / "files"))
    return client.tracking_uri


@pytest.fixture(scope="module")
def client(project_store: str) -> MlflowClient:
    """A store in which the project has been run."""
    command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "--env-manager", "local"]
    done = subprocess.run(
        [*command, "--experiment-name", "digits", "-P", f"epochs={EPOCHS}"],
        env=environment(project_store),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert "oneDNN" not in done.stderr and "cudart" not in done.stderr
    return MlflowClient(project_store)


def named_runs(client: MlflowClient, name: str = "digits") -> dict[str, mlflow.entities.Run]:
    experiment = client.get_experiment_by_name(name)
    runs = client.search_runs([experiment.experiment_id])
    return {"parent" if "mlflow.parentRunId" not in run.data.tags else run.info.run_name: run for run in runs}


@pytest.mark.demos
def test_two_runs_below_the_projects_own(client):
    runs = named_runs(client)
    assert set(runs) == {"parent", "fit", "custom loop"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["parent"].data.params["epochs"] == str(EPOCHS)
    assert runs["parent"].info.run_name == "main"
    for name in ("fit", "custom loop"):
        assert runs[name].data.tags["mlflow.parentRunId"] == runs["parent"].info.run_id


@pytest.mark.demos
@pytest.mark.parametrize("name", ["fit", "custom loop"])
def test_each_is_watched_at_every_step(client, name):
    run = named_runs(client)[name]
    assert run.data.tags["tfmon.delivery"] == "complete"
    recorded = load_run(run.info.run_id, client.tracking_uri)
    assert list(recorded.steps.index) == list(range(1, STEPS + 1))
    assert set(recorded.layers["variable"]) >= {
        "digits.conv1.kernel",
        "digits.hidden.kernel",
        "digits.logits.bias",
    }
    for key in ("batch/loss", "batch/learning_rate", "batch/grad_norm", "grad_norm/digits.hidden.kernel"):
        shown = [point.step for point in client.get_metric_history(run.info.run_id, key)]
        assert shown[0] == 1 and shown[-1] == STEPS, key
    for key in ("loss", "accuracy", "val_loss", "val_accuracy"):
        assert [point.step for point in client.get_metric_history(run.info.run_id, key)] == list(
            range(EPOCHS)
        ), key
    assert run.data.metrics["val_accuracy"] > 0.8


@pytest.mark.demos
def test_the_two_can_be_compared(client):
    """Same names, same first weights and, up to the first shuffle, same data: the same first epoch."""
    runs = named_runs(client)
    parent = runs["parent"].info.run_id
    assert {"main.png", "comparison.json"} <= {file.path for file in client.list_artifacts(parent)}
    page = Path(client.download_artifacts(parent, "tfmon/comparison.html")).read_text("utf-8")
    assert "custom loop diverges from fit at step" in page
    for name in ("fit", "custom loop"):
        last = runs[name].data.metrics["val_accuracy"]
        compared = runs["parent"].data.metrics[f"val_accuracy_{name.replace(' ', '_')}"]
        assert compared == pytest.approx(last, rel=1e-6)
    of_steps = [{key for key in runs[name].data.metrics if "/" in key} for name in ("fit", "custom loop")]
    assert {key for key in of_steps[0] if not key.startswith("best/")} == {
        key for key in of_steps[1] if not key.startswith("best/")
    }
    recorded = [load_run(runs[name].info.run_id, client.tracking_uri) for name in ("fit", "custom loop")]
    losses = [run.steps["loss"].loc[:45].to_list() for run in recorded]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.thorough
@pytest.mark.timeout(3600)
@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not installed")
def test_uv_builds_the_environment(project_store, tmp_path):
    """From conda.yaml: with the package itself, and what the demos need."""
    own = environment(project_store) | {"MLFLOW_ENV_ROOT": str(tmp_path)}
    own.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", "mlflow", "run", str(ROOT), "--env-manager", "uv"]
    done = subprocess.run(
        [*command, "--experiment-name", "uv", "-P", "quick=true"], env=own, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    runs = named_runs(MlflowClient(project_store), "uv")
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for name in ("fit", "custom loop"):
        assert "batch/grad_norm" in runs[name].data.metrics
    assert list(tmp_path.glob("**/site-packages/mlflow_tfmon*"))  # it ran in that environment


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("epochs", "-1"),
        ("epochs", "2.5"),
        ("batch_size", "0"),
        ("learning_rate", "abc"),
        ("learning_rate", "-1e-3"),
        ("learning_rate", "nan"),
        ("optimizer", "foo"),
    ],
)
def test_a_wrong_parameter_is_told_in_one_line(parameter, value):
    option = f"--{parameter.replace('_', '-')}"
    done = subprocess.run(
        [sys.executable, "-m", "projects.main", f"{option}={value}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert option in line and f"'{value}'" in line


def test_a_wrong_parameter_fails_the_run(project_store, monkeypatch, capfd):
    for name, value in environment(project_store).items():
        monkeypatch.setenv(name, value)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(project_store)
    try:
        with pytest.raises(mlflow.exceptions.ExecutionException):
            mlflow.projects.run(
                str(ROOT),
                env_manager="local",
                experiment_name="wrong",
                parameters={"epochs": "-1; touch oops"},
            )
        (run,) = mlflow.search_runs(experiment_names=["wrong"], output_format="list")
    finally:
        mlflow.set_tracking_uri(before)
    assert run.info.status == "FAILED"
    assert [line for line in capfd.readouterr().err.splitlines() if line.startswith("projects.main: error: ")]
    assert not (ROOT / "oops").exists()
