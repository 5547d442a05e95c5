"""Writer and reader of event files, by TensorBoard's own protocol and reader, without importing TensorFlow."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np


class NoTensorBoardError(ImportError):
    """TensorBoard is not installed; the message says how to install it."""


def need_tensorboard() -> None:
    """Raises `NoTensorBoardError` if TensorBoard is not installed."""
    try:
        import tensorboard.compat.proto.event_pb2  # noqa: F401
    except ImportError as error:
        raise NoTensorBoardError(
            f"event files need TensorBoard ({error}): pip install 'mlflow-tfmon[tensorboard]'."
        ) from error


class EventFile:
    """A new event file.

    Args:
        folder: where it is to be; made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        need_tensorboard()
        from tensorboard.summary.writer.record_writer import RecordWriter

        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        self._file = (folder / f"events.out.tfevents.{now:.0f}.mlflow-tfmon.v2").open("wb")
        self._records = RecordWriter(self._file)
        self._write(wall_time=now, file_version="brain.Event:2")

    def __enter__(self) -> EventFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def flush(self) -> None:
        """Brings what was written to the disk."""
        self._records.flush()

    def close(self) -> None:
        """Ends the file."""
        self._records.flush()
        self._file.close()

    def scalars(self, tag: str, points: Iterable[tuple[int, float, float]]) -> None:
        """Writes a series: (step, Unix time in seconds, value); TensorBoard's scalars are float32."""
        from tensorboard.plugins.scalar.metadata import create_summary_metadata

        metadata = create_summary_metadata(display_name="", description="")
        for step, when, value in points:
            self._tensor(tag, int(step), when, np.float32(value), metadata)

    def histogram(self, tag: str, step: int, when: float, edges: np.ndarray, counts: np.ndarray) -> None:
        """Writes a histogram, bin by bin."""
        from tensorboard.plugins.histogram.metadata import create_summary_metadata

        bins = np.column_stack([edges[:-1], edges[1:], counts]).astype(np.float64)
        self._tensor(tag, step, when, bins, create_summary_metadata(display_name="", description=""))

    def model(self, as_json: str, when: float) -> None:
        """Writes a Keras model's layers, which TensorBoard shows as the conceptual graph."""
        from tensorboard.compat.proto.summary_pb2 import SummaryMetadata

        plugin = SummaryMetadata.PluginData(plugin_name="graph_keras_model", content=b"1")
        value = np.array(as_json.encode(), dtype=object)
        self._tensor("keras", 0, when, value, SummaryMetadata(plugin_data=plugin))

    def graph(self, as_text: str, when: float) -> None:
        """Writes a graph of TensorFlow's ops, given as `pbtxt`."""
        from google.protobuf import text_format
        from tensorboard.compat.proto.graph_pb2 import GraphDef

        found = text_format.Parse(as_text, GraphDef(), allow_unknown_field=True)
        self._write(wall_time=when, graph_def=found.SerializeToString())

    def _tensor(self, tag: str, step: int, when: float, value: Any, metadata: Any) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.util.tensor_util import make_tensor_proto

        one = Summary.Value(tag=tag, metadata=metadata, tensor=make_tensor_proto(value))
        self._write(wall_time=when, step=step, summary=Summary(value=[one]))

    def _write(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(**fields).SerializeToString())
