"""Resuming of an interrupted training: from the last checkpoint of its run, in the same run.

Of several workers the chief finds the checkpoint, and tells the others which it is: each looking by itself might find
another, since the chief delivers what was left and goes on in the run meanwhile.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mlflow
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.tracking import fluent

from mlflow_tfmon import cluster, probes, temporary
from mlflow_tfmon.checkpoints.names import BEST, LAST, RESUME, name_of
from mlflow_tfmon.checkpoints.restoring import Checkpoint
from mlflow_tfmon.checkpoints.retention import Before
from mlflow_tfmon.checkpoints.state import State
from mlflow_tfmon.delivery.sync import deliver, find_waiting
from mlflow_tfmon.errors import ApartError, SettingError, contained, logger, say_once
from mlflow_tfmon.facts import model_order
from mlflow_tfmon.problems.rediagnosis import replayed
from mlflow_tfmon.problems.watch import Watch
from mlflow_tfmon.reading.recorded import load_run
from mlflow_tfmon.stream import records
from mlflow_tfmon.stream.continuation import Past, mark
from mlflow_tfmon.tags import DELIVERY_TAG, EPOCH, METRIC, MODE, STEP, VALUE, WEIGHTS_ONLY, pointed
from mlflow_tfmon.tracking.credentials import check_artifacts
from mlflow_tfmon.tracking.models import registered_as
from mlflow_tfmon.tracking.names import MODEL_ID
from mlflow_tfmon.uris import without_secrets
from mlflow_tfmon.watching import claims, pipeline
from mlflow_tfmon.watching.pipeline import Pipeline

LATEST, _NONE = "latest", "none"
_MAX_WAIT_S = 120.0  # s to wait for what the interrupted training has left to be delivered
_MAX_TELL_S = (
    300.0  # s that another worker waits for the chief, which may be waiting for that, and reading it
)
_PAUSE_S = 0.2  # s
_WHICH = (
    "checkpoints are kept for Keras models, with checkpoint=True, from the first epoch's end on, in fit and with "
    "Monitor(model); for one model per run; of Keras 2, with the optimizer that it is compiled with, not a legacy one"
)
_prepared: dict[str, Checkpoint] = {}  # by the setting, until a training goes on from it
# By the setting, until the workers of a training have agreed: which call of `prepare` it was, and whether the search is
# left to the chief. One script runs on all of them, so that the calls are as many.
_open: dict[str, tuple[int, bool]] = {}
_calls = itertools.count()


def prepare(resume: str | None) -> None:
    """Finds the checkpoint that a setting means, for the next training with that setting.

    Args:
        resume: id of a run; "latest" for the last of the experiment that did not finish, if there is one; or None.

    Raises:
        SettingError: there is no such run, or no checkpoint to resume from, or it is still being trained.
    """
    if resume is None:
        return
    _prepared.pop(resume, None)
    follows = cluster.follows()
    _open[resume] = next(_calls), follows
    if not follows:
        _search(resume)


def _search(resume: str) -> None:
    run_id = _latest() if resume == LATEST else resume
    if run_id is not None:
        _prepared[resume] = _find(run_id)


def _agree(resume: str) -> None:
    """Has each worker of a training go on from what the chief has found: a search of its own may find something else.

    Raises:
        ApartError: this worker does not get to know it, or cannot read it.
    """
    number, left = _open.pop(resume, (0, None))
    if left is None:
        return
    place = cluster.place()
    if place is None or place.count == 1:
        if left:  # TF_CONFIG is there, but no strategy of several workers
            _search(resume)
        return
    key = f"resume/{number}"
    if place.index == 0:
        found = _prepared.get(resume)
        text = _NONE if found is None else f"{found.run_id} {found.model_id}"
        for index in range(1, place.count):
            cluster.send(f"{key}/{index}", text.encode())
        return
    told = cluster.receive(f"{key}/{place.index}", _MAX_TELL_S)
    _prepared.pop(resume, None)
    if told is None:
        raise ApartError(
            f"resume={resume!r}: the chief does not tell which checkpoint it resumes from; start every worker with the "
            "same script and settings."
        )
    if told != _NONE.encode():
        run_id, model_id = told.decode().split()
        try:
            _prepared[resume] = _read(run_id, model_id)
        except Exception as error:
            raise ApartError(
                f"resume={resume!r}: this worker cannot read the checkpoint that the chief resumes from "
                f"({type(error).__name__}: {error}); give it access to the same MLflow store."
            ) from None  # whose text may have a password


def take(resume: str | None, model: Any) -> Checkpoint | None:
    """Returns the prepared checkpoint to the first model that asks for it.

    With "latest" a script was started again as it was: what it trains before the model that was interrupted is another.

    Raises:
        ApartError: this worker cannot resume as the chief does.
    """
    if resume is None:
        return None
    _agree(resume)
    checkpoint = _prepared.get(resume)
    if checkpoint is None:
        return None
    if not checkpoint.is_placed(model):
        goes_on = resume != LATEST
        logger.warning(
            "mlflow_tfmon: resume=%r: run %s is of model %d of its script, but this (%r) is model %d: %s.",
            resume, checkpoint.run_id, checkpoint.place + 1, getattr(model, "name", "?"), model_order.place(model) + 1,
            "it resumes from there anyway" if goes_on
            else f"it starts from scratch in its own run; to resume it, set resume={checkpoint.run_id!r}",
        )  # fmt: skip
        if not goes_on:
            return None
    return _prepared.pop(resume)


def is_done(model: Any, resume: str | None) -> bool:
    """Whether a beginning fit was finished before the interruption, so that a later one of its model resumes."""
    if resume is None:
        return False
    _agree(resume)
    checkpoint = _prepared.get(resume)
    if checkpoint is None or model_order.fits(model) >= checkpoint.fits:
        return False
    if not checkpoint.is_of(model) or not checkpoint.is_placed(model):
        return False
    logger.info(
        "mlflow_tfmon: resume=%r: fit %d of the model %r was finished before run %s was interrupted; it runs no "
        "epochs, fit %d resumes.",
        resume, model_order.fits(model) + 1, model.name, checkpoint.run_id, checkpoint.fits + 1,
    )  # fmt: skip
    return True


def say_of_loop(resume: str | None) -> None:
    """Logs that a custom loop under `autolog` alone starts from scratch though there is a checkpoint to resume."""
    if resume in _prepared:
        say_once(
            f"resume {resume} in a loop",
            f"mlflow_tfmon: resume={resume!r}: this custom loop starts from scratch in its own run, since autolog does "
            f"not know its model and optimizer; to resume run {_prepared[resume].run_id}, train within `with "
            f"mlflow_tfmon.Monitor(model, optimizer=optimizer, resume={resume!r}) as monitor:`, from epoch "
            "monitor.first_epoch on.",
        )


def _find(run_id: str) -> Checkpoint:
    client = mlflow.MlflowClient()
    uri = without_secrets(mlflow.get_tracking_uri())
    try:
        experiment = client.get_run(run_id).info.experiment_id
    except Exception as error:
        raise SettingError(
            f"resume={run_id!r}: no such run in {uri} ({type(error).__name__}); give the id of a run there, or "
            "resume='latest'."
        ) from None  # whose text may have a password
    if fluent._active_experiment_id not in (None, experiment):
        raise SettingError(
            f"resume={run_id!r}: it belongs to experiment {experiment}, but {fluent._active_experiment_id} is set; "
            f"call mlflow.set_experiment(experiment_id={experiment!r}) first."
        )
    _wait_for_delivery(run_id)
    tags = client.get_run(run_id).data.tags
    of = {model_id for (kind, _), model_id in pointed(tags).items() if kind == RESUME}
    if len(of) != 1 or not MODEL_ID.fullmatch(next(iter(of))):
        why = {0: "no checkpoint to resume from", 1: "a tag that does not name a checkpoint"}.get(
            len(of), f"checkpoints of {len(of)} models"
        )
        raise SettingError(
            f"resume={run_id!r}: the run has {why}; train from scratch without resume ({_WHICH})."
        )
    return _read(run_id, next(iter(of)), experiment, tags)


def _read(
    run_id: str, model_id: str, experiment: str = "", tags: Mapping[str, str] = MappingProxyType({})
) -> Checkpoint:
    """The checkpoint that a logged model is, with those that the tags of its run name."""
    client, holder = mlflow.MlflowClient(), temporary.Folder()
    try:
        check_artifacts(client, client.get_logged_model(model_id).artifact_location)
        folder = Path(
            mlflow.artifacts.download_artifacts(artifact_uri=f"models:/{model_id}", dst_path=holder.name)
        )
        state = State.read(folder)
        kept = _kept(client, experiment, run_id, tags, state.about["prefix"])
        checkpoint = Checkpoint(run_id, state, folder, kept, model_id)
    except Exception as error:
        text = " ".join(without_secrets(str(error)).split())[:300]
        raise SettingError(
            f"resume={run_id!r}: its checkpoint cannot be read ({type(error).__name__}: {text}); train from scratch "
            "without resume."
        ) from None  # as above
    object.__setattr__(checkpoint, "_holder", holder)  # the files live as long as it does
    return checkpoint


def _kept(
    client: mlflow.MlflowClient, experiment: str, run_id: str, tags: Mapping[str, str], prefix: str
) -> tuple[Before, ...]:
    """The checkpoints of one model of a run: those that its tags name, and others of the n best, oldest first."""
    kinds: dict[str, tuple[str, ...]] = {}
    named = pointed(tags)
    for kind in (BEST, LAST, RESUME):
        if (model_id := named.get((kind, prefix))) is not None:
            kinds[model_id] = (*kinds.get(model_id, ()), kind)
    found = []
    for model in _logged_models(client, experiment, run_id) if kinds else ():
        if (
            model.name not in (name_of(prefix), name_of(prefix, best=True))
            or model.status != LoggedModelStatus.READY
        ):
            continue
        value = float(model.tags[VALUE]) if VALUE in model.tags else None
        epoch, step = (int(model.tags.get(tag, -1)) for tag in (EPOCH, STEP))
        metric, more = model.tags.get(METRIC, ""), model.tags.get(MODE) == "max"
        one = Before(
            model.model_id, kinds.get(model.model_id, ()), epoch, step, metric, value, more,
            whole=WEIGHTS_ONLY not in model.tags, registered=registered_as(model),
        )  # fmt: skip
        found.append((model.creation_timestamp, one))
    return tuple(one for _, one in sorted(found, key=lambda each: each[0]))


def _logged_models(client: mlflow.MlflowClient, experiment: str, run_id: str) -> Iterator[LoggedModel]:
    token = None
    while True:
        page = client.search_logged_models([experiment], f"source_run_id='{run_id}'", page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _wait_for_delivery(run_id: str) -> None:
    """Has MLflow get what the interrupted training has left on this machine."""
    open_here = pipeline.of_run(run_id)
    if open_here is not None and not any(monitor.run_id == run_id for monitor in claims.active):
        open_here.close("FINISHED")  # of a training that is over, in a run that goes on
    give_up = time.monotonic() + _MAX_WAIT_S
    reason: str | None = ""
    while waiting := [one for one in find_waiting() if one.run_id == run_id]:
        if any(one.written for one in waiting):
            raise SettingError(
                f"resume={run_id!r}: the run is being trained by a process on this machine; end that first (in a "
                "notebook: mlflow.end_run())."
            )
        if time.monotonic() > give_up:
            raise SettingError(
                f"resume={run_id!r}: the training's records on this machine cannot be delivered to MLflow ({reason}); "
                "when the store is back, run `mlflow-tfmon sync`, then resume."
            )
        reason = deliver(waiting[0])
        time.sleep(_PAUSE_S)


def _latest() -> str | None:
    """The last watched run of the experiment, if its training did not finish and left a checkpoint."""
    client = mlflow.MlflowClient()
    found = client.search_runs(
        [fluent._get_experiment_id()],
        f"tags.`{DELIVERY_TAG}` != ''",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    if not found or found[0].info.status == "FINISHED":
        logger.info(
            "mlflow_tfmon: resume='latest': no training in this experiment is unfinished; a new one starts."
        )
        return None
    run_id = str(found[0].info.run_id)
    _wait_for_delivery(run_id)
    if any(kind == RESUME for kind, _ in pointed(client.get_run(run_id).data.tags)):
        return run_id
    logger.warning(
        "mlflow_tfmon: resume='latest': run %s is unfinished, but has no checkpoint to resume from (%s); a new "
        "training starts.",
        run_id, _WHICH,
    )  # fmt: skip
    return None


def go_on(model: Any, keys: frozenset[str], checkpoint: Checkpoint | None, into: Pipeline | None) -> None:
    """Has a recording go on where the run's earlier ones left off; called when it begins, and when the model is built.

    Whether the training goes on from a checkpoint or is a further one, what is best and what is kept is the run's.

    Args:
        model: the model, or None.
        keys: of its variables.
        checkpoint: what the training goes on from, or None.
        into: what records it, or None.
    """
    if into is None or model is None:
        return
    if checkpoint is not None:
        about = checkpoint.state.about
        into.recording.go_on(checkpoint.trained(model))
        keeper = into.keeper(about["prefix"])
        if not keeper.resumed:
            keeper.restore(checkpoint.kept, checkpoint.state)
            into.recording.append(records.Facts(tags=checkpoint.told(), time=time.time()))
            _replay(checkpoint, into.watch)
    if model.trainable_variables:
        into.recording.bind(keys, mark(probes.names(model.trainable_variables)))
        if checkpoint is None and into.run.past.streams:
            _take_up(into, into.recording.prefix_of(keys, str(model.name)))


def _take_up(into: Pipeline, prefix: str) -> None:
    run, keeper = into.run, into.keeper(prefix)
    if keeper.resumed or run.run_id is None:
        return
    with contained("reading the run's kept checkpoints", "a worse model may replace its best"):
        client = mlflow.MlflowClient(run.tracking_uri)
        tags = client.get_run(run.run_id).data.tags
        keeper.restore(_kept(client, run.experiment_id, run.run_id, tags, prefix))


def _replay(checkpoint: Checkpoint, watch: Watch) -> None:
    """Has the detectors know what was recorded up to the checkpoint: the problems are those of one training."""
    with contained("reading the earlier recording", "problems are only found from here on"):
        run = load_run(checkpoint.run_id)
        run.cut(Past.from_dict(checkpoint.state.about["past"]).steps)
        watch.go_on(*replayed(run, chosen=watch.chosen))
