"""Custom loops under `autolog()`: a monitor for whatever is trained outside of `fit`, without a line in the loop."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from mlflow.utils.autologging_utils import autologging_is_disabled, get_autologging_config

from mlflow_tfmon import monitor as monitors
from mlflow_tfmon import pipeline, probes
from mlflow_tfmon.errors import contained, logger
from mlflow_tfmon.monitor import Monitor
from mlflow_tfmon.stream.ring import Ring
from mlflow_tfmon.tracking import runs

_loops: dict[int, Monitor] = {}  # the loop that each thread is in, by the thread's id
_lock = threading.RLock()
_waiting: weakref.WeakKeyDictionary[Ring, float] = (
    weakref.WeakKeyDictionary()
)  # since when steps wait for a run
_PATIENCE = 0.5  # s; a run that is being ended is no longer active a moment before it takes its last steps


def begin() -> None:
    """From now on custom loops are watched."""
    for ring in probes.all_rings():
        ring.taken = ring.written()
    monitors.unclaimed[:] = [_adopt]
    pipeline.on_look[:] = [_look_for_old_rings]
    pipeline.DRAIN.keep_running()


def stop() -> None:
    """Custom loops are watched no longer; what was recorded is brought to its end."""
    monitors.unclaimed.clear()
    pipeline.on_look.clear()
    for thread in list(_loops):
        _end(thread)


def end_run() -> None:
    """Ends the run that autologging made for this thread's custom loop, and waits a little for its delivery.

    Such a run ends by itself with the script or when another training begins. Does nothing if there is none.

    Example:
        ```python
        mlflow_tfmon.end_run()
        ```
    """
    loop = _loops.get(threading.get_ident())
    if loop is not None and loop.owns_run:
        _end(threading.get_ident())


def watch_run_end(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `MlflowClient.set_terminated`: a run that the user ends first gets what was measured for it.

    The rows still in a ring are the ended run's; a moment later they would be taken for the next run's.
    """

    def set_terminated(self: Any, run_id: str, *args: Any, **kwargs: Any) -> Any:
        with contained("closing the recording of a run", "its last steps may be missing"):
            if runs.last_active_id() == run_id:
                _look_for_old_rings(ended_run=run_id)
            for thread, loop in list(_loops.items()):
                if loop.run_id == run_id:
                    _end(thread)
            open_pipeline = pipeline.of_run(run_id)
            if open_pipeline is not None:
                open_pipeline.close("FINISHED")
        return original(self, run_id, *args, **kwargs)

    return set_terminated


def _adopt(ring: Ring, ended_run: str | None = None) -> None:
    """A ring that no monitor claims: a custom loop begins, or goes on with a further optimizer."""
    if autologging_is_disabled(runs.INTEGRATION):
        return
    with _lock:
        active = ended_run or runs.active_id(ring.thread)
        if active is not None and get_autologging_config(runs.INTEGRATION, "exclusive", False):
            return
        loop = _loops.get(ring.thread)
        if loop is not None and not _goes_on(loop, ring, active):
            _end(ring.thread)
            loop = None
        if loop is None:
            loop = Monitor.with_settings(None, monitors.autolog_settings(), run_id=ended_run)
            if not loop.start(stay_active=False, thread=ring.thread).on:
                stop()  # it has been said why; trying again with each look would make run after run
                return
            _loops[ring.thread] = loop
            if loop.owns_run:
                logger.info(
                    "mlflow_tfmon: made run %s for this training loop; it ends with the script, with the next training "
                    "or by mlflow_tfmon.end_run(). To log figures of your own to it, train within mlflow.start_run().",
                    loop.run_id,
                )
        loop.attach(ring)


def _goes_on(loop: Monitor, ring: Ring, active: str | None) -> bool:
    """Whether a ring belongs to the loop that is on, rather than to another training."""
    if not loop.owns_run:
        return active == loop.run_id
    if active is not None:
        return False
    # A GAN's second optimizer comes in the first step; the same variables under a new optimizer are fine-tuning.
    return loop.steps() <= 1 or loop.trains(ring.layout.keys)


def _look_for_old_rings(ended_run: str | None = None) -> None:
    """Finds loops whose step was traced for an earlier run: no new ring tells of them.

    Args:
        ended_run: a run that this thread is just ending, which takes what this thread has trained meanwhile.
    """
    for ring in probes.all_rings():
        if ended_run is not None and ring.thread != threading.get_ident():
            continue
        if pipeline.DRAIN.has(ring) or monitors.claimant(ring) is not None or ring.written() <= ring.taken:
            _waiting.pop(ring, None)
        elif ended_run is not None or runs.active_id(ring.thread) is not None:
            _adopt(ring, ended_run)
        elif time.monotonic() - _waiting.setdefault(ring, time.monotonic()) > _PATIENCE:
            _adopt(ring)


def _end(thread: int) -> None:
    loop = _loops.pop(thread, None)
    if loop is not None:
        loop.end()
