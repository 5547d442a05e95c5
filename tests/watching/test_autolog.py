"""Tests of autolog() as an MLflow integration: on, off, again, beside MLflow's own, in all kinds of runs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf

import mlflow_tfmon
from mlflow_tfmon import errors, versions
from tests import trainings
from tests.daily import thorough


@pytest.fixture(autouse=True)
def peers_off(fresh: None) -> Iterator[None]:
    yield
    for integration in (mlflow_tfmon.autolog, mlflow.tensorflow.autolog, mlflow.keras.autolog):
        integration(disable=True)


def compiled(name: str | None = None) -> keras.Model:
    net = trainings.model(name=name)
    net.compile(keras.optimizers.SGD(0.1), trainings.loss(), metrics=["accuracy"])
    return net


def fit(net: keras.Model, epochs: int = 2, **kwargs: Any) -> Any:
    x, y = trainings.data()
    return net.fit(x, y, batch_size=trainings.BATCH, epochs=epochs, verbose=0, shuffle=False, **kwargs)


def all_runs() -> list[mlflow.entities.Run]:
    return mlflow.search_runs(output_format="list", order_by=["attributes.start_time ASC"])


def steps_of(run: mlflow.entities.Run) -> list[int]:
    return list(mlflow_tfmon.load_run(run.info.run_id).steps.index)


def points(run: mlflow.entities.Run, key: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in mlflow.MlflowClient().get_metric_history(run.info.run_id, key)]


@pytest.mark.slow
def test_a_fit_makes_a_run_and_ends_it() -> None:
    mlflow_tfmon.autolog(extra_tags={"team": "a"}, mlflow_names=True)
    history = fit(compiled(), validation_split=0.2)
    assert mlflow.active_run() is None
    (run,) = all_runs()
    assert run.info.status == "FINISHED"
    assert run.data.tags["team"] == "a"
    assert run.data.tags["mlflow.autologging"] == "mlflow_tfmon"
    assert run.data.tags["tfmon.delivery"] == "complete"
    assert steps_of(run) == list(range(1, 17))
    for name, values in history.history.items():
        np.testing.assert_allclose([v for _, v in points(run, name)], values, rtol=1e-6)
        assert [step for step, _ in points(run, name)] == [0, 1]
    assert [step for step, _ in points(run, "validation_loss")] == [0, 1]  # MLflow has them all at step 0
    assert {one.name for one in mlflow.search_logged_models(output_format="list")} >= {"best", "model"}
    best = int(np.argmin(history.history["val_loss"]))
    assert run.data.metrics["best/epoch"] == best
    np.testing.assert_allclose(run.data.metrics["best/val_loss"], min(history.history["val_loss"]), rtol=1e-6)
    assert [m.step for m in mlflow.MlflowClient().get_metric_history(run.info.run_id, "batch/loss")] == list(
        range(1, 17)
    )


def test_the_model_is_logged_with_signature_and_loads(tmp_path: Path) -> None:
    mlflow_tfmon.autolog(registered_model_name="digits", log_input_examples=True)
    net = compiled()
    fit(net)
    (run,) = all_runs()
    (model,) = [one for one in mlflow.search_logged_models(output_format="list") if one.name == "final"]
    assert model.source_run_id == run.info.run_id
    assert model.status == "READY"
    x, _ = trainings.data()
    loaded = mlflow.tensorflow.load_model(f"models:/{model.model_id}")
    np.testing.assert_array_equal(loaded(x).numpy(), net(x).numpy())
    served = mlflow.pyfunc.load_model(f"models:/{model.model_id}")
    assert served.metadata.signature is not None
    assert served.metadata.saved_input_example_info is not None
    np.testing.assert_allclose(served.predict(x), net(x).numpy(), rtol=1e-5)
    (version,) = mlflow.MlflowClient().search_model_versions("name='digits'")
    assert version.run_id == run.info.run_id


def test_enabled_after_a_fit_and_disabled_again() -> None:
    net = compiled()
    fit(net)
    unwatched = net.train_function
    mlflow_tfmon.autolog()
    mlflow_tfmon.autolog()  # twice is once
    fit(net)
    (run,) = all_runs()
    assert steps_of(run) == list(range(1, 21))
    assert net.train_function is not unwatched
    mlflow_tfmon.autolog(disable=True)
    assert net.train_function is None  # built anew by the next fit, without probes
    fit(net)
    assert len(all_runs()) == 1


def test_everything_is_back_after_disable() -> None:
    from keras.src.backend.tensorflow.optimizer import TFOptimizer
    from keras.src.optimizers.base_optimizer import BaseOptimizer
    from tensorflow.python.data.ops.iterator_ops import OwnedIterator

    places = [
        (keras.Model, "fit"), (BaseOptimizer, "_backend_apply_gradients"), (TFOptimizer, "_backend_update_step"),
        (tf.GradientTape, "gradient"), (OwnedIterator, "_next_internal"), (mlflow.MlflowClient, "set_terminated"),
        (mlflow.tensorflow, "safe_patch"), (mlflow.keras.autologging, "safe_patch"),
    ]  # fmt: skip
    before = [getattr(owner, name) for owner, name in places]
    mlflow_tfmon.autolog()
    assert all(getattr(owner, name) is not old for (owner, name), old in zip(places, before, strict=True))
    mlflow_tfmon.autolog(disable=True)
    assert [getattr(owner, name) for owner, name in places] == before


@pytest.mark.slow
def test_an_active_run_takes_the_training_and_stays_active() -> None:
    mlflow_tfmon.autolog()
    with mlflow.start_run() as run:
        fit(compiled())
        active = mlflow.active_run()
        assert active is not None and active.info.run_id == run.info.run_id
        mlflow.log_metric("mine", 1.0)
    (found,) = all_runs()
    assert found.data.metrics["mine"] == 1.0
    assert steps_of(found) == list(range(1, 21))


@pytest.mark.slow
def test_nested_runs_are_kept_apart() -> None:
    mlflow_tfmon.autolog(log_models=False)
    with mlflow.start_run() as parent:
        for rate in (0.1, 0.2):
            with mlflow.start_run(nested=True):
                net = compiled()
                net.optimizer.learning_rate = rate
                fit(net, epochs=1)
    children = [r for r in all_runs() if r.info.run_id != parent.info.run_id]
    assert [steps_of(r) for r in children] == [list(range(1, 11))] * 2
    rates = [mlflow_tfmon.load_run(r.info.run_id).steps.learning_rate.unique() for r in children]
    np.testing.assert_allclose(np.concatenate(rates), [0.1, 0.2], rtol=1e-6)


def test_exclusive_leaves_the_users_run_alone() -> None:
    mlflow_tfmon.autolog(exclusive=True, log_models=False)
    with mlflow.start_run():
        fit(compiled())
        step = trainings.custom_step(trainings.model(), keras.optimizers.SGD(0.1))
        for a, b in trainings.batches(*trainings.data(), 1):
            step(a, b)
    (run,) = all_runs()
    assert run.data.metrics == {} and run.data.params == {}


@pytest.mark.slow
def test_two_fits_of_one_model_go_on_in_one_run() -> None:
    mlflow_tfmon.autolog(log_models=False)
    net = compiled()
    with mlflow.start_run():
        fit(net)
        net.compile(keras.optimizers.SGD(0.01), trainings.loss(), metrics=["accuracy"])  # fine-tuning
        fit(net)
    (run,) = all_runs()
    steps = mlflow_tfmon.load_run(run.info.run_id).steps
    assert list(steps.index) == list(range(1, 41))
    np.testing.assert_allclose(steps.learning_rate, [0.1] * 20 + [0.01] * 20, rtol=1e-6)
    assert [step for step, _ in points(run, "loss")] == [0, 1, 2, 3]
    assert run.data.tags["tfmon.seams"] == "21"


@pytest.mark.slow
def test_two_models_in_one_run_have_names_of_their_own() -> None:
    mlflow_tfmon.autolog(log_models=False)
    with mlflow.start_run():
        fit(compiled("first"))
        fit(compiled("second"))
    (run,) = all_runs()
    assert [step for step, _ in points(run, "batch/loss")] == list(range(1, 21))
    assert [step for step, _ in points(run, "second.batch/loss")] == list(range(1, 21))
    assert [step for step, _ in points(run, "loss")] == [0, 1]
    assert [step for step, _ in points(run, "second.loss")] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "peer"),
    thorough(
        [(first, peer) for first in ("ours", "theirs") for peer in ("tensorflow", "keras")],
        [("ours", "keras"), ("theirs", "tensorflow")],
    ),
)
def test_beside_mlflows_own(
    peer: str, first: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = mlflow.tensorflow.autolog if peer == "tensorflow" else mlflow.keras.autolog
    monkeypatch.setattr(errors.logger, "propagate", True)
    for enable in (mlflow_tfmon.autolog, theirs) if first == "ours" else (theirs, mlflow_tfmon.autolog):
        enable(log_models=False)
    fit(compiled())
    fit(compiled())
    runs = all_runs()
    assert [r.data.tags["mlflow.autologging"] for r in runs] == ["mlflow_tfmon"] * 2  # neither twice nor half
    assert not any(
        "tensorboard_logs" in a.path
        for r in runs
        for a in mlflow.artifacts.list_artifacts(run_id=r.info.run_id)
    )
    said = {id(r) for r in caplog.records if f"instead of mlflow.{peer}.autolog" in r.getMessage()}
    assert len(said) == 1
    mlflow_tfmon.autolog(disable=True)
    fit(compiled())
    assert all_runs()[-1].data.tags["mlflow.autologging"] == peer  # theirs is back


def test_a_failed_fit_ends_its_run_as_failed() -> None:
    class Fails(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if batch == 4:
                raise RuntimeError("the user's own error")

    mlflow_tfmon.autolog()
    with pytest.raises(RuntimeError, match="the user's own error"):
        fit(compiled(), callbacks=[Fails()])
    (run,) = all_runs()
    assert run.info.status == "FAILED"
    assert steps_of(run) == [1, 2, 3, 4, 5]
    assert "the user's own error" in run.data.tags["mlflow.note.content"]


def test_callbacks_are_the_users() -> None:
    mlflow_tfmon.autolog(log_models=False)
    seen: list[int] = []
    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(epoch))]
    x, y = trainings.data()
    compiled_model = compiled()
    compiled_model.fit(x, y, 16, 2, 0, callbacks)  # positionally
    assert seen == [0, 1]
    assert len(callbacks) == 1  # as the user made it
    (run,) = all_runs()
    assert run.data.params["batch_size"] == "16"
    assert steps_of(run) == list(range(1, 21))


def test_early_stopping_has_no_false_epoch() -> None:
    mlflow_tfmon.autolog(log_models=False)
    stop = keras.callbacks.EarlyStopping(
        monitor="loss", patience=1, min_delta=10.0, restore_best_weights=True
    )
    history = fit(compiled(), epochs=10, callbacks=[stop])
    (run,) = all_runs()
    assert run.data.metrics["stopped_epoch"] == history.epoch[-1] == 1
    assert run.data.metrics["restored_epoch"] == 0
    assert [step for step, _ in points(run, "loss")] == history.epoch


@pytest.mark.slow
def test_a_custom_loop_makes_a_run_that_ends_with_the_next_training() -> None:
    mlflow_tfmon.autolog(log_models=False)
    step = trainings.custom_step(trainings.model(), keras.optimizers.SGD(0.1))
    for a, b in trainings.batches(*trainings.data(), 2):
        step(a, b)
    assert mlflow.active_run() is None  # so the user may start one
    fit(compiled())
    loop, fitted = all_runs()
    assert (loop.info.status, fitted.info.status) == ("FINISHED", "FINISHED")
    assert steps_of(loop) == list(range(1, 21)) and steps_of(fitted) == list(range(1, 21))


def test_a_step_that_is_already_traced_goes_to_the_run_of_its_time() -> None:
    mlflow_tfmon.autolog()
    step = trainings.custom_step(trainings.model(), keras.optimizers.SGD(0.1))
    losses = []
    for _ in range(3):
        with mlflow.start_run():
            losses.append([float(step(a, b)) for a, b in trainings.batches(*trainings.data(), 1)])
    for run, expected in zip(all_runs(), losses, strict=True):
        np.testing.assert_array_equal(mlflow_tfmon.load_run(run.info.run_id).steps.loss, expected)


def test_silent_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    mlflow_tfmon.autolog(silent=True, monitor="never", log_models=False)
    fit(compiled())
    assert "mlflow_tfmon" not in "".join(capfd.readouterr())
    logging.getLogger("mlflow_tfmon").setLevel(logging.INFO)


@pytest.mark.parametrize("version", ["2.3.0", "2.99.0", "2.21.0rc1"])
def test_disabled_for_unsupported_versions(
    version: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where MLflow's own, told the same, watches nothing."""
    monkeypatch.setattr(errors.logger, "propagate", True)
    mlflow_tfmon.autolog(log_models=False)
    monkeypatch.setattr(tf, "__version__", version)
    mlflow_tfmon.autolog(log_models=False, disable_for_unsupported_versions=True)
    fit(compiled())
    (said,) = {record.getMessage() for record in caplog.records if "not enabled" in record.getMessage()}
    assert f"tensorflow {version}" in said
    mlflow.tensorflow.autolog(log_models=False, disable_for_unsupported_versions=True)
    fit(compiled())
    assert all_runs() == []


