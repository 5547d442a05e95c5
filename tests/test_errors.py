"""Tests of contained errors: an error anywhere in this package does not affect the training, and is logged once."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import keras
import mlflow
import numpy as np
import pytest

import mlflow_tfmon
from mlflow_tfmon import errors
from mlflow_tfmon.errors import SettingError
from mlflow_tfmon.journal.journal import JournalReader
from mlflow_tfmon.stream.records import Steps
from tests import trainings
from tests.daily import thorough


class Broken(Exception):
    pass


def broken(*args: Any, **kwargs: Any) -> Any:
    raise Broken("planted\nin two lines")


PLANTED = {
    "probe": ("mlflow_tfmon.probes.quantities.half_squares", "this training's steps are not recorded"),
    "probe, before the update": (
        "mlflow_tfmon.probes.quantities.snapshot",
        "this training's steps are not recorded",
    ),
    "tape probe": ("mlflow_tfmon.probes.tape._sum", "the loss of each step is not recorded"),
    "input probe": (
        "mlflow_tfmon.probes.inputs._reading",
        "the time spent waiting for input is not recorded",
    ),
    "drain": ("mlflow_tfmon.stream.drain.Drain._take", ""),
    "recording": ("mlflow_tfmon.stream.streams.Stream.read", ""),
    "journal": ("mlflow_tfmon.journal.journal.Journal.append", ""),
    "journal, when made": ("mlflow_tfmon.journal.journal.Journal.create", "this training is not recorded"),
    "delivery": ("mlflow_tfmon.delivery.process.DeliveryProcess.watch", "recordings are kept in"),
    "facts": ("mlflow_tfmon.watching.fitting.fit_params", "the params of this fit are not recorded"),
    "datasets": ("mlflow_tfmon.watching.fitting.datasets", "they are not recorded"),
    "saving": ("mlflow_tfmon.watching.fitting.save_model", "it is not logged"),
    "epoch": ("mlflow_tfmon.stream.recording.Recording.epoch_ended", "this epoch's metrics are not recorded"),
    "binding": ("mlflow_tfmon.watching.fitting.bind_fit", "this fit is not recorded"),
    "run": ("mlflow_tfmon.tracking.runs.start", "this training is not recorded"),
}


@pytest.fixture
def contained(fresh: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Errors of ours are contained, as for users; gives what is logged."""
    monkeypatch.delenv("MLFLOW_TFMON_RAISE_ERRORS", raising=False)
    monkeypatch.delenv("MLFLOW_AUTOLOGGING_TESTING", raising=False)
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    errors.logger.addHandler(handler)
    yield lines
    errors.logger.removeHandler(handler)


def train(loop: str) -> list[np.ndarray]:
    x, y = trainings.data()
    net = trainings.model()
    if loop == "fit":
        net.compile(keras.optimizers.Adam(0.01), trainings.loss())
        net.fit(x, y, batch_size=trainings.BATCH, epochs=3, verbose=0, shuffle=False)
    else:
        step = trainings.custom_step(net, keras.optimizers.Adam(0.01))
        for a, b in trainings.batches(x, y, 3):
            step(a, b)
    return [np.asarray(w) for w in net.get_weights()]


@pytest.fixture(scope="module")
def unwatched() -> dict[str, list[np.ndarray]]:
    return {loop: train(loop) for loop in ("fit", "custom")}


PARTS = [(part, loop) for part in PLANTED for loop in ("fit", "custom")]
# Behind the probes, a loop takes the way that fit takes.
SAME = [(part, "custom") for part in PLANTED if "probe" not in part and part not in ("journal", "run")]


