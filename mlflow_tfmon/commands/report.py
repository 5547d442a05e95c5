"""mlflow-tfmon report RUN: writes a run's report to a file."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report")
@click.argument("run_id", metavar="RUN")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write. Default: report-RUN.html here.",
)
@click.option("--tracking-uri", help="Where the run is. Default: MLflow's own setting (MLFLOW_TRACKING_URI).")
def command(run_id: str, output: Path | None, tracking_uri: str | None) -> None:
    """Write the report of RUN (the id of an MLflow run) as one HTML file that needs nothing else."""
    from mlflow_tfmon.report.making import make

    page = make(run_id, tracking_uri)
    path = output or Path(f"report-{run_id}.html")
    path.write_text(page, "utf-8")
    click.echo(str(path))
