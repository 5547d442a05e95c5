"""Tests of the delivery process: alive beside the trainer, killed, detached, and several at once."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import mlflow
import psutil
import pytest
from recordings import BEGUN, blocks, layout, started, values

from mlflow_tfmon.delivery import ending
from mlflow_tfmon.delivery.main import Trainer
from mlflow_tfmon.delivery.process import DeliveryProcess
from mlflow_tfmon.delivery.sync import deliver, find_waiting
from mlflow_tfmon.journal.journal import Journal
from mlflow_tfmon.reading.recorded import load_run
from mlflow_tfmon.stream.records import Flushed, RunEnded
from tests.daily import thorough
from tests.waiting import until

PATIENCE = 150.0  # s; how long these take says nothing about the code, only about the machine


@pytest.fixture
def delivery(home: Path) -> Iterator[DeliveryProcess]:
    process = DeliveryProcess()
    yield process
    child = process._process
    process.close()
    assert child is None or child.wait(PATIENCE)


def test_rows_are_in_mlflow_while_training_goes_on_and_a_killed_delivery_loses_and_doubles_nothing(
    store: str, home: Path, delivery: DeliveryProcess
) -> None:
    client = mlflow.MlflowClient(store)
    run_id = client.create_run("0").info.run_id
    rows = values(900)
    journal = Journal.create()
    journal.append([started(store, run_id), layout(), *blocks(rows[:300])])
    delivery.watch(journal.folder, store, store)
    until(lambda: "batch/loss" in client.get_run(run_id).data.metrics)
    until(
        lambda: client.list_artifacts(run_id, "tfmon/telemetry")
    )  # no flush, no end: the part is still open
    assert load_run(run_id, store).steps.index.tolist() == list(range(1, 301))
    first = delivery._process
    assert first is not None and first.is_alive()
    os.kill(first.pid(), signal.SIGINT)  # Ctrl-C is for the trainer
    os.kill(first.pid(), signal.SIGHUP)  # and so is the end of its terminal
    flushed = journal.append([*blocks(rows[300:600]), Flushed(BEGUN)])
    assert delivery.wait(journal.folder, flushed, PATIENCE)
    assert first.is_alive()
    until(lambda: delivery.status(journal.folder).waiting == 0)  # counted after each round of delivery
    status = delivery.status(journal.folder)
    assert (status.run_id, status.error, status.complete) == (run_id, None, False)
    os.kill(first.pid(), signal.SIGKILL)
    assert first.wait(PATIENCE)
    last = journal.append([*blocks(rows[600:]), RunEnded(BEGUN + 9, "FINISHED", True)])
    assert not delivery.wait(journal.folder, last, PATIENCE)  # nobody is there: known at once
    assert delivery.ensure_alive()
    assert delivery.wait(journal.folder, last, PATIENCE)
    until(lambda: not journal.folder.exists())
    assert delivery.status(journal.folder).complete
    journal.close()
    run = client.get_run(run_id)
    assert (run.info.status, run.data.tags["tfmon.delivery"]) == ("FINISHED", "complete")
    assert load_run(run_id, store).steps.index.tolist() == list(range(1, 901))
    points = [(one.step, one.value) for one in client.get_metric_history(run_id, "batch/loss")]
    assert len(set(points)) == len(points)
    assert all(value == rows[step - 1, 4] for step, value in points)


TRAINER = """
    import os, signal, sys, time
    sys.path.insert(0, {tests!r})
    from recordings import *
    from mlflow_tfmon.stream.records import *
    from mlflow_tfmon.journal.journal import Journal
    from mlflow_tfmon.delivery.process import DeliveryProcess
    uri = sys.argv[1]
    journal = Journal.create()
    DeliveryProcess.shared().watch(journal.folder, uri)
    if os.fork() == 0:  # a data worker that outlives the trainer and holds its pipes
        os.setsid()
        time.sleep(60)
        os._exit(0)
    begins = started(uri, None, run_name=sys.argv[2], report="REPORT" in os.environ)
    journal.append([begins, layout(), *blocks(values(200))])
    print(journal.folder, DeliveryProcess.shared()._process.pid(), flush=True)
    {end}
