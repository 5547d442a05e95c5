"""Stalls: trainings in which no step comes any more, though one is due and the thread that trains does nothing.

A thread of its own looks, since whatever holds up the training may hold up the drain as well, which reads the device on
which a collective hangs. This one reads no device, only what the drain has seen.

A sign of life is a step, or processor time of the training thread: a loop's own validation computes, what hangs in a
collective, a lock or a read waits. Time in which this thread itself did not run does not count: then the process was
stopped, the machine slept, or something kept the interpreter's lock, of which delivery tells (`journal.pulse`).

Of several workers the chief asks the others where they are: those that wait for another one are in TensorFlow.
"""

from __future__ import annotations

import contextlib
import dis
import faulthandler
import functools
import itertools
import os
import re
import statistics
import sys
import sysconfig
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType

import psutil

from mlflow_tfmon import cluster
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
_IN_TENSORFLOW = re.compile(r"[\\/]tensorflow[\\/]python[\\/]eager[\\/](?:execute|context)\.py$")
_STEPS_CAME = "steps came again"
_ANSWER = 5.0  # s in which another worker answers; it looks as often as this one
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
        system: takes figures of the machine, by name (the recording's).
    """

    def __init__(
        self,
        rings: Callable[[], Sequence[Ring]],
        step: Callable[[], int],
        append: Callable[..., None],
        folder: Path,
        system: Callable[[Mapping[str, float]], None] = lambda _: None,
    ) -> None:
        self.paused = False
        self._rings = rings
        self._step = step
        self._append = append
        self._folder = folder
        self._system = system
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
        self._asks = False  # whether the other workers are to be asked

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
        self._look(seconds)
        if self._asks:  # without the lock, for which the training may wait
            self._asks = False
            with contained("asking the other workers where they are", "it is not said who stopped"):
                self._tell_who_stopped()

    def _look(self, seconds: float) -> None:
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
                self._lives(_STEPS_CAME if made else "the training went on")
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

    def failed(self, error: str) -> None:
        """The training has ended with an error, which may be that of a worker that has died."""
        with contained("looking for workers that have died", "the problems do not name them"):
            if gone := cluster.gone(error):
                self._system({f"worker_{worker}/stopped_s": self._without for worker in gone})

    def close(self) -> None:
        """Looks no more."""
        _watched.discard(self)
        with self._lock:
            self._closed = True
            pulse.stop(self._folder)

    def _lives(self, why: str) -> None:
        self._silent, self._worked = 0.0, None
        if self._since is not None:
            seconds = time.time() - self._since
            text = f"no longer: {why}, after {seconds:.0f} s"
            self._since = None
            said = f"the training goes on: {why}" if why == _STEPS_CAME else why
            logger.info("mlflow_tfmon: %s after %.0f s.", said, seconds)
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
            out.append(
                records.Text(STACKS, f"{text}\nthread that trains: {threads}\n\n{_stacks(self._folder)}")
            )
        logger.warning("mlflow_tfmon: the training has stalled %s; its stacks are in %s.", text, STACKS)
        self._append(*out)
        self._asks = True

    def _tell_who_stopped(self) -> None:
        """Records which workers do not wait for the others, and the stacks of all."""
        since, rings, place = self._since, self._rings(), cluster.place()
        if since is None or place is None or place.count == 1 or not rings:
            return
        answers = [f"{_where(rings[0].thread)}\n{_stacks(self._folder)}", *_answers(place.count)]
        heads = [one.partition("\n")[0] for one in answers]
        stopped = [worker for worker, head in enumerate(heads) if head != _WAITS]
        told = ", ".join(f"worker {worker} {head}" for worker, head in enumerate(heads))
        logger.warning("mlflow_tfmon: where the workers are: %s.", told)
        text = "\n\n".join(f"worker {worker} {one}" for worker, one in enumerate(answers))
        self._append(records.Text(STACKS, text))
        if 0 < len(stopped) < place.count:
            self._system({f"worker_{worker}/stopped_s": time.time() - since for worker in stopped})

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


def _stacks(folder: Path | None = None) -> str:
    """Where each thread is: names of files and functions, and numbers of lines."""
    with tempfile.TemporaryFile(dir=folder) as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode("utf-8", "replace")


_WAITS = "waits in TensorFlow"


def _where(thread: int) -> str:
    """Where a thread that trains is, in a clause."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "has left the thread that trained"
    if _IN_TENSORFLOW.search(frame.f_code.co_filename):
        return _WAITS
    return f"is in {frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"


_questions = itertools.count()
_calls = threading.Lock()  # of what calls TensorFlow


def _answers(count: int) -> list[str]:
    """Where the other workers are, each with its stacks after the first line."""
    question, told = f"stalled/{next(_questions)}", []
    until = time.monotonic() + _ANSWER
    with _calls:
        cluster.send(question, b"?")
        for at in range(1, count):
            told.append(cluster.receive(f"{question}/{at}", max(0.001, until - time.monotonic())))
    return ["does not answer" if one is None else one.decode("utf-8", "replace") for one in told]


class Answers:
    """What tells the chief where this worker is, whenever it asks: also after a training that ended here alone.

    Attributes:
        thread: that trains; of several trainings, the last one's.

    Args:
        thread: that trains.
        worker: the number of this worker.
    """

    def __init__(self, thread: int, worker: int) -> None:
        self.thread, self._worker, self._next = thread, worker, 0

    def watch(self) -> None:
        """Answers from now on."""
        _watched.add(self)
        _keep_looking()

    def look(self, seconds: float) -> None:
        """Answers, if it was asked."""
        question = f"stalled/{self._next}"
        with _calls:
            if cluster.receive(question, 0.001) is not None:
                self._next += 1
                cluster.send(f"{question}/{self._worker}", f"{_where(self.thread)}\n{_stacks()}".encode())


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


_watched: set[Stall | Answers] = set()
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


def stop() -> None:
    """Asks and answers no more: the interpreter must not go while a thread is inside TensorFlow."""
    _calls.acquire(timeout=2 * _ANSWER)


def _forked() -> None:
    """In a forked child: what its parent watches is none of its own."""
    global _thread, _lock, _calls
    _watched.clear()
    _thread, _lock, _calls = None, threading.Lock(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
