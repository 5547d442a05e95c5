"""Tests of workers in containers that a launcher starts with TF_CONFIG, ends, loses, and starts again.

Every step is counted against what each worker has written down itself, also where the delivery process or the MLflow
server is killed. `tests.promises.test_ray` has the same of workers that Ray starts.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest

import mlflow_tfmon
from tests.promises.test_distribute import ports
from tests.servers import Server
from tests.waiting import until

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(600)]
EPOCHS, OF_EPOCH = 6, 20  # as tests.workers has them
GRACE = 3.0  # s between SIGTERM and SIGKILL
PAUSE = 0.1  # s after each step of a training that is to be ended
NETWORK = "10.213.7"
_port = itertools.count(4321)


def _run(*command: str) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.fixture
def containers() -> Iterator[list[list[str]]]:
    """What runs a command in a container: its own processes, which end with the first, and its own network.

    Where that is not permitted, a command without a container: then it is a process group that is ended as a whole.
    """
    names = [f"tfmon{os.getpid()}{letter}" for letter in "ab"]
    own = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    try:
        done = all(_run("ip", "netns", "add", name) for name in names) and _run(*own, "true")
        done = done and _run(
            "ip", "link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "eth0", "netns", names[1]
        )
        for at, name in enumerate(names, 1):
            within = "ip", "-n", name
            done = done and _run(*within, "addr", "add", f"{NETWORK}.{at}/24", "dev", "eth0")
            done = done and all(_run(*within, "link", "set", one, "up") for one in ("lo", "eth0"))
        yield [["ip", "netns", "exec", name, *own] for name in names] if done else [[], []]
    finally:
        for name in names:
            _run("ip", "netns", "del", name)


class Job:
    """Two workers, each in a container with a volume that outlives it."""

    def __init__(self, containers: list[list[str]], store: str, folder: Path) -> None:
        self._containers, self._store, self._folder = containers, store, folder
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, pause: float = 0.0) -> None:
        alone = all(self._containers)
        port = next(_port)
        places = [f"{NETWORK}.{at}:{port}" for at in (1, 2)] if alone else ports(2)
        self._processes = []
        for index, container in enumerate(self._containers):
            volume = str(self._folder / f"volume{index}")
            environment = {
                **os.environ, "MLFLOW_TRACKING_URI": self._store, "MLFLOW_TFMON_HOME": volume, "PAUSE": str(pause),
            }  # fmt: skip
            del environment["MLFLOW_TFMON_EXIT_WAIT"]  # it is known where nothing outlives the script
            command = [
                sys.executable,
                "-m",
                "tests.workers",
                str(self._folder),
                "resumable",
                str(index),
                *places,
            ]
            with (self._folder / f"output{index}.txt").open("a") as output:
                self._processes.append(
                    subprocess.Popen(
                        [*container, *command], env=environment, start_new_session=True, stdout=output,
                        stderr=subprocess.STDOUT, text=True,
                    )
                )  # fmt: skip

    def terminate(self) -> None:
        """As a pod is ended: SIGTERM to the first process of each, and after a grace SIGKILL."""
        for process, container in zip(self._processes, self._containers, strict=True):
            first = psutil.Process(process.pid)
            (first.children()[0] if container else first).send_signal(signal.SIGTERM)
        time.sleep(GRACE)
        self.kill(0, 1)

    def kill(self, *indices: int) -> None:
        """All processes of some workers."""
        for index in indices:
            if self._processes[index].poll() is None:
                os.killpg(self._processes[index].pid, signal.SIGKILL)
        for index in indices:
            self._processes[index].wait()

    def codes(self, seconds: float = 240) -> list[int]:
        """How they end: those that do not within so many seconds, by SIGKILL."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            for process in self._processes:
                process.wait(seconds)
        self.kill(0, 1)
        return [process.returncode for process in self._processes]


def own(folder: Path, index: int) -> list[tuple[int, float]]:
    """What a worker has written down itself: step and loss of all of them, in the order in which it made them."""
    path = folder / f"steps{index}.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(step), float(loss)) for step, loss in (line.split() for line in lines)]