"""


def trainer(
    uri: str, name: str, end: str, within: Sequence[str] = (), **environment: str
) -> subprocess.Popen[str]:
    script = textwrap.dedent(TRAINER).format(tests=str(Path(__file__).parent), end=end)
    command = [*within, sys.executable, "-c", script, uri, name]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}, start_new_session=True
    )


def told(process: subprocess.Popen[str]) -> tuple[Path, int]:
    """Where it records, and the process that delivers it."""
    assert process.stdout is not None
    folder, pid = process.stdout.readline().split()
    return Path(folder), int(pid)


ENDS = {
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", signal.SIGKILL),
    "its group killed": ("os.killpg(0, signal.SIGKILL)", signal.SIGKILL),
    "its children killed": (
        "import psutil\n[one.kill() for one in psutil.Process().children(recursive=True)]; os.abort()",
        signal.SIGABRT,
    ),
    "its terminal gone": (  # also where the tests run under nohup
        "signal.signal(signal.SIGHUP, signal.SIG_DFL); os.killpg(0, signal.SIGHUP)",
        signal.SIGHUP,
    ),
    "all told to end": (  # by systemd or SLURM; nobody has to come back for what was recorded
        "os.kill(DeliveryProcess.shared()._process.pid(), signal.SIGTERM); os.kill(0, signal.SIGTERM)",
        signal.SIGTERM,
    ),
}


@pytest.mark.thorough
def test_a_trainer_that_is_ended_leaves_a_failed_run_with_all_its_rows(store: str, home: Path) -> None:
    processes = {name: trainer(store, name, end) for name, (end, _) in ENDS.items()}
    said = {name: told(process) for name, process in processes.items()}
    for name, process in processes.items():
        assert process.wait(PATIENCE) == -ENDS[name][1]
    until(lambda: not any(psutil.pid_exists(pid) for _, pid in said.values()))
    for waiting in find_waiting():  # on a busy machine, there was too little time
        assert waiting.folder == said["all told to end"][0] and deliver(waiting) is None
    assert not any(folder.exists() for folder, _ in said.values())
    runs = {run.info.run_name: run for run in mlflow.MlflowClient(store).search_runs(["0"])}
    assert runs.keys() == ENDS.keys()
    for run in runs.values():
        assert run.info.status == "FAILED"
        assert "step 200" in run.data.tags["mlflow.note.content"]
        assert load_run(run.info.run_id, store).steps.index.tolist() == list(range(1, 201))


@pytest.mark.thorough
def test_one_that_is_told_to_end_delivers_what_there_is_and_has_a_successor(
    store: str, home: Path, delivery: DeliveryProcess
) -> None:
    rows = values(200)
    journal = Journal.create()
    delivery.watch(journal.folder, store, store)
    first = delivery._process
    assert first is not None
    os.kill(first.pid(), signal.SIGTERM)  # while it loads MLflow
    flushed = journal.append([started(store, None), layout(), *blocks(rows[:100]), Flushed(BEGUN)])
    until(lambda: delivery.status(journal.folder).flushed >= flushed)
    until(lambda: not first.is_alive())
    assert delivery.ensure_alive() and delivery._process is not first
    last = journal.append([*blocks(rows[100:]), RunEnded(BEGUN, "FINISHED", True)])
    assert delivery.wait(journal.folder, last, PATIENCE)
    journal.close()
    until(lambda: not journal.folder.exists())
    (run,) = mlflow.MlflowClient(store).search_runs(["0"])
    assert load_run(run.info.run_id, store).steps.index.tolist() == list(range(1, 201))


NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc"]


def has_namespaces() -> bool:
    try:
        return subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not has_namespaces(), reason="a process cannot be the first one here")
@pytest.mark.parametrize("first", thorough(["python", "sh"], rare=["sh"]))
def test_the_first_process_of_a_container_waits_until_all_is_delivered(
    first: str, store: str, home: Path
) -> None:
    """The report too: with the first process all others are gone."""
    end = (
        "journal.append([RunEnded(BEGUN, 'FINISHED', True)]); journal.close()\n"
        "from mlflow_tfmon.delivery import ending; ending.wait(None, ending.of_script())"
    )
    shell = ["sh", "-c", '"$@"; exit 0', "sh"] if first == "sh" else []
    process = trainer(store, "contained", end, [*NAMESPACE, *shell], REPORT="1")
    folder, _ = told(process)
    assert process.wait(PATIENCE) == 0
    assert not folder.exists()
    (run,) = mlflow.MlflowClient(store).search_runs(["0"])
    assert (run.info.status, run.data.tags["tfmon.delivery"]) == ("FINISHED", "complete")
    found = [item.path for item in mlflow.MlflowClient(store).list_artifacts(run.info.run_id, "tfmon")]
    assert "tfmon/report.html" in found


def test_a_trainer_with_many_open_files(store: str, home: Path) -> None:
    """`select` takes no descriptor above 1,023, and those of the pipe and of the trainer come after its own."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        process = DeliveryProcess()
        run_id = mlflow.MlflowClient(store).create_run("0").info.run_id
        journal = Journal.create()
        last = journal.append(
            [started(store, run_id), layout(), *blocks(values(30)), RunEnded(BEGUN, "FINISHED", True)]
        )
        process.watch(journal.folder, store, store)
        child = process._process
        assert process.wait(journal.folder, last, PATIENCE)
        journal.close()
        process.close()
        assert child is not None and child.wait(PATIENCE)
    finally:
        for one in held:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert load_run(run_id, store).steps.index.tolist() == list(range(1, 31))


