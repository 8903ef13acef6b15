from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from implicit.nearest_neighbours import BM25Recommender, CosineRecommender, ItemItemRecommender, TFIDFRecommender
from pandas.testing import assert_frame_equal
from pydantic import ValidationError
from rectools import Columns
from rectools.dataset import Dataset
from rectools.exceptions import NotFittedError
from rectools.metrics import NDCG, calc_metrics
from rectools.model_selection import RandomSplitter, cross_validate
from rectools.models import PopularModel, load_model, model_from_config
from rectools.models.base import ModelBase

import rectools_neural
from rectools_neural import UserKNNModel, load_dataset
from rectools_neural.models import userknn

SIMILARITIES = ["cosine", "tfidf", "bm25"]

# Lengths 5, 5, 10 and 13; cosines: a-b 12/25, a-c 32/50, c-d 30/130, all others 0.
RATINGS: dict[str, dict[int, float]] = {
    "a": {1: 3, 2: 4},
    "b": {1: 4, 3: 3},
    "c": {2: 8, 4: 6},
    "d": {4: 5, 5: 12},
}
A_B, A_C, C_D = 0.48, 0.64, 3 / 13


def make(ratings: dict[str, dict[int, float]]) -> Dataset:
    rows = [(user, item, weight) for user, items in ratings.items() for item, weight in items.items()]
    frame = pd.DataFrame(rows, columns=[Columns.User, Columns.Item, Columns.Weight])
    return Dataset.construct(frame.assign(**{Columns.Datetime: "2024-01-01"}))


def from_matrix(matrix: np.ndarray) -> Dataset:
    return make({f"u{u:03}": {int(i): row[i] for i in np.flatnonzero(row)} for u, row in enumerate(matrix)})


def random_matrix(n_users: int, n_items: int, seed: int = 0) -> np.ndarray:
    """Sparse weights without ties; each user and each item has some."""
    rng = np.random.default_rng(seed)
    matrix = rng.uniform(0.5, 5, (n_users, n_items)) * (rng.random((n_users, n_items)) < 0.3)
    matrix[np.arange(n_users), np.arange(n_users) % n_items] = 1.5
    matrix[np.arange(n_items) % n_users, np.arange(n_items)] = 2.5
    return matrix


def recommend(model: UserKNNModel, dataset: Dataset, users: Any = None, k: int = 1000, **options: Any) -> pd.DataFrame:
    users = np.sort(dataset.user_id_map.external_ids) if users is None else users
    return model.recommend(users, dataset, k, **{"filter_viewed": False, **options})


def scores_of(model: UserKNNModel, dataset: Dataset, user: str, **options: Any) -> dict[int, float]:
    reco = recommend(model, dataset, [user], **options)
    assert reco[Columns.Score].is_monotonic_decreasing
    return dict(zip(reco[Columns.Item], reco[Columns.Score], strict=True))


def dense_scores(reco: pd.DataFrame, shape: tuple[int, int]) -> np.ndarray:
    """Scores of `from_matrix` users and items as a matrix, 0 for what is not recommended."""
    scores = np.zeros(shape)
    scores[reco[Columns.User].str[1:].astype(int), reco[Columns.Item]] = reco[Columns.Score]
    return scores


