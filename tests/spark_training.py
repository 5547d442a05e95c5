"""A training that Databricks' runner starts as tasks of Spark; run by `tests.promises.test_databricks`.

python -m tests.spark_training FOLDER
"""

from __future__ import annotations

import json
import os
import runpy
import sys

from pyspark.sql import SparkSession
from spark_tensorflow_distributor import MirroredStrategyRunner


def train(folder: str) -> None:
    """On each worker, for which the runner has set TF_CONFIG."""
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    sys.argv = ["", folder, "resumable", str(index)]
    runpy.run_module("tests.workers", run_name="__main__")


if __name__ == "__main__":
    spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    from tests import spark_training  # by its own name, under which a task finds it

    runner = MirroredStrategyRunner(num_slots=2, use_gpu=False, use_custom_strategy=True)
    runner.run(spark_training.train, folder=sys.argv[1])
    spark.stop()
