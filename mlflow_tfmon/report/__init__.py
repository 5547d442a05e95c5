"""The report: what was recorded of a run, or of several, as one HTML page. Knows records and MLflow, no TensorFlow."""