class TestScores:
    @pytest.mark.parametrize("n_neighbors", [2, 3, 4, 10**12])
    def test_cosine_by_hand(self, n_neighbors: int) -> None:
        model = UserKNNModel(similarity="cosine", n_neighbors=n_neighbors, normalise=False)
        dataset = make(RATINGS)
        model.fit(dataset)
        assert scores_of(model, dataset, "a") == pytest.approx({2: A_C * 8, 4: A_C * 6, 1: A_B * 4, 3: A_B * 3})
        assert scores_of(model, dataset, "b") == pytest.approx({2: A_B * 4, 1: A_B * 3})
        assert scores_of(model, dataset, "c") == pytest.approx({5: C_D * 12, 2: A_C * 4, 1: A_C * 3, 4: C_D * 5})
        assert scores_of(model, dataset, "d") == pytest.approx({2: C_D * 8, 4: C_D * 6})

    def test_one_neighbour_is_the_most_similar_one(self) -> None:
        dataset = make(RATINGS)
        model = UserKNNModel(similarity="cosine", n_neighbors=1, normalise=False).fit(dataset)
        assert scores_of(model, dataset, "a") == pytest.approx({2: A_C * 8, 4: A_C * 6})
        assert scores_of(model, dataset, "c") == pytest.approx({2: A_C * 4, 1: A_C * 3})

    def test_normalised_scores_are_means_over_the_neighbours(self) -> None:
        dataset = make(RATINGS)
        model = UserKNNModel(similarity="cosine", n_neighbors=2, normalise=True).fit(dataset)
        total = A_B + A_C
        expected = {2: A_C * 8 / total, 4: A_C * 6 / total, 1: A_B * 4 / total, 3: A_B * 3 / total}
        assert scores_of(model, dataset, "a") == pytest.approx(expected)
        assert scores_of(model, dataset, "d") == pytest.approx({2: 8, 4: 6})

    @pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
    @pytest.mark.parametrize("n_neighbors", [1, 5, 100])
    @pytest.mark.parametrize("normalise", [False, True])
    @pytest.mark.parametrize("similarity", SIMILARITIES)
    def test_equal_to_dense_reference(
        self, similarity: str, normalise: bool, n_neighbors: int, shape: tuple[int, int]
    ) -> None:
        ratings = random_matrix(*shape)
        vectors = ratings
        idf = np.log(shape[0]) - np.log1p((ratings > 0).sum(axis=0))
        if similarity == "tfidf":
            vectors = np.sqrt(ratings) * idf
        if similarity == "bm25":
            lengths = ratings.sum(axis=1, keepdims=True)
            vectors = ratings * (2.0 + 1) / (2.0 * (0.6 + 0.4 * lengths / lengths.mean()) + ratings) * idf
        else:
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        similarities = vectors @ vectors.T
        np.fill_diagonal(similarities, 0)
        rank_of_neighbour = (-similarities).argsort(axis=1).argsort(axis=1)
        similarities[rank_of_neighbour >= n_neighbors] = 0
        if normalise:
            similarities /= similarities.sum(axis=1, keepdims=True)

        dataset = from_matrix(ratings)
        model = UserKNNModel(similarity=similarity, n_neighbors=n_neighbors, k1=2.0, b=0.4, normalise=normalise)
        reco = recommend(model.fit(dataset), dataset)
        np.testing.assert_allclose(dense_scores(reco, shape), similarities @ ratings, rtol=2e-6, atol=1e-7)

    @pytest.mark.parametrize(
        ("similarity", "recommender"),
        [
            ("cosine", CosineRecommender(K=40)),
            ("tfidf", TFIDFRecommender(K=40)),
            ("bm25", BM25Recommender(K=40, K1=2.0, B=0.4)),
        ],
    )
    def test_similarities_are_those_of_implicit(self, similarity: str, recommender: ItemItemRecommender) -> None:
        ratings = random_matrix(40, 25)
        dataset = from_matrix(ratings)
        by_item = dataset.get_user_item_matrix(dtype=np.float64).T.tocsr()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # implicit turns its own matrices to another format and warns of that
            recommender.fit(by_item, show_progress=False)
        similarities = recommender.similarity.toarray()
        np.fill_diagonal(similarities, 0)
        model = UserKNNModel(similarity=similarity, n_neighbors=40, k1=2.0, b=0.4, normalise=False)
        reco = recommend(model.fit(dataset), dataset)
        np.testing.assert_allclose(dense_scores(reco, (40, 25)), similarities @ ratings, rtol=2e-6)

    @pytest.mark.parametrize("similarity", SIMILARITIES)
    def test_checkerboard(self, similarity: str) -> None:
        """Each user lacks one item of the own colour: that one must come first."""
        n = 20
        board = (np.add.outer(np.arange(n), np.arange(n)) % 2 == 0) & ~np.eye(n, dtype=bool)
        dataset = from_matrix(board.astype(float))
        reco = recommend(UserKNNModel(similarity=similarity).fit(dataset), dataset, k=1, filter_viewed=True)
        assert reco[Columns.Item].tolist() == list(range(n))

    def test_without_normalisation_the_order_is_the_same(self) -> None:
        dataset = from_matrix(random_matrix(30, 20))
        plain, normalised = (
            recommend(UserKNNModel(n_neighbors=7, normalise=normalise).fit(dataset), dataset)
            for normalise in (False, True)
        )
        columns = [Columns.User, Columns.Item, Columns.Rank]
        assert_frame_equal(plain[columns], normalised[columns])
        assert normalised[Columns.Score].max() <= 5 < plain[Columns.Score].max()


