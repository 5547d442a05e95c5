"""Tests of trainings that stall: the run says so, with the stacks, and takes it back; what only takes long is none."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import keras
import mlflow
import pytest

import mlflow_tfmon
from mlflow_tfmon.errors import logger
from mlflow_tfmon.journal import here, pulse
from mlflow_tfmon.stream.records import Facts, Record
from mlflow_tfmon.watching import stalls
from tests import trainings

TAG, STACKS = "tfmon.stalled", "tfmon/stacks.txt"
MOST = 120.0  # s after which a test that waits is given up
LOOKS = 40  # of a tenth of a second, where two seconds without a sign of life are a stall


class Said(logging.Handler):
    """Waits for lines of the log without taking processor time, as a thread that hangs does."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.stalled = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        if "has stalled since" in self.lines[-1]:
            self.stalled.set()


@pytest.fixture
def said(fresh: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Said]:
    short = {"_LEAST": 2.0, "_STEP_TIMES": 0, "_LONGEST_TIMES": 0.0, "_WORKS": 0.02, "_LOOK": 0.1}
    for name, value in short.items():
        monkeypatch.setattr(stalls, name, value)
    handler = Said()
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture
def wait(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Waits, and does nothing, for far longer than the time after which a training has stalled."""
    looked, count, look = threading.Event(), [0], stalls.Stall.look

    def counted(self: stalls.Stall, seconds: float) -> None:
        look(self, seconds)
        count[0] -= 1
        if count[0] == 0:
            looked.set()

    def wait() -> None:
        looked.clear()
        count[0] = LOOKS
        assert looked.wait(MOST)

    monkeypatch.setattr(stalls.Stall, "look", counted)
    return wait


def tags() -> dict[str, str]:
    """Those of all runs of the store."""
    return {
        name: text for run in mlflow.MlflowClient().search_runs(["0"]) for name, text in run.data.tags.items()
    }


def loop(step: Callable[..., object], epochs: int, between: Callable[[int], object]) -> None:
    for done, (x, y) in enumerate(trainings.batches(*trainings.data(), epochs), 1):
        step(x, y)
        time.sleep(0.02)
        between(done)


def test_a_loop_that_hangs_is_seen_and_one_that_goes_on_is_taken_back(said: Said) -> None:
    mlflow_tfmon.autolog()
    net = trainings.model()
    step = trainings.custom_step(net, keras.optimizers.SGD(0.01))
    seen: list[dict[str, str]] = []

    def hang(done: int) -> None:
        if done == 60:
            assert said.stalled.wait(MOST)
            until = time.monotonic() + MOST
            while not {TAG, "tfmon.progress"} <= (seen or [{}])[-1].keys() or (
                "stalled" not in seen[-1]["tfmon.progress"]
            ):
                assert time.monotonic() < until
                time.sleep(0.2)
                seen.append(tags())

    with mlflow.start_run() as run:
        loop(step, 10, hang)
    stalled = seen[-1][TAG]
    assert stalled.startswith("since ") and "after step 60: no step for" in stalled
    assert f"stalled {stalled}" in seen[-1]["tfmon.progress"]
    stacks = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/{STACKS}")
    assert stacks.startswith(stalled)
    assert f"thread that trains: 0x{threading.get_ident():016x}" in stacks
    (own,) = [part for part in stacks.split("\n\n") if f"hread 0x{threading.get_ident():016x} (" in part]
    assert f'File "{__file__}", line' in own and " in hang" in own and " in loop" in own
    after = mlflow.get_run(run.info.run_id).data.tags
    assert after[TAG].startswith("no longer: steps came again, after")
    assert "stalled" not in after["tfmon.progress"] and after["tfmon.delivery"] == "complete"
    assert mlflow_tfmon.load_run(run.info.run_id).steps.index.tolist() == list(range(1, 101))


class Callback(keras.callbacks.Callback):
    def __init__(self, after_batch: Callable[[int], object]) -> None:
        super().__init__()
        self._after_batch = after_batch

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        time.sleep(0.02)
        self._after_batch(batch)

    def on_test_begin(self, logs: object = None) -> None:
        Validation.begun = True


class Validation(keras.utils.PyDataset):
    """Validation data that are long in coming, but for those that Keras asks for before, to see their shapes."""

    begun = False

    def __init__(self, wait: Callable[[], object]) -> None:
        super().__init__()
        self._wait = wait

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> object:
        if Validation.begun:
            Validation.begun = False
            self._wait()
        return trainings.data()


def fit(after_batch: Callable[[int], object], in_validation: Callable[[], object]) -> None:
    x, y = trainings.data(320)
    net = trainings.model()
    net.compile("sgd", trainings.loss())
    data = Validation(in_validation)
    net.fit(x, y, batch_size=16, epochs=2, validation_data=data, verbose=0, callbacks=[Callback(after_batch)])


def test_a_fit_that_hangs_and_then_fails_stays_stalled(said: Said) -> None:
    mlflow_tfmon.autolog()

    def hang(batch: int) -> None:
        if batch == 15:
            assert said.stalled.wait(MOST)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(hang, lambda: None)
    assert tags()[TAG].startswith("since ") and "after step 16:" in tags()[TAG]


@pytest.mark.thorough
def test_what_only_takes_long_is_no_stall(said: Said, wait: Callable[[], None]) -> None:
    mlflow_tfmon.autolog()
    fit(lambda batch: None, wait)
    assert TAG not in tags() and not said.stalled.is_set()

    def train() -> None:
        loop(trainings.custom_step(trainings.model(), keras.optimizers.SGD(0.01)), 4, lambda done: None)

    train()
    wait()  # nobody says that the loop is over
    mlflow_tfmon.end_run()
    assert TAG not in tags() and not said.stalled.is_set()


@pytest.mark.thorough
def test_a_loop_that_computes_is_no_stall(said: Said, wait: Callable[[], None]) -> None:
    def validate(done: int) -> None:
        if done == 30:
            worker = threading.Thread(target=wait)
            worker.start()
            while worker.is_alive():
                sum(range(10_000))

    mlflow_tfmon.autolog()
    loop(trainings.custom_step(trainings.model(), keras.optimizers.SGD(0.01)), 4, validate)
    mlflow_tfmon.end_run()
    assert TAG not in tags() and not said.stalled.is_set()


class Told:
    """What a training with one ring of a thread that does nothing is told to have done."""

    def __init__(self, tmp_path: Path) -> None:
        idle = threading.Event()
        self.thread = threading.Thread(target=idle.wait, daemon=True)
        self.thread.start()
        self.over = idle.set
        self.ring = SimpleNamespace(seen=0, thread=self.thread.ident)
        self.rings, self.records = [self.ring], list[Record]()
        self.stall = stalls.Stall(
            lambda: self.rings,  # type: ignore[arg-type,return-value]
            lambda: self.ring.seen, lambda *out: self.records.extend(out), tmp_path,
        )  # fmt: skip
        # Where a thread is in its code is tried with real trainings, above.
        self.stall._is_over = lambda: False  # type: ignore[method-assign]

    def steps(self, count: int, seconds: float, each: int = 1) -> None:
        for _ in range(count):
            self.nothing(seconds)
            self.ring.seen += each
            self.stall.look(0.0)

    def nothing(self, seconds: float) -> None:
        for _ in range(round(seconds)):
            self.stall.look(1.0)

    @property
    def tags(self) -> list[str]:
        return [one.tags[TAG].split(":")[0].split(" 2")[0] for one in self.records if isinstance(one, Facts)]


@pytest.fixture
def told(tmp_path: Path) -> Iterator[Told]:
    one = Told(tmp_path)
    yield one
    one.over()


@pytest.mark.parametrize(
    "step, silence, seconds", [(0.1, 0, 30), (1.0, 0, 30), (3.0, 0, 60), (0.1, 40, 60), (0.1, 10, 30)]
)
def test_how_long_a_training_may_be_silent(step: float, silence: float, seconds: int, told: Told) -> None:
    """Half a minute, 20 of its steps, or one and a half times what it took before: whichever is longest."""
    told.nothing(silence)  # before the first step, say
    told.steps(30, max(1.0, step), each=round(1 / min(1.0, step)))
    told.nothing(seconds - 2)
    assert told.tags == []
    told.nothing(4)
    assert told.tags == ["since"]
    told.nothing(1000)
    assert told.tags == ["since"]
    told.steps(1, 1)
    assert told.tags == ["since", "no longer"]


def test_what_is_not_a_stall(told: Told) -> None:
    told.nothing(1000)  # the first step is traced, and compiled
    assert told.tags == []
    told = Told(told.stall._folder)
    told.steps(4, 1)
    told.nothing(1000)  # nobody knows yet what is usual
    told = Told(told.stall._folder)
    told.steps(10, 1)
    told.stall.paused = True
    told.nothing(1000)
    told.stall.paused = False
    told.nothing(25)
    told.rings = []
    told.nothing(1000)
    told.rings = [SimpleNamespace(seen=7, thread=told.thread.ident)]  # another training
    told.nothing(1000)
    assert told.tags == []


BEATS = """
import ctypes, sys, threading, time
from pathlib import Path
from mlflow_tfmon.journal import pulse

def beat():
    while True:
        pulse.beat(Path(sys.argv[1]))
        time.sleep(0.05)

threading.Thread(target=beat, daemon=True).start()
sys.stdin.readline()
print("holds it", flush=True)
ctypes.PyDLL(None).sleep(600)  # with the interpreter's lock
"""


def test_a_pulse_stands_still_while_the_interpreters_lock_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "QUIET_SECONDS", 1.0)
    listener = pulse.Listener(tmp_path)
    trainer = subprocess.Popen(
        [sys.executable, "-c", BEATS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert trainer.stdin is not None and trainer.stdout is not None
    until = time.monotonic() + MOST

    def quiet(longer: float) -> float:
        found = listener.quiet()
        while found <= longer and time.monotonic() < until:
            time.sleep(0.2)
            found = listener.quiet()
        return found

    while not (tmp_path / pulse.FILE).exists():
        time.sleep(0.05)
    assert listener.quiet() == 0.0
    trainer.stdin.write("\n")
    trainer.stdin.flush()
    trainer.stdout.readline()
    assert quiet(1.5) > 1.5
    trainer.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, trainer.pid, os.WSTOPPED | os.WNOWAIT)
    assert listener.quiet() == 0.0  # who is suspended does not hang
    trainer.kill()
    trainer.communicate()
    pulse.stop(tmp_path)
    assert listener.quiet() == 0.0 and not any(tmp_path.iterdir())


HOLDS = """
import ctypes
import keras
import mlflow_tfmon
from tests import trainings
from tests.watching.test_stalls import loop

mlflow_tfmon.autolog()
step = trainings.custom_step(trainings.model(), keras.optimizers.SGD(0.01))
loop(step, 10, lambda done: done == 60 and ctypes.PyDLL(None).sleep(100))  # with the interpreter's lock
"""


@pytest.mark.thorough
def test_delivery_tells_of_a_trainer_whose_interpreters_lock_is_kept(store: str, home: Path) -> None:
    trainer = subprocess.Popen(
        [sys.executable, "-c", HOLDS],
        env={**os.environ, "MLFLOW_TRACKING_URI": store},
        stderr=subprocess.DEVNULL,
    )
    mlflow.set_tracking_uri(store)
    until, found = time.monotonic() + 2 * MOST, dict[str, str]()
    try:
        while "stalled" not in found.get("tfmon.progress", "") or TAG not in found:
            assert time.monotonic() < until and trainer.poll() is None, found
            time.sleep(1.0)
            found = tags()
        assert re.match(r"since .*, after step (5\d|60): no Python has run for", found[TAG])
        assert trainer.wait(2 * MOST) == 0
    finally:
        trainer.kill()
    here.wait(lambda one: True, "the recording")
    (run,) = mlflow.MlflowClient().search_runs(["0"])
    assert run.info.status == "FINISHED" and run.data.tags["tfmon.delivery"] == "complete"
    assert run.data.tags[TAG].startswith("no longer: ") and "stalled" not in run.data.tags["tfmon.progress"]
    assert mlflow_tfmon.load_run(run.info.run_id).steps.index.tolist() == list(range(1, 101))


def test_time_in_which_the_process_did_not_run_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after SIGSTOP, or a laptop's sleep on systems whose clock goes on meanwhile."""
    clock, looked = iter([0.0, 1.0, 3600.0, 3601.0, 3602.0]), []

    class Looking:
        def look(self, seconds: float) -> None:
            looked.append(seconds)
            if len(looked) == 4:
                stalls._watched.clear()

    monkeypatch.setattr(stalls.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(stalls.time, "monotonic", lambda: next(clock))
    stalls._watched.add(Looking())  # type: ignore[arg-type]
    stalls._run()
    assert looked == [1.0, 2.0, 1.0, 1.0]
