"""What all models of the pack share: config, constructor, ids and recommending. No training."""

from __future__ import annotations

import inspect
import os
import warnings
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import pandas as pd
import torch
from pydantic import BeforeValidator, PlainSerializer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.exceptions import NotFittedError
from rectools.models.base import ModelBase, ModelConfig
from rectools.utils.misc import get_class_or_function_full_path, import_object
from scipy import sparse
from typing_extensions import Self

from ..data.features import EncodedFeatures
from ..data.reader import AlignedDataset, DatasetReader, Items, Users, match, seen_matrix
from ..errors import did_you_mean
from ..pretrained import StoredArrays, save_pretrained
from ..ranking import Ranker, Ranking, rank
from ..registry import MODELS

_DENSE = 0.005  # share of the pairs


def _public_name(cls: type[ModelBase[Any]]) -> str:
    """Name under which a class can be imported for good: a moved file must not break saved configs."""
    name = cls.__name__
    if MODELS.get(name) == cls.__module__:
        return f"rectools_neural.{name}"
    return str(get_class_or_function_full_path(cls))


def import_if_str(value: Any) -> Any:
    """Import a dotted path, and let anything else through."""
    try:
        return import_object(value) if isinstance(value, str) else value
    except (ImportError, AttributeError) as error:
        raise ValueError(f"`{value}` can't be imported: {error}") from error


PublicModelClass = Annotated[
    type[ModelBase],
    BeforeValidator(import_if_str),
    PlainSerializer(_public_name, return_type=str, when_used="json"),
]


class PackModelConfig(ModelConfig):
    """Base of all configs of the pack: serialises the public name of the model class."""

    cls: PublicModelClass | None = None


Config = TypeVar("Config", bound=PackModelConfig)


class Fitted(Protocol):
    """What every model keeps of its fit."""

    @property
    def config(self) -> Any:
        """The options with all that followed from the data filled in."""

    @property
    def reader(self) -> DatasetReader:
        """How to read a dataset."""


@dataclass(frozen=True)
class LinearParts:
    """
    What the score of a pair is the sum of.

    Parameters
    ----------
    history : np.ndarray
        Part of each item of the history, in its order, shape ``(n_history,)``.
    user_features, item_features : np.ndarray
        Part of each stored category, then of each number, shapes ``(n_features,)``.
    rest : float
        Part of what is there for any history and any features: ids and biases.
    """

    history: np.ndarray
    user_features: np.ndarray
    item_features: np.ndarray
    rest: float