class TestRecommendations:
    def test_filter_whitelist_and_k(self) -> None:
        dataset = make(RATINGS)
        model = UserKNNModel(similarity="cosine", normalise=False).fit(dataset)
        assert list(scores_of(model, dataset, "a", filter_viewed=True)) == [4, 3]
        assert list(scores_of(model, dataset, "a", k=3)) == [2, 4, 1]
        assert scores_of(model, dataset, "a", items_to_recommend=[5, 3, 1]) == pytest.approx({1: A_B * 4, 3: A_B * 3})
        assert list(scores_of(model, dataset, "a", items_to_recommend=[5, 3, 1], filter_viewed=True)) == [3]
        assert scores_of(model, dataset, "a", items_to_recommend=[5]) == {}

    @pytest.mark.parametrize("whitelist", [None, [3, 5]])
    @pytest.mark.parametrize("max_scores", [1, 70])
    def test_chunks_change_nothing(
        self, max_scores: int, whitelist: list[int] | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dataset = from_matrix(random_matrix(30, 20))
        model = UserKNNModel(n_neighbors=7).fit(dataset)
        whole = recommend(model, dataset, filter_viewed=True, items_to_recommend=whitelist)
        monkeypatch.setattr(userknn, "MAX_SCORES", max_scores)
        assert_frame_equal(recommend(model, dataset, filter_viewed=True, items_to_recommend=whitelist), whole)

    @pytest.mark.parametrize("n_candidates", [1, 40])
    def test_memory_of_a_chunk_is_bounded(self, n_candidates: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Neither the scores nor the neighbours that are held at once may be more than the limit."""
        sizes = []
        search = userknn.NeighbourSearch.__call__

        def spy(self: Any, vectors: Any, own_rows: np.ndarray) -> Any:
            sizes.append(len(own_rows))
            return search(self, vectors, own_rows)

        monkeypatch.setattr(userknn.NeighbourSearch, "__call__", spy)
        monkeypatch.setattr(userknn, "MAX_SCORES", 200)
        dataset = from_matrix(random_matrix(60, 40))
        model = UserKNNModel(n_neighbors=20).fit(dataset)
        recommend(model, dataset, items_to_recommend=range(n_candidates))
        assert sum(sizes) == 60
        assert max(sizes) == 200 // max(20, n_candidates)

    @pytest.mark.parametrize("similarity", SIMILARITIES)
    def test_other_users_change_nothing(self, similarity: str) -> None:
        dataset = from_matrix(random_matrix(30, 20))
        model = UserKNNModel(similarity=similarity, n_neighbors=7, k1=2.0).fit(dataset)
        together = recommend(model, dataset)
        alone = Dataset.construct(dataset.get_raw_interactions().query("user_id == 'u004'"))
        expected = together[together[Columns.User] == "u004"].reset_index(drop=True)
        assert_frame_equal(recommend(model, dataset, ["u004"]), expected)
        assert_frame_equal(recommend(model, alone), expected)

    @pytest.mark.parametrize("similarity", SIMILARITIES)
    def test_user_with_nothing_in_common_gets_nothing(self, similarity: str) -> None:
        dataset = make({**RATINGS, "alone": {6: 1}})
        model = UserKNNModel(similarity=similarity).fit(dataset)
        assert scores_of(model, dataset, "alone") == {}
        assert set(recommend(model, dataset)[Columns.User]) == set(RATINGS)

    def test_items_that_say_nothing(self) -> None:
        """An item of all users but one has idf 0: a user without other items has no direction, and no NaN arises."""
        dataset = make({"a": {1: 1, 2: 1, 3: 1}, "b": {1: 1, 2: 1}, "c": {1: 1}, "d": {4: 1}})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = UserKNNModel(similarity="tfidf").fit(dataset)
            assert scores_of(model, dataset, "b") == pytest.approx({1: 1, 2: 1, 3: 1})
            assert scores_of(model, dataset, "c") == {}

    def test_zero_weights_count_for_nothing_but_are_seen(self) -> None:
        dataset, with_zeros = make(RATINGS), make({**RATINGS, "a": {**RATINGS["a"], 4: 0}})
        model = UserKNNModel(n_neighbors=2).fit(with_zeros)
        assert_frame_equal(recommend(model, with_zeros), recommend(UserKNNModel(n_neighbors=2).fit(dataset), dataset))
        assert 4 not in scores_of(model, with_zeros, "a", filter_viewed=True)

    @pytest.mark.parametrize("verbose", [0, 1])
    def test_progress_is_shown_on_demand(self, verbose: int, capfd: pytest.CaptureFixture[str]) -> None:
        dataset = make(RATINGS)
        recommend(UserKNNModel(verbose=verbose).fit(dataset), dataset)
        out, err = capfd.readouterr()
        assert out == ""
        assert ("4/4" in err) == bool(verbose)


class TestLaterDatasets:
    @pytest.mark.parametrize("similarity", SIMILARITIES)
    def test_order_of_rows_does_not_matter(self, similarity: str, make_frames: Callable[..., Any]) -> None:
        frames = make_frames()
        dataset, shuffled = frames.dataset(), frames.shuffled(1).dataset()
        model = UserKNNModel(similarity=similarity, n_neighbors=5).fit(dataset)
        other = UserKNNModel(similarity=similarity, n_neighbors=5).fit(shuffled)
        expected = recommend(model, dataset)
        assert len(expected) > 400
        assert_frame_equal(recommend(model, shuffled), expected)
        assert_frame_equal(recommend(other, dataset), expected)
        assert_frame_equal(recommend(other, shuffled), expected)

    @pytest.mark.parametrize("features", ["sparse", "dense"])
    def test_features_do_not_matter(self, features: str, make_dataset: Callable[..., Dataset]) -> None:
        with_features, without = make_dataset(features=features), make_dataset(features=None)
        users = without.user_id_map.external_ids
        model = UserKNNModel(n_neighbors=5).fit(with_features)
        expected = recommend(UserKNNModel(n_neighbors=5).fit(without), without, users)
        assert_frame_equal(recommend(model, with_features, users), expected)

    def test_new_user_is_served_like_the_fitted_one(self) -> None:
        """A user's own record is no neighbour: it is all one whether the model was fitted with it."""
        matrix = random_matrix(30, 20)
        assert (np.delete(matrix, 7, axis=0) > 0).any(axis=0).all()  # no item vanishes with the user
        dataset = from_matrix(matrix)
        raw = dataset.get_raw_interactions()
        without = Dataset.construct(raw[raw[Columns.User] != "u007"])
        options = {"similarity": "cosine", "n_neighbors": 4}
        expected = recommend(UserKNNModel(**options).fit(dataset), dataset, ["u007"])
        assert len(expected) > 10
        assert_frame_equal(recommend(UserKNNModel(**options).fit(without), dataset, ["u007"]), expected)

    @pytest.mark.parametrize("similarity", SIMILARITIES)
    def test_new_user_finds_the_twin(self, similarity: str) -> None:
        matrix = random_matrix(30, 20)
        model = UserKNNModel(similarity=similarity, n_neighbors=1).fit(from_matrix(matrix))
        twin = from_matrix(matrix[[5]]).get_raw_interactions().replace("u000", "twin")
        reco = scores_of(model, Dataset.construct(twin), "twin")
        assert reco == pytest.approx({int(item): matrix[5, item] for item in np.flatnonzero(matrix[5])})

    def test_given_history_counts(self) -> None:
        """Now "a" has what "d" has; the record of "a" that the model was fitted on is no neighbour."""
        model = UserKNNModel(similarity="cosine", normalise=False).fit(make(RATINGS))
        now = make({**RATINGS, "a": RATINGS["d"]})
        assert scores_of(model, now, "a") == pytest.approx({5: 12, 4: 5 + C_D * 6, 2: C_D * 8})
        # The others' records are those of the fit.
        assert scores_of(model, now, "b") == pytest.approx({2: A_B * 4, 1: A_B * 3})

    def test_items_that_came_later_are_left_out(self) -> None:
        model = UserKNNModel(similarity="cosine", normalise=False).fit(make(RATINGS))
        later = make({"e": {**RATINGS["d"], 6: 100}, "f": {6: 1}})
        # Item 2 is not in the later dataset, and still recommended.
        assert scores_of(model, later, "e") == pytest.approx({5: 12, 4: 5 + C_D * 6, 2: C_D * 8})
        assert scores_of(model, later, "f") == {}
        assert scores_of(model, later, "e", items_to_recommend=[6]) == {}


class TestState:
    @pytest.mark.parametrize("similarity", SIMILARITIES)
    def test_save_and_load(self, similarity: str, tmp_path: Path) -> None:
        dataset = from_matrix(random_matrix(30, 20))
        model = UserKNNModel(similarity=similarity, n_neighbors=5).fit(dataset)
        expected = recommend(model, dataset)
        model.save(tmp_path / "model")
        assert_frame_equal(recommend(load_model(tmp_path / "model"), dataset), expected)
        assert_frame_equal(recommend(UserKNNModel.loads(model.dumps()), dataset), expected)

    def test_config(self) -> None:
        model = UserKNNModel(similarity="tfidf", n_neighbors=7, k1=1.5, b=0.2, normalise=False, verbose=1)
        config = model.get_config(simple_types=True)
        assert config == {
            "cls": "rectools_neural.UserKNNModel",
            "similarity": "tfidf",
            "n_neighbors": 7,
            "k1": 1.5,
            "b": 0.2,
            "normalise": False,
            "verbose": 1,
        }
        for make_model in (model_from_config, rectools_neural.model_from_config, UserKNNModel.from_config):
            made = make_model(config)
            assert type(made) is UserKNNModel
            assert made.get_config(simple_types=True) == config
        assert type(rectools_neural.model_from_config({"cls": "UserKNNModel"})) is UserKNNModel

    def test_cross_validate(self, make_dataset: Callable[..., Dataset]) -> None:
        """Each user likes one half of the catalogue: who looks at neighbours beats who doesn't."""
        result = cross_validate(
            make_dataset(),
            RandomSplitter(0.2, n_splits=2, random_state=0),
            {"ndcg": NDCG(5, divide_by_achievable=True)},
            {"knn": UserKNNModel(n_neighbors=10), "popular": PopularModel()},
            k=5,
            filter_viewed=True,
        )
        ndcg = pd.DataFrame(result["metrics"]).groupby("model")["ndcg"].min()
        assert ndcg["knn"] > 1.5 * ndcg["popular"]


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"similarity": "cosin"}, "unknown similarity `cosin`; did you mean `cosine`"),
            ({"similarity": ["bm25"]}, "unknown similarity"),
            ({"n_neighbors": 0}, "n_neighbors"),
            ({"k1": -1}, "k1"),
            ({"b": 1.5}, "b\n"),
        ],
    )
    def test_wrong_options(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValidationError, match=message):
            UserKNNModel(**options)

    def test_unknown_option(self) -> None:
        with pytest.raises(TypeError, match="no parameter `neighbors`; did you mean `n_neighbors`"):
            UserKNNModel(neighbors=3)

    @pytest.mark.parametrize("weight", [-2.0, np.nan, np.inf])
    def test_wrong_weights(self, weight: float) -> None:
        dataset, wrong = make(RATINGS), make({**RATINGS, "b": {1: 4, 3: weight}})
        message = f"Column `weight` .* has 1 values .* first of them {weight} of user b and item 3"
        model = UserKNNModel().fit(dataset)
        expected = recommend(model, dataset)
        with pytest.raises(ValueError, match=message):
            model.fit(wrong)
        with pytest.raises(ValueError, match=message):
            recommend(model, wrong, ["a"])
        assert_frame_equal(recommend(model, dataset), expected)

    def test_nothing_to_learn_from(self) -> None:
        with pytest.raises(ValueError, match="`dataset` has no interactions"):
            UserKNNModel().fit(Dataset.construct(make(RATINGS).get_raw_interactions().iloc[:0]))
        with pytest.raises(ValueError, match="`weight` of the interactions is 0 everywhere"):
            UserKNNModel().fit(make({"a": {1: 0}, "b": {1: 0}}))

    def test_not_fitted(self) -> None:
        with pytest.raises(NotFittedError):
            recommend(UserKNNModel(), make(RATINGS))

    def test_items_to_items(self) -> None:
        dataset = make(RATINGS)
        with pytest.raises(NotImplementedError, match="ImplicitItemKNNWrapperModel"):
            UserKNNModel().fit(dataset).recommend_to_items([1], dataset, k=2)

    @pytest.mark.parametrize("user", ["u040", "nobody"])
    def test_warm_and_cold_users(self, user: str, make_dataset: Callable[..., Dataset]) -> None:
        dataset = make_dataset(n_warm=1)
        model = UserKNNModel().fit(dataset)
        with pytest.raises(ValueError, match="doesn't support recommendations for"):
            recommend(model, dataset, ["u000", user])
        served = recommend(model, dataset, ["u000", user], on_unsupported_targets="ignore")
        assert set(served[Columns.User]) == {"u000"}


LOCAL_DATA = os.environ.get("RECTOOLS_NEURAL_DATA")


@pytest.mark.skipif(not LOCAL_DATA or not (Path(LOCAL_DATA) / "ml-100k").is_dir(), reason="no local MovieLens-100k")
def test_quality_on_movielens() -> None:
    raw = load_dataset("ml-100k").get_raw_interactions(include_extra_cols=False).assign(**{Columns.Weight: 1.0})
    held = np.random.default_rng(0).random(len(raw)) < 0.2
    train, test = raw[~held], raw[held]
    test = test[test[Columns.User].isin(train[Columns.User])]
    dataset = Dataset.construct(train)

    def ndcg(model: ModelBase[Any]) -> float:
        reco = model.fit(dataset).recommend(test[Columns.User].unique(), dataset, k=10, filter_viewed=True)
        return float(calc_metrics({"ndcg": NDCG(10, divide_by_achievable=True)}, reco, test)["ndcg"])

    assert ndcg(UserKNNModel()) > 0.40
    assert ndcg(UserKNNModel(similarity="cosine", n_neighbors=50)) > 0.38
    assert ndcg(UserKNNModel(similarity="tfidf", n_neighbors=50)) > 0.39
    assert ndcg(PopularModel()) < 0.23
