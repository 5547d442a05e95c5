"""Runner of notebooks, with a kernel in the tests' environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def execute(notebook: Any, folder: Path, **environment: str) -> list[dict[str, Any]]:
    """Runs a notebook from its first cell to its last, within `folder`.

    Returns:
        The kernel's messages, in their order: what a browser would be told.
    """
    nbclient = pytest.importorskip("nbclient")
    from jupyter_client import KernelManager
    from jupyter_client.kernelspec import KernelSpec

    class Client(nbclient.NotebookClient):
        def process_message(self, msg: Any, *args: Any) -> Any:
            messages.append(msg)
            return super().process_message(msg, *args)

    messages: list[dict[str, Any]] = []
    kernel = KernelManager()
    kernel._kernel_spec = KernelSpec(
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], language="python"
    )
    client = Client(notebook, km=kernel, timeout=280, resources={"metadata": {"path": str(folder)}})
    client.execute(env={**os.environ, "PYTHONPATH": str(ROOT), **environment})
    return messages
