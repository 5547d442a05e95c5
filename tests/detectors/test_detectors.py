"""Tests of each kind of problem, with trainings that have it and healthy ones that resemble them."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlflow_tfmon.detectors
from mlflow_tfmon.detectors import History, judge, straggler
from mlflow_tfmon.detectors.learning import learning
from mlflow_tfmon.detectors.premises import OVER_EXAMPLES, Layer
from mlflow_tfmon.detectors.sample import Sample, mixed
from mlflow_tfmon.detectors.table import Table
from tests.detectors.histories import EPOCHS, MEMORY, STEPS, history, premises

CHANCE = float(np.log(4))  # the entropy of four balanced classes
_T = np.arange(STEPS)


def _kinds(of: History) -> set[str]:
    return {problem.kind for problem in judge(of)}


def _regression(**changes: Any) -> Any:
    out = Layer("c", "Dense", "linear", 1, "c.kernel", 16, 1, 0.0, 0.3, is_output=True)
    layers = (*premises().layers[:2], out)
    targets = Sample.of(np.random.default_rng(0).normal(size=400) - 2.0)
    return premises(**{"layers": layers, "loss": "mean_squared_error", "targets": targets, **changes})


def _with_layer(at: int, **changes: Any) -> Any:
    layers = list(premises().layers)
    layers[at] = dataclasses.replace(layers[at], **changes)
    return premises(layers=tuple(layers))


def _broken_at(step: int) -> np.ndarray:
    return np.where(step <= _T + 1, np.nan, CHANCE)


_RARE = Sample.of((np.arange(400) % 20 == 0).astype(int))


def _fed(labels: np.ndarray, size: int = 32, **known: Any) -> Any:
    """Of labels that come in batches of a size, as they are."""
    batches = [labels[at : at + size] for at in range(0, len(labels), size)]
    targets = dataclasses.replace(Sample.of(labels), mixed=mixed(batches))
    return premises(**{"in_order": True, "targets": targets, **known})


_IN_ORDER = _fed(np.sort(np.arange(400) % 4))
_FEW = Sample.of(np.arange(20) % 2)
_RARE_CLASS = dataclasses.replace(
    _with_layer(2, units=1, activation="sigmoid"),
    loss="binary_crossentropy",
    targets=_RARE,
    val_targets=_RARE,
)
_RECURRENT = Layer("r", "SimpleRNN", "relu", radius=9.8)
_PROBABILITIES = (*premises().layers[:2], dataclasses.replace(premises().layers[2], units=4))
_OF_TWO = {
    "a_loss": 0.1 + np.exp(-_T / 60),
    "b_loss": 0.7 + 0.01 * np.random.default_rng(2).normal(size=STEPS),
}


def _turning(loss: np.ndarray, other: np.ndarray) -> History:
    """One of two optimizers that alternate, and the other's loss."""
    return dataclasses.replace(
        history(loss), alone=False, others={"discriminator": history(other).steps.column("loss")}
    )


def _without_loss(of: History) -> Table:
    return of.steps.only([name for name in of.steps.names if name != "loss"])


def _making(spread: np.ndarray) -> History:
    """A generator in balance with its discriminator, and how far apart its examples are."""
    known, steps = premises(loss="", targets=None, layers=(), spread=1.0), len(spread)
    both = (
        history(value, steps=steps, known=known, columns={"output_spread": spread}) for value in (0.7, 1.3)
    )
    of, other = both
    return dataclasses.replace(of, alone=False, others={"discriminator": other.steps.column("loss")})


def _of_a_loop(**known: Any) -> Any:
    """Of a custom loop without a formula for its loss."""
    return premises(**{"loss": "", "targets": None, "inputs": None, "layers": (), "graph": False, **known})


def _narrow_with_softmax() -> Any:
    first, second, last = premises().layers
    narrow = dataclasses.replace(second, units=1)
    return premises(layers=(first, narrow, Layer("weights", "Softmax", "softmax"), last))


_JUDGED = premises(loss="binary_crossentropy", targets=None, layers=(), spread=1.0)


def _workers(slow: float, fast: float, wait: float, between: float = 0.0) -> dict[str, np.ndarray]:
    """Two workers, of which one is slow, by its own time, the wait for its batch and what is between its steps, ms."""
    own = {
        "worker_0/step_time_ms": fast, "worker_1/step_time_ms": slow, "worker_1/input_wait_ms": wait,
        "worker_1/between_steps_ms": between,
    }  # fmt: skip
    return {"time": 100 + 0.1 * _T, **{name: np.full(STEPS, value) for name, value in own.items()}}


