from __future__ import annotations

import dataclasses
import functools
import hashlib
import http.server
import importlib.util
import os
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from rectools import Columns
from rectools.dataset import Dataset, IdMap, SparseFeatures

from rectools_neural.datasets import _cache_folder, load_dataset
from rectools_neural.datasets._catalogue import SPECS, Size
from rectools_neural.datasets._sources import Url, Wheel

LOCAL_DATA = os.environ.get("RECTOOLS_NEURAL_DATA")

Writer = Callable[[Path], None]
Triples = set[tuple[object, str, str]]


@pytest.fixture(autouse=True)
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a data folder nor a filled cache, on any platform."""
    monkeypatch.delenv("RECTOOLS_NEURAL_DATA", raising=False)
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA", "HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def load_part(name: str, root: Path | None = None) -> Dataset:
    """Load files that are much smaller than the published ones."""
    with pytest.warns(UserWarning, match=rf"data set '{name}' should have Size\(interactions="):
        return load_dataset(name, root)


def features_of(features: SparseFeatures, id_map: IdMap) -> Triples:
    assert set(features.values.data) == {1.0}
    ids = id_map.get_external_sorted_by_internal()
    entries = features.values.tocoo()
    return {(ids[row], *features.names[column]) for row, column in zip(entries.row, entries.col, strict=True)}


def user_features(dataset: Dataset) -> Triples:
    return features_of(dataset.user_features, dataset.user_id_map)


def item_features(dataset: Dataset) -> Triples:
    return features_of(dataset.item_features, dataset.item_id_map)


def rows_of(dataset: Dataset) -> list[tuple[object, ...]]:
    return list(dataset.get_raw_interactions().itertuples(index=False, name=None))


def write(folder: Path, encoding: str = "utf-8", **files: str) -> None:
    """Write files, in whose names "__" stands for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content, encoding=encoding)


def zipped(archive: Path, folder: Path, prefix: str = "") -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w") as target:
        for path in sorted(folder.iterdir()):
            target.write(path, prefix + path.name)
    return archive


# --- MovieLens-100K: the same three users and five movies in each layout


def write_ml_100k(folder: Path) -> None:
    none, first = "|".join("0" * 19), "|".join("1" + "0" * 18)
    comedy = "|".join("0001110000000000000")
    noir = "|".join("0000000000100000010")
    write(
        folder,
        encoding="latin-1",
        u__data="7\t1\t4\t881250949\n9\t1\t1\t881250950\n7\t3\t5\t881250951\n",
        u__user="7|24|M|technician|85711\n8|17|F|other|94043\n9|56|F|writer|E7J2K\n",
        u__item=f"1|Toy Story (1995)|01-Jan-1995||http://imdb/x|{comedy}\n"
        f'2|Misérables, "Les" (1994) |02-Feb-1995||http://imdb/y|{noir}\n'
        f"3|unknown||||{first}\n"
        f"4|Land Before Time III: The Time of the Great Gi|03-Mar-1989|||{none}\n"
        f"5|Bare (1921)|04-Apr-1991|||{none}\n",
    )


def write_ml_100k_csv(folder: Path) -> None:
    write(
        folder,
        ratings__csv="user_id,item_id,rating,timestamp\n7,1,4,881250949\n9,1,1,881250950\n7,3,5,881250951\n",
        users__csv="user_id,age,gender,occupation,zip_code\n7,24,M,technician,1\n8,17,F,other,2\n9,56,F,writer,E7J2K\n",
        movies__csv="item_id,title,release_date,year,genres\n"
        "1,Toy Story (1995),01-Jan-1995,1995,Animation|Children's|Comedy\n"
        '2,"Misérables, ""Les"" (1994) ",02-Feb-1995,1995,Film-Noir|War\n'
        "3,unknown,,,unknown\n"
        "4,Land Before Time III: The Time of the Great Gi,03-Mar-1989,1989,\n"
        "5,Bare (1921),04-Apr-1991,1991,\n",
    )


