"""mlflow-tfmon runs: lists the monitored runs."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

import click

from mlflow_tfmon.journal import here
from mlflow_tfmon.reading.reference import open_client, store_option, watched
from mlflow_tfmon.tables import echo, table
from mlflow_tfmon.tags import DELIVERY_TAG
from mlflow_tfmon.tracking.findings import TAG as PROBLEMS

if TYPE_CHECKING:
    from mlflow.entities import Run

_ID = 8  # characters of an id: enough to distinguish some ten thousand runs


@click.command("runs", short_help="List the monitored runs.")
@click.option("--experiment", help="Name of the experiment. Default: all of them.")
@click.option(
    "--limit", type=click.IntRange(1), default=20, show_default=True, help="Largest number of runs to list."
)
@store_option
def command(experiment: str | None, limit: int, tracking_uri: str | None) -> None:
    """List the monitored runs, most recent first: state, best value and problems of each."""
    client = open_client(tracking_uri)
    found = list(itertools.islice(watched(client, experiment), limit))
    rows = [_row(run) for run in found]
    if experiment is None:
        known = {run.info.run_id for run in found}
        left = here.recordings(here.of_store(client.tracking_uri))
        rows += [_row_of_one_here(one) for one in left if one.due and one.run_id not in known]
    if rows:
        echo(table([("RUN", "NAME", "BEGUN", "STATE", "BEST", "PROBLEMS"), *rows]))
    else:
        echo("There are no monitored runs. `mlflow-tfmon run SCRIPT` makes one.")


def _row(run: Run) -> tuple[str, ...]:
    begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.info.start_time / 1e3))
    delivery = run.data.tags.get(DELIVERY_TAG)
    state = run.info.status.lower() + ("" if delivery == "complete" else f", {delivery}")
    problems = run.data.tags.get(PROBLEMS, "").replace(",", ", ")
    return run.info.run_id[:_ID], run.info.run_name or "", begun, state, _best(run.data.metrics), problems


def _row_of_one_here(one: here.Here) -> tuple[str, ...]:
    """Returns the row of a recording of which not even the run's tags have arrived."""
    begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.begun))
    return (one.run_id or "")[:_ID], one.run_name or "", begun, "undelivered, on this machine", "", ""


def _best(metrics: dict[str, float]) -> str:
    found = []
    for key, value in metrics.items():
        prefix, is_best, name = key.rpartition("best/")
        if is_best and name != "epoch":
            epoch = metrics.get(f"{prefix}best/epoch")
            found.append(f"{prefix}{name} {value:.4g}" + ("" if epoch is None else f" (epoch {epoch:.0f})"))
    return ", ".join(found)
