from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import ImplicitALSWrapperModel

from benchmarks.baselines import PaperEASEModel, PlainALSModel


def test_ease_of_the_paper(make_dataset: Callable[..., Dataset]) -> None:
    dataset = make_dataset(features=None)
    x = dataset.get_user_item_matrix(include_weights=False).toarray().astype(float)
    inverse = np.linalg.inv(x.T @ x + 3 * np.eye(x.shape[1]))
    weights = -inverse / np.diag(inverse)[None, :]  # each column by the entry of the item that is scored
    np.fill_diagonal(weights, 0)
    users = dataset.user_id_map.external_ids
    reco = PaperEASEModel(regularization=3).fit(dataset).recommend(users, dataset, x.shape[1], False)
    rows = dataset.user_id_map.convert_to_internal(reco[Columns.User])
    columns = dataset.item_id_map.convert_to_internal(reco[Columns.Item])
    np.testing.assert_allclose(reco[Columns.Score], (x @ weights)[rows, columns], rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:Converting sparse features")
def test_als_without_features(make_dataset: Callable[..., Dataset]) -> None:
    dataset, plain = make_dataset(), make_dataset(features=None)
    options = {"model": {"factors": 4, "iterations": 3, "random_state": 0}}
    model = PlainALSModel.from_config(options).fit(dataset)
    expected = ImplicitALSWrapperModel.from_config(options).fit(plain)
    users = dataset.user_id_map.external_ids
    reco = model.recommend(users, dataset, 5, True)
    assert reco.equals(expected.recommend(plain.user_id_map.external_ids, plain, 5, True))
    assert not reco.equals(ImplicitALSWrapperModel.from_config(options).fit(dataset).recommend(users, dataset, 5, True))
