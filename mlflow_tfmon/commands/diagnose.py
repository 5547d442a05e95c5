"""`mlflow-tfmon diagnose RUN`: judges a run again."""

from __future__ import annotations

import click


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--tracking-uri", help="Where the run is. Default: MLflow's current tracking URI.")
@click.option("--json", "as_json", is_flag=True, help="Print the problems as JSON.")
def command(run_id: str, tracking_uri: str | None, as_json: bool) -> None:
    """Judge a run again, from what was recorded of it, with the detectors of this version.

    Changes nothing in the run. The exit status is 0 whether there are problems or not.
    """
    import dataclasses
    import json

    from mlflow.exceptions import MlflowException

    from mlflow_tfmon.problems.again import diagnose
    from mlflow_tfmon.recorded import load_run

    try:
        problems = diagnose(load_run(run_id, tracking_uri))
    except (MlflowException, ValueError) as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(one) for one in problems], indent=1))
        return
    for one in problems:
        click.echo(f"{one.severity}: {one.line()}")
    if not problems:
        click.echo("none")