def made(folder: Path, epochs: float) -> None:
    """Waits until the chief has made so many epochs' steps, those that were made again counted again."""
    until(lambda: len(own(folder, 0)) > epochs * OF_EPOCH, seconds=300)


def kill_delivery(folder: Path) -> None:
    """All delivery processes of recordings below a folder."""

    def is_one(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            home = process.environ().get("MLFLOW_TFMON_HOME", "")
            return home.startswith(str(folder)) and "mlflow_tfmon.delivery" in " ".join(process.cmdline())
        return False

    found = [process for process in psutil.process_iter() if is_one(process)]
    assert found
    for process in found:
        process.kill()


def kill_for_an_epoch(server: Server, folder: Path) -> None:
    """The server, which is started again once the training has made a further epoch's steps without it."""
    server.kill()
    made(folder, len(own(folder, 0)) / OF_EPOCH + 1)
    server.start()


def check(store: str, folder: Path) -> None:
    """One run has each step once, with the loss that each worker has written down itself."""
    mlflow.set_tracking_uri(store)
    (found,) = mlflow.search_runs(output_format="list")
    assert found.info.status == "FINISHED" and found.data.tags["tfmon.delivery"] == "complete"
    assert json.loads((folder / "worker0.json").read_text()) == {"resumable": found.info.run_id}
    run = mlflow_tfmon.load_run(found.info.run_id)
    assert run.steps.index.tolist() == list(range(1, EPOCHS * OF_EPOCH + 1))
    assert run.epochs.index.tolist() == list(range(EPOCHS))
    for index in (0, 1):
        losses: dict[int, float] = {}
        for step, loss in own(folder, index):
            assert losses.setdefault(step, loss) == loss  # made again, it is the same step
        np.testing.assert_allclose(run.steps.loss, [losses[step] for step in run.steps.index], rtol=1e-6)
        assert run.steps[f"worker_{index}/step_time_ms"].notna().sum() > EPOCHS * OF_EPOCH / 2
    assert "desync" not in {one.kind for one in run.problems}


@pytest.mark.parametrize(
    "event",
    [
        "none",
        "none, of a cluster with a chief",
        "eviction",
        "another worker is lost",
        "the chief is lost",
        "delivery is killed",
        "the server is killed",
    ],
)
def test_every_step_is_in_one_run(
    event: str, containers: list[list[str]], store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if event.endswith("with a chief"):
        monkeypatch.setenv("CHIEF", "1")
        event = "none"
    server = Server(tmp_path, store) if "server" in event else None
    # A container's network does not reach a server of this machine.
    job = Job([[], []] if server else containers, server.uri if server else store, tmp_path)
    goes_on = event == "none" or event.endswith("killed")
    job.start(PAUSE if event != "none" else 0.0)
    try:
        if event != "none":
            made(tmp_path, 2.5)
        if event == "delivery is killed":
            kill_delivery(tmp_path)
        elif server is not None:
            kill_for_an_epoch(server, tmp_path)
        elif event == "eviction":
            job.terminate()
        elif not goes_on:
            job.kill(int(event != "the chief is lost"))
            # What is left of the job fails, or hangs until the launcher ends it.
            assert 0 not in job.codes(90)
            if event == "another worker is lost":
                mlflow.set_tracking_uri(store)
                (failed,) = mlflow.search_runs(output_format="list")
                assert failed.data.tags["tfmon.problems"] == "worker_stopped"
        if not goes_on:
            job.start()
        assert job.codes() == [0, 0], "".join(
            (tmp_path / f"output{index}.txt").read_text()[-4000:] for index in (0, 1)
        )
    finally:
        job.kill(0, 1)
        if server is not None:
            server.kill()
    check(store, tmp_path)
    again = len(own(tmp_path, 0)) - EPOCHS * OF_EPOCH
    assert again == 0 if goes_on else 0 <= again <= 2 * OF_EPOCH  # since a checkpoint, not since the start
