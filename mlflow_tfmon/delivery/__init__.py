"""The process that brings MLflow up to a journal, and the trainer's handle on it."""
