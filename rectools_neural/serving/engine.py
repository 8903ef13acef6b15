"""Answers of a saved model to many queries at once, without a data frame in between. Knows nothing of HTTP."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, TypeVar

import numpy as np
from scipy import sparse
from typing_extensions import Self

from ..data.features import EncodedFeatures
from ..data.histories import Histories
from ..data.reader import DatasetReader, Items, Users
from ..explanation import explain_pair
from ..models.pack import PackModel
from ..pretrained import Saved, load_all
from ..ranking import Ranker

Id = int | str
Query = TypeVar("Query")
Read = TypeVar("Read")


class QueryError(ValueError):
    """
    A query that can't be answered.

    Parameters
    ----------
    field : tuple
        Where in the query: names of fields and positions in lists.
    message : str
        What is wrong and what to do.
    is_unknown_user : bool
        Whether it asks for a user that the folder does not have.
    """

    def __init__(self, field: tuple[str | int, ...], message: str, is_unknown_user: bool = False) -> None:
        super().__init__(message)
        self.field, self.is_unknown_user = field, is_unknown_user


@dataclass(frozen=True)
class Subject:
    """
    Whom a query is for: at least one of the three.

    Parameters
    ----------
    user_id : int or str or None
        A user whom the folder has.
    history : sequence of (item id, weight) or None
        Oldest first; takes the place of the stored history. Items that the model does not know are left out.
    features : mapping or None
        Value, or list of values, of each feature by name; they take the place of the stored ones.
    """

    user_id: Id | None = None
    history: Sequence[tuple[Id, float]] | None = None
    features: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Recommend:
    """
    Ask for the best items of a subject.

    Parameters
    ----------
    subject : Subject
        For whom.
    k : int
        How many items, at least 1.
    filter_seen : bool
        Leave out the items of the history.
    items : sequence of ids or None
        Recommend nothing but these.
    """

    subject: Subject
    k: int = 10
    filter_seen: bool = True
    items: Sequence[Id] | None = None


@dataclass(frozen=True)
class Similar:
    """Ask for the `k` items that are most like an item, of `items` alone if they are given."""

    item_id: Id
    k: int = 10
    items: Sequence[Id] | None = None


@dataclass(frozen=True)
class Ranked:
    """
    Items, best first.

    Parameters
    ----------
    items : list of ids
        Fewer than asked for only where there are no more.
    scores : list of float
        Their scores.
    ignored : list of ids
        Items of a given history that the model does not know.
    """

    items: list[Id]
    scores: list[float]
    ignored: list[Id]


@dataclass(frozen=True)
class Explained:
    """What a score is due to; `contributions` are dicts of kind, name, value and contribution, the largest first."""

    score: float
    is_exact: bool
    sentence: str
    contributions: list[dict[str, object]]


class Engine:
    """
    A saved model with the users of its folder, loaded once and never changed. Not for several threads at once.

    Attributes
    ----------
    version : str
        Tells apart the contents of folders: the start of a checksum.
    model_name : str
        Class of the model.
    n_users, n_items : int
        How many it knows.
    """

    def __init__(self, saved: Saved, ann: bool = False) -> None:
        model: Any = saved.model
        reader: DatasetReader = model._fitted.reader
        if model.require_recommend_context:
            raise ValueError(
                f"{type(model).__name__} goes by the context of each request, and is not served: fit it without "
                "`context_numeric` and `context_categorical`"
            )
        for side, ids in (("user", saved.user_ids), ("item", reader.item_ids)):
            if ids is not None and not all(isinstance(one, int | str) for one in ids.tolist()):
                raise ValueError(f"The {side} ids are neither integers nor strings, so no request can name them")
        self._model, self._reader = model, reader
        self.version, self.model_name = saved.version, type(model).__name__
        self._item_ids: list[Id] = reader.item_ids.tolist()
        self._item_rows = {item: row for row, item in enumerate(self._item_ids)}
        user_ids: list[Id] = [] if saved.user_ids is None else saved.user_ids.tolist()
        self._user_rows = {user: row for row, user in enumerate(user_ids)}
        # One more than there are stands for those of whom the folder knows nothing.
        self._users = _with_nobody(saved.users, reader)
        self._items = Items(np.arange(len(self._item_ids)), reader.item_features)
        self.n_users, self.n_items = len(user_ids), len(self._item_ids)
        self._ranker: Ranker = self._index() if ann else model._ranker(self._items)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], ann: bool = False) -> Self:
        """
        Load a folder that `save_pretrained` has written, best with the option `dataset`, which brings the users.

        Parameters
        ----------
        folder : path
            The folder.
        ann : bool, default False
            Build an index of the items, for very large catalogues; only for models that score by vectors.

        Raises
        ------
        FileNotFoundError, ValueError, TypeError
            As for `from_pretrained`; or if the model needs a context, or can't have an index.
        """
        return cls(load_all(folder), ann)

    def recommend(self, queries: Sequence[Recommend]) -> list[Ranked | QueryError]:
        """Rank items for each query; those that can't be answered get an error in their place."""
        return _answer(queries, self._read, self._rank)

    def similar(self, queries: Sequence[Similar]) -> list[Ranked | QueryError]:
        """Rank items by their similarity to an item for each query, which itself is left out."""
        return _answer(queries, self._read_item, self._rank_similar)

    def score(self, pairs: Sequence[tuple[Id, Id]]) -> list[float]:
        """
        Score pairs of a known user and a known item.

        Raises
        ------
        QueryError
            For the first pair that can't be scored; `field` is its position and "user_id" or "item_id".
        """
        places = []
        for position, (user, item) in enumerate(pairs):
            with _within(position):
                places.append((self._user_row(user), self._item_row(item, "item_id")))
        users, items = np.array(places, np.int64).reshape(-1, 2).T
        (some_users, rows), (some_items, columns) = (np.unique(side, return_inverse=True) for side in (users, items))
        subjects, candidates = self._users.take(some_users), self._items.take(some_items)
        scores: list[float] = self._model._score_all_pairs(subjects, candidates, rows, columns, None).tolist()
        return scores

    def explain(self, subject: Subject, item_id: Id) -> Explained:
        """
        Tell what each part of the history and each feature contributed to a score.

        Raises
        ------
        QueryError
            If it can't be answered.
        """
        row = self._item_row(item_id, "item_id")
        users = self._gather([self._read_subject(subject)])
        name = "unknown" if subject.user_id is None else subject.user_id
        found = explain_pair(self._model, users, self._items.take(np.array([row])), name, item_id)
        contributions = [
            {str(key): _plain(value) for key, value in part.items()} for part in found.contributions.to_dict("records")
        ]
        return Explained(found.score, found.is_exact, found.sentence(), contributions)

    # ------------------------------------------------------------------ recommend

    def _read(self, query: Recommend) -> _Asked:
        return _Asked(self._read_subject(query.subject), query.k, query.filter_seen, self._allowed(query.items))

    def _rank(self, asked: Sequence[_Asked]) -> list[Ranked]:
        users = self._gather([one.person for one in asked])
        hidden = [self._hidden(one, users.histories, row) for row, one in enumerate(asked)]
        indptr = np.concatenate([[0], np.cumsum([len(items) for items in hidden])])
        columns = np.concatenate(hidden)
        mask = sparse.csr_matrix((np.ones(len(columns), bool), columns, indptr), (len(asked), self.n_items))
        k = max(one.k for one in asked)
        rows, ranked, scores = self._model._rank_all(users, self._items, k, mask, self._ranker)
        ends = np.searchsorted(rows, np.arange(len(asked) + 1)).tolist()
        spans = [slice(start, min(end, start + one.k)) for one, start, end in zip(asked, ends, ends[1:], strict=False)]
        return [
            self._ranked(ranked[span], scores[span], one.person.ignored) for one, span in zip(asked, spans, strict=True)
        ]

    def _hidden(self, asked: _Asked, histories: Histories, row: int) -> np.ndarray:
        seen = histories.items[histories.indptr[row] : histories.indptr[row + 1]]
        if asked.allowed is None:
            return seen if asked.filter_seen else seen[:0]
        is_hidden = np.ones(self.n_items, bool)
        is_hidden[asked.allowed] = False
        if asked.filter_seen:
            is_hidden[seen] = True
        return np.flatnonzero(is_hidden)

    def _ranked(self, rows: np.ndarray, scores: np.ndarray, ignored: list[Id]) -> Ranked:
        return Ranked([self._item_ids[row] for row in rows.tolist()], scores.tolist(), ignored)

    def _index(self) -> Ranker:
        from ..ann import index_ranker  # needs faiss

        known = self._users.take(np.flatnonzero(self._users.histories.lengths))
        if not len(known):
            raise ValueError("An index is made for users: save the model with the option `dataset`")
        return index_ranker(self._model, self._items, known)

    # ------------------------------------------------------------------ similar

    def _read_item(self, query: Similar) -> _AskedItem:
        if type(self._model)._rank_items is PackModel._rank_items:
            raise QueryError(("item_id",), f"{self.model_name} compares users, and knows no similar items")
        return _AskedItem(self._item_row(query.item_id, "item_id"), query.k, self._allowed(query.items))

    def _rank_similar(self, asked: Sequence[_AskedItem]) -> list[Ranked]:
        return [self._similar_to(one) for one in asked]

    def _similar_to(self, asked: _AskedItem) -> Ranked:
        candidates = np.arange(self.n_items) if asked.allowed is None else asked.allowed
        targets, items = self._items.take(np.array([asked.row])), self._items.take(candidates)
        _, places, scores = self._model._rank_items(targets, items, asked.k + 1)  # the item itself may be among them
        rows = candidates[places]
        others = np.flatnonzero(rows != asked.row)[: asked.k]
        return self._ranked(rows[others], scores[others], [])

    # ------------------------------------------------------------------ read

    def _user_row(self, user: Id) -> int:
        row = self._user_rows.get(user, -1)
        if row < 0:
            known = "the folder has no users: save the model with the option `dataset`, or give"
            known = f"the folder does not have user {user!r}: give" if self._user_rows else known
            raise QueryError(("user_id",), f"{known} a `history` or `features`", is_unknown_user=True)
        return row

    def _item_row(self, item: Id, *field: str | int) -> int:
        row = self._item_rows.get(item, -1)
        if row < 0:
            raise QueryError(field, f"the model does not know item {item!r}")
        return row

    def _allowed(self, items: Sequence[Id] | None) -> np.ndarray | None:
        if items is None:
            return None
        return np.unique([self._item_row(item, "items", place) for place, item in enumerate(items)])

    def _read_subject(self, subject: Subject) -> _Person:
        is_new = subject.user_id is None
        if is_new and subject.history is None and subject.features is None:
            raise QueryError((), "one of `user_id`, `history` and `features` must tell for whom it is")
        row = self.n_users if subject.user_id is None else self._user_row(subject.user_id)
        features = None if subject.features is None else self._read_features(subject.features)
        if subject.history is None:
            return _Person(row, None, features)
        if is_new and not self._model._uses_histories:
            raise QueryError(("history",), f"{self.model_name} learns nothing from the history of a new user")
        history, ignored = self._read_history(subject.history)
        if not history and not self._model.recommends_for_cold:
            raise QueryError(("history",), f"{self.model_name} knows none of these items, and so nothing of the user")
        return _Person(row, history, features, ignored)

    def _read_history(self, history: Sequence[tuple[Id, float]]) -> tuple[dict[int, float], list[Id]]:
        found: dict[int, float] = {}
        ignored: list[Id] = []
        for item, weight in history:
            row = self._item_rows.get(item)
            if row is None:
                ignored.append(item)
            else:  # an item that comes again counts at its last place, with the sum of its weights
                found[row] = found.pop(row, 0.0) + weight
        return found, ignored

    def _read_features(self, values: Mapping[str, object]) -> EncodedFeatures:
        encoder = self._reader.user_encoder
        if encoder.kind == "none":
            reason = "was fitted without features of users" if self._model.uses_features else "goes by no features"
            raise QueryError(("features",), f"{self.model_name} {reason}: leave them out")
        try:
            return encoder.encode(encoder.read_values(values), 1)
        except ValueError as error:
            raise QueryError(("features",), str(error)) from error

    def _gather(self, people: Sequence[_Person]) -> Users:
        """Put users together: what is stored of them, or what has been given in its place."""
        users = self._users.take(np.array([person.row for person in people]))
        given = {place: person.features for place, person in enumerate(people) if person.features is not None}
        if given:
            places = np.arange(len(people))
            places[list(given)] = len(people) + np.arange(len(given))
            users = replace(users, features=reduce(EncodedFeatures.append, given.values(), users.features).take(places))
        if any(person.history is not None for person in people):
            users = replace(users, histories=_with_given(users.histories, [person.history for person in people]))
        return users