BAD = {
    "nan_or_inf": [
        history(_broken_at(100), norm=np.where(_T + 1 >= 100, np.nan, 1.0)),
        history(known=premises(inputs=Sample.of(np.array([[1.0, np.nan]] * 20)))),
    ],
    "exploding_gradient": [
        history(CHANCE * np.exp(_T / 40), norm=np.exp(_T / 10)),
        history(_broken_at(1), norm=np.full(STEPS, np.nan)),
    ],
    "vanishing_gradient": [history(CHANCE, gradients=(1e-9, 1e-5, 0.1))],
    "dead_relu": [history(CHANCE, dead=0.9)],
    "saturated_activation": [history(CHANCE, saturated=0.9, activation="tanh")],
    "learning_rate_too_high": [
        history(CHANCE * 1.2, update=0.5),
        # of a small validation set, in which the class that is always named is frequent
        history(CHANCE * 1.2, update=0.5, accuracy=(0.25, 0.33), val_loss=np.full(EPOCHS, CHANCE * 1.2)),
        history(CHANCE * np.exp(_T / 40)),
        history(np.where(_T < 50, CHANCE, 0.8 * CHANCE), columns={"learning_rate": np.full(STEPS, 1.0)}),
    ],
    "learning_rate_too_low": [history(CHANCE - 0.0002 * _T, update=1e-6)],
    "unshuffled_data": [history(0.6 * CHANCE, known=_IN_ORDER)],
    "oscillating_loss": [history(0.8 + 0.6 * np.sign(np.sin(_T * np.pi / 20 + 1e-9)))],
    "plateau": [
        history(np.where(_T < 50, CHANCE, 0.9 * CHANCE)),
        # all goes through one unit
        history(np.where(_T < 50, CHANCE, 0.6 * CHANCE), known=_with_layer(1, units=1)),
    ],
    "optimizer_renewed": [history(0.6 * CHANCE, known=_of_a_loop(optimizers=STEPS, loss="huber"))],
    "underfitting": [
        history(CHANCE),
        # in a loop whose formula nobody knows, after a large first loss
        history(
            1.0 + 9.0 * np.exp(-_T / 20),
            known=_of_a_loop(fed=Sample.of(np.random.default_rng(0).normal(size=4000), True)),
        ),
    ],
    "slow_convergence": [history(CHANCE * (1 - 0.25 * (_T / STEPS) ** 1.5))],
    "overfitting": [
        history(known=_of_a_loop(repeated=45)),
        history(val_loss=np.r_[np.linspace(1.3, 0.8, 6), np.linspace(0.85, 1.6, EPOCHS - 6)]),
        # labels of other examples, hardly learned by heart
        history(CHANCE * (1 - 0.08 * _T / STEPS), val_loss=np.full(EPOCHS, 1.04 * CHANCE)),
        # labels of other examples, slowly learned by heart
        history(CHANCE * (1 - 0.25 * _T / STEPS), val_loss=np.full(EPOCHS, 1.04 * CHANCE)),
        # always the same examples, or the averages of a batch normalization that are not right yet
        history(accuracy=(1.0, 0.3), val_loss=np.linspace(CHANCE, 0.8 * CHANCE, EPOCHS)),
    ],
    "stagnant_weights": [
        # frozen with random weights
        history(CHANCE * 0.6, known=_with_layer(0, trainable=False, untouched=True)),
        # what comes before a rounding, while what comes after it learns
        history(known=_of_a_loop(unreached=("encoder.kernel",), cut=True)),
        history(CHANCE * 0.5, gradients=(0.1, 0.0, 0.1)),
        history(CHANCE * 0.9, known=_of_a_loop(unreached=("body.kernel",))),
    ],
    "poor_initialization": [
        history(
            done=1,
            known=premises(layers=tuple(dataclasses.replace(one, std=0.0) for one in premises().layers)),
        ),
        history(CHANCE, known=_with_layer(1, std=20.0)),
        history(CHANCE, known=_with_layer(1, mean=1.0, std=0.0)),
        history(CHANCE, known=premises(layers=(_RECURRENT, *premises().layers))),
    ],
    "improper_activation": [
        # of probabilities between -1 and 1
        history(
            CHANCE,
            known=dataclasses.replace(
                _with_layer(2, units=1, activation="tanh"),
                loss="binary_crossentropy",
                targets=Sample.of(np.arange(400) % 2),
            ),
        ),
        history(
            1.0,
            known=_regression(layers=(*premises().layers[:2], _with_layer(2, activation="relu").layers[2])),
            done=1,
        ),
        history(
            0.6 * CHANCE,
            known=premises(
                layers=tuple(dataclasses.replace(one, activation="linear") for one in premises().layers)
            ),
        ),
        history(CHANCE, known=_with_layer(0, activation="exponential")),
        history(
            -0.5,
            known=_regression(
                layers=(*premises().layers[:2], _with_layer(2, activation="relu").layers[2]),
                loss="cosine_similarity",
            ),
        ),
    ],
    "loss_output_mismatch": [
        history(known=_with_layer(2, activation="linear"), done=1),
        history(known=_with_layer(2, units=3), done=1),
        history(known=_with_layer(2, units=1, activation="softmax"), done=1),
        history(known=_with_layer(2, units=1, activation="softmax"), accuracy=(0.3, 0.3)),
        history(CHANCE, known=_with_layer(2, activation="sigmoid")),
        # numbers of classes, of which each probability is to be one
        history(
            1.2,
            known=_regression(layers=_PROBABILITIES, targets=Sample.of(np.arange(400) % 4)),
        ),
        # classes -1 and 1: the loss falls below zero, and without end
        history(
            0.6 - 0.02 * _T,
            known=dataclasses.replace(
                _with_layer(2, units=1, activation="sigmoid"),
                loss="binary_crossentropy",
                targets=Sample.of(2 * (np.arange(400) % 2) - 1),
            ),
        ),
        history(
            known=dataclasses.replace(
                _with_layer(2, units=3),
                loss="binary_crossentropy",
                targets=Sample.of(np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]] * 9)),
            ),
            done=1,
        ),
        history(
            5.0,
            known=dataclasses.replace(
                _with_layer(2, units=3),
                loss="categorical_crossentropy",
                targets=Sample.of(np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]] * 9)),
            ),
        ),
    ],
    "unnormalized_input": [
        history(
            CHANCE, known=premises(inputs=Sample.of(300 * np.random.default_rng(0).normal(size=(99, 8))))
        ),
        # divided by 255 twice
        history(CHANCE, known=premises(inputs=Sample.of(np.random.default_rng(0).random((99, 8)) / 255))),
    ],
    "input_bound": [
        history(columns={"time": 100 + 0.1 * _T, "input_wait": np.full(STEPS, 0.08)}),
        history(columns={"input_wait": np.zeros(STEPS), **_workers(80.0, 10.0, wait=70.0)}),
    ],
    "retracing": [history(columns={"traces": np.floor(_T / 2)})],
    "memory_growth": [
        history(done=200, memory=1000 + 20.0 * _T),
        # what is collected now and then
        history(done=200, memory=1000 + 20.0 * _T + 300 * (_T % 8 == 0)),
        # before an epoch has ended
        history(done=200, memory=1000 + 25.0 * _T, ends=False),
    ],
    "loss_scale_collapse": [
        history(1e6, columns={"loss_scale": np.maximum(2.0 ** (15 - _T), 1e-30), "skipped": np.ones(STEPS)}),
        # most steps overflow, at a scale that is still large
        history(columns={"loss_scale": np.full(STEPS, 64.0), "skipped": (_T % 4 > 0).astype(float)}),
    ],
    "output_not_learning": [history(columns=_OF_TWO)],
    "one_class_predicted": [
        history(0.2, known=_RARE_CLASS, accuracy=(0.95, 0.95)),
        history(0.2, known=dataclasses.replace(_RARE_CLASS, val_targets=None), accuracy=(0.95, 0.3)),
        history(CHANCE, accuracy=(0.25, 0.25)),
    ],
    "accumulation_not_zeroed": [
        history(CHANCE, known=premises(piles=True), done=20),
        # where the values of the gradients are not known
        dataclasses.replace(
            history(CHANCE, norm=1.0 + 0.05 * _T),
            steps=_without_loss(history(CHANCE, norm=1.0 + 0.02 * _T + 0.2 * np.sin(_T / 40))),
        ),
    ],
    "loss_unbounded": [
        history(-0.02 * np.exp(_T / 60)),
        history(CHANCE - 0.02 * _T, known=premises(maximized=True)),
    ],
    "generator_collapse": [
        _turning(0.7 + 0.02 * _T, 1.4 * np.exp(-_T / 40)),
        dataclasses.replace(  # a saturating loss, which falls as the discriminator wins
            _turning(-1.0 * np.exp(-_T / 10), 0.03 + np.exp(-_T / 10)),
            premises=_JUDGED,
        ),
        _making(np.where(np.arange(800) < 100, 0.01 * np.arange(800), 0.1)),
    ],
    "desync": [
        history(columns={"worker_1/weights_apart": np.where(_T % 16 > 0, np.nan, _T > 100)}),
        history(columns={"worker_2/gradient_apart": 0.5 * (_T > 100)}),
        history(columns={"worker_2/gradient_apart": 1e-5 * (_T > 100)}),
    ],
    "straggler": [
        history(columns=_workers(80.0, 10.0, wait=0.0)),
        history(columns=_workers(80.0, 20.0, wait=70.0)),
    ],
    "worker_stopped": [dataclasses.replace(history(), stopped={"worker 1": 31.0})],
}


