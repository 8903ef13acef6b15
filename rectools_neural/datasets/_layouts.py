"""Readers of the layouts that the data sets come in, and the features made of them."""

from __future__ import annotations

import contextlib
import csv
import html
import io
import itertools
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from rectools import Columns

Folder: TypeAlias = Path | zipfile.Path

_NO_DATE = pd.Timestamp("1970-01-01")


class Tables(NamedTuple):
    """Interactions as `Dataset.construct` takes them; users and items: `id`, and a category or list per feature."""

    interactions: pd.DataFrame
    users: pd.DataFrame | None = None
    items: pd.DataFrame | None = None


class Layout(NamedTuple):
    files: tuple[str, ...]
    read: Callable[[Folder], Tables]


# --- Reading files

_INTEGERS = ("user_id", "item_id", "timestamp")
_NUMBERS = ("rating", "age", "release_year", "total_dur", "watched_pct")
_DTYPES = {**dict.fromkeys(_INTEGERS, "int64"), **dict.fromkeys(_NUMBERS, "float64")}
# A book or an author may be called "NA".
_BLANK_IS_MISSING: dict[str, Any] = {"keep_default_na": False, "na_values": ["", "NULL"]}
# Titles hold quotation marks that quote nothing.
_UNQUOTED: dict[str, Any] = {"quoting": csv.QUOTE_NONE}
_GROUPLENS: dict[str, Any] = {"encoding": "latin-1", "header": None, **_UNQUOTED}
_BOOK_CROSSING: dict[str, Any] = {"encoding": "latin-1", "sep": ";", "escapechar": "\\"}


