"""Command line of the main project: `python -m projects.main --epochs=20 --optimizer=adam`."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from projects.shared.parameters import Parameters, count, rate

_NOISE = ("WARNING: All log messages before absl", "I0000 ", "To enable the following instructions")


def main() -> None:
    """Trains twice, by `fit` and by a custom loop."""
    parameters = Parameters("projects.main", "Train a classifier of handwritten digits, twice.")
    parameters.add("epochs", count, 20, quick=2)
    parameters.add("batch_size", count, 32)
    parameters.add("learning_rate", rate, 1e-3)
    parameters.add("optimizer", str, "adam", choices=("adam", "adamw", "rmsprop", "sgd"))
    parameters.add("dataset", str, "digits", choices=("digits", "mnist"))
    args = parameters.read()

    # TensorFlow takes seconds to load: only once the parameters are known to be good.
    with _without_noise():
        from projects.main.train import train_both

    train_both(args.epochs, args.batch_size, args.learning_rate, args.optimizer, args.dataset)


@contextmanager
def _without_noise() -> Iterator[None]:
    """Leaves out what TensorFlow (2.21) says of oneDNN and CUDA while it is loaded, whatever its log level."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            said.seek(0)
            lines = said.read().decode("utf-8", "replace").splitlines(keepends=True)
            sys.stderr.write("".join(line for line in lines if not line.startswith(_NOISE)))


if __name__ == "__main__":
    main()
