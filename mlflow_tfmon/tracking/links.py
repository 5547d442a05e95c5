"""Links to a run, and to the charts of its experiment, in MLflow's UI."""

from __future__ import annotations

from mlflow_tfmon.tracking.chart_view import CHARTS, TRAININGS
from mlflow_tfmon.uris import address

_LOCAL = "http://127.0.0.1:5000"


def where(tracking_uri: str, experiment_id: str, run_id: str | None) -> str:
    """Where a run can be looked at: a link, or how to get one.

    Example:
        >>> where("http://localhost:5000", "0", "8f3a")
        'http://localhost:5000/#/experiments/0/runs/8f3a?workflowType=machine_learning'
    """
    store = address(tracking_uri)
    page = f"/#/experiments/{experiment_id or '0'}" + (f"/runs/{run_id}" if run_id else "") + f"?{TRAININGS}"
    server = _server(store)
    return server + page if server else f"`mlflow ui --backend-store-uri {store}`, then {_LOCAL}{page}"


def charts(tracking_uri: str, experiment_id: str) -> str:
    """Where the charts of an experiment's runs are, those that people look at first above the others: a link.

    Example:
        >>> charts("http://localhost:5000", "0").partition("?")[0]
        'http://localhost:5000/#/experiments/0/runs'
    """
    return f"{_server(address(tracking_uri)) or _LOCAL}/#/experiments/{experiment_id or '0'}/runs?{CHARTS}"


def _server(store: str) -> str:
    """The address of a store's server, "" of one without."""
    return store.rstrip("/") if store.startswith(("http://", "https://")) else ""
