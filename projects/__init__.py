"""The demos, one per file: entry points of MLproject for `mlflow run`."""
