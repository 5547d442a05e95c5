"""Selection of the cases tried every day; the others are left to `make test-thorough`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def thorough(cases: Iterable[Any], rare: Iterable[Any]) -> list[Any]:
    """The cases of a parametrized test, with the rare ones marked as thorough."""
    cases, rare = list(cases), list(rare)
    unknown = [case for case in rare if case not in cases]
    assert not unknown, f"no such cases: {unknown}"
    return [_parameters(case, case in rare) for case in cases]


def _parameters(case: Any, rare: bool) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.thorough if rare else ())