def write_ml_100k_recbole(folder: Path) -> None:
    write(folder)
    inter = "7\t1\t4\t881250949\n9\t1\t1\t881250950\n7\t3\t5\t881250951\n"
    (folder / "ml-100k.inter").write_text(f"user_id:token\titem_id:token\trating:float\ttimestamp:float\n{inter}")
    (folder / "ml-100k.user").write_text(
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
        "7\t24\tM\ttechnician\t85711\n8\t17\tF\tother\t94043\n9\t56\tF\twriter\tE7J2K\n"
    )
    (folder / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "1\tToy Story\t1995\tAnimation Children's Comedy\n"
        '2\tMisérables, "Les"\t1994\tFilm-Noir War\n'
        "3\tunknown\tunkonwn\tunknown\n"
        "4\tLand Before Time III: The Time of the Great Gi\tV\t\n"
        "5\tBare\t1921\t\n",
        encoding="utf-8",
    )


ML_100K_ROWS = [
    (7, 1, 4.0, pd.Timestamp("1997-12-04 15:55:49"), 4.0),
    (9, 1, 1.0, pd.Timestamp("1997-12-04 15:55:50"), 1.0),
    (7, 3, 5.0, pd.Timestamp("1997-12-04 15:55:51"), 5.0),
]
ML_100K_USERS = {
    *((7, "age_group", "18-24"), (7, "gender", "M"), (7, "occupation", "technician")),
    *((8, "age_group", "under 18"), (8, "gender", "F"), (8, "occupation", "other")),
    *((9, "age_group", "56 and over"), (9, "gender", "F"), (9, "occupation", "writer")),
}
ML_100K_ITEMS = {
    *((1, "genre", "Animation"), (1, "genre", "Children's"), (1, "genre", "Comedy"), (1, "year_group", "1995-1999")),
    *((2, "genre", "Film-Noir"), (2, "genre", "War"), (2, "year_group", "1990-1994")),
    (3, "genre", "unknown"),
    (5, "year_group", "1920-1924"),
}
YEAR_OF_THE_RELEASE_DATE_ONLY = {(4, "year_group", "1985-1989")}


@pytest.mark.parametrize(
    ("write_layout", "items"),
    [
        (write_ml_100k, ML_100K_ITEMS | YEAR_OF_THE_RELEASE_DATE_ONLY),
        (write_ml_100k_csv, ML_100K_ITEMS | YEAR_OF_THE_RELEASE_DATE_ONLY),
        (write_ml_100k_recbole, ML_100K_ITEMS),
    ],
)
def test_ml_100k_is_the_same_in_every_layout(tmp_path: Path, write_layout: Writer, items: Triples) -> None:
    write_layout(tmp_path / "ml-100k")
    dataset = load_part("ml-100k", tmp_path)
    interactions = dataset.get_raw_interactions()
    assert list(interactions.columns) == ["user_id", "item_id", "weight", "datetime", "rating"]
    assert rows_of(dataset) == ML_100K_ROWS
    assert user_features(dataset) == ML_100K_USERS
    assert item_features(dataset) == items
    assert (dataset.n_hot_users, dataset.n_hot_items) == (2, 2)


# --- The other data sets


def write_ml_1m(folder: Path) -> None:
    write(
        folder,
        encoding="latin-1",
        ratings__dat="1::1193::5::978300760\n2::10::3::978302109\n",
        users__dat="1::F::1::10::48067\n2::M::45::16::70072\n",
        movies__dat='10::Mädchen: "Nr. 1" (2000)::Drama\n11::Jumanji (1995)::Adventure|Children\'s\n'
        "1193::Amélie (1975)::Drama\n",
    )


def write_ml_1m_parquet(folder: Path) -> None:
    write(
        folder,
        users__csv="user_id,gender,age,occupation,zip_code,age_group,occupation_name\n"
        "1,F,1,10,48067,Under 18,K-12 student\n2,M,45,16,70072,45-49,self-employed\n",
        movies__csv='item_id,title,year,genres\n10,"Mädchen: ""Nr. 1"" (2000)",2000,Drama\n'
        "11,Jumanji (1995),1995,Adventure|Children's\n1193,Amélie (1975),1975,Drama\n",
    )
    ratings = {"user_id": [1, 2], "item_id": [1193, 10], "rating": [5, 3], "timestamp": [978300760, 978302109]}
    types = {"user_id": "int32", "item_id": "int32", "rating": "int8"}
    pd.DataFrame(ratings).astype(types).assign(ts_source="split", ts_lo=None).to_parquet(folder / "ratings.parquet")


