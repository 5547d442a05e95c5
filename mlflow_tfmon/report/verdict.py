"""Verdict of a check: whether a run passes, by its problems and by conditions on its metrics."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_tfmon.detectors import Problem
from mlflow_tfmon.detectors.learning import FEWEST_STEPS
from mlflow_tfmon.errors import InputError
from mlflow_tfmon.problems.failing import Failing
from mlflow_tfmon.report.condition import Condition, Outcome
from mlflow_tfmon.tags import DELIVERY_TAG

if TYPE_CHECKING:
    from mlflow_tfmon.report.comparison import Parting
    from mlflow_tfmon.report.picture import Curve

PASSED, FAILED, UNDECIDED = 0, 1, 2  # exit statuses of `mlflow-tfmon check`
_NOT_BY_ITSELF = ("FAILED", "KILLED")  # how MLflow says that a run did not end by itself
_SHOWN = 12  # names of metrics in a message
_EARLIER, _FEWEST = 100, 3  # runs that tell how much a metric varies: at most, at least
_POINTS = 200  # of a loss in a picture


@dataclass(frozen=True)
class Baseline:
    """What a run is compared with.

    Attributes:
        run_id: the other run.
        name: its name.
        metrics: by name of the metric, the run's value and the baseline's, None where it has none: the final values,
            then the best ones (`best/…`).
        parting: where the two diverge; None if they do not.
        sentence: the same in words.
        noise: by name of the metric, its median absolute deviation over the earlier runs that are comparable.
        earlier: how many those are, the baseline among them; too few have no noise.
        losses: name and loss of the run and of the baseline, thinned, as a picture has them.
    """

    run_id: str
    name: str
    metrics: Mapping[str, tuple[float | None, float | None]]
    parting: Parting | None
    sentence: str
    noise: Mapping[str, float] = field(default_factory=dict)
    earlier: int = 0
    losses: Sequence[tuple[str, Curve]] = field(default=(), repr=False)


@dataclass(frozen=True)
class Verdict:
    """The result of a check.

    Attributes:
        run_id: the run.
        name: its name.
        ended: how MLflow says that it ended, such as "FINISHED"; "RUNNING" while it is going on.
        complete: whether everything recorded has arrived.
        steps: how many steps were searched.
        epochs: how many epochs were.
        problems: all that were found, the cause first.
        failing: the problems with which a run fails.
        outcomes: one for each condition.
        baseline: the comparison, or None.
        metrics: names of the metrics that a condition can name.
    """

    run_id: str
    name: str
    ended: str
    complete: bool
    steps: int
    epochs: int
    problems: tuple[Problem, ...]
    failing: Failing
    outcomes: tuple[Outcome, ...]
    baseline: Baseline | None
    metrics: tuple[str, ...]

    @property
    def failures(self) -> list[str]:
        """Why the run fails, each reason in a few words; empty if it does not."""
        found = [f"{one.kind} ({one.severity})" for one in self.problems if self.failing.fails(one)]
        found += [
            f"{one.condition.text} does not hold: {one.value:.6g}"
            for one in self.outcomes
            if self.breaks(one)
        ]
        return found + ([f"the run ended as {self.ended}"] if self.broke_off else [])

    def breaks(self, outcome: Outcome) -> bool:
        """Whether a condition's outcome is why the run fails: not while its values may still change."""
        return self.complete and outcome.value is not None and not outcome.holds

    @property
    def broke_off(self) -> bool:
        """Whether the run did not end by itself."""
        return self.ended in _NOT_BY_ITSELF

    @property
    def unknowns(self) -> list[str]:
        """Why the run cannot be said to pass, with what to do; empty if all that is asked is known."""
        found = [
            f"there is no metric {name!r}: {self._instead(name)}"
            for name in dict.fromkeys(one.condition.metric for one in self.outcomes if one.value is None)
        ]
        if not self.steps:
            found.append("no step was recorded, so there is nothing to diagnose")
        if not self.complete:
            found.append(
                "it has not ended, or not everything recorded has arrived: check it again when its tag tfmon.delivery "
                "is `complete`; `mlflow-tfmon sync` delivers what a crash or an outage left behind"
            )
        return found

    @property
    def status(self) -> int:
        """`FAILED` if anything fails, else `UNDECIDED` if anything is unknown, else `PASSED`."""
        return FAILED if self.failures else UNDECIDED if self.unknowns else PASSED

    @property
    def word(self) -> str:
        """The status in a word."""
        return ("passed", "failed", "undecided")[self.status]

    @property
    def why(self) -> str:
        """The reasons for the status in one clause."""
        if self.status != PASSED:
            return "; ".join(self.failures or self.unknowns)
        minor, held = len(self.problems), len(self.outcomes)
        few = f" in {self.steps} steps (most kinds are only found after {FEWEST_STEPS})"
        clean = "no problem was found" + (few if self.steps < FEWEST_STEPS else "")
        said = [f"{minor} problem{'s' * (minor != 1)} below the criterion" if minor else clean]
        said += [f"{held} condition{'s' * (held != 1)} met"] if held else []
        return ", ".join(said)

    def _instead(self, name: str) -> str:
        near = difflib.get_close_matches(name, self.metrics, n=1)
        if near:
            return f"did you mean {near[0]!r}?"
        if not self.metrics:
            return "the run has no epoch, and no metric of its own"
        more = ", …" if len(self.metrics) > _SHOWN else ""
        return f"the run has {', '.join(self.metrics[:_SHOWN])}{more}"


