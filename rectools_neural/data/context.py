"""Context: columns that tell in which situation an interaction took place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from rectools.dataset import SparseFeatures
from rectools.dataset.features import DIRECT_FEATURE_VALUE
from scipy import sparse

from .features import EncodedFeatures, FeatureEncoder


@dataclass(frozen=True)
class ContextEncoder:
    """
    Turns columns of a table into `EncodedFeatures`, in the same way after fit as during it.

    Missing values are allowed, and so are categories that the training data lack. A number that is missing in some of
    the training rows comes with another one, which is 1 where it is missing.

    Parameters
    ----------
    numeric, categorical : tuple of str
        The columns.
    gaps : tuple of str
        The numeric ones with missing values in the training rows.
    encoder : FeatureEncoder
        What was learnt of them.
    """

    numeric: tuple[str, ...]
    categorical: tuple[str, ...]
    gaps: tuple[str, ...]
    encoder: FeatureEncoder

    @classmethod
    def fit(cls, table: pd.DataFrame, numeric: tuple[str, ...], categorical: tuple[str, ...]) -> ContextEncoder:
        """Learn the categories and the statistics; ValueError where the table lacks a column, or all of its values."""
        gaps = tuple(name for name in numeric if name in table.columns and table[name].isna().any())
        features = _read(table, numeric, categorical, gaps, "The interactions")
        found = {name for name, _ in np.array(features.names, dtype=object)[np.unique(features.values.indices)]}
        empty = [name for name in (*numeric, *categorical) if name not in found]
        if empty:
            raise ValueError(
                f"The context columns {empty} of the interactions have no values: leave them out of `context_numeric` "
                "and `context_categorical`"
            )
        return cls(numeric, categorical, gaps, FeatureEncoder.fit(features, "context", np.arange(len(table))))

    def encode(self, table: pd.DataFrame, source: str) -> EncodedFeatures:
        """
        Encode the rows of a table.

        Parameters
        ----------
        table : pd.DataFrame
            With the fitted columns.
        source : str
            What the table is, for messages.

        Raises
        ------
        ValueError
            If a column is not there, or a number is none or infinite.
        """
        features = _read(table, self.numeric, self.categorical, self.gaps, source)
        return self.encoder.encode(features, len(table)) if features.names else self.encoder.missing(len(table))


def _read(
    table: pd.DataFrame, numeric: tuple[str, ...], categorical: tuple[str, ...], gaps: tuple[str, ...], source: str
) -> SparseFeatures:
    absent = [name for name in (*numeric, *categorical) if name not in table.columns]
    if absent:
        raise ValueError(
            f"{source} lack the context columns {absent}: add them, or leave them out of `context_numeric` and "
            "`context_categorical`. (`Dataset.construct` keeps further columns of the interactions with "
            "`keep_extra_cols=True`.)"
        )
    names: list[tuple[str, object]] = []
    rows, columns, values = [], [], []
    for name in numeric:
        try:
            numbers = table[name].to_numpy(np.float32, na_value=np.nan)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The context column `{name}` is in `context_numeric`, but not all of its values are numbers: {error}"
            ) from error
        known = np.flatnonzero(~np.isnan(numbers))
        rows.append(known)
        columns.append(np.full(len(known), len(names)))
        values.append(numbers[known])
        names.append((name, DIRECT_FEATURE_VALUE))
        if name in gaps:
            rows.append(np.arange(len(table)))
            columns.append(np.full(len(table), len(names)))
            values.append(np.isnan(numbers).astype(np.float32))
            names.append((f"{name} is missing", DIRECT_FEATURE_VALUE))
    for name in categorical:
        codes, categories = pd.factorize(table[name])
        known = np.flatnonzero(codes >= 0)
        rows.append(known)
        columns.append(len(names) + codes[known])
        values.append(np.ones(len(known), np.float32))
        names += [(name, category) for category in categories]
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return SparseFeatures(sparse.csr_matrix(entries, shape=(len(table), len(names))), tuple(names))
