"""Fixtures of the delivery tests: a client of the test's store, and a run in it."""

from __future__ import annotations

import mlflow
import pytest


@pytest.fixture
def client(store: str) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(store)


@pytest.fixture
def run_id(client: mlflow.MlflowClient) -> str:
    return str(client.create_run("0").info.run_id)
