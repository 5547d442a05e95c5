"""Benchmark of checkpoints: their cost at an epoch's end, and their delay: `python -m benchmarks.checkpoints`.

A model whose weights and optimizer state take about 12 MB, in epochs of some seconds. Printed are, for each store: how
long the end of an epoch held the training up (the first apart, which traces the snapshot; the rest of the time beside
the processor's is waiting for one, where others have it), what the snapshot of the
variables alone takes, and after how many seconds MLflow had a checkpoint of that epoch or a later one. Without
checkpoints an epoch's end costs what else is done at it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.side_by_side import machine, run, write

CASES: dict[str, dict[str, Any]] = {
    "without checkpoints": {"checkpoint": False},
    "SQLite": {},
    "dead server": {"store": "dead"},
    "server that never answers": {"store": "hangs"},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--epochs", type=int, default=12, help="epochs of each training (default 12)")
    parser.add_argument("--seconds", type=float, default=2.0, help="that an epoch takes (default 2)")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where to write")
    options = parser.parse_args(arguments)
    print(" · ".join(f"{name} {value}" for name, value in machine().items()), flush=True)
    results = {}
    for name in options.cases:
        case = {**CASES[name], "epochs": options.epochs, "seconds": options.seconds}
        found: Any = run("benchmarks.epoch_ends", case)
        results[name] = found
        held, cpu, snapshot = (np.asarray(found[one]) for one in ("held_ms", "held_cpu_ms", "snapshot_ms"))
        print(
            f"{name:26} held up: first {held[0]:.0f} ms, then {np.median(held[1:]):.1f} ms (most {held[1:].max():.1f}) "
            f"with {np.median(cpu[1:]):.1f} on the processor;"
            f" the snapshot alone {np.median(snapshot):.1f} ms (most {snapshot.max():.1f})",
            flush=True,
        )
        after = [one for one in found["arrived_after_s"] if one is not None]
        if after:
            print(f"{'':26} in MLflow after {' '.join(f'{one:.1f}' for one in after)} s", flush=True)
    write(options.out / "checkpoints.json", {"cases": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
