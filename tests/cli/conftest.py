"""Small files, and models that the command line has fitted on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rectools import Columns

HOBBIES = ["chess", "golf | chess", None, "sailing"]


@pytest.fixture(scope="session")
def log(make_frames: Callable[..., Any]) -> pd.DataFrame:
    table: pd.DataFrame = make_frames(n_users=30, n_items=20).interactions
    return table.assign(**{Columns.Weight: np.random.default_rng(0).uniform(1, 5, len(table))})


@pytest.fixture(scope="session")
def files(log: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interactions in both formats, and wide features of all users, of one without interactions, and of all items."""
    folder = tmp_path_factory.mktemp("files")
    log.to_csv(folder / "log.csv", index=False)
    log.to_parquet(folder / "log.parquet", index=False)
    users = [*sorted(log[Columns.User].unique()), "newcomer"]
    ages = [None if row % 7 == 3 else 20 + row for row in range(len(users))]
    hobbies = [HOBBIES[row % 4] for row in range(len(users))]
    pd.DataFrame({"user_id": users, "age": ages, "hobby": hobbies}).to_csv(folder / "users.csv", index=False)
    items = np.sort(log[Columns.Item].unique())
    genres = [f"g{item % 2}" for item in items]
    pd.DataFrame({"item_id": items, "genre": genres, "price": items / 10}).to_parquet(folder / "items.parquet")
    return folder


@pytest.fixture(scope="session")
def features(files: Path) -> list[object]:
    return ["--user-features", files / "users.csv", "--item-features", files / "items.parquet"]


@pytest.fixture(scope="session")
def folder(files: Path, features: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cli_program import SETTINGS, succeed

    folder = tmp_path_factory.mktemp("models") / "dssm"
    result = succeed("fit", files / "log.csv", *features, *SETTINGS, "--output", folder)
    assert result.stdout == ""
    assert "DSSMModel was fitted on 30 users, 20 items, 240 interactions" in result.stderr
    return folder


@pytest.fixture(scope="session")
def plain(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model without features, quick to fit."""
    from cli_program import succeed

    folder = tmp_path_factory.mktemp("models") / "knn"
    result = succeed("fit", files / "log.parquet", "--model", "UserKNNModel", "-o", folder, "--quiet")
    assert result.output == ""
    return folder
