from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract import interactions, recommend, with_rows
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import NDCG
from rectools.model_selection import RandomSplitter, cross_validate
from rectools.models import PopularModel

from rectools_neural import GFCFModel, load_dataset
from rectools_neural.models import gfcf

LOCAL_DATA = os.environ.get("RECTOOLS_NEURAL_DATA")


def dense_filters(
    x: np.ndarray, n_factors: int, alpha: float, a: float, b: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both filters in double precision, for users and for items, and the normalised interactions."""
    user_scale, item_scale = x.sum(axis=1, keepdims=True) ** a, x.sum(axis=0) ** b
    r = x / user_scale / item_scale
    values, vectors = np.linalg.eigh(r.T @ r)
    largest, v = values[-1], vectors[:, ::-1][:, :n_factors]
    low_pass = alpha * largest * v @ v.T
    return r.T @ r + low_pass / item_scale[:, None] * item_scale, r.T @ r + low_pass, r


def matrix_of(model: GFCFModel, dataset: Dataset, users: list[Any]) -> np.ndarray:
    """Scores of users for all items, in the order of the item ids of the dataset."""
    reco = recommend(model, dataset, users, k=dataset.item_id_map.size, filter_viewed=False)
    table = reco.pivot(index=Columns.User, columns=Columns.Item, values=Columns.Score)
    return table.loc[users, dataset.item_id_map.external_ids].to_numpy()


def interactions_of(dataset: Dataset, weights: bool = False) -> np.ndarray:
    return dataset.get_user_item_matrix(include_weights=weights).toarray().astype(float)


@pytest.mark.parametrize("full", [0.0, 2.0])
@given(
    n_factors=st.integers(1, 6),
    alpha=st.floats(0, 2),
    a=st.floats(0, 1),
    b=st.floats(0, 1),
    weights=st.booleans(),
    seed=st.integers(0, 5),
)
def test_scores_are_those_of_the_dense_filter(
    full: float, n_factors: int, alpha: float, a: float, b: float, weights: bool, seed: int, make_frames: Any
) -> None:
    """However the product is made: from lists of neighbours, or from a table of them."""
    frames = make_frames(n_users=15, n_items=10, n_per_user=4, features=None, seed=seed)
    values = np.random.default_rng(seed).uniform(0.5, 3, len(frames.interactions))
    dataset = Dataset.construct(frames.interactions.assign(**{Columns.Weight: values}))
    x = interactions_of(dataset, weights)
    user_filter, item_filter, r = dense_filters(x, n_factors, alpha, a, b)
    values = np.linalg.svd(r, compute_uv=False)
    if values[n_factors - 1] - values[n_factors] < 1e-3:
        return  # which of two equal singular vectors comes first is arbitrary
    model = GFCFModel(n_factors=n_factors, alpha=alpha, user_exponent=a, item_exponent=b, use_weights=weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gfcf, "_FULL", full)
        model.fit(dataset)
        scores = matrix_of(model, dataset, list(dataset.user_id_map.external_ids))
        np.testing.assert_allclose(scores, x @ user_filter, rtol=1e-4, atol=1e-4)
        items = dataset.item_id_map.external_ids
        reco = model.recommend_to_items(items, dataset, k=len(items), filter_itself=False)
    table = reco.pivot(index=Columns.TargetItem, columns=Columns.Item, values=Columns.Score).loc[items, items]
    lengths = np.sqrt(np.diag(item_filter))
    np.testing.assert_allclose(table.to_numpy(), item_filter / lengths / lengths[:, None], rtol=1e-4, atol=1e-4)


def test_users_that_came_later(make_frames: Callable[..., Any]) -> None:
    frames = make_frames(features=None)
    dataset = frames.dataset()
    model = GFCFModel(n_factors=3, alpha=0.5, user_exponent=0.5, item_exponent=0.5).fit(dataset)
    later = with_rows(frames, [("new", 101), ("new", 104), ("new", 107), ("odd", 999)]).dataset()
    known = dataset.item_id_map.external_ids
    history = np.isin(known, [101, 104, 107]).astype(float)
    expected = history @ dense_filters(interactions_of(dataset), 3, 0.5, 0.5, 0.5)[0]
    reco = recommend(model, later, ["new"], k=100, filter_viewed=False).set_index(Columns.Item)[Columns.Score]
    np.testing.assert_allclose(reco.loc[known], expected, rtol=1e-4, atol=1e-4)
    # Who has nothing that the model knows gets what is popular.
    counts = frames.interactions[Columns.Item].value_counts()
    reco = recommend(model, later, ["odd"], k=4)
    assert reco[Columns.Score].tolist() == sorted(counts, reverse=True)[:4]


def test_more_factors_than_there_is_structure() -> None:
    """Two groups of users with the same items each: two singular values, whatever the seed."""
    pairs = [(f"u{user}", item) for user in range(8) for item in range(10) if user % 2 == item % 2]
    dataset = Dataset.construct(interactions(pairs))
    later = Dataset.construct(interactions([*pairs, ("new", 0), ("new", 3)]))
    scores = [
        matrix_of(GFCFModel(n_factors=7, alpha=1.0, seed=seed).fit(dataset), later, ["u1", "new"]) for seed in range(3)
    ]
    assert GFCFModel(n_factors=7).fit(dataset)._fitted.low_pass.shape == (10, 2)
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-4)
    np.testing.assert_allclose(scores[2], scores[0], atol=1e-4)


def test_items_of_weight_zero(make_frames: Callable[..., Any]) -> None:
    table = make_frames(features=None).interactions
    weights = np.where(table[Columns.Item] == 103, 0.0, 1.0)
    dataset = Dataset.construct(table.assign(**{Columns.Weight: weights}))
    model = GFCFModel(use_weights=True).fit(dataset)
    reco = model.recommend_to_items([103, 101], dataset, k=30).set_index(Columns.TargetItem)[Columns.Score]
    assert reco.loc[103].tolist() == [0.0] * 23
    assert (reco.loc[101] > 0).any()
    assert np.isfinite(recommend(model, dataset)[Columns.Score]).all()


def test_chunks_change_nothing(make_dataset: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_dataset(features=None)
    model = GFCFModel().fit(dataset)
    expected = recommend(model, dataset)
    sizes: list[int] = []
    product = gfcf._product

    def spy(neighbours: Any, to_items: Any) -> Any:
        sizes.append(neighbours.shape[0])
        return product(neighbours, to_items)

    monkeypatch.setattr(gfcf, "_product", spy)
    monkeypatch.setattr(gfcf, "MAX_SCORES", 100)
    reco = recommend(model, dataset)
    # 40 users are near a chunk, or 24 items: no more than 2 rows of 40 make at most 100.
    assert sizes == [2] * 20
    assert reco[[Columns.User, Columns.Item]].equals(expected[[Columns.User, Columns.Item]])
    np.testing.assert_allclose(reco[Columns.Score], expected[Columns.Score], rtol=1e-5)


def test_options_follow_from_the_data(make_dataset: Callable[..., Dataset]) -> None:
    chosen = GFCFModel().fit(make_dataset(features=None)).fitted_config
    assert (chosen.n_factors, chosen.alpha, chosen.user_exponent, chosen.item_exponent) == (1, 1.0, 0.3, 0.3)
    sparse = make_dataset(n_users=1500, n_items=1500, n_per_user=3, features=None)
    chosen = GFCFModel(alpha=0.0).fit(sparse).fitted_config
    assert (chosen.n_factors, chosen.alpha, chosen.user_exponent, chosen.item_exponent) == (256, 0.0, 0.5, 0.5)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"alpha": -0.1}, "alpha"),
        ({"user_exponent": 1.1}, "user_exponent"),
        ({"item_exponent": -0.1}, "item_exponent"),
        ({"n_factors": 0}, "n_factors"),
    ],
)
def test_wrong_options(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        GFCFModel(**options)


def test_too_many_factors(make_dataset: Callable[..., Dataset]) -> None:
    with pytest.raises(ValueError, match=r"`n_factors` 25 .* 40 users and 24 items .* 24 at most"):
        GFCFModel(n_factors=25).fit(make_dataset())
    assert GFCFModel(n_factors=24).fit(make_dataset()).is_fitted


def test_weights_of_zero(make_frames: Callable[..., Any]) -> None:
    table = make_frames(features=None).interactions.assign(**{Columns.Weight: 0.0})
    with pytest.raises(ValueError, match=r"`weight` .* 0 everywhere"):
        GFCFModel(use_weights=True).fit(Dataset.construct(table))


@pytest.mark.skipif(not LOCAL_DATA or not (Path(LOCAL_DATA) / "ml-100k").is_dir(), reason="no local MovieLens-100k")
def test_beats_popularity_on_real_data() -> None:
    metrics = {"ndcg": NDCG(10, divide_by_achievable=True)}
    models = {"popular": PopularModel(), "gfcf": GFCFModel()}
    splitter = RandomSplitter(0.2, random_state=0)
    result = cross_validate(load_dataset("ml-100k"), splitter, metrics, models, k=10, filter_viewed=True)
    popular, ours = (row["ndcg"] for row in result["metrics"])
    assert ours > 1.8 * popular
