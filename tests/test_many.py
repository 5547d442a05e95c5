"""Tests of many optimizers and models in one process: their counted cost does not grow with their number."""

from __future__ import annotations

import gc
import logging
import threading
from pathlib import Path

import keras
import mlflow
import pytest
import tensorflow as tf

import mlflow_tfmon
from mlflow_tfmon.probes.step import StepProbe
from mlflow_tfmon.watching import pipeline


def test_an_optimizer_for_each_example(
    fresh: None, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    traced: list[object] = []
    record = StepProbe._record

    def recorded(self: StepProbe, *args: object) -> None:
        traced.append(self)
        record(self, *args)

    monkeypatch.setattr(StepProbe, "_record", recorded)
    mlflow_tfmon.autolog(log_models=False)
    threads: set[int] = set()
    files: set[int] = set()

    def example() -> None:
        offset, optimizer = tf.Variable(tf.zeros([1, 4])), keras.optimizers.SGD(0.1)
        for _ in range(2):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((offset - 1.0) ** 2)
            optimizer.apply_gradients([(tape.gradient(loss, offset), offset)])

    with caplog.at_level(logging.INFO), mlflow.start_run():
        for number in range(12):
            example()
            gc.collect()
            if number >= 2:
                threads.add(threading.active_count())
                files.add(len(list(home.rglob("*.db"))))
                assert len(pipeline.DRAIN._taps) <= 2
    assert len(traced) == 1
    assert len(threads) == 1 and len(files) == 1
    assert sum("can't be measured" in line for line in caplog.messages) == 1
    assert not any("retracing" in line for line in caplog.messages)
