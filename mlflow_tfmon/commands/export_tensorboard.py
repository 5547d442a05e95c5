"""mlflow-tfmon export-tensorboard RUN DIR: writes what was recorded of a run as TensorBoard's event files."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("export-tensorboard")
@click.argument("run_id", metavar="RUN")
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--tracking-uri", help="Where the run is. Default: MLflow's own setting (MLFLOW_TRACKING_URI).")
def command(run_id: str, folder: Path, tracking_uri: str | None) -> None:
    """Write what was recorded of RUN into DIR as event files, for `tensorboard --logdir DIR`."""
    from mlflow_tfmon.tensorboard.export import export

    for written in export(run_id, folder, tracking_uri):
        click.echo(str(written))
