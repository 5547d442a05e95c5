"""TensorBoard event files: written from a recording, and read into MLflow runs. Needs no TensorFlow."""
