"""Answers of a saved model to many queries at once, without a data frame in between. Knows nothing of HTTP."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from typing_extensions import Self

Id = int | str


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
    A saved model with the users of its folder, loaded once and never changed.

    Attributes
    ----------
    version : str
        Tells apart the contents of folders: the start of a checksum.
    model_name : str
        Class of the model.
    n_users, n_items : int
        How many it knows.
    """

    version: str
    model_name: str
    n_users: int
    n_items: int

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
        raise NotImplementedError

    def recommend(self, queries: Sequence[Recommend]) -> list[Ranked | QueryError]:
        """Rank items for each query; those that can't be answered get an error in their place."""
        raise NotImplementedError

    def similar(self, queries: Sequence[Similar]) -> list[Ranked | QueryError]:
        """Rank items by their similarity to an item for each query, which itself is left out."""
        raise NotImplementedError

    def score(self, pairs: Sequence[tuple[Id, Id]]) -> list[float]:
        """
        Score pairs of a known user and a known item.

        Raises
        ------
        QueryError
            For the first pair that can't be scored; `field` is its position and "user_id" or "item_id".
        """
        raise NotImplementedError

    def explain(self, subject: Subject, item_id: Id) -> Explained:
        """
        Tell what each part of the history and each feature contributed to a score.

        Raises
        ------
        QueryError
            If it can't be answered.
        """
        raise NotImplementedError
