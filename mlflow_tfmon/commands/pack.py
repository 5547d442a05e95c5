"""`mlflow-tfmon pack`: writes what waits on a machine without a network to a file, for one that has it."""

from __future__ import annotations

from pathlib import Path

import click

from mlflow_tfmon.commands.sync import chosen
from mlflow_tfmon.reading.reference import RUN_IS
from mlflow_tfmon.tables import echo


@click.command(name="pack", epilog=RUN_IS, short_help="Write undelivered recordings to a file.")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.argument("file", type=click.Path(path_type=Path))
def command(runs: tuple[str, ...], file: Path) -> None:
    """Write what is undelivered on this machine to FILE, for a machine that reaches the tracking server.

    Without RUN, everything undelivered is packed, else only the recordings of these runs. They stay here as well: what
    both machines deliver arrives once.
    """
    from mlflow_tfmon.delivery.packing import PackError, pack
    from mlflow_tfmon.delivery.sync import find_waiting

    waiting = find_waiting()
    if not runs and any(str(file) in (one.name, one.run_name, one.name[:8]) for one in waiting):
        raise click.UsageError(f"FILE is missing: {file} is a run.")
    found = chosen(waiting, runs)
    if not found:
        raise click.ClickException("nothing is undelivered on this machine; no file was written.")
    left = [
        (one, "its training is running" if one.written else one.error or "it is damaged")
        for one in found
        if one.written or one.unread or one.damaged
    ]
    good = [one for one in found if all(one is not other for other, _ in left)]
    for one, why in left:
        echo(f"{one.name}: not packed: {why}", err=True)
    if good:
        try:
            pack(good, file)
        except PackError as error:
            raise click.ClickException(f"{error}.") from error
        stores = ", ".join(sorted({one.store for one in good}))
        echo(
            f"{file}: {len(good)} recording{'s' * (len(good) > 1)}, {file.stat().st_size / 2**20:.1f} MB. "
            f"On a machine that reaches {stores}: mlflow-tfmon unpack {file.name}"
        )
    if left:
        raise click.ClickException(f"{len(left)} of {len(found)} recordings were not packed.")
