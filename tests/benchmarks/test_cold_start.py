from __future__ import annotations

import pandas as pd
from rectools import Columns
from rectools.dataset import Dataset

from benchmarks.cold_start import MIN_RATING, withhold


def test_withheld_users_keep_features_and_lose_all_interactions() -> None:
    rows = [(user, item, 1 + (user + item) % 5, item) for user in range(20) for item in range(6)]
    columns = [Columns.User, Columns.Item, Columns.Weight, Columns.Datetime]
    frame = pd.DataFrame(rows, columns=columns)
    frame["rating"] = frame[Columns.Weight]
    features = pd.DataFrame({"id": range(20), "feature": "group", "value": [user % 2 for user in range(20)]})
    dataset = Dataset.construct(frame, features, ["group"], keep_extra_cols=True)
    train, truth = withhold(dataset, seed=1)
    withheld = set(truth[Columns.User])
    assert len(withheld) == 4
    kept = train.get_raw_interactions()
    assert not withheld & set(kept[Columns.User])
    assert (kept["rating"] >= MIN_RATING).all()
    assert (truth["rating"] >= MIN_RATING).all()
    assert len(kept) + len(truth) == (frame["rating"] >= MIN_RATING).sum()
    assert set(train.user_id_map.external_ids) == set(range(20))
    assert train.user_features is not None
    assert len(train.user_features) == 20
