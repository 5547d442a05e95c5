"""Fixtures of the tests of reports."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def with_reports(reports: None) -> None:
    """What is tested here."""