@pytest.mark.slow
@pytest.mark.parametrize(("part", "loop"), thorough(PARTS, SAME))
def test_an_error_of_ours_leaves_the_training_alone(
    part: str,
    loop: str,
    contained: list[str],
    unwatched: dict[str, list[np.ndarray]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place, consequence = PLANTED[part]
    monkeypatch.setattr(place, broken)
    mlflow_tfmon.autolog(delivery_wait=1.0)
    weights = train(loop)
    mlflow_tfmon.autolog(disable=True)
    for ours, theirs in zip(weights, unwatched[loop], strict=True):
        assert ours.tobytes() == theirs.tobytes()
    said = [line for line in contained if "planted" in line]
    only_in_fit = part in ("input probe", "facts", "datasets", "saving", "epoch", "binding")
    if loop == "fit" or not only_in_fit:
        assert any(consequence in line for line in said), contained
    assert len(said) == len(set(said)) <= 4  # a line for each thing that is lost by it
    assert all("\n" not in line and "training continues" in line for line in said)
    assert len(mlflow.search_runs(output_format="list")) <= 1


def test_no_secret_in_an_error_is_said(contained: list[str]) -> None:
    with errors.contained("the test", "nothing is lost"):
        raise OSError("https://ann:s3cret@example.org/?token=t0ken does not answer")
    (line,) = contained
    assert "https://example.org/" in line and "s3cret" not in line and "t0ken" not in line


def test_delivery_that_dies_at_once(contained: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    from mlflow_tfmon.delivery.process import DeliveryProcess

    monkeypatch.setattr(DeliveryProcess, "_shared", None)
    mlflow_tfmon.autolog(delivery_wait=1.0)
    train("fit")
    assert sum("still being uploaded" in line for line in contained) == 1


def test_delivery_that_dies_again_and_again(contained: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow_tfmon.delivery import process

    monkeypatch.setattr("sys.executable", "/bin/false")
    monkeypatch.setattr(process.DeliveryProcess, "_shared", None)
    monkeypatch.setattr(process, "_MAX_STARTS", 2)
    net = trainings.model()
    step = trainings.custom_step(net, keras.optimizers.SGD(0.1))
    with mlflow_tfmon.Monitor(net) as monitor:
        folder, steps, until = monitor.folder, 0, time.time() + 60
        while not any("is stopped" in line for line in contained) and time.time() < until:
            for a, b in trainings.batches(*trainings.data(), 1):
                step(a, b)
                steps += 1
    (line,) = [line for line in contained if "is stopped" in line]
    assert str(folder) in line and "mlflow-tfmon sync" in line
    kept = [record for _, record in JournalReader(folder).read(0)]
    assert sum(len(r.values) for r in kept if isinstance(r, Steps)) == steps  # all is kept


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("deep_every", 0), ("deep_every", 1.5), ("deep_every", True), ("max_points", 3), ("max_variables", -1),
        ("variables", ""), ("variables", " ,"), ("variables", 3), ("mlflow_names", "yes"),
        ("delivery_wait", -1), ("delivery_wait", float("nan")), ("mode", "up"), ("monitor", ""), ("monitor", None),
        ("registered_model_name", "a/b"), ("extra_tags", "a=b"), ("log_models", "yes"), ("silent", 1),
    ],
)  # fmt: skip
def test_a_bad_value_names_setting_value_and_remedy(setting: str, value: Any, contained: list[str]) -> None:
    for use in (mlflow_tfmon.autolog, mlflow_tfmon.Monitor, mlflow_tfmon.MonitorCallback):
        with pytest.raises(SettingError, match=setting) as error:
            use(**{setting: value})
        assert repr(value) in str(error.value)
        assert "must be" in str(error.value)
    assert keras.Model.fit.__module__.startswith("keras")


def test_an_unknown_setting(contained: list[str]) -> None:
    with pytest.raises(SettingError, match=r"deep_evry.*did you mean .deep_every"):
        mlflow_tfmon.Monitor(deep_evry=3)
    with pytest.raises(SettingError, match="model must be a Keras model"):
        mlflow_tfmon.Monitor("val_loss")
    with pytest.raises(SettingError, match="run_id='nonsense': no such run"):
        mlflow_tfmon.Monitor(run_id="nonsense").start()


def test_a_store_that_refuses_to_make_the_run(contained: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a deleted experiment, or without the rights: it is said, and nothing is lost."""
    from mlflow_tfmon.delivery.sync import deliver, find_waiting

    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", "4711")
    mlflow_tfmon.autolog(log_models=False, delivery_wait=0.1)
    net = trainings.model()
    net.compile("sgd", trainings.loss())
    x, y = trainings.data()
    net.fit(x, y, batch_size=trainings.BATCH, verbose=0)
    (line,) = [line for line in contained if "cannot create a run" in line]
    assert "4711" in line and "mlflow-tfmon sync" in line
    (waiting,) = find_waiting()
    assert waiting.records > 5 and waiting.run_id is None
    assert deliver(waiting) is not None  # still not there


def test_one_told_of_a_problem_may_end_the_run(fresh: None) -> None:
    """Who ends it has it judged once more."""
    from mlflow_tfmon.detectors import Problem

    told: list[Problem] = []

    def end(problem: Problem) -> None:
        told.append(problem)
        mlflow.end_run()

    mlflow_tfmon.autolog(log_models=False, on_problem=end)
    net = trainings.model()
    net.compile(keras.optimizers.SGD(1e9), trainings.loss())
    x, y = trainings.data()
    with mlflow.start_run():
        net.fit(x * 1e4, y, batch_size=trainings.BATCH, epochs=3, verbose=0)
    assert told


def test_a_metric_that_never_comes(contained: list[str]) -> None:
    mlflow_tfmon.autolog(monitor="val_auc")
    train("fit")
    (line,) = [line for line in contained if "val_auc" in line]
    assert "was never logged" in line and "loss" in line
    run = mlflow.last_active_run()
    assert run is not None
    assert "loss" in mlflow.get_run(run.info.run_id).data.metrics  # nothing else is lost


def test_a_model_without_trainable_weights(contained: list[str]) -> None:
    x, y = trainings.data()
    net = trainings.model()
    net.trainable = False
    net.compile("sgd", trainings.loss())
    mlflow_tfmon.autolog()
    with pytest.warns(UserWarning, match="does not have any trainable weights"):
        net.fit(x, y, epochs=1, verbose=0)
    assert any("no trainable weights" in line for line in contained)
    run = mlflow.last_active_run()
    assert run is not None
    assert "loss" in mlflow.get_run(run.info.run_id).data.metrics


def test_a_monitor_that_sees_no_optimizer(contained: list[str]) -> None:
    net = trainings.model()
    for _ in range(3):  # each of them says so
        with mlflow_tfmon.Monitor(net) as monitor:
            monitor.log_epoch(0, {"loss": 1.0})
        del monitor
    assert sum("no optimizer step was seen" in line for line in contained) == 3


def test_a_metric_name_that_mlflow_refuses(contained: list[str]) -> None:
    net = trainings.model()
    step = trainings.custom_step(net, keras.optimizers.SGD(0.1))
    with mlflow_tfmon.Monitor(net, monitor="loss") as monitor:
        for a, b in trainings.batches(*trainings.data(), 1):
            step(a, b)
        monitor.log_epoch(0, {"loss": 1.0, "50% quantile?": 2.0, "": 3.0})
        run_id = monitor.run_id
    assert run_id is not None
    metrics = mlflow.get_run(run_id).data.metrics
    assert metrics["loss"] == 1.0
    assert 2.0 in metrics.values()
    assert list(mlflow_tfmon.load_run(run_id).steps.index) == list(range(1, 11))


def test_wrong_figures_from_the_user(contained: list[str]) -> None:
    with mlflow_tfmon.Monitor() as monitor:
        with pytest.raises(SettingError, match=r"val_loss='low'.*must be a number"):
            monitor.log_epoch(0, {"val_loss": "low"})
        with pytest.raises(SettingError, match="epoch=-1"):
            monitor.log_epoch(-1, {})
        with pytest.raises(SettingError, match=r"log\(a=\[\]\).*must be a number"):
            monitor.log(a=[])
