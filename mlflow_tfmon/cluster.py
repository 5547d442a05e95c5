"""Workers of a `MultiWorkerMirroredStrategy`: this process's place among them, and messages between them.

Messages go through TensorFlow's coordination service, not through collectives in the graph: an all-reduce of one scalar
costs 4 ms a step (two workers on one machine), and would wait forever for a worker without monitoring.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from mlflow_tfmon.internals import internal

_KEY = "mlflow_tfmon/"
_TASK = r"/job:(\w+)/replica:\d+/task:(\d+)"
_WORKERS = "tensorflow.python.distribute.multi_worker_util"
_ALONE = "each worker of a MultiWorkerMirroredStrategy is recorded as if it trained alone"


@dataclass(frozen=True)
class Place:
    """A process's place among the workers.

    Attributes:
        index: number of the worker, from 0, which is the chief.
        count: how many workers there are.
    """

    index: int
    count: int


def place() -> Place | None:
    """Returns this process's place in its cluster; None if there is none, or no strategy was created yet."""
    context, workers = _context(), internal(_WORKERS, None, _ALONE)
    server = getattr(context, "_collective_ops_server_def", None)  # TF 2.16 to 2.21
    if workers is None or server is None or context.coordination_service is None:
        return None
    task = (server.cluster, server.job_name, server.task_index)
    return Place(workers.id_in_cluster(*task), workers.worker_count(*task[:2]))


def gone(error: str) -> list[int]:
    """The workers that have died, as far as the error tells with which TensorFlow ends the others (2.21)."""
    context, workers = _context(), internal(_WORKERS, None, _ALONE)
    server = getattr(context, "_collective_ops_server_def", None)
    told = re.search(rf"(?:stopped sending heartbeats\):|remote target)((?:\s*{_TASK})+)", error)
    if told is None or workers is None or server is None:
        return []
    return [workers.id_in_cluster(server.cluster, job, int(at)) for job, at in re.findall(_TASK, told[1])]


def follows() -> bool:
    """Whether this process is a worker that is not the chief: if no strategy was created yet, by `TF_CONFIG`."""
    known = place()
    if known is not None:
        return known.index > 0
    with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
        config = json.loads(os.environ.get("TF_CONFIG", "{}"))
        kind, index = config["task"]["type"], int(config["task"]["index"])
        return bool(kind == "worker" and ("chief" in config["cluster"] or index > 0))
    return False


def _context() -> Any:
    context = internal("tensorflow.python.eager.context.context", None, _ALONE)
    return None if context is None else context()


def send(key: str, data: bytes) -> bool:
    """Posts a message for whoever asks for it; returns whether that succeeded."""
    try:
        _context().set_config_key_value(_KEY + key, base64.b64encode(data).decode())
    except tf.errors.OpError:  # the chief is gone
        return False
    return True


def receive(key: str, seconds: float) -> bytes | None:
    """Returns a message, or None if it does not arrive in time (waits without the interpreter's lock)."""
    try:
        return base64.b64decode(_context().get_config_key_value(_KEY + key, int(1e3 * seconds)))
    except tf.errors.OpError:
        return None


def forget(key: str) -> None:
    """Deletes a message that was received."""
    try:
        _context().delete_config_key_value(_KEY + key)
    except tf.errors.OpError:
        return
