"""`mlflow-tfmon unpack`: takes the recordings of a file that another machine has packed, to be delivered from here."""

from __future__ import annotations

from pathlib import Path

import click

from mlflow_tfmon.tables import echo


@click.command(name="unpack", short_help="Take the recordings of a packed file.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--tracking-uri", help="The store that they are for. Default: MLflow's own setting, which must be theirs."
)
def command(file: Path, tracking_uri: str | None) -> None:
    """Take the recordings of FILE, which `mlflow-tfmon pack` has written; `mlflow-tfmon sync` then delivers them.

    Nothing in FILE is trusted but what its recordings say for the store that is configured here: unpack files of people
    who may write to it.
    """
    from mlflow_tfmon.delivery.packing import PackError, unpack

    try:
        found = unpack(file, tracking_uri)
    except PackError as error:
        raise click.ClickException(f"{error}.") from error
    for one in found:
        echo(f"{one.name}: {one.records} records" if one.new else f"{one.name}: is here already")
    echo("Deliver with: mlflow-tfmon sync")
