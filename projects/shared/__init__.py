"""What is not being shown by the demos: their parameters, data sets, a parent run with its variants, plots."""

import os

# A bar for each file that is read back would fill the demos' output.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# They draw what has arrived in MLflow, which on a busy machine takes longer than the 15 s that a training's end waits.
os.environ.setdefault("MLFLOW_TFMON_DELIVERY_WAIT", "120")
