"""Tests of XLA on a monitored step, which `fit` uses on a single GPU."""

from __future__ import annotations

from collections import Counter
from typing import Any

import keras
import mlflow
import pytest
import tensorflow as tf

import mlflow_tfmon
from mlflow_tfmon.signals import INGREDIENTS
from tests import trainings
from tests.devices.compiled import BYTES, FEATURES, LAYERS
from tests.devices.conftest import Script

pytestmark = pytest.mark.timeout(600)  # the first test waits for the trainings of all


def more(found: dict[str, Any], what: str) -> dict[str, int]:
    return dict(Counter(found["watched"][what]) - Counter(found["unwatched"][what]))


@pytest.mark.slow
def test_an_ordinary_step_of_fit_decides_nothing_and_copies_nothing(script: Script) -> None:
    found = script("compiled")["fit"]
    assert found["unwatched"]["conditionals"] == 0
    assert found["watched"]["conditionals"] == 0
    assert more(found, "copies") == {}


def test_its_temporaries_are_those_of_the_unwatched_step(script: Script) -> None:
    found = script("compiled")["fit"]
    assert found["unwatched"]["temporary bytes"] > 0
    # A gradient stays until its norm is taken: one more at a time, the largest at most.
    largest = BYTES["f32"] * FEATURES**2
    assert found["watched"]["temporary bytes"] <= 1.1 * found["unwatched"]["temporary bytes"] + largest


def test_a_step_of_a_loop_decides_once_and_copies_the_weights_once(script: Script) -> None:
    """Those before the step, which the branch of a deep one reads: of a loop's step there is but one variant."""
    found = script("compiled")["loop"]
    assert found["watched"]["conditionals"] <= 1
    kernel, bias = f"f32[{FEATURES},{FEATURES}]", f"f32[{FEATURES}]"
    copies = more(found, "copies outside of branches")
    kept = {one for one in copies if one.endswith(tuple(f",{of.state}]" for of in INGREDIENTS if of.state))}
    assert set(copies) - kept <= {kernel, bias} and max(copies.values()) <= LAYERS
    assert len(kept) <= 1  # 2 kB a variable


class Pretended:
    """A GPU that is not there."""

    device_type, name = "GPU", "/physical_device:GPU:0"


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_keras_chooses_xla_as_it_does_unwatched(monkeypatch: pytest.MonkeyPatch) -> None:
    def choices() -> dict[str, Any]:
        real = tf.config.list_physical_devices
        with monkeypatch.context() as patch:
            patch.setattr(
                tf.config,
                "list_physical_devices",
                lambda kind=None: real(kind) + [Pretended()] * (kind in (None, "GPU")),
            )
            nets = {
                "dense": trainings.model(),
                "lstm": keras.Sequential([keras.Input((4, 6)), keras.layers.LSTM(3)]),
            }
            for net in nets.values():
                net.compile("adam", trainings.loss())
                assert net.jit_compile in (True, False)
        nets["dense"].fit(*trainings.data(), batch_size=trainings.BATCH, verbose=0)
        return {name: net.jit_compile for name, net in nets.items()}

    unwatched = choices()
    assert unwatched["dense"] is True
    mlflow_tfmon.autolog(log_models=False, log_datasets=False, checkpoint=False)
    with mlflow.start_run() as run:
        assert choices() == unwatched
    assert len(mlflow_tfmon.load_run(run.info.run_id).steps) == 10
