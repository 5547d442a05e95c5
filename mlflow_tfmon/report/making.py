"""Maker of a run's report: reads the recording and MLflow's data of the run, and fills the page."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np

from mlflow_tfmon.checkpoints.names import BEST, LAST
from mlflow_tfmon.reading.recorded import RecordedRun, load_run, read_run
from mlflow_tfmon.report.examples import examples
from mlflow_tfmon.report.layers import layers
from mlflow_tfmon.report.page import Finding, Page, Table, render
from mlflow_tfmon.report.panels import Curve, Panel
from mlflow_tfmon.report.predictions import slides
from mlflow_tfmon.report.thin import thin
from mlflow_tfmon.report.training import training
from mlflow_tfmon.tags import (
    ABSENT_TAG,
    COMMAND_TAG,
    ENVIRONMENT_TAG,
    LEFT_OUT_TAG,
    LOST_TAGS,
    PREFIX,
    PROBLEMS_TAG,
    PROGRESS_TAG,
    REFUSED_TAG,
    RESCUES_TAG,
    STOPPED_TAG,
    pointed,
)

_ACTIONS = {STOPPED_TAG: "stopped", RESCUES_TAG: "rescued"}
_KNOTS = 500  # of the clock
_POINTS = 100  # of a curve, for programs
# The panel that shows a problem best, of those that the run has.
_SHOWN_BY = {
    "nan_or_inf": ("loss",),
    "exploding_gradient": ("gradient", "grad_norm by layer"),
    "vanishing_gradient": ("grad_norm by layer", "gradient"),
    "dead_relu": ("dead", "zeros"),
    "saturated_activation": ("saturated",),
    "oscillating_loss": ("loss",),
    "overfitting": ("gap", "loss"),
    "stagnant_weights": ("update_ratio by layer",),
    "poor_initialization": ("activation std", "grad_norm by layer"),
    "improper_activation": ("activation std", "loss"),
    "learning_rate_too_high": ("loss",),
    "learning_rate_too_low": ("update_ratio by layer", "loss"),
    "input_bound": ("input_wait", "throughput"),
    "retracing": ("step_time",),
    "memory_growth": ("memory",),
}


def make(run_id: str, tracking_uri: str | None = None, wait: bool = True) -> str:
    """Returns the report of a run as HTML.

    Args:
        run_id: the MLflow run.
        tracking_uri: the run's store; default: MLflow's current tracking URI.
        wait: whether to wait for what this machine is delivering.

    Raises:
        ValueError: the run was not monitored, or nothing of it has arrived yet.
        mlflow.MlflowException: there is no such run.

    Example:
        >>> Path("report.html").write_text(make(run_id))
    """
    import mlflow

    client = mlflow.MlflowClient(tracking_uri)
    recorded = load_run(run_id, tracking_uri) if wait else read_run(client, run_id)
    return render(page_of(recorded, client.get_run(run_id)))


def as_data(run_id: str, tracking_uri: str | None = None, since: int = 0) -> dict[str, Any]:
    """Returns what the report says of a run, for programs.

    Args:
        run_id: the MLflow run.
        tracking_uri: the run's store; default: MLflow's current tracking URI.
        since: leaves out what was before this step.

    Returns:
        Facts, verdict, problems and tables; and the curves of the training as a whole, by panel and name: (step,
        value), thinned with their extremes kept.

    Raises:
        ValueError: as `make` does.
        mlflow.MlflowException: there is no such run.

    Example:
        >>> as_data(run_id, since=500)["curves"]["loss"]["loss of the step"][-1]
        (1200, 0.31)
    """
    import mlflow

    recorded, run = load_run(run_id, tracking_uri), mlflow.MlflowClient(tracking_uri).get_run(run_id)
    problems = [one for one in recorded.problems if one.seen_from(since)]
    panels = [one for section in training(recorded) for one in section.panels if isinstance(one, Panel)]
    return {
        "run_id": run_id,
        "name": run.info.run_name,
        "complete": recorded.complete,
        "facts": _facts(recorded, run),
        "verdict": _verdict(recorded, run)[0],
        "problems": [dataclasses.asdict(one) for one in problems],
        "tables": {table.title: {row[0]: row[1] for row in table.rows} for table in _tables(run)},
        "curves": {
            panel.key: {curve.name: found for curve in panel.curves if (found := _from(curve, since))}
            for panel in panels
        },
        "not_finite": {panel.key: [step for step in panel.marks if step >= since] for panel in panels},
    }


def _from(curve: Curve, since: int) -> list[tuple[float, float]]:
    points = np.array([point for point in curve.points if point[0] >= since]).reshape(-1, 2)
    steps, values = thin(points[:, 0], points[:, 1], _POINTS)
    return list(zip(steps.astype(int).tolist(), values.tolist(), strict=True))


def page_of(recorded: RecordedRun, run: Any) -> Page:
    """What is on the page of a run.

    Args:
        recorded: what was recorded.
        run: MLflow's run.
    """
    sections = [*training(recorded), *layers(recorded)]
    keys = {panel.key for section in sections for panel in section.panels}
    findings = [_finding(problem, keys) for problem in recorded.problems]
    verdict, good = _verdict(recorded, run)
    return Page(
        title=run.info.run_name or run.info.run_id,
        facts=_facts(recorded, run),
        verdict=verdict,
        good=good,
        findings=findings,
        sections=sections,
        clocks=[clock(recorded)],
        seams=[seams(recorded)],
        tables=_tables(run),
        code=_code(run),
        examples=examples(recorded.batches),
        slides=slides(recorded.predicted),
    )


def seams(recorded: RecordedRun) -> list[tuple[int, str]]:
    """Where a further training of the run goes on, as the page has it."""
    return [(seam.step, seam.what) for seam in recorded.seams]


def clock(recorded: RecordedRun) -> dict[str, list[float]]:
    """Which epoch, and how many minutes since the first step, a step belongs to."""
    steps = recorded.steps.index.to_numpy()
    if not len(steps):
        return {"step": [0], "epoch": [0], "minutes": [0]}
    at = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _KNOTS)).round().astype(int))
    ends = recorded.epoch_ends.sort_values("step")
    ends = ends[ends.prefix == ends.prefix.iloc[0]] if len(ends) else ends
    epochs = np.interp(steps[at], [0, *ends.step], [0, *(ends.epoch + 1)]) if len(ends) else 0.0 * at
    times = next((recorded.steps[c] for c in recorded.steps if c.rpartition(".")[2] == "time"), None)
    minutes = 0.0 * at
    if times is not None and times.notna().any():
        known = times.dropna()
        minutes = (np.interp(steps[at], known.index, known) - known.iloc[0]) / 60
    found = zip(("step", "epoch", "minutes"), (steps[at], epochs, minutes), strict=True)
    return {name: [round(float(value), 4) for value in values] for name, values in found}


def _finding(problem: Any, keys: set[str]) -> Finding:
    last = getattr(problem, "last_step", 0) or problem.first_step
    span = (
        f"step {problem.first_step}"
        if last == problem.first_step
        else f"steps {problem.first_step} to {last}"
    )
    where = [span]
    if problem.variables:
        names = ", ".join(problem.variables[:8])
        where.append(
            names + (f" and {len(problem.variables) - 8} more" if len(problem.variables) > 8 else "")
        )
    confidence = getattr(problem, "confidence", None)
    if confidence is not None:
        where.append(f"confidence {confidence:.0%}")
    wanted = (*_SHOWN_BY.get(problem.kind, ()), "loss")
    panel = next((key for key in wanted if key in keys), "")
    return Finding(
        problem.kind, problem.severity, " · ".join(where), problem.evidence, problem.remedy(), panel,
        (problem.first_step, last), bool(getattr(problem, "consequence_of", "")),
    )  # fmt: skip


def _verdict(recorded: RecordedRun, run: Any) -> tuple[str, bool | None]:
    if found := recorded.problems:
        kinds = ", ".join(dict.fromkeys(one.kind for one in found))
        return f"{len(found)} problem{'s' if len(found) > 1 else ''} found: {kinds}.", False
    if run.info.status == "RUNNING":
        return "The training goes on; no problem was found so far.", None
    if PROBLEMS_TAG in run.data.tags:
        return "No problems found.", True
    return "This run was not checked for problems.", None


def _facts(recorded: RecordedRun, run: Any) -> list[str]:
    info, steps = run.info, recorded.steps
    facts = [f"run {info.run_id}", info.status.lower()]
    facts.append(time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(info.start_time / 1e3)))
    if info.end_time:
        facts.append(f"{(info.end_time - info.start_time) / 1e3:,.0f} s")
    facts.append(f"{len(steps):,} steps, {len(recorded.epochs):,} epochs")
    count = sum(int(np.prod(shape)) for shape, _ in recorded.variables.values())
    facts.append(f"{count:,} trained weights in {len(recorded.variables)} variables")
    monitor = next(
        (key for key in run.data.metrics if "best/" in key and not key.endswith("best/epoch")), None
    )
    if monitor is not None:
        epoch = run.data.metrics.get(monitor.partition("best/")[0] + "best/epoch", float("nan"))
        name = monitor.replace("best/", "")
        facts.append(
            f"best {name} {run.data.metrics[monitor]:.5g} at epoch {epoch + 1:.0f} of {len(recorded.epochs)}"
        )
    progress = run.data.tags.get(PROGRESS_TAG)
    if info.status == "RUNNING" and progress:
        facts.append(f"so far: {progress}")
    elif not recorded.complete:
        facts.append("not everything recorded has arrived yet")
    return facts


def _tables(run: Any) -> list[Table]:
    tags, params = run.data.tags, run.data.params
    shown = {
        "mlflow.source.name": "script", COMMAND_TAG: "command", "mlflow.user": "user",
        "mlflow.source.git.commit": "commit",
        ENVIRONMENT_TAG: "environment", ABSENT_TAG: "not measured", f"{LOST_TAGS}steps": "steps lost",
        LEFT_OUT_TAG: "not kept", REFUSED_TAG: "rejected by MLflow",
        f"{LOST_TAGS}deep_steps": "deep steps lost", f"{LOST_TAGS}histograms": "histograms lost",
    }  # fmt: skip
    about = [(name, tags[key]) for key, name in shown.items() if key in tags]
    own = [(key, value) for key, value in sorted(tags.items()) if not key.startswith(("mlflow.", PREFIX))]
    best = [as_people_count(key, value) for key, value in sorted(run.data.metrics.items()) if "best/" in key]
    actions = [(name, tags[key]) for key, name in _ACTIONS.items() if key in tags]
    settings = [(name, as_people_write(value)) for name, value in sorted(params.items())]
    tables = (
        Table("Actions on problems", actions), Table("Best epoch", best),
        Table("Environment", about + own), Table("Settings", settings)
    )  # fmt: skip
    return [table for table in tables if table.rows]


def as_people_write(param: str) -> str:
    """A param without the digits of single precision.

    Example:
        >>> as_people_write("0.0010000000474974513"), as_people_write("1000000")
        ('0.001', '1000000')
    """
    try:
        single = str(np.float32(param))
    except ValueError:
        return param
    is_single = len(param) > 10 and str(float(np.float32(single))) == param
    return f"{float(single):.6g}" if is_single else param


def as_people_count(metric: str, value: float) -> tuple[str, str]:
    """A metric as a table has it, its name and its value: people count epochs from 1, the stored index is from 0.

    Example:
        >>> as_people_count("best/epoch", 4.0)
        ('best epoch', '5')
    """
    if metric.endswith("best/epoch"):
        return f"{metric.removesuffix('best/epoch')}best epoch", f"{value + 1:.0f}"
    return metric, f"{value:.6g}"


def _code(run: Any) -> list[tuple[str, str]]:
    load = "import mlflow\nmodel = mlflow.tensorflow.load_model({!r})"
    found, shown, named = [], set[str](), pointed(run.data.tags)
    for kind, what in ((BEST, "best"), (LAST, "last")):
        for (one, prefix), model_id in sorted(named.items()):
            if one == kind and model_id not in shown:
                shown.add(model_id)  # the last may be the best
                of = prefix.rstrip(".")
                found.append(
                    (f"The {what} model{f' of {of}' if of else ''}", load.format(f"models:/{model_id}"))
                )
    lines = "import mlflow_tfmon\nrun = mlflow_tfmon.load_run({!r})\nrun.steps, run.layers, run.histograms, run.epochs"
    found.append(("All recorded data as pandas", lines.format(run.info.run_id)))
    return found
