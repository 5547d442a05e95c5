"""Tests with disks that are full, read-only or gone: training continues, lost data are counted and reported.

Each test mounts a small disk of its own (a tmpfs, or a file), which needs root.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import mlflow
import numpy as np
import pytest

import mlflow_tfmon
from mlflow_tfmon import errors
from mlflow_tfmon.commands.sync import command as sync
from mlflow_tfmon.delivery.process import DeliveryProcess
from mlflow_tfmon.delivery.sync import find_waiting
from mlflow_tfmon.journal.homes import second_home
from mlflow_tfmon.watching import pipeline
from tests import trainings
from tests.waiting import until

pytestmark = pytest.mark.thorough
MEGABYTES = 24


class Disk:
    """A small disk at a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        options = f"size={MEGABYTES}m,mode=700"
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tfmon-test", str(folder)], capture_output=True
        )
        if made.returncode:
            pytest.skip(f"a disk cannot be mounted here: {made.stderr.decode().strip()}")
        self._writing = "rw"

    def fill(self) -> None:
        """Leaves not a byte."""
        with contextlib.suppress(OSError), (self.folder / "ballast").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def free(self) -> None:
        (self.folder / "ballast").unlink()

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


class Failing:
    """A disk that the system finds to be broken at some moment: from then on it can be read, and written by nobody."""

    def __init__(self, folder: Path, image: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with image.open("wb") as file:
            file.truncate(MEGABYTES * 2**20)
        self._mount = ["mount", "-o", "loop,errors=remount-ro", str(image), str(folder)]
        self._mend = ["e2fsck", "-fy", str(image)]
        for command in (["mkfs.ext4", "-q", str(image)], self._mount):
            if shutil.which(command[0]) is None or subprocess.run(command, capture_output=True).returncode:
                pytest.skip(f"no disk is made here by {' '.join(command)}")
        number = folder.stat().st_dev
        self._device = Path(os.path.realpath(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")).name

    def fail(self) -> None:
        Path("/sys/fs/ext4", self._device, "trigger_fs_error").write_text("a test")
        with pytest.raises(OSError, match="Read-only"):
            (self.folder / "probe").touch()

    def mend(self) -> None:
        subprocess.run(["umount", str(self.folder)], check=True)
        assert subprocess.run(self._mend, capture_output=True).returncode == 1  # which is "mended"
        subprocess.run(self._mount, check=True)

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    if os.name != "posix" or os.getuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a disk needs root")
    made: list[Disk | Failing] = []

    def make(folder: Path, fails: bool = False) -> Disk | Failing:
        made.append(Failing(folder, tmp_path / "image") if fails else Disk(folder))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is said, with errors of ours contained, as for users."""
    monkeypatch.delenv("MLFLOW_TFMON_RAISE_ERRORS", raising=False)
    monkeypatch.delenv("MLFLOW_AUTOLOGGING_TESTING", raising=False)
    lines: list[str] = []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    errors.logger.addHandler(handler)
    yield lines
    errors.logger.removeHandler(handler)


def train(net: keras.Model, epochs: int, **more: object) -> list[float]:
    x, y = trainings.data()
    history = net.fit(x, y, batch_size=trainings.BATCH, epochs=epochs, verbose=0, shuffle=False, **more)
    return history.history["loss"]


def compiled() -> keras.Model:
    net = trainings.model()
    net.compile(keras.optimizers.Adam(0.01), trainings.loss())
    return net


class At(keras.callbacks.Callback):
    """Does something at the beginning of an epoch, once all before it is written down."""

    def __init__(self, **things: Callable[[], None]) -> None:
        super().__init__()
        self.things = {int(epoch.removeprefix("epoch")): thing for epoch, thing in things.items()}

    def on_epoch_begin(self, epoch: int, logs: object = None) -> None:
        if epoch in self.things:
            pipeline.DRAIN.flush()
            self.things[epoch]()


def losses(run_id: str, store: str) -> np.ndarray:
    return mlflow_tfmon.load_run(run_id, store).steps.loss.to_numpy()


@pytest.fixture
def unwatched() -> list[np.ndarray]:
    net = compiled()
    train(net, 6)
    return net.get_weights()


def same(net: keras.Model, unwatched: list[np.ndarray]) -> None:
    for ours, theirs in zip(net.get_weights(), unwatched, strict=True):
        assert ours.tobytes() == theirs.tobytes()


def test_the_journals_disk_is_full_for_a_while(
    unwatched: list[np.ndarray],
    store: str,
    fresh: None,
    home: Path,
    said: list[str],
    disk: Callable[..., Any],
) -> None:
    one = disk(home)
    mlflow_tfmon.autolog(log_models=False)
    net = compiled()
    train(net, 6, callbacks=[At(epoch2=one.fill, epoch4=one.free)])
    same(net, unwatched)
    until(lambda: not find_waiting())
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "FINISHED" and run.data.tags["tfmon.delivery"] == "complete"
    recorded = mlflow_tfmon.load_run(run.info.run_id)
    # Those of the time without room were held in memory.
    assert recorded.steps.index.tolist() == list(range(1, 61))
    assert recorded.epochs.index.tolist() == list(range(6))
    assert "tfmon.not_kept" not in run.data.tags
    assert sum("could not be written" in line for line in said) == 1


@pytest.mark.parametrize("how", ["full", "read-only", "gone"])
def test_the_journals_disk_takes_nothing_until_the_end(
    how: str,
    unwatched: list[np.ndarray],
    store: str,
    fresh: None,
    home: Path,
    said: list[str],
    disk: Callable[..., Any],
) -> None:
    one, client = disk(home, fails=how == "read-only"), mlflow.MlflowClient()
    marks = set(second_home().glob("arrived-*"))  # left by a test that was killed
    mlflow_tfmon.autolog(log_models=False)
    net = compiled()

    def away() -> None:
        if how == "full":
            one.fill()
        elif how == "read-only":
            one.fail()
        else:
            until(lambda: "tfmon.delivery" in client.search_runs(["0"])[0].data.tags)  # delivery has begun
            for folder in (home / "recordings").iterdir():
                shutil.rmtree(folder)

    train(net, 6, callbacks=[At(epoch2=away)])
    same(net, unwatched)
    if how == "full":
        one.free()
    (run,) = client.search_runs(["0"])
    until(lambda: client.get_run(run.info.run_id).data.tags["tfmon.delivery"] == "complete")
    until(lambda: client.get_run(run.info.run_id).info.status == "FINISHED")
    tags = client.get_run(run.info.run_id).data.tags
    recorded = mlflow_tfmon.load_run(run.info.run_id)
    steps = recorded.steps.index.tolist()
    assert steps == list(range(1, len(steps) + 1)) and 20 <= len(steps) < 60
    assert tags["tfmon.lost_steps"] == str(60 - len(steps))
    assert f"{60 - len(steps)} steps" in tags["tfmon.not_kept"]
    assert recorded.epochs.index.tolist() == list(range(6))
    assert [line for line in said if f"not kept  {60 - len(steps)} steps" in line], said
    assert sum("Training continues" in line for line in said) == 1
    assert not [line for line in said if "still being uploaded" in line]
    assert find_waiting() == []
    if how == "read-only":  # what could not be deleted is deleted later, and does not come again
        delivery = DeliveryProcess.shared()
        process = delivery._process
        delivery.close()
        assert process is not None and process.wait(60)
        assert list((home / "recordings").iterdir())
        one.mend()
        assert find_waiting() == []
        assert not list((home / "recordings").iterdir())
        assert set(second_home().glob("arrived-*")) <= marks


def test_the_journals_folder_is_deleted_before_delivery_has_seen_it(
    unwatched: list[np.ndarray], store: str, fresh: None, home: Path, said: list[str]
) -> None:
    mlflow_tfmon.autolog(log_models=False)
    process = DeliveryProcess.shared()._process
    assert process is not None
    os.kill(process.pid(), signal.SIGSTOP)  # it is still loading MLflow, as in a training's first seconds

    def delete() -> None:
        for folder in (home / "recordings").iterdir():
            shutil.rmtree(folder)

    net = compiled()
    train(net, 6, callbacks=[At(epoch2=delete)])
    same(net, unwatched)
    os.kill(process.pid(), signal.SIGCONT)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs(["0"])
    until(lambda: client.get_run(run.info.run_id).info.status == "FINISHED")
    until(lambda: client.get_run(run.info.run_id).data.tags.get("tfmon.delivery") == "complete")
    tags = client.get_run(run.info.run_id).data.tags
    assert tags["tfmon.lost_steps"] == "60"
    assert "60 steps" in tags["tfmon.not_kept"] and "2 epochs" in tags["tfmon.not_kept"]
    assert mlflow_tfmon.load_run(run.info.run_id).epochs.index.tolist() == [2, 3, 4, 5]
    assert find_waiting() == []


def test_no_disk_takes_the_journal(
    unwatched: list[np.ndarray],
    store: str,
    fresh: None,
    said: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MLFLOW_TFMON_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    mlflow_tfmon.autolog(log_models=False)
    net = compiled()
    train(net, 6)
    same(net, unwatched)
    assert [line for line in said if "training continues" in line and "not recorded" in line], said
    assert mlflow.active_run() is None and mlflow.search_runs(output_format="list") == []  # none was made


@pytest.mark.parametrize("theirs", [False, True])
def test_a_home_that_is_read_only(
    theirs: bool,
    unwatched: list[np.ndarray],
    store: str,
    fresh: None,
    home: Path,
    said: list[str],
    disk: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk(home)
    subprocess.run(["mount", "-o", "remount,ro", str(home)], check=True)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    if theirs:  # somebody else was there first
        second_home().mkdir(mode=0o777)
        second_home().chmod(0o777)
    mlflow_tfmon.autolog(log_models=False)
    net = compiled()
    train(net, 6)
    same(net, unwatched)
    if theirs:
        assert list(second_home().iterdir()) == []
        return
    assert sum("set MLFLOW_TFMON_HOME to another folder" in line for line in said) == 1
    until(lambda: not find_waiting())
    (run,) = mlflow.search_runs(output_format="list")
    assert mlflow_tfmon.load_run(run.info.run_id).steps.index.tolist() == list(range(1, 61))


@pytest.mark.parametrize("what", ["artifacts", "mlflow.db"])
@pytest.mark.parametrize("how", ["full", "read-only", "gone"])
def test_the_stores_disk(
    how: str,
    what: str,
    unwatched: list[np.ndarray],
    store: str,
    fresh: None,
    home: Path,
    tmp_path: Path,
    said: list[str],
    disk: Callable[..., Any],
) -> None:
    folder = tmp_path / "artifacts"
    if what == "mlflow.db":
        folder = tmp_path / "database"
        folder.mkdir()
    one = disk(folder)
    if what == "mlflow.db":
        shutil.move(tmp_path / what, folder / what)
        store = f"sqlite:///{folder / what}"
        mlflow.set_tracking_uri(store)
    mlflow_tfmon.autolog(log_models=False, delivery_wait=1.0, report=False)
    net = compiled()

    def away() -> None:
        if how == "full":
            one.fill()
        elif how == "read-only":
            # Who has it open for writing keeps it from being remounted: what is there is shown as such from here on.
            subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        else:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=1m,ro", "tfmon-test", str(folder)], check=True
            )

    def back() -> None:
        if how == "full":
            one.free()
        else:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)

    x, y = trainings.data()
    net.fit(x, y, batch_size=trainings.BATCH, epochs=6, verbose=0, shuffle=False, callbacks=[At(epoch2=away)])
    same(net, unwatched)
    waited = [line for line in said if "still being uploaded" in line]
    back()
    assert len(waited) == 1 and "mlflow-tfmon sync" in waited[0]
    until(lambda: not find_waiting())
    (run,) = mlflow.search_runs(output_format="list")
    assert run.info.status == "FINISHED" and run.data.tags["tfmon.delivery"] == "complete"
    recorded = mlflow_tfmon.load_run(run.info.run_id)
    assert recorded.steps.index.tolist() == list(range(1, 61))
    assert recorded.epochs.index.tolist() == list(range(6))
    sync.main(["--check", run.info.run_id], standalone_mode=False)  # raises if a point or a row is missing
