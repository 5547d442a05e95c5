"""Stalls: trainings in which no step comes any more, though one is due and the thread that trains does nothing.

A thread of its own looks, since whatever holds up the training may hold up the drain as well, which reads the device on
which a collective hangs. This one reads no device, only what the drain has seen.

A sign of life is a step, or processor time of the training thread: a loop's own validation computes, what hangs in a
collective, a lock or a read waits. Time in which this thread itself did not run does not count: then the process was
stopped, the machine slept, or something kept the interpreter's lock, of which delivery tells (`journal.pulse`).
"""

from __future__ import annotations

import contextlib
import dis
import faulthandler
import functools
import os
import re
import statistics
import sys
import sysconfig
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import CodeType

import psutil

from mlflow_tfmon.errors import contained, logger
from mlflow_tfmon.journal import pulse
from mlflow_tfmon.stream import records
from mlflow_tfmon.stream.ring import Ring
from mlflow_tfmon.tags import STALLED_TAG
from mlflow_tfmon.tracking.names import STACKS

# Without a sign of life for so long, a training has stalled, whichever is longest: s; times the usual time of a step;
# times the longest such time after which steps came by themselves (a shuffle buffer that fills as an epoch begins).
_LEAST, _STEP_TIMES, _LONGEST_TIMES = 30.0, 20, 1.5
_FEWEST = 5  # steps, before which no time is usual
_RECENT = 20  # looks with steps, of which the median is usual
_LOOK = 1.0  # s between two looks
# Code that is not the user's: of packages, of the standard library, of this package, wherever that is.
_OTHERS = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), str(Path(__file__).parents[1]))
_INSTALLED = re.compile(
    rf"[\\/](?:site|dist)-packages[\\/]|^<frozen |^(?:{'|'.join(map(re.escape, _OTHERS))})[\\/]"
)
_KERAS = re.compile(r"[\\/](?:keras|tf_keras)[\\/]src[\\/]")
_WORKS = 0.05  # s of processor time, in the second half of the time above, that are a sign of life


class Stall:
    """Whether the training of one run has stalled; what there is to say of it is recorded.

    Attributes:
        paused: whether no step is due: validation, a checkpoint, the end of an epoch.

    Args:
        rings: gives those into which the training writes its steps; none when it is over.
        step: gives the number of its last step.
        append: takes records (the recording's).
        folder: of the recording.
    """

    def __init__(
        self,
        rings: Callable[[], Sequence[Ring]],
        step: Callable[[], int],
        append: Callable[..., None],
        folder: Path,
    ) -> None:
        self.paused = False
        self._rings = rings
        self._step = step
        self._append = append
        self._folder = folder
        self._lock = threading.Lock()
        self._closed = False
        self._seen: dict[int, int] = {}  # steps of each ring
        self._steps = 0
        self._without = 0.0  # s since the last step
        self._silent = 0.0  # s since the last sign of life
        self._longest = 0.0  # s of silence that a step ended
        self._usual: deque[float] = deque(maxlen=_RECENT)  # s a step
        self._worked: float | None = None  # s of processor time by the middle of a silence
        self._loops: dict[int, tuple[CodeType, range]] = {}  # the outermost in which steps came, by thread
        self._since: float | None = None  # Unix time at which it stalled

    def watch(self) -> None:
        """Looks from now on, until `close`."""
        self._closed = False
        _watched.add(self)
        _keep_looking()

    def look(self, seconds: float) -> None:
        """Looks for steps.

        Args:
            seconds: since the last look, in which this process ran.
        """
        with self._lock:
            if self._closed:
                return
            rings = list(self._rings())
            seen = {id(ring): ring.seen for ring in rings}
            made = sum(max(0, count - self._seen.get(ring, count)) for ring, count in seen.items())
            other, self._seen = seen.keys() != self._seen.keys(), seen
            self._without += seconds
            self._silent += seconds
            if made:
                self._usual.append(self._without / made)
                self._steps += made
                self._without = 0.0
                self._longest = max(self._longest, self._silent)
                for thread in self._threads():
                    self._remember_loop(thread)
            if other:  # of another training nothing is usual yet
                self._steps = 0
            if made or other or self.paused or not rings:
                self._lives("steps came again" if made else "the training went on")
            elif self._since is None and self._is_silent():
                self._say()
            if self._steps >= _FEWEST and rings and not self.paused:
                pulse.beat(self._folder)
            else:
                pulse.stop(self._folder)

    def ended(self, over: bool) -> None:
        """A training has ended.

        Args:
            over: whether it has come to its end, and was not stopped where it stood.
        """
        with self._lock:
            if not over:
                self._since = None  # what was said of it stays
            self._lives("the training is over")

    def close(self) -> None:
        """Looks no more."""
        _watched.discard(self)
        with self._lock:
            self._closed = True
            pulse.stop(self._folder)

    def _lives(self, why: str) -> None:
        self._silent, self._worked = 0.0, None
        if self._since is not None:
            text = f"no longer: {why}, after {time.time() - self._since:.0f} s"
            self._since = None
            logger.info("mlflow_tfmon: the training is stalled %s.", text)
            self._append(records.Facts(tags={STALLED_TAG: text}, time=time.time()))

    def _is_silent(self) -> bool:
        if self._steps < _FEWEST:
            return False
        bound = max(_LEAST, _STEP_TIMES * statistics.median(self._usual), _LONGEST_TIMES * self._longest)
        if self._silent >= bound / 2 and self._worked is None:
            self._worked = _processor_time(self._threads())
        if self._silent < bound or self._worked is None:
            return False
        worked = _processor_time(self._threads())
        if worked is None or worked - self._worked >= _WORKS or self._is_over():
            self._silent, self._worked = 0.0, None
            return False
        return True

    def _remember_loop(self, thread: int) -> None:
        for code, at in _users_own(thread):
            around = [loop for loop in _loops_of(code) if at in loop]
            if around:
                self._loops[thread] = code, max(around, key=len)
                return

    def _say(self) -> None:
        now = time.time()
        self._since = now - self._without
        begun = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self._since))
        text = (
            f"since {begun}, after step {self._step()}: no step for {self._without:.0f} s (usual: "
            f"{statistics.median(self._usual):.3g} s)"
        )
        out: list[records.Record] = [records.Facts(tags={STALLED_TAG: text}, time=now)]
        with contained("reading the stacks of a stalled training", "they are not recorded"):
            threads = ", ".join(f"0x{ring.thread:016x}" for ring in self._rings())
            out.append(records.Text(STACKS, f"{text}\nthread that trains: {threads}\n\n{self._stacks()}"))
        logger.warning("mlflow_tfmon: the training has stalled %s; its stacks are in %s.", text, STACKS)
        self._append(*out)

    def _stacks(self) -> str:
        """Where each thread is: names of files and functions, and numbers of lines."""
        with tempfile.TemporaryFile(dir=self._folder) as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            return file.read().decode("utf-8", "replace")

    def _is_over(self) -> bool:
        """Whether no thread that trains is in a `fit`, or in the loop in which steps came last: nobody may tell."""
        return not any(
            _is_in_fit(thread)
            or any(
                code is self._loops.get(thread, (None,))[0] and at in self._loops[thread][1]
                for code, at in _users_own(thread)
            )
            for thread in self._threads()
        )

    def _threads(self) -> set[int]:
        return {ring.thread for ring in self._rings()}


