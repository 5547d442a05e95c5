"""Tests of what a model predicts for a few fixed examples: equal to Keras's own, in fit and loops, in the report."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import mlflow
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import mlflow_tfmon
from mlflow_tfmon import cluster
from mlflow_tfmon.errors import SettingError
from mlflow_tfmon.facts.arguments import bind_fit
from mlflow_tfmon.facts.validation import NoExamplesError, first_examples
from mlflow_tfmon.reading.files import UnreadableError
from mlflow_tfmon.reading.predictions import Predicted, load_predictions
from mlflow_tfmon.report.making import make
from mlflow_tfmon.report.predictions import slides
from mlflow_tfmon.settings import Settings
from mlflow_tfmon.tracking.names import PREDICTIONS
from mlflow_tfmon.watching.predictions import Predictions, _cell, _read
from tests import trainings

X, Y = trainings.data()
UNSEEN, LABELS = trainings.data(seed=5)
PIXELS = np.random.default_rng(3).uniform(size=(40, 9, 8, 1)).astype("float32")
fresh = pytest.mark.usefixtures("fresh")


def reader() -> keras.Model:
    """A classifier of pictures with all that changes when it is called in training."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((9, 8, 1)), layers.Conv2D(4, 3, activation="relu"), layers.BatchNormalization(),
         layers.Dropout(0.3), layers.Flatten(), layers.Dense(trainings.CLASSES)]
    )  # fmt: skip
    model.compile(keras.optimizers.SGD(0.1), trainings.loss(), metrics=["accuracy"])
    return model


class Asks(keras.callbacks.Callback):
    """What Keras predicts at each epoch's end."""

    def __init__(self, x: Any) -> None:
        super().__init__()
        self.x, self.found = x, []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.found.append(np.asarray(self.model(self.x, training=False)))


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits.astype(np.float64))
    return raised / raised.sum(axis=1, keepdims=True)


@pytest.mark.slow
@fresh
def test_in_fit_they_are_those_of_keras_and_change_nothing() -> None:
    labels = Y[:40]
    given = {"batch_size": 8, "epochs": 3, "verbose": 0, "validation_split": 0.25}
    unwatched = reader()
    unwatched.fit(PIXELS, labels, **given)
    mlflow_tfmon.autolog(predictions=4, checkpoint=False, log_models=False)
    watched, keras_own = reader(), Asks(PIXELS[30:34])
    watched.fit(PIXELS, labels, callbacks=[keras_own], **given)
    for one, other in zip(unwatched.get_weights(), watched.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)

    run_id = mlflow.last_active_run().info.run_id
    table = mlflow_tfmon.load_run(run_id).predictions
    assert list(table.epoch) == [0] * 4 + [1] * 4 + [2] * 4 and list(table.example) == [*range(4)] * 3
    assert set(table.step[table.epoch == 2]) == {12}
    for epoch, rows in table.groupby("epoch"):
        shares = softmax(keras_own.found[epoch])
        best = shares.argmax(axis=1)
        assert list(rows.prediction) == [f"{at} ({shares[row, at]:.0%})" for row, at in enumerate(best)]
        assert list(rows.target) == [str(one) for one in labels[30:34]]
        assert list(rows.right) == list(best == labels[30:34])
    kind, _, content = table.input[0].partition(",")
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    assert kind == "data:image/png;base64"
    np.testing.assert_array_equal(seen, (255 * PIXELS[30, ..., 0]).astype(np.uint8))

    page = make(run_id)
    (shown,) = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])["slides"]
    assert shown["cells"] == [[[text] for text in rows.prediction] for _, rows in table.groupby("epoch")]
    right = int((table.right[table.epoch == 2] == True).sum())  # noqa: E712
    assert f"after epoch 3 (step 12): {right} of 4 right" in page and page.count('<img class="picture"') == 4