def test_the_trainers_end_is_seen_on_systems_without_a_handle_for_it() -> None:
    process = subprocess.Popen(["sleep", "600"])
    known = Trainer(process.pid, -1)
    assert not known.is_gone()
    process.kill()
    until(known.is_gone)  # nobody has asked for its exit status yet
    process.wait()
    assert known.is_gone() and Trainer(process.pid, -1).is_gone()


def test_who_ends_all_processes_with_the_script() -> None:
    assert ending.of_script({"SLURM_JOB_ID": "7"}) == "SLURM"
    assert ending.of_script({"SYSTEMD_EXEC_PID": str(os.getpid())}) == "systemd"
    worker = {"RAY_JOB_ID": "01000000", "RAY_RAYLET_PID": "7"}
    assert ending.of_training(worker) == ending.of_script(worker) == "Ray"
    assert ending.of_training({"RAY_JOB_ID": "01000000", "SLURM_JOB_ID": "7"}) is None


@pytest.mark.thorough
def test_ten_scripts_on_one_fresh_store_at_once(tmp_path: Path, home: Path) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    end = "journal.append([RunEnded(BEGUN, 'FINISHED', True)])"
    processes = [trainer(uri, f"script {n}", end) for n in range(10)]
    folders = []
    for process in processes:
        folders.append(told(process)[0])
        assert process.wait(PATIENCE) == 0
    until(lambda: not any(folder.exists() for folder in folders))
    runs = mlflow.MlflowClient(uri).search_runs(["0"])
    assert sorted(run.info.run_name for run in runs) == [f"script {n}" for n in range(10)]
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        assert run.data.tags["tfmon.delivery"] == "complete"
        assert load_run(run.info.run_id, uri).steps.index.tolist() == list(range(1, 201))
    assert list((tmp_path / "new").glob("*lock*")) == []


def test_a_store_that_is_away_is_known_before_the_time_to_wait_is_over(
    home: Path, delivery: DeliveryProcess
) -> None:
    journal = Journal.create()
    flushed = journal.append(
        [started("http://127.0.0.1:9/", None), layout(), *blocks(values(10)), Flushed(BEGUN)]
    )
    delivery.watch(journal.folder, "http://127.0.0.1:9/")
    assert not delivery.wait(journal.folder, flushed, 10 * PATIENCE)
    status = delivery.status(journal.folder)
    assert status.error is not None and status.waiting == flushed
    assert delivery._process is not None
    os.kill(delivery._process.pid(), signal.SIGKILL)  # it would wait a minute for the store
    journal.close()


def test_a_forked_child_has_a_delivery_process_of_its_own(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeliveryProcess, "_started", lambda self: False)
    monkeypatch.setattr(DeliveryProcess, "_shared", None)
    mine = DeliveryProcess.shared()
    assert DeliveryProcess.shared() is mine
    child = os.fork()
    if child == 0:
        os._exit(0 if DeliveryProcess.shared() is not mine and not mine._alive() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_process_is_nobodys_child_and_no_lesser_one(home: Path, delivery: DeliveryProcess) -> None:
    """What ends the trainer's children, group or session leaves it; and it gets its share of a busy processor."""
    delivery.ensure_alive()
    assert delivery._process is not None
    child = delivery._process.pid()
    assert child not in [one.pid for one in psutil.Process().children(recursive=True)]
    assert os.getpgid(child) != os.getpgid(0) and os.getsid(child) != os.getsid(0)
    assert os.getpriority(os.PRIO_PROCESS, child) == os.getpriority(os.PRIO_PROCESS, 0)
    until(lambda: delivery._process is not None and delivery._process._starter.poll() == 0)
    with pytest.raises(ChildProcessError):  # a script may wait for all its children
        os.waitpid(delivery._process._starter.pid, 0)


def test_the_process_needs_no_tensorflow(home: Path) -> None:
    script = "import sys, mlflow_tfmon.delivery.main as _; print({'tensorflow', 'keras'} & {*sys.modules})"
    assert (
        subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout.strip()
        == b"set()"
    )


def test_the_journal_needs_no_mlflow() -> None:
    light = ["journal.journal", "translation.translation", "translation.telemetry", "delivery.status"]
    script = (
        "import sys, importlib\n"
        f"for name in {light!r}: importlib.import_module('mlflow_tfmon.' + name)\n"
        "import json; print(json.dumps([m for m in ('tensorflow', 'mlflow') if m in sys.modules]))\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    assert json.loads(found) == []


def test_what_a_database_needs_is_loaded_before_the_first_recording_and_no_store_is_touched(
    store: str, delivery: DeliveryProcess, tmp_path: Path
) -> None:
    """Else a training of a few seconds pays for it: on two cores its steps took 1.2 times as long."""
    fresh = tmp_path / "fresh.db"
    delivery.ensure_alive()
    delivery.expect(f"sqlite:///{fresh}")
    process = delivery._process
    assert process is not None
    until(lambda: _maps(process.pid(), "sqlalchemy"))
    assert not fresh.exists()


def _maps(pid: int, name: str) -> bool:
    return any(name in place.path for place in psutil.Process(pid).memory_maps())
