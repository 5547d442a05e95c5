"""Assertions on trainings, for tests in any framework; the pytest fixture `healthy_training` is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from mlflow.entities import Run

    from mlflow_tfmon.reading.recorded import RecordedRun

T = TypeVar("T")


def assert_healthy(
    run: RecordedRun | Run | str, fail_on: str = "critical", metrics: Iterable[str] = ()
) -> None:
    """Asserts that a monitored run passes, as `mlflow-tfmon check` does.

    Args:
        run: the run, as MLflow or `load_run` has it, or its id; it must have ended.
        fail_on: problems to fail on: "critical", "warning" (any), or kinds, separated by commas.
        metrics: conditions that must hold, such as "val_accuracy>=0.9" or "best(val_loss)<=0.3".

    Raises:
        AssertionError: it does not pass; the message is the diagnosis, the cause first.
        ValueError: the run was not monitored, or a condition or `fail_on` cannot be understood.

    Example:
        >>> assert_healthy(mlflow.last_active_run(), metrics=["val_accuracy>=0.9"])
    """
    __tracebackhide__ = True  # pytest shows where it was called
    from mlflow_tfmon.problems.failing import Failing
    from mlflow_tfmon.report.condition import Condition
    from mlflow_tfmon.report.verdict import PASSED, check
    from mlflow_tfmon.report.verdict_formats import text

    run_id = run if isinstance(run, str) else str(getattr(run, "run_id", None) or run.info.run_id)  # type: ignore[union-attr]
    verdict = check(run_id, Failing.parsed(fail_on), [Condition.parsed(one) for one in metrics])
    if verdict.status != PASSED:
        raise AssertionError(text(verdict))


def assert_trains_healthily(
    train: Callable[[], T], fail_on: str = "critical", metrics: Iterable[str] = (), **settings: Any
) -> T:
    """Runs a function under `autolog()` and asserts that each training in it passes.

    Args:
        train: the function: it calls `fit`, or makes the steps of a custom loop, whose step is traced within it.
        fail_on: as in `assert_healthy`.
        metrics: as in `assert_healthy`; each training must meet them.
        **settings: of `autolog`; without effect where it is on already.

    Returns:
        What the function returns.

    Raises:
        AssertionError: a training does not pass, or no step was recorded.
        ValueError: a condition or `fail_on` cannot be understood.

    Example:
        >>> model = assert_trains_healthily(lambda: train(epochs=3), metrics=["accuracy>=0.8"])
    """
    __tracebackhide__ = True
    import mlflow_tfmon
    from mlflow_tfmon import integration
    from mlflow_tfmon.problems.failing import Failing
    from mlflow_tfmon.report.condition import Condition
    from mlflow_tfmon.watching import pipeline

    metrics = list(metrics)
    Failing.parsed(fail_on)  # before minutes of training
    for one in metrics:
        Condition.parsed(one)
    mlflow_tfmon.end_run()  # of an earlier loop, which this one might go on with
    is_on = integration.is_on()
    if not is_on:
        mlflow_tfmon.autolog(**settings)
    run_ids: dict[str | None, None] = {}

    def note(run_id: str | None) -> None:
        run_ids[run_id] = None

    pipeline.on_open.append(note)
    try:
        result = train()
        mlflow_tfmon.end_run()
    finally:
        pipeline.on_open.remove(note)
        if not is_on:
            mlflow_tfmon.autolog(disable=True)
    if not run_ids:
        raise AssertionError(
            "no training step was recorded: the function must call fit, or make steps of a loop that it traces itself; "
            "a tf.function that was called before keeps its unmonitored trace."
        )
    for run_id in run_ids:
        if run_id is None:
            raise AssertionError(
                "the training cannot be judged, since MLflow does not answer: check MLFLOW_TRACKING_URI."
            )
        assert_healthy(run_id, fail_on, metrics)
    return result
