"""Tests of variables on any device: a monitored training runs as before, and is recorded or reported not to be."""

from __future__ import annotations

from typing import Any

import pytest

from tests.devices.conftest import Script
from tests.devices.placed import CASES, DAILY, PARAMETER_SERVER, STEPS

pytestmark = pytest.mark.timeout(600)  # the first test waits for the trainings of all
RARE = [name for name in CASES if name not in DAILY]


def check(found: dict[str, Any]) -> None:
    assert found["unwatched"] is None, f"it does not work unwatched: {found['unwatched']}"
    assert found["watched"] is None, f"watching broke it: {found['watched']}"
    assert found["same"], "watching changed the weights"
    if found["recorded"]:
        assert found["recorded"] == list(range(1, STEPS + 1))
    else:
        lines = [line for line in found["said"] if "not watched" in line]
        assert len(lines) == 1 and "\n" not in lines[0], (
            f"nothing recorded, and said was only {found['said']}"
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", DAILY)
def test_variables_may_be_on_several_devices(script: Script, name: str) -> None:
    check(script("placed", *DAILY)[name])


@pytest.mark.thorough
@pytest.mark.parametrize("name", RARE)
def test_or_where_a_strategy_or_a_scope_has_put_them(script: Script, name: str) -> None:
    check(script("placed", *RARE)[name])


@pytest.mark.thorough
def test_or_on_a_parameter_server(script: Script) -> None:
    check(script("placed", PARAMETER_SERVER)[PARAMETER_SERVER])
