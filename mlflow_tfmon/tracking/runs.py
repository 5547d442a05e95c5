"""Ownership of runs: finds or creates the MLflow run for a training, and ends those it created."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from mlflow_tfmon.errors import SettingError, logger, raises, say_once
from mlflow_tfmon.internals import internal
from mlflow_tfmon.random_state import same_random_numbers
from mlflow_tfmon.stream.continuation import NOTHING, Past
from mlflow_tfmon.tags import REACHED_TAG
from mlflow_tfmon.tracking.names import clean, run_name
from mlflow_tfmon.uris import without_secrets

INTEGRATION = "mlflow_tfmon"
# s to wait for a tracking server before the training starts without it: for a word, and for an answer
_REACH, _ANSWER = 2.0, 5.0


def autologging(integration: str, setting: str, otherwise: Any) -> Any:
    """What MLflow knows of a setting of one of its autologging integrations, ours among them."""
    get = internal(
        "mlflow.utils.autologging_utils.get_autologging_config",
        lambda _, __, otherwise: otherwise,
        "MLflow's own switches of autologging are ignored",
    )
    return get(integration, setting, otherwise)


@dataclass(frozen=True)
class Run:
    """The run of a training.

    Attributes:
        run_id: None if the store was away, so that delivery makes the run later.
        owned: whether it was created for the training, and so ends with it.
        active: whether it is (or was made) the active run of the training's thread.
        experiment_name: name of the experiment where its id could not be asked for, or None.
        past: how far earlier recordings of it had come, as far as that is known.
        beside: id of the run that it stands beside, which another process is recording, or None.
    """

    run_id: str | None
    experiment_id: str
    name: str | None
    tracking_uri: str = field(repr=False)  # as the next: with its credentials
    registry_uri: str = field(repr=False)
    start_time: float
    owned: bool
    active: bool
    tags: Mapping[str, str]
    experiment_name: str | None = None
    past: Past = NOTHING
    beside: str | None = None

    @property
    def is_ours(self) -> bool:
        """Whether only the recording ends it."""
        return self.owned or self.beside is not None


@same_random_numbers()
def of_id(run_id: str) -> Run:
    """Returns the run that the user names.

    Raises:
        SettingError: there is no such run.
    """
    import mlflow

    if _away(mlflow.get_tracking_uri()):
        experiment = os.environ.get("MLFLOW_EXPERIMENT_ID", "0")
        return _run(run_id, experiment, None, owned=False, active=False)
    try:
        run = mlflow.MlflowClient().get_run(run_id)
    except Exception as error:
        raise SettingError(
            f"run_id={run_id!r}: no such run in {without_secrets(mlflow.get_tracking_uri())} ({type(error).__name__}); "
            "give the id of a run there, or omit it to create one."
        ) from None  # whose text may have a password
    return _known(run, owned=False, active=False)


@same_random_numbers()
def active(thread: int | None = None) -> Run | None:
    """The active run of a thread (by default this one), or None."""
    run = _active_run(thread)
    if run is None:
        return None
    return _known(run, owned=False, active=True)


def active_id(thread: int | None = None) -> str | None:
    """Id of the active run of a thread (by default this one), or None."""
    run = _active_run(thread)
    return None if run is None else str(run.info.run_id)


def last_active_id() -> str | None:
    """Id of the run that this thread had active last."""
    from mlflow.tracking import fluent

    run_id: str | None = fluent._last_active_run_id.get()
    return run_id


def last_model_id() -> str | None:
    """Id of the logged model that MLflow knows as this thread's last."""
    from mlflow.tracking import fluent

    model_id: str | None = fluent._last_logged_model_id.get()  # MLflow 3.0 to 3.17
    return model_id


def set_last_model_id(model_id: str) -> None:
    """Has MLflow know a logged model as this thread's last."""
    from mlflow.tracking import fluent

    fluent._last_logged_model_id.set(model_id)


def _active_run(thread: int | None) -> Any:
    import mlflow

    if thread is None or thread == threading.get_ident():
        return mlflow.active_run()
    stacks = internal(  # MLflow 3.0 to 3.17 keeps a stack a thread
        "mlflow.tracking.fluent._active_run_stack", None, "loops of several threads get separate runs"
    )
    stack = None if stacks is None else stacks.get_all_thread_values().get(thread)
    return stack[-1] if stack else None


