"""A training that is watched, and the same one by hand, whose tensors a signal is computed of in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

import mlflow_tfmon
from tests import trainings

DEEP_EVERY, EPOCHS, RATE = 2, 2, 0.1
WAYS = ("fit", "fit, XLA", "loop", "loop, XLA", "eager")
FEW_WAYS = ("fit", "loop, XLA")  # for what has no state: how it is traced is tested of all signals together


@dataclass(frozen=True)
class Step:
    """A variable at a step of the training by hand: the weights before and after it, and the gradient."""

    old: np.ndarray
    new: np.ndarray
    gradient: np.ndarray


def steps_by_hand() -> dict[int, list[Step]]:
    """All steps, by their number, and of each the variables in their order."""
    net, optimizer = trainings.model(name="net"), keras.optimizers.SGD(RATE)
    found: dict[int, list[Step]] = {}
    for number, (x, y) in enumerate(trainings.batches(*trainings.data(), EPOCHS), 1):
        old = [v.numpy() for v in net.trainable_variables]
        _, gradients = trainings.differentiated(net, x, y)
        optimizer.apply([tf.constant(g) for g in gradients], net.trainable_variables)
        new = [v.numpy() for v in net.trainable_variables]
        found[number] = [Step(*values) for values in zip(old, new, gradients, strict=True)]
    return found


def recorded(way: str) -> pd.DataFrame:
    """What is recorded of the training: a row a deep step and variable."""
    net, optimizer = trainings.model(name="net"), keras.optimizers.SGD(RATE)
    x, y = trainings.data()
    if way.startswith("fit"):
        mlflow_tfmon.autolog(deep_every=DEEP_EVERY, log_models=False)
        net.compile(optimizer, trainings.loss(), jit_compile="XLA" in way)
        net.fit(x, y, batch_size=trainings.BATCH, epochs=EPOCHS, shuffle=False, verbose=0)
    else:
        step = trainings.custom_step(net, optimizer, way != "eager")
        if "XLA" in way:
            step = tf.function(trainings.custom_step(net, optimizer, in_graph=False), jit_compile=True)
        with mlflow_tfmon.Monitor(net, deep_every=DEEP_EVERY, report=False):
            for batch in trainings.batches(x, y, EPOCHS):
                step(*batch)
    layers = mlflow_tfmon.load_run(trainings.last_run()).layers
    return layers[(layers.step == 1) | (layers.step % DEEP_EVERY == 0)].set_index(["step", "variable"])


def compare(way: str, signals: dict[str, Callable[[list[Step]], float]], rtol: float = 1e-5) -> None:
    """Compares signals, at each deep step and of each variable, with what NumPy makes of the training by hand.

    Args:
        way: how the watched training is written, of `WAYS`.
        signals: name -> makes it of the deep steps of a variable so far; the last is that which it is of.
        rtol: relative tolerance.
    """
    steps = steps_by_hand()
    found = recorded(way)
    deep = [1, *range(DEEP_EVERY, len(steps) + 1, DEEP_EVERY)]
    variables = list(dict.fromkeys(found.index.get_level_values("variable")))
    assert len(found) == len(deep) * len(variables) and len(variables) == len(steps[1])
    for done, number in enumerate(deep, 1):
        for at, variable in enumerate(variables):
            for signal, by_hand in signals.items():
                np.testing.assert_allclose(
                    found.loc[(number, variable), signal], by_hand([steps[one][at] for one in deep[:done]]),
                    rtol=rtol, atol=1e-9, err_msg=f"{signal} of {variable} at step {number}",
                )  # fmt: skip
