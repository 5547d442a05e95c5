"""mlflow-tfmon run SCRIPT: monitors an unchanged script."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any

import click

from mlflow_tfmon import launch
from mlflow_tfmon.errors import SettingError
from mlflow_tfmon.settings import Settings
from mlflow_tfmon.sources import parse, variable

_WRITTEN = {"Mapping": "JSON", "int": "INTEGER", "float": "NUMBER"}  # what a value of a type is called


def _options() -> list[click.Option]:
    """Returns an option for each setting, with its meaning, type and default."""
    helps = _meanings()
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    return [
        click.Option(
            [f"--{flag}/--no-{flag}" if kind == "bool" else f"--{flag}"],
            default=None,
            help=f"{helps[name][:1].upper()}{helps[name][1:]}{_default(defaults[name], flag)}",
            metavar=next((written for part, written in _WRITTEN.items() if kind.startswith(part)), "TEXT")
            if kind != "bool"
            else None,
        )
        for name, kind in Settings.written().items()
        for flag in [name.replace("_", "-")]
    ]


def _meanings() -> dict[str, str]:
    """What each setting means, as the docstring of `autolog` says it, whose module would import Keras."""
    source = Path(inspect.getfile(Settings)).with_name("integration.py").read_text("utf-8")
    functions = [one for one in ast.parse(source).body if isinstance(one, ast.FunctionDef)]
    text = next(ast.get_docstring(one) or "" for one in functions if one.name == "autolog")
    found = re.findall(r"^    (\w+): (.*(?:\n {6,}.*)*)", text, re.MULTILINE)
    return {name: " ".join(meaning.replace("`", "").split()) for name, meaning in found}


def _default(value: Any, flag: str) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        value = f"--{flag}" if value else f"--no-{flag}"
    return f" [default: {value}]"


def _as_flag(error: SettingError) -> str:
    """Converts "deep_every=0: deep_every must be …" to a message about the flag."""
    name = str(error.setting)
    flag = f"--{name.replace('_', '-')}"
    given, _, remedy = str(error).partition(f": {name} ")
    return f"{flag}={given.removeprefix(f'{name}=')}: it {remedy}"


@click.command(
    "run",
    context_settings={"allow_interspersed_args": False},
    params=_options(),
    short_help="Run a script and monitor every training in it.",
)
@click.option("-m", "is_module", is_flag=True, help="SCRIPT is the name of a module, as in `python -m`.")
@click.argument("script")
@click.argument("arguments", metavar="[ARGS]...", nargs=-1, type=click.UNPROCESSED)
def command(script: str, arguments: tuple[str, ...], is_module: bool, **flags: Any) -> None:
    """Run a Python script as `python SCRIPT [ARGS]...` does, and monitor every training in it.

    The script needs no changes. MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME and MLFLOW_RUN_ID determine where its run
    is logged. Options go before SCRIPT: everything after it belongs to the script. Omitted options are read from the
    environment (MLFLOW_TFMON_DEEP_EVERY=10), else from [tool.mlflow_tfmon] in pyproject.toml.
    """
    settings = {
        name: value if isinstance(value, bool) else parse(value, Settings.written()[name])
        for name, value in flags.items()
        if value is not None
    }
    try:
        Settings.make(**settings)
    except SettingError as error:
        raise click.UsageError(_as_flag(error) if error.setting in settings else str(error)) from error
    if not is_module:
        try:
            (Path(script) / "__main__.py" if Path(script).is_dir() else Path(script)).open("rb").close()
        except OSError as error:
            raise click.BadParameter(f"{script}: {error.strerror}.", param_hint="SCRIPT") from error
    environment = dict(os.environ)
    environment |= {variable(name): str(value) for name, value in flags.items() if value is not None}
    paths = [os.path.dirname(launch.__file__), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    sys.stdout.flush()
    module = ["-m"] if is_module else []
    os.execve(sys.executable, [sys.executable, *module, script, *arguments], environment)
