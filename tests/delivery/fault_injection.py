"""Script that kills writers and deliveries at random moments: `python fault_injection.py STORE HOME SEED ROUNDS`.

This process imports MLflow once and opens no store; what writes and what delivers are forks of it, killed by SIGKILL.
It prints a line a round: the run, how many rows the journal had confirmed when its writer was killed, and the kills.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from recordings import blocks, layout, started, values

from mlflow_tfmon.delivery import attempt
from mlflow_tfmon.delivery.deliverer import Deliverer
from mlflow_tfmon.journal.journal import Journal
from mlflow_tfmon.stream.records import EpochEnded, Logged

ROWS, BLOCK = 4000, 20


def forked(work: Callable[[], None]) -> int:
    """Has a child of this process do something; returns its id."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(0)
    return pid


def killed(pid: int, after: float) -> bool:
    """Kills a child after so many seconds; returns whether it was still at work."""
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


def write(store: str, home: Path, run_id: str, begun: float, confirmed: Path) -> None:
    """A trainer, as far as the journal sees one."""
    rows, draft = values(ROWS), confirmed.with_suffix(".new")
    journal = Journal.create(home)
    journal.append([started(store, run_id, start_time=begun), layout(ROWS)])
    for at in range(0, ROWS, BLOCK):
        extra = [Logged(0, at + BLOCK, begun + at, {"temperature": 1.0 / (at + 1)})]
        if at % 200 == 0:
            extra.append(EpochEnded(at // 200, at + BLOCK, begun + at, {"loss": 1.0 / (at + 1)}))
        journal.append([*blocks(rows[at : at + BLOCK], BLOCK), *extra])
        draft.write_text(str(at + BLOCK))
        draft.replace(confirmed)  # a kill between its emptying and its writing would leave nothing in it
        time.sleep(0.002)


def deliver(folder: Path, store: str, gone: bool) -> None:
    deliverer = Deliverer(folder, store)
    while not deliverer.done:
        deliverer.advance(trainer_gone=gone, hurry=True)
        time.sleep(0.01)


attempt._TRIM_BYTES = 50_000  # what has arrived is deleted, again and again


def main(store: str, home: Path, seed: int, runs: list[str]) -> None:
    chance = random.Random(seed)
    for number, run_id in enumerate(runs):
        confirmed = home / f"confirmed-{number}"
        confirmed.parent.mkdir(exist_ok=True)
        before = set((home / "recordings").glob("*"))
        writer = forked(lambda: write(store, home, run_id, time.time(), confirmed))  # noqa: B023
        while not (new := set((home / "recordings").glob("*")) - before):
            time.sleep(0.005)
        (folder,) = new
        kills, writes = 0, True
        for _ in range(20):
            kills += killed(forked(lambda: deliver(folder, store, not writes)), chance.uniform(0.02, 0.6))  # noqa: B023
            if writes and chance.random() < 0.15:
                kills += killed(writer, 0)
                writes = False
        if writes:
            kills += killed(writer, 0)
        os.waitpid(forked(lambda: deliver(folder, store, True)), 0)  # noqa: B023
        print(run_id, confirmed.read_text() if confirmed.exists() else 0, kills, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
