"""
What the contract of all models needs to know of each: a new model adds one entry to `CASES`.

Besides, what the tests of single models share.
"""

from __future__ import annotations

import logging
import os
import random
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from pandas.testing import assert_frame_equal
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models.base import ModelBase

import rectools_neural


@dataclass(frozen=True)
class Case:
    """
    One model.

    Parameters
    ----------
    fast : dict
        Options with which it fits in a moment.
    good : dict
        Options with which it learns the two groups of the small data sets.
    rich : dict
        Options unlike the defaults, of all types, as a config file holds them.
    serves_items : bool
        Whether it recommends to items.
    scores_any_item : bool
        Whether each user gets a score for each item: for all the fitted ones, and for warm ones of a whitelist.
    """

    fast: dict[str, Any]
    good: dict[str, Any]
    rich: dict[str, Any]
    serves_items: bool = True
    scores_any_item: bool = True


_AUTOENCODER: dict[str, dict[str, Any]] = {
    "fast": {"epochs": 3, "n_factors": 8, "hidden": (12,)},
    "good": {"epochs": 40, "n_factors": 8, "hidden": (16,), "batch_size": 20, "learning_rate": 0.02},
    "rich": {
        "epochs": 2,
        "n_factors": 6,
        "hidden": [10],
        "decoder_hidden": [10],
        "activation": "elu",
        "share_item_embedding": True,
        "history_dropout": 0.3,
        "loss": "sampled_softmax",
        "negatives": {"name": "popularity", "n": 5, "shared": True, "power": 0.5},
        "use_weights": True,
        "batch_size": 7,
        "optimizer": {"name": "adamw", "l2": 0.01},
        "validation": {"name": "random", "size": 0.2, "metric": "mrr", "k": 4, "patience": 2},
        "seed": 3,
    },
}


def _autoencoder(**rich: Any) -> Case:
    options = _AUTOENCODER
    return Case(options["fast"], options["good"], {**options["rich"], **rich}, scores_any_item=False)


CASES = {
    "DAEModel": _autoencoder(history_noise=0.05),
    "MultDAEModel": _autoencoder(),
    "MultVAEModel": _autoencoder(beta=0.5, annealing_steps=3),
    "RecVAEModel": _autoencoder(gamma=0.02, mixture=[0.2, 0.7, 0.1], encoder_passes=2, decoder_passes=2),
    "DSSMModel": Case(
        fast={"epochs": 3, "n_factors": 8},
        good={"epochs": 40, "n_factors": 8, "batch_size": 40, "learning_rate": 0.05, "loss": "bpr"},
        rich={
            "epochs": 2,
            "n_factors": 6,
            "batch_size": 7,
            "learning_rate": 0.003,
            "loss": {"name": "triplet", "margin": 0.3, "mining": "semi_hard"},
            "negatives": {"name": "popularity", "n": 3, "power": 0.5},
            "similarity": "euclidean",
            "user_tower": {"name": "mlp", "hidden": [12, 10], "activation": "elu", "normalisation": "layer"},
            "item_tower": "residual",
            "history_encoder": {"name": "attention", "n_heads": 3},
            "optimizer": {"name": "adamw", "l2": 0.01, "schedule": {"name": "step", "step_epochs": 1}},
            "validation": {"name": "last_n", "size": 1, "metric": "recall", "k": 4},
            "seed": 7,
            "device": "cpu",
            "get_trainer_func": "pytorch_lightning.Trainer",
            "get_trainer_func_kwargs": {"max_steps": 20},
            "verbose": 0,
        },
    ),
    "DLRMModel": Case(
        fast={"epochs": 3, "n_factors": 8, "top_hidden": (8,)},
        good={"epochs": 100, "n_factors": 8, "top_hidden": (8,), "batch_size": 20, "optimizer": {"l2": 0.001}},
        rich={
            "epochs": 2,
            "n_factors": 6,
            "bottom_hidden": [5],
            "top_hidden": [7, 4],
            "self_interaction": True,
            "history_encoder": {"name": "attention", "n_heads": 3},
            "loss": "bpr",
            "negatives": {"name": "hard", "n": 2, "pool": 3},
            "activation": "elu",
            "dropout": 0.1,
            "entity_dropout": 0.1,
            "batch_size": 7,
            "validation": {"name": "last_n", "size": 1, "metric": "recall", "k": 4},
            "seed": 7,
        },
    ),
    "LightGCNModel": Case(
        fast={"epochs": 3, "n_factors": 8},
        good={"epochs": 30, "n_factors": 8, "batch_size": 64, "learning_rate": 0.05, "loss": "bpr"},
        rich={
            "epochs": 2,
            "n_factors": 6,
            "n_layers": 2,
            "layer_weights": [0.2, 0.5, 0.3],
            "batch_size": 50,
            "learning_rate": 0.01,
            "loss": "sampled_softmax",
            "negatives": {"name": "popularity", "n": 10, "power": 0.5, "shared": True},
            "similarity": "cosine",
            "temperature": 0.3,
            "edge_dropout": 0.2,
            "embedding_l2": 0.001,
            "contrastive": {"name": "simgcl", "weight": 0.3, "noise": 0.1},
            "validation": {"name": "last_n", "size": 1, "metric": "recall", "k": 4},
            "seed": 7,
            "verbose": 0,
        },
        scores_any_item=False,
    ),
    "GFCFModel": Case(
        fast={"n_factors": 3},
        good={"n_factors": 2, "alpha": 1.0},
        rich={
            "n_factors": 4,
            "alpha": 0.7,
            "user_exponent": 0.4,
            "item_exponent": 0.2,
            "use_weights": True,
            "seed": 5,
        },
        scores_any_item=False,
    ),
    "NCFModel": Case(
        fast={"epochs": 3, "n_factors": 8, "hidden": (8,)},
        good={
            "epochs": 60,
            "n_factors": 8,
            "hidden": (8,),
            "batch_size": 20,
            "learning_rate": 0.02,
            "optimizer": {"name": "adamw", "l2": 3.0},
        },
        rich={
            "epochs": 2,
            "n_factors": 6,
            "architecture": "neumf",
            "hidden": [7, 4],
            "merge": "product",
            "user_tower": {"name": "mlp", "hidden": [5]},
            "item_tower": "residual",
            "pretraining": {"alpha": 0.3, "epochs": 1},
            "loss": "bce",
            "negatives": {"name": "popularity", "n": 3, "power": 0.5},
            "activation": "silu",
            "dropout": 0.1,
            "batch_size": 50,
            "optimizer": {"name": "adam", "l2": 0.001},
            "ranking_precision": "bfloat16",
            "seed": 3,
        },
    ),
    "UserKNNModel": Case(
        fast={"n_neighbors": 5},
        good={"n_neighbors": 20},
        rich={"similarity": "tfidf", "n_neighbors": 3, "normalise": False},
        serves_items=False,
        scores_any_item=False,
    ),
}


