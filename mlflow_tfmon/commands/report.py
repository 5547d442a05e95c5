"""mlflow-tfmon report RUN: writes a run's report to a file."""

from __future__ import annotations

import re
from pathlib import Path

import click

from mlflow_tfmon.reading.reference import RUN_IS, find_run, store_option
from mlflow_tfmon.tables import echo


@click.command("report", epilog=RUN_IS, short_help="Write a run's report as one HTML file.")
@click.argument("reference", metavar="RUN")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write. Default: report-RUN.html here.",
)
@store_option
def command(reference: str, output: Path | None, tracking_uri: str | None) -> None:
    """Write the report of RUN as a self-contained HTML file."""
    from mlflow_tfmon.report.making import make

    run_id = find_run(reference, tracking_uri)
    page = make(run_id, tracking_uri)
    path = output or Path(
        f"report-{re.sub(r'[^0-9A-Za-z_-]', '_', run_id)}.html"
    )  # a server may assign any id
    path.write_text(page, "utf-8")
    echo(str(path))