@fresh
def test_in_a_loop_of_given_examples_and_by_a_function() -> None:
    model = trainings.model()
    step = trainings.custom_step(model, keras.optimizers.SGD(0.3))
    with mlflow_tfmon.Monitor(model, predictions=(UNSEEN[:5], LABELS[:5]), checkpoint=False) as monitor:
        for epoch in range(2):
            for x, y in trainings.batches(X, Y, 1):
                step(x, y)
            monitor.log_epoch(epoch)
        run_id = str(monitor.run_id)
    logits = np.asarray(model(UNSEEN[:5]))
    table = mlflow_tfmon.load_run(run_id).predictions
    last = table[table.epoch == 1]
    assert [int(text.split()[0]) for text in last.prediction] == logits.argmax(axis=1).tolist()
    assert last.input.iloc[0] == ", ".join(f"{value:.4g}" for value in UNSEEN[0].tolist())

    def shows(model: Any) -> Any:
        return [
            {"source": "zwei", "translation": "two", "right": True},
            {"source": "drei", "translation": "<b>three"},
        ]

    with mlflow_tfmon.Monitor(model, predictions=shows, checkpoint=False) as monitor:
        monitor.log_epoch(0)
        run_id = str(monitor.run_id)
        for x, y in trainings.batches(X, Y, 1):
            step(x, y)
    table = mlflow_tfmon.load_run(run_id).predictions
    assert list(table.translation) == ["two", "<b>three"] and list(table.right) == [True, None]
    assert "&lt;b&gt;three" in make(run_id)


def looked(predictions: Any, model: Any = None, arguments: Any = None) -> Any:
    """What is shown after the first epoch: the cells of each example."""
    files = Predictions(predictions).look(model, arguments, 0, 1, "")
    return json.loads(files[-1].text)["cells"] if files else []


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Any:
    from mlflow_tfmon import errors

    errors._said.clear()
    logging.getLogger("mlflow_tfmon").addHandler(caplog.handler)
    yield caplog
    logging.getLogger("mlflow_tfmon").removeHandler(caplog.handler)


def test_a_function_shows_pictures_figures_numbers_and_texts(said: Any) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2, 1))
    shown = {
        "picture": np.zeros((300, 400, 3), np.uint8),
        "figure": figure,
        "score": 0.25,
        "text": "x" * 1000,
    }
    ((cells,),) = [looked(lambda model: shown)]
    sizes = [
        Image.open(io.BytesIO(base64.b64decode(cells[one].partition(",")[2]))).size
        for one in ("picture", "figure")
    ]
    assert sizes == [(192, 144), (120, 60)] and cells["score"] == "0.25" and len(cells["text"]) == 400
    assert looked(lambda model: "a text") == [{"prediction": "a text"}]

    def fails(model: Any) -> Any:
        raise RuntimeError("no\nboxes")

    shower = Predictions(fails)
    assert shower.look(None, None, 0, 1, "") == shower.look(None, None, 1, 2, "") == ()
    (line,) = said.messages
    assert "predictions failed (RuntimeError: no boxes)" in line and "fix it" in line


def test_the_first_examples_of_every_kind_of_validation_data() -> None:
    def first(**given: Any) -> Any:
        return first_examples(bind_fit(keras.Model.fit, None, (X, Y), given), 6)

    pairs = tf.data.Dataset.from_tensor_slices((UNSEEN, LABELS))
    scaled = pairs.map(lambda x, y: (x / 2, y)).batch(4).cache().prefetch(1)
    for data, factor in (
        ((UNSEEN, LABELS), 1), (pairs.batch(4), 1), (pairs.shuffle(99).batch(4), 1), (scaled, 2),
        ((tf.constant(UNSEEN), LABELS, np.ones(len(LABELS))), 1),
    ):  # fmt: skip
        x, y = first(validation_data=data)
        np.testing.assert_array_equal(factor * x, UNSEEN[:6])
        np.testing.assert_array_equal(y, LABELS[:6])
    x, y = first(validation_split=0.25)
    np.testing.assert_array_equal(x, X[120:126])
    nested, y = first(validation_data=({"a": UNSEEN, "b": X}, LABELS))
    np.testing.assert_array_equal(nested["b"], X[:6])


