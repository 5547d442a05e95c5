"""The demos: one folder each, run by `mlflow run` as the entry points of MLproject."""
