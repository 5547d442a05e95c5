"""The OpenTelemetry sink: sends how a training stands to a collector, by OTLP over HTTP."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from functools import partial
from typing import Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExportResult, MetricsData, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from mlflow_tfmon import __version__
from mlflow_tfmon.sinks.figures import FIGURES, RUN, Figures
from mlflow_tfmon.sinks.sink import Target
from mlflow_tfmon.tags import PREFIX

_INTERVAL, _INTERVAL_MS = "OTEL_METRIC_EXPORT_INTERVAL", 10_000.0  # ours where the environment says none
_PATH = "/v1/metrics"
_CLOSING_MS = 5_000.0  # for the last figures


class OpenTelemetry(Figures):
    """Sends the figures every 10 s, on a thread of the SDK, to the target's collector.

    Headers, certificates and the rest come from OpenTelemetry's own environment variables (`OTEL_EXPORTER_OTLP_…`),
    and so does the collector where the target has none.
    """

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        logging.getLogger("opentelemetry").setLevel(
            logging.CRITICAL
        )  # we report outages ourselves, in one line
        base = target.path.rstrip("/")
        self._exporter = _Exporter(base if not base or base.endswith(_PATH) else base + _PATH)
        interval = None if _INTERVAL in os.environ else _INTERVAL_MS
        named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "mlflow_tfmon"}
        self._provider = MeterProvider(
            [PeriodicExportingMetricReader(self._exporter, interval)],
            Resource.create(named),
            shutdown_on_exit=False,
        )
        meter = self._provider.get_meter("mlflow_tfmon", __version__)
        for name, (about, _) in FIGURES.items():
            meter.create_observable_gauge(
                f"{PREFIX}{name}", [partial(self._observed, name)], description=about
            )

    def flush(self, number: int) -> None:
        super().flush(number)
        if self._exporter.says():
            raise OSError(
                "the collector does not take metrics: check its address (opentelemetry:http://HOST:4318); it is tried "
                "on and on"
            )

    def close(self, status: str) -> None:
        self._provider.shutdown(_CLOSING_MS)

    def _observed(self, wanted: str, options: CallbackOptions) -> Iterator[Observation]:
        run = (self.target.run_id, self.target.run_name or "")
        for name, labels, value in self.readings():
            if name == wanted:
                yield Observation(value, dict(zip((*RUN, *FIGURES[name][1]), (*run, *labels), strict=True)))


class _Exporter(OTLPMetricExporter):
    """The SDK's, which notes that it failed."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint or None)
        self._failed = self._said = False

    def export(self, metrics_data: MetricsData, *args: Any, **more: Any) -> MetricExportResult:
        found: MetricExportResult = super().export(metrics_data, *args, **more)
        self._failed = found is not MetricExportResult.SUCCESS
        return found

    def says(self) -> bool:
        """Whether a failure is to be told: the first one."""
        told, self._said = self._failed and not self._said, self._said or self._failed
        return told
