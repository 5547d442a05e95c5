"""`mlflow-tfmon find-batch`: finds the examples of a kept batch in a file of data."""

from __future__ import annotations

from pathlib import Path

import click

from mlflow_tfmon.errors import NotThereError
from mlflow_tfmon.reading.reference import RUN_IS, find_run, store_option
from mlflow_tfmon.tables import echo


@click.command(
    "find-batch", epilog=RUN_IS, short_help="Find the examples of a bad step's batch in your data."
)
@click.argument("reference", metavar="RUN")
@click.argument("step", type=click.IntRange(min=1))
@click.argument("data", metavar="DATA", type=click.Path(exists=True, path_type=Path))
@store_option
def command(reference: str, step: int, data: Path, tracking_uri: str | None) -> None:
    """Find the examples of the batch that is kept of STEP of RUN in DATA, by the fingerprints of their inputs.

    DATA is a .npy file of inputs, a .npz file with `x` or `inputs` among its arrays, or a folder that
    `tf.data.Dataset.save` has written. For other data use `mlflow_tfmon.find_batch` in Python. Prints the place in the
    batch and the place in the data of each example, those that stand out first.
    """
    from mlflow_tfmon.reading.batches import find_batch, load_batch

    run_id = find_run(reference, tracking_uri)
    try:
        kept = load_batch(run_id, step, tracking_uri)
        places = find_batch(kept, step, _loaded(data))
    except NotThereError as error:
        raise click.ClickException(f"{error}.") from error
    echo(kept.text)
    for example in dict.fromkeys([*(one for one in kept.odd if one in places), *sorted(places)]):
        echo(f"example {example} of the batch: {places[example]}")
    if len(places) < len(kept.kept):
        echo(f"{len(kept.kept) - len(places)} of {len(kept.kept)} examples are not in {data}", err=True)


def _loaded(path: Path) -> object:
    if path.is_dir():
        import tensorflow as tf

        return tf.data.Dataset.load(str(path))
    import numpy as np

    found = np.load(path, mmap_mode="r", allow_pickle=False)
    if isinstance(found, np.ndarray):
        return found
    names = [name for name in ("x", "inputs", *found.files) if name in found.files]
    if not names:
        raise NotThereError(f"{path} has no arrays")
    return found[names[0]]