def make_model(name: str, options: str = "fast", **others: Any) -> ModelBase[Any]:
    """Make the model of this name with the options of its case and others on top."""
    return getattr(rectools_neural, name)(**{**getattr(CASES[name], options), **others})


def hot_users(dataset: Dataset) -> np.ndarray:
    """Users with interactions, sorted, so that the order of rows in the dataset does not show."""
    return np.sort(dataset.get_raw_interactions()[Columns.User].unique())


def recommend(
    model: ModelBase[Any], dataset: Dataset, users: Iterable[Any] | None = None, k: int = 5, **options: Any
) -> pd.DataFrame:
    """Recommend to the given users, or to all with interactions, what they have not seen."""
    targets = hot_users(dataset) if users is None else list(users)
    return model.recommend(targets, dataset, k, **{"filter_viewed": True, **options})


def assert_same(actual: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Same recommendations, scores but for the rounding that depends on the shape of a matrix product."""
    assert_frame_equal(actual.reset_index(drop=True), expected.reset_index(drop=True), rtol=1e-4, atol=1e-5)


def is_own_group(reco: pd.DataFrame) -> pd.Series:
    """Tell which recommended items are of the group of their user: see ``make_frames`` of the fixtures."""
    return reco[Columns.User].str[1:].astype(int) % 2 == reco[Columns.Item] % 2


def own_share(model: ModelBase[Any], dataset: Dataset, users: Iterable[Any] | None = None, k: int = 3) -> float:
    """Share of the top-k that is of the own group. By popularity alone it is about 0.1 for the default data."""
    return float(is_own_group(recommend(model, dataset, users, k)).mean())


def interactions(pairs: Any, day: str = "2024-01-01") -> pd.DataFrame:
    """Make a table of (user, item) pairs, all of one day."""
    table = pd.DataFrame(pairs, columns=list(Columns.UserItem))
    table[Columns.Weight], table[Columns.Datetime] = 1.0, pd.Timestamp(day)
    return table


def with_rows(frames: Any, rows: Sequence[tuple[Any, Any]], twins: dict[Any, Any] | None = None) -> Any:
    """
    Put interactions before those of `frames`, so that internal ids shift.

    Parameters
    ----------
    frames : Frames
        Raw tables.
    rows : sequence of (user, item)
        What to add.
    twins : dict, optional
        New users and items, each with an old one whose features it gets.
    """
    added = interactions(rows, "2024-03-01")

    def extended(features: pd.DataFrame | None) -> pd.DataFrame | None:
        if features is None:
            return None
        copies = [features[features["id"] == old].assign(id=new) for new, old in (twins or {}).items()]
        return pd.concat([*(copy for copy in copies if len(copy)), features], ignore_index=True)

    return replace(
        frames,
        interactions=pd.concat([added, frames.interactions], ignore_index=True),
        user_features=extended(frames.user_features),
        item_features=extended(frames.item_features),
    )


def items_of(frames: Any, user: Any) -> list[Any]:
    """Items of a user."""
    table = frames.interactions
    return table.loc[table[Columns.User] == user, Columns.Item].tolist()


def with_other_id_types(frames: Any) -> Any:
    """Name the users by integers and the items by strings."""

    def renamed(table: pd.DataFrame | None, column: str, is_user: bool) -> pd.DataFrame | None:
        if table is None:
            return None
        ids = table[column].str[1:].astype(int) if is_user else table[column].map(lambda item: f"i{item}")
        return table.assign(**{column: ids})

    return replace(
        frames,
        interactions=renamed(renamed(frames.interactions, Columns.User, True), Columns.Item, False),
        user_features=renamed(frames.user_features, "id", True),
        item_features=renamed(frames.item_features, "id", False),
    )


def global_state() -> dict[str, Any]:
    """All that a model must leave as it was."""
    return {
        "torch": torch.random.get_rng_state().tolist(),
        "numpy": [np.asarray(part).tolist() for part in np.random.get_state()],
        "python": random.getstate(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warnings": list(warnings.filters),
        "levels": {name: logging.getLogger(name).level for name in list(logging.root.manager.loggerDict)},
        "root": (logging.root.level, list(logging.root.handlers)),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
    }