@dataclass(frozen=True)
class _Person:
    """Row among the stored users; history as weights by item row, and features, where they have been given."""

    row: int
    history: dict[int, float] | None
    features: EncodedFeatures | None
    ignored: list[Id] = field(default_factory=list)


@dataclass(frozen=True)
class _Asked:
    person: _Person
    k: int
    filter_seen: bool
    allowed: np.ndarray | None


@dataclass(frozen=True)
class _AskedItem:
    row: int
    k: int
    allowed: np.ndarray | None


def _answer(
    queries: Sequence[Query], read: Callable[[Query], Read], rank: Callable[[Sequence[Read]], list[Ranked]]
) -> list[Ranked | QueryError]:
    """Read all queries, and rank at once for those that make sense."""
    read_ones: list[Read | QueryError] = []
    for query in queries:
        try:
            read_ones.append(read(query))
        except QueryError as error:
            read_ones.append(error)
    good = [one for one in read_ones if not isinstance(one, QueryError)]
    ranked = iter(rank(good) if good else [])
    return [one if isinstance(one, QueryError) else next(ranked) for one in read_ones]


@contextmanager
def _within(place: int) -> Iterator[None]:
    """Say of which of several queries an error is."""
    try:
        yield
    except QueryError as error:
        raise QueryError((place, *error.field), str(error), error.is_unknown_user) from None


def _with_nobody(users: Users | None, reader: DatasetReader) -> Users:
    nobody = reader.unknown_users(1)
    if users is None:
        return nobody
    indptr = np.append(users.histories.indptr, users.histories.indptr[-1])
    return Users(
        np.append(users.rows, nobody.rows),
        replace(users.histories, indptr=indptr),
        users.features.append(nobody.features),
    )


def _with_given(stored: Histories, given: Sequence[dict[int, float] | None]) -> Histories:
    """Replace the histories that have been given, as weights by item row."""
    items, weights = [], []
    for user, history in enumerate(given):
        own = slice(stored.indptr[user], stored.indptr[user + 1])
        items.append(stored.items[own] if history is None else np.array(list(history), np.int64))
        if stored.weights is not None:
            weights.append(stored.weights[own] if history is None else np.array(list(history.values()), float))
    indptr = np.concatenate([[0], np.cumsum([len(part) for part in items])])
    joint_weights = None if stored.weights is None else np.concatenate(weights)
    return Histories(indptr, np.concatenate(items), stored.n_items, joint_weights)


def _plain(value: object) -> object:
    plain = value.item() if isinstance(value, np.generic) else value
    return None if plain != plain else plain  # what has no value, such as the rest, may be NaN in a table
