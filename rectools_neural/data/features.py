"""RecTools features to typed arrays: the only feature encoder of the package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from rectools.dataset import DenseFeatures, SparseFeatures
from rectools.dataset.features import DIRECT_FEATURE_VALUE
from scipy import sparse

from ..errors import did_you_mean
from .batches import FeatureBatch, FeatureSchema

Features: TypeAlias = DenseFeatures | SparseFeatures


@dataclass(frozen=True)
class EncodedFeatures:
    """
    Encoded features of a set of entities, rows in any order.

    Parameters
    ----------
    schema : FeatureSchema
        What the columns mean.
    categories : csr_matrix
        Weights of the categories, shape ``(n_entities, n_categories)``.
    numeric : np.ndarray
        Standardised numbers, shape ``(n_entities, n_numeric)``, float32.
    """

    schema: FeatureSchema
    categories: sparse.csr_matrix
    numeric: np.ndarray

    @classmethod
    def missing(cls, schema: FeatureSchema, n_entities: int) -> EncodedFeatures:
        """Entities of which no feature is known."""
        n_values, n_fields = len(schema.values), len(schema.fields)
        columns = np.tile(np.arange(n_values, n_values + n_fields, dtype=np.int32), n_entities)
        indptr = np.arange(n_entities + 1, dtype=np.int32) * n_fields
        weights = np.ones(len(columns), np.float32)
        categories = sparse.csr_matrix((weights, columns, indptr), shape=(n_entities, schema.n_categories))
        return cls(schema, categories, np.zeros((n_entities, len(schema.numeric)), np.float32))

    def __len__(self) -> int:
        return int(self.numeric.shape[0])

    def take(self, rows: np.ndarray) -> EncodedFeatures:
        """Rows by position."""
        return EncodedFeatures(self.schema, self.categories[rows], self.numeric[rows])

    def append(self, other: EncodedFeatures) -> EncodedFeatures:
        """Stack the rows of `other` below."""
        categories = sparse.vstack([self.categories, other.categories], format="csr")
        return EncodedFeatures(self.schema, categories, np.concatenate([self.numeric, other.numeric]))

    def batch(self) -> FeatureBatch:
        """Tensors of all these entities."""
        matrix = self.categories
        return FeatureBatch(
            torch.from_numpy(matrix.indices.astype(np.int64)),
            torch.from_numpy(matrix.data),
            torch.from_numpy(matrix.indptr[:-1].astype(np.int64)),
            torch.from_numpy(self.numeric),
        )


@dataclass(frozen=True)
class FeatureEncoder:
    """
    Turns RecTools features into `EncodedFeatures`, in the same way after fit as during it.

    Categories are weighted so that a field adds up to 1 whatever the number of its values. A field without
    a known value uses the row of its missing value. Numbers are standardised on the training entities;
    a missing number becomes the mean, which is 0. In sparse features a number that is not stored is missing.

    Parameters
    ----------
    side : str
        "user" or "item", for messages.
    kind : str
        "none", "dense" or "sparse".
    schema : FeatureSchema
        The known features.
    mean, std : np.ndarray
        Of the numeric features, shape ``(n_numeric,)``.
    """

    side: str
    kind: str = "none"
    schema: FeatureSchema = field(default_factory=FeatureSchema)
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    std: np.ndarray = field(default_factory=lambda: np.ones(0, np.float32))

    @classmethod
    def fit(cls, features: Features | None, side: str, rows: np.ndarray) -> FeatureEncoder:
        """
        Learn the schema and the statistics.

        Parameters
        ----------
        features : DenseFeatures or SparseFeatures or None
            Features of all entities of the dataset, by internal id.
        side : str
            "user" or "item", for messages.
        rows : np.ndarray
            The training entities (those with interactions).

        Raises
        ------
        ValueError
            If a value is NaN or infinite.
        """
        if features is None or not features.names:
            return cls(side)
        _check_finite(features, side)
        if isinstance(features, DenseFeatures):
            values = np.sort(np.asarray(features.values, np.float64)[rows], axis=0)
            mean, std = values.mean(axis=0), values.std(axis=0)
            schema = FeatureSchema(numeric=tuple(features.names))
            return cls(side, "dense", schema, mean.astype(np.float32), _safe_std(mean, std))
        direct, categorical = _split_names(features.names)
        columns = features.values[rows].tocsc()
        # Sorted and in double precision: the order of rows must not change the statistics.
        stored = [np.sort(columns.data[columns.indptr[j] : columns.indptr[j + 1]].astype(np.float64)) for j in direct]
        mean = np.array([values.mean() if len(values) else 0.0 for values in stored])
        std = np.array([values.std() if len(values) else 0.0 for values in stored])
        # A value that no training entity has would keep its random embedding: leave it to the missing row.
        used = np.zeros(len(features.names), bool)
        used[np.unique(features.values[rows].indices)] = True
        # Sorted: RecTools orders values by first appearance, and the order of rows must not change the model.
        schema = FeatureSchema(
            fields=tuple(sorted({features.names[j][0] for j in categorical}, key=str)),
            values=tuple(sorted((features.names[j] for j in categorical if used[j]), key=str)),
            numeric=tuple(features.names[j][0] for j in direct),
        )
        return cls(side, "sparse", schema, mean.astype(np.float32), _safe_std(mean, std))

    def encode(self, features: Features | None, n_entities: int) -> EncodedFeatures:
        """
        Encode the features of a dataset's side.

        Parameters
        ----------
        features : DenseFeatures or SparseFeatures or None
            Features by internal id; may be absent only if they were absent at fit.
        n_entities : int
            Size of the dataset's id map; entities without a row have all features missing.

        Raises
        ------
        ValueError
            If the features differ from the fitted ones, or hold NaN or infinite values.
        """
        self.check(features)
        if features is None or self.kind == "none":
            return self.missing(n_entities)
        if isinstance(features, DenseFeatures):
            numeric = ((np.asarray(features.values, np.float32) - self.mean) / self.std).astype(np.float32)
            nothing = sparse.csr_matrix((len(numeric), 0), dtype=np.float32)
            encoded = EncodedFeatures(self.schema, nothing, numeric)
        else:
            encoded = EncodedFeatures(self.schema, self._encode_categories(features), self._encode_numbers(features))
        return encoded if len(encoded) == n_entities else encoded.append(self.missing(n_entities - len(encoded)))

    def missing(self, n_entities: int) -> EncodedFeatures:
        """Encode entities of which no feature is known."""
        return EncodedFeatures.missing(self.schema, n_entities)

    def read_values(self, values: Mapping[str, object]) -> SparseFeatures | DenseFeatures:
        """
        Make features, as a dataset has them, of the values of one entity.

        Parameters
        ----------
        values : mapping
            By name: a number, a category, or a list of categories. A category that the fit lacked tells nothing, nor
            does a sparse feature that is not there.

        Raises
        ------
        ValueError
            If a feature is unknown or of another kind, or dense features are missing.
        """
        schema, known = self.schema, [str(name) for name in (*self.schema.fields, *self.schema.numeric)]
        for name in values:
            if name not in known:
                raise ValueError(f"there is no {self.side} feature `{name}`{did_you_mean(name, known)}")
        numbers = {name: _as_number(values[str(name)], name) for name in schema.numeric if str(name) in values}
        if self.kind == "dense":
            absent = [name for name in schema.numeric if name not in numbers]
            if absent:
                raise ValueError(f"the {self.side} features {absent} are missing: give all of them")
            return DenseFeatures(np.array([[numbers[name] for name in schema.numeric]]), schema.numeric)
        texts = {name: _as_texts(values[str(name)], name) for name in schema.fields if str(name) in values}
        columns = [*schema.values, *((name, DIRECT_FEATURE_VALUE) for name in schema.numeric)]
        # A table of strings writes numbers, too, as text.
        entries = {place: 1.0 for place, (name, value) in enumerate(schema.values) if str(value) in texts.get(name, ())}
        entries |= {len(schema.values) + schema.numeric.index(name): number for name, number in numbers.items()}
        places = np.array(list(entries), np.int64)
        matrix = sparse.csr_matrix((list(entries.values()), places, [0, len(places)]), shape=(1, len(columns)))
        return SparseFeatures.from_iterables(matrix, columns)

    def check(self, features: Features | None) -> None:
        """Raise ValueError where `features` are not of the fitted form."""
        kind = _kind(features)
        if kind != self.kind:
            fitted = ", ".join([*self.schema.fields, *self.schema.numeric]) or "none"
            raise ValueError(
                f"The dataset's {self.side} features are {kind}, but the model was fitted with {self.kind} ones "
                f"({fitted}): build the dataset with the same features, or fit the model again"
            )
        if features is None or kind == "none":
            return
        _check_finite(features, self.side)
        if isinstance(features, DenseFeatures):
            names, known = set(features.names), set(self.schema.numeric)
            if tuple(features.names) == self.schema.numeric:
                return
        else:
            direct, categorical = _split_names(features.names)
            found = {features.names[j][0] for j in direct}, {features.names[j][0] for j in categorical}
            # A dataset of a few entities may lack a feature altogether: it is missing then.
            if found[0] <= set(self.schema.numeric) and found[1] <= set(self.schema.fields):
                return
            names, known = found[0] | found[1], {*self.schema.fields, *self.schema.numeric}
        missing, unknown = (sorted(map(str, difference)) for difference in (known - names, names - known))
        raise ValueError(
            f"The dataset's {self.side} features differ from the fitted ones ({', '.join(sorted(map(str, known)))}): "
            f"missing {missing}, unknown {unknown}, or a number became a category or the other way round, or dense "
            f"features changed their order; found {sorted(map(str, names))}"
        )

    def _encode_categories(self, features: SparseFeatures) -> sparse.csr_matrix:
        n_values, n_fields = len(self.schema.values), len(self.schema.fields)
        row_of_value = {value: row for row, value in enumerate(self.schema.values)}
        field_of_name = {name: j for j, name in enumerate(self.schema.fields)}
        names = features.names
        target = np.array([row_of_value.get(name, -1) for name in names], np.int64)
        field_of_column = np.array([field_of_name.get(name[0], -1) for name in names], np.int64)
        matrix = features.values.tocoo()
        keep = (target[matrix.col] >= 0) & (matrix.data > 0)
        row, col, weight = matrix.row[keep], target[matrix.col[keep]], matrix.data[keep]
        field_key = row.astype(np.int64) * max(n_fields, 1) + field_of_column[matrix.col[keep]]
        total = np.bincount(field_key, weights=weight, minlength=matrix.shape[0] * n_fields)
        absent = np.flatnonzero(total[: matrix.shape[0] * n_fields] == 0)
        rows = np.concatenate([row, absent // max(n_fields, 1)])
        cols = np.concatenate([col, n_values + absent % max(n_fields, 1)])
        weights = np.concatenate([weight / total[field_key], np.ones(len(absent))]).astype(np.float32)
        return sparse.csr_matrix((weights, (rows, cols)), shape=(matrix.shape[0], self.schema.n_categories))

    def _encode_numbers(self, features: SparseFeatures) -> np.ndarray:
        numeric = np.zeros((features.values.shape[0], len(self.schema.numeric)), np.float32)
        position = {name: j for j, name in enumerate(self.schema.numeric)}
        matrix = features.values.tocsc()
        for j in _split_names(features.names)[0]:
            target = position[features.names[j][0]]
            span = slice(matrix.indptr[j], matrix.indptr[j + 1])
            numeric[matrix.indices[span], target] = (matrix.data[span] - self.mean[target]) / self.std[target]
        return numeric


def _as_number(value: object, name: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= np.finfo(np.float32).max:
        raise ValueError(f"the feature `{name}` is a number: give a finite one")
    return float(value)


def _as_texts(value: object, name: object) -> set[str]:
    values = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(one, str | int | float) for one in values):
        raise ValueError(f"the feature `{name}` is a category: give a text, a number, or a list of them")
    return {str(one) for one in values}


def _kind(features: Features | None) -> str:
    if features is None or not features.names:
        return "none"
    return "dense" if isinstance(features, DenseFeatures) else "sparse"


def _split_names(names: Sequence[tuple[str, object]]) -> tuple[list[int], list[int]]:
    direct = [j for j, (_, value) in enumerate(names) if isinstance(value, str) and value == DIRECT_FEATURE_VALUE]
    categorical = sorted(set(range(len(names))) - set(direct))
    return sorted(direct, key=lambda j: str(names[j][0])), categorical


def _safe_std(mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    # A constant number tells nothing: what rounding leaves of its spread must not be blown up to 1.
    return np.where(std > 1e-6 * np.abs(mean) + 1e-12, std, np.inf).astype(np.float32)


def _check_finite(features: Features, side: str) -> None:
    values = features.values if isinstance(features, DenseFeatures) else features.values.data
    if np.isfinite(values).all():
        return
    if isinstance(features, DenseFeatures):
        bad = [str(features.names[j]) for j in np.flatnonzero(~np.isfinite(values).all(axis=0))]
    else:
        columns = np.unique(features.values.indices[~np.isfinite(values)])
        bad = list(dict.fromkeys(str(features.names[j][0]) for j in columns))
    raise ValueError(
        f"The {side} features {', '.join(f'`{name}`' for name in bad)} hold NaN or infinite values: fill or drop them"
    )
