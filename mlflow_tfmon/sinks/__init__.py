"""Sinks: destinations of a recording beside MLflow while it is delivered; their interface, and how they are found."""
