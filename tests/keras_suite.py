"""Runner of Keras's own tests, from its wheel: each must have the same result with and without monitoring.

Run `make test-keras`, or `python -m tests.keras_suite trainers/trainer_test.py` for some of them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

SUITE = ("trainers", "optimizers", "callbacks", "models", "saving", "backend/tensorflow")


def outcomes(paths: list[Path], watched: bool, folder: Path) -> dict[str, str]:
    """How each test of some files ends in one process: "passed", "failed", "error" or "skipped", by its name."""
    report = folder / f"{'watched' if watched else 'unwatched'}.xml"
    pytest = ["pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--continue-on-collection-errors"]
    pytest += [f"--junitxml={report}", *map(str, paths)]
    command = [sys.executable, "-m", "mlflow_tfmon.cli", "run", "-m"] if watched else [sys.executable, "-m"]
    own = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "MLFLOW_TFMON_HOME": str(folder / "home")}
    own |= {"KERAS_BACKEND": "tensorflow", "MLFLOW_TFMON_DELIVERY_WAIT": "0", "MLFLOW_TFMON_REPORT": "false"}
    own |= {"MLFLOW_DISABLE_TELEMETRY": "true", "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [*command, *pytest],
        env={**os.environ, **own},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if not report.exists():
        return {"the run of all": f"exit {done.returncode}"}
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        found[f"{case.get('classname')}.{case.get('name')}"] = kinds[0] if kinds else "passed"
    return found


def main() -> int:
    """Compares; returns 1 if a test ends another way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paths", nargs="*", default=SUITE, help="files or folders within keras/src")
    spec = find_spec("keras")
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parent / "src"
    different = 0
    for path in parser.parse_args().paths:
        files = [root / path] if path.endswith(".py") else sorted((root / path).rglob("*_test.py"))
        with tempfile.TemporaryDirectory() as folder:
            unwatched, watched = (outcomes(files, one, Path(folder)) for one in (False, True))
        names = sorted(n for n in unwatched.keys() | watched.keys() if unwatched.get(n) != watched.get(n))
        different += len(names)
        ends = Counter(unwatched.values())
        counts = ", ".join(f"{count} {end}" for end, count in ends.items())
        print(f"{path}: {len(files)} files, tests: {counts}; {len(names)} end another way", flush=True)
        for name in sorted(n for n, end in unwatched.items() if end == "error"):
            print(
                f"  {name}: error unwatched; it may need a package that is not here, such as JAX", flush=True
            )
        for name in names:
            print(f"  {name}: {unwatched.get(name)} unwatched, {watched.get(name)} watched", flush=True)
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
