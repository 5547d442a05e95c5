"""Selection of the cases tried in daily work; the others are left to `make test-slow` or `make test-thorough`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def slow(cases: Iterable[Any], usual: Iterable[Any]) -> list[Any]:
    """The cases of a parametrized test, of which the usual ones are tried in daily work."""
    cases = list(cases)
    return _marked(cases, [case for case in cases if case not in list(usual)], pytest.mark.slow)


def thorough(cases: Iterable[Any], rare: Iterable[Any]) -> list[Any]:
    """The cases of a parametrized test, with the rare ones marked as thorough."""
    return _marked(list(cases), list(rare), pytest.mark.thorough)


def _marked(cases: list[Any], chosen: list[Any], mark: Any) -> list[Any]:
    unknown = [case for case in chosen if case not in cases]
    assert not unknown, f"no such cases: {unknown}"
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=mark if case in chosen else ())
        for case in cases
    ]