@pytest.mark.parametrize("write_layout", [write_ml_1m, write_ml_1m_parquet])
def test_ml_1m(tmp_path: Path, write_layout: Writer) -> None:
    write_layout(tmp_path)
    dataset = load_part("ml-1m", tmp_path)
    assert rows_of(dataset) == [
        (1, 1193, 5.0, pd.Timestamp("2000-12-31 22:12:40"), 5.0),
        (2, 10, 3.0, pd.Timestamp("2000-12-31 22:35:09"), 3.0),
    ]
    assert list(dataset.get_raw_interactions().columns)[4:] == ["rating"]
    assert user_features(dataset) == {
        *((1, "age_group", "under 18"), (1, "gender", "F"), (1, "occupation", "10")),
        *((2, "age_group", "45-49"), (2, "gender", "M"), (2, "occupation", "16")),
    }
    assert item_features(dataset) == {
        *((10, "genre", "Drama"), (10, "year_group", "2000-2004")),
        *((11, "genre", "Adventure"), (11, "genre", "Children's"), (11, "year_group", "1995-1999")),
        *((1193, "genre", "Drama"), (1193, "year_group", "1975-1979")),
    }


def write_ml_20m(folder: Path) -> None:
    write(
        folder,
        ratings__csv="userId,movieId,rating,timestamp\n1,2,3.5,1112486027\n1,29,0.5,1112484676\n",
        movies__csv='movieId,title,genres\n2,Jumanji (1995),Adventure|Sci-Fi\n29,"City, The",(no genres listed)\n',
    )


def test_movielens_20m(tmp_path: Path) -> None:
    write_ml_20m(tmp_path / "ml-20m")
    dataset = load_part("movielens-20m", tmp_path)
    assert rows_of(dataset) == [
        (1, 2, 3.5, pd.Timestamp("2005-04-02 23:53:47"), 3.5),
        (1, 29, 0.5, pd.Timestamp("2005-04-02 23:31:16"), 0.5),
    ]
    assert dataset.user_features is None
    assert item_features(dataset) == {(2, "genre", "Adventure"), (2, "genre", "Sci-Fi"), (2, "year_group", "1995-1999")}
    assert dataset.item_id_map.size == 2


def write_kion(folder: Path) -> None:
    write(
        folder,
        interactions__csv="user_id,item_id,last_watch_dt,total_dur,watched_pct\n"
        "5,100,2021-05-11,4250,72.0\n6,100,2021-05-29,80,10.0\n6,101,2021-08-22,0,\n",
        users__csv="user_id,age,income,sex,kids_flg\n5,age_25_34,income_60_90,Ж,1\n7,,income_20_40,Ж,0\n",
        items__csv="item_id,content_type,title,title_orig,release_year,genres,countries,for_kids,age_rating,studios,"
        "directors,actors,description,keywords\n"
        '100,film,Поговори,Hable con ella,2002.0,"драмы, Детективы",Испания,,16.0,,,,"a, b",c\n'
        '102,series,Сериал,,,,"США, Канада",1.0,0.0,,,,,\n',
    )


@pytest.mark.parametrize("packed", [False, True])
def test_kion(tmp_path: Path, packed: bool) -> None:
    write_kion(tmp_path / "source")
    if packed:
        # As the official archive: files in a folder, and what macOS adds to archives.
        zipped(tmp_path / "data_original.zip", tmp_path / "source", prefix="data_original/")
        with zipfile.ZipFile(tmp_path / "data_original.zip", "a") as archive:
            archive.writestr("__MACOSX/data_original/._interactions.csv", b"\0")
    else:
        (tmp_path / "source").rename(tmp_path / "data_original")
    dataset = load_part("kion", tmp_path)
    interactions = dataset.get_raw_interactions()
    assert interactions[["user_id", "item_id", "weight"]].to_numpy().tolist() == [[5, 100, 3], [6, 100, 1], [6, 101, 1]]
    assert interactions["datetime"].tolist() == list(pd.to_datetime(["2021-05-11", "2021-05-29", "2021-08-22"]))
    assert interactions["total_dur"].tolist() == [4250.0, 80.0, 0.0]
    assert interactions["watched_pct"].tolist()[:2] == [72.0, 10.0]
    assert user_features(dataset) == {
        *((5, "age_group", "age_25_34"), (5, "income", "income_60_90"), (5, "sex", "Ж"), (5, "kids_flg", "1")),
        *((7, "income", "income_20_40"), (7, "sex", "Ж"), (7, "kids_flg", "0")),
    }
    assert item_features(dataset) == {
        *((100, "content_type", "film"), (100, "genre", "драмы"), (100, "genre", "детективы")),
        *((100, "country", "испания"), (100, "age_rating", "16"), (100, "year_group", "2000-2004")),
        *((102, "content_type", "series"), (102, "country", "сша"), (102, "country", "канада")),
        *((102, "for_kids", "1"), (102, "age_rating", "0")),
    }


