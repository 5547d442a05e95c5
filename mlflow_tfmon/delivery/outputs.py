"""Outputs made once everything has arrived: the report and event files."""

from __future__ import annotations

from pathlib import Path

from mlflow_tfmon import temporary
from mlflow_tfmon.tracking.names import EVENT_FILES, REPORT
from mlflow_tfmon.tracking.store import RunStore, store_errors


def report(run: RunStore) -> dict[str, str]:
    """Makes the report; returns the reason if that fails."""
    from mlflow_tfmon.report.making import make  # with libraries that nothing else here needs

    try:
        page = make(run.run_id, run.client.tracking_uri)
    except Exception as error:  # what was recorded is there without it, and `mlflow-tfmon report` tries again
        return {REPORT: f"{type(error).__name__}: {error}"}
    run.text(REPORT, page)
    return {}


def event_files(run: RunStore) -> dict[str, str]:
    """Makes TensorBoard event files; returns the reason if that fails."""
    from mlflow_tfmon.tensorboard.export import export

    with temporary.Folder() as folder:
        try:
            export(run.run_id, Path(folder), run.client.tracking_uri)
        except Exception as error:  # as above: `mlflow-tfmon export-tensorboard` tries again
            return {EVENT_FILES: f"{type(error).__name__}: {error}"}
        with store_errors():
            run.client.log_artifacts(run.run_id, folder, EVENT_FILES)
    return {}
