"""mlflow-tfmon watch RUN: a live view of a run in the terminal."""

from __future__ import annotations

import itertools
import math
import time
from typing import TYPE_CHECKING, Any

import click

from mlflow_tfmon.reading.reference import RUN_IS, find_run, store_option
from mlflow_tfmon.tags import DELIVERY_TAG, PROBLEMS_TAG, PROGRESS_TAG
from mlflow_tfmon.tracking.findings import best_epochs
from mlflow_tfmon.uris import visible, without_secrets

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient
    from rich.console import RenderableType

_SHOWN = {
    "batch/loss": "loss of the step", "loss": "loss", "val_loss": "val_loss", "batch/grad_norm": "gradient norm",
    "batch/learning_rate": "learning rate",
}  # fmt: skip
_MOST_LINES = 16  # a run of many streams has more
_BARS = "▁▂▃▄▅▆▇█"
_LOG = 50.0  # a curve whose largest value is so many times its least is drawn by its logarithm
_SETTLE_SECONDS = 10.0  # after the end of a run, in which the rest of it arrives


@click.command("watch", epilog=RUN_IS, short_help="Watch a run in the terminal while it trains.")
@click.argument("reference", metavar="[RUN]", default="latest")
@click.option(
    "--every", type=click.FloatRange(0.1), default=2.0, show_default=True, help="Seconds between two looks."
)
@store_option
def command(reference: str, every: float, tracking_uri: str | None) -> None:
    """Watch RUN in the terminal: curves, problems, progress, time left. Ends with the run, or by Ctrl-C.

    Without RUN, the monitored run that started last. Reads the store alone: it can be called on any machine.
    """
    import mlflow
    from rich.console import Console
    from rich.live import Live

    run_id = find_run(reference, tracking_uri)
    client = mlflow.MlflowClient(tracking_uri)
    console = Console()
    ended: float | None = None
    try:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                try:
                    run, curves = _look(client, run_id)
                    live.update(view(run, curves, console.width), refresh=True)
                except (OSError, mlflow.MlflowException):
                    if ended is None and not live.renderable:  # it has never answered
                        raise
                else:
                    if run.info.status not in ("RUNNING", "SCHEDULED"):
                        ended = ended or time.monotonic()
                        arrived = run.data.tags.get(DELIVERY_TAG) != "streaming"
                        if arrived or time.monotonic() - ended > _SETTLE_SECONDS:
                            return
                time.sleep(every)
    except KeyboardInterrupt:
        return


def _look(client: MlflowClient, run_id: str) -> tuple[Run, dict[str, list[Metric]]]:
    run = client.get_run(run_id)
    names = [
        prefix + name
        for name in _SHOWN
        for prefix in sorted({key[: -len(name)] for key in run.data.metrics if _is_of(key, name)})
    ]
    return run, {name: client.get_metric_history(run_id, name) for name in names[:_MOST_LINES]}


def _is_of(key: str, name: str) -> bool:
    """Whether a metric is the one of that name, of any stream."""
    return key == name or key.endswith(f".{name}")


def view(run: Run, curves: dict[str, list[Metric]], width: int) -> RenderableType:
    """What is shown of a run.

    Args:
        run: MLflow's run.
        curves: by metric its points.
        width: of the terminal, in characters.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    info, tags = run.info, run.data.tags
    lines: list[Any] = [
        Text.assemble((_plain(info.run_name or info.run_id), "bold"), f"  {info.status.lower()}")
    ]
    if progress := tags.get(PROGRESS_TAG):
        lines += [Text(_plain(line)) for line in progress.split("; ")]
    table = Table.grid(padding=(0, 2))
    for name, points in curves.items():
        values = [point.value for point in sorted(points, key=lambda one: one.step)]
        if values:
            label = name.replace("batch/", "") if name not in _SHOWN else _SHOWN[name]
            room = max(10, min(80, width - 52))
            table.add_row(
                Text(_plain(label)[:24]), Text(sparkline(values, room), "cyan"), Text(f"{values[-1]:.4g}", "bold"),
                Text(f"{min(values):.3g} to {max(values):.3g}", "dim"),
            )  # fmt: skip
    lines.append(table)
    for prefix, name, value, at in best_epochs(run):
        lines.append(Text(_plain(f"best {prefix}{name} {value:.5g}{at}")))
    found = tags.get(PROBLEMS_TAG)
    if found is None:
        lines.append(Text("problems: none so far", "dim"))
    elif found == "none":
        lines.append(Text("problems: none", "green"))
    else:
        lines.append(
            Text(f"problems: {_plain(found)}  (mlflow-tfmon diagnose {info.run_id[:8]})", "bold red")
        )
    latest = max((point.timestamp for points in curves.values() for point in points), default=0)
    if latest and info.status == "RUNNING":
        ago = max(0.0, time.time() - latest / 1e3)
        lines.append(Text(f"last measured {ago:.0f} s ago", "yellow" if ago > 60 else "dim"))
    return Group(*lines)


def sparkline(values: Sequence[float], width: int) -> str:
    """A curve as a line of bars: the mean of each stretch, by its logarithm where it spans a lot.

    Example:
        >>> sparkline([0, 1, 2, 3], 4)
        '▁▃▆█'
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    if min(finite) > 0 and max(finite) > _LOG * min(finite):
        finite = [math.log(value) for value in finite]
    count = min(width, len(finite))
    bounds = [at * len(finite) // count for at in range(count + 1)]
    means = [sum(finite[a:b]) / (b - a) for a, b in itertools.pairwise(bounds)]
    low, high = min(means), max(means)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def _plain(text: str) -> str:
    """A text of the store as the terminal may have it."""
    return visible(without_secrets(text)).replace("\n", " ")