def test_what_would_change_something_is_not_read_and_says_what_to_do(said: Any) -> None:
    pairs = tf.data.Dataset.from_tensor_slices((UNSEEN, LABELS))
    noisy = pairs.map(lambda x, y: (x + tf.random.normal([]), y)).batch(4)
    calls_python = pairs.map(lambda x, y: (tf.numpy_function(np.abs, [x], tf.float32), y)).batch(4)
    shuffled = pairs.map(lambda x, y: (x, y)).shuffle(9).batch(4)
    endless = tf.data.Dataset.from_generator(
        lambda: iter([(UNSEEN, LABELS)]),
        output_signature=(tf.TensorSpec((None, 6)), tf.TensorSpec((None,), tf.int64)),
    )
    for data in (noisy, calls_python, shuffled, endless):
        arguments = bind_fit(keras.Model.fit, None, (X, Y), {"validation_data": data})
        with pytest.raises(NoExamplesError, match="could change the training"):
            first_examples(arguments, 6)
    model = trainings.model()
    without = bind_fit(keras.Model.fit, None, (X, Y), {})
    assert looked(3, model, without) == looked(3, model) == looked(3) == looked((3, 4), model) == []
    assert len(said.messages) == 4
    assert (
        "predictions=3: none are shown, since the fit has no validation data; give the examples"
        in said.messages[0]
    )


def test_a_call_that_has_an_effect_is_not_made(said: Any) -> None:
    count = tf.Variable(1.0)

    class Counts(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x * count.assign_add(1.0)

    model = keras.Sequential([keras.Input((6,)), Counts()])
    before = float(count)
    assert looked((UNSEEN[:2], LABELS[:2]), model) == [] and float(count) == before
    (line,) = said.messages
    assert "the model's call has an effect besides its output" in line


def test_with_several_workers_nothing_is_called(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "place", lambda: cluster.Place(0, 2))
    assert (
        looked(lambda model: pytest.fail("called"))
        == looked((UNSEEN[:2], LABELS[:2]), trainings.model())
        == []
    )
    (line,) = said.messages
    assert "since the model has several replicas; predict with a checkpoint instead" in line


def test_after_an_error_it_is_off() -> None:
    model = trainings.model()
    shower = Predictions((np.zeros((2, 6)), np.zeros(2)))
    shower._given = object()  # no pair: an error of ours
    with pytest.raises(TypeError):
        shower.look(model, None, 0, 1, "")
    assert shower.look(model, None, 1, 2, "") == ()


def test_figures_of_pyplot_are_closed() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    before = pyplot.get_fignums()
    (cells,) = looked(lambda model: pyplot.figure(figsize=(2, 1)))
    assert cells["prediction"].startswith("data:image/png") and pyplot.get_fignums() == before


class Store:
    """A client of a store that has these files of predictions, and tells which were downloaded."""

    def __init__(self, folder: Path, **texts: Any) -> None:
        self.folder, self.texts, self.asked = folder, texts, []

    def list_artifacts(self, run_id: str, path: str) -> list[Any]:
        inside = (
            [f"{PREDICTIONS}/{name}.json" for name in self.texts] if path == PREDICTIONS else [PREDICTIONS]
        )
        return [SimpleNamespace(path=one) for one in inside]

    def download_artifacts(self, run_id: str, path: str, place: str) -> str:
        name = path.rpartition("/")[2]
        self.asked.append(name)
        file = Path(place) / name
        file.write_text(json.dumps(self.texts[name.removesuffix(".json")]))
        return str(file)


def epoch_file(step: Any, examples: str = "") -> dict[str, Any]:
    return {"step": step, "examples": examples, "cells": [{"prediction": "a"}], "right": [None]}


def test_epochs_are_chosen_of_each_model_before_they_are_downloaded(tmp_path: Path) -> None:
    files = {f"epoch-{at:05d}": epoch_file(at) for at in range(90)}
    files |= {f"other.epoch-{at:05d}": epoch_file(at, "0" * 16) for at in (3, 5)}
    store = Store(tmp_path, **files, **{"other.examples-" + "0" * 16: [{"input": "b"}]})
    found = load_predictions(store, "run", 4)
    assert [(one.prefix, one.epoch) for one in found] == [
        ("", 0), ("other.", 3), ("other.", 5), ("", 30), ("", 59), ("", 89)
    ]  # fmt: skip
    assert len(store.asked) == 7 and found[1].examples == [{"input": "b"}]
    many = Store(tmp_path, **{f"epoch-{at}": epoch_file(at) for at in range(999)})
    assert len(load_predictions(many, "run")) == len(many.asked) == 256


def test_a_step_that_is_no_number_is_told_with_its_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match=r"epoch-00001\.json cannot be read \(OverflowError"):
        load_predictions(Store(tmp_path, **{"epoch-00001": epoch_file(float("inf"))}), "run")


