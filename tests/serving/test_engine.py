"""Answers of a saved model, beside those of the model itself on a dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rectools import Columns
from rectools.dataset import Dataset

from rectools_neural import explain, model_from_config
from rectools_neural.serving.engine import Engine, QueryError, Ranked, Recommend, Similar, Subject

CONFIGS: dict[str, dict[str, Any]] = {
    "dssm": {"cls": "DSSMModel", "epochs": 2, "n_factors": 8},
    "weighted": {"cls": "MultDAEModel", "epochs": 2, "hidden": [8], "n_factors": 4, "use_weights": True},
    "euclidean": {"cls": "DSSMModel", "epochs": 2, "n_factors": 8, "loss": "triplet", "similarity": "euclidean"},
    "vae": {"cls": "MultVAEModel", "epochs": 2, "hidden": [8], "n_factors": 4},
    "lightgcn": {"cls": "LightGCNModel", "epochs": 2, "n_factors": 8},
    "gfcf": {"cls": "GFCFModel"},
    "dlrm": {"cls": "DLRMModel", "epochs": 2, "n_factors": 4},
    "ncf": {"cls": "NCFModel", "epochs": 2, "n_factors": 4},
    "userknn": {"cls": "UserKNNModel"},
}
Served = tuple[Any, Dataset, Engine]


@pytest.fixture(scope="module", params=CONFIGS)
def served(request: pytest.FixtureRequest, make_frames: Callable[..., Any], tmp_path_factory: Any) -> Served:
    return _serve(CONFIGS[request.param], make_frames(n_warm=3), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def dssm(make_frames: Callable[..., Any], tmp_path_factory: Any) -> Served:
    return _serve(CONFIGS["dssm"], make_frames(n_warm=3), tmp_path_factory.mktemp("model"))


def _serve(config: dict[str, Any], frames: Any, folder: Path, **options: Any) -> Served:
    frames.interactions[Columns.Weight] = 1.0 + np.arange(len(frames.interactions)) % 3
    dataset = frames.dataset()
    model = model_from_config(config).fit(dataset)
    model.save_pretrained(folder / "model", dataset=dataset)
    return model, dataset, Engine.load(folder / "model", **options)


def _expected(model: Any, dataset: Dataset, user: Any, **options: Any) -> pd.DataFrame:
    return model.recommend([user], dataset, **{"k": 5, "filter_viewed": True, **options})


def _check(found: Ranked | QueryError, expected: pd.DataFrame) -> None:
    assert isinstance(found, Ranked), found
    assert found.items == expected[Columns.Item].tolist()
    np.testing.assert_allclose(found.scores, expected[Columns.Score], rtol=1e-5, atol=1e-6)


def _users(dataset: Dataset) -> list[Any]:
    return dataset.user_id_map.external_ids[np.unique(dataset.interactions.df[Columns.User])].tolist()


def test_known_users_of_all_queries_at_once(served: Served) -> None:
    model, dataset, engine = served
    users = _users(dataset)
    assert (engine.n_users, engine.n_items) == (43, 24)
    for user, found in zip(users, engine.recommend([Recommend(Subject(user), 5) for user in users]), strict=True):
        _check(found, _expected(model, dataset, user))


def test_each_query_has_its_own_options(served: Served) -> None:
    model, dataset, engine = served
    first, second = _users(dataset)[:2]
    allowed = engine.recommend([Recommend(Subject(first), 9)])[0].items[::2]  # type: ignore[union-attr]
    queries = [
        Recommend(Subject(first), 1),
        Recommend(Subject(first), 50, filter_seen=False),
        Recommend(Subject(second), 3, items=allowed),
        Recommend(Subject(first), 7, filter_seen=False, items=[allowed[0]]),
    ]
    found = engine.recommend(queries)
    _check(found[0], _expected(model, dataset, first, k=1))
    _check(found[1], _expected(model, dataset, first, k=50, filter_viewed=False))
    _check(found[2], _expected(model, dataset, second, k=3, items_to_recommend=allowed))
    _check(found[3], _expected(model, dataset, first, k=7, filter_viewed=False, items_to_recommend=[allowed[0]]))


def _with_rows(frames: Any, user: str, items: list[int]) -> Dataset:
    times = pd.Timestamp("2024-03-01") + pd.to_timedelta(np.arange(len(items)), unit="h")
    rows = pd.DataFrame({Columns.User: user, Columns.Item: items, Columns.Weight: 2.0, Columns.Datetime: times})
    others = frames.interactions[frames.interactions[Columns.User] != user]
    interactions = pd.concat([others, rows], ignore_index=True)
    return Dataset.construct(
        interactions, frames.user_features, ["group", "hobby"], False, frames.item_features, ["genre"], False
    )


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in ("ncf", "dlrm")])
@pytest.mark.parametrize("user", [None, "u003"])
def test_given_histories(name: str, user: str | None, make_frames: Callable[..., Any], tmp_path: Path) -> None:
    frames = make_frames()
    model, _, engine = _serve(CONFIGS[name], frames, tmp_path)
    history = [105, 101, 103, 105, 999]
    dataset = _with_rows(frames, user or "new", history)
    query = Recommend(Subject(user, [(item, 2.0) for item in history]), 5)
    found = engine.recommend([Recommend(Subject("u001")), query, Recommend(Subject("u002"))])[1]
    _check(found, _expected(model, dataset, user or "new"))
    assert isinstance(found, Ranked)
    assert found.ignored == [999]


@pytest.mark.parametrize("name", ["dssm", "dlrm"])
@pytest.mark.parametrize("features", ["sparse", "dense"])
def test_given_features(name: str, features: str, make_frames: Callable[..., Any], tmp_path: Path) -> None:
    frames = make_frames(n_warm=3, features=features)
    model, dataset, engine = _serve(CONFIGS[name], frames, tmp_path)
    warm = "u041"
    table = frames.user_features[frames.user_features["id"] == warm]
    if features == "dense":
        values: dict[str, object] = table.drop(columns="id").iloc[0].to_dict()
    else:
        values = {name: part.tolist() for name, part in table.groupby("feature")["value"]}
        values |= {"age": values["age"][0]} if "age" in values else {}  # type: ignore[index]
    expected = _expected(model, dataset, warm, filter_viewed=False)
    by_id, by_features, other = engine.recommend(
        [Recommend(Subject(warm), 5), Recommend(Subject(features=values), 5), Recommend(Subject("u001"), 5)]
    )
    _check(by_id, expected)
    _check(by_features, expected)
    _check(other, _expected(model, dataset, "u001"))


def test_nobody_gets_what_suits_a_stranger(make_frames: Callable[..., Any], tmp_path: Path) -> None:
    model, dataset, engine = _serve(CONFIGS["dssm"], make_frames(), tmp_path)
    found = engine.recommend([Recommend(Subject(features={}), 5)])[0]
    _check(found, _expected(model, dataset, "nobody", filter_viewed=False))


def test_similar_items(served: Served) -> None:
    model, dataset, engine = served
    queries = [Similar(105, 4), Similar(100, 30), Similar(105, 4, items=[101, 103, 105])]
    found = engine.similar(queries)
    if type(model).__name__ == "UserKNNModel":
        assert all(isinstance(one, QueryError) for one in found)
        return
    _check(found[0], model.recommend_to_items([105], dataset, 4))
    _check(found[1], model.recommend_to_items([100], dataset, 30))
    _check(found[2], model.recommend_to_items([105], dataset, 4, items_to_recommend=[101, 103, 105]))


def test_scores_of_pairs(served: Served) -> None:
    model, dataset, engine = served
    pairs = [("u001", 105), ("u000", 100), ("u001", 104), ("u001", 105)]
    frame = pd.DataFrame(pairs, columns=[Columns.User, Columns.Item])
    expected = model.predict_pairs(frame, dataset)[Columns.Score]
    np.testing.assert_allclose(engine.score(pairs), expected, rtol=1e-5, atol=1e-6)


def test_explanations(served: Served) -> None:
    model, dataset, engine = served
    expected, found = explain(model, dataset, "u001", 105), engine.explain(Subject("u001"), 105)
    assert found.score == pytest.approx(expected.score, rel=1e-5)
    assert (found.is_exact, found.sentence) == (expected.is_exact, expected.sentence())
    assert [part["name"] for part in found.contributions] == expected.contributions["name"].tolist()
    contributions = [part["contribution"] for part in found.contributions]
    np.testing.assert_allclose(contributions, expected.contributions["contribution"], rtol=1e-5, atol=1e-6)


def test_an_index_finds_nearly_all(make_frames: Callable[..., Any], tmp_path: Path) -> None:
    frames = make_frames(n_users=60, n_items=600, n_per_user=12)
    model, dataset, engine = _serve(CONFIGS["dssm"], frames, tmp_path, ann=True)
    users = _users(dataset)
    found = engine.recommend([Recommend(Subject(user), 10) for user in users])
    expected = model.recommend(users, dataset, 10, filter_viewed=True)
    pairs = {(user, item) for user, one in zip(users, found, strict=True) for item in one.items}  # type: ignore[union-attr]
    wanted = set(expected[list(Columns.UserItem)].itertuples(index=False, name=None))
    assert len(pairs) == len(wanted)
    assert len(pairs & wanted) > 0.95 * len(wanted)
    one = engine.recommend([Recommend(Subject(users[0]), 3, items=[101, 103, 105, 107])])[0]
    _check(one, _expected(model, dataset, users[0], k=3, items_to_recommend=[101, 103, 105, 107]))


@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        (Recommend(Subject()), (), "must tell for whom"),
        (Recommend(Subject("u999")), ("user_id",), "does not have user 'u999'"),
        (Recommend(Subject("u001"), items=[100, 7]), ("items", 1), "does not know item 7"),
        (Recommend(Subject(features={"grup": "g1"})), ("features",), "`grup`.*`group`"),
        (Recommend(Subject(features={"age": "old"})), ("features",), "`age` is a number"),
        (Recommend(Subject(features={"age": float("nan")})), ("features",), "`age` is a number"),
        (Recommend(Subject(features={"group": {"a": 1}})), ("features",), "`group` is a category"),
    ],
)
def test_bad_queries_don_t_spoil_the_others(dssm: Served, query: Recommend, field: Any, message: str) -> None:
    model, dataset, engine = dssm
    good = Recommend(Subject("u001"), 5)
    first, bad, last = engine.recommend([good, query, good])
    _check(first, _expected(model, dataset, "u001"))
    assert first == last
    assert isinstance(bad, QueryError)
    assert bad.field == field
    assert bad.is_unknown_user == (field == ("user_id",))
    with pytest.raises(QueryError, match=message):
        raise bad


def test_bad_items_and_pairs(dssm: Served) -> None:
    _, _, engine = dssm
    unknown, also = engine.similar([Similar(7), Similar(100, items=[101, "100"])])
    assert isinstance(unknown, QueryError)
    assert isinstance(also, QueryError)
    assert (unknown.field, also.field) == (("item_id",), ("items", 1))
    with pytest.raises(QueryError) as of_pair:
        engine.score([("u001", 100), ("u001", 7)])
    assert of_pair.value.field == (1, "item_id")
    with pytest.raises(QueryError) as of_item:
        engine.explain(Subject("u001"), 7)
    assert of_item.value.field == ("item_id",)


@pytest.mark.parametrize(
    ("name", "subject", "field", "message"),
    [
        ("ncf", Subject(history=[(100, 1.0)]), ("history",), "learns nothing from the history"),
        ("userknn", Subject(history=[(7, 1.0)]), ("history",), "knows none of these items"),
        ("vae", Subject(features={"group": "g1"}), ("features",), "goes by no features"),
    ],
)
def test_what_a_model_can_t_serve(
    name: str, subject: Subject, field: Any, message: str, make_frames: Callable[..., Any], tmp_path: Path
) -> None:
    _, _, engine = _serve(CONFIGS[name], make_frames(), tmp_path)
    (found,) = engine.recommend([Recommend(subject)])
    assert isinstance(found, QueryError)
    assert found.field == field
    with pytest.raises(QueryError, match=message):
        raise found


def test_a_folder_without_users(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    dataset = make_dataset()
    model_from_config(CONFIGS["dssm"]).fit(dataset).save_pretrained(tmp_path / "model")
    engine = Engine.load(tmp_path / "model")
    known, new = engine.recommend([Recommend(Subject("u001")), Recommend(Subject(history=[(101, 1.0)]))])
    assert isinstance(known, QueryError)
    assert "has no users" in str(known)
    assert isinstance(new, Ranked)
    assert len(new.items) == 10
    with pytest.raises(ValueError, match="with the option `dataset`"):
        Engine.load(tmp_path / "model", ann=True)


def test_the_version_tells_folders_apart(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    dataset = make_dataset()
    versions = []
    for name, seed in (("a", 1), ("b", 2)):
        model = model_from_config({**CONFIGS["dssm"], "seed": seed}).fit(dataset)
        model.save_pretrained(tmp_path / name, dataset=dataset)
        versions.append(Engine.load(tmp_path / name).version)
    assert versions[0] != versions[1]


def test_models_with_context_are_not_served(make_dataset: Callable[..., Dataset], tmp_path: Path) -> None:
    dataset = make_dataset()
    dataset.interactions.df["hour"] = np.arange(len(dataset.interactions.df)) % 24.0
    config = {**CONFIGS["dlrm"], "context_numeric": ["hour"]}
    model_from_config(config).fit(dataset).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="context"):
        Engine.load(tmp_path / "model")
