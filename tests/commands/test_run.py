"""Tests of `mlflow-tfmon run`: a script does the same as under plain Python, and its trainings are recorded."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from mlflow_tfmon import cli, load_run

ROOT = Path(__file__).parents[2]

# What a script can see of how it was started. `orig_argv` is what the operating system was given.
LOOKS = """
import os, sys
import beside
import __main__
print(sys.argv, sys.path, sys.orig_argv[1:], sys.flags, __name__, __file__, __spec__ and __spec__.name, __package__)
print(__main__ is sys.modules["__main__"], type(__builtins__), sorted(vars()), __doc__, beside.NAME)
print(sorted(pair for pair in os.environ.items() if pair[0] != "_"))
print([name for name in sys.modules if "mlflow" in name or "tfmon" in name], sys.excepthook, sys.meta_path[-3:])
print(input(), file=sys.stderr)
"""
ENDS = {
    "status": "import sys; sys.exit(3)",
    "text": "import sys; sys.exit('no data')",
    "error": "def f():\n    try:\n        {}['a']\n    except KeyError:\n        raise ValueError('b')\nprint(1)\nf()",
    "syntax": "print(1\nx = = 2",
    "interrupt": "import os, signal; os.kill(os.getpid(), signal.SIGINT); import time; time.sleep(20)",
    "terminated": "import os, signal; print('x', flush=True); os.kill(os.getpid(), signal.SIGTERM)",
    "at once": "import os; print('lost'); os._exit(7)",
    "at exit": "import atexit, threading\natexit.register(print, 'exit')\n"
    "threading.Timer(0.2, print, ['thread']).start()",
    "hook": "import sys; sys.excepthook = lambda *a: print(a[0], a[2].tb_frame.f_code.co_name); 1 / 0",
    "pool": "import multiprocessing as m\nimport sys\n"
    "def f(x):\n    return x * x, __name__, 'mlflow_tfmon' in sys.modules\n"
    "if __name__ == '__main__':\n    with m.get_context('spawn').Pool(1) as pool:\n        print(pool.map(f, [1, 2]))",
}


WATCHED = ["-c", "from mlflow_tfmon.cli import main; raise SystemExit(main())", "run"]


def of(arguments: list[str], cwd: Path, **more: str) -> tuple[int, bytes, bytes]:
    """Status, stdout and stderr of Python."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), **more}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, input=b"a line\n", capture_output=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


def both(arguments: list[str], cwd: Path) -> list[tuple[int, bytes, bytes]]:
    """What becomes of a script by itself, and of the same watched."""
    return [of(arguments, cwd), of([*WATCHED, *arguments], cwd)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with scripts and a package."""
    (tmp_path / "package").mkdir()
    for place in (tmp_path, tmp_path / "package"):
        (place / "beside.py").write_text("NAME = __file__")
        (place / "looks.py").write_text(LOOKS)
    (tmp_path / "package" / "__main__.py").write_text(LOOKS)
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [["looks.py", "--epochs", "3", "-m", ""], ["package/looks.py"], ["-m", "looks", "-x"], ["package"]],
)
def test_a_script_sees_nothing_of_it(folder, arguments):
    plain, watched = both(arguments, folder)
    assert plain == watched and plain[0] == 0, plain[2].decode()


def test_a_module_within_a_package(folder):
    plain, watched = both(["-m", "package"], folder)
    assert plain == watched and b"beside" in plain[1]


@pytest.mark.parametrize("end", ENDS)
def test_it_ends_as_it_would(tmp_path, end):
    (tmp_path / "script.py").write_text(ENDS[end])
    plain, watched = both(["script.py"], tmp_path)
    assert plain == watched
    expected = {"interrupt": -signal.SIGINT, "terminated": -signal.SIGTERM, "status": 3, "at once": 7}
    assert plain[0] == expected.get(end, int(end in ("text", "error", "syntax", "hook")))


def test_the_users_own_sitecustomize_still_comes_first(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "sitecustomize.py").write_text("print('mine', __name__)")
    (tmp_path / "script.py").write_text(
        "import sys, os; print(sys.modules['sitecustomize'], os.environ['PYTHONPATH'])"
    )
    paths = f"{tmp_path / 'own'}{os.pathsep}{ROOT}"
    plain = of(["script.py"], tmp_path, PYTHONPATH=paths)[1]
    watched = of([*WATCHED, "script.py"], tmp_path, PYTHONPATH=paths)[1]
    mine = b"mine sitecustomize\n"
    assert plain.startswith(mine) and watched == mine + plain  # the command itself is Python, too


TRAINS = """
import hashlib, sys
import {first}
import keras, numpy as np

if __name__ == "__main__":
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "relu"), keras.layers.Dense(1)])
    x = np.random.default_rng(1).normal(size=(64, 4)).astype("float32")
    model.compile("adam", "mse")
    model.fit(x, x[:, :1], epochs=int(sys.argv[1]), batch_size=16, verbose=0)
    print(hashlib.sha256(b"".join(w.tobytes() for w in model.get_weights())).hexdigest())
