"""Tests of serving the registered best model with `mlflow models serve`, over HTTP."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import keras
import mlflow
import numpy as np
import pytest
import requests

import mlflow_tfmon
from tests.checkpoints.test_checkpoints import X, fit, net
from tests.servers import free_port

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(900)]


@contextlib.contextmanager
def served(model: str, store: str, log: Path) -> Iterator[str]:
    """Serves a model on a free port; gives the address."""
    port = free_port()
    path = (
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # on which MLflow looks for uvicorn
    )
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local",
               "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, env={**os.environ, "MLFLOW_TRACKING_URI": store, "PATH": path},
            stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
        try:
            address = f"http://127.0.0.1:{port}"
            while True:
                assert process.poll() is None, log.read_text("utf-8")
                with contextlib.suppress(requests.RequestException):
                    if requests.get(f"{address}/ping", timeout=5).ok:
                        break
                time.sleep(0.5)
            yield address
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_the_registered_best_is_served(fresh: None, store: str, tmp_path: Path) -> None:
    mlflow_tfmon.autolog(registered_model_name="digits")
    each = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    history = fit(net(), 5, [each]).history["val_loss"]
    mlflow_tfmon.autolog(disable=True)
    best = int(np.argmin(history))
    assert 0 < best < 4, history  # or the last would do as well
    expected = keras.models.load_model(tmp_path / f"{best + 1}.keras").predict(X, verbose=0)
    loaded = mlflow.tensorflow.load_model("models:/digits@best")
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), expected)
    with served("models:/digits@best", store, tmp_path / "serve.log") as address:
        answer = requests.post(f"{address}/invocations", json={"inputs": X.tolist()}, timeout=120)
        assert answer.ok, answer.text
    np.testing.assert_allclose(answer.json()["predictions"], expected, rtol=1e-4, atol=1e-5)
