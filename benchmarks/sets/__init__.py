"""Training configurations for `benchmarks.detection`: the sets used in development, and the held-out set."""
