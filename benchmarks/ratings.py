"""
Predicted ratings of MovieLens-100k and MovieLens-1M beside scikit-surprise's SVD.

From the repository root: ``python -m benchmarks.ratings [ml-100k] [ml-1m] [--validate]``. Settings are chosen with
``--validate``, which cuts the train part alone. scikit-surprise gets a virtual environment of its own, in the cache of
the package; it is compiled there.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rectools import Columns
from rectools.dataset import Dataset

from benchmarks import pointwise
from benchmarks.environment import Environment, ask_worker
from benchmarks.pointwise import Part, Task, Values, cut
from rectools_neural import load_dataset
from rectools_neural.datasets import _cache_folder

WORKER = Path(__file__).with_name("surprise_worker.py")
ENVIRONMENT = Environment(
    package="scikit-surprise==1.1.4",
    requirements=("numpy<2", "scipy", "joblib"),  # with a newer numpy it does not load
)
TEST_SHARE = 0.1
LOWEST, HIGHEST = 1.0, 5.0


class SurpriseSVD:
    """
    The SVD of scikit-surprise with its defaults: 100 factors, 20 epochs, biases.

    Parameters
    ----------
    seed : int
        Its `random_state`.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def fit(self, dataset: Dataset) -> SurpriseSVD:
        """Make the environment; the model lives there from its fit to its predictions."""
        self.python = ENVIRONMENT.make(_cache_folder() / "surprise-venv")
        return self

    def predict_pairs(self, pairs: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
        """
        Train and predict.

        Parameters
        ----------
        pairs : pd.DataFrame
            Columns `user_id`, `item_id`.
        dataset : Dataset
            What to train on, ratings as weights.

        Returns
        -------
        pd.DataFrame
            `pairs` with the column `score`.
        """
        rated = [*Columns.UserItem, Columns.Weight]
        with tempfile.TemporaryDirectory(prefix="surprise-") as name:
            folder = Path(name)
            dataset.get_raw_interactions().to_csv(folder / "train.csv", columns=rated, header=False, index=False)
            pairs.to_csv(folder / "pairs.csv", columns=list(Columns.UserItem), header=False, index=False)
            request = {"train": "train.csv", "pairs": "pairs.csv", "scale": [LOWEST, HIGHEST], "seed": self.seed}
            scores = ask_worker(self.python, WORKER, request, folder, torch.get_num_threads())
        return pairs.assign(**{Columns.Score: scores})


def errors(ratings: Values, scores: Values) -> dict[str, float]:
    """
    Measure how far predicted ratings are from the true ones.

    Parameters
    ----------
    ratings : np.ndarray
        The true ones.
    scores : np.ndarray
        The predicted ones; those outside the scale are moved to its ends, as scikit-surprise does.

    Returns
    -------
    dict
        RMSE and MAE.
    """
    difference = np.clip(scores, LOWEST, HIGHEST) - ratings
    return {"RMSE": float(np.sqrt(np.mean(difference**2))), "MAE": float(np.abs(difference).mean())}


def split(name: str, seed: int, validate: bool) -> Part:
    """
    Hold out a tenth of the ratings at random; for validation a tenth of the others.

    Parameters
    ----------
    name : str
        Name of the data.
    seed : int
        Draws the rows.
    validate : bool
        Whether to leave the test part alone.

    Returns
    -------
    Part
        The validation train part has 81 % of the ratings.
    """
    dataset = _load(name)
    draws = np.random.default_rng(seed).random((2, len(dataset.interactions.df)))
    test, validation = draws < TEST_SHARE
    return cut(dataset, ~test & ~validation, ~test & validation) if validate else cut(dataset, ~test, test)


@functools.cache
def _load(name: str) -> Dataset:
    return load_dataset(name)


TASKS = {
    name: Task(
        name=name,
        title=f"{title}, random 90/10",
        seeds=(0, 1, 2),
        split=partial(split, name),
        metrics=errors,
        definitions="root of the mean squared error and mean absolute error of all test ratings whose user and item "
        f"have ratings in the train part, predictions moved into the scale of 1 to 5; {ENVIRONMENT.package}",
        largest_first=False,
    )
    for name, title in (("ml-100k", "MovieLens-100k"), ("ml-1m", "MovieLens-1M"))
}


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run the command line.

    Parameters
    ----------
    arguments : Sequence of str, optional
        Arguments; those of the process by default.
    """
    pointwise.main("ratings", (__doc__ or "").split("\n\n")[0], TASKS, arguments)


if __name__ == "__main__":
    main()
