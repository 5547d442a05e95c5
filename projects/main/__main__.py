"""Reads the parameters and trains: `python -m projects.main --epochs=20 --optimizer=adam`."""

from projects.parameters import Parameters, count, rate


def main() -> None:
    """Trains twice, by `fit` and by a custom loop, and prints what each came to."""
    parser = Parameters("projects.main", description="Train a classifier of handwritten digits, twice.")
    parser.add_argument("--epochs", type=count, default=20)
    parser.add_argument("--batch-size", type=count, default=32)
    parser.add_argument("--learning-rate", type=rate, default=1e-3)
    parser.add_argument("--optimizer", choices=("adam", "adamw", "rmsprop", "sgd"), default="adam")
    args = parser.parse_args()

    # TensorFlow takes seconds to load: only once the parameters are known to be good.
    from projects.main.train import train_both

    for how, accuracy in train_both(**vars(args)).items():
        print(f"{how}: validation accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()
