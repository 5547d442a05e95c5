"""How `mlflow-tfmon run` watches a script that knows nothing of it: the folder that it puts on the script's path."""
