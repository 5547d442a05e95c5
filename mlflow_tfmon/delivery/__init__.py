"""The process that sends a journal to MLflow, and the trainer's handle on it."""