def _is_in_fit(thread: int) -> bool:
    """Whether a thread is in Keras's `fit`."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code.co_name == "fit" and _KERAS.search(frame.f_code.co_filename):
            return True
        frame = frame.f_back
    return False


def _users_own(thread: int) -> Iterator[tuple[CodeType, int]]:
    """Where a thread is in code that is in no installed package: outermost first."""
    frame = sys._current_frames().get(thread)
    found = []
    while frame is not None:
        if not _INSTALLED.search(frame.f_code.co_filename):
            found.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return reversed(found)


@functools.lru_cache(maxsize=256)
def _loops_of(code: CodeType) -> tuple[range, ...]:
    """The loops of a function, by the offsets of their instructions (Python 3.10 to 3.13)."""
    jumps = (one for one in dis.get_instructions(code) if "JUMP" in one.opname)
    return tuple(range(one.argval, one.offset + 2) for one in jumps if one.argval < one.offset)


def _processor_time(threads: set[int]) -> float | None:
    """Of these threads, in seconds; None where the system does not tell: then nothing is said."""
    own = {thread.native_id for thread in threading.enumerate() if thread.ident in threads}
    if not own:
        return None
    with contextlib.suppress(psutil.Error, OSError):
        return sum(one.user_time + one.system_time for one in psutil.Process().threads() if one.id in own)
    return None


_watched: set[Stall] = set()
_thread: threading.Thread | None = None
_lock = threading.Lock()


def _keep_looking() -> None:
    global _thread
    with _lock:
        if _thread is None or not _thread.is_alive():
            thread = threading.Thread(target=_run, name="mlflow_tfmon-stalls", daemon=True)
            with contained("starting a thread", "a training that stalls is not seen"):
                thread.start()
                _thread = thread


def _run() -> None:
    global _thread
    last = time.monotonic()  # which stands while the machine sleeps
    while True:
        time.sleep(_LOOK)
        now = time.monotonic()
        ran, last = min(now - last, 2 * _LOOK), now
        for stall in list(_watched):
            with contained("looking for a stall", "a training that stalls may not be seen"):
                stall.look(ran)
        with _lock:
            if not _watched:
                _thread = None
                return


def _forked() -> None:
    """In a forked child: what its parent watches is none of its own."""
    global _thread, _lock
    _watched.clear()
    _thread, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
