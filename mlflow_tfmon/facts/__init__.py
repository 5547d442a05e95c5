"""What is known of a `fit` besides its numbers: arguments, model, datasets, early stopping, the model saved.

Everything here makes records (`mlflow_tfmon.stream.records`) or plain data; nothing talks to MLflow's server, and
nothing takes a random number, advances an iterator or changes a model.
"""
