"""`mlflow-tfmon sync`: delivers what a crash or an outage left on this machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from mlflow_tfmon.reading.reference import RUN_IS, Named, choose, find_run, open_client
from mlflow_tfmon.tables import echo, table
from mlflow_tfmon.uris import visible

if TYPE_CHECKING:
    from mlflow_tfmon.delivery.sync import Waiting


@click.command(name="sync", epilog=RUN_IS, short_help="Deliver what is undelivered on this machine.")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--tracking-uri", help="The store, if the recorded one has moved or needs credentials.")
@click.option("--dry-run", is_flag=True, help="Only list what is undelivered.")
@click.option(
    "--check",
    is_flag=True,
    help="Only check by counting that the store holds everything that was sent for RUN.",
)
def command(runs: tuple[str, ...], tracking_uri: str | None, dry_run: bool, check: bool) -> None:
    """Deliver what a crash or an outage left on this machine.

    Without RUN, everything undelivered is delivered, else only the recordings of these runs. It can be interrupted and
    called again: nothing is lost, and nothing arrives twice.
    """
    from mlflow_tfmon.delivery.sync import find_waiting

    if check:
        _check(runs, tracking_uri)
        return
    found = chosen(find_waiting(), runs)
    if not found:
        echo("Everything has been delivered.")
        return
    _show(found)
    if not dry_run:
        _deliver(found, tracking_uri)


def chosen(found: Sequence[Waiting], references: Sequence[str]) -> list[Waiting]:
    """Those of the recordings that wait whose runs are named, or all where none is."""
    named = {one.name: Named(one.name, one.run_name, one.begun) for one in found}
    meant = {choose(reference, list(named.values()), "waiting here").run_id for reference in references}
    return [one for one in found if not references or one.name in meant]


def _check(references: Sequence[str], tracking_uri: str | None) -> None:
    from mlflow_tfmon.delivery.tally import MANIFEST, load_manifest, missing, read_manifest
    from mlflow_tfmon.tracking.credentials import check_artifacts

    if not references:
        raise click.UsageError("--check needs a run.")
    client = open_client(tracking_uri)
    lacking = 0
    for run in [find_run(reference, tracking_uri) for reference in references]:
        check_artifacts(client, client.get_run(run).info.artifact_uri)
        manifest = load_manifest(client, run)
        if manifest is None:
            raise click.ClickException(
                f"run {run} has not been delivered in full: it is still running, undelivered, or was not monitored."
            )
        wanted = read_manifest(manifest)
        if wanted is None:
            raise click.ClickException(f"run {run}: its artifact {MANIFEST} was not written by mlflow_tfmon.")
        lacks = missing(client, run, manifest)
        lacking += len(lacks)
        points, rows = (sum(wanted[what].values()) for what in ("series", "files"))
        echo(
            "\n".join([f"{run}: incomplete:", *lacks])
            if lacks
            else f"{run}: complete: {points} points of {len(wanted['series'])} metrics, {rows} rows in "
            f"{len(wanted['files'])} files."
        )
    if lacking:
        raise click.ClickException(f"{lacking} metrics or files lack data that was sent.")


def _show(found: Sequence[Waiting]) -> None:
    rows = [("RUN", "BEGUN", "RECORDS", "SIZE", "STORE", "STATE")]
    for one in found:
        begun = time.strftime("%Y-%m-%d %H:%M", time.localtime(one.begun))
        run = one.run_id or f"{one.folder.name} (run not created yet)"
        state = "training is running" if one.written else one.error or "waits"
        rows.append((run, begun, str(one.records), f"{one.bytes / 2**20:.1f} MB", one.store, state))
    echo(table(rows))


def _deliver(found: Sequence[Waiting], tracking_uri: str | None) -> None:
    import logging

    from mlflow_tfmon.delivery.sync import deliver
    from mlflow_tfmon.tracking.patience import LONGEST_CALL, be_quick

    be_quick(LONGEST_CALL)  # the caller waits
    for name in ("mlflow", "alembic", "urllib3", "sqlalchemy"):  # we report outages ourselves, in one line
        logging.getLogger(name).setLevel(logging.CRITICAL)
    left = 0
    for one in found:
        with click.progressbar(length=max(1, one.records), label=visible(one.name), file=sys.stderr) as bar:

            def told(waiting: int, bar: object = bar, records: int = one.records) -> None:
                bar.update(max(0, records - waiting - bar.pos))  # type: ignore[attr-defined]

            error = deliver(one, tracking_uri, told)
        if error is None:
            how = (
                ", as far as it goes"
                if one.written
                else f", as far as possible: {one.error}"
                if one.damaged
                else ""
            )
            echo(f"{one.name}: delivered{how}.")
        else:
            left += 1
            echo(f"{one.name}: not delivered: {error}")
    if left:
        raise click.ClickException(
            f"{left} of {len(found)} recordings are still undelivered; they are kept. Call `mlflow-tfmon sync` again "
            "when their store answers."
        )
