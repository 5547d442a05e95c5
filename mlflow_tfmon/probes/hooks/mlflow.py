"""Hooks into MLflow (3.1 to 3.17) besides `fit`, which its own autologging patches for us."""

from __future__ import annotations

from dataclasses import replace

from mlflow_tfmon.probes.hooks import Hook, Wrap

_RUN_ENDS = Hook("mlflow.MlflowClient.set_terminated", "a run's last steps may be missing")
# Only `mlflow.start_run` makes one, of new runs and known ones, just before the run is active.
_RUN_STARTS = Hook("mlflow.ActiveRun.__init__", "steps may go to a run that is not theirs")

_LAST_MODEL = Hook("mlflow.last_logged_model", "it does not know the models of watched fits")


def last_model(wrap: Wrap) -> Hook:
    """The hook of what knows the model that was logged last."""
    return replace(_LAST_MODEL, wrap=wrap)


def run_ends(wrap: Wrap) -> Hook:
    """The hook of what ends a run."""
    return replace(_RUN_ENDS, wrap=wrap)


def run_starts(wrap: Wrap) -> Hook:
    """The hook of what makes a run the active one."""
    return replace(_RUN_STARTS, wrap=wrap)