def write_split(folder: Path) -> None:
    write(folder, train__txt="0 4 2\n1 2\n", test__txt="0 3\n1 \n\n")


def write_split_parquet(folder: Path) -> None:
    folder.mkdir()
    rows = {"user_id": [0, 0, 1, 0], "item_id": [4, 2, 2, 3], "split": ["train", "valid", "train", "test"]}
    types = {"user_id": "int32", "item_id": "int32", "split": "category"}
    pd.DataFrame(rows).astype(types).to_parquet(folder / "interactions.parquet")


@pytest.mark.parametrize("write_layout", [write_split, write_split_parquet])
@pytest.mark.parametrize("name", ["gowalla", "yelp2018"])
@pytest.mark.parametrize("suffix", ["", "-ngcf"])
def test_splits(tmp_path: Path, write_layout: Writer, name: str, suffix: str) -> None:
    write_layout(tmp_path / f"{name}{suffix}")
    dataset = load_part(name, tmp_path)
    date = pd.Timestamp("1970-01-01")
    assert rows_of(dataset) == [
        (0, 4, 1.0, date, "train"),
        (0, 2, 1.0, date, "train"),
        (1, 2, 1.0, date, "train"),
        (0, 3, 1.0, date, "test"),
    ]
    assert dataset.get_raw_interactions().columns[4] == "split"
    assert dataset.user_features is None
    assert dataset.item_features is None


BOOKS = [
    *((f"A{k}", r"Title \"quoted\"; and more", " J. K. Rowling ", "1999", "Simon &amp; Schuster") for k in range(10)),
    *((f"B{k}", "NA", "Rare Author", "0", "SIMON &amp; SCHUSTER") for k in range(9)),
    ("C", "Faust", "Not Applicable (Na )", "2050", "Éditions"),
]
READERS = [
    *((k, "porto, v.n.gaia, Portugal", '"17"') for k in range(1, 11)),
    *((k, "moscow, n/a", "NULL") for k in range(11, 21)),
    *((k, "rome, italy", '"244"') for k in range(21, 30)),
    *((k, "x, y, ", '"4"') for k in range(30, 40)),
]


def write_book_crossing(folder: Path) -> None:
    folder.mkdir()
    books = "".join(";".join(f'"{field}"' for field in (*book, "u", "v", "w")) + "\r\n" for book in BOOKS)
    users = "".join(f'"{user}";"{location}";{age}\r\n' for user, location, age in READERS)
    header = (
        '"ISBN";"Book-Title";"Book-Author";"Year-Of-Publication";"Publisher";"Image-URL-S";"Image-URL-M";"Image-URL-L"'
    )
    texts = {
        "BX-Book-Ratings.csv": '"User-ID";"ISBN";"Book-Rating"\r\n"1";"A0";"0"\r\n"99";"NA";"8"\r\n',
        "BX-Users.csv": f'"User-ID";"Location";"Age"\r\n{users}',
        "BX-Books.csv": f"{header}\r\n{books}",
    }
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode("latin-1"))


def write_book_crossing_parquet(folder: Path) -> None:
    folder.mkdir()
    ratings = {"user_id": [1, 99], "isbn": ["A0", "NA"], "rating": [0, 8]}
    pd.DataFrame(ratings).to_parquet(folder / "ratings.parquet")
    users = pd.DataFrame(READERS, columns=["user_id", "location", "age"])
    users["age"] = pd.to_numeric(users["age"].str.strip('"'), errors="coerce")
    users.assign(country="not read").to_parquet(folder / "users.parquet")
    books = pd.DataFrame(BOOKS, columns=["isbn", "title", "author", "year", "publisher"])
    books.assign(year=books["year"].astype("Int64")).to_parquet(folder / "books.parquet")


