"""The command as a module: `python -m mlflow_tfmon` is `mlflow-tfmon`."""

import sys

from mlflow_tfmon.cli import main

if __name__ == "__main__":
    sys.exit(main())
