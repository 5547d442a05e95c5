"""The best and the last of a training, kept in MLflow, and the model registry."""
