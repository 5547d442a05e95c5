"""`mlflow-tfmon diagnose RUN`: diagnoses a run again."""

from __future__ import annotations

import click

from mlflow_tfmon import tables
from mlflow_tfmon.commands.check import NoVerdictError
from mlflow_tfmon.reading.reference import RUN_IS, find_run, store_option
from mlflow_tfmon.tables import echo


@click.command(epilog=RUN_IS, short_help="Diagnose a run again.")
@click.argument("reference", metavar="RUN")
@store_option
@click.option("--json", "as_json", is_flag=True, help="Print the problems as JSON.")
@click.option(
    "--since",
    metavar="STEP",
    type=click.IntRange(0),
    default=0,
    help="Only problems that were seen at this step or after it.",
)
@click.option(
    "--fail-on",
    metavar="WHAT",
    help="End with status 1 if there is such a problem: critical, warning (any), or kinds, separated by commas.",
)
def command(reference: str, tracking_uri: str | None, as_json: bool, since: int, fail_on: str | None) -> None:
    """Diagnose a run again, from its recording, with the detectors of this version.

    The setting `detectors` (in the environment or pyproject.toml) holds here too. Data that have not arrived are not
    considered, and a line on stderr says so. Changes nothing in the run. The exit status is 0 whether there are
    problems or not, unless `--fail-on` says which of them are to fail, as in CI; then it is 2 if that cannot be said.
    """
    import dataclasses

    from mlflow_tfmon.detectors import KINDS
    from mlflow_tfmon.problems.failing import Failing
    from mlflow_tfmon.problems.rediagnosis import diagnose
    from mlflow_tfmon.reading.recorded import load_run
    from mlflow_tfmon.settings import Settings

    try:
        failing = Failing.parsed(fail_on or "")
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param_hint="--fail-on") from error
    try:
        run = load_run(find_run(reference, tracking_uri), tracking_uri)
        problems = [one for one in diagnose(run, Settings.make().detectors) if one.seen_from(since)]
    except Exception as error:
        if fail_on:  # of which 1 would say that there is such a problem
            raise NoVerdictError.of(error) from error
        raise
    if not run.complete:
        echo(
            "Not everything recorded for this run has arrived: the diagnosis is based on what has. Repeat it when the "
            "tag tfmon.delivery is `complete`; `mlflow-tfmon sync` delivers what a crash or an outage left behind.",
            err=True,
        )
    if as_json:
        tables.echo_written(tables.as_json([dataclasses.asdict(one) for one in problems]))
    else:
        for one in problems:
            echo(f"{one.severity}: {one.line()}")
        if not problems:
            steps, epochs = len(run.steps), len(run.epochs)
            seen = f" that were seen from step {since:,} on" if since else ""
            echo(
                f"none: {steps:,} steps and {epochs:,} epochs were searched for {len(KINDS)} kinds of problems{seen}"
            )
    if any(failing.fails(one) for one in problems):
        raise click.exceptions.Exit(1)
    if fail_on and not run.complete:  # what has not arrived may have such a problem
        raise click.exceptions.Exit(2)
