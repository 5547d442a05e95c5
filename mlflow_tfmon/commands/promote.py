"""mlflow-tfmon promote: assigns a registry alias to a run's best model."""

from __future__ import annotations

import click

from mlflow_tfmon.reading.reference import RUN_IS, find_run, store_option
from mlflow_tfmon.tables import echo


@click.command("promote", epilog=RUN_IS, short_help="Give a run's best model an alias.")
@click.argument("reference", metavar="RUN")
@click.option("--alias", default="best", show_default=True, help="The alias to assign.")
@click.option("--name", help="The registered model. Default: the one that the run's model belongs to.")
@click.option("--dry-run", is_flag=True, help="Only show what would happen.")
@click.option(
    "--force", is_flag=True, help="Move the alias even if the model does not beat the version that has it."
)
@store_option
def command(
    reference: str, alias: str, name: str | None, dry_run: bool, force: bool, tracking_uri: str | None
) -> None:
    """Give RUN's best model an alias in the model registry.

    The model becomes a version of the registered model unless it is one already. The alias is not moved if the version
    that has it is not beaten in the same metric on the same data.
    """
    from mlflow_tfmon.checkpoints.promote import PromotionError, promote

    run = find_run(reference, tracking_uri)
    try:
        echo(str(promote(run, alias, name, dry_run=dry_run, force=force, tracking_uri=tracking_uri)))
    except PromotionError as error:
        raise click.ClickException(str(error)) from error
