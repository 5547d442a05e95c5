"""What several demos need: parameters, data sets, a parent run with its variants, pictures."""

import os

# A bar for each file that is read back would fill the demos' output.
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
