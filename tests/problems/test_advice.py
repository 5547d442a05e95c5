"""Tests of the benchmark that follows advice: each piece is done to the training as the text says."""

from __future__ import annotations

import dataclasses
from typing import Any

import keras
import numpy as np
import pytest
from scipy.stats import binomtest

from benchmarks.advice import OUTCOMES, follow, outcome, report, wilson
from mlflow_tfmon import Problem
from mlflow_tfmon.detectors import judge
from mlflow_tfmon.detectors.sample import Sample
from tests.detectors.histories import history, premises
from tests.detectors.test_detectors import BAD

pytestmark = pytest.mark.slow
X, Y = np.random.default_rng(0).normal(5, 30, (64, 6)).astype("float32"), np.arange(64) % 3 + 1


def training() -> tuple[keras.Model, dict[str, Any]]:
    keras.utils.set_random_seed(0)
    layers = [
        keras.layers.Dense(8, "sigmoid", name="a"),
        keras.layers.BatchNormalization(),
        keras.layers.Dense(4, name="c"),
    ]
    model = keras.Sequential([keras.Input((6,)), *layers])
    model.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model, {"x": X, "y": Y, "validation_data": (X[:8], Y[:8]), "epochs": 1, "batch_size": 16}


def followed(advice: str, *variables: str) -> tuple[keras.Model, dict[str, Any], str]:
    model, fit = training()
    piece = follow(Problem("of_any_kind", "critical", 1, variables, "Seen.", advice), model, fit)
    model.fit(**fit, verbose=0)  # it is still a training
    return model, fit, piece


def test_rates_and_clipping() -> None:
    model, _, piece = followed(
        "Lower the learning rate from 1 to 2e-05, with which a step changes less; or clip."
    )
    assert piece.endswith("to 2e-05")
    assert float(model.optimizer.learning_rate) == pytest.approx(2e-5)
    model, _, _ = followed(
        "Clip gradients (clipnorm=1.0 in the optimizer) and lower the learning rate from 1 to 0.05. If"
    )
    assert model.optimizer.clipnorm == 1.0
    assert float(model.optimizer.learning_rate) == pytest.approx(0.05)
    model, _, _ = followed("Raise the learning rate, use Adam or momentum.")
    assert float(model.optimizer.learning_rate) == pytest.approx(10.0)


def test_data() -> None:
    (problem,) = (
        one
        for one in judge(history(1.4, known=premises(inputs=Sample.of(X, targets=False))))
        if one.kind == "unnormalized_input"
    )
    _, fit, _ = followed(problem.advice)
    assert abs(fit["x"].mean()) < 0.1 and fit["x"].std() == pytest.approx(1, rel=0.05)
    np.testing.assert_allclose(fit["validation_data"][0], fit["x"][:8], rtol=1e-5)
    _, fit, _ = followed(
        "Number the labels from 0, or give the last layer as many units as there are classes."
    )
    assert fit["y"].min() == 0 and (fit["validation_data"][1] == fit["y"][:8]).all()
    _, fit, _ = followed(
        "Give rare classes more weight, fit(..., class_weight={0: 0.5, 1: 2, 2: 1.5, 3: 1}), or so."
    )
    assert fit["class_weight"] == {0: 0.5, 1: 2.0, 2: 1.5, 3: 1.0}


def test_models_and_losses() -> None:
    model, _, _ = followed(
        "Compile with loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), or end the model with "
        'Dense(3, activation="softmax").'
    )
    assert (
        model.loss.from_logits is True
        if hasattr(model.loss, "from_logits")
        else model.loss._fn_kwargs["from_logits"]
    )
    assert "accuracy" in model.fit(X, Y - 1, verbose=0).history
    model, _, _ = followed('End the model with Dense(3, activation="softmax"), or with activation=None.')
    np.testing.assert_allclose(np.asarray(model(X)).sum(1), 1.0, rtol=1e-5)
    before = training()[0].get_layer("a").kernel.numpy()
    model, _ = training()
    problem = Problem(
        "vanishing_gradient", "critical", 1, ("a.kernel",), "Seen.", "Use ReLU, GELU or SELU instead."
    )
    assert follow(problem, model, {}) == "Use ReLU"
    assert model.get_layer("a").activation is keras.activations.relu
    assert not np.array_equal(model.get_layer("a").kernel.numpy(), before)
    model, _ = training()
    assert follow(
        Problem("k", "warning", 1, (), "", "Use BatchNormalization(momentum=0.8), or train."), model, {}
    )
    assert model.layers[1].momentum == 0.8


def test_what_only_a_person_can_do_is_not_followed() -> None:
    assert followed("Check that inputs and targets belong together.")[2] == ""


def test_most_advice_can_be_followed() -> None:
    """A wording that the benchmark no longer knows would silently be left to a person."""
    for_a_person = {
        "desync",
        "straggler",
        "worker_stopped",
        "memory_growth",
        "nan_or_inf",
        "stagnant_weights",
        "retracing",
        "input_bound",
        "accumulation_not_zeroed",
        "generator_collapse",
        "loss_unbounded",
        "optimizer_renewed",
        "overfitting",
    }
    for kind, some in BAD.items():
        for of in some:
            found = next(one for one in judge(of) if one.kind == kind)
            problem = dataclasses.replace(found, variables=())  # those are of another model
            model, fit = training()
            fit |= {"x": np.abs(X), "y": np.clip(Y, 0, 2)}
            if kind not in for_a_person | {
                "loss_output_mismatch",
                "improper_activation",
                "loss_scale_collapse",
            }:
                if "class_weight" in problem.advice or "loss_weights" in problem.advice:
                    continue
                assert follow(problem, model, fit), (kind, problem.advice)


def test_outcomes() -> None:
    assert [outcome(0.1, after, 0.8) for after in (0.8, 0.4, 0.2, 0.1)] == [
        "mended",
        "partly",
        *["no better"] * 2,
    ]
    assert outcome(0.5, 0.3, 0.8) == "harmed"
    assert outcome(-np.inf, -3.0, 0.8) == "no better"
    for some, all_of_them in ((0, 5), (3, 7), (12, 26), (50, 50)):
        expected = binomtest(some, all_of_them).proportion_ci(method="wilson")
        assert wilson(some, all_of_them) == pytest.approx((expected.low, expected.high), abs=1e-3)
    text = report([{"kind": "dead_relu", "outcome": one} for one in OUTCOMES])
    assert "mended       1 of 4: 25%" in text and "dead_relu" in text
