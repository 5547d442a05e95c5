"""mlflow-tfmon import-tensorboard DIR: creates MLflow runs from a TensorBoard log directory."""

from __future__ import annotations

from pathlib import Path

import click

from mlflow_tfmon.tables import echo


@click.command("import-tensorboard", short_help="Create runs from TensorBoard event files.")
@click.argument("folder", metavar="DIR", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--experiment", help="Name of the experiment for the runs. Default: the folder's name.")
@click.option(
    "--tracking-uri", help="Where to create them. Default: MLflow's own setting (MLFLOW_TRACKING_URI)."
)
def command(folder: Path, experiment: str | None, tracking_uri: str | None) -> None:
    """Create MLflow runs from the trainings in DIR; a training's train and validation folders become one run."""
    import mlflow

    from mlflow_tfmon.tensorboard.importing import import_logs

    if next(folder.rglob("*tfevents*"), None) is None:  # else an experiment would be made for nothing
        raise click.ClickException(f"there is no event file (*tfevents*) in {folder.absolute()}.")
    client = mlflow.MlflowClient(tracking_uri)
    name = experiment or folder.absolute().name
    known = client.get_experiment_by_name(name)
    experiment_id = known.experiment_id if known else client.create_experiment(name)
    for training in import_logs(folder, experiment_id, tracking_uri):
        echo(f"{training.run_id}  {training.name}: {training.points} points")
