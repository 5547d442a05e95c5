"""Comparison of variants of a training: a child run for each variant and seed, the results in their parent."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import mlflow
import pandas as pd

import mlflow_tfmon


@contextmanager
def parent_run(name: str) -> Iterator[mlflow.ActiveRun]:
    """The run of a demo: under `mlflow run` the project's own, which so gets a name that says what it is."""
    with mlflow.start_run(run_name=name) as run:
        mlflow.set_tag("mlflow.runName", name)
        yield run


def train_variants(
    train: Callable[[str], Mapping[str, float]], variants: Sequence[str], seeds: int = 1
) -> pd.DataFrame:
    """Trains each variant in a child run of its own, once for each seed.

    Args:
        train: trains the variant of that name and returns the numbers that it came to.
        variants: their names.
        seeds: how many seeds, 1, 2, …, each is trained with.

    Returns:
        A row per variant and seed: variant, seed, run_id, and the numbers.

    Example:
        >>> with parent_run("regularization"):
        ...     results = train_variants(train, ["none", "dropout"], seeds=3)
        ...     conclude(results)
    """
    rows: list[dict[str, Any]] = []
    for variant in variants:
        for seed in range(1, seeds + 1):
            keras.utils.clear_session()  # layers and optimizers begin to be counted anew: the same names in each run
            keras.utils.set_random_seed(seed)
            name = variant if seeds == 1 else f"{variant}, seed {seed}"
            print(f"training {len(rows) + 1} of {len(variants) * seeds}: {name}", flush=True)
            with mlflow.start_run(run_name=name, nested=True) as run:
                mlflow.log_params({"variant": variant, "seed": seed})
                numbers = train(variant)
            rows.append({"variant": variant, "seed": seed, "run_id": run.info.run_id, **numbers})
    return pd.DataFrame(rows)


def conclude(results: pd.DataFrame, part: str = "") -> pd.DataFrame:
    """Logs the comparison to the active run, and prints it.

    The means over the seeds become metrics such as `val_accuracy_dropout`; all rows the table `comparison.json`; the
    curves of the first seed's runs, laid over one another, `tfmon/comparison.html`.

    Args:
        results: as `train_variants` returns them.
        part: what precedes "comparison" in these names, where a demo compares several things.

    Returns:
        The means over the seeds, a row per variant.
    """
    means = results.drop(columns=["seed", "run_id"]).groupby("variant", sort=False).mean()
    mlflow.log_metrics(
        {
            f"{name}_{key(variant)}": float(means.loc[variant, name])
            for variant in means.index
            for name in means
        }
    )
    name = f"{part}_comparison" if part else "comparison"
    mlflow.log_table(results, f"{name}.json")
    first = results[results.seed == results.seed.min()]
    if len(first) > 1:
        mlflow.log_text(mlflow_tfmon.compare(list(first.run_id)), f"tfmon/{name}.html")
    print(f"\n{means.to_string(float_format='{:.4g}'.format)}\n")
    return means


def key(variant: str) -> str:
    """A variant's name as part of a metric's: "L1 and L2" becomes "l1_and_l2"."""
    return re.sub(r"\W+", "_", variant.lower()).strip("_")
