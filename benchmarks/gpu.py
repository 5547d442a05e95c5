"""Benchmark on a GPU: `python -m benchmarks.gpu`, or `make bench-gpu`; about ten minutes on any NVIDIA card.

For each way to train and each length of a step, a training for each watcher is started, and they take turns on the
device, in random order; a ratio is that of two turns of one round. Printed are, for each watcher, the median step time,
the median ratio to unwatched with its 90% confidence interval, the peak memory, and how often in a step the host waits
for the device and something is copied (from a profile). Then, whether each figure is true there: the largest relative
difference from a loop written by hand. All is written as JSON, too.

`--rehearse` trains tiny models on the processor, to see that it works; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.device import Turn
from benchmarks.side_by_side import empty_store, interval, machine, run, write
from benchmarks.watchers import ONLY_FIT

WAYS = ("fit", "loop", "fit, float16")
WATCHERS = ("unwatched", "ours, no models", "mlflow per epoch", "tensorboard")
TURN_MS = 1500  # that a turn takes, about
# By the length of a step that is aimed at, in ms: width and number of the hidden layers. The batch is found by trying.
SHAPES = {1: (256, 4), 10: (2048, 6), 100: (2048, 6)}
TRUE = {
    "fit": 1e-4,
    "loop": 1e-4,
    "fit, float16": 2e-2,
}  # the largest relative difference that a figure may have


class Trainee:
    """A training in a process of its own, which makes a turn when it is told to.

    Args:
        turn: the training.
        rehearse: whether no GPU is to be used.
        stack: ends it.
    """

    def __init__(self, turn: Turn, rehearse: bool, stack: contextlib.ExitStack) -> None:
        folder, environment = stack.enter_context(empty_store())
        self._errors = stack.enter_context((folder / "errors").open("w+"))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.device", json.dumps(asdict(turn))],
            cwd=folder, env=seeing_gpu(environment, rehearse), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        stack.callback(self._process.wait)
        stack.callback(self._process.kill)

    def answer(self) -> dict[str, Any]:
        """The next line that it prints.

        Raises:
            RuntimeError: it failed; with the end of what it printed.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        self._errors.seek(0)
        raise RuntimeError(self._errors.read()[-2000:])

    def go(self) -> None:
        """Tells it to make the next turn."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()


def seeing_gpu(environment: dict[str, str], rehearse: bool) -> dict[str, str]:
    """The environment of a process that has this one's GPUs, unless it is a rehearsal."""
    if rehearse:
        return environment
    del environment["CUDA_VISIBLE_DEVICES"]
    return environment | {name: value for name, value in os.environ.items() if name == "CUDA_VISIBLE_DEVICES"}


def turns(turn: Turn, watchers: Sequence[str], rehearse: bool) -> Iterator[dict[str, dict[str, Any]]]:
    """What each watcher's training answers, round by round; the first round traces, the last is profiled."""
    with contextlib.ExitStack() as stack:
        trainees = {name: Trainee(replace(turn, watcher=name), rehearse, stack) for name in watchers}
        yield {name: one.answer() for name, one in trainees.items()}
        for _ in range(turn.turns + 1):
            found = {}
            for name in random.sample(list(trainees), len(trainees)):
                trainees[name].go()
                found[name] = trainees[name].answer()
            yield found


def fitting(way: str, aim_ms: int, repeats: int, rehearse: bool) -> Turn:
    """A training whose steps take about so long: the batch is made larger until they do."""
    if rehearse:
        return Turn(way, 32, 2, 16, 20, repeats)
    width, layers = SHAPES[aim_ms]
    batch = 64
    while True:
        turn = Turn(way, width, layers, batch, 10, 1)
        took = list(turns(turn, ["unwatched"], rehearse))[1]["unwatched"]["step_ms"]
        if took >= 0.7 * aim_ms or batch >= 2**18:
            return replace(turn, steps=max(8, int(TURN_MS / took)), turns=repeats)
        batch *= max(2, min(16, int(aim_ms / took)))


