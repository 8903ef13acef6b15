"""
Probabilities of clicks on a small sample of Criteo's log, and of liking a film of MovieLens-1M.

From the repository root: ``python -m benchmarks.clicks [criteo] [ml-1m] [--validate]``. Settings are chosen with
``--validate``, which cuts the train part alone.
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rectools import Columns
from rectools.dataset import Dataset
from scipy import sparse
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder, StandardScaler
from torch import nn
from torch.nn import functional as F

from benchmarks import pointwise
from benchmarks.pointwise import Part, Task, Values, cut
from rectools_neural import load_dataset
from rectools_neural.datasets import _default_places

NUMBERS = tuple(f"I{i}" for i in range(1, 14))
CATEGORIES = tuple(f"C{i}" for i in range(1, 27))
RARE = 10  # categories with fewer train rows are one
N_FOLDS = 5
CLICK_THRESHOLD = 0.5  # of a label that is 0 or 1
LIKE_THRESHOLD = 3.5  # of a rating without 3
MOST_CATEGORIES = 255  # that the boosting takes in a column


def probability_metrics(weights: Values, scores: Values, threshold: float) -> dict[str, float]:
    """
    Measure probabilities.

    Parameters
    ----------
    weights : np.ndarray
        Those above the threshold are positive.
    scores : np.ndarray
        Probabilities to be positive.
    threshold : float
        The threshold.

    Returns
    -------
    dict
        Area under the ROC curve and log loss.
    """
    positive = weights > threshold
    return {"AUC": float(roc_auc_score(positive, scores)), "log loss": float(log_loss(positive, scores))}


# ---------------------------------------------------------------------- Criteo


def read_criteo(places: Sequence[Path]) -> pd.DataFrame:
    """
    Read the sample.

    Parameters
    ----------
    places : sequence of Path
        Where its folder may be, in order.

    Returns
    -------
    pd.DataFrame
        Columns `label`, `NUMBERS` (floats with gaps) and `CATEGORIES` (texts, a gap is an empty one).

    Raises
    ------
    FileNotFoundError
        If it is in none of them.
    """
    paths = [place / "criteo-kaggle-head8000" / "criteo.csv" for place in places]
    for path in paths:
        if path.is_file():
            types: dict[str, Any] = {"label": float, **dict.fromkeys(NUMBERS, float), **dict.fromkeys(CATEGORIES, str)}
            rows = pd.read_csv(path, usecols=list(types), dtype=types)
            return rows.fillna(dict.fromkeys(CATEGORIES, ""))
    raise FileNotFoundError(
        f"Criteo's sample is not in {', '.join(map(str, paths))}, and this benchmark does not download it: put the "
        "first 8 000 rows of train.txt of Kaggle's Display Advertising Challenge there, as a table with the columns "
        "label, I1 to I13, C1 to C26."
    )


def prepare_criteo(rows: pd.DataFrame, train: np.ndarray) -> pd.DataFrame:
    """
    Make columns that all models take: what is learnt from the data is learnt from the train rows.

    Parameters
    ----------
    rows : pd.DataFrame
        From `read_criteo`.
    train : np.ndarray
        Whether a row is of the train part, shape (n_rows,).

    Returns
    -------
    pd.DataFrame
        Logarithms of the numbers; categories, the rare ones as one; interactions of one user
        with one item, with the label as their weight.
    """
    numbers = rows[list(NUMBERS)].clip(lower=0).transform(np.log1p)
    categories = rows[list(CATEGORIES)].copy()
    for column in CATEGORIES:
        counts = categories.loc[train, column].value_counts()
        categories[column] = categories[column].where(categories[column].isin(counts.index[counts >= RARE]), "rare")
    ids = {Columns.User: 0, Columns.Item: 0, Columns.Weight: rows["label"], Columns.Datetime: pd.Timestamp(0)}
    return pd.concat([pd.DataFrame(ids), numbers, categories], axis=1)


def split_criteo(fold: int, validate: bool) -> Part:
    """
    Take one of five folds as the test part; for validation an eighth of the other four.

    Parameters
    ----------
    fold : int
        Which fold.
    validate : bool
        Whether to leave the test part alone.

    Returns
    -------
    Part
        Folds have the same share of clicks.
    """
    rows = read_criteo(_default_places())
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=0).split(rows, rows["label"])
    train, test = list(folds)[fold]
    if validate:
        train, test = train_test_split(train, test_size=1 / 8, stratify=rows["label"].iloc[train], random_state=fold)
    in_train, in_test = (np.isin(np.arange(len(rows)), part) for part in (train, test))
    return cut(Dataset.construct(prepare_criteo(rows, in_train), keep_extra_cols=True), in_train, in_test)


class TableClassifier:
    """
    A classifier of scikit-learn over the columns of the Criteo sample.

    Parameters
    ----------
    classifier : object
        Pipeline from columns to probabilities.
    """

    def __init__(self, classifier: Any) -> None:
        self.classifier = classifier

    def fit(self, dataset: Dataset) -> TableClassifier:
        """Learn which interactions have a weight above the threshold."""
        rows = dataset.get_raw_interactions(include_extra_cols=True)
        self.classifier.fit(rows, rows[Columns.Weight] > CLICK_THRESHOLD)
        return self

    def predict_pairs(self, pairs: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
        """Append the probabilities as the column `score`."""
        return pairs.assign(**{Columns.Score: self.classifier.predict_proba(pairs)[:, 1]})


def table_logistic(strength: float) -> TableClassifier:
    """
    Make a logistic regression on logarithms, on whether there is a number, and on categories.

    Parameters
    ----------
    strength : float
        Inverse of the L2 penalty.

    Returns
    -------
    TableClassifier
        The model.
    """
    one_hot = OneHotEncoder(handle_unknown="ignore")
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(StandardScaler(), SimpleImputer(strategy="mean")), list(NUMBERS)),
            ("gaps", FunctionTransformer(pd.isna), list(NUMBERS)),
            ("categories", one_hot, list(CATEGORIES)),
        ]
    )
    return TableClassifier(make_pipeline(columns, LogisticRegression(C=strength, max_iter=1000)))


def table_boosting(learning_rate: float, max_iter: int, max_leaf_nodes: int, seed: int) -> TableClassifier:
    """
    Make a gradient boosting of trees on the same columns.

    Parameters
    ----------
    learning_rate, max_iter, max_leaf_nodes
        As scikit-learn has them.
    seed : int
        Its `random_state`.

    Returns
    -------
    TableClassifier
        The model.
    """
    ordinal = OrdinalEncoder(
        handle_unknown="use_encoded_value", unknown_value=np.nan, max_categories=MOST_CATEGORIES, dtype=np.float64
    )
    columns = ColumnTransformer([("categories", ordinal, list(CATEGORIES)), ("numbers", "passthrough", list(NUMBERS))])
    boosting = HistGradientBoostingClassifier(
        learning_rate=learning_rate,
        max_iter=max_iter,
        max_leaf_nodes=max_leaf_nodes,
        categorical_features=np.arange(len(CATEGORIES)),
        early_stopping=False,
        random_state=seed,
    )
    return TableClassifier(make_pipeline(columns, boosting))


# ---------------------------------------------------------------------- MovieLens-1M


def split_likes(seed: int, validate: bool) -> Part:
    """
    Cut the ratings other than 3 at random 8:1:1; the train part is the same for validation and test.

    Parameters
    ----------
    seed : int
        Draws the rows.
    validate : bool
        Whether to ask the validation tenth.

    Returns
    -------
    Part
        Ratings as weights; features of users and items.
    """
    dataset = _load()
    place = np.random.default_rng(seed).permutation(len(dataset.interactions.df)) / len(dataset.interactions.df)
    return cut(dataset, place < 0.8, (place >= 0.8) & (place < 0.9) if validate else place >= 0.9)


@functools.cache
def _load() -> Dataset:
    dataset = load_dataset("ml-1m")
    return dataset.filter_interactions(np.flatnonzero(dataset.interactions.df[Columns.Weight] != 3))


class OneHotModel:
    """A model of one-hot ids and the features of user and item, stacked."""

    def fit(self, dataset: Dataset) -> OneHotModel:
        """Learn which interactions have a weight above the threshold."""
        rows = dataset.interactions.df
        self._fit(self._columns(rows[Columns.UserItem], dataset), (rows[Columns.Weight] > LIKE_THRESHOLD).to_numpy())
        return self

    def predict_pairs(self, pairs: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
        """Append the probabilities as the column `score`."""
        ids = {
            Columns.User: dataset.user_id_map.convert_to_internal(pairs[Columns.User]),
            Columns.Item: dataset.item_id_map.convert_to_internal(pairs[Columns.Item]),
        }
        return pairs.assign(**{Columns.Score: self._predict(self._columns(pd.DataFrame(ids), dataset))})

    @staticmethod
    def _columns(pairs: pd.DataFrame, dataset: Dataset) -> sparse.csr_matrix:
        parts = []
        for column, id_map, features in (
            (Columns.User, dataset.user_id_map, dataset.user_features),
            (Columns.Item, dataset.item_id_map, dataset.item_features),
        ):
            entities = [sparse.identity(id_map.size, format="csr")]
            entities += [features.get_sparse()] if features is not None else []
            parts.append(sparse.hstack(entities, format="csr")[pairs[column].to_numpy()])
        return sparse.hstack(parts, format="csr", dtype=np.float32)

    @abstractmethod
    def _fit(self, columns: sparse.csr_matrix, positive: np.ndarray) -> None:
        """Learn from rows of columns."""

    @abstractmethod
    def _predict(self, columns: sparse.csr_matrix) -> np.ndarray:
        """Give each row of columns its probability."""


class OneHotLogistic(OneHotModel):
    """
    Logistic regression.

    Parameters
    ----------
    strength : float
        Inverse of the L2 penalty.
    """

    def __init__(self, strength: float) -> None:
        self.classifier = LogisticRegression(C=strength, max_iter=1000)

    def _fit(self, columns: sparse.csr_matrix, positive: np.ndarray) -> None:
        self.classifier.fit(columns, positive)

    def _predict(self, columns: sparse.csr_matrix) -> np.ndarray:
        return np.asarray(self.classifier.predict_proba(columns)[:, 1])


class FactorizationMachine(OneHotModel):
    """
    Factorisation machine (Rendle 2010) with all pairs of columns, trained by Adam.

    Parameters
    ----------
    n_factors : int
        Size of the vectors.
    epochs, batch_size : int
        Passes over the rows, and rows in a batch.
    learning_rate, l2 : float
        Of Adam; the decay is decoupled.
    seed : int
        Of the first values and the order of the rows.
    """

    def __init__(
        self, n_factors: int, epochs: int, batch_size: int, learning_rate: float, l2: float, seed: int
    ) -> None:
        self.n_factors = n_factors
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.l2 = l2
        self.seed = seed

    def _fit(self, columns: sparse.csr_matrix, positive: np.ndarray) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        # The last of the numbers of a column is its weight, the others are its vector.
        self.table = nn.Parameter(0.01 * torch.randn(columns.shape[1], self.n_factors + 1, generator=generator))
        self.bias = nn.Parameter(torch.zeros(()))
        optimizer = torch.optim.AdamW([self.table, self.bias], lr=self.learning_rate, weight_decay=self.l2)
        labels = torch.from_numpy(positive.astype(np.float32))
        for _ in range(self.epochs):
            for batch in torch.randperm(len(labels), generator=generator).split(self.batch_size):
                optimizer.zero_grad()
                logits = self._logits(columns[batch.numpy()])
                F.binary_cross_entropy_with_logits(logits, labels[batch]).backward()
                optimizer.step()

    def _predict(self, columns: sparse.csr_matrix) -> np.ndarray:
        with torch.no_grad():
            return torch.sigmoid(self._logits(columns)).numpy()

    def _logits(self, columns: sparse.csr_matrix) -> torch.Tensor:
        indices, starts = (torch.from_numpy(part.astype(np.int64)) for part in (columns.indices, columns.indptr[:-1]))
        values = torch.from_numpy(columns.data)
        sums = F.embedding_bag(indices, self.table, starts, mode="sum", per_sample_weights=values)
        squares = F.embedding_bag(indices, self.table[:, :-1] ** 2, starts, mode="sum", per_sample_weights=values**2)
        return self.bias + sums[:, -1] + (sums[:, :-1] ** 2 - squares).sum(dim=1) / 2


TASKS = {
    "criteo": Task(
        name="criteo",
        title=f"Criteo, the first 8 000 rows of the Kaggle challenge (a small sample), {N_FOLDS} folds",
        seeds=tuple(range(N_FOLDS)),
        split=split_criteo,
        metrics=functools.partial(probability_metrics, threshold=CLICK_THRESHOLD),
        definitions="area under the ROC curve and log loss",
        largest_first=True,
    ),
    "ml-1m": Task(
        name="ml-1m",
        title="MovieLens-1M without ratings of 3, a rating of 4 or 5 is positive, random 8:1:1, features of users and "
        "items (context protocol of RecBole)",
        seeds=(0, 1, 2),
        split=split_likes,
        metrics=functools.partial(probability_metrics, threshold=LIKE_THRESHOLD),
        definitions="area under the ROC curve and log loss of all test rows whose user and item have train rows",
        largest_first=True,
    ),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run the command line.

    Parameters
    ----------
    arguments : Sequence of str, optional
        Arguments; those of the process by default.
    """
    pointwise.main("clicks", (__doc__ or "").split("\n\n")[0], TASKS, arguments)


if __name__ == "__main__":
    main()
