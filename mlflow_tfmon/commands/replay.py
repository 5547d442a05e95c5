"""`mlflow-tfmon replay`: runs a checkpoint forward on the batch of a bad step, layer by layer."""

from __future__ import annotations

import click

from mlflow_tfmon.reading.reference import RUN_IS, find_run, store_option
from mlflow_tfmon.tables import echo


@click.command(
    "replay", epilog=RUN_IS, short_help="Run a bad step's batch through the model, layer by layer."
)
@click.argument("reference", metavar="RUN")
@click.argument("step", type=click.IntRange(min=1))
@store_option
def command(reference: str, step: int, tracking_uri: str | None) -> None:
    """Run the batch that is kept of STEP of RUN through the nearest checkpoint before it, layer by layer.

    Tells the first layer whose output is not finite, and of which examples, or the largest output, and the loss of each
    example. Loads the model as MLflow does, which runs code that is saved with it: replay only what people you trust
    have trained.
    """
    from mlflow_tfmon.checkpoints.replaying import ReplayError, replay

    run_id = find_run(reference, tracking_uri)
    try:
        echo(replay(run_id, step, tracking_uri).text())
    except ReplayError as error:
        raise click.ClickException(f"{error}.") from error
