"""Global state of a process, to be compared before and after something."""

from __future__ import annotations

import copy
import decimal
import faulthandler
import gc
import locale
import logging
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings
from typing import Any

import numpy as np
import tensorflow as tf
from keras.src.backend.common import global_state
from tensorflow.python.eager import context
from tensorflow.python.ops import stateful_random_ops


def shared_state() -> dict[str, Any]:
    """All of it, by name."""
    mask = os.umask(0)
    os.umask(mask)
    eager = context.context()
    seeds = global_state.get_global_attribute("global_seed_generator")
    names = global_state.get_global_attribute("object_name_uids")
    return {
        "random": random.getstate(),
        "numpy": [np.asarray(one).tolist() for one in np.random.get_state(legacy=True)],
        "numpy's handling of errors": np.geterr(),
        "tensorflow's seed": eager._seed,
        "tensorflow's seeds of operations": None if eager._rng is None else eager._rng.getstate(),
        "tensorflow's generator": id(stateful_random_ops.global_generator),
        "keras's seeds": None if seeds is None else np.asarray(seeds.state).tolist(),
        "keras's names": dict(names or {}),
        "environment": dict(os.environ),
        "sys.path": list(sys.path),
        "sys.argv": list(sys.argv),
        "signal handlers": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "locale": locale.setlocale(locale.LC_ALL),
        "warnings filters": copy.copy(warnings.filters),
        "showwarning": warnings.showwarning,
        "root's handlers": (logging.root.level, list(logging.root.handlers), logging.root.manager.disable),
        "logging levels": {
            name: (one.level, one.disabled, one.propagate, list(one.handlers))
            for name, one in logging.root.manager.loggerDict.items()
            if isinstance(one, logging.Logger)
            and name.split(".")[0] not in ("mlflow_tfmon", "mlflow")
            and (one.level, one.disabled, one.propagate, one.handlers) != (logging.NOTSET, False, True, [])
        },  # not those as `getLogger` makes them: a library that is imported has changed none
        "tensorflow's logger": tf.get_logger().level,
        "directory": os.getcwd(),
        "umask": mask,
        "excepthooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook),
        "faulthandler": faulthandler.is_enabled(),
        "gc": (gc.isenabled(), gc.get_threshold(), gc.get_debug(), len(gc.callbacks)),
        "recursion": sys.getrecursionlimit(),
        "tempfile": tempfile.tempdir,
        "decimal": repr(decimal.getcontext()),
        "socket": socket.getdefaulttimeout(),
        "time zone": time.tzname,
        "streams": (sys.stdout, sys.stderr, sys.stdin),
        "trace": (sys.gettrace(), sys.getprofile(), threading.gettrace()),
        "switch interval": sys.getswitchinterval(),
    }


def changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What differs: by name, what is gone and what is new."""
    return {name: _parted(before[name], after[name]) for name in before if before[name] != after[name]}


def _parted(before: Any, after: Any) -> Any:
    if isinstance(before, dict):
        before, after = list(before.items()), list(after.items())
    if isinstance(before, list):
        return [one for one in before if one not in after], [one for one in after if one not in before]
    return before, after
