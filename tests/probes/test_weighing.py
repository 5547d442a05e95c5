"""Tests of what the values of gradients tell of their losses, and of what they don't."""

from __future__ import annotations

import numpy as np
import pytest

from mlflow_tfmon.probes.weighing import MADE_OF_HALVES, Given, loss_of

random = np.random.default_rng(0)
A, B, C = (random.normal(size=40) for _ in range(3))
PARTS = [slice(0, 16), slice(16, 32), slice(32, 40)]


def given(*samples: np.ndarray, site: int | None = None) -> list[Given]:
    """Calls of tapes with losses 1, 2, …: from one place in the program or from one each."""
    return [Given(at if site is None else site, at + 1.0, one) for at, one in enumerate(samples)]


@pytest.mark.parametrize(
    ("applied", "loss"),
    [
        (A, 1.0),
        (0.3 * B, 2.0),
        (np.concatenate([0.1 * B[:16], 0.2 * B[16:32], B[32:]]), 2.0),  # each variable clipped by itself
        (A + B, 3.0),
        ((A + B) / 2, 1.5),
        (0.3 * A + 0.7 * B, 1.7),
        (0.3 * A + 0.9 * B, None),
        (2 * A - B, None),  # reduced variance: no mean
        (3e-4 * A + B, None),  # nearly another's
        (np.sign(A), None),
        (C, None),
        (np.zeros(40), None),
    ],
)
def test_of_two_calls(applied: np.ndarray, loss: float | None) -> None:
    assert loss_of(applied, PARTS, given(A, B), []) == (None if loss is None else pytest.approx(loss))


def test_micro_batches_that_were_clipped_have_their_mean() -> None:
    assert loss_of(0.2 * (A + B), PARTS, given(A, B, site=7), []) == pytest.approx(1.5)
    assert loss_of(0.2 * (A + B), PARTS, given(A, B), []) is None


@pytest.mark.parametrize(("applied", "loss"), [(A, 1.0), (0.5 * A, 1.0), (2 * C - B, 3.0), (A + B, None)])
def test_with_calls_before_the_last_step(applied: np.ndarray, loss: float | None) -> None:
    *earlier, now = given(A, B, C)
    assert loss_of(applied, PARTS, [now], earlier) == loss


def test_what_came_into_a_function_tells_whose_gradient_it_changed() -> None:
    *earlier, now = given(A, B, C)
    late = C + 0.01 * B  # alike to what was looked at last, and not of it
    assert loss_of(np.tanh(B), PARTS, [now], earlier, [B]) == 2.0
    assert loss_of(np.tanh(B), PARTS, [now], earlier) is None
    assert loss_of(np.tanh(0.9 * A + C), PARTS, [now], earlier, [A, C]) == 3.0  # momentum
    assert loss_of(np.tanh(late), PARTS, [now], [*earlier, Given(9, 9.0, late)], [late]) == 9.0
    assert loss_of(np.tanh(A + B), PARTS, given(A, B), [], [A, B]) is None


@pytest.mark.parametrize("scaled", [np.array([0.5]), np.array([0.5, -2.0])])
def test_a_number_is_a_multiple_of_any_other(scaled: np.ndarray) -> None:
    parts = [slice(at, at + 1) for at in range(len(scaled))]
    assert loss_of(scaled, parts, given(np.ones(len(scaled))), []) is None
    assert loss_of(np.ones(len(scaled)), parts, given(np.ones(len(scaled))), []) == 1.0


def test_of_nothing_but_zeros_and_of_what_is_not_finite() -> None:
    assert loss_of(np.zeros(40), PARTS, given(A, np.zeros(40)), []) == 2.0
    assert loss_of(np.full(40, np.nan), PARTS, given(A, np.where(A > 0, np.inf, A)), []) == 2.0


def test_half_precision_has_its_roundings() -> None:
    rounded = (0.3 * A).astype("float16").astype(float)
    assert loss_of(rounded, PARTS, given(A, B), []) is None
    assert loss_of(rounded, PARTS, given(A, B), [], tolerance=MADE_OF_HALVES) == 1.0
