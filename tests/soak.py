"""Soak test: trainings while trainers, delivery processes and the server are killed at random: `make soak`, an hour.

Each trainer writes a record of its own: a line a step with the loss, on the disk before the next step is made. At the
end `mlflow-tfmon sync` delivers what waits, and each line is looked for in the store, by MLflow's client alone: in the
Parquet files of all steps, and among the points of the series. It prints a table, and fails if a row is lost, doubled
or wrong. What a trainer had measured in the last moment before it was killed is lost with it: that is counted apart.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

TAG = "soak"
KINDS = ("trainer", "delivery", "server")
_AGAIN = 30  # times that `sync` is called, at most


# -- a trainer ---------------------------------------------------------------------------------------------------------
def train(key: str, record: Path, steps: int) -> None:
    """A loop of its own that writes down, step by step, what it does."""
    import tensorflow as tf

    import mlflow_tfmon
    from tests import trainings

    net, optimizer = trainings.model(), tf.keras.optimizers.SGD(0.01)
    step = trainings.custom_step(net, optimizer, True)
    batches = list(trainings.batches(*trainings.data(), 1))
    settings: dict[str, Any] = {"extra_tags": {TAG: key}, "report": False, "delivery_wait": 5.0}
    with mlflow_tfmon.Monitor(net, **settings) as monitor, record.open("a", buffering=1) as lines:
        for number in range(1, steps + 1):
            loss = float(step(*batches[number % len(batches)]))
            lines.write(f"{number} {time.time()!r} {loss!r}\n")
            os.fsync(lines.fileno())
            if number % 500 == 0:
                monitor.log_epoch(number // 500 - 1, {"val_loss": loss})


# -- what is killed ----------------------------------------------------------------------------------------------------
@dataclass
class Trainer:
    """A trainer's process.

    Attributes:
        key: tag of its run.
        record: its own record.
        process: the process.
        killed: whether it was.
    """

    key: str
    record: Path
    process: subprocess.Popen[bytes]
    killed: bool = False

    @property
    def begun(self) -> bool:
        """Whether it has made a step."""
        return self.record.exists() and self.record.stat().st_size > 0


@dataclass
class Soak:
    """Trainers, their deliveries and a server in one folder, and who kills them.

    Args:
        folder: of everything.
        at_once: how many trainers run at a time.
        chance: decides.
    """

    folder: Path
    at_once: int
    chance: random.Random
    trainers: list[Trainer] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        from mlflow_tfmon.tracking.store import open_store
        from tests.servers import Server

        store = f"sqlite:///{self.folder / 'mlflow.db'}"
        open_store(store)
        self.server = Server(self.folder, store)
        self._server_again = math.inf
        self.environment = {
            **os.environ, "MLFLOW_TRACKING_URI": self.server.uri, "MLFLOW_TFMON_HOME": str(self.folder / "home"),
            "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3", "MLFLOW_DISABLE_TELEMETRY": "true",
        }  # fmt: skip

    def run(self, seconds: float, kills: int) -> None:
        """Keeps trainers running, for so long and until so many were killed."""
        ends, due = time.monotonic() + seconds, 0.0
        while (now := time.monotonic()) < ends or self.kills.total() < kills:
            alive = [one for one in self.trainers if one.process.poll() is None]
            if len(alive) < self.at_once:
                self._start()
            if now >= self._server_again:
                self._restart()
            if (left := kills - self.kills.total()) and now >= due and self._kill(alive):
                due = now + self.chance.uniform(0.5, 1.5) * max(0.0, ends - now) / left
            time.sleep(0.05)
        self._restart()
        for one in self.trainers:  # what is under way may come to its end
            one.process.wait()

    def sync(self) -> None:
        """Delivers what waits, until nothing does."""
        command = [str(Path(sys.executable).with_name("mlflow-tfmon")), "sync"]
        for _ in range(_AGAIN):
            done = subprocess.run(command, env=self.environment, capture_output=True, text=True)
            print(
                f"  sync: {done.stdout.splitlines()[-1] if done.stdout else done.stderr[-200:]}", flush=True
            )
            if "Everything has been delivered" in done.stdout:
                return
            time.sleep(2)
        print(f"  something waits still after {_AGAIN} calls of sync", flush=True)

    def _start(self) -> None:
        key = uuid.uuid4().hex
        record, steps = self.folder / f"{key}.record", self.chance.randint(500, 10_000)
        command = [sys.executable, "-m", "tests.soak", "--train", key, str(record), str(steps)]
        process = subprocess.Popen(
            command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.trainers.append(Trainer(key, record, process))

    def _restart(self) -> None:
        if self._server_again < math.inf:
            self._server_again = math.inf
            self.server.start()

    def _kill(self, alive: Sequence[Trainer]) -> bool:
        """Kills one of them, if it is there; returns whether it was."""
        kind = self.chance.choice(KINDS)
        if kind == "trainer":
            begun = [one for one in alive if one.begun and not one.killed]
            if not begun:
                return False
            one = self.chance.choice(begun)
            one.killed = True
            one.process.kill()
        elif kind == "delivery":
            found = list(self._deliveries())
            if not found:
                return False
            with contextlib.suppress(psutil.NoSuchProcess):
                self.chance.choice(found).kill()
        elif self._server_again < math.inf:
            return False
        else:
            self.server.kill()
            self._server_again = time.monotonic() + self.chance.uniform(0, 10)
        self.kills[kind] += 1
        return True

    def _deliveries(self) -> Iterator[psutil.Process]:
        home = self.environment["MLFLOW_TFMON_HOME"]
        for one in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                of_ours = any("mlflow_tfmon.delivery" in part for part in one.cmdline())
                if of_ours and one.environ().get("MLFLOW_TFMON_HOME") == home:
                    yield one

    def close(self) -> None:
        """Ends what is left."""
        for one in self.trainers:
            one.process.kill()
        for delivery in self._deliveries():
            with contextlib.suppress(psutil.NoSuchProcess):
                delivery.kill()
        self.server.kill()


# -- what is compared --------------------------------------------------------------------------------------------------
@dataclass
class Found:
    """What became of a trainer's rows.

    Attributes:
        written: rows in its own record.
        stored: of them, in the Parquet files.
        points: points of the series.
        moment: rows that were lost in the last moment before it was killed.
        window: how long that was, in seconds.
        lost, doubled, wrong: rows and points that are what the column says.
        complete: whether the run says that all has arrived.
    """

    written: int = 0
    stored: int = 0
    points: int = 0
    moment: int = 0
    window: float = 0.0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    complete: bool = True

    def __add__(self, other: Found) -> Found:
        mine, theirs = vars(self), vars(other)
        added = {name: mine[name] + theirs[name] for name in mine}
        added["window"] = max(self.window, other.window)
        return Found(**{**added, "complete": self.complete and other.complete})


def own_record(path: Path) -> dict[int, tuple[float, float]]:
    """Step -> (Unix time, loss); a line that was cut off by a kill is none."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return {int(step): (float(when), float(loss)) for step, when, loss in map(str.split, lines)}


