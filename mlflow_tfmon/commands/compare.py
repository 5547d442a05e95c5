"""mlflow-tfmon compare RUN RUN…: lays runs over one another in one page."""

from __future__ import annotations

from pathlib import Path

import click

_ARTIFACT = "tfmon/comparison.html"


@click.command("compare")
@click.argument("run_ids", metavar="RUN RUN...", nargs=-1, required=True)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="comparison.html",
    show_default=True,
    help="File to write.",
)
@click.option("--log-to", metavar="RUN", help=f"Log it to this run as well, as {_ARTIFACT}.")
@click.option(
    "--tracking-uri", help="Where the runs are. Default: MLflow's own setting (MLFLOW_TRACKING_URI)."
)
def command(run_ids: tuple[str, ...], output: Path, log_to: str | None, tracking_uri: str | None) -> None:
    """Compare runs (ids of MLflow runs): curves laid over one another, settings that differ, where they part."""
    if len(set(run_ids)) < 2:
        raise click.UsageError("compare needs two different runs or more.")
    import mlflow

    from mlflow_tfmon.report.comparison import compare

    page = compare(run_ids, tracking_uri)
    output.write_text(page, "utf-8")
    if log_to:
        mlflow.MlflowClient(tracking_uri).log_text(log_to, page, _ARTIFACT)
    click.echo(str(output))
