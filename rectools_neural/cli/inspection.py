"""What is in a file of interactions or in the folder of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from rectools import Columns

from ..models.pack import PackModel
from ..pretrained import KNOWN_USER_IDS
from .tables import Names, read_interactions

Facts = list[tuple[str, str]]


def describe_data(path: Path, names: Names) -> Facts:
    """
    Describe a file of interactions.

    Parameters
    ----------
    path : Path
        The file.
    names : Names
        Its columns.

    Returns
    -------
    list of (str, str)
        Properties and values; a row "problem" for each thing that is wrong or doubtful.
    """
    problems: list[str] = []
    table = read_interactions(path, names, problems)
    facts = [("rows", str(len(table)))]
    for column, plural in ((Columns.User, "users"), (Columns.Item, "items")):
        if column in table:
            kind = "whole numbers" if table[column].dtype.kind == "i" else "text"
            facts.append((plural, f"{table[column].nunique()} (ids are {kind})"))
    if Columns.User in table and Columns.Item in table:
        pairs = table[list(Columns.UserItem)]
        n_pairs = len(pairs.drop_duplicates())
        facts.append(("density", f"{n_pairs / (table[Columns.User].nunique() * table[Columns.Item].nunique()):.4%}"))
        if n_pairs < len(pairs):
            problems.append(f"{len(pairs) - n_pairs} rows repeat a pair of user and item")
        if singles := int((table[Columns.User].value_counts() == 1).sum()):
            problems.append(f"{singles} users have a single row: they can't be both learned from and tested on")
    if Columns.Weight in table:
        facts.append(("weights", f"{table[Columns.Weight].min():g} to {table[Columns.Weight].max():g}"))
    if Columns.Datetime in table:
        facts.append(("time span", f"{table[Columns.Datetime].min()} to {table[Columns.Datetime].max()}"))
    return [*facts, *(("problem", problem) for problem in problems)]


def describe_model(model: PackModel[Any], folder: Path) -> Facts:
    """
    Describe a fitted model.

    Parameters
    ----------
    model : PackModel
        The model.
    folder : Path
        Where it was loaded from.

    Returns
    -------
    list of (str, str)
        Properties and values: class, sizes, features, options, versions.
    """
    reader, stored = model._fitted.reader, folder / KNOWN_USER_IDS
    facts = [
        ("model", type(model).__name__),
        ("users", str(len(reader.user_ids))),
        ("items", str(len(reader.item_ids))),
        ("interactions", str(int(reader.popularity.sum()))),
        ("stored users", str(pq.read_metadata(stored).num_rows if stored.is_file() else 0)),
    ]
    for side, encoder in (("user", reader.user_encoder), ("item", reader.item_encoder)):
        names = sorted(str(name) for name in (*encoder.schema.fields, *encoder.schema.numeric))
        facts.append((f"{side} features", ", ".join(names) or "none"))
    options = model.fitted_config.model_dump(mode="json", exclude={"cls", "verbose"}, exclude_none=True)
    facts += [(f"option {name}", json.dumps(value)) for name, value in options.items()]
    packages = json.loads((folder / "config.json").read_text(encoding="utf-8"))["packages"]
    return facts + [(f"version of {name}", version) for name, version in packages.items()]
