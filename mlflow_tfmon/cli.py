"""The mlflow-tfmon command. Each subcommand is a module in `mlflow_tfmon/commands`, loaded when called."""

from __future__ import annotations

import difflib
import pkgutil
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from mlflow_tfmon import __version__, commands
from mlflow_tfmon.errors import InputError
from mlflow_tfmon.uris import visible, without_secrets

_NAME = "mlflow-tfmon"


class _Commands(click.Group):
    """Command group that finds a command as the `command` of the module of that name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(commands.__path__))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        module = import_module(f"{commands.__name__}.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            if close := difflib.get_close_matches(args[0], self.list_commands(ctx), 1):
                raise click.UsageError(f"{error.message} Did you mean {close[0]!r}?", ctx) from error
            raise


@click.group(cls=_Commands, no_args_is_help=False)
@click.version_option(__version__, prog_name=_NAME)
def group() -> None:
    """The training monitor for TensorFlow that lives inside MLflow."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: of the command line; default: this process's.

    Returns:
        The exit status: 0, 1 if it failed, 2 for wrong usage, such as a run that is not there. An error is one line on
        stderr.

    Example:
        >>> main(["promote"])
        2
    """
    try:
        return group.main(arguments, prog_name=_NAME, standalone_mode=False) or 0
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else _NAME
        return _fail(f"{error.format_message()} See: {path} --help", error.exit_code)
    except click.ClickException as error:
        return _fail(error.format_message(), error.exit_code)
    except InputError as error:
        return _fail(str(error), 2)
    except (click.Abort, KeyboardInterrupt):
        return _fail("stopped.", 1)
    except Exception as error:
        return _fail(_told(error), 1)


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:  # a file to read, or to write
        return f"{error.filename}: {error.strerror}."
    # Of an extra that is not installed, of ours, or MLflow's: each is a sentence. Of others only the type may tell.
    if isinstance(error, ImportError) or type(error).__module__.startswith(("mlflow.", "mlflow_tfmon.")):
        return str(error) or type(error).__name__
    return f"{type(error).__name__}: {error}"


def _fail(message: str, status: int) -> int:
    print(f"{_NAME}: {visible(' '.join(without_secrets(message).split()))}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
