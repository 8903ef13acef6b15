"""Tables in files as RecTools data sets, with complaints that name file, column and row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet
from rectools import Columns
from rectools.dataset import Dataset

from ..errors import did_you_mean
from .errors import InputError

_FORMATS = (".csv", ".csv.gz", ".parquet")
_WHOLE = r"^(0|-?[1-9][0-9]{0,17})$"  # a leading zero is no number: "007" is another id than "7"


@dataclass(frozen=True)
class Names:
    """
    Columns of the files.

    Parameters
    ----------
    user, item : str
        Ids.
    weight, datetime : str or None
        None for those of that name, if there are any.
    """

    user: str = Columns.User
    item: str = Columns.Item
    weight: str | None = None
    datetime: str | None = None

    def ids_of(self, side: str) -> tuple[str, str]:
        """Column of the ids of users or items, and the option that names it."""
        return (self.user if side == "user" else self.item), f"--{side}-column"


@dataclass(frozen=True)
class Place:
    """A column of a file, for messages."""

    path: Path
    column: str

    def __str__(self) -> str:
        return f"column `{self.column}` of {self.path}"

    def complain(self, is_bad: np.ndarray, what: str, remedy: str) -> None:
        """Raise where rows are bad."""
        rows = np.flatnonzero(is_bad)
        if len(rows):
            raise InputError(f"{self} has {what} in {len(rows)} rows, first in row {rows[0] + 1}: {remedy}")


# ---------------------------------------------------------------------- files


def read_table(path: Path, ids: Iterable[str]) -> pa.Table:
    """
    Read a CSV or parquet file.

    Parameters
    ----------
    path : Path
        The file.
    ids : iterable of str
        Columns that hold ids. In a CSV file they are whole numbers where all of them look so, else text.

    Returns
    -------
    pa.Table
        At least one row.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}: name a CSV or parquet file")
    if not path.name.endswith(_FORMATS):
        raise InputError(f"{path} is of no known format: name a file that ends in {', '.join(_FORMATS)}")
    try:
        is_csv = path.suffix != ".parquet"
        table = _read_csv(path, ids) if is_csv else pyarrow.parquet.read_table(path)
    except pa.ArrowException as error:
        raise InputError(f"{path} can't be read: {error}") from error
    twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
    if twice:
        raise InputError(f"{path} has the column `{twice[0]}` twice: rename one")
    if not table.num_rows:
        raise InputError(f"{path} has no rows: there is nothing to work on")
    return _with_numbers(table, ids) if is_csv else table


def _read_csv(path: Path, ids: Iterable[str]) -> pa.Table:
    options = pa.csv.ConvertOptions(column_types={name: pa.string() for name in ids}, strings_can_be_null=True)
    return pa.csv.read_csv(path, convert_options=options)


def _with_numbers(table: pa.Table, ids: Iterable[str]) -> pa.Table:
    """Make whole numbers of the ids of a CSV file where all of them look so."""
    for name in set(ids) & set(table.column_names):
        column = table[name].drop_null()
        if len(column) and pc.all(pc.match_substring_regex(column, _WHOLE)).as_py():
            table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.int64()))
    return table


