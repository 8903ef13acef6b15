"""GF-CF: collaborative filtering by graph filters, in closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field, NonNegativeFloat, PositiveInt
from rectools import Columns
from rectools.dataset import Dataset
from scipy import sparse
from tqdm.auto import tqdm

from ..data.features import EncodedFeatures
from ..data.reader import DatasetReader, Items, Reading, Users
from ..pretrained import StoredArrays
from ..ranking import MAX_SCORES, Ranker, Ranking, pick, rank
from ..training.loop import isolated_random_state
from .pack import LinearParts, PackModel, PackModelConfig, check_not_empty, is_dense

_POWER_ITERATIONS = 4  # of the randomised singular value decomposition; fewer cost quality, more don't add any
_OVERSAMPLING = 10
_NOISE = 1e-5  # singular values below this share of the largest are rounding errors of 0
_FULL = 0.2  # share of the neighbours of a chunk from which on a table of them is faster than their list

Exponent = Annotated[float, Field(ge=0, le=1)]


class GFCFModelConfig(PackModelConfig):
    """Options of `GFCFModel`; see there."""

    n_factors: PositiveInt | None = None
    alpha: NonNegativeFloat | None = None
    user_exponent: Exponent | None = None
    item_exponent: Exponent | None = None
    use_weights: bool = False
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


@dataclass(frozen=True)
class Filters:
    """
    Both filters.

    Parameters
    ----------
    config : GFCFModelConfig
        The options with all that followed from the data filled in.
    reader : DatasetReader
        Ids of users and items.
    interactions : csr_matrix
        Normalised interactions, shape ``(n_users, n_items)``, float32.
    low_pass : np.ndarray
        Singular vectors of the items, times the square root of the weight of the low-pass filter, shape
        ``(n_items, n_factors)``, float32.
    item_scale : np.ndarray
        Power of the sums of the items that the interactions were divided by, shape ``(n_items,)``, float32.
    """

    config: GFCFModelConfig
    reader: DatasetReader
    interactions: sparse.csr_matrix
    low_pass: np.ndarray
    item_scale: np.ndarray


class GFCFModel(PackModel[GFCFModelConfig]):
    """
    GF-CF: a linear filter and an ideal low-pass filter over the graph of interactions (Shen et al. 2021).

    Interactions are divided by powers of the sums of their users and items, ``R = D_U^-a X D_I^-b``. The scores of a
    user with history x are ``x (R'R + alpha s^2 D_I^-b V V' D_I^b)``, with the first singular vectors V of R and its
    largest singular value s, which is 1 for the exponents of the paper. Nothing is trained, and nothing of the size of
    items x items is held: the scores of a chunk of users are made from sparse products.

    A user is served from the history in the given dataset, whether the model was fitted on it or not. Users without a
    history get what is popular. Features are not used.

    Parameters
    ----------
    n_factors : int, optional
        Singular vectors of the low-pass filter; by default 256 on sparse data and fewer on dense data (17 for 75 000
        interactions, 51 for 670 000).
    alpha : float, optional
        Weight of the low-pass filter; by default 1 on dense data and 0.3, as in the paper, on sparse data. 0 leaves it
        out.
    user_exponent, item_exponent : float, optional
        Powers a and b; by default 0.3 on dense data and 0.5, as in the paper, on sparse data.
    use_weights : bool
        Whether the weights of the interactions are used; otherwise each counts 1.
    seed : int
        Of the randomised singular value decomposition.
    verbose : int
        Above 0 a progress bar is shown.

    References
    ----------
    Shen et al., How powerful is graph convolution for recommendation?, CIKM 2021.
    Halko et al., Finding structure with randomness: probabilistic algorithms for constructing approximate matrix
    decompositions, SIAM Review 2011.

    Examples
    --------
    >>> from rectools_neural import GFCFModel, load_dataset
    >>> dataset = load_dataset("gowalla")  # doctest: +SKIP
    >>> model = GFCFModel().fit(dataset)  # doctest: +SKIP
    >>> model.recommend([1, 2], dataset, k=20, filter_viewed=True)  # doctest: +SKIP
    """

    config_class = GFCFModelConfig
    recommends_for_cold: ClassVar[bool] = True

    _fitted: Filters

    def _fit(self, dataset: Dataset) -> None:  # type: ignore[override]
        check_not_empty(dataset, "dataset")
        reader = DatasetReader.fit(dataset, reading=Reading(features=False, weights=self.use_weights))
        histories = reader.training_users(dataset).histories.to_csr().astype(np.float32)
        if not histories.nnz:
            raise ValueError(
                f"Column `{Columns.Weight}` of the interactions is 0 everywhere: there is nothing to learn"
            )
        config = self._adapt(histories)
        user_scale = _powers(histories, 1, config.user_exponent)
        item_scale = _powers(histories, 0, config.item_exponent)
        interactions = (sparse.diags(1 / user_scale) @ histories @ sparse.diags(1 / item_scale)).tocsr()
        interactions = interactions.astype(np.float32)
        low_pass = _low_pass(interactions, config)
        self._fitted = Filters(config, reader, interactions, low_pass, item_scale.astype(np.float32))

    def _adapt(self, histories: sparse.csr_matrix) -> GFCFModelConfig:
        """Fill in the options that were left open."""
        n_users, n_items = histories.shape
        smaller = min(n_users, n_items)
        if self.n_factors is not None and self.n_factors > smaller:
            raise ValueError(
                f"`n_factors` {self.n_factors} is more than there are singular vectors: the data have {n_users} users "
                f"and {n_items} items with interactions, so give {smaller} at most"
            )
        dense = is_dense(n_users, n_items, histories.nnz)
        usual = round(histories.nnz**0.5 / 16) if dense else 256
        chosen = {
            "n_factors": max(min(usual, smaller // 2), 1),
            "alpha": 1.0 if dense else 0.3,
            "user_exponent": 0.3 if dense else 0.5,
            "item_exponent": 0.3 if dense else 0.5,
        }
        given = {name: value for name, value in dict(self._get_config()).items() if value is not None}
        return GFCFModelConfig(**{**chosen, **given})

    def _restore(self, config: GFCFModelConfig, reader: DatasetReader, arrays: StoredArrays) -> None:
        n_users, n_items = len(reader.user_ids), len(reader.item_ids)
        interactions = arrays.take_sparse("interactions", np.float32, n_users, n_items)
        low_pass = arrays.take("low_pass", np.float32, n_items, None)
        item_scale = arrays.take("item_scale", np.float32, n_items)
        if (item_scale <= 0).any():
            raise ValueError("`item_scale` has numbers that are not positive")
        self._fitted = Filters(config, reader, interactions, low_pass, item_scale)

    def _scorer(self, users: Users, items: Items) -> Callable[[slice], torch.Tensor]:
        fitted = self._fitted
        histories = users.histories.to_csr().astype(np.float32)
        to_users, to_items = fitted.interactions.T.tocsr(), fitted.interactions[:, items.rows]
        left = fitted.low_pass / fitted.item_scale[:, None]
        right = torch.from_numpy((fitted.low_pass * fitted.item_scale[:, None])[items.rows].T.copy())

        def score(rows: slice) -> torch.Tensor:
            scores = _product(histories[rows] @ to_users, to_items)
            return scores.addmm_(torch.from_numpy(histories[rows] @ left), right)

        return score

    def _ranker(self, items: Items) -> Ranker:
        def rank_for(users: Users, k: int, seen: sparse.csr_matrix | None) -> Ranking:
            return self._rank(self._scorer(users, items), len(users), len(items), k, seen)

        return rank_for

    def _score_pairs(
        self, users: Users, items: Items, rows: np.ndarray, columns: np.ndarray, context: EncodedFeatures | None
    ) -> np.ndarray:
        return pick(self._scorer(users, items), len(users), len(items), rows, columns)

    def _linear_parts(self, user: Users, item: Items) -> LinearParts:
        n = len(user.histories.items)
        nowhere = np.zeros(n, np.int64)
        # The same entries as histories of one item each.
        singles = replace(user.take(nowhere), histories=replace(user.histories, indptr=np.arange(n + 1)))
        nothing = np.zeros(0, np.float32)
        return LinearParts(self._score_pairs(singles, item, np.arange(n), nowhere, None), nothing, nothing, 0.0)

    def _rank_items(self, targets: Items, items: Items, k: int) -> Ranking:
        """By the cosine in the space of the filters, ``R'R + alpha s^2 V V'``."""
        fitted = self._fitted
        columns = fitted.interactions.tocsc()
        lengths = np.sqrt(np.asarray(columns.power(2).sum(axis=0)).ravel() + np.square(fitted.low_pass).sum(axis=1))
        lengths[lengths == 0] = 1  # items of weight 0 are like nothing
        subjects, candidates = columns[:, targets.rows].T.tocsr(), columns[:, items.rows].tocsr()
        left = torch.from_numpy(fitted.low_pass[targets.rows])
        right = torch.from_numpy(fitted.low_pass[items.rows].T.copy())
        subject_lengths, candidate_lengths = (
            torch.from_numpy(lengths[of.rows].astype(np.float32)) for of in (targets, items)
        )

        def score(rows: slice) -> torch.Tensor:
            scores = _product(subjects[rows], candidates).addmm_(left[rows], right)
            return scores.div_(subject_lengths[rows].unsqueeze(1)).div_(candidate_lengths)

        return self._rank(score, len(targets), len(items), k, None)

    def _rank(self, score: Any, n_subjects: int, n_candidates: int, k: int, seen: Any) -> Ranking:
        # The users near a chunk are held as well: where candidates are few, they are what bounds it.
        chunk = max(1, MAX_SCORES // max(n_candidates, self._fitted.interactions.shape[0]))
        with tqdm(total=n_subjects, disable=self.verbose == 0) as progress:

            def score_and_tell(rows: slice) -> torch.Tensor:
                scores: torch.Tensor = score(rows)
                progress.update(len(scores))
                return scores

            return rank(score_and_tell, n_subjects, n_candidates, k, seen, max_scores=chunk * n_candidates)


def _powers(histories: sparse.csr_matrix, axis: int, exponent: float | None) -> np.ndarray:
    sums = np.asarray(histories.sum(axis=axis, dtype=np.float64)).ravel()
    assert exponent is not None
    # Who has no weight at all has no entries to divide.
    powers: np.ndarray = np.where(sums > 0, sums, 1.0) ** exponent
    return powers


def _low_pass(interactions: sparse.csr_matrix, config: GFCFModelConfig) -> np.ndarray:
    assert config.n_factors is not None
    assert config.alpha is not None
    if config.alpha == 0:
        return np.zeros((interactions.shape[1], 0), np.float32)
    entries = interactions.tocoo()
    places = torch.from_numpy(np.stack([entries.row, entries.col]).astype(np.int64))
    # Said explicitly, for torch warns of its own default.
    matrix = torch.sparse_coo_tensor(
        places, torch.from_numpy(entries.data), interactions.shape, check_invariants=False
    ).coalesce()
    size = min(config.n_factors + _OVERSAMPLING, *interactions.shape)
    with isolated_random_state(config.seed):
        _, values, vectors = torch.svd_lowrank(matrix, size, _POWER_ITERATIONS)
    # The vectors of the value 0 are arbitrary.
    n_factors = min(config.n_factors, int((values > _NOISE * values[0]).sum()))
    scaled: np.ndarray = (vectors[:, :n_factors] * (config.alpha**0.5 * values[0])).numpy()
    return scaled


def _product(neighbours: sparse.csr_matrix, to_items: sparse.csr_matrix) -> torch.Tensor:
    """Multiply a chunk of neighbours with their interactions, to a table."""
    if neighbours.nnz < _FULL * neighbours.shape[0] * neighbours.shape[1]:
        return torch.from_numpy((neighbours @ to_items).toarray())
    return torch.from_numpy(np.ascontiguousarray((to_items.T @ neighbours.toarray().T).T))
