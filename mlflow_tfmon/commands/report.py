"""mlflow-tfmon report RUN: writes a run's report to a file."""

from __future__ import annotations

import re
from pathlib import Path

import click

from mlflow_tfmon import tables
from mlflow_tfmon.reading.reference import RUN_IS, find_run, store_option
from mlflow_tfmon.tables import echo


@click.command("report", epilog=RUN_IS, short_help="Write a run's report as one HTML file.")
@click.argument("reference", metavar="RUN")
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write. Default: report-RUN.html here; with --json none, it is printed.",
)
@click.option("--json", "as_json", is_flag=True, help="The report as JSON: facts, problems, tables, curves.")
@click.option(
    "--since",
    metavar="STEP",
    type=click.IntRange(0),
    help="With --json: only curves from this step on, and problems that were seen at it or later.",
)
@store_option
def command(
    reference: str, output: Path | None, as_json: bool, since: int | None, tracking_uri: str | None
) -> None:
    """Write the report of RUN as a self-contained HTML file, or print it as JSON."""
    from mlflow_tfmon.report.making import as_data, make

    if since is not None and not as_json:
        raise click.UsageError("--since is for --json: the page has all steps, and can be zoomed.")
    run_id = find_run(reference, tracking_uri)
    if as_json:
        page = tables.as_json(as_data(run_id, tracking_uri, since or 0))
        if output is None:
            tables.echo_written(page)
            return
    else:
        page = make(run_id, tracking_uri)
    path = output or Path(
        f"report-{re.sub(r'[^0-9A-Za-z_-]', '_', run_id)}.html"
    )  # a server may assign any id
    tables.write("--output", path, page)
    echo(str(path))