def compare(client: Any, trainer: Trainer, window: float) -> Found:
    """Looks for a trainer's rows in the store.

    Args:
        client: of MLflow.
        trainer: the trainer.
        window: seconds before a kill within which rows may be lost.
    """
    own = own_record(trainer.record)
    found = Found(written=len(own))
    if not own:
        return found
    runs = client.search_runs(["0"], f"tags.{TAG} = '{trainer.key}'")
    rows = [row for run in runs for row in stored(client, run.info.run_id)]
    points = [
        (point.step, point.value)
        for run in runs
        for point in client.get_metric_history(run.info.run_id, "batch/loss")
    ]
    last = max(own)
    missing = own.keys() - {step for step, _ in rows}
    newest = max(own.keys() - missing, default=0)
    since = own[newest][0] if newest else own[min(own)][0]
    allowed = {step for step in missing if trainer.killed and step > newest}
    found.window = own[last][0] - since if allowed else 0.0
    if found.window > window:
        allowed = {step for step in allowed if own[step][0] >= own[last][0] - window}
    found.stored, found.points, found.moment = len(own) - len(missing), len(points), len(allowed)
    found.lost = len(missing - allowed)
    for one in (rows, points):
        found.doubled += len(one) - len({step for step, _ in one})
        found.wrong += sum(
            step in own and not math.isclose(value, own[step][1], rel_tol=1e-5) for step, value in one
        )
    # The step that was being made when it was killed may be there, though its own line is not.
    found.wrong += len({step for step, _ in (*rows, *points)} - own.keys() - {last + 1})
    found.doubled += max(0, len(runs) - 1)
    found.complete = bool(runs) and all(run.data.tags.get("tfmon.delivery") == "complete" for run in runs)
    return found


def stored(client: Any, run_id: str) -> list[tuple[int, float]]:
    """(step, loss) of all rows in a run's Parquet files, as they are."""
    import pandas as pd

    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        with contextlib.suppress(Exception):  # nothing has arrived
            client.download_artifacts(run_id, "tfmon/telemetry", folder)
        tables = [pd.read_parquet(path) for path in sorted(Path(folder).rglob("*.parquet"))]
    rows = [table[["step", "loss"]] for table in tables if {"step", "loss"} <= set(table.columns)]
    return [(int(step), float(loss)) for table in rows for step, loss in table.itertuples(index=False)]


def print_table(soak: Soak, found: Sequence[Found]) -> bool:
    """Prints what became of everything; returns whether all is right."""
    total = sum(found, Found())
    killed = sum(one.killed for one in soak.trainers)
    table = [
        ("trainings", f"{len(soak.trainers)}, of which {killed} were killed"),
        ("kills", ", ".join(f"{soak.kills[kind]} of a {kind}" for kind in KINDS)),
        ("rows that were written down", f"{total.written:,}"),
        ("of them in the Parquet files", f"{total.stored:,}"),
        ("points of the series", f"{total.points:,}"),
        ("lost with a kill", f"{total.moment:,}, of at most the last {total.window:.2f} s"),
        ("lost", f"{total.lost:,}"),
        ("doubled", f"{total.doubled:,}"),
        ("wrong", f"{total.wrong:,}"),
        ("runs that are not complete", f"{sum(not one.complete for one in found)}"),
    ]
    for name, value in table:
        print(f"{name:<30} {value}")
    return total.complete and not (total.lost or total.doubled or total.wrong)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--trainers", type=int, default=2, help="at a time (default 2)")
    parser.add_argument(
        "--window", type=float, default=1.0, help="seconds before a kill that may be lost with it (default 1)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", nargs=3, metavar=("KEY", "RECORD", "STEPS"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.train:
        key, record, steps = options.train
        train(key, Path(record), int(steps))
        return 0
    import mlflow

    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    soak = Soak(folder, options.trainers, random.Random(options.seed))
    right = False
    try:
        soak.run(60 * options.minutes, options.kills)
        soak.sync()
        client = mlflow.MlflowClient(soak.server.uri)
        found = [compare(client, one, options.window) for one in soak.trainers]
        right = print_table(soak, found)
        for one, what in zip(soak.trainers, found, strict=True):
            if what.lost or what.doubled or what.wrong or not what.complete:
                print(f"  {one.record}: killed={one.killed}, {what}")
    finally:
        soak.close()
        if right:
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"Everything is kept in {folder}")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