@contextlib.contextmanager
def _opened(folder: Folder, name: str) -> Iterator[IO[bytes]]:
    path = folder / name
    try:
        with path.open("rb") as file:
            yield file
    except (ValueError, KeyError, OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is broken or not of this data set: {error}. Restore the original file.") from error


def _csv(folder: Folder, name: str, columns: Mapping[Any, str], sep: str = ",", **options: Any) -> pd.DataFrame:
    """Read the columns that `columns` has as keys (headings, or positions in a file without), and rename them by it."""
    dtypes = {column: _DTYPES.get(ours, "str") for column, ours in columns.items()}
    with _opened(folder, name) as file:
        content: IO[bytes] = file
        if sep == "::":
            # Only the Python parser of pandas takes long separators, taking ten times as long. No field has a tab.
            content, sep = io.BytesIO(file.read().replace(b"::", b"\t")), "\t"
        options = {"sep": sep, "usecols": list(columns), "dtype": dtypes, **_BLANK_IS_MISSING, **options}
        frame: pd.DataFrame = pd.read_csv(content, **options).rename(columns=columns)
        if Columns.Datetime in frame:
            frame[Columns.Datetime] = pd.to_datetime(frame[Columns.Datetime], format="%Y-%m-%d")
        return frame


def _parquet(folder: Folder, name: str, columns: Sequence[str]) -> pd.DataFrame:
    with _opened(folder, name) as file:
        frame = pd.read_parquet(file, columns=list(columns))
        return frame.astype({column: _DTYPES[column] for column in columns if column in _DTYPES})


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


# --- Features


def flatten_features(entities: pd.DataFrame | None, min_category_size: int) -> pd.DataFrame | None:
    if entities is None:
        return None
    parts = [
        pd.DataFrame({"id": entities["id"], "feature": name, "value": entities[name].astype(object)}).explode("value")
        for name in entities.columns.drop("id")
    ]
    flat = pd.concat(parts, ignore_index=True).dropna(subset=["value"]).drop_duplicates()
    category_size = flat.groupby(["feature", "value"])["id"].transform("size")
    return flat[category_size >= min_category_size]


def _age_group(age: pd.Series) -> pd.Series:
    """Bin ages as MovieLens-1M does, whose age codes are the lower bounds of these bins, save 1 for the first."""
    labels = ["under 18", "18-24", "25-34", "35-44", "45-49", "50-55", "56 and over"]
    return pd.cut(age, [0, 18, 25, 35, 45, 50, 56, np.inf], right=False, labels=labels)


def _year_group(year: pd.Series) -> pd.Series:
    first = (year // 5 * 5).astype("Int64")
    return first.astype("string") + "-" + (first + 4).astype("string")


def _year_in(title: pd.Series) -> pd.Series:
    return title.str.extract(r"\((\d{4})\)\s*$")[0].astype("float64")


def _clean_name(text: pd.Series) -> pd.Series:
    name = text.str.strip().str.lower().map(html.unescape, na_action="ignore")
    return name.mask(name.isin(["", "n/a", "not applicable (na )"]))


# --- MovieLens

_RATINGS = ("user_id", "item_id", "rating", "timestamp")
# In the order of their flags in u.item, which is that of u.genre.
_ML_100K_GENRES = (
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
)


def _movielens(ratings: pd.DataFrame, items: pd.DataFrame, users: pd.DataFrame | None = None) -> Tables:
    columns = {
        Columns.User: ratings["user_id"],
        Columns.Item: ratings["item_id"],
        Columns.Weight: ratings["rating"],
        Columns.Datetime: pd.to_datetime(ratings["timestamp"], unit="s"),
        "rating": ratings["rating"],
    }
    return Tables(pd.DataFrame(columns), users, items)


def _movielens_users(users: pd.DataFrame) -> pd.DataFrame:
    features = users[["user_id", "gender", "occupation"]].rename(columns={"user_id": "id"})
    return features.assign(age_group=_age_group(users["age"]))


def _movielens_items(movies: pd.DataFrame, year: pd.Series, genre_separator: str = "|") -> pd.DataFrame:
    genre = movies["genres"].str.split(genre_separator, regex=False)
    return pd.DataFrame({"id": movies["item_id"], "genre": genre, "year_group": _year_group(year)})


def read_ml_100k_csv(folder: Folder) -> Tables:
    ratings = _csv(folder, "ratings.csv", _same(*_RATINGS))
    users = _csv(folder, "users.csv", _same("user_id", "age", "gender", "occupation"))
    movies = _csv(folder, "movies.csv", _same("item_id", "title", "release_date", "genres"))
    return _movielens(ratings, _movielens_items(movies, _ml_100k_year(movies)), _movielens_users(users))


def read_ml_100k(folder: Folder) -> Tables:
    ratings = _csv(folder, "u.data", dict(enumerate(_RATINGS)), sep="\t", **_GROUPLENS)
    columns = dict(enumerate(("user_id", "age", "gender", "occupation")))
    users = _csv(folder, "u.user", columns, sep="|", **_GROUPLENS)
    columns = {0: "item_id", 1: "title", 2: "release_date", **dict(enumerate(_ML_100K_GENRES, start=5))}
    movies = _csv(folder, "u.item", columns, sep="|", **_GROUPLENS)
    flags = movies[list(_ML_100K_GENRES)].to_numpy() == "1"
    movies["genres"] = ["|".join(itertools.compress(_ML_100K_GENRES, row)) or None for row in flags]
    return _movielens(ratings, _movielens_items(movies, _ml_100k_year(movies)), _movielens_users(users))


def _ml_100k_year(movies: pd.DataFrame) -> pd.Series:
    # The year in the title comes first, as all layouts have it; that of the release date differs for 192 movies.
    return _year_in(movies["title"]).fillna(pd.to_numeric(movies["release_date"].str[-4:], errors="coerce"))


def read_ml_100k_recbole(folder: Folder) -> Tables:
    """Read the atomic files of RecBole."""
    columns = {"user_id:token": "user_id", "item_id:token": "item_id", "rating:float": "rating"}
    ratings = _csv(folder, "ml-100k.inter", {**columns, "timestamp:float": "timestamp"}, sep="\t")
    columns = {f"{name}:token": name for name in ("user_id", "age", "gender", "occupation")}
    users = _csv(folder, "ml-100k.user", columns, sep="\t")
    columns = {"item_id:token": "item_id", "release_year:token": "year", "class:token_seq": "genres"}
    movies = _csv(folder, "ml-100k.item", columns, sep="\t", **_UNQUOTED)
    # The year is that in the title; the two movies without one have other text in its place.
    year = pd.to_numeric(movies["year"], errors="coerce")
    return _movielens(ratings, _movielens_items(movies, year, genre_separator=" "), _movielens_users(users))


def read_ml_1m_parquet(folder: Folder) -> Tables:
    # A fifth of the timestamps in this layout, all of ratings below 4, are estimates between known bounds.
    ratings = _parquet(folder, "ratings.parquet", _RATINGS)
    users = _csv(folder, "users.csv", _same("user_id", "age", "gender", "occupation"))
    movies = _csv(folder, "movies.csv", _same("item_id", "title", "genres"))
    return _movielens(ratings, _movielens_items(movies, _year_in(movies["title"])), _movielens_users(users))


def read_ml_1m(folder: Folder) -> Tables:
    ratings = _csv(folder, "ratings.dat", dict(enumerate(_RATINGS)), sep="::", **_GROUPLENS)
    columns = dict(enumerate(("user_id", "gender", "age", "occupation")))
    users = _csv(folder, "users.dat", columns, sep="::", **_GROUPLENS)
    movies = _csv(folder, "movies.dat", dict(enumerate(("item_id", "title", "genres"))), sep="::", **_GROUPLENS)
    return _movielens(ratings, _movielens_items(movies, _year_in(movies["title"])), _movielens_users(users))


def read_ml_20m(folder: Folder) -> Tables:
    columns = {"userId": "user_id", "movieId": "item_id", "rating": "rating", "timestamp": "timestamp"}
    ratings = _csv(folder, "ratings.csv", columns)
    movies = _csv(folder, "movies.csv", {"movieId": "item_id", "title": "title", "genres": "genres"})
    movies["genres"] = movies["genres"].mask(movies["genres"] == "(no genres listed)")
    return _movielens(ratings, _movielens_items(movies, _year_in(movies["title"])))


# --- Gowalla and Yelp2018


def read_split_parquet(folder: Folder) -> Tables:
    rows = _parquet(folder, "interactions.parquet", ["user_id", "item_id", "split"])
    # Later papers split a validation part off; it belongs to the train part of the original split.
    split = rows["split"].astype(object).mask(rows["split"] == "valid", "train")
    return _implicit(rows["user_id"], rows["item_id"], split=split)


def read_split_text(folder: Folder) -> Tables:
    parts = [_adjacency(folder, f"{split}.txt").assign(split=split) for split in ("train", "test")]
    rows = pd.concat(parts, ignore_index=True)
    return _implicit(rows["user_id"], rows["item_id"], split=rows["split"])


def _adjacency(folder: Folder, name: str) -> pd.DataFrame:
    """Read lines of a user id and the ids of its items, of which there may be none."""
    with _opened(folder, name) as file:
        lines = [[int(number) for number in line.split()] for line in file if line.strip()]
    users = np.repeat([line[0] for line in lines], [len(line) - 1 for line in lines])
    return pd.DataFrame({"user_id": users, "item_id": [item for line in lines for item in line[1:]]})


def _implicit(user: pd.Series, item: pd.Series, **extra: pd.Series) -> Tables:
    columns = {Columns.User: user, Columns.Item: item, Columns.Weight: 1.0, Columns.Datetime: _NO_DATE, **extra}
    return Tables(pd.DataFrame(columns))


# --- Book-Crossing


def read_book_crossing_parquet(folder: Folder) -> Tables:
    ratings = _parquet(folder, "ratings.parquet", ["user_id", "isbn", "rating"])
    users = _parquet(folder, "users.parquet", ["user_id", "location", "age"])
    books = _parquet(folder, "books.parquet", ["isbn", "author", "year", "publisher"])
    return _book_crossing(ratings, users, books)


def read_book_crossing(folder: Folder) -> Tables:
    columns = {"User-ID": "user_id", "ISBN": "isbn", "Book-Rating": "rating"}
    ratings = _csv(folder, "BX-Book-Ratings.csv", columns, **_BOOK_CROSSING)
    columns = {"User-ID": "user_id", "Location": "location", "Age": "age"}
    users = _csv(folder, "BX-Users.csv", columns, **_BOOK_CROSSING)
    columns = {"ISBN": "isbn", "Book-Author": "author", "Year-Of-Publication": "year", "Publisher": "publisher"}
    books = _csv(folder, "BX-Books.csv", columns, **_BOOK_CROSSING)
    return _book_crossing(ratings, users, books)


def _book_crossing(ratings: pd.DataFrame, users: pd.DataFrame, books: pd.DataFrame) -> Tables:
    # Ages and years are as people and shops typed them. The data was collected in 2004.
    age = users["age"].where(users["age"].between(5, 100))
    year = pd.to_numeric(books["year"], errors="coerce").astype("float64")
    country = users["location"].str.rsplit(",", n=1).str[-1]
    user_features = {"id": users["user_id"], "age_group": _age_group(age), "country": _clean_name(country)}
    item_features = {
        "id": books["isbn"],
        "author": _clean_name(books["author"]),
        "publisher": _clean_name(books["publisher"]),
        "year_group": _year_group(year.where(year.between(1900, 2005))),
    }
    interactions = _implicit(ratings["user_id"], ratings["isbn"], rating=ratings["rating"]).interactions
    return Tables(interactions, pd.DataFrame(user_features), pd.DataFrame(item_features))


# --- KION


def read_kion(folder: Folder) -> Tables:
    columns = {**_same("user_id", "item_id", "total_dur", "watched_pct"), "last_watch_dt": Columns.Datetime}
    interactions = _csv(folder, "interactions.csv", columns)
    interactions[Columns.Weight] = np.where(interactions["watched_pct"] > 10, 3.0, 1.0)
    users = _csv(folder, "users.csv", {"age": "age_group", **_same("user_id", "income", "sex", "kids_flg")})
    labels = ("content_type", "age_rating", "for_kids")
    items = _csv(folder, "items.csv", _same("item_id", "genres", "countries", "release_year", *labels))
    features = {
        "id": items["item_id"],
        "genre": items["genres"].str.lower().str.split(", "),
        "country": items["countries"].str.lower().str.split(", "),
        "year_group": _year_group(items["release_year"]),
        **{label: items[label].str.removesuffix(".0") for label in labels},
    }
    return Tables(interactions, users.rename(columns={"user_id": "id"}), pd.DataFrame(features))