def check(
    run_id: str,
    failing: Failing,
    conditions: Sequence[Condition] = (),
    baseline_id: str | None = None,
    tracking_uri: str | None = None,
) -> Verdict:
    """Checks a run: diagnoses it again, as `diagnose` does, and looks at its metrics.

    A condition names an epoch metric, as Keras names it, or any other metric of the MLflow run.

    Args:
        run_id: the MLflow run.
        failing: the problems with which it fails.
        conditions: on its metrics.
        baseline_id: a run to compare it with.
        tracking_uri: their store; default: MLflow's current tracking URI.

    Raises:
        ValueError: one of the runs was not monitored, nothing of it has arrived yet, or the two are the same.
        mlflow.MlflowException: there is no such run.
        SettingError: the setting `detectors` has an invalid value.

    Example:
        >>> check(run_id, Failing.parsed("critical"), [Condition.parsed("val_accuracy>=0.9")]).word
        'passed'
    """
    import mlflow

    from mlflow_tfmon.problems.rediagnosis import diagnose
    from mlflow_tfmon.reading.recorded import load_run
    from mlflow_tfmon.settings import Settings

    if baseline_id == run_id:
        raise InputError("the baseline is the run itself: give another run as the baseline.")
    chosen = Settings.make().detectors
    recorded = load_run(run_id, tracking_uri)
    client = mlflow.MlflowClient(tracking_uri)
    run = client.get_run(run_id)
    series = epoch_series(recorded)
    values = {
        name: series.get(name) or _logged(client, run, name) for name in {one.metric for one in conditions}
    }
    return Verdict(
        run_id,
        run.info.run_name or run_id,
        run.info.status,
        recorded.complete,
        len(recorded.steps),
        len(recorded.epochs),
        tuple(diagnose(recorded, chosen)),
        failing,
        tuple(one.outcome(values[one.metric]) for one in conditions),
        _compared(client, recorded, run, baseline_id, tracking_uri) if baseline_id else None,
        tuple(dict.fromkeys([*series, *sorted(run.data.metrics)])),
    )


def epoch_series(run: Any) -> dict[str, dict[int, float]]:
    """The metrics of a run's epochs: by name the value of each epoch that has one, also if it is not finite.

    Args:
        run: from `load_run`, whose `epochs` cannot tell a value of NaN from none.
    """
    from mlflow_tfmon.reading import files

    found: dict[str, dict[int, float]] = {}
    for path, _ in run.parts("epochs-*"):
        for row in files.table(path).to_pandas().itertuples():
            found.setdefault(f"{row.prefix}{row.name}", {})[int(row.epoch)] = float(row.value)
    return {name: dict(sorted(values.items())) for name, values in found.items()}


def _logged(client: Any, run: Any, name: str) -> dict[int, float]:
    """A metric that is in MLflow alone, such as one that the user has logged after the training."""
    if name not in run.data.metrics:
        return {}
    points = client.get_metric_history(run.info.run_id, name)
    return {one.step: one.value for one in sorted(points, key=lambda one: (one.step, one.timestamp))}


def _compared(client: Any, recorded: Any, run: Any, baseline_id: str, tracking_uri: str | None) -> Baseline:
    from mlflow_tfmon.reading.recorded import load_run
    from mlflow_tfmon.report.comparison import bits, metric_table, parting, said
    from mlflow_tfmon.tracking.names import clean

    other = load_run(baseline_id, tracking_uri)
    base = client.get_run(baseline_id)
    name, base_name = (one.info.run_name or one.info.run_id for one in (run, base))
    found = parting(other, recorded)
    verb, _, rest = said(found, base_name, bits(other, recorded))
    # MLflow has no value that is not finite, so that of a loss that became NaN it has an earlier one.
    both = [
        {**one.data.metrics, **{clean(name): list(values.values())[-1] for name, values in series.items()}}
        for one, series in ((run, epoch_series(recorded)), (base, epoch_series(other)))
    ]
    rows = [row for best in (False, True) for row in metric_table(both, best)]
    earlier = _comparable(client, run, base)
    metrics = {name: (here, there) for name, (here, there) in rows}
    return Baseline(
        baseline_id,
        base_name,
        metrics,
        found,
        f"{name} {verb} {rest}.",
        _noise(metrics, [one.data.metrics for one in earlier]),
        len(earlier),
        [(name, _loss(recorded)), (base_name, _loss(other))],
    )


def _comparable(client: Any, run: Any, base: Any) -> list[Any]:
    """The runs of the experiment that finished, began before the run, and have the baseline's params but for seeds."""

    def settings(one: Any) -> dict[str, str]:
        return {name: value for name, value in one.data.params.items() if "seed" not in name.lower()}

    found = client.search_runs(
        [run.info.experiment_id],
        f"attributes.status = 'FINISHED' AND attributes.start_time <= {run.info.start_time} "
        f"AND tags.`{DELIVERY_TAG}` = 'complete'",
        max_results=_EARLIER,
        order_by=["attributes.start_time DESC"],
    )
    return [one for one in found if one.info.run_id != run.info.run_id and settings(one) == settings(base)]


def _noise(names: Iterable[str], earlier: Sequence[Mapping[str, float]]) -> dict[str, float]:
    found = {}
    for name in names:
        values = np.array([one[name] for one in earlier if name in one])
        if np.isfinite(values).sum() >= _FEWEST:
            values = values[np.isfinite(values)]
            found[name] = float(np.median(np.abs(values - np.median(values))))
    return found


def _loss(run: Any) -> Curve:
    """The loss of a run's first stream that has one, thinned."""
    from mlflow_tfmon.report.thin import thin

    name = next((name for name in run.steps if name.rpartition(".")[2] == "loss"), None)
    if name is None:
        return ()
    steps, values = thin(run.steps.index.to_numpy(), run.steps[name].to_numpy(float), _POINTS)
    return list(zip(steps.tolist(), values.tolist(), strict=True))
