"""`mlflow.last_logged_model()` after a monitored fit: returns the model that is being delivered."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow

from mlflow_tfmon.delivery.status import read_status
from mlflow_tfmon.errors import contained, logger
from mlflow_tfmon.tags import RECORDED_AS
from mlflow_tfmon.tracking import runs

_MOST_SECONDS, _POLL_SECONDS = 60.0, 0.1  # of whoever asks for the model
_here = threading.local()


@dataclass(frozen=True)
class _Expected:
    """A model that is on its way to MLflow.

    Attributes:
        run: that it is logged in.
        folder: of the recording.
        path: of its record.
        tag: of the run, which names it once its files are there.
        before: id of the model that this thread had logged last.
    """

    run: runs.Run
    folder: Path
    path: str
    tag: str
    before: str | None

    def model_id(self) -> str | None:
        """Its id, once it is in MLflow."""
        client = mlflow.MlflowClient(self.run.tracking_uri)
        run_id = self.run.run_id or read_status(self.folder).run_id
        model_id: str | None = client.get_run(run_id).data.tags.get(self.tag) if run_id else None
        # An earlier fit's of the same model has the same tag.
        path = client.get_logged_model(model_id).tags.get(RECORDED_AS) if model_id else None
        return model_id if path == self.path else None


def expect(run: runs.Run, folder: Path, path: str, tag: str) -> None:
    """Notes the model that a fit on this thread has just ended with.

    Args:
        run: that it is logged in.
        folder: of the recording.
        path: of its record.
        tag: of the run, which will name it.
    """
    _here.expected = _Expected(run, folder, path, tag, runs.last_model_id())


def watch_last(original: Callable[[], Any]) -> Callable[[], Any]:
    """Wraps `mlflow.last_logged_model`, which waits for the model of a fit on this thread that is not there yet."""

    def last_logged_model() -> Any:
        with contained("waiting for the logged model", "mlflow.last_logged_model() does not know it"):
            _arrive()
        return original()

    return last_logged_model


def _arrive() -> None:
    expected: _Expected | None = getattr(_here, "expected", None)
    until = time.monotonic() + _MOST_SECONDS
    while expected is not None and runs.last_model_id() == expected.before:  # else another was logged since
        model_id = expected.model_id()
        if model_id is not None:
            runs.set_last_model_id(model_id)
        elif time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
        else:
            logger.warning(
                "mlflow_tfmon: mlflow.last_logged_model() does not return the model of the last fit: it is not in "
                "MLflow after %.0f s. Try again, or run `mlflow-tfmon sync`.",
                _MOST_SECONDS,
            )  # fmt: skip
            return
    _here.expected = None
