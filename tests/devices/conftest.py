"""Trainings on two logical devices, or with XLA's dumps, run in processes of their own: devices are set once in one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Script = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def script(store_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Script]:
    """Runs one of the scripts beside this file, each only once with the same arguments; gives what it found."""
    known: dict[tuple[str, ...], dict[str, Any]] = {}

    def run(module: str, *arguments: str) -> dict[str, Any]:
        asked = (module, *arguments)
        if asked not in known:
            folder = tmp_path_factory.mktemp(module)
            shutil.copyfile(store_template, folder / "mlflow.db")
            environment = {
                **os.environ,
                "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db",
                "MLFLOW_TFMON_HOME": f"{folder}/home",
                "XLA_FLAGS": f"--xla_dump_to={folder}/dump --xla_dump_hlo_as_text"
                if module == "compiled"
                else "",
                "PYTHONPATH": str(Path(__file__).parents[2]),
            }
            command = [
                sys.executable,
                "-m",
                f"tests.devices.{module}",
                str(folder / "found.json"),
                *arguments,
            ]
            with (folder / "printed").open("w+") as printed:
                try:
                    subprocess.run(
                        command,
                        cwd=folder,
                        env=environment,
                        stdout=printed,
                        stderr=printed,
                        timeout=540,
                        check=True,
                    )
                    known[asked] = json.loads((folder / "found.json").read_text())
                except subprocess.SubprocessError as error:  # said to each test that asks
                    printed.seek(0)
                    known[asked] = {"failed": f"{error}: {printed.read()[-4000:]}"}
            shutil.rmtree(folder / "dump", ignore_errors=True)
        if "failed" in known[asked]:
            raise RuntimeError(known[asked]["failed"])
        return known[asked]

    yield run
