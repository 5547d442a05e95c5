"""Tests that alternating optimizers are told from consecutive trainings by the order of their steps."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mlflow_tfmon.problems.current import Standing
from mlflow_tfmon.problems.replay import Replay
from mlflow_tfmon.stream import records
from tests.detectors.histories import history


def _opened(stream: int) -> records.StreamOpened:
    variables = (records.Variable(f"{stream}.kernel", (2, 2), True),)
    return records.StreamOpened(
        stream, f"{stream}.", variables, ("step", "time", "loss"), ("grad_norm",), (), None, ""
    )


def _steps(stream: int, times: np.ndarray, first: int = 1) -> records.Steps:
    number = np.arange(first, first + len(times))
    loss = np.ones(len(times))
    return records.Steps(stream, 0.0, np.column_stack([number, times, loss, loss]))


def _alone(*blocks: records.Steps) -> list[bool]:
    replay = Replay()
    for stream in (0, 1):
        replay.take(_opened(stream))
    for block in blocks:
        replay.take(block)
    return [one.alone for one in replay.histories().values()]


_T = np.arange(40.0)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_those_that_take_turns_are_told_by_their_first_blocks(order: tuple[int, int]) -> None:
    blocks = {0: _steps(0, _T), 1: _steps(1, _T + 0.5)}
    assert _alone(*(blocks[one] for one in order)) == [False, False]
    rare = {0: _steps(0, _T), 1: _steps(1, _T[2:35:5] + 0.5)}
    assert _alone(*(rare[one] for one in order)) == [False, False]


def test_trainings_one_after_the_other_are_alone() -> None:
    """However their blocks come: who judges a recording again takes them by their steps' numbers."""
    assert _alone(_steps(0, _T), _steps(1, 50 + _T)) == [True, True]
    one, two = np.split(_T, 2)
    assert _alone(_steps(0, one), _steps(1, 50 + one), _steps(0, two, 21), _steps(1, 50 + two, 21)) == [
        True,
        True,
    ]


def test_what_was_said_of_one_taken_to_be_alone_is_taken_back() -> None:
    standing = Standing()
    diverging = 1.4 * np.exp(np.arange(400) / 60)
    bad = diverging.copy()
    bad[200] = np.nan
    early = history(bad, update=0.2, done=240)
    standing.judge({"critic.": early, "generator.": early})
    assert {"learning_rate_too_high", "nan_or_inf"} <= {one.kind for one in standing.problems}
    standing.judge({name: dataclasses.replace(early, alone=False) for name in ("critic.", "generator.")})
    assert {one.kind for one in standing.problems} == {"nan_or_inf"}
