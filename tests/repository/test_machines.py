"""Tests of docs/machines.md: the commands of its recipes make the TF_CONFIG that they should."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import yaml

from tests.notebooks import ROOT

PAGE = (ROOT / "docs" / "machines.md").read_text()
TELLS = 'echo "$TF_CONFIG|$MLFLOW_TFMON_HOME"'


def block(language: str, containing: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    (one,) = (text for text in found if containing in text)
    return str(one).replace("exec python train.py", TELLS)


def run(command: str, folder: Path, **environment: str) -> list[tuple[dict[str, object], str]]:
    path = {"PATH": f"{folder}:{os.environ['PATH']}", "HOME": "/home/someone"}
    done = subprocess.run(
        ["bash", "-c", command], env=path | environment, capture_output=True, text=True, check=True
    )
    return [
        (json.loads(config), home) for config, home in (line.split("|") for line in done.stdout.splitlines())
    ]


def test_the_manifest_of_kubernetes(tmp_path: Path) -> None:
    service, job = yaml.safe_load_all(block("yaml", "kind: Job"))
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
    for index in range(2):
        ((config, home),) = run(container["args"][0], tmp_path, JOB_COMPLETION_INDEX=str(index))
        names = [f"{job['metadata']['name']}-{at}.{spec['subdomain']}:2222" for at in range(2)]
        assert config == {"cluster": {"worker": names}, "task": {"type": "worker", "index": index}}
        assert home == f"/recordings/{index}"


def test_the_script_of_slurm(tmp_path: Path) -> None:
    commands = {
        "scontrol": '[ "$*" = "show hostnames node[3-4]" ] && printf "node3\\nnode4\\n"',
        "srun": 'shift; for at in 0 1; do SLURM_PROCID=$at "$@"; done',
    }
    for name, text in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    told = run(block("sh", "#SBATCH"), tmp_path, SLURM_JOB_NODELIST="node[3-4]", SLURM_JOB_ID="7")
    for index, (config, home) in enumerate(told):
        workers = ["node3:2222", "node4:2222"]
        assert config == {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
        assert home == f"/home/someone/tfmon/7/{index}"
    assert len(told) == 2
