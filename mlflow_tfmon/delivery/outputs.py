"""Outputs made of what has arrived: the diagnosis, the report and event files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mlflow_tfmon import temporary
from mlflow_tfmon.delivery.existing import problems_of
from mlflow_tfmon.detectors.problem import Problem
from mlflow_tfmon.tracking import findings
from mlflow_tfmon.tracking.names import EVENT_FILES, REPORT
from mlflow_tfmon.tracking.store import RunStore, store_errors


def diagnosis(run: RunStore, problems: Iterable[Mapping[str, Any]] | None = None) -> dict[str, str]:
    """Writes the diagnosis of a run.

    Args:
        run: the run.
        problems: as `records.Problems` has them; default: those that it has, if it was judged.
    """
    with store_errors():
        known = run.client.get_run(run.run_id)
        if problems is None:
            kinds = known.data.tags.get(findings.TAG)
            problems = problems_of(run.client, run.run_id)
            if kinds is None or (kinds != "none" and not problems):  # the store did not take the file
                return {}
    run.text(findings.DIAGNOSIS, findings.diagnosis([Problem.from_dict(one) for one in problems], known))
    return {}


def report(run: RunStore, wait: bool = True) -> dict[str, str]:
    """Makes the report; returns the reason if that fails.

    Args:
        run: whose.
        wait: whether to wait for recordings of the run that others deliver.
    """
    from mlflow_tfmon.report.making import make  # with libraries that nothing else here needs

    try:
        page = make(run.run_id, run.client.tracking_uri, wait)
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
