"""From what was measured to the points and files that MLflow gets."""
