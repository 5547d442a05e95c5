"""Command line of the main project: `python -m projects.main --epochs=20 --optimizer=adam`."""

from projects.shared.parameters import Parameters, count, rate


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
    from projects.main.train import train_both

    train_both(args.epochs, args.batch_size, args.learning_rate, args.optimizer, args.dataset)


if __name__ == "__main__":
    main()
