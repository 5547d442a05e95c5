"""Time limits of calls to a server, and the check of its answers: MLflow's own limits are minutes."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from typing import Any

from mlflow.exceptions import MlflowException

from mlflow_tfmon.internals import internal

_CLIENT = "mlflow.utils.rest_utils"
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"
LONGEST_CALL = 40  # s
_CALL, _UPLOAD = 10, 120  # s
_quick = False
_call = _CALL  # s that a call may take now


def be_quick(call: int = _CALL) -> None:
    """Makes calls to a server that does not answer fail within seconds, unless the user has set how long they take.

    So do those whose answer was cut short before its body: MLflow (3.1 to 3.17) takes it for an empty one, and would
    make a run that is there a second time, or upload files to a run whose address is empty: to the working directory.

    Args:
        call: seconds that a call may take.
    """
    global _quick, _call
    _distrust_empty_answers()
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    if _TIMEOUT not in os.environ:
        os.environ[_TIMEOUT], _quick, _call = str(call), True, call


def give_more_time(reason: str) -> None:
    """Lets calls take longer after one whose answer did not come in time: a server under load is not away.

    Args:
        reason: why a call failed.
    """
    global _call
    if _quick and "Read timed out" in reason:
        _call = min(2 * _call, LONGEST_CALL)
        os.environ[_TIMEOUT] = str(_call)


def _distrust_empty_answers() -> None:
    verify = internal(f"{_CLIENT}.verify_rest_response", None, "an answer that was cut short counts as empty")
    client = sys.modules.get(_CLIENT)
    if verify is None or client is None or client.verify_rest_response is not verify:
        return

    @functools.wraps(verify)
    def verified(response: Any, endpoint: str, *args: Any, **kwargs: Any) -> Any:
        if response.status_code == 200 and not response.content:
            raise MlflowException(f"the answer of {endpoint} was cut short")
        return verify(response, endpoint, *args, **kwargs)

    client.verify_rest_response = verified  # type: ignore[attr-defined]


@contextlib.contextmanager
def patient_uploads() -> Iterator[None]:
    """Gives a server the time for a file that `be_quick` takes from calls."""
    if not _quick:
        yield
        return
    os.environ[_TIMEOUT] = str(_UPLOAD)
    try:
        yield
    finally:
        os.environ[_TIMEOUT] = str(_call)
