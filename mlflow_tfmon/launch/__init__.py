"""Folder that `mlflow-tfmon run` puts on the path of a script in order to monitor it unchanged."""
