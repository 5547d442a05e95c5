"""The report: recordings of one or several runs as an HTML page. Imports MLflow, but not TensorFlow."""
