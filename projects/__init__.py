"""The demos, a file each, which `mlflow run` runs as the entry points of MLproject."""
