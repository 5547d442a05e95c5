"""Several candidates, the best promoted in the model registry, loaded back by its alias, and served.

`registered_model_name` makes the best epoch of each training a version; of all these, the one with the highest
validation accuracy has the alias `best`. A person gives it the alias `champion`; `mlflow models serve` serves that.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import keras
import mlflow
import numpy as np

import mlflow_tfmon
from projects.shared.data import IMAGES, images
from projects.shared.parameters import Parameters, count
from projects.shared.pictures import draw_epochs, draw_finals, log, panels
from projects.shared.variants import conclude, parent_run, train_variants

CANDIDATES = {"4 units": 4, "16 units": 16, "128 units": 128}


def model_name(text: str) -> str:
    """Reads the name of a registered model.

    Raises:
        argparse.ArgumentTypeError: `text` is none.
    """
    if not text.strip() or set("/:") & set(text):
        raise argparse.ArgumentTypeError(f"must be a name without '/' and ':', not '{text}'")
    return text


def build(units: int, shape: tuple[int, ...]) -> keras.Model:
    hidden, logits = keras.layers.Dense(units, "relu", name="hidden"), keras.layers.Dense(10, name="logits")
    model = keras.Sequential([keras.Input(shape), keras.layers.Flatten(), hidden, logits], name="digits")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=["accuracy"])
    return model


def ask_server(model_uri: str, images: np.ndarray, patience: float = 240.0) -> np.ndarray:
    """Serves a model as `mlflow models serve` does, sends one request, and ends the server.

    Args:
        model_uri: such as "models:/digits@champion".
        images: what is asked about.
        patience: seconds to wait for the server.

    Raises:
        RuntimeError: the server ended, refused the request, or did not answer in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model_uri, "-p", str(port)]
    # The server finds this environment's programs although it may not be activated.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()}
    server = subprocess.Popen(
        [*command, "--env-manager", "local", "-w", "1"], env=environment, start_new_session=True
    )
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        json.dumps({"inputs": images.tolist()}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        until = time.monotonic() + patience
        while time.monotonic() < until and server.poll() is None:
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return np.array(json.load(answer)["predictions"])
            except urllib.error.HTTPError as refusal:
                raise RuntimeError(
                    f"The server answered {refusal.code}: {refusal.read().decode()}"
                ) from refusal
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.5)  # it is still starting
        raise RuntimeError(f"{' '.join(command)} did not answer within {patience:g} s.")
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # it and its worker
        server.wait(timeout=60)


def main() -> None:
    parameters = Parameters("projects.registry", __doc__)
    parameters.add("epochs", count, 20, quick=2)
    parameters.add("name", model_name, "tfmon-demo-digits")
    parameters.add("dataset", str, "digits", choices=IMAGES)
    args = parameters.read()
    digits = images(args.dataset)

    def train(variant: str) -> dict[str, float]:
        history = build(CANDIDATES[variant], digits.x.shape[1:]).fit(
            digits.x, digits.y, 32, args.epochs, validation_data=digits.validation, verbose=0
        )
        return {"val_accuracy": max(history.history["val_accuracy"])}

    mlflow_tfmon.autolog(monitor="val_accuracy", registered_model_name=args.name)
    with parent_run("registry"):
        results = train_variants(train, list(CANDIDATES))
        conclude(results)
        figure, (accuracies, finals) = panels(2)
        draw_epochs(accuracies, results, "val_accuracy")
        draw_finals(finals, results, "val_accuracy")
        log(figure, "registry")

        best = results.loc[results.val_accuracy.idxmax()]
        print(mlflow_tfmon.promote(best.run_id, alias="champion", name=args.name, force=True))
        uri = f"models:/{args.name}@champion"
        here = mlflow.pyfunc.load_model(uri).predict(digits.x_val[:5])
        served = ask_server(uri, digits.x_val[:5])
        mlflow.log_metric("served_difference", float(np.abs(served - here).max()))
        mlflow.log_params({"champion": best.variant, "champion_run": best.run_id})
        print(f"{uri} ({best.variant}) says {served.argmax(axis=1)}; right is {digits.y_val[:5]}")


if __name__ == "__main__":
    main()