def measure(turn: Turn, watchers: Sequence[str], rehearse: bool) -> dict[str, dict[str, Any]]:
    """The figures of each watcher."""
    _, *timed, last = turns(turn, watchers, rehearse)
    return {
        name: {
            "step_ms": interval([one[name]["step_ms"] for one in timed]),
            "ratio": interval([one[name]["step_ms"] / one["unwatched"]["step_ms"] for one in timed]),
            **last[name],
        }
        for name in watchers
    }


def truth(way: str, rehearse: bool) -> dict[str, Any]:
    """The largest relative difference of each figure from a loop written by hand, in a fresh process."""
    found = run("benchmarks.truth", {"way": way}, change=lambda one: seeing_gpu(one, rehearse))
    del found["ended"]
    found["true"] = max(found["differences"].values()) <= TRUE[way] and found["histograms_complete"]
    return found


def device() -> str:
    """The name of the GPU, or "none"."""
    code = (
        "import tensorflow as tf\n"
        "for one in tf.config.list_physical_devices('GPU')[:1]:\n"
        "    print(tf.config.experimental.get_device_details(one)['device_name'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() or "none"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status is 1 if a figure is not true."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY",
                        help=f"any of: {'; '.join(WAYS)}")  # fmt: skip
    parser.add_argument("--steps", nargs="+", type=int, choices=SHAPES, default=list(SHAPES), metavar="MS",
                        help="lengths of a step in ms, of 1, 10 and 100")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=7, help="rounds of each case (default 7)")
    parser.add_argument("--rehearse", action="store_true", help="tiny models on the processor")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="where to write")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error(f"--repeats {options.repeats}: it takes one round at least")
    gpu = "none" if options.rehearse else device()
    if gpu == "none" and not options.rehearse:
        parser.error("TensorFlow sees no GPU here: see https://www.tensorflow.org/install/pip, or --rehearse")
    about = {**machine(), "gpu": gpu}
    print(" · ".join(f"{name} {value}" for name, value in about.items()), flush=True)
    results: dict[str, Any] = {"gpu": gpu, "rehearsal": options.rehearse, "cost": {}, "truth": {}}
    for way in options.ways:
        watchers = [name for name in WATCHERS if way != "loop" or name not in ONLY_FIT]
        for aim in options.steps:
            turn = fitting(way, aim, options.repeats, options.rehearse)
            found = measure(turn, watchers, options.rehearse)
            results["cost"][f"{way}, {aim} ms"] = {"training": asdict(turn), "watchers": found}
            for name, figures in found.items():
                print(row(f"{way}, {aim} ms", name, figures), flush=True)
    for way in options.ways:
        found = results["truth"][way] = truth(way, options.rehearse)
        worst = max(found["differences"], key=lambda name: found["differences"][name])
        print(f"{way:20} {'true' if found['true'] else 'NOT TRUE'}: differs by {found['differences'][worst]:.1e} "
              f"at most ({worst}); weights {'the same' if found['same_weights'] else 'not the same'} as unwatched",
              flush=True)  # fmt: skip
    write(options.out / "gpu.json", results)
    return 0 if all(one["true"] for one in results["truth"].values()) else 1


def row(case: str, watcher: str, figures: dict[str, Any]) -> str:
    """A line of the table."""
    ratio = "{:.3f} [{:.3f}, {:.3f}]".format(*figures["ratio"])
    counts = figures["per_step"] or {}
    profile = "   ".join(f"{name} {count:.2f}" for name, count in counts.items()) or "no profile"
    return (
        f"{case:20} {watcher:18} step {figures['step_ms'][0]:8.2f} ms, ratio {ratio}   "
        f"peak {figures['peak_mb']:8.0f} MB   a step: {profile}"
    )


if __name__ == "__main__":
    sys.exit(main())
