"""The Prometheus sink: an HTTP endpoint of the delivery process, from which Prometheus reads how trainings stand."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily

from mlflow_tfmon.sinks.figures import FIGURES, RUN, Figures
from mlflow_tfmon.sinks.sink import Target

_PORT = "9464"  # by convention that of OpenTelemetry's exporters for Prometheus
_HERE = "127.0.0.1"


class Prometheus(Figures):
    """Shows the figures of its recording at the target's port; those of all recordings of the process are at one."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        host, _, port = (target.path or _PORT).rpartition(":")
        self._endpoint = _Endpoint.at(host.strip("[]") or _HERE, int(port))
        self._endpoint.add(self)

    def close(self, status: str) -> None:
        self._endpoint.remove(self)


class _Endpoint:
    """An HTTP server, for as long as there is a sink that it shows."""

    _all: dict[tuple[str, int], _Endpoint] = {}  # noqa: RUF012
    _lock = threading.Lock()

    def __init__(self, host: str, port: int) -> None:
        registry = CollectorRegistry()
        registry.register(self)
        self._sinks: list[Prometheus] = []
        self._address = host, port
        try:
            self._server, _ = start_http_server(port, host, registry)
        except OSError as error:  # another process has it
            raise OSError(
                f"{host}:{port}: {error.strerror or error}; give this training another port"
            ) from error

    @classmethod
    def at(cls, host: str, port: int) -> _Endpoint:
        """The one at an address."""
        with cls._lock:
            if (host, port) not in cls._all:
                cls._all[host, port] = cls(host, port)
            return cls._all[host, port]

    def add(self, sink: Prometheus) -> None:
        self._sinks.append(sink)

    def remove(self, sink: Prometheus) -> None:
        """Shows a sink no more; the last one takes the server with it."""
        with self._lock:
            if sink in self._sinks:
                self._sinks.remove(sink)
            if not self._sinks and self._address in self._all:
                del self._all[self._address]
                self._server.shutdown()
                self._server.server_close()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """What a scrape gets."""
        families = {
            name: GaugeMetricFamily(f"tfmon_{name}", about, labels=(*RUN, *labels))
            for name, (about, labels) in FIGURES.items()
        }
        for sink in list(self._sinks):
            run = (sink.target.run_id, sink.target.run_name or "")
            for name, labels, value in sink.readings():
                families[name].add_metric((*run, *labels), value)
        return families.values()
