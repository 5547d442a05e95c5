"""Ray: a training of two workers that Ray Train starts, and a search by Ray Tune: child runs of one parent.

The two workers train by `fit` of Keras 2, since that of Keras 3 fails with several workers; the trials of the search
are processes of their own, each with a run of its own.
"""

import os
import tempfile
from typing import Any

import mlflow
import pandas as pd

import mlflow_tfmon
from projects.shared.data import images
from projects.shared.parameters import Parameters, count
from projects.shared.pictures import log, panels
from projects.shared.variants import parent_run

RATES = [0.01, 0.1, 1.0]
BATCH = 64


def build(shape: tuple[int, ...], learning_rate: float) -> Any:
    """A classifier of Keras 2: what `tf.keras` is in Ray's workers."""
    import tensorflow as tf

    layers = tf.keras.layers
    hidden, logits = layers.Dense(64, "relu", name="hidden"), layers.Dense(10, name="logits")
    model = tf.keras.Sequential([tf.keras.Input(shape), layers.Flatten(), hidden, logits], name="digits")
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(tf.keras.optimizers.SGD(learning_rate), loss, metrics=["accuracy"])
    return model


def watch(config: dict[str, Any], name: str) -> None:
    """What makes a run of Ray's worker a child of the demo's."""
    mlflow.set_tracking_uri(config["store"])
    mlflow.set_experiment(experiment_id=config["experiment"])
    mlflow_tfmon.autolog(extra_tags={"mlflow.parentRunId": config["parent"], "mlflow.runName": name})


def train(config: dict[str, Any]) -> None:
    """On each of the two workers: watched on each, recorded in the run that the chief makes."""
    import tensorflow as tf

    strategy = (
        tf.distribute.MultiWorkerMirroredStrategy()
    )  # first: by it a worker knows whether it is the chief
    watch(config, "two workers")
    digits = images("digits")
    with strategy.scope():
        model = build(digits.x.shape[1:], 0.1)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    batches = tf.data.Dataset.from_tensor_slices((digits.x, digits.y)).shuffle(2000, seed=1).repeat()
    steps = len(digits.x) // BATCH
    model.fit(
        batches.batch(BATCH).with_options(options), epochs=config["epochs"], steps_per_epoch=steps, verbose=0
    )


def trial(config: dict[str, Any]) -> None:
    """One trial of the search: an ordinary training."""
    from ray import tune

    watch(config, f"learning rate {config['learning_rate']:g}")
    digits = images("digits")
    model = build(digits.x.shape[1:], config["learning_rate"])
    history = model.fit(
        digits.x, digits.y, BATCH, config["epochs"], validation_data=digits.validation, verbose=0
    )
    tune.report({"val_accuracy": max(history.history["val_accuracy"])})


def main() -> None:
    parameters = Parameters("projects.ray", __doc__)
    parameters.add("epochs", count, 20, quick=2)
    args = parameters.read()
    try:
        import ray.train.tensorflow
        from ray import tune
    except ImportError:
        parameters.error("Ray is not installed: pip install 'mlflow-tfmon[ray]'")

    os.environ["TF_USE_LEGACY_KERAS"] = "1"  # before Ray starts what its workers come of
    with parent_run("ray") as run, tempfile.TemporaryDirectory() as folder:
        # Within the run: MLFLOW_RUN_ID, by which `mlflow run` names it, is in the environment no more.
        ray.init(num_cpus=2, include_dashboard=False)
        given = {
            "store": mlflow.get_tracking_uri(), "experiment": run.info.experiment_id, "parent": run.info.run_id,
            "epochs": args.epochs,
        }  # fmt: skip
        ray.train.tensorflow.TensorflowTrainer(
            train,
            train_loop_config=given,
            scaling_config=ray.train.ScalingConfig(num_workers=2),
            run_config=ray.train.RunConfig(storage_path=folder),
        ).fit()
        found = tune.Tuner(
            trial,
            param_space={**given, "learning_rate": tune.grid_search(RATES)},
            tune_config=tune.TuneConfig(metric="val_accuracy", mode="max"),
            run_config=tune.RunConfig(storage_path=folder),
        ).fit()
        table = found.get_dataframe()[["config/learning_rate", "val_accuracy"]]
        table.columns = pd.Index(["learning_rate", "val_accuracy"])
        mlflow.log_table(table, "comparison.json")
        mlflow.log_metric("best_val_accuracy", float(table.val_accuracy.max()))
        print(f"\n{table.to_string(index=False)}\n")

        (workers,) = mlflow.search_runs(
            [run.info.experiment_id],
            f"tags.mlflow.parentRunId = '{run.info.run_id}' and tags.mlflow.runName = 'two workers'",
            output_format="list",
        )
        steps = mlflow_tfmon.load_run(workers.info.run_id).steps
        figure, (loss, times, accuracies) = panels(3)
        steps.loss.plot(ax=loss, title="loss, two workers", logy=True, linewidth=0.7)
        own = [f"worker_{index}/step_time_ms" for index in range(2)]
        steps[own][2:].plot(ax=times, title="step time of each worker, ms", linewidth=0.7)
        accuracies.semilogx(table.learning_rate, table.val_accuracy, "o")
        accuracies.set(title="validation accuracy of each trial", xlabel="learning rate", ylim=(0, 1.02))
        log(figure, "ray")


if __name__ == "__main__":
    main()