@pytest.mark.parametrize("write_layout", [write_book_crossing, write_book_crossing_parquet])
def test_book_crossing_keeps_the_categories_that_ten_share(tmp_path: Path, write_layout: Writer) -> None:
    write_layout(tmp_path / "book-crossing")
    dataset = load_part("book-crossing", tmp_path)
    date = pd.Timestamp("1970-01-01")
    assert rows_of(dataset) == [(1, "A0", 1.0, date, 0.0), (99, "NA", 1.0, date, 8.0)]
    assert dataset.get_raw_interactions().columns[4] == "rating"
    assert user_features(dataset) == {
        (user, feature, value)
        for user in range(1, 11)
        for feature, value in (("age_group", "under 18"), ("country", "portugal"))
    }
    a, b = [f"A{k}" for k in range(10)], [f"B{k}" for k in range(9)]
    assert item_features(dataset) == {
        *((book, "author", "j. k. rowling") for book in a),
        *((book, "year_group", "1995-1999") for book in a),
        *((book, "publisher", "simon & schuster") for book in a + b),
    }
    assert set(dataset.item_id_map.external_ids) == {*a, *b, "NA"}


# --- Where the files are looked for


def test_root_is_the_folder_or_holds_it_or_is_or_holds_the_archive(tmp_path: Path) -> None:
    write_ml_100k(tmp_path / "ml-100k")
    archive = zipped(tmp_path / "packed" / "ml-100k.zip", tmp_path / "ml-100k", prefix="ml-100k/")
    for root in (tmp_path, tmp_path / "ml-100k", archive, archive.parent):
        assert rows_of(load_part("ml-100k", root)) == ML_100K_ROWS


def test_the_data_folder_of_the_environment_comes_before_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_split(_cache_folder() / "gowalla")
    assert len(rows_of(load_part("gowalla"))) == 4
    write(tmp_path / "data" / "gowalla-ngcf", train__txt="0 1\n", test__txt="0 2\n")
    monkeypatch.setenv("RECTOOLS_NEURAL_DATA", str(tmp_path / "data"))
    assert len(rows_of(load_part("gowalla"))) == 2
    monkeypatch.setenv("RECTOOLS_NEURAL_DATA", str(tmp_path / "absent"))
    assert len(rows_of(load_part("gowalla"))) == 4


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "base/rectools-neural"),
        ("linux", None, "home/.cache/rectools-neural"),
        ("darwin", "XDG_CACHE_HOME", "home/Library/Caches/rectools-neural"),
        ("win32", "LOCALAPPDATA", "base/rectools-neural"),
    ],
)
def test_the_cache_follows_the_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, variable: str | None, expected: str
) -> None:
    monkeypatch.setattr("sys.platform", platform)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("LOCALAPPDATA")
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "base"))
    assert _cache_folder() == tmp_path / expected


# --- Errors


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("ml100k", r"; did you mean `ml-100k`\?"),
        ("Gowalla", r"; did you mean `gowalla`\?"),
        ("bookcrossing", r"; did you mean `book-crossing`\?"),
        ("netflix", r"; valid names: book-crossing, .*yelp2018"),
    ],
)
def test_an_unknown_name_gives_the_nearest_one(name: str, advice: str) -> None:
    with pytest.raises(ValueError, match=f"^unknown data set '{name}'{advice}"):
        load_dataset(name)


