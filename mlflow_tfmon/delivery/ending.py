"""Environments that end every process when the script ends, delivery too: containers, job managers, CI services."""

from __future__ import annotations

import os
from collections.abc import Mapping

import psutil

from mlflow_tfmon.delivery.process import DeliveryProcess
from mlflow_tfmon.errors import logger

PATIENCE_SECONDS = 600.0  # limit for an exit that would end delivery too
_SILENCE_SECONDS = 2.0
# What says, in the environment, who kills what is left of a script when it is over.
_LAUNCHERS = {
    "KUBERNETES_SERVICE_HOST": "Kubernetes",
    "SLURM_JOB_ID": "SLURM",
    "PBS_JOBID": "PBS",
    "LSB_JOBID": "LSF",
    "SGE_TASK_ID": "Grid Engine",
    "TF_CONFIG": "a cluster's launcher (TF_CONFIG)",
    "TRAINING_JOB_NAME": "SageMaker",
    "SM_TRAINING_ENV": "SageMaker",
    "CLOUD_ML_JOB_ID": "Vertex AI",
    "AZUREML_RUN_ID": "Azure ML",
    "AWS_BATCH_JOB_ID": "AWS Batch",
    "CI": "a CI job",
}
_RAY = ("RAY_JOB_ID", "RAY_RAYLET_PID")  # which its workers have, and its drivers have not (2.9 to 2.60)
# The first process of a machine, which goes on; that of a container is its program, or what waits for that.
_INITS = frozenset({"systemd", "init", "launchd", "openrc-init", "runit", "procd"})


def of_training(environment: Mapping[str, str] = os.environ) -> str | None:
    """Returns what kills all processes, including the script's, when a training is over; None if nothing does."""
    return "Ray" if all(name in environment for name in _RAY) else None


def of_script(environment: Mapping[str, str] = os.environ) -> str | None:
    """Returns what kills all other processes when a script is over; None if nothing does.

    Example:
        >>> of_script({"SLURM_JOB_ID": "7"})
        'SLURM'
    """
    found = of_training(environment) or next(
        (who for name, who in _LAUNCHERS.items() if name in environment), None
    )
    if found is None and environment.get("SYSTEMD_EXEC_PID") == str(os.getpid()):
        found = "systemd"
    return found or ("the container" if _is_of_a_container() else None)


def wait(patience: float | None, who: str | None) -> None:
    """Waits at an exit until everything that can be delivered is, including reports; logs if that takes long.

    Args:
        patience: seconds; None for `PATIENCE_SECONDS` where somebody kills what is left, else none.
        who: who that is.
    """
    seconds = PATIENCE_SECONDS if patience is None and who else patience or 0.0
    if DeliveryProcess.finish(min(seconds, _SILENCE_SECONDS)) or not seconds:
        return
    why = f"since {who} ends all processes when this one exits" if who else "as set by exit_wait"
    logger.info("mlflow_tfmon: waiting, %s, until MLflow has everything: at most %.0f s.", why, seconds)
    if not DeliveryProcess.finish(seconds - _SILENCE_SECONDS):
        logger.warning(
            "mlflow_tfmon: not everything is in MLflow after %.0f s; `mlflow-tfmon sync` delivers the rest, if "
            "this machine's disk is still available.",
            seconds,
        )


def _is_of_a_container() -> bool:
    """Whether the script is, or was started by, the first process of a container; not so what `docker exec` starts."""
    if os.getpid() == 1:
        return True
    try:
        parents = psutil.Process().parents()
        return bool(parents) and parents[-1].pid == 1 and parents[-1].name() not in _INITS
    except (psutil.Error, OSError):
        return False
