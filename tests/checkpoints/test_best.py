"""Tests of the best epoch, which must be the one that Keras's own callbacks find."""

from __future__ import annotations

import logging
import math
from typing import Any

import keras
import numpy as np
import pytest

from mlflow_tfmon import errors
from mlflow_tfmon.checkpoints.best import Best, directions_of
from mlflow_tfmon.settings import Settings

METRICS = (
    "accuracy", "AUC", "Precision", "Recall", "F1Score", "mse", "mae", "RootMeanSquaredError", "R2Score", "Poisson",
    "CosineSimilarity", "KLDivergence", "BinaryIoU", "TopKCategoricalAccuracy", "LogCoshError", "TrueNegatives",
)  # fmt: skip


def keras_knows(model: Any, monitor: str, values: list[float], min_delta: float = 0.0) -> int:
    """The epoch that Keras's EarlyStopping finds to be the best."""
    stopping = keras.callbacks.EarlyStopping(
        monitor, patience=99, min_delta=min_delta, restore_best_weights=True
    )
    stopping.set_model(model)
    stopping.on_train_begin()
    for epoch, value in enumerate(values):
        stopping.on_epoch_end(epoch, {monitor: value})
    return int(stopping.best_epoch)


def test_mode_auto_is_kerass() -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "softmax")])
    model.compile("sgd", "categorical_crossentropy", metrics=list(METRICS))
    data = np.random.default_rng(0)
    x, y = data.normal(size=(8, 3)), np.eye(4)[data.integers(0, 4, 8)]
    history = model.fit(x, y, validation_data=(x, y), verbose=0).history
    monitors = [key for key in history if key.startswith("val_")]
    assert len(monitors) == len(METRICS) + 1
    values, known = [0.5, 0.7, 0.2, 0.6], 0
    for monitor in monitors:
        best = Best(Settings.make(monitor=monitor))
        for epoch, value in enumerate(values):
            best.consider(epoch, {monitor: value}, directions_of(model))
        try:
            expected = keras_knows(model, monitor, values)
            known += 1
        except ValueError as error:  # Keras does not know: then it goes by the name
            assert "isn't able to automatically determine" in str(error), error
            expected = 2
        assert best.epoch == expected, monitor
    assert known > len(METRICS) / 2


def test_min_delta_is_kerass_and_what_is_not_finite_is_never_the_best() -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    values = [0.50, 0.47, 0.44, 0.30, 0.28, 0.31]
    best = Best(Settings.make(min_delta=0.05))
    for epoch, value in enumerate(values):
        best.consider(epoch, {"val_loss": value})
    assert best.epoch == keras_knows(model, "val_loss", values, 0.05)
    best = Best(Settings.make(monitor="val_accuracy"))
    for epoch, value in enumerate([math.nan, 0.5, math.inf, -math.inf, 0.4]):
        best.consider(epoch, {"val_accuracy": value})
    assert (best.epoch, best.value) == (1, 0.5)


def test_without_validation_data_the_loss_stands_in_until_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(errors, "_said", set())
    monkeypatch.setattr(logging.Logger, "log", lambda self, level, text, *more: said.append(text))
    best = Best(Settings.make())
    assert best.consider(0, {"loss": 0.5}) and best.consider(1, {"loss": 0.4})
    assert (best.metric, best.epoch) == ("loss", 1)
    assert len(said) == 1 and "no validation data: 'loss' is used" in said[0]
    assert best.consider(
        2, {"loss": 0.3, "val_loss": 0.9}
    )  # it is what was asked for, though a larger number
    assert (best.metric, best.value) == ("val_loss", 0.9)
    assert not best.consider(3, {"loss": 0.2})
    other = Best(Settings.make(monitor="val_auc"))
    assert not other.consider(0, {"loss": 0.5, "accuracy": 0.9})
    assert "'val_auc' was never logged" in str(other.complaint()) and "loss, accuracy" in str(
        other.complaint()
    )


def test_where_there_is_validation_data_the_loss_does_not_stand_in_though_it_comes_first(caplog: Any) -> None:
    best = Best(Settings.make())
    with caplog.at_level("INFO", "mlflow_tfmon"):
        assert not best.consider(0, {"loss": 0.5}, validated=True)  # validation_freq=2
        assert best.consider(1, {"loss": 0.4, "val_loss": 0.9}, validated=True)
    assert (best.metric, best.epoch) == ("val_loss", 1)
    assert not caplog.messages


def test_of_a_metric_that_nobody_knows_less_is_better_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(errors, "_said", set())
    known = {"monitor": "val_accuracy"}, {}, {"monitor": "out_mse"}, {"monitor": "val_bleu", "mode": "max"}
    with caplog.at_level("INFO", "mlflow_tfmon"):
        for settings in known:
            checked = Settings.make(**settings)
            assert Best(checked).consider(0, {checked.monitor: 0.5})
        assert Best(Settings.make(monitor="val_top")).consider(0, {"val_top": 0.5}, {"top": "up"})
        assert not caplog.messages
        best = Best(Settings.make(monitor="val_bleu"))
        assert best.consider(0, {"val_bleu": 0.5}) and not best.consider(1, {"val_bleu": 0.6})
    (said,) = caplog.messages
    assert "monitor='val_bleu': lower values are assumed to be better" in said and 'mode="max"' in said
