"""Tests without a private name of another library: only the metric that depends on it is lost, logged once."""

from __future__ import annotations

import ast
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import mlflow_tfmon
from mlflow_tfmon import internals, versions
from mlflow_tfmon.delivery.process import DeliveryProcess
from mlflow_tfmon.probes import hooks
from mlflow_tfmon.probes.hooks import keras2, keras3, tensorflow
from mlflow_tfmon.stream.records import EpochEnded, Steps, StreamOpened
from mlflow_tfmon.watching import pipeline, stalls
from mlflow_tfmon.watching.pipeline import Pipeline
from tests import trainings
from tests.daily import thorough
from tests.test_errors import contained  # noqa: F401

KERAS_3 = [hook.target for hook in keras3.hooks(lambda *_: None)]
TENSORFLOW = [hook.target for hook in tensorflow.HOOKS]
MLFLOW = ["mlflow.MlflowClient.set_terminated", "mlflow.ActiveRun.__init__"]
NEEDED = [  # in each fit
    "tensorflow.python.saved_model.save_context.in_save_context",
    "tensorflow.python.ops.control_flow_util.GraphOrParentsInXlaContext",
    "tensorflow.python.framework.config.is_op_determinism_enabled",
    "tensorflow.python.eager.record.stop_recording",
    "tensorflow.python.eager.record.could_possibly_record",
    "tensorflow.python.eager.context.context",
    "tensorflow.python.ops.resource_variable_ops.ResourceVariable",
    "tensorflow.python.distribute.multi_worker_util",
    "tensorflow.python.distribute.values.SyncOnReadVariable._get_cross_replica",
    "mlflow.utils.autologging_utils.autologging_integration",
    "mlflow.utils.autologging_utils.safe_patch",
    "mlflow.utils.autologging_utils.get_autologging_config",
    "mlflow.utils.import_hooks.register_post_import_hook",
    "tensorflow.python.framework.op_def_registry.get",
]
NAMES = [
    *NEEDED,
    "tensorflow.python.framework.op_callbacks.add_op_callback",
    "tensorflow.python.framework.op_callbacks.remove_op_callback",
    "tensorflow.python.framework.op_def_registry.get",
    "keras.src.backend.common.global_state.get_global_attribute",
]
# Without this there is no step; all the rest leaves the loss of each step, but for what takes it.
NO_STEP = {"_backend_apply_gradients"}
NO_LOSS = {"gradient"}


def fit() -> list[bytes]:
    model = trainings.model()
    model.compile(keras.optimizers.Adam(0.01), trainings.loss())
    x, y = trainings.data(48)
    model.fit(x, y, batch_size=trainings.BATCH, verbose=0, shuffle=False)
    return [np.asarray(weight).tobytes() for weight in model.get_weights()]


@pytest.fixture(scope="module")
def unwatched() -> list[bytes]:
    return fit()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What goes into the journal; it is not delivered, which is no part of this."""
    found: list[Any] = []
    append = Pipeline._append

    def collect(self: Pipeline, out: Any) -> None:
        found.extend(out)
        append(self, out)

    monkeypatch.setattr(Pipeline, "_append", collect)
    for name in ("watch", "wait", "ensure_alive"):
        monkeypatch.setattr(DeliveryProcess, name, lambda *_, **__: True)
    monkeypatch.delenv("MLFLOW_AUTOLOGGING_TESTING", raising=False)  # a run ends when it is delivered
    return found


def steps(recorded: list[Any]) -> dict[str, list[float]]:
    """The columns of the steps that were recorded."""
    names = [one.columns for one in recorded if isinstance(one, StreamOpened)]
    rows = [one.values for one in recorded if isinstance(one, Steps)]
    if not rows:
        return {}
    return dict(zip(names[0], np.concatenate(rows).T.tolist(), strict=False))


@pytest.fixture
def gone(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Dotted paths of which the last name is not there."""
    names: set[str] = set()
    find = internals.find

    def found(path: str) -> Any:
        if path in names:
            raise AttributeError(f"{path} was taken away")
        return find(path)

    monkeypatch.setattr(internals, "find", found)
    monkeypatch.setattr(hooks, "find", found)
    internals._found.cache_clear()
    yield names
    internals._found.cache_clear()