@same_random_numbers()
def start(extra_tags: Mapping[str, str] | None, stay_active: bool) -> Run:
    """Creates a run for a training, as MLflow's autologging does.

    Args:
        extra_tags: further tags.
        stay_active: whether the run becomes the thread's active run. A custom loop's does not, for nobody would end
            it before the user's own `mlflow.start_run()`, which then would fail.
    """
    import mlflow
    from mlflow.tracking import fluent
    from mlflow.utils.mlflow_tags import MLFLOW_AUTOLOGGING, MLFLOW_RUN_NAME

    # As delivery writes them: a number, say, is refused, and with it the run.
    tags = {clean(str(name)): without_secrets(str(value)) for name, value in (extra_tags or {}).items()}
    tags[MLFLOW_AUTOLOGGING] = INTEGRATION
    uri = mlflow.get_tracking_uri()
    experiment = fluent._active_experiment_id or os.environ.get("MLFLOW_EXPERIMENT_ID", "")
    name = run_name() if MLFLOW_RUN_NAME not in tags and "MLFLOW_RUN_ID" not in os.environ else None
    later = replace(
        _run(os.environ.get("MLFLOW_RUN_ID"), experiment, name, owned=True, active=False, tags=tags),
        experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME"),
    )
    if _away(uri):
        return replace(later, tags={**_context(), **tags})
    try:
        _prepare_store(uri)
        run = mlflow.start_run(run_name=name, tags=tags)
    except Exception as error:
        if raises() and not isinstance(error, mlflow.MlflowException):
            raise
        say_once(
            f"refuses {uri}",
            f"mlflow_tfmon: the store {without_secrets(uri)} cannot create a run ({type(error).__name__}: "
            f"{' '.join(without_secrets(str(error)).split())[:300]}); the training is recorded on this "
            "machine. Fix the cause (the tracking URI, the experiment, your permissions); then `mlflow-tfmon sync` "
            "delivers it.",
        )
        return later
    if not stay_active:
        with contextlib.suppress(Exception):
            fluent._active_run_stack.get().pop()
    return _known(run, owned=True, active=stay_active, tags=tags)


def _context() -> dict[str, str]:
    """The tags that MLflow gives to runs that it makes itself: user, script, git commit."""
    resolve = internal(
        "mlflow.tracking.context.registry.resolve_tags", dict, "runs that are made later lack user and script"
    )
    found: dict[str, str] = {}
    with contextlib.suppress(Exception):
        found = resolve()
    return found


def beside(run: Run) -> Run:
    """A run below one that another process is recording: of two in one, both would number their steps from 1.

    It ends when that one ends in this process, or with the script.
    """
    from mlflow.utils.mlflow_tags import MLFLOW_AUTOLOGGING, MLFLOW_PARENT_RUN_ID

    name = f"{run.name or run.run_id}, process {os.getpid()}"
    tags = {**run.tags, MLFLOW_PARENT_RUN_ID: str(run.run_id), MLFLOW_AUTOLOGGING: INTEGRATION}
    made = replace(
        run, run_id=None, name=name, owned=False, active=True, tags=tags, past=NOTHING, beside=run.run_id
    )
    if not _away(run.tracking_uri):
        import mlflow

        with contextlib.suppress(mlflow.MlflowException):  # else delivery makes it
            client = mlflow.MlflowClient(run.tracking_uri)
            known = client.create_run(run.experiment_id, int(1e3 * run.start_time), tags, name)
            made = replace(made, run_id=known.info.run_id)
    logger.warning(
        "mlflow_tfmon: run %s is being recorded by another process on this machine, so this training is recorded in a "
        "child run: %s.",
        run.run_id, made.run_id or "created when the server is back",
    )  # fmt: skip
    return made


