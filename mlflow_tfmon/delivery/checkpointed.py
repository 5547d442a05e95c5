"""Calls for a recording's models: each becomes a logged model, and those kept become outputs of the run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import partial
from math import isfinite
from pathlib import Path

from mlflow.entities import LoggedModelInput, LoggedModelStatus
from mlflow.exceptions import MlflowException

from mlflow_tfmon.checkpoints.names import BEST, FINAL, LAST, MODELS
from mlflow_tfmon.checkpoints.registry import register_pointed
from mlflow_tfmon.delivery.existing import Earlier
from mlflow_tfmon.delivery.status import Ledger
from mlflow_tfmon.delivery.tally import Sent
from mlflow_tfmon.stream.records import ModelSaved
from mlflow_tfmon.tracking.models import deliver_model, drop_model, link_models, unheard
from mlflow_tfmon.tracking.points import Point
from mlflow_tfmon.tracking.store import RefusedError, RunStore, is_refusal, store_errors
from mlflow_tfmon.tracking.texts import milliseconds

_LATEST = (
    "mlflow.latest_checkpoint_artifact"  # tag by which MLflow's `load_checkpoint` finds it (3.1 to 3.17)
)
Asked = Callable[[RunStore], "dict[str, str] | None"]


def saved_model(
    saved: ModelSaved,
    when: float,
    folder: Path,
    sent: Sent,
    ledger: Ledger,
    earlier: Callable[[], Earlier],
    names: Callable[[str], str],
    whole: bool = True,
) -> tuple[str, Asked, Callable[[], None]]:
    """Returns the call that adds a saved model to the run.

    Args:
        saved: the record.
        when: Unix time of its metrics, seconds.
        folder: of the recording.
        sent: what has been handed over; the model is added.
        ledger: of the recording.
        earlier: tells what the run held, once it is open.
        names: gives each metric the name that MLflow has for it.
        whole: whether no record before it was left out: it may be the one that says when a metric was measured, and
            a point that comes at two times is two.

    Returns:
        The model's name among what is refused, the call, and what is to be done after it.
    """
    name, files = f"model {saved.name}", folder / saved.path
    points = []
    for key, value in ((names(key), value) for key, value in saved.metrics.items() if isfinite(value)):
        known = sent.linkable.get((key, saved.step))
        same = known is not None and known.value == value
        if known and same:
            points.append(known)
        elif whole:
            points.append(Point(key, value, saved.step, milliseconds(when)))
    sent.models[saved.path] = saved.step
    for path in saved.drops:
        sent.models.pop(path, None)
    if saved.registered_model_name:
        sent.to_register[saved.pointers[0]] = saved.registered_model_name

    def remember(model_id: str) -> None:
        ledger.note(models={**ledger.status.models, saved.path: model_id})

    def deliver(run: RunStore) -> dict[str, str]:
        known = ledger.status.models
        if _is_gone(files):  # it was replaced before it was delivered
            if saved.path in known:
                _drop(run, known, saved.path)
            return {}
        with store_errors():
            linked = earlier().linkable(run.client, run.run_id, points)
        rejected = deliver_model(run, saved, files, linked, known.get(saved.path), remember)
        if name in rejected:
            sent.models.pop(saved.path, None)
        else:
            rejected |= as_autologged(run, saved, files)
            for path in saved.drops:
                if path in known or path.startswith(MODELS):
                    _drop(run, known, path)
        return rejected

    return name, deliver, partial(shutil.rmtree, files, ignore_errors=True)


def _is_gone(files: Path) -> bool:
    return files.with_name(f"{files.name}.gone").exists()


def models_not_there(run: RunStore, sent: Sent, ledger: Ledger, folder: Path) -> list[str]:
    """Returns which of the kept models are incomplete in the store, a line each.

    One that it says it has no more was there: somebody has deleted it.

    Args:
        run: the run.
        sent: what has been handed over.
        ledger: of the recording.
        folder: of the recording.
    """
    found = []
    for path in sent.models:
        model_id = ledger.status.models.get(path)
        if not model_id:
            if not _is_gone(folder / path):
                found.append(f"model of {path}: missing")
            continue
        try:
            status = run.client.get_logged_model(model_id).status
        except MlflowException as error:
            if not is_refusal(error, ("RESOURCE_DOES_NOT_EXIST",)):
                raise
            continue
        if status != LoggedModelStatus.READY:
            found.append(f"model {model_id}: {status}")
    return found


def as_autologged(run: RunStore, saved: ModelSaved, files: Path) -> dict[str, str]:
    """Makes a delivered model available to MLflow's own functions, as its TensorFlow autologging does.

    That is the model at the end of a fit among the run's inputs, beside its datasets, and for
    `mlflow.tensorflow.load_checkpoint` the file of the best model, or while there is none that of the last.

    Args:
        run: the run.
        saved: the record.
        files: the model's folder.

    Returns:
        What was rejected: name -> reason.
    """
    kinds = {tag.rpartition(".")[2]: tag for tag in saved.pointers}
    try:
        with store_errors():
            tags = run.client.get_run(run.run_id).data.tags
            if FINAL in kinds and saved.datasets:
                run.client.log_inputs(run.run_id, models=[LoggedModelInput(tags[kinds[FINAL]])])
    except RefusedError as error:
        return {f"datasets of model {saved.name}": str(error)}
    found = [*files.glob("data/model.*"), *files.glob("model.weights.h5")]
    latest = BEST in kinds or (LAST in kinds and _LATEST not in tags)
    if not latest or not found:
        return {}
    place = found[0].relative_to(files).as_posix()
    return run.tags({_LATEST: f"{saved.name}/{place}"})


def _drop(run: RunStore, known: Mapping[str, str], path: str) -> None:
    with store_errors():
        found = known.get(path, path.removeprefix(MODELS)) or unheard(run, path)
    if found:
        drop_model(run, found)


def settled(sent: Sent, ledger: Ledger) -> list[tuple[str, Asked]]:
    """The calls that link the models that are kept to the run, and register those that are to be: of many the best."""

    def link(run: RunStore) -> None:
        known = ledger.status.models
        link_models(run, {known[path]: step for path, step in sent.models.items() if known.get(path)})

    calls: list[tuple[str, Asked]] = [("outputs", link)] if sent.models else []
    for tag, name in sent.to_register.items():
        calls.append((f"registered model {name}", partial(register_pointed, tag=tag, name=name)))
    sent.to_register.clear()
    return calls