@pytest.mark.parametrize(("kind", "of"), [(kind, of) for kind, some in BAD.items() for of in some])
def test_the_kind_is_named_with_evidence_and_advice(kind: str, of: History) -> None:
    found = {problem.kind: problem for problem in judge(of)}
    assert kind in found
    problem = found[kind]
    assert problem.severity in ("warning", "critical")
    assert 0.5 <= problem.confidence <= 1.0
    assert len(problem.evidence) > 30
    assert problem.evidence.endswith((".", ")"))
    assert len(problem.advice) > 20
    assert 0 <= problem.first_step <= of.step


@pytest.mark.parametrize("number", [1e9, np.inf, -np.inf, -3.0, 0.5, 3.5])
def test_weights_apart_of_a_variable_that_there_is_not(number: float) -> None:
    of = history(columns={"worker_1/weights_apart": number * (_T > 100) if np.isfinite(number) else
                          np.where(_T > 100, number, 0.0)})  # fmt: skip
    (problem,) = [one for one in judge(of) if one.kind == "desync"]
    assert problem.variables == (("c.kernel",) if number == 3.5 else ())
    assert "worker 1 from step 102 on" in problem.evidence


@pytest.mark.parametrize(
    ("wait", "between", "advice"),
    [(0, 0, "that machine"), (65, 0, "its input"), (0, 65, "between the steps")],
)
def test_what_a_straggler_does_is_told(wait: float, between: float, advice: str) -> None:
    (problem,) = straggler.detect(history(columns=_workers(80.0, 10.0, wait, between)))
    assert f"80 of 100 ms, {wait} ms of that waiting for a batch and {between} ms between" in problem.evidence
    assert problem.evidence.endswith("the update take another 20%.") and advice in problem.advice


