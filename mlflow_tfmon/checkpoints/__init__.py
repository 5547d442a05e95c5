"""Checkpoints in MLflow (the best model of a training and its last), and the model registry."""
