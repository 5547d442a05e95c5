"""The chart view of an experiment in MLflow's UI: what people look at first, above all other metrics.

MLflow's page keeps a view that users share as a tag of the experiment: its state as JSON, deflated. The page of 3.17
also takes an envelope with a name around that; the state alone is what all of its versions read.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

_KEY = "tfmon"
TAG = f"mlflow.sharedViewState.{_KEY}"
TRAININGS = (
    "workflowType=machine_learning"  # of a page's query: else MLflow (3.17) shows its view of GenAI apps
)
# Query of the experiment's page that opens the view.
CHARTS = f"viewStateShareKey={_KEY}&compareRunsMode=CHART&{TRAININGS}"
_QUALITY = (
    "accuracy", "sparse_categorical_accuracy", "categorical_accuracy", "binary_accuracy", "auc", "mae",
    "mean_absolute_error", "root_mean_squared_error",
)  # fmt: skip
# Never below zero, and of several orders of magnitude where runs are compared: one that diverges would press the others
# flat. On a linear axis MLflow's page (3.17) draws a constant 0.001 at 0, between -0.5 and 0.5.
_LOGARITHMIC = frozenset({"batch/learning_rate", "batch/grad_norm"})
# By section: the metrics of each chart. One of which no run has the first is hidden.
_SECTIONS: dict[str, list[tuple[str, ...]]] = {
    "Training": [
        ("loss", "val_loss"),
        *((name, f"val_{name}") for name in _QUALITY),
        ("batch/learning_rate",),
        ("batch/grad_norm",),
        ("batch/loss",),
    ],
    # Here MLflow puts what it finds beside them.
    "Model metrics": [],
    "System metrics": [],
}
# In the order of time, MLflow's page (3.17) folds runs into those that they are below, and draws only these. Of one
# user's runs, this order is that of time too.
_UNFOLDED = {
    "orderByKey": "tags.`mlflow.user`", "orderByAsc": False, "searchFilter": "", "startTime": "ALL",
    "lifecycleFilter": "Active", "datasetsFilter": [], "modelVersionFilter": "All Runs",
}  # fmt: skip


def value(unfolded: bool = False) -> str:
    """The tag's value.

    Args:
        unfolded: whether runs that are below others are shown at once.
    """
    charts = [
        _chart(f"{_KEY}-{metrics[0]}", f"{_KEY}-{section}", metrics)
        for section, found in _SECTIONS.items()
        for metrics in found
    ]
    sections = [
        {"uuid": f"{_KEY}-{name}", "name": name, "display": True, "isReordered": True, "deleted": False,
         "isGenerated": not found, "columns": 2}
        for name, found in _SECTIONS.items()
    ]  # fmt: skip
    columns = ["tags.`tfmon.problems`", "tags.`tfmon.progress`", "metrics.`val_loss`", "metrics.`loss`"]
    state = {
        "compareRunCharts": charts, "compareRunSections": sections, "isAccordionReordered": True,
        "hideEmptyCharts": True, "selectedColumns": columns,
        **(_UNFOLDED if unfolded else {}),
    }  # fmt: skip
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()


def _chart(uuid: str, section: str, metrics: tuple[str, ...]) -> dict[str, Any]:
    return {
        "uuid": uuid, "type": "LINE", "metricSectionId": section, "deleted": False, "isGenerated": False,
        "runsCountToCompare": 10, "metricKey": metrics[0],
        "selectedMetricKeys": list(metrics), "lineSmoothness": 0,
        "scaleType": "log" if metrics[0] in _LOGARITHMIC else "linear",
        "xAxisScaleType": "linear", "xAxisKey": "step", "selectedXAxisMetricKey": "", "yAxisKey": "metric",
        "yAxisExpressions": [], "range": {}, "ignoreOutliers": False, "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }  # fmt: skip
