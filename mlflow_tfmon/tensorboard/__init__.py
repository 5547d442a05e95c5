"""TensorBoard's event files: written from what was recorded, and read into MLflow runs. Needs no TensorFlow."""
