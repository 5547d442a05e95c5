"""A hyperparameter search with Optuna: each trial a monitored child run, hopeless ones ended by their problems.

`on_problem="stop"` ends a training at the end of the epoch in which it is sure of a critical problem (a loss that
diverges, a gradient that vanishes, …). Optuna learns of it as of a pruned trial.
"""

import keras
import mlflow
import optuna
import pandas as pd

import mlflow_tfmon
from projects.shared.data import IMAGES, images
from projects.shared.parameters import Parameters, count
from projects.shared.pictures import log, panels
from projects.shared.variants import parent_run

GUESSES = (  # to begin with: a sound one, and one that cannot learn
    {"learning_rate": 0.1, "activation": "relu", "layers": 2},
    {"learning_rate": 1000.0, "activation": "relu", "layers": 6},
)


def build(shape: tuple[int, ...], learning_rate: float, activation: str, layers: int) -> keras.Model:
    hidden = [keras.layers.Dense(32, activation, name=f"hidden{i + 1}") for i in range(layers)]
    logits = keras.layers.Dense(10, name="logits")
    model = keras.Sequential([keras.Input(shape), keras.layers.Flatten(), *hidden, logits], name="digits")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(learning_rate), loss, metrics=["accuracy"])
    return model


def main() -> None:
    parameters = Parameters("projects.hyperparameters", __doc__)
    parameters.add("trials", count, 15, quick=3)
    parameters.add("epochs", count, 20, quick=4)
    parameters.add("seed", count, 1)
    parameters.add("dataset", str, "digits", choices=IMAGES)
    args = parameters.read()
    digits = images(args.dataset)

    def objective(trial: optuna.Trial) -> float:
        keras.utils.clear_session()  # so that the optimizer has the same name in each run
        keras.utils.set_random_seed(args.seed)
        model = build(
            digits.x.shape[1:],
            trial.suggest_float("learning_rate", 1e-6, 1e3, log=True),
            trial.suggest_categorical("activation", ["relu", "sigmoid"]),
            trial.suggest_int("layers", 1, 8),
        )
        with mlflow.start_run(run_name=f"trial {trial.number}", nested=True) as run:
            mlflow.log_params(trial.params)
            history = model.fit(
                digits.x, digits.y, 32, args.epochs, validation_data=digits.validation, verbose=0
            )
        trial.set_user_attr("epochs", len(history.epoch))
        trial.set_user_attr("run_id", run.info.run_id)
        if len(history.epoch) < args.epochs:  # nothing else stops it
            raise optuna.TrialPruned
        return max(history.history["val_accuracy"])

    mlflow_tfmon.autolog(on_problem="stop", checkpoint=False)
    with parent_run("hyperparameters"):
        study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=args.seed))
        for guess in GUESSES:
            study.enqueue_trial(guess)
        study.optimize(objective, args.trials)

        rows = []
        for trial in study.trials:
            problems = mlflow_tfmon.load_run(trial.user_attrs["run_id"]).problems
            kinds = ",".join(problem.kind for problem in problems) or "none"
            pruned = trial.state == optuna.trial.TrialState.PRUNED
            rows.append(
                {
                    **trial.params,
                    **trial.user_attrs,
                    "val_accuracy": trial.value,
                    "pruned": pruned,
                    "problems": kinds,
                }
            )
        table = pd.DataFrame(rows)
        mlflow.log_table(table, "comparison.json")
        if len(table) > 1:
            mlflow.log_text(mlflow_tfmon.compare(list(table.run_id)), "tfmon/comparison.html")
        mlflow.log_params({f"best_{name}": value for name, value in study.best_params.items()})
        mlflow.log_metrics(
            {
                "best_val_accuracy": study.best_value,
                "trials_ended_early": int(table.pruned.sum()),
                "epochs_saved": int((args.epochs - table.epochs).sum()),
            }
        )
        print(f"\n{table.drop(columns='run_id').to_string(float_format='{:.3g}'.format)}\n")

        figure, (accuracies, epochs) = panels(2)
        done, ended = table[~table.pruned], table[table.pruned]
        accuracies.semilogx(done.learning_rate, done.val_accuracy, "o")
        accuracies.set(title="validation accuracy", xlabel="learning rate", ylim=(0, 1.02))
        epochs.semilogx(done.learning_rate, done.epochs, "o", label="trained to the end")
        epochs.semilogx(ended.learning_rate, ended.epochs, "rx", label="ended by a problem found")
        epochs.set(title="epochs of each trial", xlabel="learning rate", ylim=(0, None))
        epochs.legend(fontsize=8)
        accuracies.sharex(epochs)
        log(figure, "hyperparameters")


if __name__ == "__main__":
    main()
