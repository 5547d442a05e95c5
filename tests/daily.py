"""Selection of the cases tried in daily work; the others are left to `make test-slow` or `make test-thorough`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def thorough(cases: Iterable[Any], rare: Iterable[Any], usual: Collection[Any] | None = None) -> list[Any]:
    """The cases of a parametrized test, with marks.

    Args:
        cases: all of them.
        rare: those that are thorough.
        usual: those of the others that are tried in daily work, while the rest is slow; all of them by default.
    """
    cases, rare = list(cases), list(rare)
    unknown = [case for case in (*rare, *(usual or ())) if case not in cases]
    assert not unknown, f"no such cases: {unknown}"
    found = []
    for case in cases:
        slow = usual is not None and case not in usual
        mark = pytest.mark.thorough if case in rare else pytest.mark.slow if slow else ()
        found.append(pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=mark))
    return found