"""


@pytest.mark.thorough
@pytest.mark.parametrize("first", ["tensorflow", "os"])
def test_a_training_is_recorded_where_mlflow_is_told_and_is_the_same(first, tmp_path, store, home):
    client = MlflowClient(store)
    (tmp_path / "train.py").write_text(TRAINS.format(first=first))
    run = client.create_run(client.create_experiment("mine")) if first == "os" else None
    where = {"MLFLOW_RUN_ID": run.info.run_id} if run else {"MLFLOW_EXPERIMENT_NAME": "named"}
    options = ["--silent", "--deep-every", "4", "--no-report", "--no-log-models"]
    own = {"MLFLOW_TRACKING_URI": store, "MLFLOW_TFMON_HOME": str(home), **where}
    plain = of(["train.py", "3"], tmp_path, **own)
    watched = of([*WATCHED, *options, "train.py", "3"], tmp_path, **own)
    assert watched == plain and plain[0] == 0, watched
    experiment = client.get_experiment_by_name("mine" if run else "named")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED" and (run is None or found.info.run_id == run.info.run_id)
    assert found.data.tags["tfmon.command"] == "train.py 3"
    recorded = load_run(found.info.run_id, store)
    assert list(recorded.steps.index) == list(range(1, 13))
    assert list(recorded.layers.dropna(subset="weight_norm")["step"].unique()) == [1, 4, 8, 12]


def test_a_script_that_trains_with_another_backend_is_left_alone(tmp_path):
    keras = tmp_path / "keras"
    keras.mkdir()
    (keras / "__init__.py").write_text("from keras import backend")
    (keras / "backend.py").write_text("backend = lambda: 'jax'")
    (tmp_path / "script.py").write_text(
        "import importlib.util, sys\nprint(importlib.util.find_spec('keras').name)\n"
        "import keras\nprint('tensorflow' in sys.modules, 'mlflow' in sys.modules)"
    )
    plain, watched = both(["script.py"], tmp_path)
    assert plain == watched == (0, b"keras\nFalse False\n", b"")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.py"], "nowhere.py: No such file"),
        ([], "Missing argument 'SCRIPT'"),
        (["--deep-every", "0", __file__], "--deep-every=0: it must be a whole number"),
        (["--extra-tags", "{", __file__], "--extra-tags='{': it must be a dictionary"),
        (
            ["--no-log-models", "--registered-model-name", "a", __file__],
            "--registered-model-name='a': it conflicts with log_models=False",
        ),
    ],
)
def test_wrong_usage_is_told_before_the_script_starts(arguments, said, capsys):
    assert cli.main(["run", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and said in err


def test_an_unreadable_script_is_told(tmp_path, monkeypatch, capsys):
    (tmp_path / "script.py").write_text("")
    monkeypatch.setattr(
        Path, "open", lambda *_, **__: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    assert cli.main(["run", str(tmp_path / "script.py")]) == 2
    assert "script.py: Permission denied." in capsys.readouterr().err