def test_a_root_without_the_files_names_what_was_looked_for(tmp_path: Path) -> None:
    write_ml_1m(tmp_path / "ml-1m")
    (tmp_path / "ml-1m" / "users.dat").unlink()
    with pytest.raises(FileNotFoundError, match=r"'ml-1m' is not in .*ratings.dat, users.dat, movies.dat") as error:
        load_dataset("ml-1m", tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("u.data", "u.data", "7\t1\tfour\t881250949\n"),
        ("u.user", "u.user", "7|24\n"),
        ("u.item", "u.item", ""),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, file: str, content: str) -> None:
    write_ml_100k(tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(ValueError, match=rf"{name} is broken or not of this data set: .+ Restore the original"):
        load_dataset("ml-100k", tmp_path)


def test_a_broken_date_parquet_or_list_is_named(tmp_path: Path) -> None:
    write_kion(tmp_path / "kion")
    path = tmp_path / "kion" / "interactions.csv"
    path.write_text(path.read_text(encoding="utf-8").replace("2021-05-29", "2021-55-29"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"interactions.csv is broken.*2021-55-29"):
        load_dataset("kion", tmp_path)
    write_split_parquet(tmp_path / "gowalla")
    (tmp_path / "gowalla" / "interactions.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"interactions.parquet is broken"):
        load_dataset("gowalla", tmp_path)
    write(tmp_path / "yelp2018", train__txt="0 1\n", test__txt="<html>\n")
    with pytest.raises(ValueError, match=r"test.txt is broken"):
        load_dataset("yelp2018", tmp_path)


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    (tmp_path / "ml-1m.zip").write_bytes(b"PK half of it")
    with pytest.raises(ValueError, match=r"ml-1m.zip is not a whole zip archive"):
        load_dataset("ml-1m", tmp_path)


# --- Downloads, from a server on this machine


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""

    def send_header(self, keyword: str, value: str) -> None:
        lie = keyword == "Content-Length" and "cut" in self.path
        super().send_header(keyword, str(int(value) + 1) if lie else value)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """Return a folder and the address at which its files are served."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


Source = tuple[Url | Wheel, ...]


def set_sources(monkeypatch: pytest.MonkeyPatch, name: str, *sources: Source, size: tuple[int, int, int]) -> None:
    monkeypatch.setitem(SPECS, name, dataclasses.replace(SPECS[name], sources=sources, size=Size(*size)))


def cached() -> list[str]:
    return sorted(path.relative_to(_cache_folder()).as_posix() for path in _cache_folder().rglob("*"))


def md5(path: Path) -> str:
    return "md5:" + hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def test_a_download_is_kept_in_the_cache(
    tmp_path: Path, server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, address = server
    write_ml_100k(tmp_path / "source")
    archive = zipped(folder / "ml-100k.zip", tmp_path / "source", prefix="ml-100k/")
    set_sources(monkeypatch, "ml-100k", (Url(f"{address}/ml-100k.zip", md5(archive)),), size=(3, 2, 2))
    assert rows_of(load_dataset("ml-100k")) == ML_100K_ROWS
    assert "ml-100k.zip: 100%" in capsys.readouterr().err
    assert cached() == ["ml-100k", "ml-100k/ml-100k.zip"]
    archive.unlink()
    assert rows_of(load_dataset("ml-100k")) == ML_100K_ROWS


def test_a_source_of_several_files(server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, address = server
    write_split(folder)
    parts = (Url(f"{address}/train.txt"), Url(f"{address}/test.txt"))
    set_sources(monkeypatch, "gowalla", parts, size=(4, 2, 3))
    assert len(rows_of(load_dataset("gowalla"))) == 4
    assert cached() == ["gowalla-ngcf", "gowalla-ngcf/test.txt", "gowalla-ngcf/train.txt"]


def test_a_wrong_checksum_leaves_nothing(
    tmp_path: Path, server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, address = server
    write_ml_100k(tmp_path / "source")
    archive = zipped(folder / "ml-100k.zip", tmp_path / "source")
    set_sources(monkeypatch, "ml-100k", (Url(f"{address}/ml-100k.zip", "md5:00"),), size=(3, 2, 2))
    found = md5(archive).replace(":", " is ")
    with pytest.raises(ValueError, match=f"ml-100k.zip is not the published file: its {found} instead of 00"):
        load_dataset("ml-100k")
    assert cached() == []


def test_a_wrong_size_leaves_nothing(server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, address = server
    write_split(folder)
    parts = (Url(f"{address}/train.txt"), Url(f"{address}/test.txt"))
    set_sources(monkeypatch, "gowalla", parts, size=(5, 2, 3))
    with pytest.raises(
        ValueError, match=r"not kept: .*interactions=5.* files have Size\(interactions=4, users=2, item"
    ):
        load_dataset("gowalla")
    assert cached() == []


def test_a_download_of_other_files_leaves_nothing(server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, address = server
    write_split(folder)
    set_sources(monkeypatch, "gowalla", (Url(f"{address}/train.txt"),), size=(4, 2, 3))
    with pytest.raises(ValueError, match=r"lacks its files and is not kept.*train.txt, test.txt"):
        load_dataset("gowalla")
    assert cached() == []


def test_no_source_can_be_reached(server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, address = server
    (folder / "cut.zip").write_bytes(b"abc")
    sources = ((Url(f"{address}/absent.zip"),), (Url(f"{address}/cut.zip"),))
    set_sources(monkeypatch, "ml-1m", *sources, size=(1, 1, 1))
    expected = r"absent.zip: HTTP Error 404.*cut.zip: the connection broke after 3 of 4 bytes.*RECTOOLS_NEURAL_DATA"
    with pytest.raises(ConnectionError, match=expected):
        load_dataset("ml-1m")
    assert cached() == []


def test_a_server_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rectools_neural.datasets._sources._TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/ml-1m.zip"
        set_sources(monkeypatch, "ml-1m", (Url(address),), size=(1, 1, 1))
        with pytest.raises(ConnectionError, match=r"ml-1m.zip: .*timed out"):
            load_dataset("ml-1m")


def test_a_cached_folder_that_lacks_files_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    write(_cache_folder() / "ml-1m", ratings__dat="1::1::5::1\n")
    set_sources(monkeypatch, "ml-1m", size=(1, 1, 1))
    with pytest.raises(FileExistsError, match=r"ml-1m lacks files of 'ml-1m'. Delete it"):
        load_dataset("ml-1m")
    assert cached() == ["ml-1m", "ml-1m/ratings.dat"]


def make_wheel(folder: Path) -> Path:
    """Build a wheel that holds a small ml-100k where that of RecBole has it."""
    write_ml_100k_recbole(folder / "data")
    path = zipped(
        folder / "index" / "recbole-1.2.1-py3-none-any.whl", folder / "data", "recbole/dataset_example/ml-100k/"
    )
    with zipfile.ZipFile(path, "a") as wheel:
        about = {
            "METADATA": "Metadata-Version: 2.1\nName: recbole\nVersion: 1.2.1\n",
            "WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
            "RECORD": "",
        }
        for name, text in about.items():
            wheel.writestr(f"recbole-1.2.1.dist-info/{name}", text)
    return path


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="needs pip")
def test_a_wheel_is_taken_when_the_first_source_cannot_be_reached(
    tmp_path: Path, server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = make_wheel(tmp_path)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    checksum = "sha256:" + hashlib.sha256(wheel.read_bytes()).hexdigest()
    sources = (Url(f"{server[1]}/absent.zip"),), (Wheel("recbole==1.2.1", "ml-100k.zip", checksum),)
    set_sources(monkeypatch, "ml-100k", *sources, size=(3, 2, 2))
    dataset = load_dataset("ml-100k")
    assert rows_of(dataset) == ML_100K_ROWS
    assert item_features(dataset) == ML_100K_ITEMS
    assert cached() == ["ml-100k", "ml-100k/ml-100k.zip"]


def test_missing_pip_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    set_sources(monkeypatch, "ml-100k", (Wheel("recbole==1.2.1", "ml-100k.zip", "sha256:0"),), size=(3, 2, 2))
    with pytest.raises(ConnectionError, match=r"has no pip to get recbole==1.2.1"):
        load_dataset("ml-100k")
    assert cached() == []


# --- The real data


@pytest.mark.parametrize(
    ("name", "folder", "interactions", "users", "items"),
    [
        ("ml-100k", "ml-100k", 100_000, 943, 1_682),
        ("ml-1m", "ml-1m", 1_000_209, 6_040, 3_706),
        ("gowalla", "gowalla-ngcf", 1_027_370, 29_858, 40_981),
        ("yelp2018", "yelp2018-ngcf", 1_561_406, 31_668, 38_048),
        ("book-crossing", "book-crossing", 1_149_780, 105_283, 340_556),
    ],
)
def test_published_sizes(name: str, folder: str, interactions: int, users: int, items: int) -> None:
    if not LOCAL_DATA or not (Path(LOCAL_DATA) / folder).is_dir():
        pytest.skip("needs the data folder")
    dataset = load_dataset(name, LOCAL_DATA)
    found = (len(dataset.interactions.df), dataset.n_hot_users, dataset.n_hot_items)
    assert found == (interactions, users, items)
    if name in ("gowalla", "yelp2018"):
        train = {"gowalla": 810_128, "yelp2018": 1_237_259}[name]
        assert dataset.interactions.df["split"].value_counts().to_dict() == {
            "train": train,
            "test": interactions - train,
        }
    assert dataset.interactions.df[Columns.Weight].min() == 1.0
