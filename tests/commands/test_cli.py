"""Tests of the mlflow-tfmon command: its exit status, and its stderr."""

import subprocess
import sys

import click
import pytest

from mlflow_tfmon import __version__, cli
from mlflow_tfmon.errors import NotThereError


@pytest.fixture
def fails(monkeypatch):
    """A command that fails in the way given."""

    def install(error):
        @click.command("fails")
        def command():
            raise error

        monkeypatch.setattr(cli.group, "get_command", lambda ctx, name: command)

    return install


def test_help_names_every_command(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "..." not in shown.split("Commands:")[1]  # each line says what it has to say
    assert all(f"  {name} " in shown for name in cli.group.list_commands(None))


def test_help_of_run_says_what_each_setting_means_its_type_and_its_default(capsys):
    assert cli.main(["run", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--deep-every INTEGER Interval in optimizer steps between measurements" in shown
    assert "it is at most 16. [default: 50]" in shown and "[default: --report]" in shown
    assert (
        "--checkpoint-save-freq TEXT" in shown
        and "--detectors JSON" in shown
        and "--exit-wait NUMBER" in shown
    )
    for option in cli.group.get_command(None, "run").params:
        assert option.param_type_name == "argument" or option.help, option.name


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["--no-such-option"]])
def test_wrong_usage_ends_with_2_and_one_line_that_says_where_help_is(arguments, capsys):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("mlflow-tfmon: ") and "--help" in err


def test_a_mistyped_command_is_told_the_right_one(capsys):
    assert cli.main(["diagnos", "latest"]) == 2
    said = "No such command 'diagnos'. Did you mean 'diagnose'? See: mlflow-tfmon --help"
    assert capsys.readouterr().err == f"mlflow-tfmon: {said}\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (click.ClickException("no run\nof that name"), "no run of that name"),
        (OSError("no run of that name"), "OSError: no run of that name"),
        (FileNotFoundError(2, "No such file or directory", "/a/b"), "/a/b: No such file or directory."),
        (OSError("https://ann:s3cret@e.org is away"), "OSError: https://e.org is away"),
        (ImportError("it needs TensorBoard: pip install x"), "it needs TensorBoard: pip install x"),
        (NotThereError("nothing has arrived yet: try again"), "nothing has arrived yet: try again"),
        # of others the text alone says nothing
        (ValueError("could not be broadcast"), "ValueError: could not be broadcast"),
        (
            UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"),
            "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff in position 0: no",
        ),
    ],
)
def test_a_failure_ends_with_1_and_one_line(fails, error, said, capsys):
    fails(error)
    assert cli.main(["fails"]) == 1
    assert capsys.readouterr() == ("", f"mlflow-tfmon: {said}\n")


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "mlflow_tfmon", "--version"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, f"mlflow-tfmon, version {__version__}\n"), done.stderr
    failed = subprocess.run(
        [sys.executable, "-m", "mlflow_tfmon", "no-such"], capture_output=True, timeout=60
    )
    assert failed.returncode == 2
