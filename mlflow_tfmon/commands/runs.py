"""mlflow-tfmon runs: lists the monitored runs."""

from __future__ import annotations

import dataclasses
import itertools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from mlflow_tfmon import tables
from mlflow_tfmon.journal import here
from mlflow_tfmon.reading.reference import open_client, store_option, watched
from mlflow_tfmon.stream.continuation import Past
from mlflow_tfmon.tables import echo
from mlflow_tfmon.tags import DELIVERY_TAG, REACHED_TAG
from mlflow_tfmon.tracking.findings import TAG as PROBLEMS
from mlflow_tfmon.tracking.findings import best

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

_ID = 8  # characters of an id: enough to distinguish some ten thousand runs


@click.command("runs", short_help="List the monitored runs.")
@click.option("--experiment", help="Name of the experiment. Default: all of them.")
@click.option(
    "--limit", type=click.IntRange(1), default=20, show_default=True, help="Largest number of runs to list."
)
@click.option(
    "--since",
    metavar="STEP",
    type=click.IntRange(0),
    default=0,
    help="Only runs that have come to this step.",
)
@store_option
@click.option("--json", "as_json", is_flag=True, help="Print the runs as JSON.")
def command(experiment: str | None, limit: int, since: int, tracking_uri: str | None, as_json: bool) -> None:
    """List the monitored runs, most recent first: state, best value and problems of each."""
    found = listed(open_client(tracking_uri), experiment, limit, since)
    if as_json:
        tables.echo_written(tables.as_json([dataclasses.asdict(one) for one in found]))
    elif not found and since:
        echo(f"No monitored run has come to step {since:,}.")
    elif found:
        rows = [one.row() for one in found]
        echo(tables.table([("RUN", "NAME", "BEGUN", "STATE", "BEST", "PROBLEMS"), *rows]))
    else:
        echo("There are no monitored runs. `mlflow-tfmon run SCRIPT` makes one.")


@dataclass(frozen=True)
class _Listed:
    """A run in the list; as JSON it has these names.

    Attributes:
        run_id: the run; "" if not even that has arrived.
        name: its name.
        begun: Unix time, seconds.
        status: how MLflow has it, in lower case, such as "finished"; "" if it has not arrived.
        step: the last step that has arrived, of the stream that has most; 0 if none has.
        epochs: how many epochs have arrived, of the model that has most; 0 if none has.
        delivery: "complete", or what else is known of its delivery.
        best: the best value and its epoch (from 0; None if unknown) of each monitored metric, by name.
        problems: the kinds, the cause first; None if the training has not been diagnosed yet.
    """

    run_id: str
    name: str
    begun: float
    status: str
    step: int
    epochs: int
    delivery: str | None
    best: dict[str, dict[str, float | None]]
    problems: list[str] | None

    def row(self) -> tuple[str, ...]:
        """The run for people."""
        begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.begun))
        parts = (self.status, "" if self.delivery == "complete" else str(self.delivery))
        best = [
            f"{name} {one['value']:.4g}"
            + ("" if one["epoch"] is None else f" (epoch {self._of(int(one['epoch']) + 1)})")
            for name, one in self.best.items()
        ]
        state = ", ".join(part for part in parts if part)
        problems = "" if self.problems is None else ", ".join(self.problems) or "none"
        return self.run_id[:_ID], self.name, begun, state, ", ".join(best), problems

    def _of(self, epoch: int) -> str:
        return f"{epoch} of {max(epoch, self.epochs)}" if self.epochs else str(epoch)


def listed(client: MlflowClient, experiment: str | None, limit: int, since: int = 0) -> list[_Listed]:
    """The monitored runs of a store, or of one of its experiments, most recent first, then those only here.

    Args:
        client: of the store.
        experiment: its name, or None for all.
        limit: how many at most.
        since: leaves out those that have not come to this step.
    """
    steps = ((run, *_come(client, run)) for run in watched(client, experiment))
    found = list(itertools.islice((one for one in steps if one[1] >= since), limit))
    runs = [_listed(*one) for one in found]
    if experiment is None and not since:
        known = {run.info.run_id for run, *_ in found}
        left = here.recordings(here.of_store(client.tracking_uri))
        runs += [_only_here(one) for one in left if one.due and one.run_id not in known]
    return runs


def _come(client: MlflowClient, run: Run) -> tuple[int, int]:
    """The last step and the number of epochs that have arrived.

    The last step of a run without the tag of it is that of its curves: of each stream one is asked for.
    """
    past = Past.from_text(run.data.tags.get(REACHED_TAG))
    epochs = max(past.epochs.values(), default=0)
    if past.streams:
        return max(one.steps for one in past.streams), epochs
    curves = {name.partition("batch/")[0]: name for name in run.data.metrics if "batch/" in name}
    points = (client.get_metric_history(run.info.run_id, name) for name in curves.values())
    return max((point.step for some in points for point in some), default=0), epochs


def _listed(run: Run, step: int, epochs: int) -> _Listed:
    tags = run.data.tags
    said = tags.get(PROBLEMS)
    problems = None if said is None else [kind for kind in said.split(",") if kind not in ("", "none")]
    return _Listed(
        run.info.run_id, run.info.run_name or "", run.info.start_time / 1e3, run.info.status.lower(),
        step, epochs, tags.get(DELIVERY_TAG), best(run.data.metrics), problems,
    )  # fmt: skip


def _only_here(one: here.Here) -> _Listed:
    """A recording of which not even the run's tags have arrived."""
    return _Listed(
        one.run_id or "", one.run_name or "", one.begun, "", 0, 0, "undelivered, on this machine", {}, []
    )