def _find(table: pa.Table, name: str, path: Path, option: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise InputError(
            f"{path} has no column `{name}`: name the column with {option}{did_you_mean(name, table.column_names)}"
        )
    return table[name]


# ---------------------------------------------------------------------- columns


def read_ids(column: pa.ChunkedArray, place: Place) -> np.ndarray:
    """Read ids as int64 or as objects of type str."""
    place.complain(_missing(column), "missing ids", "fill them or drop these rows")
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column.cast(pa.large_string()).to_pandas().to_numpy(dtype=object)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        try:
            return column.cast(pa.int64()).to_numpy()
        except pa.ArrowInvalid as error:
            raise InputError(f"{place} has ids that are no whole numbers of 64 bits ({error}): write text") from error
    raise InputError(f"{place} holds {column.type}: ids are text or whole numbers")


def read_weights(column: pa.ChunkedArray, place: Place) -> np.ndarray:
    """Read finite numbers."""
    place.complain(_missing(column), "missing weights", "fill them or drop these rows")
    weights = pd.to_numeric(column.to_pandas(), errors="coerce").to_numpy(np.float64)
    place.complain(~np.isfinite(weights), "something else than finite numbers", "weights are numbers")
    return weights


def read_datetimes(column: pa.ChunkedArray, place: Place) -> np.ndarray:
    """Read times without a zone: those with one become UTC, and numbers are Unix seconds."""
    place.complain(_missing(column), "missing times", "fill them or drop these rows")
    values = column.to_pandas()
    if pd.api.types.is_numeric_dtype(values):
        times = pd.to_datetime(values, unit="s", errors="coerce", utc=True)
    elif pa.types.is_temporal(column.type):
        times = pd.to_datetime(values, errors="coerce", utc=True)
    else:
        times = pd.to_datetime(values, format="ISO8601", errors="coerce", utc=True)
    remedy = "write times as 2024-12-31 23:59:59, or in Unix seconds (not milliseconds)"
    place.complain(times.isna().to_numpy(), "something else than times", remedy)
    return times.dt.tz_localize(None).to_numpy("datetime64[ns]")


def _missing(column: pa.ChunkedArray) -> np.ndarray:
    missing = pc.is_null(column, nan_is_null=True).to_numpy()
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return missing | pc.fill_null(pc.equal(column, ""), False).to_numpy() if is_text else missing


_READERS: dict[str, tuple[Callable[[pa.ChunkedArray, Place], np.ndarray], str]] = {
    Columns.User: (read_ids, "--user-column"),
    Columns.Item: (read_ids, "--item-column"),
    Columns.Weight: (read_weights, "--weight-column"),
    Columns.Datetime: (read_datetimes, "--datetime-column"),
}


def read_interactions(path: Path, names: Names, problems: list[str] | None = None) -> pd.DataFrame:
    """
    Read interactions.

    Parameters
    ----------
    path : Path
        The file.
    names : Names
        Its columns.
    problems : list of str, optional
        Gets what is wrong with the values, instead of an exception; bad columns are left out of the result.

    Returns
    -------
    pd.DataFrame
        Columns `user_id`, `item_id` and, where the file has them, `weight` and `datetime`.
    """
    table = read_table(path, (names.user, names.item))
    sources = {Columns.User: names.user, Columns.Item: names.item}
    for target, given in ((Columns.Weight, names.weight), (Columns.Datetime, names.datetime)):
        if given is not None or target in table.column_names:
            sources[target] = given or target
    columns = {target: _find(table, source, path, _READERS[target][1]) for target, source in sources.items()}
    values = {}
    for target, column in columns.items():
        try:
            values[target] = _READERS[target][0](column, Place(path, sources[target]))
        except InputError as error:
            if problems is None:
                raise
            problems.append(str(error))
    return pd.DataFrame(values, index=range(table.num_rows))


def as_ids(ids: np.ndarray, are_numbers: bool, what: str) -> np.ndarray:
    """Give ids the type that they have elsewhere; `what` they are is for messages."""
    is_number = ids.dtype.kind == "i"
    if is_number == are_numbers:
        return ids
    if is_number:
        return ids.astype(str).astype(object)
    texts = pd.Series(ids, dtype=object)
    bad = texts[~texts.str.match(_WHOLE)]
    if len(bad):
        raise InputError(
            f"{what}: `{bad.iloc[0]}` is no whole number, which the other ids are: write all as text or none"
        )
    return texts.astype(np.int64).to_numpy()


def read_choice(choice: str, side: str, names: Names, are_numbers: bool) -> np.ndarray:
    """Read ids of users or items that are listed, or in a column of a file; each once, in their order."""
    option = f"--{side}s"
    if choice.endswith(_FORMATS) or Path(choice).is_file():
        path, (column, rename) = Path(choice), names.ids_of(side)
        ids = read_ids(_find(read_table(path, [column]), column, path, rename), Place(path, column))
    else:
        ids = np.array([part.strip() for part in choice.split(",") if part.strip()], dtype=object)
    if not len(ids):
        raise InputError(f"{option} names nothing: list ids with commas between them, or name a file")
    return pd.unique(as_ids(ids, are_numbers, option))


# ---------------------------------------------------------------------- features


def read_features(path: Path, side: str, names: Names, are_numbers: bool) -> tuple[pd.DataFrame, list[str]]:
    """
    Read a wide table of features into RecTools' flat form.

    Parameters
    ----------
    path : Path
        The file: ids, and a column for each feature. Numbers are numeric features, anything else is a category, or
        several ones with ``|`` between them.
    side : str
        "user" or "item".
    names : Names
        Which column has the ids.
    are_numbers : bool
        Whether the ids of the interactions are numbers.

    Returns
    -------
    pd.DataFrame, list of str
        Columns `id`, `feature`, `value`; the features that are categories.
    """
    id_column, rename = names.ids_of(side)
    table = read_table(path, [id_column])
    column = _find(table, id_column, path, rename)
    place = Place(path, id_column)
    ids = as_ids(read_ids(column, place), are_numbers, str(place))
    place.complain(pd.Series(ids).duplicated().to_numpy(), "ids that were there before", "keep one row an id")
    features = [name for name in table.column_names if name != id_column]
    if not features:
        raise InputError(f"{path} has no column besides `{id_column}`: each further column is a feature")
    parts, categories = [], []
    for name in features:
        values, is_category = _read_feature(table[name], Place(path, name))
        part = pd.DataFrame({"id": ids, "feature": name, "value": values}).explode("value").dropna(subset="value")
        parts.append(part.drop_duplicates())
        categories += [name] * is_category
    return pd.concat([part.astype({"value": object}) for part in parts], ignore_index=True), categories


def _read_feature(column: pa.ChunkedArray, place: Place) -> tuple[pd.Series, bool]:
    if pa.types.is_nested(column.type):
        raise InputError(f"{place} holds {column.type}: write several values as one text with `|` between them")
    if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        values = column.to_pandas().astype(np.float64)
        place.complain(np.isinf(values.to_numpy()), "infinite numbers", "leave unknown values empty")
        return values, False
    texts = column.cast(pa.string()).to_pandas()
    return texts.map(lambda text: [part.strip() for part in text.split("|") if part.strip()], na_action="ignore"), True


# ---------------------------------------------------------------------- data sets


def make_dataset(
    interactions: pd.DataFrame,
    names: Names,
    user_features: Path | None,
    item_features: Path | None,
) -> Dataset:
    """Put interactions and files of features together; each interaction counts 1 where there are no weights."""
    sides: list[tuple[pd.DataFrame | None, Sequence[str]]] = []
    for path, side, target in ((user_features, "user", Columns.User), (item_features, "item", Columns.Item)):
        are_numbers = interactions[target].dtype.kind == "i"
        sides.append((None, ()) if path is None else read_features(path, side, names, are_numbers))
    interactions = interactions.copy()
    for name, value in ((Columns.Weight, 1.0), (Columns.Datetime, pd.Timestamp(0))):
        if name not in interactions:
            interactions[name] = value
    (users, of_users), (items, of_items) = sides
    return Dataset.construct(interactions, users, of_users, False, items, of_items, False)
