"""User-based nearest neighbours: the classic baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from implicit.nearest_neighbours import NearestNeighboursScorer, normalize
from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveInt
from rectools import Columns
from rectools.dataset import Dataset
from scipy import sparse
from tqdm.auto import tqdm

from ..data.features import EncodedFeatures
from ..data.reader import DatasetReader, Items, Reading, Users
from ..errors import did_you_mean
from ..pretrained import StoredArrays
from ..ranking import MAX_SCORES, Ranker, Ranking, pick, rank
from .pack import PackModel, PackModelConfig, check_not_empty

SIMILARITIES = ["cosine", "tfidf", "bm25"]


def _check_similarity(value: Any) -> Any:
    if value not in SIMILARITIES:
        raise ValueError(f"unknown similarity `{value}`{did_you_mean(str(value), SIMILARITIES)}")
    return value


class UserKNNModelConfig(PackModelConfig):
    """Options of `UserKNNModel`; see there."""

    similarity: Annotated[Literal["cosine", "tfidf", "bm25"], BeforeValidator(_check_similarity)] = "bm25"
    n_neighbors: PositiveInt = 100
    k1: NonNegativeFloat = 100.0
    b: Annotated[float, Field(ge=0, le=1)] = 0.75
    normalise: bool = True


@dataclass(frozen=True)
class FittedUsers:
    """
    The users among whom neighbours are looked for.

    Parameters
    ----------
    config : UserKNNModelConfig
        The options.
    reader : DatasetReader
        Their ids and those of their items.
    interactions : csr_matrix
        Weights of their interactions, shape ``(n_users, n_items)``, float32.
    inverted : csr_matrix
        Their vectors by item, followed by empty rows where users outnumber items, shape
        ``(max(n_items, n_users), n_users)``, float64.
    idf : np.ndarray
        Inverse document frequency of each item, an item being a term and a user a document, shape ``(n_items,)``.
    mean_length : float
        Mean sum of the weights of a user.
    """

    config: UserKNNModelConfig
    reader: DatasetReader
    interactions: sparse.csr_matrix
    inverted: sparse.csr_matrix
    idf: np.ndarray
    mean_length: float


class NeighbourSearch:
    """
    Exact search for nearest neighbours among the fitted users.

    Parameters
    ----------
    fitted : FittedUsers
        Where to search.
    n_neighbors : int
        How many to find for each user.
    """

    def __init__(self, fitted: FittedUsers, n_neighbors: int) -> None:
        self._scorer = NearestNeighboursScorer(fitted.inverted)
        self._n_fitted = fitted.inverted.shape[1]
        self._n_neighbors = n_neighbors

    def __call__(self, vectors: sparse.csr_matrix, own_rows: np.ndarray) -> sparse.csr_matrix:
        """
        Find the neighbours of some users.

        Parameters
        ----------
        vectors : csr_matrix
            Their vectors, shape ``(n_users, n_items)``, float64.
        own_rows : np.ndarray
            Their own rows among the fitted users, which are no neighbours, or -1, shape ``(n_users,)``.

        Returns
        -------
        csr_matrix
            Similarities to the neighbours, shape ``(n_users, n_fitted)``, float64.
        """
        found = [self._nearest(vectors, row, own_row) for row, own_row in enumerate(own_rows)]
        ids, similarities = (np.concatenate(parts) for parts in zip(*found, strict=True))
        indptr = np.cumsum([0, *(len(ids) for ids, _ in found)])
        return sparse.csr_matrix((similarities, ids, indptr), shape=(len(found), self._n_fitted))

    def _nearest(self, vectors: sparse.csr_matrix, row: int, own_row: int) -> tuple[np.ndarray, np.ndarray]:
        ids, similarities = self._scorer.recommend(
            vectors.indptr[row : row + 2],
            vectors.indices,
            vectors.data,
            K=self._n_neighbors + 1,  # one more than wanted: the user's own record may be among them
            remove_own_likes=False,
        )
        best = np.lexsort((ids, -similarities))
        best = best[ids[best] != own_row][: self._n_neighbors]
        return ids[best], similarities[best]


class UserKNNModel(PackModel[UserKNNModelConfig]):
    """
    User-based k-nearest neighbours (Resnick et al. 1994): what the users with the most similar interactions have.

    The score of an item is the sum, over the neighbours of the user, of similarity times the weight of the neighbour's
    interaction. Items that no neighbour has are not recommended, so that a user may get fewer than `k` items, and one
    who shares no item with anybody gets none.

    Neighbours are looked for among the users that the model was fitted on, a user's own fitted record excluded. What a
    user has is read from the dataset given to `recommend`: new interactions count, and users that came after `fit` are
    served, without a refit. The search is that of the library implicit, in C++, and nothing is held for all pairs of
    users: memory grows with the interactions alone.

    Features are not used. Warm and cold users are not served, nor are recommendations to items.

    Parameters
    ----------
    similarity : {"cosine", "tfidf", "bm25"}, default "bm25"
        Dot product of two users' vectors of interaction weights: scaled to length 1; square roots of the weights times
        the inverse document frequency of the items, scaled to length 1; Okapi BM25 weights, not scaled. The formulas
        are those of `CosineRecommender`, `TFIDFRecommender` and `BM25Recommender` of implicit, with users for items.
    n_neighbors : int, default 100
        How many of the most similar users count.
    k1 : float, default 100
        Of BM25: how slowly growing weights saturate; 0 makes all weights equal.
    b : float, default 0.75
        Of BM25: how much the weights of users with many interactions are reduced, from 0 to 1.
    normalise : bool, default True
        Divide the scores of a user by the sum of the similarities of the neighbours, which makes scores of different
        users comparable: with weights of 1 they lie between 0 and 1. The order of items is the same either way.
    verbose : int, default 0
        Above 0 a progress bar is shown.

    Examples
    --------
    >>> model = UserKNNModel(similarity="tfidf", n_neighbors=100).fit(dataset)  # doctest: +SKIP
    >>> model.recommend(users, dataset, k=10, filter_viewed=True)  # doctest: +SKIP
    """

    config_class = UserKNNModelConfig
    recommends_for_warm: ClassVar[bool] = False
    recommends_for_cold: ClassVar[bool] = False

    _fitted: FittedUsers

    def _fit(self, dataset: Dataset) -> None:  # type: ignore[override]
        check_not_empty(dataset, "dataset")
        reader = DatasetReader.fit(dataset, reading=Reading(features=False, weights=True))
        interactions = reader.training_users(dataset).histories.to_csr()
        if not interactions.nnz:
            raise ValueError(
                f"Column `{Columns.Weight}` of the interactions is 0 everywhere: there is nothing to learn"
            )
        n_users, n_items = interactions.shape
        idf = np.log(n_users) - np.log1p(np.bincount(interactions.indices, minlength=n_items))
        mean_length = float(interactions.sum() / n_users)
        inverted = self._vectors(interactions, idf, mean_length).T.tocsr()
        # implicit's scorer is made for square matrices: it has room for as many results as the matrix has rows.
        inverted.resize(max(n_users, n_items), n_users)
        self._fitted = FittedUsers(
            self._get_config(), reader, interactions.astype(np.float32), inverted, idf, mean_length
        )

    def _restore(self, config: UserKNNModelConfig, reader: DatasetReader, arrays: StoredArrays) -> None:
        n_users, n_items = len(reader.user_ids), len(reader.item_ids)
        interactions = arrays.take_sparse("interactions", np.float32, n_users, n_items)
        inverted = arrays.take_sparse("inverted", np.float64, max(n_users, n_items), n_users)
        idf = arrays.take("idf", np.float64, n_items)
        mean_length = float(arrays.take("mean_length", np.float64))
        if mean_length <= 0:
            raise ValueError("`mean_length` must be positive")
        self._fitted = FittedUsers(config, reader, interactions, inverted, idf, mean_length)

    def _vectors(self, histories: sparse.csr_matrix, idf: np.ndarray, mean_length: float) -> sparse.csr_matrix:
        """Vectors whose dot products are the similarities, shape ``(n_users, n_items)``, float64."""
        vectors = histories.tocoo(copy=True)
        if self.similarity == "tfidf":
            vectors.data = np.sqrt(vectors.data) * idf[vectors.col]
        elif self.similarity == "bm25":
            length = np.asarray(histories.sum(axis=1)).ravel() / mean_length
            saturation = self.k1 * (1 - self.b + self.b * length)
            vectors.data = vectors.data * (self.k1 + 1) / (saturation[vectors.row] + vectors.data) * idf[vectors.col]
        # An item that says nothing (idf 0) must not leave a user with a vector of zeros, which has no direction.
        vectors.eliminate_zeros()
        return (vectors if self.similarity == "bm25" else normalize(vectors)).tocsr()

    def _custom_transform_dataset_i2i(
        self, dataset: Dataset, target_items: Any, on_unsupported_targets: str
    ) -> Dataset:
        raise NotImplementedError(
            "UserKNNModel compares users and recommends nothing to items: use ItemKNN for that, "
            "rectools.models.ImplicitItemKNNWrapperModel"
        )

    def _scorer(self, users: Users, items: Items, progress: tqdm[Any]) -> Callable[[slice], torch.Tensor]:
        fitted = self._fitted
        vectors = self._vectors(users.histories.to_csr(), fitted.idf, fitted.mean_length)
        search = NeighbourSearch(fitted, self._n_neighbors())
        interactions = fitted.interactions[:, items.rows]

        def score(rows: slice) -> torch.Tensor:
            neighbours = search(vectors[rows], users.rows[rows]).astype(np.float32)
            if self.normalise:
                neighbours = _divide_by_row_sums(neighbours)
            scores = torch.from_numpy((neighbours @ interactions).toarray())
            progress.update(len(scores))
            return scores

        return score

    def _n_neighbors(self) -> int:
        return min(self.n_neighbors, len(self._fitted.reader.user_ids))

    def _chunk(self, n_items: int) -> int:
        # The neighbours of a chunk are held as well: where candidates are few, they are what bounds it.
        return MAX_SCORES // max(n_items, self._n_neighbors())

    def _ranker(self, items: Items) -> Ranker:
        def rank_for(users: Users, k: int, seen: sparse.csr_matrix | None) -> Ranking:
            with tqdm(total=len(users), disable=self.verbose == 0) as progress:
                scorer = self._scorer(users, items, progress)

                def score(rows: slice) -> torch.Tensor:
                    scores = scorer(rows)
                    return scores.masked_fill_(scores == 0, -torch.inf)

                return rank(score, len(users), len(items), k, seen, max_scores=self._chunk(len(items)) * len(items))

        return rank_for

    def _score_pairs(
        self, users: Users, items: Items, rows: np.ndarray, columns: np.ndarray, context: EncodedFeatures | None
    ) -> np.ndarray:
        with tqdm(total=len(users), disable=self.verbose == 0) as progress:
            score = self._scorer(users, items, progress)
            max_scores = self._chunk(len(items)) * len(items)
            return pick(score, len(users), len(items), rows, columns, max_scores)


def _divide_by_row_sums(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    sums = np.asarray(matrix.sum(axis=1)).ravel()
    return sparse.csr_matrix(
        (matrix.data / np.repeat(sums, np.diff(matrix.indptr)), matrix.indices, matrix.indptr), matrix.shape
    )
