"""All sinks of a recording as one: each is called in turn, and what it raises stays its own."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import entry_points
from importlib.util import find_spec

import numpy as np

from mlflow_tfmon.sinks.sink import Sink, Target
from mlflow_tfmon.stream.block import Block
from mlflow_tfmon.stream.records import EpochEnded, Histograms, Logged, Problems, StreamOpened, System
from mlflow_tfmon.uris import apart, in_a_line

GROUP = "mlflow_tfmon.sinks"
_OURS = {
    "jsonl": "mlflow_tfmon.sinks.jsonl:JsonLines",
    "opentelemetry": "mlflow_tfmon.sinks.opentelemetry:OpenTelemetry",
    "prometheus": "mlflow_tfmon.sinks.prometheus:Prometheus",
    "tensorboard": "mlflow_tfmon.tensorboard.live:EventFiles",
}
# The module that a sink of ours needs, which the extra of its own name installs, and what people call that.
_NEEDS = {
    "opentelemetry": ("opentelemetry.exporter.otlp.proto.http", "OpenTelemetry's exporter"),
    "prometheus": ("prometheus_client", "prometheus-client"),
    "tensorboard": ("tensorboard", "TensorBoard"),
}
_MOST_FAULTS = 3  # then a sink is left alone
_NAME = re.compile(r"[A-Za-z_][\w.\-]*")
_URI = re.compile(r"[a-z][a-z0-9+.\-]*://", re.I)
# What follows the name of a sink that writes to no folder, and how it is to be written.
_ADDRESSES = {
    "opentelemetry": (re.compile(r"(https?://.+)?"), '"opentelemetry" or "opentelemetry:http://HOST:4318"'),
    "prometheus": (
        re.compile(r"((?:\[[^\[\]]+\]|[^\[\]:]+):)?\d{1,5}|"),
        '"prometheus:9464", or "prometheus:0.0.0.0:9464" for other machines to read',
    ),
}


def parsed(setting: str) -> list[tuple[str, str]]:
    """The sinks of a setting, each with its path, "" where it has none.

    Args:
        setting: such as "jsonl:metrics,tensorboard:/logs"; "" for none.

    Raises:
        ValueError: it can't be read, or names a sink that is not installed; the message says how to mend it.

    Example:
        >>> parsed("jsonl:/tmp/metrics")
        [('jsonl', '/tmp/metrics')]
    """
    found = _split(setting)
    known = names() if found else []  # which reads what every installed package says of itself
    for name, path in found:
        if not _NAME.fullmatch(name):
            raise ValueError('must be "NAME:PATH", or several of these with commas between them')
        if name not in known:
            raise ValueError(f"names a sink that is not installed, {name!r}; there are {', '.join(known)}")
        form, written = _ADDRESSES.get(name, (None, ""))
        if form is not None and not form.fullmatch(path):
            raise ValueError(f"must be {written}, not {path!r} after {name}")
        if name in _ADDRESSES and apart(path)[1]:
            raise ValueError(
                "must have no user name and password, which are not kept: put them into OTEL_EXPORTER_OTLP_HEADERS, as "
                '"Authorization=Basic ..."'
            )
        module, called = _NEEDS.get(name, ("", ""))
        if module and not _is_there(module):
            raise ValueError(f"needs {called}: pip install 'mlflow-tfmon[{name}]'")
    return found


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of what it is a part of
        return False


def _split(setting: str) -> list[tuple[str, str]]:
    parts = [one.strip().partition(":") for one in setting.split(",") if setting]
    return [(name, path) for name, _, path in parts]


def absolute(setting: str) -> str:
    """The same sinks, whatever the working directory."""
    return ",".join(
        f"{name}:{path if not path or name in _ADDRESSES or _URI.match(path) else os.path.abspath(path)}"
        for name, path in parsed(setting)
    )


def names() -> list[str]:
    """The names of all sinks that are there."""
    return sorted({*_OURS, *(point.name for point in entry_points(group=GROUP))})


def _class(name: str) -> Callable[[Target], Sink]:
    """What makes the sink of a name.

    Raises:
        LookupError: there is none here.
    """
    if name in _OURS:
        module, _, attribute = _OURS[name].partition(":")
        ours: Callable[[Target], Sink] = getattr(importlib.import_module(module), attribute)
        return ours
    for point in entry_points(group=GROUP, name=name):
        installed: Callable[[Target], Sink] = point.load()
        return installed
    raise LookupError(f"no sink {name!r} is installed")


class Sinks(Sink):
    """The sinks of one recording; what they are given waits until they are opened.

    Attributes:
        muted: whether what comes was taken before, by the sinks of an earlier delivery.
        faults: why a sink lacks something: name -> reason.
    """

    def __init__(self) -> None:
        super().__init__()
        self.muted = False
        self.faults: dict[str, str] = {}
        self._count: dict[str, int] = {}
        self._sinks: dict[str, Sink] | None = None
        self._waiting: list[Callable[[Sink], None]] = []

    def open(self, setting: str, target: Target) -> None:
        """Makes the sinks, unless that is done.

        Args:
            setting: as in the setting `sinks`.
            target: whose `path` and `notes` each sink has of its own.
        """
        if self._sinks is not None:
            return
        self._sinks = {}
        for name, path in _split(setting):
            try:
                notes = target.notes / name
                notes.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._sinks[name] = _class(name)(replace(target, path=path, notes=notes))
            except Exception as error:
                self._failed(name, error)
        for call in self._waiting:
            self._each(call)
        self._waiting.clear()

    def steps(self, block: Block, measures: Mapping[str, np.ndarray]) -> None:
        self._take(lambda sink: sink.steps(block, measures))

    def deep_steps(self, block: Block) -> None:
        self._take(lambda sink: sink.deep_steps(block))

    def histograms(self, layout: StreamOpened, record: Histograms) -> None:
        self._take(lambda sink: sink.histograms(layout, record))

    def epoch(self, record: EpochEnded) -> None:
        self._take(lambda sink: sink.epoch(record))

    def logged(self, prefix: str, record: Logged) -> None:
        self._take(lambda sink: sink.logged(prefix, record))

    def system(self, record: System) -> None:
        self._take(lambda sink: sink.system(record))

    def problems(self, record: Problems) -> None:
        self._take(lambda sink: sink.problems(record))

    def flush(self, number: int) -> None:
        self._each(lambda sink: sink.flush(number))

    def close(self, status: str) -> None:
        self._each(lambda sink: sink.close(status))
        self._sinks = {}

    def _take(self, call: Callable[[Sink], None]) -> None:
        if self.muted:
            return
        if self._sinks is None:
            self._waiting.append(call)
        else:
            self._each(call)

    def _each(self, call: Callable[[Sink], None]) -> None:
        for name, sink in list((self._sinks or {}).items()):
            try:
                call(sink)
            except Exception as error:
                self._failed(name, error)

    def _failed(self, name: str, error: Exception) -> None:
        self._count[name] = self._count.get(name, 0) + 1
        self.faults[f"sink {name}"] = f"{type(error).__name__}: {in_a_line(error)}"
        if self._count[name] >= _MOST_FAULTS and self._sinks is not None:
            self._sinks.pop(name, None)