@same_random_numbers()
def leave(run: Run) -> None:
    """Makes a run that was made for a training no longer the active one; delivery ends it once all has arrived.

    `mlflow.end_run` would also tell the store, which may be away, and would call the run finished before its data
    are there.
    """
    from mlflow.tracking import fluent

    if run.owned and run.active and active_id() == run.run_id:
        fluent._active_run_stack.get().pop()  # thread-local, MLflow 3.0 to 3.17
        fluent._last_active_run_id.set(run.run_id)
    if run.owned:
        monitor = fluent.run_id_to_system_metrics_monitor.pop(run.run_id, None)
        if monitor is not None:
            monitor.finish()


@same_random_numbers()
def again(run_id: str, thread: int | None, stay_active: bool) -> Run:
    """A run that a training goes on in: the active one if it is that, else it is running again, for the training.

    Args:
        run_id: the run.
        thread: as in `active`.
        stay_active: as in `start`.

    Raises:
        SettingError: MLflow does not let it run again.
    """
    import mlflow
    from mlflow.tracking import fluent

    on = active(thread)
    if on is not None and on.run_id == run_id:
        return on
    try:
        run = mlflow.start_run(run_id=run_id, nested=on is not None)
    except Exception as error:
        text = " ".join(without_secrets(str(error)).split())[:300]
        raise SettingError(
            f"resume={run_id!r}: MLflow does not reopen the run ({text}); resume it in its own experiment, or train "
            "from scratch without resume."
        ) from None  # as above
    if not stay_active:
        fluent._active_run_stack.get().pop()
    if on is not None:
        logger.info(
            "mlflow_tfmon: training resumes in run %s; later fits are logged to the active run, %s. To "
            "keep everything in one run, call mlflow.start_run(run_id=%r).",
            run_id, on.run_id, run_id,
        )  # fmt: skip
    return _known(run, owned=True, active=stay_active)


def _known(run: Any, *, owned: bool, active: bool, tags: Mapping[str, str] | None = None) -> Run:
    info, past = run.info, Past.from_text(run.data.tags.get(REACHED_TAG))
    found = _run(info.run_id, info.experiment_id, info.run_name, owned=owned, active=active, tags=tags)
    # Recordings are in the order of their times, which a clock that was set back would change.
    return dataclasses.replace(found, past=past, start_time=max(found.start_time, (past.begun + 2) / 1e3))


def _run(
    run_id: str | None,
    experiment_id: str,
    name: str | None,
    *,
    owned: bool,
    active: bool,
    tags: Mapping[str, str] | None = None,
) -> Run:
    import mlflow

    return Run(
        run_id, experiment_id, name, mlflow.get_tracking_uri(), mlflow.get_registry_uri(), time.time(), owned, active,
        tags or {},
    )  # fmt: skip


def _prepare_store(uri: str) -> None:
    """Has a fresh SQLite store made by one process at a time."""
    from mlflow_tfmon.tracking.store import open_store

    open_store(uri)


def _away(uri: str) -> bool:
    """Whether a server does not answer, which is said once."""
    if reachable(uri):
        return False
    say_once(
        f"away {uri}",
        f"mlflow_tfmon: the tracking server {_host(uri)} does not answer; the training is recorded on this "
        "machine and delivered when the server is back.",
    )
    return True


def _host(uri: str) -> str:
    parts = urlsplit(uri)
    return f"{parts.hostname}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def reachable(uri: str) -> bool:
    """Whether a store's server answers, and soon: MLflow itself would retry for minutes. What is no server does.

    It is asked for experiments too: one whose database is away, or that takes no more calls, may say that it lives.
    """
    if urlsplit(uri).scheme not in ("http", "https"):
        return True
    return _answers(uri, "/health", _REACH) and _answers(
        uri, "/api/2.0/mlflow/experiments/search", _ANSWER, params={"max_results": 1}
    )


def _answers(uri: str, endpoint: str, patience: float, **more: Any) -> bool:
    try:  # by MLflow's own way, with its proxies, certificates and tokens
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request

        answer = http_request(
            get_default_host_creds(uri),
            endpoint,
            "GET",
            max_retries=0,
            timeout=patience,
            raise_on_status=False,
            **more,
        )
    except Exception:
        return False
    return answer.status_code < 500 and answer.status_code != 429
