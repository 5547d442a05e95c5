"""Where a recording goes beside MLflow, while it is delivered: the interface of sinks, and how they are found."""
