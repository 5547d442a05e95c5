"""mlflow-tfmon compare RUN RUN…: overlays runs in one page."""

from __future__ import annotations

from pathlib import Path

import click

from mlflow_tfmon import tables
from mlflow_tfmon.reading.reference import RUN_IS, find_run, store_option
from mlflow_tfmon.tables import echo

_ARTIFACT = "tfmon/comparison.html"


@click.command("compare", epilog=RUN_IS, short_help="Compare runs in one page.")
@click.argument("references", metavar="RUN RUN...", nargs=-1, required=True)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="comparison.html",
    show_default=True,
    help="File to write.",
)
@click.option("--log-to", metavar="RUN", help=f"Also log it to this run, as {_ARTIFACT}.")
@click.option("--json", "as_json", is_flag=True, help="Print what differs as JSON instead of writing a page.")
@click.option(
    "--since",
    metavar="STEP",
    type=click.IntRange(0),
    default=0,
    help="Look from this step on for where the runs diverge.",
)
@store_option
def command(
    references: tuple[str, ...],
    output: Path,
    log_to: str | None,
    as_json: bool,
    since: int,
    tracking_uri: str | None,
) -> None:
    """Compare runs: overlaid curves, settings that differ, where they diverge."""
    import mlflow

    from mlflow_tfmon.report.comparison import compare, differences

    run_ids = list(dict.fromkeys(find_run(reference, tracking_uri) for reference in references))
    if len(run_ids) < 2:
        raise click.UsageError("compare needs two different runs or more.")
    if as_json:
        if log_to:
            raise click.UsageError("--json writes no page that --log-to could log; give one of them.")
        tables.echo_written(tables.as_json(differences(run_ids, tracking_uri, since)))
        return
    takes_it = find_run(log_to, tracking_uri) if log_to else None
    page = compare(run_ids, tracking_uri, since)
    tables.write("--output", output, page)
    if takes_it:
        mlflow.MlflowClient(tracking_uri).log_text(takes_it, page, _ARTIFACT)
    echo(str(output))