class PackModel(ModelBase[Config], Generic[Config]):
    """
    Base of all models of the pack: the constructor takes the fields of the config, by name.

    Names, types, defaults and checks stand in the config class alone; here they become the constructor's signature
    and the attributes of the model.

    Internal ids of a dataset shift when rows are added or reordered. A fitted model therefore keeps the external ids
    of its users and items and reads any later dataset through them. A model says how to rank items for users and for
    items (`_ranker`, `_rank_items`).
    """

    config_class: type[Config]
    #: Whether the model goes by features. One that doesn't ranks no item that it was not fitted on, and, if it
    #: recommends for cold users, gives what is popular to users without a history.
    uses_features: ClassVar[bool] = False

    _fitted: Fitted

    def _ranker(self, items: Items) -> Ranker:
        """Make what ranks these items for users; what follows from the items alone is computed once, here."""
        raise NotImplementedError

    def _rank_items(self, targets: Items, items: Items, k: int) -> Ranking:
        raise NotImplementedError

    def _score_pairs(
        self, users: Users, items: Items, rows: np.ndarray, columns: np.ndarray, context: EncodedFeatures | None
    ) -> np.ndarray:
        """Score the pairs ``(users[rows], items[columns])``, each in its situation where the model goes by it."""
        raise NotImplementedError

    def _linear_parts(self, user: Users, item: Items) -> LinearParts | None:
        """Take apart the score of one user and one item; None where it is not linear in its parts."""
        return None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        options = getattr(cls, "config_class", PackModelConfig).model_fields
        parameters = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=f.get_default(call_default_factory=True))
            for name, f in options.items()
            if name != "cls"
        ]
        cls.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]

    def __init__(self, **params: Any) -> None:
        valid = [name for name in self.config_class.model_fields if name != "cls"]
        for name in params:
            if name not in valid:
                raise TypeError(f"{type(self).__name__} has no parameter `{name}`{did_you_mean(name, valid)}")
        config = self.config_class(**params)
        super().__init__(verbose=config.verbose)
        for name in valid:
            setattr(self, name, getattr(config, name))

    def _get_config(self) -> Config:
        options = {name: getattr(self, name) for name in self.config_class.model_fields if name != "cls"}
        return self.config_class(cls=type(self), **options)

    @classmethod
    def _from_config(cls, config: Config) -> Self:
        return cls(**{name: getattr(config, name) for name in type(config).model_fields if name != "cls"})

    def __repr__(self) -> str:
        config = self._get_config()
        values = config.model_dump(mode="json", exclude={"cls"})
        shown = {name: values[name] for name in config.model_dump(exclude={"cls"}, exclude_defaults=True)}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @property
    def fitted_config(self) -> Config:
        """The options that the model was fitted with: those that were left open have the values chosen for the data."""
        if not self.is_fitted:
            raise NotFittedError(type(self).__name__)
        config: Config = self._fitted.config
        return config

    # ------------------------------------------------------------------ files

    def save_pretrained(self, folder: str | os.PathLike[str], dataset: Dataset | None = None) -> None:
        """
        Write the fitted model to a folder of plain files, without pickle; `rectools_neural.from_pretrained` loads it.

        The folder is there as a whole or not at all. The options `get_trainer_func` and `get_trainer_func_kwargs` are
        not saved: the one is code, and the other is for it.

        Parameters
        ----------
        folder : path
            Where to. A folder of a saved model is replaced, and an empty one; any other is left alone.
        dataset : Dataset, optional
            Whose users the folder shall know: their histories and features as the model reads them. Without it the
            folder has no users.

        Raises
        ------
        NotFittedError
            If the model is not fitted.
        TypeError
            If `dataset` is no dataset.
        FileExistsError
            If the folder has other files.
        ValueError
            If the model can't be held by the files: ids of mixed types, values of features that are neither strings
            nor numbers, weights that are not finite. If `dataset` has no interactions or other features than those of
            the fit, or the model goes by a context.
        """
        if dataset is not None:
            check_not_empty(dataset, "dataset")
            if self.require_recommend_context:
                raise ValueError(
                    f"This {type(self).__name__} goes by the context of a recommendation, which stored users don't "
                    "have: save it without `dataset`, or fit it without context columns"
                )
        save_pretrained(self, folder, dataset)

    def _arrays(self) -> dict[str, Any]:
        """Arrays and numbers that `_fitted` has besides the config and the reader, by name."""
        state: Any = self._fitted
        return {f.name: getattr(state, f.name) for f in fields(state) if f.name not in ("config", "reader")}

    def _restore(self, config: Config, reader: DatasetReader, arrays: StoredArrays) -> None:
        """Make `_fitted` of what was saved; the arrays may be anything but for what `StoredArrays` checks."""
        raise NotImplementedError

    # ------------------------------------------------------------------ recommend

    def _custom_transform_dataset_u2i(
        self, dataset: Dataset, users: Any, on_unsupported_targets: str, context: Any = None
    ) -> AlignedDataset:
        return self._fitted.reader.align(dataset)

    def _custom_transform_dataset_i2i(
        self, dataset: Dataset, target_items: Any, on_unsupported_targets: str
    ) -> AlignedDataset:
        known = dataset.item_id_map.external_ids if self.uses_features else self._fitted.reader.item_ids
        self._refuse_unknown_items(np.asarray(target_items), known, on_unsupported_targets)
        return self._fitted.reader.align(dataset, is_for_items=True)

    def _recommend_u2i(
        self,
        user_ids: np.ndarray,
        dataset: AlignedDataset,
        k: int,
        filter_viewed: bool,
        sorted_item_ids_to_recommend: np.ndarray | None,
    ) -> Ranking:
        candidates = self._candidates(sorted_item_ids_to_recommend)
        seen = seen_matrix(dataset, user_ids, candidates) if filter_viewed else None
        reader, items = self._fitted.reader, dataset.items.take(candidates)
        context = reader.context_of(dataset, dataset.user_id_map.external_ids[user_ids])
        users = replace(reader.users(dataset, user_ids), context=context)
        ranking = self._rank_all(users, items, k, seen)
        return user_ids[ranking[0]], candidates[ranking[1]], ranking[2]

    def _recommend_u2i_warm(
        self, user_ids: np.ndarray, dataset: AlignedDataset, k: int, sorted_item_ids_to_recommend: np.ndarray | None
    ) -> Ranking:
        return self._recommend_u2i(user_ids, dataset, k, False, sorted_item_ids_to_recommend)

    def _recommend_cold(
        self, target_ids: np.ndarray, dataset: AlignedDataset, k: int, sorted_item_ids_to_recommend: np.ndarray | None
    ) -> Ranking:
        if dataset.is_for_items:  # refused already
            return target_ids[:0], np.empty(0, np.int64), np.empty(0, np.float32)
        candidates = self._candidates(sorted_item_ids_to_recommend)
        reader, items, n = self._fitted.reader, dataset.items.take(candidates), len(target_ids)
        context = reader.context_of(dataset, target_ids)
        if context is not None:
            subjects, ranked, scores = self._rank_all(replace(reader.unknown_users(n), context=context), items, k, None)
            return target_ids[subjects], candidates[ranked], scores
        # Nothing is known of a cold user: one ranking serves all of them.
        _, ranked, scores = self._rank_all(reader.unknown_users(1), items, k, None)
        return np.repeat(target_ids, len(ranked)), np.tile(candidates[ranked], n), np.tile(scores, n)

    def predict_pairs(self, pairs: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
        """
        Score given pairs of users and items.

        Parameters
        ----------
        pairs : pd.DataFrame
            Columns `user_id`, `item_id` with external ids, and those of the context for models that go by it.
        dataset : Dataset
            Where users and items are known from: their features and histories.

        Returns
        -------
        pd.DataFrame
            The pairs with a further column `score`: a probability for target "label", a rating for target "rating",
            else what `recommend` gives.

        Raises
        ------
        NotFittedError
            If the model is not fitted.
        ValueError
            If a column is missing, a user is not in the dataset, or an item is in neither the dataset nor the training
            data (for models without features: not in the training data).
        """
        if not self.is_fitted:
            raise NotFittedError(type(self).__name__)
        absent = [name for name in (Columns.User, Columns.Item) if name not in pairs.columns]
        if absent:
            raise ValueError(f"`pairs` lack the columns {absent}: they tell who and what is to be scored")
        reader = self._fitted.reader
        context = None if reader.context_encoder is None else reader.context_encoder.encode(pairs, "The `pairs`")
        aligned = reader.align(dataset)
        known_items = aligned.item_id_map.external_ids if self.uses_features else reader.item_ids
        add = "add them to the dataset by a feature or an interaction"
        user_ids = _find(pairs, Columns.User, aligned.user_id_map.external_ids, add)
        item_ids = _find(pairs, Columns.Item, known_items, add if self.uses_features else "fit the model on them")
        unique_users, rows = np.unique(user_ids, return_inverse=True)
        unique_items, columns = np.unique(item_ids, return_inverse=True)
        users, items = reader.users(aligned, unique_users), aligned.items.take(unique_items)
        return pairs.assign(**{Columns.Score: self._score_all_pairs(users, items, rows, columns, context)})

    def _score_all_pairs(
        self, users: Users, items: Items, rows: np.ndarray, columns: np.ndarray, context: EncodedFeatures | None
    ) -> np.ndarray:
        """As `_score_pairs`, for users of all kinds: those of whom the model knows nothing get what is popular."""
        judged = self._judges(users)[rows]
        scores = self._fitted.reader.popularity[items.rows[columns]].astype(np.float32)
        scores[judged] = self._score_pairs(users, items, rows[judged], columns[judged], context)
        return scores

    def _rank_all(
        self, users: Users, items: Items, k: int, seen: sparse.csr_matrix | None, ranker: Ranker | None = None
    ) -> Ranking:
        """Rank for users of all kinds: those of whom the model knows nothing get what is popular."""
        known = self._judges(users)
        rank_for = ranker or self._ranker(items)
        if known.all():
            return rank_for(users, k, seen)
        popularity = torch.from_numpy(self._fitted.reader.popularity[items.rows].astype(np.float32))

        def popular(rows: slice) -> torch.Tensor:
            return popularity.repeat(rows.stop - rows.start, 1)

        parts = []
        for positions, is_known in ((np.flatnonzero(known), True), (np.flatnonzero(~known), False)):
            of_part = None if seen is None else seen[positions]
            if is_known:
                ranking = rank_for(users.take(positions), k, of_part)
            else:
                ranking = rank(popular, len(positions), len(items), k, of_part)
            parts.append((positions[ranking[0]], *ranking[1:]))
        subjects, ranked, scores = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        order = np.argsort(subjects, kind="stable")
        return subjects[order], ranked[order], scores[order]

    @property
    def _uses_histories(self) -> bool:
        """Whether the history of a user tells the model more than the row of the user."""
        return True

    def _judges(self, users: Users) -> np.ndarray:
        """Tell for which users the model itself speaks, shape ``(n_users,)``; the others get what is popular."""
        if self.uses_features or not self.recommends_for_cold:
            return np.ones(len(users), bool)
        return users.histories.lengths > 0

    def _recommend_i2i(
        self, target_ids: np.ndarray, dataset: AlignedDataset, k: int, sorted_item_ids_to_recommend: np.ndarray | None
    ) -> Ranking:
        candidates = self._candidates(sorted_item_ids_to_recommend)
        target_ids = self._candidates(target_ids)  # unknown ones have been refused
        targets, items = dataset.items.take(target_ids), dataset.items.take(candidates)
        ranking = self._rank_items(targets, items, k)
        return target_ids[ranking[0]], candidates[ranking[1]], ranking[2]

    _recommend_i2i_warm = _recommend_i2i

    def _refuse_unknown_items(self, targets: np.ndarray, known: np.ndarray, on_unsupported_targets: str) -> None:
        unknown = targets[match(targets, known) < 0]
        if not len(unknown) or on_unsupported_targets == "ignore":
            return
        explanation = (
            f"Items {list(unknown[:5])} are cold: they are not in the dataset, and nothing is known of them. Add their "
            "features to the dataset, or leave them out of `target_items`"
            if self.uses_features
            else f"{type(self).__name__} was not fitted on the items {list(unknown[:5])} and knows items by their "
            "interactions alone: fit it on data that have them, or leave them out of `target_items`"
        )
        if on_unsupported_targets == "raise":
            raise ValueError(explanation)
        warnings.warn(explanation, stacklevel=4)

    def _candidates(self, whitelist: np.ndarray | None) -> np.ndarray:
        """Items to rank: the whitelist, or those that the model was fitted on, which the aligned dataset puts first."""
        n_fitted = len(self._fitted.reader.item_ids)
        if whitelist is None:
            return np.arange(n_fitted)
        return whitelist if self.uses_features else whitelist[whitelist < n_fitted]


def _find(pairs: pd.DataFrame, column: str, known: np.ndarray, remedy: str) -> np.ndarray:
    found = match(pairs[column].to_numpy(), known)
    if (found < 0).any():
        unknown = pd.unique(pairs.loc[found < 0, column])
        raise ValueError(
            f"Column `{column}` of `pairs` has {len(unknown)} ids that are not known, such as {list(unknown[:5])}: "
            f"{remedy}, or leave these pairs out"
        )
    return found


def is_dense(n_users: int, n_items: int, n_interactions: int) -> bool:
    """Whether many of the user-item pairs are there, as with films: the best settings depend on it."""
    return n_interactions >= _DENSE * n_users * n_items


def check_not_empty(dataset: Dataset, name: str) -> None:
    """Raise where an argument is no dataset or has no interactions."""
    if not isinstance(dataset, Dataset):
        raise TypeError(f"`{name}` must be a rectools.dataset.Dataset, got {type(dataset).__name__}")
    if dataset.interactions.df.empty:
        raise ValueError(f"`{name}` has no interactions: there is nothing to learn from")
