"""The pytest plugin: the fixture `healthy_training`. It imports neither TensorFlow nor MLflow until that is used."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

# In a store that nobody will look at: what takes time, and what others would be told.
_PRIVATE: dict[str, Any] = {
    "log_models": False, "registered_model_name": None, "report": False, "tensorboard": False, "sinks": None,
    "alert_url": None, "resume": None,
}  # fmt: skip
_OF_OTHER_STORES = ("MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "MLFLOW_REGISTRY_URI")


@pytest.fixture(scope="session")
def _mlflow_tfmon_store(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a store for this session: it takes MLflow seconds to make one."""
    from mlflow_tfmon.tracking.store import open_store

    folder = tmp_path_factory.mktemp("mlflow_tfmon")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    experiment = open_store(uri).create_experiment(
        "healthy_training", artifact_location=(folder / "artifacts").as_uri()
    )
    return {
        "MLFLOW_TRACKING_URI": uri,
        "MLFLOW_EXPERIMENT_ID": experiment,
        "MLFLOW_TFMON_HOME": str(folder / "home"),
    }


@pytest.fixture
def healthy_training(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs a training under `autolog()`, and fails the test with the diagnosis if the training is not healthy.

    It takes the arguments of `mlflow_tfmon.testing.assert_trains_healthily`, and returns what the training returns.
    Runs go to the configured store (MLFLOW_TRACKING_URI, `mlflow.set_tracking_uri`), else to a temporary one.

    Example:
        def test_training(healthy_training):
            model = healthy_training(train, fail_on="critical", metrics=["val_accuracy>=0.9"])
    """
    import mlflow

    from mlflow_tfmon.testing import assert_trains_healthily

    monkeypatch.setenv("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # which fills the captured stderr
    if mlflow.is_tracking_uri_set():
        return assert_trains_healthily
    for name, value in request.getfixturevalue("_mlflow_tfmon_store").items():
        monkeypatch.setenv(name, value)
    for name in _OF_OTHER_STORES:
        monkeypatch.delenv(name, raising=False)
    return partial(assert_trains_healthily, **_PRIVATE)