def test_enabled_on_the_versions_that_are_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    unwatched = keras.Model.fit
    for tested in (versions.OLDEST, versions.NEWEST, {name: f"{v}.9" for name, v in versions.NEWEST.items()}):
        monkeypatch.setattr(versions, "installed", lambda tested=tested: tested)
        mlflow_tfmon.autolog(disable_for_unsupported_versions=True)
        assert keras.Model.fit is not unwatched
        mlflow_tfmon.autolog(disable=True)


def test_newer_versions_are_told_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(versions, "installed", lambda: {**versions.OLDEST, "keras": "9.1.0"})
    for _ in range(2):
        mlflow_tfmon.autolog(log_models=False)
    assert capsys.readouterr().err.count("INFO mlflow_tfmon: not tested with keras 9.1.0 (") == 1


def test_arguments_of_mlflows_autolog_are_accepted() -> None:
    mlflow_tfmon.autolog(
        log_models=False, log_datasets=False, exclusive=False, disable_for_unsupported_versions=False, silent=True,
        log_input_examples=False, log_model_signatures=True, saved_model_kwargs={}, keras_model_kwargs={},
        extra_tags={"a": "b"}, log_every_epoch=True, log_every_n_steps=None, registered_model_name=None,
        checkpoint=False, checkpoint_monitor="loss", checkpoint_mode="min", checkpoint_save_best_only=True,
        checkpoint_save_weights_only=True, checkpoint_save_freq=10,
    )  # fmt: skip
    fit(compiled())
    (run,) = all_runs()
    assert not run.inputs.dataset_inputs
    assert "best/loss" in run.data.metrics


