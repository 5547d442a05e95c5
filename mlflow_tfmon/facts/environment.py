"""Environment of a training (versions, platform, devices) and the command that started it, each in one line."""

from __future__ import annotations

import os
import platform
import shlex
import sys

import keras
import mlflow
import tensorflow as tf

import mlflow_tfmon
from mlflow_tfmon.uris import without_secrets


def environment() -> str:
    """Versions and devices, such as "Python 3.11.4, TensorFlow 2.21.0, …, 8 CPUs, 1 GPU (NVIDIA H200)"."""
    gpus = [tf.config.experimental.get_device_details(d) for d in tf.config.list_physical_devices("GPU")]
    names = ", ".join(sorted({str(details.get("device_name", "GPU")) for details in gpus}))
    parts = [
        f"Python {platform.python_version()}",
        f"TensorFlow {tf.__version__}",
        f"Keras {keras.__version__}",
        f"MLflow {mlflow.__version__}",
        f"mlflow-tfmon {mlflow_tfmon.__version__}",
        f"{platform.system()} {platform.machine()}",
        f"{os.cpu_count()} CPUs",
    ]
    return ", ".join(parts + ([f"{len(gpus)} GPU ({names})"] if gpus else []))


def command() -> str:
    """The command line of this process, without secrets, such as "train.py --lr 0.1"; "" in a notebook or a shell."""
    given = sys.orig_argv[1:]
    if not given or given[0] == "-c" or "ipykernel" in sys.modules:
        return ""
    return without_secrets(shlex.join(given))
