"""The subcommands of `mlflow-tfmon`, one per module: each has a click command named `command`.

A command imports what it needs in its function, so that `mlflow-tfmon --help` is quick.
"""
