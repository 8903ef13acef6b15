"""RePlay's splitters on RecTools' interactions."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from rectools.dataset import Interactions
from rectools.model_selection import Splitter

ROW = "row"


class ReplaySplitter(Splitter):
    """
    A splitter of RePlay in the place of one of RecTools'.

    Users and items that are cold are dropped by RePlay's splitter, if it is told so. It does not know of pairs that
    the train part has already.

    Parameters
    ----------
    splitter : replay.splitters.Splitter
        Splitter of tables with RecTools' column names.
    """

    def __init__(self, splitter: Any) -> None:
        super().__init__(filter_cold_users=False, filter_cold_items=False, filter_already_seen=False)
        self.splitter = splitter

    def _split_without_filter(
        self, interactions: Interactions, collect_fold_stats: bool = False
    ) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, Any]]]:
        # Some splitters sort the rows or give them another index: their numbers go along as a column.
        rows = interactions.df.assign(**{ROW: np.arange(len(interactions.df))})
        with warnings.catch_warnings():
            # What pandas will do otherwise one day in RePlay's code is no matter of its users.
            warnings.simplefilter("ignore", FutureWarning)
            train, test = self.splitter.split(rows)
        yield np.sort(train[ROW].to_numpy()), np.sort(test[ROW].to_numpy()), {}
