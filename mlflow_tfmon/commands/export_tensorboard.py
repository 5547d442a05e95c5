"""mlflow-tfmon export-tensorboard RUN DIR: exports a recording as TensorBoard event files."""

from __future__ import annotations

from pathlib import Path

import click

from mlflow_tfmon.reading.reference import RUN_IS, find_run, store_option
from mlflow_tfmon.tables import echo


@click.command("export-tensorboard", epilog=RUN_IS, short_help="Export a run as TensorBoard event files.")
@click.argument("reference", metavar="RUN")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@store_option
def command(reference: str, folder: Path, tracking_uri: str | None) -> None:
    """Export the recording of RUN to DIR as event files, for `tensorboard --logdir DIR`."""
    from mlflow_tfmon.tensorboard.export import export

    for written in export(find_run(reference, tracking_uri), folder, tracking_uri):
        echo(str(written))
