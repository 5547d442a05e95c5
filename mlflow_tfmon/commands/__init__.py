"""The subcommands of `mlflow-tfmon`, one per module: each has a click command named `command`.

What a command needs is imported in its function, so that `mlflow-tfmon --help` is quick.
"""
