"""The mlflow-tfmon command: its exit status, and what it says on stderr."""

import click
import pytest

from mlflow_tfmon import cli


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
    assert "Commands:" in capsys.readouterr().out or not cli.group.list_commands(None)


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["--no-such-option"]])
def test_wrong_usage_ends_with_2_and_one_line_that_says_where_help_is(arguments, capsys):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("mlflow-tfmon: ") and "--help" in err


@pytest.mark.parametrize(
    "error", [click.ClickException("no run\nof that name"), OSError("no run of that name")]
)
def test_a_failure_ends_with_1_and_one_line(fails, error, capsys):
    fails(error)
    assert cli.main(["fails"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.endswith("no run of that name\n")