@pytest.mark.slow
def test_what_people_look_at_first_is_not_buried() -> None:
    """A net of four layers has 25 series: no biases, no second names."""
    mlflow_tfmon.autolog(log_models=False)
    x, y = trainings.data()
    widths = [keras.layers.Dense(n, "relu", name=f"d{n}") for n in (8, 7, 6)]
    net = keras.Sequential([keras.Input(x.shape[1:]), *widths, keras.layers.Dense(3, name="out")], name="net")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    net.compile("sgd", loss, metrics=["accuracy"])
    net.fit(x, y, epochs=2, validation_split=0.2, verbose=0)
    (run,) = all_runs()
    per_step = (
        "examples_per_second",
        "grad_norm",
        "input_wait_share",
        "learning_rate",
        "loss",
        "step_time_ms",
    )
    per_kernel = ("grad_norm", "update_ratio", "weight_norm")
    found = {name for name in run.data.metrics if not name.startswith("system/")}  # after ten seconds
    assert found == {
        *("accuracy", "learning_rate", "loss", "val_accuracy", "val_loss", "best/epoch", "best/val_loss"),
        *(f"batch/{name}" for name in per_step),
        *(f"{what}/net.{layer}.kernel" for what in per_kernel for layer in ("d8", "d7", "d6", "out")),
    }
    assert len(found) == 25
    layers = mlflow_tfmon.load_run(run.info.run_id).layers
    assert layers.variable.nunique() == 8 and layers.grad_zero_fraction.notna().any()


@pytest.mark.slow
def test_variables_that_no_pattern_matches_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    mlflow_tfmon.autolog(log_models=False, variables="encoder.*, *.bias")
    fit(compiled())
    (run,) = all_runs()
    names = {key.partition("/")[2] for key in run.data.metrics if key.startswith("grad_norm/")}
    assert names and all(name.endswith(".bias") for name in names)
    assert not any("matches none" in line for line in caplog.messages)
    mlflow_tfmon.autolog(log_models=False, variables="encoder.*")
    fit(compiled())
    fit(compiled())
    (line,) = [line for line in caplog.messages if "matches none" in line]
    assert "variables='encoder.*'" in line and "*.kernel" in line and "\n" not in line
