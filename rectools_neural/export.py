"""Recommendations as files that services read."""

from __future__ import annotations

import json
import os

import numpy as np
import pandas as pd
from rectools import Columns
from tqdm.auto import tqdm

from .files import replacing


def to_jsonl(
    reco: pd.DataFrame,
    path: str | os.PathLike[str],
    user: str = "user",
    items: str = "tracks",
    verbose: int = 0,
) -> None:
    """
    Write recommendations as JSON lines, one object for each user, in the order of the table.

    The file is there as a whole or not at all: it is written beside its place and then moved.

    Parameters
    ----------
    reco : pd.DataFrame
        What `recommend` gives: columns `user_id`, `item_id` and, if there is one, `rank`, by which the items of a user
        are ordered; else they are in the order of the rows.
    path : path
        Where to. A file that is there already is replaced.
    user, items : str
        Keys of the objects: ``{"user": 1, "tracks": [10, 4, 7]}``.
    verbose : int
        1 shows a progress bar.

    Raises
    ------
    ValueError
        If a column is missing, both keys are the same, or an id is missing.

    Examples
    --------
    >>> import pandas as pd
    >>> from rectools_neural import to_jsonl
    >>> to_jsonl(pd.DataFrame({"user_id": [1, 1], "item_id": [10, 4]}), "reco.jsonl")  # doctest: +SKIP
    """
    absent = [name for name in (Columns.User, Columns.Item) if name not in reco.columns]
    if absent:
        raise ValueError(f"The recommendations lack the columns {absent}: give what `recommend` returned")
    if user == items:
        raise ValueError(f"`user` and `items` are both `{user}`: the keys of an object must differ")
    for name in (Columns.User, Columns.Item):
        if reco[name].isna().any():
            raise ValueError(f"Column `{name}` of the recommendations has missing values: drop these rows")
    codes, users = pd.factorize(reco[Columns.User])
    keys = (reco[Columns.Rank].to_numpy(), codes) if Columns.Rank in reco.columns else (codes,)
    order = np.lexsort(keys)
    ids = reco[Columns.Item].to_numpy()[order].tolist()
    ends = np.cumsum(np.bincount(codes, minlength=len(users))).tolist()
    with replacing(path) as temporary, temporary.open("x", encoding="utf-8") as file:
        start = 0
        for name, end in zip(tqdm(users.tolist(), disable=not verbose, unit="user"), ends, strict=True):
            file.write(json.dumps({user: name, items: ids[start:end]}, ensure_ascii=False, default=str) + "\n")
            start = end
