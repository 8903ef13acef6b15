"""
Index of nearest neighbours: the best items for a vector without a look at each of them.

Items lie in lists around centres (faiss, IVF), and a search looks into the lists whose centres are nearest. Dot
products become distances by one further coordinate, so one kind of index serves all similarities. What the lists give
is scored again by the vectors themselves, so scores are those of the exact ranking.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from rectools import Columns
from rectools.dataset import Dataset
from rectools.exceptions import NotFittedError
from scipy import sparse
from typing_extensions import Self

from .data.reader import Items, Users, seen_matrix
from .errors import did_you_mean
from .files import find_folder, replacing_folder
from .models.pack import check_not_empty
from .models.two_sided import TwoSidedModel, _item_vectors, _user_vectors
from .ranking import Ranker, Ranking, rank_vectors

try:
    import faiss
except ImportError as error:
    raise ImportError("rectools_neural.ann needs faiss: `pip install rectools-neural[ann]`") from error

Similarity: TypeAlias = Literal["dot", "cosine", "euclidean"]
Seen: TypeAlias = "sparse.csr_matrix | Sequence[Any]"

RECALL_AT = 10
_N_JUDGED = 1000  # queries: half of them choose how many lists to look into, the others tell the recall
_LISTS = 4  # as a multiple of the root of the number of items, but ...
_MIN_PER_LIST = 39  # ... no fewer items a list: fewer make poor centres
_TRAINING_PER_LIST, _TRAINING_ROUNDS = 64, 10
_GROWTH = 2  # new lists once there are this many times the items that the lists were made for
_SMALL_SHARE = 0.1  # a smaller whitelist is ranked exactly: the lists hold little else
_MAX_FETCHED = 4096  # with more to fetch for a query exact ranking is as fast
_QUERIES_AT_ONCE = 4096
_PAIRS_AT_ONCE = 1 << 16

_FORMAT = 1
_FILES = _MANIFEST, _ARRAYS, _IDS, _LISTS_FILE = "index.json", "arrays.npz", "ids.json", "lists.faiss"

_logger = logging.getLogger(__name__)


class ItemIndex:
    """
    Items by their vectors, to be searched by the vectors of users. Made by `build`, `from_model` or `load`.

    Attributes
    ----------
    ids : np.ndarray
        External ids of the items, shape ``(n_items,)``.
    similarity : {"dot", "cosine", "euclidean"}
        The score: dot product, cosine, or minus the distance.
    exact : bool
        Whether all items are looked at.
    recall : float
        Share of the exact top 10 that a search finds, measured when the lists were made; 1 for an exact index.
    threads : int
        Threads of faiss, and may be changed. The same seed gives the same index and the same answers with one.

    Examples
    --------
    >>> import numpy as np
    >>> from rectools_neural.ann import ItemIndex
    >>> index = ItemIndex.build(np.eye(3), ["a", "b", "c"], similarity="dot")
    >>> ids, scores = index.search([[0.1, 0.3, 0.2]], k=2, seen=[["b"]])
    >>> ids[0].tolist()
    ['c', 'a']
    """

    def __init__(
        self, similarity: Similarity, exact: bool, seed: int, target_recall: float, threads: int, verbose: int
    ) -> None:
        self.similarity, self.exact, self.threads, self.recall = similarity, exact, threads, 1.0
        self._seed, self._target_recall, self._verbose = seed, target_recall, verbose
        self._radius, self._n_probed, self._n_listed = 0.0, 1, 0
        self._lists: Any = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def ids(self) -> np.ndarray:
        """External ids of the items, shape ``(n_items,)``."""
        return self._lookup.to_numpy()

    # ------------------------------------------------------------------ build

    @classmethod
    def build(
        cls,
        vectors: Any,
        ids: Any,
        similarity: Similarity = "dot",
        exact: bool = False,
        seed: int = 0,
        queries: Any = None,
        target_recall: float = 0.98,
        threads: int = 1,
        verbose: int = 0,
    ) -> Self:
        """
        Make an index.

        Parameters
        ----------
        vectors : array-like
            Of the items, shape ``(n_items, dim)``; kept as float32.
        ids : array-like
            Their external ids, integers or strings, each once.
        similarity : {"dot", "cosine", "euclidean"}, default "dot"
            The score: dot product, cosine, or minus the distance.
        exact : bool, default False
            Look at all items, always.
        seed : int, default 0
            For the centres of the lists.
        queries : array-like, optional
            What searches will look like, shape ``(n, dim)``: up to 1000 of them choose how many lists a search looks
            into. By default the items themselves serve.
        target_recall : float, default 0.98
            Share of the exact top 10 to be found in half of these queries; the other half tells `recall`.
        threads : int, default 1
            Threads of faiss.
        verbose : int, default 0
            1 logs the recall at level INFO.

        Returns
        -------
        ItemIndex
            The index.

        Raises
        ------
        ValueError, TypeError
            If an argument makes no sense.
        """
        index = cls._empty(similarity, exact, seed, target_recall, threads, verbose)
        table, lookup = _as_vectors(vectors, "vectors"), _as_ids(ids)
        if not len(table):
            raise ValueError("`vectors` are empty: an index needs an item at least")
        _check_lengths(table, lookup)
        judged = None if queries is None else _as_vectors(queries, "queries", table.shape[1])
        if judged is not None and not len(judged):
            raise ValueError("`queries` are empty: give some to choose the number of lists by")
        index._fill(index._normalised(table), lookup)
        index._make_lists(index._sample(index._vectors if judged is None else index._normalised(judged)), None)
        return index

    @classmethod
    def from_model(
        cls,
        model: TwoSidedModel[Any],
        dataset: Dataset,
        exact: bool = False,
        seed: int = 0,
        target_recall: float = 0.98,
        threads: int = 1,
        verbose: int = 0,
    ) -> Self:
        """
        Make an index of the items that a model was fitted on: those that its `recommend` ranks.

        Recall is that for users of the dataset, without their seen items.

        Parameters
        ----------
        model : TwoSidedModel
            A fitted model that scores by vectors. After another fit make another index.
        dataset : Dataset
            Where the features of the items and the histories of users are known from.
        exact, seed, target_recall, threads, verbose
            As for `build`.

        Returns
        -------
        ItemIndex
            The index, with external ids.

        Raises
        ------
        TypeError
            If the model has no vectors.
        NotFittedError
            If it is not fitted.
        """
        _check_model(model)
        check_not_empty(dataset, "dataset")
        reader = model._fitted.reader
        aligned = reader.align(dataset)
        items = aligned.items.take(np.arange(len(reader.item_ids)))
        active = np.unique(dataset.interactions.df[Columns.User])
        index = cls._empty(_similarity_of(model), exact, seed, target_recall, threads, verbose)
        judged = active[index._sampled(len(active))]
        seen = seen_matrix(aligned, judged, np.arange(len(reader.item_ids)))
        index._fill_for(model, items, reader.users(aligned, judged), seen)
        return index

    def _fill_for(self, model: TwoSidedModel[Any], items: Items, users: Users, seen: sparse.csr_matrix) -> None:
        """Take in all items of a model; recall is measured on some users without their seen items."""
        self._fill(self._normalised(_vectors_on(model, _item_vectors, items)), _as_ids(model._fitted.reader.item_ids))
        self._make_lists(self._normalised(_vectors_on(model, _user_vectors, users)), seen)

    @classmethod
    def _empty(
        cls, similarity: Similarity, exact: bool, seed: int, target_recall: float, threads: int, verbose: int
    ) -> Self:
        valid = list(get_args(Similarity))
        if similarity not in valid:
            raise ValueError(f"Unknown `similarity` {similarity!r}{did_you_mean(str(similarity), valid)}")
        if not 0 < target_recall <= 1:
            raise ValueError(f"`target_recall` must be above 0 and at most 1, got {target_recall}")
        if threads < 1:
            raise ValueError(f"`threads` must be at least 1, got {threads}")
        return cls(similarity, exact, int(seed), target_recall, threads, verbose)

    def _fill(self, vectors: torch.Tensor, lookup: pd.Index) -> None:
        # faiss knows items by labels, which ascend and never change; the row of an item is the place of its label.
        self._vectors, self._lookup, self._labels = vectors, lookup, np.arange(len(lookup))

    def _sampled(self, n: int) -> np.ndarray:
        return np.sort(np.random.default_rng(self._seed).permutation(n)[:_N_JUDGED])

    def _sample(self, queries: torch.Tensor) -> torch.Tensor:
        return queries[torch.from_numpy(self._sampled(len(queries)))]

    def _make_lists(self, judged: torch.Tensor, seen: sparse.csr_matrix | None) -> None:
        """Make the lists, look into as many of them as the target needs, and measure."""
        self._judged = judged
        if self.exact:
            return
        n = len(self)
        self._radius, self._n_listed = float(self._vectors.norm(dim=1).max()), n
        self._labels = np.arange(n)
        n_lists = max(1, min(int(_LISTS * n**0.5), n // _MIN_PER_LIST))
        points = self._points(self._vectors)
        with _threads(self.threads):
            lists = faiss.index_factory(points.shape[1], f"IVF{n_lists},Flat", faiss.METRIC_L2)
            lists.cp.seed, lists.cp.niter = self._seed, _TRAINING_ROUNDS
            lists.cp.min_points_per_centroid, lists.cp.max_points_per_centroid = 1, _TRAINING_PER_LIST
            lists.train(points)
            lists.add_with_ids(points, self._labels)
        self._lists = lists
        self._choose(seen)

    def _choose(self, seen: sparse.csr_matrix | None) -> None:
        order = np.random.default_rng(self._seed).permutation(len(self._judged))
        halves = np.array_split(order, 2) if len(order) > 1 else [order, order]
        (chosen_by, truth), measured_by = (self._exam(half, seen) for half in halves)
        self._n_probed = 1
        while self._recall(chosen_by, truth) < self._target_recall and self._n_probed < self._lists.nlist:
            self._n_probed *= 2
        self.recall = self._recall(*measured_by)
        if self._verbose:
            _logger.info(
                "recall@%d %.4f on %d queries: %d of %d lists a search, %d items",
                *(RECALL_AT, self.recall, len(halves[1]), self._n_probed, self._lists.nlist, len(self)),
            )

    def _exam(
        self, rows: np.ndarray, seen: sparse.csr_matrix | None
    ) -> tuple[tuple[torch.Tensor, sparse.csr_matrix | None], np.ndarray]:
        asked = self._judged[torch.from_numpy(rows)], None if seen is None else seen[rows]
        return asked, self._keys(self._rank_exactly(asked[0], RECALL_AT, asked[1], None))

    def _recall(self, asked: tuple[torch.Tensor, sparse.csr_matrix | None], truth: np.ndarray) -> float:
        found = self._keys(self._rank(asked[0], RECALL_AT, asked[1], None))
        return float(np.isin(truth, found).mean()) if len(truth) else 1.0

    def _keys(self, ranking: Ranking) -> np.ndarray:
        return ranking[0] * len(self) + ranking[1]

    def _normalised(self, vectors: torch.Tensor) -> torch.Tensor:
        return F.normalize(vectors, dim=1) if self.similarity == "cosine" else vectors

    def _points(self, vectors: torch.Tensor) -> np.ndarray:
        """Give points whose distance to a query with a last 0 orders them as the score does."""
        if self.similarity == "euclidean":
            return vectors.numpy()
        # With all points on one sphere, |q - x|^2 = |q|^2 + radius^2 - 2 q'x.
        last = (self._radius**2 - vectors.square().sum(dim=1, keepdim=True)).clamp(min=0).sqrt()
        return torch.cat([vectors, last], dim=1).numpy()

    # ------------------------------------------------------------------ change

    def add(self, vectors: Any, ids: Any) -> None:
        """
        Add items. Lists are made anew where the items have doubled, or a longer vector than all before comes.

        Parameters
        ----------
        vectors : array-like
            Of the new items, shape ``(n_new, dim)``.
        ids : array-like
            Their external ids; none of them may be there yet.

        Raises
        ------
        ValueError, TypeError
            If an argument makes no sense; then nothing is added.
        """
        table, lookup = _as_vectors(vectors, "vectors", self._vectors.shape[1]), _as_ids(ids)
        _check_lengths(table, lookup)
        if not len(table):
            return
        known = lookup[self._lookup.get_indexer(lookup) >= 0]
        if len(known):
            raise ValueError(f"`ids` {list(known[:5])} are in the index already: `remove` them first")
        if len(self) and (lookup.dtype == object) != (self._lookup.dtype == object):
            raise TypeError(f"`ids` are of type {lookup.dtype}, those of the index of type {self._lookup.dtype}")
        new = self._normalised(table)
        labels = np.arange(len(new)) + (self._labels[-1] + 1 if len(self) else 0)
        grown = copy.copy(self)
        grown._vectors = torch.cat([self._vectors, new])
        grown._lookup = self._lookup.append(lookup) if len(self) else lookup
        grown._labels = np.concatenate([self._labels, labels])
        is_longer = self.similarity != "euclidean" and float(new.norm(dim=1).max()) > self._radius * (1 + 1e-6)
        if is_longer or len(grown) > _GROWTH * self._n_listed:
            grown._make_lists(self._judged, None)
        else:
            with _threads(self.threads):
                self._lists.add_with_ids(self._points(new), labels)
        # Only now: new lists that fail leave the index as it was.
        self.__dict__.update(grown.__dict__)

    def remove(self, ids: Any) -> None:
        """
        Remove items.

        Parameters
        ----------
        ids : array-like
            External ids, all of them in the index.

        Raises
        ------
        ValueError
            If one is not; then nothing is removed.
        """
        rows = self._rows(ids, "ids")
        if not len(rows):
            return
        kept = np.ones(len(self), bool)
        kept[rows] = False
        if self._lists is not None:
            with _threads(self.threads):
                self._lists.remove_ids(faiss.IDSelectorBatch(self._labels[rows]))
        self._vectors = self._vectors[torch.from_numpy(kept)]
        self._lookup, self._labels = self._lookup[kept], self._labels[kept]

    def _rows(self, ids: Any, name: str) -> np.ndarray:
        lookup = _as_ids(ids, name)
        rows = self._lookup.get_indexer(lookup)
        if (rows < 0).any():
            unknown = lookup[rows < 0]
            raise ValueError(f"`{name}` has {len(unknown)} ids that are not in the index, such as {list(unknown[:5])}")
        return rows

    # ------------------------------------------------------------------ search

    def search(
        self, queries: Any, k: int, seen: Seen | None = None, whitelist: Any = None
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """
        Find the best items for each query.

        Parameters
        ----------
        queries : array-like
            Vectors, shape ``(n_queries, dim)``.
        k : int
            How many items for each; fewer only where fewer are left.
        seen : csr_matrix or sequence of array-like, optional
            What must not be found, for each query: entries of shape ``(n_queries, n_items)`` in the order of `ids`, or
            a list of ids for each query, where ids that are not in the index don't matter.
        whitelist : array-like, optional
            Ids of the items that may be found, all of them in the index.

        Returns
        -------
        ids, scores : list of np.ndarray
            An array for each query, best first: ids, and the dot product, cosine or minus the distance, float32.

        Raises
        ------
        ValueError, TypeError
            If an argument makes no sense, or the index is empty.
        """
        table = _as_vectors(queries, "queries", self._vectors.shape[1])
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
            raise TypeError(f"`k` must be an integer, got {k!r}")
        if k < 1:
            raise ValueError(f"`k` must be at least 1, got {k}")
        if not len(self):
            raise ValueError("The index is empty: `add` items first")
        allowed = None if whitelist is None else self._rows(whitelist, "whitelist")
        rows, columns, scores = self._rank(self._normalised(table), int(k), self._seen(seen, len(table)), allowed)
        ids, ends = self.ids[columns], np.searchsorted(rows, np.arange(len(table) + 1)).tolist()
        spans = [slice(start, end) for start, end in pairwise(ends)]
        return [ids[span] for span in spans], [scores[span] for span in spans]

    def _seen(self, seen: Any, n_queries: int) -> sparse.csr_matrix | None:
        if seen is None:
            return None
        if sparse.issparse(seen):
            if seen.shape != (n_queries, len(self)):
                raise ValueError(f"`seen` must have the shape ({n_queries}, {len(self)}), got {seen.shape}")
            matrix = seen.tocsr()
            return _as_mask(matrix.indptr, matrix.indices, matrix.shape)
        if len(seen) != n_queries:
            raise ValueError(f"`seen` must have a list of ids for each of the {n_queries} queries, got {len(seen)}")
        lengths = [len(ids) for ids in seen]
        parts = [np.asarray(ids) for ids in seen if len(ids)]
        ids = np.concatenate(parts) if parts else self.ids[:0]
        columns, owners = self._lookup.get_indexer(pd.Index(ids)), np.repeat(np.arange(n_queries), lengths)
        owners, columns = owners[columns >= 0], columns[columns >= 0]
        indptr = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=n_queries))])
        return _as_mask(indptr, columns, (n_queries, len(self)))

    def _rank(
        self, queries: torch.Tensor, k: int, seen: sparse.csr_matrix | None, allowed: np.ndarray | None
    ) -> Ranking:
        """Rank rows of the index, all of them or the allowed ones; flat, grouped by query."""
        n_allowed = len(self) if allowed is None else len(allowed)
        if self._lists is None or n_allowed < _SMALL_SHARE * len(self):
            return self._rank_exactly(queries, k, seen, allowed)
        if seen is None:
            seen = sparse.csr_matrix((len(queries), len(self)), dtype=bool)
        elif allowed is not None:
            is_allowed = np.zeros(len(self), bool)
            is_allowed[allowed] = True
            kept = is_allowed[seen.indices]
            ends = np.concatenate([[0], np.cumsum(kept)])[seen.indptr]
            seen = sparse.csr_matrix((seen.data[kept], seen.indices[kept], ends), seen.shape)
        parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))]
        for start in range(0, len(queries), _QUERIES_AT_ONCE):
            rows = slice(start, start + _QUERIES_AT_ONCE)
            found = self._rank_some(queries[rows], k, seen[rows], allowed)
            parts.append((found[0] + start, *found[1:]))
        subjects, columns, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
        return subjects, columns, scores

    def _rank_exactly(
        self, queries: torch.Tensor, k: int, seen: sparse.csr_matrix | None, allowed: np.ndarray | None
    ) -> Ranking:
        is_euclidean = self.similarity == "euclidean"
        if allowed is None:
            return rank_vectors(queries, self._vectors, k, is_euclidean, seen)
        vectors = self._vectors[torch.from_numpy(allowed)]
        of_allowed = None if seen is None else seen[:, allowed]
        rows, columns, scores = rank_vectors(queries, vectors, k, is_euclidean, of_allowed)
        return rows, allowed[columns], scores

    def _rank_some(self, queries: torch.Tensor, k: int, seen: sparse.csr_matrix, allowed: np.ndarray | None) -> Ranking:
        """Look into lists, and rank exactly for the queries for which that does not give enough."""
        n_allowed = len(self) if allowed is None else len(allowed)
        n_seen = np.diff(seen.indptr)
        wanted = np.minimum(k, n_allowed - n_seen)
        # Powers of two: a few sizes serve all queries.
        sizes = 2 ** np.ceil(np.log2(k + n_seen)).astype(np.int64)
        pairs = [(np.zeros(0, np.int64), np.zeros(0, np.int64))]
        for size in np.unique(sizes[sizes <= min(_MAX_FETCHED, n_allowed // 4)]):
            subjects = np.flatnonzero(sizes == size)
            rows, columns = self._look_up(queries[torch.from_numpy(subjects)], int(size), allowed)
            pairs.append((subjects[rows], columns))
        rows, columns = (np.concatenate(part) for part in zip(*pairs, strict=True))
        seen_pairs = np.repeat(np.arange(len(queries)), n_seen) * len(self) + seen.indices
        fresh = np.isin(rows * len(self) + columns, seen_pairs, invert=True)
        rows, columns, scores = self._best(queries, rows[fresh], columns[fresh], k)
        short = np.bincount(rows, minlength=len(queries)) < wanted
        if not short.any():
            return rows, columns, scores
        subjects = np.flatnonzero(short)
        rest = self._rank_exactly(queries[torch.from_numpy(subjects)], k, seen[subjects], allowed)
        good = ~short[rows]
        rows = np.concatenate([rows[good], subjects[rest[0]]])
        order = np.argsort(rows, kind="stable")
        columns, scores = np.concatenate([columns[good], rest[1]]), np.concatenate([scores[good], rest[2]])
        return rows[order], columns[order], scores[order]

    def _look_up(self, queries: torch.Tensor, n: int, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Find the `n` nearest rows of the index among the lists, as pairs of query and row, nearest first."""
        options: dict[str, Any] = {"nprobe": self._n_probed}
        if allowed is not None:
            # The thinner the whitelist, the farther its best items.
            options["nprobe"] = min(self._lists.nlist, -(-self._n_probed * len(self) // len(allowed)))
            mask = np.zeros(self._labels[-1] + 1, bool)
            mask[self._labels[allowed]] = True
            options["sel"] = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        if self.similarity != "euclidean":
            queries = F.pad(queries, (0, 1))
        with _threads(self.threads):
            labels = self._lists.search(queries.numpy(), n, params=faiss.SearchParametersIVF(**options))[1]
        rows, places = (labels >= 0).nonzero()
        found = labels[rows, places]
        # Nothing has been removed: labels are rows.
        return rows, found if self._labels[-1] + 1 == len(self) else np.searchsorted(self._labels, found)

    def _best(self, queries: torch.Tensor, rows: np.ndarray, columns: np.ndarray, k: int) -> Ranking:
        """Keep the first `k` pairs of each query, and order them by their scores."""
        order = np.argsort(rows, kind="stable")
        rows, columns = rows[order], columns[order]
        best = np.arange(len(rows)) - np.searchsorted(rows, np.arange(len(queries)))[rows] < k
        rows, columns = rows[best], columns[best]
        is_euclidean = self.similarity == "euclidean"
        scores = np.empty(len(rows), np.float32)
        for start in range(0, len(rows), _PAIRS_AT_ONCE):
            part = slice(start, start + _PAIRS_AT_ONCE)
            subjects = queries.index_select(0, torch.from_numpy(rows[part]))
            items = self._vectors.index_select(0, torch.from_numpy(columns[part]))
            found = -(subjects - items).norm(dim=1) if is_euclidean else torch.einsum("nd,nd->n", subjects, items)
            scores[part] = found.numpy()
        order = np.lexsort((columns, -scores, rows))
        return rows[order], columns[order], scores[order]

    # ------------------------------------------------------------------ recommend

    def recommend(
        self, model: TwoSidedModel[Any], dataset: Dataset, users: Any, k: int, filter_viewed: bool = True
    ) -> pd.DataFrame:
        """
        Recommend items of the index, as the `recommend` of the model does.

        Parameters
        ----------
        model : TwoSidedModel
            The one whose items these are.
        dataset : Dataset
            Users with their histories and features.
        users : array-like
            External ids: hot, warm and cold ones as far as the model serves them.
        k : int
            How many items for each.
        filter_viewed : bool, default True
            Leave out what a user has interacted with.

        Returns
        -------
        pd.DataFrame
            Columns `user_id`, `item_id`, `score`, `rank`. What an exact index of `from_model` gives are the rows of
            ``model.recommend``.

        Raises
        ------
        TypeError, ValueError
            If the model has no vectors or others than the index, or as for ``model.recommend``.
        """
        _check_model(model)
        if _similarity_of(model) != self.similarity:
            raise ValueError(
                f"{type(model).__name__} scores by {_similarity_of(model)}, the index by {self.similarity}: "
                "make the index with `ItemIndex.from_model`"
            )
        aligned = model._fitted.reader.align(dataset)
        internal = pd.Index(aligned.item_id_map.external_ids).get_indexer(self._lookup)
        candidates = model._candidates(np.sort(internal[internal >= 0]))
        if not len(candidates):
            raise ValueError("The index has no item that the model knows: make it with `ItemIndex.from_model`")
        known = aligned.item_id_map.external_ids[candidates]
        asking = _asking(model, self, self._lookup.get_indexer(pd.Index(known)))
        return asking.recommend(users, dataset, k, filter_viewed, items_to_recommend=known)

    def _rank_candidates(
        self, queries: torch.Tensor, k: int, seen: sparse.csr_matrix | None, candidates: np.ndarray
    ) -> Ranking:
        """Rank rows of the index given in the order of the candidates, which `seen` and the answer have too."""
        if seen is not None:
            seen = _as_mask(seen.indptr, candidates[seen.indices], (seen.shape[0], len(self)))
        if np.array_equal(candidates, np.arange(len(self))):
            return self._rank(queries, k, seen, None)
        rows, columns, scores = self._rank(queries, k, seen, candidates)
        place = np.zeros(len(self), np.int64)
        place[candidates] = np.arange(len(candidates))
        return rows, place[columns], scores

    # ------------------------------------------------------------------ files

    def save(self, folder: str | Path) -> None:
        """
        Write the index into a folder, which is there as a whole or not at all.

        Parameters
        ----------
        folder : path
            Where to. An index that is there already is replaced.

        Raises
        ------
        ValueError
            If there is something else in its place, or in the folder.
        """
        target = find_folder(folder)
        if target.exists() and not (target / _MANIFEST).is_file():
            raise ValueError(f"`{target}` is there already and is no index: give another `folder`")
        others = sorted({path.name for path in target.iterdir()} - set(_FILES)) if target.exists() else []
        if others:
            raise ValueError(f"`{target}` also has {others[:5]}, which would be lost: give another `folder`")
        with replacing_folder(folder, _FILES) as temporary:
            self._write(temporary)

    def _write(self, folder: Path) -> None:
        arrays = {"vectors": self._vectors.numpy(), "labels": self._labels, "judged": self._judged.numpy()}
        np.savez(folder / _ARRAYS, **arrays)
        (folder / _IDS).write_text(json.dumps(self.ids.tolist()), encoding="utf-8")
        if self._lists is not None:
            faiss.write_index(self._lists, str(folder / _LISTS_FILE))
        manifest = {
            "format": _FORMAT,
            "options": [self.similarity, self.exact, self._seed, self._target_recall, self.threads, self._verbose],
            "lists": [self._radius, self._n_probed, self._n_listed, self.recall],
            "id_type": str(self._lookup.dtype),
            "sha256": {path.name: _sha256_of(path) for path in sorted(folder.iterdir())},
        }
        manifest["manifest_sha256"] = _sha256(json.dumps(manifest).encode())
        (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """
        Read an index from a folder.

        Parameters
        ----------
        folder : path
            What `save` wrote.

        Returns
        -------
        ItemIndex
            The index.

        Raises
        ------
        ValueError
            If the folder has no index, or a file is missing or not as it was written.
        """
        source = find_folder(folder)
        manifest = _read_manifest(source)
        index = cls._empty(*manifest["options"])
        index._radius, index._n_probed, index._n_listed, index.recall = manifest["lists"]
        with np.load(source / _ARRAYS, allow_pickle=False) as arrays:
            index._vectors, index._judged = (torch.from_numpy(arrays[name]) for name in ("vectors", "judged"))
            index._labels = arrays["labels"]
        ids = json.loads((source / _IDS).read_text(encoding="utf-8"))
        index._lookup = pd.Index(ids, dtype=manifest["id_type"])
        if _LISTS_FILE in manifest["sha256"]:
            index._lists = faiss.read_index(str(source / _LISTS_FILE))
        return index


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    if not path.is_file():
        raise ValueError(f"`{folder}` has no index: there is no `{_MANIFEST}` in it")
    again = "build and save the index again"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        expected = manifest.pop("manifest_sha256")
        is_whole = expected == _sha256(json.dumps(manifest).encode())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"`{path}` is broken: {again}") from error
    if not is_whole:
        raise ValueError(f"`{path}` is not as it was written: {again}")
    if manifest["format"] != _FORMAT:
        raise ValueError(f"`{path}` has format {manifest['format']}, this version reads {_FORMAT}: {again}")
    for name, digest in manifest["sha256"].items():
        if not (folder / name).is_file():
            raise ValueError(f"`{folder / name}` is missing: {again}")
        if _sha256_of(folder / name) != digest:
            raise ValueError(f"`{folder / name}` is not as it was written: {again}")
    return manifest


def _sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def _threads(n: int) -> Iterator[None]:
    earlier = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(n)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(earlier)


def index_ranker(model: TwoSidedModel[Any], items: Items, users: Users) -> Ranker:
    """
    Rank the items that a model was fitted on by an index of them instead of one by one.

    Parameters
    ----------
    model : TwoSidedModel
        A fitted model.
    items : Items
        All items that it was fitted on, in its order.
    users : Users
        Those for whom it is to be fast.

    Raises
    ------
    TypeError
        If the model has no vectors.
    """
    _check_model(model)
    index = ItemIndex._empty(_similarity_of(model), exact=False, seed=0, target_recall=0.98, threads=1, verbose=0)
    judged = users.take(index._sampled(len(users)))
    index._fill_for(model, items, judged, judged.histories.to_csr())

    def rank_for(asking: Users, k: int, seen: sparse.csr_matrix | None) -> Ranking:
        return index._rank(index._normalised(_vectors_on(model, _user_vectors, asking)), k, seen, None)

    return rank_for


def _asking(model: TwoSidedModel[Any], index: ItemIndex, candidates: np.ndarray) -> TwoSidedModel[Any]:
    """Make a twin of a model that shares its state and asks the index; the model itself stays as it is."""
    twin = object.__new__(type(model))
    twin.__dict__.update(model.__dict__)

    def rank_for(users: Users, k: int, seen: sparse.csr_matrix | None) -> Ranking:
        queries, dim = _vectors_on(model, _user_vectors, users), index._vectors.shape[1]
        if queries.shape[1] != dim:
            raise ValueError(
                f"{type(model).__name__} has vectors of {queries.shape[1]} numbers, the index of {dim}: make the index "
                "with `ItemIndex.from_model`"
            )
        return index._rank_candidates(queries, k, seen, candidates)

    twin.__dict__["_ranker"] = lambda items: rank_for
    return twin


def _vectors_on(model: TwoSidedModel[Any], encode: Any, entities: Users | Items) -> torch.Tensor:
    vectors: torch.Tensor = model._on_device(lambda module: encode(module, entities).cpu())
    return vectors.clone()  # outside of inference mode, where it may be used like any other tensor


def _similarity_of(model: TwoSidedModel[Any]) -> Similarity:
    # The vectors of a cosine model are of such lengths that their dot product is the score.
    return "euclidean" if model._fitted.module.euclidean else "dot"


def _check_model(model: Any) -> None:
    if not isinstance(model, TwoSidedModel):
        raise TypeError(
            f"{type(model).__name__} does not score by vectors of users and items, so no index can hold it: its own "
            "`recommend` serves it, with exact scores"
        )
    if not model.is_fitted:
        raise NotFittedError(type(model).__name__)


def _as_vectors(vectors: Any, name: str, dim: int | None = None) -> torch.Tensor:
    try:
        table = np.array(vectors, np.float32, order="C")  # a copy: later changes of the argument must not matter
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{name}` must be an array of numbers, a row for each vector") from error
    if table.ndim != 2 or not table.shape[1]:
        raise ValueError(f"`{name}` must have two dimensions, a row for each vector, got the shape {table.shape}")
    if dim is not None and table.shape[1] != dim:
        raise ValueError(f"`{name}` must have {dim} columns as the vectors of the index, got {table.shape[1]}")
    bad = ~np.isfinite(table).all(axis=1)
    if bad.any():
        raise ValueError(f"`{name}` must be finite: row {bad.argmax()} and {bad.sum() - 1} more have NaN or infinity")
    return torch.from_numpy(table)


def _as_ids(ids: Any, name: str = "ids") -> pd.Index:
    if isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable):
        raise TypeError(f"`{name}` must be a list or an array of ids, got {ids!r}")
    lookup = pd.Index(ids if isinstance(ids, (np.ndarray, pd.Series, pd.Index)) else list(ids))
    kind = lookup.inferred_type
    if kind not in ("integer", "string", "empty"):
        raise TypeError(f"`{name}` must all be integers or all be strings, they are `{kind}`")
    lookup = pd.Index(lookup.astype(object if kind == "string" else np.int64), name=None)
    if not lookup.is_unique:
        raise ValueError(f"`{name}` has ids twice, such as {list(lookup[lookup.duplicated()][:5])}")
    return lookup


def _check_lengths(table: torch.Tensor, lookup: pd.Index) -> None:
    if len(table) != len(lookup):
        raise ValueError(f"There are {len(table)} `vectors` and {len(lookup)} `ids`: give an id for each vector")


def _as_mask(indptr: np.ndarray, indices: np.ndarray, shape: tuple[int, int]) -> sparse.csr_matrix:
    """Give all stored entries the value True, each once."""
    mask = sparse.csr_matrix((np.ones(len(indices), bool), indices.copy(), indptr.copy()), shape)
    mask.sum_duplicates()
    return mask
