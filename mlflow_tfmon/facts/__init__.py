"""Facts about a `fit` besides its numbers: arguments, model, datasets, early stopping, the saved model.

Everything here makes records (`mlflow_tfmon.stream.records`) or plain data; nothing talks to MLflow's server, and
nothing takes a random number, advances an iterator or changes a model.
"""
