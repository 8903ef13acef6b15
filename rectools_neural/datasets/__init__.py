"""Public data sets as RecTools datasets with features.

`_catalogue` is the table of the data sets, `_layouts` reads their files, `_sources` downloads them.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import posixpath
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Generator, Iterator
from pathlib import Path

from rectools import Columns
from rectools.dataset import Dataset

from rectools_neural.datasets._catalogue import SPECS, Size, Spec
from rectools_neural.datasets._layouts import Folder, Tables, flatten_features
from rectools_neural.errors import did_you_mean

DATA_FOLDER_VARIABLE = "RECTOOLS_NEURAL_DATA"


def load_dataset(name: str, root: str | os.PathLike[str] | None = None) -> Dataset:
    """
    Load a public data set with its user and item features.

    The files are looked for in `root`, if it is given, and nowhere else. Without `root` they are looked for in the
    folder that the environment variable ``RECTOOLS_NEURAL_DATA`` names, then in the cache of this package (in
    ``XDG_CACHE_HOME`` or ``~/.cache`` on Linux, ``~/Library/Caches`` on macOS, ``%LOCALAPPDATA%`` on Windows). If
    neither has them they are downloaded into the cache.

    =============  ============  ======  =================================================================
    name           interactions  weight  features of users; of items
    =============  ============  ======  =================================================================
    ml-100k             100 000  rating  age_group, gender, occupation; genre, year_group
    ml-1m             1 000 209  rating  age_group, gender, occupation (as a code); genre, year_group
    movielens-20m    20 000 263  rating  none; genre, year_group
    kion              5 476 251  1 or 3  age_group, income, sex, kids_flg; content_type, genre, country,
                                         age_rating, for_kids, year_group
    book-crossing     1 149 780  1       age_group, country; author, publisher, year_group
    gowalla           1 027 370  1       none; none
    yelp2018          1 561 406  1       none; none
    =============  ============  ======  =================================================================

    All features are categorical with text values; ages and years are binned. Users and items that have features but no
    interactions are in the data set as warm ones; those with interactions but without features are in it too.
    Categories of Book-Crossing that fewer than 10 users or items share are left out.

    Extra columns of the interactions: ``rating`` of MovieLens and Book-Crossing (there 0 means implicit feedback),
    ``watched_pct`` and ``total_dur`` (seconds) of KION, ``split`` of Gowalla and Yelp2018 ("train" or "test", the split
    of the NGCF and LightGCN papers). The weight of KION is that of the RecTools tutorials: 3 if more than 10 % was
    watched, else 1. Book-Crossing, Gowalla and Yelp2018 have no timestamps: all their rows are dated 1970-01-01, so
    splitting them by time makes no sense.

    Parameters
    ----------
    name : {"ml-100k", "ml-1m", "movielens-20m", "kion", "book-crossing", "gowalla", "yelp2018"}
        Name of the data set.
    root : str or path, optional
        Folder that holds the data set's folder or zip archive, or that folder or archive itself.

    Returns
    -------
    Dataset
        RecTools dataset with the ids of the source as external ids.

    Raises
    ------
    ValueError
        If the name is unknown, a file is broken, or a download has another checksum or size than the published one.
    FileNotFoundError
        If `root` does not hold the files.
    FileExistsError
        If the files have to be downloaded and the cache holds a folder of theirs that lacks some of them.
    ConnectionError
        If the files have to be downloaded and no source can be reached.

    Warns
    -----
    UserWarning
        If local files do not have the published numbers of interactions, users and items.

    Notes
    -----
    The data sets have licences of their own: most allow research only, several forbid redistribution.

    References: MovieLens, Harper and Konstan 2015, doi:10.1145/2827872; Book-Crossing, Ziegler et al. 2005,
    doi:10.1145/1060745.1060754; Gowalla, Cho et al. 2011, doi:10.1145/2020408.2020579; the splits of Gowalla and
    Yelp2018, Wang et al. 2019, doi:10.1145/3331184.3331267, and He et al. 2020, doi:10.1145/3397271.3401063; KION,
    https://github.com/irsafilo/KION_DATASET.

    Examples
    --------
    >>> dataset = load_dataset("ml-100k")  # doctest: +SKIP
    >>> dataset.user_id_map.size, dataset.item_id_map.size  # doctest: +SKIP
    (943, 1682)
    """
    spec = _spec(name)
    tables = _read_local(spec, root)
    if tables is None:
        tables = _download(spec)
    elif difference := _difference_from_published(tables, spec):
        warnings.warn(difference, stacklevel=2)
    users = flatten_features(tables.users, spec.min_category_size)
    items = flatten_features(tables.items, spec.min_category_size)
    return Dataset.construct(
        interactions_df=tables.interactions,
        user_features_df=users,
        cat_user_features=() if users is None else users["feature"].unique(),
        item_features_df=items,
        cat_item_features=() if items is None else items["feature"].unique(),
        keep_extra_cols=True,
    )


def _spec(name: str) -> Spec:
    if name not in SPECS:
        raise ValueError(f"unknown data set {name!r}{did_you_mean(str(name), list(SPECS))}")
    return SPECS[name]


# --- Finding the files


def _read_local(spec: Spec, root: str | os.PathLike[str] | None) -> Tables | None:
    for place in _default_places() if root is None else [Path(root).expanduser()]:
        tables = _read_from(place, spec)
        if tables is not None:
            return tables
    if root is not None:
        raise FileNotFoundError(f"Data set {spec.name!r} is not in {root}. {_expected(spec)}")
    return None


def _default_places() -> list[Path]:
    named = os.environ.get(DATA_FOLDER_VARIABLE)
    return [*([Path(named).expanduser()] if named else []), _cache_folder()]


def _cache_folder() -> Path:
    bases = {
        "win32": os.environ.get("LOCALAPPDATA") or "~/AppData/Local",
        "darwin": "~/Library/Caches",
    }
    base = bases.get(sys.platform) or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "rectools-neural"


def _read_from(place: Path, spec: Spec) -> Tables | None:
    # Closing the generator closes the archive it stands in: Windows cannot move a folder with an open file.
    with contextlib.closing(_folders(place, spec)) as folders:
        for folder in folders:
            for layout in spec.layouts:
                if all((folder / file).is_file() for file in layout.files):
                    return layout.read(folder)
    return None


def _folders(place: Path, spec: Spec) -> Generator[Folder, None, None]:
    if place.is_file():
        yield from _folders_in_archive(place)
    for folder in (place, *(place / name for name in spec.folders)):
        yield folder
        for archive in (folder / f"{name}.zip" for name in spec.folders):
            if archive.is_file():
                yield from _folders_in_archive(archive)


def _folders_in_archive(path: Path) -> Iterator[zipfile.Path]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is not a whole zip archive: {error}. Restore the original file.") from error
    with archive:
        for folder in sorted({posixpath.dirname(member) for member in archive.namelist()}):
            yield zipfile.Path(archive, f"{folder}/" if folder else "")


def _expected(spec: Spec) -> str:
    files = "; or ".join(", ".join(layout.files) for layout in spec.layouts)
    folders = ", ".join(spec.folders)
    return f"Looked for the files {files}: there, in its folders {folders}, and in zip archives of these names."


# --- Downloading


def _download(spec: Spec) -> Tables:
    target = _cache_folder() / spec.folders[0]
    if target.exists():
        raise FileExistsError(
            f"{target} lacks files of {spec.name!r}. Delete it to download them again. {_expected(spec)}"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as temporary:
        stage = Path(temporary) / target.name
        _fetch(spec, stage)
        tables = _read_from(stage, spec)
        if tables is None:
            raise ValueError(
                f"The download of data set {spec.name!r} lacks its files and is not kept. {_expected(spec)}"
            )
        if difference := _difference_from_published(tables, spec):
            raise ValueError(f"The download is not kept: {difference}")
        try:
            stage.replace(target)
        except OSError:
            # Another process may have been faster; its files passed the same checks.
            if not target.is_dir():
                raise
    return tables


def _fetch(spec: Spec, stage: Path) -> None:
    failures = []
    for source in spec.sources:
        stage.mkdir()
        try:
            for part in source:
                part.fetch(stage)
            return
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{part.source}: {error}")
            shutil.rmtree(stage)
    places = " or ".join(map(str, _default_places()))
    raise ConnectionError(
        f"Data set {spec.name!r} is not in {places} and cannot be downloaded ({'; '.join(failures)}). Try again later, "
        f"or put its files into a folder and name that by root=... or the environment variable {DATA_FOLDER_VARIABLE}. "
        f"{_expected(spec)}"
    )


def _difference_from_published(tables: Tables, spec: Spec) -> str:
    rows = tables.interactions
    found = Size(len(rows), rows[Columns.User].nunique(), rows[Columns.Item].nunique())
    return "" if found == spec.size else f"data set {spec.name!r} should have {spec.size}, the files have {found}."
