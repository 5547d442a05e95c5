"""Who is told of a new problem: a function of the user's, and whoever listens at a URL."""

from __future__ import annotations

import dataclasses
import json
import math
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from mlflow_tfmon.detectors import Problem
from mlflow_tfmon.errors import say_once
from mlflow_tfmon.settings import Settings

_TIMEOUT = 10.0  # s for an answer
_PAUSES = (0.0, 2.0, 8.0)  # s before each try


def of(settings: Settings, run_id: str | None, run_name: str | None) -> list[Callable[[Problem], None]]:
    """What to call with each new problem; none of these waits or raises."""
    found: list[Callable[[Problem], None]] = []
    if callable(settings.on_problem):
        found.append(_users_own(settings.on_problem))
    if settings.alert_url is not None:
        url = settings.alert_url

        def alert(problem: Problem) -> None:
            about = {"run_id": run_id, "run_name": run_name, "problem": dataclasses.asdict(problem)}
            # No daemon: the last problem of a script is told as well, before the interpreter ends.
            threading.Thread(target=post, args=(url, about), name="mlflow_tfmon-alert").start()

        found.append(alert)
    return found


def post(url: str, about: dict[str, Any]) -> bool:
    """Posts JSON, three times at most; returns whether it was taken. A failure is said once."""
    body = json.dumps(_finite(about)).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method="POST")
    reason = ""
    for pause in _PAUSES:
        time.sleep(pause)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT):
                return True
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
    host = url.split("/")[2].rpartition("@")[2]  # the rest may be a secret
    say_once(f"alert {host}", f"mlflow_tfmon: {host} took no alert ({reason}); see that alert_url is right.")
    return False


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _users_own(function: Callable[[Problem], Any]) -> Callable[[Problem], None]:
    def call(problem: Problem) -> None:
        try:
            function(problem)
        except Exception as error:  # the user's error, said as such
            say_once(
                f"on_problem {function!r}",
                f"mlflow_tfmon: the function given as on_problem failed ({type(error).__name__}: {error}); the "
                f"training "
                "goes on.",
            )

    return call
