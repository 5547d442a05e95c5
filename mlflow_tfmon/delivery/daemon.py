"""Start of the delivery process, such that it outlives whoever started it; and the packages it imports.

It is detached, in its own session: whatever kills the trainer's process group, its session or its children (a shell, a
supervisor, a Ray worker's end) does not affect it, and a script that waits for all its children does not wait for it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# These are there before any path is searched. A signal to all processes finds this one deaf until it knows what to do.
_BOOT = """
import _signal, os, sys
for number in (_signal.SIGINT, _signal.SIGHUP, _signal.SIGTERM):
    _signal.signal(number, _signal.SIG_IGN)
if os.fork():
    os._exit(0)
sys.path[:] = sys.argv[3:]
from mlflow_tfmon.delivery import main
main.start(int(sys.argv[1]), int(sys.argv[2]))
"""
_POLL_SECONDS = 0.02


class Daemon:
    """A started delivery process, which gets commands through a pipe and ends with it.

    Raises:
        OSError: it could not be started.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        ends, mine = os.pipe()
        alive, its = os.pipe()
        trainer = _pidfd()
        handles = [alive, mine]
        try:
            self._starter = subprocess.Popen(
                [sys.executable, *_flags(), "-c", _BOOT, str(os.getpid()), str(trainer), *search_path(sys.path)],
                stdin=ends, stdout=its, env=_environment(environment), start_new_session=True,
                pass_fds=[trainer] if trainer >= 0 else [],
            )  # fmt: skip
        except BaseException:
            for handle in handles:
                os.close(handle)
            raise
        finally:
            for handle in (ends, its, *([trainer] if trainer >= 0 else [])):
                os.close(handle)
        os.set_blocking(alive, False)
        self._alive: int | None = alive
        self._told: int | None = mine
        self._said = b""
        self._lock = threading.Lock()

    def is_alive(self) -> bool:
        """Whether it runs."""
        self._starter.poll()  # whose end is soon, and is nobody else's to see
        with self._lock:
            while self._alive is not None:
                try:
                    said = os.read(self._alive, 64)
                except BlockingIOError:
                    return True
                self._said += said
                if not said:
                    os.close(self._alive)
                    self._alive = None
        return False

    def pid(self, timeout: float = 60.0) -> int:
        """Its process id, once it has started.

        Raises:
            OSError: it has ended, or not started in time (seconds).
        """
        until = time.monotonic() + timeout
        while self.is_alive() and not self._said.endswith(b"\n") and time.monotonic() < until:
            time.sleep(_POLL_SECONDS)
        if not self._said.endswith(b"\n"):
            raise OSError("the delivery process did not start")
        return int(self._said)

    def tell(self, line: bytes) -> None:
        """Sends it a command.

        Raises:
            OSError: it has ended.
        """
        while line and self._told is not None:
            line = line[os.write(self._told, line) :]

    def close(self) -> None:
        """Closes the pipe: no more commands follow."""
        if self._told is not None:
            with contextlib.suppress(OSError):
                os.close(self._told)
            self._told = None

    def wait(self, timeout: float) -> bool:
        """Waits for its end, with a time limit in seconds; returns whether it has ended."""
        until = time.monotonic() + timeout
        while self.is_alive():
            if time.monotonic() > until:
                return False
            time.sleep(_POLL_SECONDS)
        return True

    def let_go(self) -> None:
        """In a forked child: gives up the parent's pipes, which would keep it waiting for the child's end."""
        self.close()
        if self._alive is not None:
            with contextlib.suppress(OSError):
                os.close(self._alive)
            self._alive = None


def search_path(given: Sequence[object], here: str | None = None) -> list[str]:
    """Where the delivery process looks for modules: where the trainer does, in an order in which nothing takes a place.

    The standard library comes first, and the working directory last, though the trainer has it first: a `types.py` or
    `requests.py` there is the user's own, and no part of what MLflow imports.

    Args:
        given: the trainer's `sys.path`.
        here: the working directory; default: this one.

    Example:
        >>> search_path(["", "/opt/app.pyz"], "/home/ann")[:2]
        ['/opt/app.pyz', '/home/ann']
    """
    here = here or os.getcwd()
    places = [os.path.join(here, one) for one in given if isinstance(one, str)]
    places = [here if os.path.realpath(one) == os.path.realpath(here) else one for one in places]
    standard = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib")}
    standard |= {os.path.join(one, "lib-dynload") for one in standard}
    relative = {os.path.join(here, str(one)) for one in given if not os.path.isabs(str(one))}
    places.append(str(Path(__file__).parents[2]))
    ranked = sorted(
        places, key=lambda one: 0 if one in standard else 2 if one == here or one in relative else 1
    )
    return list(dict.fromkeys(ranked))


def _flags() -> list[str]:
    """Returns the interpreter flags of the trainer that affect imports."""
    flags = ["-Xutf8"]  # whatever the locale: libraries take a path's text for UTF-8
    flags += ["-P"] * (sys.version_info >= (3, 11))
    flags += ["-E"] * sys.flags.ignore_environment + ["-s"] * sys.flags.no_user_site
    return flags


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """Returns the trainer's environment, without its devices."""
    changed = {
        **ours,
        "CUDA_VISIBLE_DEVICES": "",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    # Python itself reads it, before `_BOOT` sets the path: what it says of the working directory is left out.
    paths = [one for one in ours.get("PYTHONPATH", "").split(os.pathsep) if os.path.isabs(one)]
    changed["PYTHONPATH"] = os.pathsep.join(
        one for one in paths if os.path.realpath(one) != os.path.realpath(os.curdir)
    )
    return changed


def as_it_reads(text: str) -> str:
    """The name of a file, or what is in the environment, as the delivery process reads it: as UTF-8."""
    return os.fsencode(text).decode("utf-8", "surrogateescape")


def _pidfd() -> int:
    """What tells of this process's end, for certain, to whoever has it; -1 where the system has no such thing."""
    try:
        return os.pidfd_open(os.getpid())
    except (AttributeError, OSError):  # not Linux; before 5.3; gVisor
        return -1