def test_the_page_shows_the_epochs_of_the_last_examples() -> None:
    def predicted(epoch: int, of: str) -> Predicted:
        return Predicted(epoch, epoch, "", [{"input": of}], [{"prediction": str(epoch)}], [None])

    (shown,) = slides(lambda most: [predicted(0, "old"), predicted(1, "new"), predicted(2, "new")])
    assert shown.examples == [["new"]] and shown.cells == [[["1"]], [["2"]]]


@pytest.mark.parametrize(
    ("output", "target", "binary", "texts", "right"),
    [
        ([[0.1, 0.9], [0.6, 0.4]], [1, 1], False, ["1 (90%)", "0 (60%)"], [True, False]),
        ([[0.1, 0.9], [0.6, 0.4]], [[0, 1], [1, 0]], False, ["1 (90%)", "0 (60%)"], [True, True]),
        ([[0.0, 1000.0]], [[1]], False, ["1 (100%)"], [True]),
        ([[0.25], [0.75]], [[0], [0]], True, ["0.25", "0.75"], [True, False]),
        ([[-2.0], [0.0]], None, True, ["0.119", "0.5"], [None, None]),
        ([[3.25], [-1.5]], [1.0, 2.0], False, ["3.25", "-1.5"], [None, None]),
        ([[1.5, 2.5, 3.0]], [[1.0, 2.0, 3.5]], False, ["1.5, 2.5, 3"], [None]),
    ],
)  # fmt: skip
def test_how_outputs_are_read(
    output: Any, target: Any, binary: bool, texts: list[str], right: list[Any]
) -> None:
    found = _read(np.array(output), None if target is None else np.array(target), binary)
    assert found == (texts, right)


def test_long_and_wide_values_are_cut() -> None:
    assert _cell(np.arange(20)) == "0, 1, 2, 3, 4, 5, 6, 7, … (20 values)"
    assert _cell(np.array([b"a", b"b"], dtype="O")) == "a, b" and _cell("äß".encode()) == "äß"
    masks, _ = _read(np.random.default_rng(0).uniform(size=(2, 16, 16, 7)), None, False)
    assert all(one.startswith("data:image/png;base64,") for one in masks)


@pytest.mark.parametrize("wanted", [-1, 33, True, "all", (1, 2, 3), 1.5])
def test_a_wrong_setting_says_what_to_give(wanted: Any) -> None:
    with pytest.raises(
        SettingError, match=r"predictions=.*: predictions must be a number of validation examples"
    ):
        Settings.make(predictions=wanted)


def test_epochs_are_kept_more_rarely_as_they_go_on() -> None:
    shower = Predictions(lambda model: "same")
    kept = [epoch for epoch in range(200) if shower.look(None, None, epoch, epoch, "")]
    assert kept[:33] == list(range(33)) and len(kept) < 80
