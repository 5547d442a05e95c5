"""The progress bar of a custom loop, in a terminal or a notebook."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from io import StringIO
from math import isfinite, nan
from typing import TYPE_CHECKING, Any, Protocol

from mlflow_tfmon.errors import contained
from mlflow_tfmon.stream import records
from mlflow_tfmon.stream.block import Block

if TYPE_CHECKING:
    from rich.progress import Progress

_SHOWN = {"loss": "loss", "learning_rate": "lr", "grad_norm": "grad norm"}
_PAUSE_S = 0.1  # s between two drawings in a terminal
_NOTEBOOK_PAUSE = 0.5  # each is a message to the browser
_COLUMNS = 120  # of a notebook, whose width nobody tells
_MAX_WAIT_S = 2.0  # s for a terminal that takes nothing


class Figures:
    """What the bar says of a recording: the last step of the stream that moved last.

    Attributes:
        step: how many steps it has made.
        total: how many it will make, or None.
    """

    def __init__(self) -> None:
        self.step = 0
        self.total: int | None = None
        self._opened: dict[int, records.StreamOpened] = {}
        self._row: dict[str, float] = {}
        self._rate = nan
        self._last = nan

    def take(self, out: Iterable[records.Record]) -> None:
        """Takes what is recorded."""
        for record in out:
            if isinstance(record, records.StreamOpened):
                self._opened[record.stream] = record
            elif isinstance(record, records.Steps) and record.stream in self._opened and len(record.values):
                block = Block.of(self._opened[record.stream], record)
                examples = float(block.step("examples").sum()) if "examples" in block.names else nan
                self._row = block.last
                now = self._row.get("time", block.seen)
                if now > self._last:
                    self._rate = examples / (now - self._last)
                self._last = now
                self.step, self.total = int(self._row["step"]), block.layout.total_steps

    def text(self) -> str:
        """Such as "step 1,200  loss 0.1234  lr 0.001  grad norm 1.2  5,120 examples/s", without what is not finite."""
        found = [f"step {self.step:,}"]
        found += [
            f"{_SHOWN[name]} {self._row[name]:.4g}" for name in _SHOWN if isfinite(self._row.get(name, nan))
        ]
        if isfinite(self._rate):
            found.append(f"{self._rate:,.0f} examples/s")
        return "  ".join(found)


class Screen(Protocol):
    """Where a bar is drawn."""

    def draw(self) -> None:
        """Shows the bar as it is now, in the place where it was."""

    def leave(self) -> None:
        """Leaves it as it is."""


class Terminal:
    """A terminal: rich draws, and moves what is printed meanwhile above the bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def draw(self) -> None:
        self._progress.start()
        self._progress.refresh()

    def leave(self) -> None:
        self._progress.stop()


class Notebook:
    """A notebook's cell: one output that is replaced.

    rich would draw by a widget, which needs ipywidgets and takes what the cell prints meanwhile for its own.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._shown: Any = None

    def draw(self) -> None:
        from IPython.display import display
        from rich.console import Console

        console = Console(file=StringIO(), width=_COLUMNS, force_jupyter=False, force_terminal=False)
        with console.capture() as line:
            console.print(self._progress.get_renderable())
        bundle = {"text/plain": line.get().rstrip()}
        if self._shown is None:
            self._shown = display(bundle, raw=True, display_id=True)
        else:
            self._shown.update(bundle, raw=True)

    def leave(self) -> None:
        """Nothing is to be undone."""


class Bar:
    """Draws figures on a thread of its own: a terminal that is held (Ctrl-S) holds up nobody else."""

    def __init__(self, progress: Progress, screen: Screen, pause: float) -> None:
        self._figures = Figures()
        self._progress = progress
        self._screen = screen
        self._pause = pause
        self._task = progress.add_task("", total=None)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlflow_tfmon-bar", daemon=True)
        self._thread.start()
        self.take = self._figures.take

    def close(self) -> None:
        """Draws it once more, as it is now, and leaves it on the screen."""
        self._closed.set()
        self._thread.join(_MAX_WAIT_S)
        if not self._thread.is_alive():
            self._draw()
            self._screen.leave()

    def _run(self) -> None:
        while not self._closed.wait(self._pause):
            with contained("the progress bar", "there is none"):
                self._draw()

    def _draw(self) -> None:
        figures = self._figures
        if not figures.step:
            return
        self._progress.update(
            self._task, completed=figures.step, total=figures.total, description=figures.text()
        )
        self._screen.draw()


def in_notebook() -> bool:
    """Whether what is shown goes to a notebook's cell."""
    from rich.console import Console

    return Console().is_jupyter


def bar() -> Bar | None:
    """A bar where it can be seen: in a notebook, or on stderr if that is a terminal; else None."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    notebook = console.is_jupyter
    if not notebook and (not console.is_terminal or console.is_dumb_terminal or not sys.stderr.isatty()):
        return None
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        auto_refresh=False,
        # So that what is printed meanwhile stands above the bar; what goes to a file stays untouched.
        redirect_stdout=sys.stdout.isatty(),
    )
    return (
        Bar(progress, Notebook(progress), _NOTEBOOK_PAUSE)
        if notebook
        else Bar(progress, Terminal(progress), _PAUSE_S)
    )
