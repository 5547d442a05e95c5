"""Lookup of the run that a user names: the RUN argument of every command."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from mlflow_tfmon.tables import WrongInputError, echo
from mlflow_tfmon.tags import DELIVERY_TAG

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.tracking import MlflowClient

LATEST = "latest"
RUN_IS = (
    "RUN is a run's id, a unique part of it, the run's name or its beginning, or "
    f"'{LATEST}': the monitored run that started last."
)
_SHOWN = 5
store_option = click.option(
    "--tracking-uri", help="Where the runs are. Default: MLflow's own setting (MLFLOW_TRACKING_URI)."
)


@dataclass(frozen=True)
class Named:
    """What a run can be told by.

    Attributes:
        run_id: its id.
        name: its name, or None.
        begun: Unix time, seconds.
    """

    run_id: str
    name: str | None
    begun: float

    def __str__(self) -> str:
        begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.begun))
        return f"{self.run_id} ({self.name or 'no name'}, {begun})"


def choose(reference: str, among: Sequence[Named], where: str) -> Named:
    """The run that is meant: by its id, else its name, else a part of its id, else the beginning of its name.

    Args:
        reference: what RUN may be.
        among: the runs that it may be.
        where: they are, for messages.

    Raises:
        WrongInputError: there is none, or several are.

    Example:
        >>> choose("digits", [Named("8f3a", "digits", 0.0)], "here").run_id
        '8f3a'
    """
    if reference == LATEST and among:
        return max(among, key=lambda one: one.begun)
    for found in (
        [one for one in among if one.run_id == reference],
        [one for one in among if one.name == reference],
        [one for one in among if reference in one.run_id],
        [one for one in among if reference and (one.name or "").startswith(reference)],
    ):
        if len(found) == 1:
            return found[0]
        if found:
            shown = ", ".join(map(str, found[:_SHOWN])) + (" and more" if len(found) > _SHOWN else "")
            raise WrongInputError(f"{reference!r} matches several runs {where}: {shown}. Give the id of one.")
    wanted = "watched run" if reference == LATEST else f"run {reference!r}"
    raise WrongInputError(f"there is no {wanted} {where}. `mlflow-tfmon runs` lists the monitored ones.")


def find_run(reference: str, tracking_uri: str | None = None) -> str:
    """Id of the run that is meant, in a store.

    Args:
        reference: what RUN may be.
        tracking_uri: of the store; default MLflow's own setting.

    Raises:
        WrongInputError: there is none, several are, or there is no such store.
        click.ClickException: the store does not answer.
    """
    client = open_client(tracking_uri)
    if reference == LATEST:
        found = [run for run, _ in zip(watched(client), range(1), strict=False)]
    else:
        mark = '"' if "'" in reference else "'"
        name = reference.replace(mark, "")
        found = list(_search(client, f"attributes.run_name = {mark}{name}{mark}", _SHOWN + 1))
        if re.fullmatch("[0-9a-f]{1,32}", reference):
            found += _search(client, f"attributes.run_id LIKE '%{reference}%'", _SHOWN + 1)
        if name and not found:
            found += _search(client, f"attributes.run_name LIKE {mark}{name}%{mark}", _SHOWN + 1)
    named = {
        run.info.run_id: Named(run.info.run_id, run.info.run_name, run.info.start_time / 1e3) for run in found
    }
    return choose(reference, list(named.values()), f"in {_shown(client)}").run_id


def watched(client: MlflowClient, experiment: str | None = None) -> Iterator[Run]:
    """The watched runs of a store, or of one of its experiments, those that were begun last first."""
    return _search(client, f"tags.`{DELIVERY_TAG}` LIKE '%'", experiment=experiment)


def open_client(tracking_uri: str | None) -> MlflowClient:
    """A client of a store that is there.

    Raises:
        WrongInputError: there is no such database, or that is no address of a store.
        click.ClickException: the server does not answer.
    """
    import os

    import mlflow
    from mlflow.exceptions import MlflowException

    from mlflow_tfmon.tracking import runs
    from mlflow_tfmon.tracking.patience import be_quick
    from mlflow_tfmon.uris import sqlite_path, without_secrets

    be_quick()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    uri = tracking_uri or mlflow.get_tracking_uri()
    path = sqlite_path(uri)
    remedy = "Check --tracking-uri (or MLFLOW_TRACKING_URI)."
    if path is not None and not os.path.exists(path):  # MLflow would make one
        raise WrongInputError(f"there is no database {path}. {remedy}")
    if re.fullmatch(r"[\w.-]+:\d+/?", uri):  # MLflow would take it for a folder
        raise WrongInputError(f"{uri!r} is no address of a store. Did you mean 'http://{uri}'?")
    if not runs.reachable(uri):
        raise click.ClickException(
            f"the server {without_secrets(uri)} does not answer. Is it running? {remedy}"
        )
    _wait_for_what_is_here(uri)
    try:
        return mlflow.MlflowClient(uri)
    except MlflowException as error:
        if "unsupported URI" not in str(error):  # (MLflow 3.1 to 3.17)
            raise
        raise WrongInputError(f"MLflow knows no store like {without_secrets(uri)!r}. {remedy}") from error


def _wait_for_what_is_here(tracking_uri: str) -> None:
    """Waits for what this machine is delivering to a store, and says what has not arrived there."""
    from mlflow_tfmon.journal import here

    left = here.wait(here.of_store(tracking_uri), "recordings on this machine")
    if left:
        said = "; ".join(map(str, left[:_SHOWN])) + ("; …" if len(left) > _SHOWN else "")
        echo(f"mlflow-tfmon: not in MLflow yet: {said}. `mlflow-tfmon sync` delivers it.", err=True)


def _search(
    client: MlflowClient, query: str, limit: int | None = None, experiment: str | None = None
) -> Iterator[Run]:
    if experiment is None:
        ids = [one.experiment_id for one in _all_experiments(client)]
    else:
        known = client.get_experiment_by_name(experiment)
        if known is None:
            raise WrongInputError(
                f"there is no experiment {experiment!r} in {_shown(client)}. `mlflow-tfmon runs` lists the runs "
                "of all experiments."
            )
        ids = [known.experiment_id]
    token = None
    while True:
        size = 100 if limit is None else limit
        page = client.search_runs(
            ids, query, max_results=size, order_by=["attributes.start_time DESC"], page_token=token
        )
        yield from page
        token = page.token
        if not token or limit is not None:
            return


def _all_experiments(client: MlflowClient) -> Iterator[Experiment]:
    token = None
    while True:
        page = client.search_experiments(page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _shown(client: MlflowClient) -> str:
    from mlflow_tfmon.uris import without_secrets

    return without_secrets(client.tracking_uri)
