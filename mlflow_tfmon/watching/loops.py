"""Custom loops under `autolog()`: a monitor for any training outside of `fit`, without a line in the loop."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from mlflow_tfmon import probes
from mlflow_tfmon.errors import contained, logger
from mlflow_tfmon.probes import hooks
from mlflow_tfmon.probes.hooks import mlflow as mlflow_hooks
from mlflow_tfmon.settings import autolog_settings
from mlflow_tfmon.stream.ring import Ring
from mlflow_tfmon.tracking import runs
from mlflow_tfmon.watching import claims, pipeline, resuming
from mlflow_tfmon.watching.actions import say_what_loops_lack
from mlflow_tfmon.watching.monitor import Monitor
from mlflow_tfmon.watching.user_messages import say_what_was_not_seen

_loops: dict[int, Monitor] = {}  # the loop that each thread is in, by the thread's id
_lock = threading.RLock()
_adopting: set[int] = set()  # threads that are just making a run for a loop
_waiting: weakref.WeakKeyDictionary[Ring, float] = (
    weakref.WeakKeyDictionary()
)  # since when steps wait for a run
_inherited: weakref.WeakSet[Ring] = weakref.WeakSet()  # of a parent that forked, which takes what is in them
_MAX_WAIT_S = 0.5  # s; a run that is being ended is no longer active a moment before it takes its last steps


def begin() -> None:
    """Monitors custom loops from now on."""
    if _adopt in claims.unclaimed:
        return
    for ring in probes.all_rings():
        if not pipeline.DRAIN.has(ring):
            ring.taken = ring.written()
    claims.unclaimed.append(_adopt)
    pipeline.on_look.append(_look_for_old_rings)
    pipeline.on_run_end.append(_run_ends)
    pipeline.on_exit += [_settle, say_what_was_not_seen]
    hooks.put_in([mlflow_hooks.run_starts(watch_run_start)])
    pipeline.DRAIN.keep_running()


def stop() -> None:
    """Stops monitoring custom loops; their recordings are ended."""
    for told in (claims.unclaimed, pipeline.on_look, pipeline.on_run_end, pipeline.on_exit):
        told.clear()
    for thread in list(_loops):
        _end(thread)


def end_run() -> None:
    """Ends the run that autologging created for this thread's custom loop, and waits a little for its delivery.

    Such a run also ends with the script or when another training begins. Does nothing if there is none.

    Example:
        ```python
        mlflow_tfmon.end_run()
        ```
    """
    thread = threading.get_ident()
    if _adopt in claims.unclaimed:
        _settle(thread)
    loop = _loops.get(thread)
    if loop is not None and loop.owns_run:
        _end(thread)


def watch_run_start(original: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps `ActiveRun.__init__`: what this thread has trained before a run becomes active is not that run's."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        thread = threading.get_ident()
        if thread not in _adopting:
            with contained("ending a loop's part in a run", "some steps may be recorded in the wrong run"):
                _settle(thread)
                if thread in _loops:
                    _end(thread)
        original(self, *args, **kwargs)

    return __init__


def _run_ends(run_id: str) -> None:
    """The user ends a run: it takes what this thread has trained, and its loops are over."""
    if runs.last_active_id() == run_id:
        _look_for_old_rings(ended_run=run_id)
    for thread, loop in list(_loops.items()):
        if loop.for_run == run_id:
            _end(thread)


def _adopt(ring: Ring, ended_run: str | None = None) -> None:
    """A ring that no monitor claims: a custom loop begins, or goes on with a further optimizer."""
    if runs.autologging(runs.INTEGRATION, "disable", False):
        return
    with _lock:
        active = ended_run or runs.active_id(ring.thread)
        if active is not None and runs.autologging(runs.INTEGRATION, "exclusive", False):
            return
        loop = _loops.get(ring.thread)
        if loop is not None and not _goes_on(loop, ring, active):
            _end(ring.thread)
            loop = None
        if loop is None:
            loop = Monitor.with_settings(None, autolog_settings(), run_id=ended_run)
            _adopting.add(threading.get_ident())
            try:
                loop.start(stay_active=False, thread=ring.thread, bar=False)
            finally:
                _adopting.discard(threading.get_ident())
            if not loop.on:
                stop()  # it has been said why; trying again with each look would make run after run
                return
            _loops[ring.thread] = loop
            resuming.say_of_loop(loop.settings.resume)
            say_what_loops_lack(loop.settings.on_problem, can_ask=False)
            if loop.owns_run:
                logger.info(
                    "mlflow_tfmon: %s for this training loop; it ends with the script, with the next training or with "
                    "mlflow_tfmon.end_run(). To log your own metrics to it, train within mlflow.start_run().",
                    f"created run {loop.run_id}" if loop.run_id else "a run will be created",
                )
        loop.attach(ring)


def _goes_on(loop: Monitor, ring: Ring, active: str | None) -> bool:
    """Whether a ring belongs to the loop that is on, rather than to another training."""
    if not loop.owns_run:
        return active == loop.for_run
    if active is not None:
        return False
    # A GAN's second optimizer comes in the first steps; the same variables under a new optimizer are fine-tuning.
    return loop.begins() or loop.trains(ring.layout.keys)


def _look_for_old_rings(ended_run: str | None = None) -> None:
    """Finds loops whose step was traced for an earlier run: no new ring tells of them.

    Args:
        ended_run: a run that this thread is just ending, which takes what this thread has trained meanwhile.
    """
    for ring in _unheard():
        if ended_run is not None:
            if ring.thread == threading.get_ident():
                _take_up(ring, ended_run)
            continue
        waited = time.monotonic() - _waiting.setdefault(ring, time.monotonic())
        # While a nested run is being ended, the one around it is the active one: its turn comes a moment later.
        if waited > (_MAX_WAIT_S if runs.active_id(ring.thread) is None else _MAX_WAIT_S / 5):
            _take_up(ring)


def _settle(thread: int | None = None) -> None:
    """Takes at once what was trained (by a thread) and waits for a run."""
    for ring in _unheard():
        if thread in (None, ring.thread):
            _take_up(ring)


def _take_up(ring: Ring, ended_run: str | None = None) -> None:
    """Adopts a ring, unless another thread has done so meanwhile: its loop may be over again."""
    with _lock:
        if not _is_heard(ring):
            _adopt(ring, ended_run)


def _unheard() -> list[Ring]:
    """The rings with steps that nobody records."""
    found = []
    for ring in probes.all_rings():
        if ring in _inherited:  # not when it forked: to ask TensorFlow then may hang
            _inherited.discard(ring)
            ring.taken = ring.written()
        if _is_heard(ring):
            _waiting.pop(ring, None)
        else:
            found.append(ring)
    return found


def _is_heard(ring: Ring) -> bool:
    """Whether a ring has no steps that nobody records."""
    return pipeline.DRAIN.has(ring) or ring.written() <= ring.taken


def _end(thread: int) -> None:
    loop = _loops.pop(thread, None)
    if loop is not None:
        loop.end()


def _forked() -> None:
    """In a forked child: the loops are its parent's."""
    _lock._at_fork_reinit()  # type: ignore[attr-defined]  # Python 3.9 to 3.13
    _loops.clear()
    _adopting.clear()
    _inherited.update(probes.all_rings())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