ALL = [*KERAS_3, *TENSORFLOW, *MLFLOW, *NAMES]
# One of each kind is enough from day to day.
DAILY = [KERAS_3[1], KERAS_3[9], *TENSORFLOW[:2], MLFLOW[1], NAMES[1], NAMES[6], NEEDED[-4]]
PRIVATE = (
    "tensorflow.python",
    "tensorflow.core",
    "keras.src",
    "tf_keras",
    "mlflow.utils",
    "mlflow.store",
    "mlflow.data",
)


@pytest.mark.parametrize("name", thorough(ALL, [one for one in ALL if one not in DAILY]))
def test_each_name_that_is_gone_costs_its_own_figure(
    name: str,
    gone: set[str],
    contained: list[str],  # noqa: F811
    recorded: list[Any],
    unwatched: list[bytes],
) -> None:
    gone.add(name)
    mlflow_tfmon.autolog(log_models=False, checkpoint=False, monitor="loss")
    assert fit() == unwatched
    said = [line for line in contained if name in line]
    assert len(said) == (1 if name in NEEDED or name not in NAMES else 0), contained
    assert all("training continues, but" in line and "\n" not in line for line in said)
    assert any(isinstance(one, EpochEnded) and "loss" in one.metrics for one in recorded)
    found, last = steps(recorded), name.rpartition(".")[2]
    assert bool(found) == (last not in NO_STEP)
    if found:
        assert np.isfinite(found.get("loss", [])).sum() == (0 if last in NO_LOSS else 3)


def test_no_module_fails_without_a_private_name() -> None:
    """None is imported at a module's top."""
    for path in Path(mlflow_tfmon.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [one.name for one in node.names] if isinstance(node, ast.Import) else []
            assert not [one for one in names if f"{one}.".startswith(tuple(f"{p}." for p in PRIVATE))], path


def test_the_tables_name_what_is_there() -> None:
    pytest.importorskip("tf_keras")
    for hook in keras2.hooks(lambda *_: None):
        assert callable(internals.find(hook.target)), hook
    for name in [*KERAS_3, *TENSORFLOW, *MLFLOW, *NAMES]:
        assert internals.find(name) is not None


def test_all_is_put_back() -> None:
    targets = [*KERAS_3, *TENSORFLOW, *MLFLOW]
    before = [internals.find(one) for one in targets]
    mlflow_tfmon.autolog()
    assert all(internals.find(one) is not was for one, was in zip(targets, before, strict=True))
    mlflow_tfmon.autolog(disable=True)
    assert [internals.find(one) for one in targets] == before


@pytest.mark.parametrize("version", ["2.21.0-nv25.3+local build", "unknown", ""])
def test_a_version_that_is_none(
    version: str,
    contained: list[str],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tf, "__version__", version)
    assert versions.untested(versions.installed()) == [f"tensorflow {version}"]
    mlflow_tfmon.autolog()
    assert not contained and keras.Model.fit.__module__ != "keras.src.trainers.trainer"


def test_no_thread_can_be_started(
    contained: list[str],  # noqa: F811
    recorded: list[Any],
    unwatched: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name.startswith("mlflow_tfmon"):
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    for owner in (pipeline.DRAIN, stalls):
        monkeypatch.setattr(owner, "_thread", None)
    mlflow_tfmon.autolog(log_models=False, checkpoint=False, monitor="loss")
    assert fit() == unwatched
    told = [line for line in contained if "can't start new thread" in line]
    assert len(told) == 2 and "steps are taken at the ends" in told[0] and "stalls is not seen" in told[1], (
        told
    )
    assert np.isfinite(steps(recorded)["loss"]).sum() == 3