HEALTHY = {
    "goes well": history(),
    "an attention of one unit, with all there is to learn": history(
        np.where(_T < 50, CHANCE, 0.6 * CHANCE), known=_narrow_with_softmax()
    ),
    "two optimizers, one after the other": history(known=_of_a_loop(optimizers=2)),
    "an optimizer for each inner loop, beside that of all": dataclasses.replace(
        history(0.6 * CHANCE, known=_of_a_loop(optimizers=STEPS, loss="huber")), alone=False
    ),
    "an optimizer of its own for each step, that learns all the same": history(
        known=premises(optimizers=STEPS)
    ),
    "a penalty by hand, beside which all is learned": history(
        2.0, columns={"data_loss": 0.05 + 1.4 * np.exp(-_T / 60)}
    ),
    "a recurrent kernel that learns all the same": history(
        known=premises(layers=(_RECURRENT, *premises().layers))
    ),
    "a squared error of probabilities": history(
        0.02 + 0.2 * np.exp(-_T / 60),
        known=_regression(layers=_PROBABILITIES, targets=Sample.of(np.eye(4)[np.arange(400) % 4])),
    ),
    # losses that are meant to be negative
    "a log-likelihood that levels off": history(1.5 - 8 * (1 - np.exp(-_T / 60)), known=_of_a_loop()),
    "a score that rises to its bound": history(-1 + np.exp(-_T / 60), known=_of_a_loop()),
    "a policy's loss around zero": history(
        0.02 * np.random.default_rng(4).normal(size=STEPS) - 1e-4 * _T, known=_of_a_loop()
    ),
    "a critic whose loss falls without end": dataclasses.replace(
        history(-0.02 * np.exp(_T / 60), known=_of_a_loop()), alone=False
    ),
    # loops whose batches have a second part
    "a converged loss that is far from a constant prediction's": history(
        0.4 + np.exp(-_T / 40),
        known=_of_a_loop(fed=Sample.of(np.random.default_rng(0).normal(size=400), True)),
    ),
    "a second head, which is trained later": history(known=_of_a_loop(unreached=("late.kernel",))),
    "with many dead units": history(dead=0.8),
    "workers that are alike": history(
        columns={f"worker_1/{name}_apart": np.zeros(STEPS) for name in ("weights", "gradient")}
    ),
    "a worker that waits until another one is through with its callbacks": history(
        columns={
            **_workers(80.0, 79.0, wait=0.0, between=70.0),
            "worker_0/input_wait_ms": np.full(STEPS, 69.0),
            "worker_0/between_steps_ms": np.full(STEPS, 1.0),
        }
    ),
    "workers that are slow in turn": history(columns=_workers(80.0, 79.0, wait=0.0)),
    "with saturated units": history(saturated=0.9, activation="tanh"),
    "with small early gradients": history(gradients=(1e-6, 1e-3, 0.1)),
    "inputs of any scale": history(
        known=premises(inputs=Sample.of(500 * np.random.default_rng(0).normal(size=(99, 8))))
    ),
    "sigmoid outputs of exclusive classes": history(known=_with_layer(2, activation="sigmoid")),
    "a spike of the gradient": history(norm=np.where(_T == 200, 1e6, 0.1)),
    "a step of the learning rate": history(np.where(_T < 200, 0.6, 0.2)),
    "noisy batches": history(0.3 + np.exp(-_T / 60) + 0.3 * np.random.default_rng(3).normal(size=STEPS)),
    "slow at first": history(np.where(_T < 80, CHANCE, 0.1 + 1.2 * np.exp(-(_T - 80) / 40)), done=100),
    "the validation loss rises a little": history(
        val_loss=np.r_[np.linspace(1.3, 0.2, 10), np.linspace(0.2, 0.28, 10)]
    ),
    "a validation loss that rises, while nine of ten are right": history(
        val_loss=np.r_[np.linspace(1.3, 0.3, 6), np.linspace(0.32, 0.6, EPOCHS - 6)], accuracy=(1.0, 0.9)
    ),
    "validation data that gain less": history(
        0.1 + 1.2 * np.exp(-_T / 60), val_loss=np.full(EPOCHS, 0.9 * CHANCE)
    ),
    "zeros in the output layer alone": history(known=_with_layer(2, std=0.0)),
    "constant initial weights that learn all the same": history(
        known=premises(layers=tuple(dataclasses.replace(one, std=0.0) for one in premises().layers))
    ),
    "logits for probabilities that learn all the same": history(known=_with_layer(2, activation="linear")),
    "a rectified output that learns all the same": history(known=_with_layer(2, activation="relu")),
    "a large loss with a good accuracy": history(
        np.where(_T < 100, CHANCE, 5 * CHANCE), accuracy=(0.95, 0.95), update=0.5
    ),
    "a penalty that validation data have as well": history(
        0.3 + np.full(STEPS, 0.8),
        columns={"regularization_loss": np.full(STEPS, 0.8)},
        val_loss=np.full(EPOCHS, 1.4),
        accuracy=(0.9, 0.85),
    ),
    "a direction with few numbers below zero": history(
        -0.5,
        known=_regression(
            layers=(*premises().layers[:2], _with_layer(2, activation="relu").layers[2]),
            loss="cosine_similarity",
            targets=Sample.of(np.abs(np.random.default_rng(0).normal(size=(400, 8))) - 0.01),
        ),
    ),
    "linear layers that learn all there is": history(
        known=premises(
            layers=tuple(
                dataclasses.replace(one, activation="softmax" if one.is_output else "linear")
                for one in premises().layers
            )
        )
    ),
    "inputs of a small scale": history(
        known=premises(inputs=Sample.of(np.random.default_rng(0).random((99, 8)) / 255))
    ),
    "a dropout before the output, that the validation data have not": history(
        0.9 * CHANCE, accuracy=(0.3, 0.9), val_loss=np.full(EPOCHS, 0.8 * CHANCE)
    ),
    "data with gaps, which a layer of the user's own fills": history(
        known=dataclasses.replace(
            _with_layer(0, activation="unknown"), inputs=Sample.of(np.array([[1.0, np.nan]] * 20))
        )
    ),
    "a loop whose examples become harder": history(
        0.05 + 0.1 * _T / STEPS, known=premises(loss="", targets=None, inputs=None)
    ),
    "a little that may be all there is": history(np.where(_T < 50, CHANCE, 0.8 * CHANCE)),
    "a little, ever more slowly": history(CHANCE * (1 - 0.25 * (1 - np.exp(-3 * _T / STEPS)))),
    "a zero-initialized layer": history(known=_with_layer(0, std=0.0)),
    "directions whose lengths can't be reached": history(
        -0.5,
        known=_regression(
            layers=(*premises().layers[:2], _with_layer(2, activation="tanh").layers[2]),
            loss="cosine_similarity",
        ),
    ),
    "steps that loss scaling left out": history(
        np.where(_T < 3, np.inf, 0.05 + 1.4 * np.exp(-_T / 60)),
        columns={"skipped": (_T < 3).astype(float)},
        norm=np.where(_T < 3, np.nan, 0.1),
    ),
    "noise that can't be learned": history(
        np.where(_T < 100, 2.0, 0.6) * 1.0,
        known=_regression(targets=Sample.of(np.random.default_rng(0).normal(size=400))),
    ),
    "a loss scale that is halved now and then": history(
        columns={"loss_scale": 2.0 ** (15 - _T // 50), "skipped": (_T % 50 == 49).astype(float)}
    ),
    "two outputs that both learn": history(
        columns={"a_loss": 0.1 + np.exp(-_T / 60), "b_loss": 0.7 - 0.0005 * _T}
    ),
    "two outputs, neither of which has learned much": history(
        columns={"a_loss": 1.0 - 0.0005 * _T, "b_loss": _OF_TWO["b_loss"]}
    ),
    "a rare class that is found": history(known=_RARE_CLASS, accuracy=(0.95, 0.95)),
    "gradients that are added up and do no harm": history(known=premises(piles=True)),
    "a generator whose examples become more different": _making(np.linspace(0.01, 0.25, 800)),
    "a generator of somewhat similar examples": _making(np.full(800, 0.4)),
    "a generator in balance with what judges it by a cross-entropy": dataclasses.replace(
        _turning(0.7 + 0.001 * _T, 1.2 + 0 * _T), premises=_JUDGED
    ),
    "frozen random features that do": history(known=_with_layer(0, trainable=False, untouched=True)),
    "frozen layers that were trained before": history(CHANCE * 0.6, known=_with_layer(0, trainable=False)),
    "a head that is not used yet": history(known=_of_a_loop(unreached=("head.kernel",))),
    "two optimizers in balance": _turning(0.7 + 0.001 * _T, 1.2 + 0 * _T),
    "an actor whose critic learns, both with losses above 0": _turning(
        0.02 + 0.02 * _T, 0.6 * np.exp(-_T / 40)
    ),
    "an actor whose critic learns": _turning(-0.5 + 0.001 * _T, 1.4 * np.exp(-_T / 40)),
    "a short wait for input": history(
        columns={"time": 100 + 0.002 * _T, "input_wait": np.full(STEPS, 0.0015)}
    ),
    "a cache that fills in the first epoch": history(done=300, memory=1000 + 100.0 * np.minimum(_T, 18)),
    "a shuffle buffer that fills for long": history(
        done=300, memory=1000 + 2000 * (1 - np.exp(-_T / 60)), ends=False
    ),
    "memory that goes up and down": history(
        done=300, memory=3000 + 1000 * np.sin(_T / 10) + 300 * np.random.default_rng(0).random(STEPS)
    ),
    "growth that the planned steps do not use up": history(done=300, memory=1000 + 8.0 * _T),
    "growth of a few bytes": history(done=200, memory=7900 + 0.3 * _T),
    "a dozen traces": history(columns={"traces": np.minimum(_T, 12)}),
    "the first steps": history(CHANCE, done=20),
    "a log-likelihood at first, which levels off later": history(
        0.1 - 3.0 / (1 + np.exp((60 - _T) / 10)), known=_of_a_loop(), done=60
    ),
    "outliers in a few batches": history(
        np.where(_T % 9 == 4, 12.0, 1.0) * (1 + np.exp(-_T / 60)) * np.where(_T == 1, 0.3, 1.0),
        known=_regression(targets=None),
    ),
    "good for validation data, which has no outliers": history(
        0.8 + 0.3 * np.exp(-_T / 20),
        known=_regression(targets=Sample.of(np.random.default_rng(0).normal(size=400))),
        val_loss=np.full(EPOCHS, 0.2),
    ),
    "dropout that only training has": history(
        0.95 * CHANCE, accuracy=(0.3, 0.9), val_loss=np.full(EPOCHS, 0.3 * CHANCE)
    ),
    "a model that was trained before, with targets that are not known": history(
        0.3, known=_regression(targets=None, trained_before=True), update=0.2
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_training_is_clean(name: str) -> None:
    assert _kinds(HEALTHY[name]) == set()


@pytest.mark.parametrize("seed", range(3))
def test_a_loss_with_heavy_tails_has_not_diverged_at_any_moment(seed: int) -> None:
    """A few examples make most of the loss: one batch may have six times that of another."""
    batches = np.random.default_rng(seed).lognormal(0.0, 1.0, STEPS) * (1.0 + np.exp(-_T / 100))
    for targets in (None, Sample.of(np.random.default_rng(0).normal(0.0, 1.3, 400))):
        known = _regression(targets=targets)
        told = [
            _kinds(history(batches, known=known, done=done, update=0.002)) for done in range(30, STEPS, 7)
        ]
        assert not {"learning_rate_too_high", "exploding_gradient"} & set().union(*told)


def test_a_healthy_training_is_clean_at_each_moment() -> None:
    whole = 0.05 + 1.4 * np.exp(-_T / 60)
    assert all(_kinds(history(whole, done=done)) == set() for done in range(10, STEPS, 30))


@pytest.mark.parametrize(
    "name", ["huber", "log_cosh", "mean_squared_logarithmic_error", "mean_absolute_percentage_error"]
)
def test_the_constant_prediction_is_that_which_a_search_finds(name: str) -> None:
    from scipy.optimize import minimize_scalar

    def mean_loss(p: float) -> float:
        away = np.abs(y - p)
        return {
            "huber": np.where(away <= 1, away**2 / 2, away - 0.5),
            "log_cosh": np.log(np.cosh(away)),
            "mean_squared_logarithmic_error": (np.log1p(y) - np.log1p(p)) ** 2,
            "mean_absolute_percentage_error": 100 * away / y,
        }[name].mean()

    y = np.random.default_rng(0).lognormal(0.5, 0.8, 3000)
    expected = minimize_scalar(mean_loss, bounds=(0, 10), method="bounded").fun
    found = _regression(targets=Sample.of(y), loss=name).constant_loss()
    assert found == pytest.approx(expected, rel=0.03)


def test_memory_that_grows_is_told_of_before_half_of_what_was_free_is_gone() -> None:
    memory = 1000 + 20.0 * _T
    first = next(
        done for done in range(20, STEPS) if "memory_growth" in _kinds(history(done=done, memory=memory))
    )
    assert memory[first] < 1000 + 0.5 * (MEMORY - 1000)
    (problem,) = [one for one in judge(history(done=first, memory=memory)) if one.kind == "memory_growth"]
    lasts = int(re.search(r"will last for ([\d,]+) steps", problem.evidence)[1].replace(",", ""))
    assert lasts == pytest.approx((MEMORY - memory[first]) / 20, rel=0.1)


def test_nan_is_traced_to_its_step_and_variables() -> None:
    from mlflow_tfmon.detectors import Gatherer

    gatherer = Gatherer()
    gatherer.opened([("a.kernel", 10, True), ("b.kernel", 10, True)])
    norms = np.ones((50, 2))
    norms[36:, 0] = np.inf
    values = np.column_stack([np.arange(1, 51), np.where(np.arange(50) >= 37, np.nan, 1.0), norms.sum(1)])
    gatherer.steps(("step", "loss", "grad_norm"), values, norms)
    problem = judge(gatherer.history())[0]
    assert (problem.kind, problem.first_step, problem.variables) == ("nan_or_inf", 37, ("a.kernel",))
    assert "step 38" in problem.evidence


def test_the_constant_prediction_is_scikit_learns() -> None:
    from sklearn.dummy import DummyClassifier, DummyRegressor
    from sklearn.metrics import log_loss, mean_squared_error

    random = np.random.default_rng(0)
    y, x = random.choice(4, 400, p=[0.1, 0.2, 0.3, 0.4]), np.zeros((400, 1))
    expected = log_loss(y, DummyClassifier(strategy="prior").fit(x, y).predict_proba(x))
    assert premises(targets=Sample.of(y)).constant_loss() == pytest.approx(expected)
    one_hot = premises(targets=Sample.of(np.eye(4)[y]), loss="categorical_crossentropy")
    assert one_hot.constant_loss() == pytest.approx(expected)
    t = random.normal(3, 2, 400)
    expected = mean_squared_error(t, DummyRegressor().fit(x, t).predict(x))
    assert _regression(targets=Sample.of(t)).constant_loss() == pytest.approx(expected)


@pytest.mark.parametrize("sizes", [(32, 8), (32, 32, 8), (4, 4, 4)])
def test_a_last_batch_of_few_is_taken_together_with_the_one_before(sizes: tuple[int, ...]) -> None:
    labels = np.arange(sum(sizes)) % 4
    parts = np.split(labels, np.cumsum(sizes)[:-1])
    assert mixed(parts) == pytest.approx(1.0, abs=0.05)
    assert mixed([np.full(size, at) for at, size in enumerate((32, 32, 8))]) < 0.4


def test_the_constant_prediction_of_several_outputs_is_scikit_learns() -> None:
    from sklearn.dummy import DummyClassifier, DummyRegressor
    from sklearn.metrics import log_loss, mean_squared_error

    random = np.random.default_rng(0)
    t, x = random.normal((0, 5), (1, 3), (400, 2)), np.zeros((400, 1))
    expected = mean_squared_error(t, DummyRegressor().fit(x, t).predict(x))
    assert _regression(targets=Sample.of(t)).constant_loss() == pytest.approx(expected)
    tags = (random.random((400, 3)) < (0.1, 0.3, 0.5)).astype(int)
    prior = DummyClassifier(strategy="prior").fit(x, tags).predict_proba(x)
    expected = np.mean([log_loss(tags[:, at], prior[at]) for at in range(3)])
    found = premises(targets=Sample.of(tags), loss="binary_crossentropy").constant_loss()
    assert found == pytest.approx(expected)
    words = random.choice(4, (100, 7), p=[0.1, 0.2, 0.3, 0.4])
    flat, x = words.ravel(), np.zeros((700, 1))
    expected = log_loss(flat, DummyClassifier(strategy="prior").fit(x, flat).predict_proba(x))
    assert premises(targets=Sample.of(words)).constant_loss() == pytest.approx(expected)


def test_shades_are_learned_as_far_as_they_can_be() -> None:
    keras = pytest.importorskip("keras")
    shades = np.random.default_rng(0).random((300, 5)) ** 3
    known = premises(targets=Sample.of(shades), loss="binary_crossentropy")
    perfect = float(np.mean(keras.losses.binary_crossentropy(shades, shades)))
    constant = np.broadcast_to(shades.mean(0), shades.shape)
    usual = float(np.mean(keras.losses.binary_crossentropy(shades, constant)))
    assert (known.constant_loss(), known.least_loss()) == pytest.approx((usual, perfect), rel=1e-4)
    assert learning(history(perfect, known=known)).learned == pytest.approx(1, abs=0.01)
    assert abs(learning(history(usual, known=known)).learned) < 0.01


def test_a_first_step_that_was_too_large_and_killed_all_is_not_too_small() -> None:
    told = _kinds(history(CHANCE * 1.2, update=np.where(_T == 0, 2.5, 1e-6)))
    assert "learning_rate_too_high" in told and "learning_rate_too_low" not in told


def test_data_that_come_class_by_class_are_told_of_where_that_does_harm() -> None:
    forgotten = history(known=_IN_ORDER, accuracy=(0.95, 0.5), val_loss=np.full(EPOCHS, CHANCE))
    assert "unshuffled_data" in _kinds(forgotten)
    in_turn, frequent = _fed(np.arange(400) % 4), _fed((np.arange(400) < 40).astype(int))
    shuffled = dataclasses.replace(_IN_ORDER, in_order=False)
    # Eight of each of four classes a batch, two classes of eight at random, and one batch of all.
    balanced = _fed(np.tile(np.repeat(np.arange(4), 8), 12))
    pairs = np.array([np.random.default_rng(at).choice(8, 2, replace=False) for at in range(40)])
    few_classes = _fed(np.repeat(pairs.ravel(), 16))
    whole = _fed(np.sort(np.arange(400) % 4), size=400)
    for known in (in_turn, shuffled, frequent, balanced, few_classes, whole):
        assert "unshuffled_data" not in _kinds(history(0.6 * CHANCE, known=known))
    one_by_one = _fed(np.sort(np.arange(400) % 4), size=1)
    assert "unshuffled_data" in _kinds(history(0.6 * CHANCE, known=one_by_one))
    learned = history(known=_IN_ORDER, accuracy=(0.95, 0.94), val_loss=np.full(EPOCHS, 0.1))
    assert _kinds(learned) == set()  # all the same


def test_a_penalty_by_hand_does_not_hide_that_nothing_is_learned() -> None:
    found = judge(history(CHANCE + 3.0 * np.exp(-_T / 60), columns={"data_loss": np.full(STEPS, CHANCE)}))
    assert "underfitting" in {one.kind for one in found}


def test_probabilities_that_are_taken_for_logits_are_measured_by_what_such_a_loss_can_show() -> None:
    """Of four classes it cannot close more than 46% of the gap."""
    known = premises(from_logits=True)
    for learned, kinds in ((0.0, True), (0.2, True), (0.4, False)):
        found = history(CHANCE * (1 - learned * np.minimum(_T, 100) / 100), known=known)
        assert ("loss_output_mismatch" in _kinds(found)) == kinds
    # with logits a fifth may be all there is
    plain = history(CHANCE * (1 - 0.2 * np.minimum(_T, 100) / 100))
    assert "loss_output_mismatch" not in _kinds(plain)


def test_a_softmax_over_the_examples_is_told_of_however_well_the_loss_falls() -> None:
    *hidden, last = premises().layers
    known = premises(layers=(*hidden, dataclasses.replace(last, activation=OVER_EXAMPLES)))
    assert _kinds(history(known=known)) == {"improper_activation"}
    assert _kinds(history()) == set()


def test_a_learning_rate_that_falls_away_is_told_of_where_it_ended_the_learning() -> None:
    soon, late = 1e-3 * 0.9**_T, 1e-3 * 0.5 * (1 + np.cos(np.pi * _T / STEPS))
    restarts = 1e-3 * 0.9 ** (_T % 100)
    falls_until = {at: CHANCE * (1 - 0.4 * np.minimum(_T, at) / at) for at in (20, 60)}

    def told(loss: np.ndarray, rate: np.ndarray, **how: Any) -> dict[str, str]:
        return {one.kind: one.advice for one in judge(history(loss, columns={"learning_rate": rate}, **how))}

    found = told(falls_until[60], soon)
    assert found["learning_rate_too_low"].startswith("Keep the learning rate at 0.001, or have it fall over")
    for loss, rate in (
        (falls_until[60], late),
        (falls_until[60], restarts),
        (falls_until[60], np.full(STEPS, 1e-3)),
        (falls_until[20], np.where(_T < 150, 1e-3, 1e-6)),  # the loss had stalled long before
        (0.05 + 1.3 * np.exp(-_T / 20), soon),  # it learned all there is
    ):
        assert "learning_rate_too_low" not in told(loss, rate)


def test_classes_that_are_rare_are_told_of() -> None:
    targets = Sample.of((np.arange(400) % 20 == 0).astype(int))
    constant = premises(targets=targets).constant_loss()
    problem = next(one for one in judge(history(constant, known=premises(targets=targets))))
    assert problem.kind == "underfitting"
    assert "One class makes up 95% of the targets" in problem.evidence
    assert "class_weight" in problem.advice


def test_a_penalty_that_outweighs_all_there_is_to_learn_is_to_be_lightened() -> None:
    def advice(penalty: float) -> str:
        added = penalty * np.exp(-_T / 20)
        return judge(history(CHANCE + added, columns={"regularization_loss": added}))[0].advice

    assert advice(40 * CHANCE).startswith(
        "Multiply the penalty of the weights (kernel_regularizer) by 0.0007: it began at 55.5, 40 times"
    )
    assert "penalty" not in advice(0.5 * CHANCE)


def test_the_class_that_is_always_named_is_told_with_the_weights_that_help() -> None:
    found = {one.kind: one for one in judge(history(0.2, known=_RARE_CLASS, accuracy=(0.95, 0.95)))}
    problem = found["one_class_predicted"]
    assert "the same class, 0: the validation accuracy is 0.95" in problem.evidence
    assert "class_weight={0: 0.526, 1: 10}" in problem.advice
    balanced = history(CHANCE, accuracy=(0.25, 0.25))
    assert "class_weight" not in {one.kind: one for one in judge(balanced)}["one_class_predicted"].advice
    # an accuracy that changes at all, or is no class's share, is not that
    for accuracies in ((0.9, 0.9), (0.951, 0.951)):
        assert "one_class_predicted" not in _kinds(history(0.2, known=_RARE_CLASS, accuracy=accuracies))
    few = dataclasses.replace(
        _RARE_CLASS, targets=_FEW, val_targets=_FEW
    )  # half of which may be right by chance
    assert "one_class_predicted" not in _kinds(history(CHANCE, known=few, accuracy=(0.5, 0.5)))


def test_the_output_that_learns_nothing_is_named() -> None:
    (problem,) = judge(history(columns=_OF_TWO))
    assert problem.variables == ("b",) and 'loss_weights={"b": 10}' in problem.advice
    assert "output_not_learning" not in _kinds(history(columns=_OF_TWO, done=150))


def test_a_loss_that_is_learned_from_itself_may_rise() -> None:
    loss = np.linspace(
        0.05, 1.0, STEPS
    )  # of temporal differences: nobody knows what a constant prediction's would be
    assert "learning_rate_too_high" not in _kinds(history(loss, known=premises(loss="", targets=None)))


def test_two_optimizers_that_take_turns_need_not_make_a_loss_fall() -> None:
    assert "underfitting" not in _kinds(dataclasses.replace(history(CHANCE), alone=False))


def test_detectors_need_neither_tensorflow_nor_mlflow() -> None:
    folder = Path(mlflow_tfmon.detectors.__file__).parent
    names = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
    code = "import sys\n" + "".join(f"import mlflow_tfmon.detectors.{name}\n" for name in names)
    code += "assert not {'tensorflow', 'mlflow', 'keras', 'pandas'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_data_with_many_gaps_are_to_be_filled_in_and_others_left_out() -> None:
    def advice(every: int) -> str:
        x = np.random.default_rng(0).normal(size=(1000, 8))
        x[::every, 2] = np.nan
        (problem,) = (
            one for one in judge(history(known=premises(inputs=Sample.of(x)))) if one.kind == "nan_or_inf"
        )
        return problem.advice

    assert "drop or fill those rows" in advice(500) and "drop" not in advice(20)
    line = re.search(r"x = numpy.where.*axis=0\)\)", advice(20))
    assert line is not None
    names = {"numpy": np, "x": np.array([[1.0, np.nan], [np.inf, 2.0], [3.0, 4.0]])}
    exec(line[0], names)
    np.testing.assert_array_equal(names["x"], [[1.0, 3.0], [2.0, 2.0], [3.0, 4.0]])


def test_of_deep_sigmoids_with_small_steps_the_activation_is_to_change() -> None:
    squashed = premises(
        layers=(
            *(Layer(f"s{at}", "Dense", "sigmoid", 16, f"s{at}.kernel", 8, 16, 0.0, 0.3) for at in range(3)),
            *premises().layers,
        )
    )
    slow = history(CHANCE - 0.0002 * _T, update=1e-6, known=squashed)
    assert {one.kind: one.advice for one in judge(slow)}["learning_rate_too_low"].startswith(
        "Use ReLU, GELU or SELU"
    )


def test_a_rate_is_lowered_by_what_was_measured_rather_than_by_what_is_usual() -> None:
    """Embeddings, of which a step changes few rows, may well learn with a rate of 50."""
    known = premises(optimizer="SGD")
    measured = history(
        CHANCE * 1.2, update=0.5, columns={"learning_rate": np.full(STEPS, 500.0)}, known=known
    )
    (problem,) = (one for one in judge(measured) if one.kind == "learning_rate_too_high")
    assert "from 500 to 3, with which a step changes the weights by about 0.3%" in problem.advice
