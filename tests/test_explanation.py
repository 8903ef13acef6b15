from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
from models.contract import global_state, interactions, make_model, recommend
from rectools import Columns
from rectools.dataset import Dataset
from rectools.exceptions import NotFittedError
from rectools.models import EASEModel

from rectools_neural import DLRMModel, DSSMModel, GFCFModel, LightGCNModel, explain, explanation
from rectools_neural.explanation import HISTORY_ITEM, ITEM_FEATURE, REST, USER_FEATURE, Explanation
from rectools_neural.registry import MODELS

DOT = {"loss": "squared", "epochs": 3, "n_factors": 8}
EXACT: dict[str, Callable[[], Any]] = {
    "GFCF": lambda: GFCFModel(n_factors=3),
    "GFCF, weights": lambda: GFCFModel(n_factors=3, use_weights=True),
    "DSSM": lambda: DSSMModel(**DOT),
    "DSSM, user ids": lambda: DSSMModel(**DOT, use_user_ids=True, history_encoder={"name": "mean", "power": 1.0}),
    "DSSM, product": lambda: DSSMModel(**DOT, merge="product", use_item_bias=False),
    "LightGCN": lambda: LightGCNModel(epochs=3, n_factors=8, loss="squared"),
}
NOT_EXACT: dict[str, Callable[[], Any]] = {
    "cosine": lambda: DSSMModel(epochs=2, n_factors=8, loss="softmax"),
    "tower": lambda: DSSMModel(**DOT, user_tower="residual"),
    "attention": lambda: DSSMModel(**DOT, history_encoder={"name": "attention", "n_heads": 2}),
    "graph, cosine": lambda: LightGCNModel(epochs=2, n_factors=8, similarity="cosine"),
}


def weighted(frames: Any) -> Any:
    weights = np.random.default_rng(0).uniform(0.5, 5, len(frames.interactions))
    return replace(frames, interactions=frames.interactions.assign(**{Columns.Weight: weights}))


def score(model: Any, dataset: Dataset, user: Any, item: Any) -> float:
    pairs = pd.DataFrame({Columns.User: [user], Columns.Item: [item]})
    return float(model.predict_pairs(pairs, dataset)[Columns.Score].iloc[0])


def without(dataset: Dataset, user: Any, item: Any) -> Dataset:
    """The dataset without the interactions of a pair."""
    raw = dataset.get_raw_interactions()
    kept = ~((raw[Columns.User] == user) & (raw[Columns.Item] == item)).to_numpy()
    return dataset.filter_interactions(np.flatnonzero(kept), keep_features_for_removed_entities=True)


def of_kind(explanation: Explanation, kind: str) -> pd.DataFrame:
    return explanation.contributions[explanation.contributions["kind"] == kind]


@pytest.fixture(scope="module")
def frames(make_frames: Callable[..., Any]) -> Any:
    return weighted(make_frames(n_warm=2))


@pytest.fixture(scope="module")
def dataset(frames: Any) -> Dataset:
    return frames.dataset()


@pytest.fixture(scope="module")
def plain(make_frames: Callable[..., Any]) -> Dataset:
    return weighted(make_frames(features=None)).dataset()


class TestAllModels:
    @pytest.mark.parametrize("name", MODELS)
    def test_table(self, name: str, dataset: Dataset) -> None:
        model = make_model(name).fit(dataset)
        before = global_state()
        found = explain(model, dataset, "u003", 107)
        assert global_state() == before
        table = found.contributions
        assert table.columns.tolist() == ["kind", "name", "value", "contribution"]
        assert table["contribution"].abs().is_monotonic_decreasing
        assert np.isfinite(table["contribution"]).all()
        assert found.score == pytest.approx(score(model, dataset, "u003", 107), rel=1e-5, abs=1e-7)
        assert table["contribution"].sum() == pytest.approx(found.score, abs=1e-5)
        assert (table["kind"] == REST).sum() == 1
        raw = dataset.get_raw_interactions()
        history = of_kind(found, HISTORY_ITEM)
        assert sorted(history["name"]) == sorted(raw.loc[raw[Columns.User] == "u003", Columns.Item])
        features = set(of_kind(found, USER_FEATURE)["name"]), set(of_kind(found, ITEM_FEATURE)["name"])
        assert features == (({"group", "hobby"}, {"genre", "price"}) if model.uses_features else (set(), set()))
        sentence = found.sentence()
        assert sentence.startswith("Item 107 scores ")
        assert sentence.count(".") >= 1
        assert sentence.endswith(".")

    @pytest.mark.parametrize("name", [name for name in MODELS if name not in ("NCFModel", "DLRMModel")])
    def test_without_the_top_contributor_the_item_falls(self, name: str, make_frames: Callable[..., Any]) -> None:
        """Of users with one item of each group: which of the two is it that a recommended item is due to?"""
        frames = make_frames(features=None)
        model = make_model(name, "good").fit(frames.dataset())
        rng = np.random.default_rng(0)
        halves = [np.unique(frames.interactions[Columns.Item].to_numpy())[group::2] for group in (0, 1)]
        histories = {f"new{number}": [int(rng.choice(half)) for half in halves] for number in range(15)}
        rows = interactions([(user, item) for user, items in histories.items() for item in items])
        table = pd.concat([frames.interactions, rows], ignore_index=True)
        dataset = replace(frames, interactions=table).dataset()
        falls = []
        for _, user, item, *_ in recommend(model, dataset, histories, k=3).itertuples():
            top = of_kind(explain(model, dataset, user, item), HISTORY_ITEM).nlargest(1, "contribution")["name"].item()
            places = []
            for of in (dataset, without(dataset, user, top)):
                order = recommend(model, of, [user], k=100, filter_viewed=False)[Columns.Item]
                others = [other for other in order if other not in histories[user]]
                places.append(others.index(item) if item in others else len(others))
            falls.append(places[1] > places[0])
        assert len(falls) > 30
        assert np.mean(falls) >= 0.9


class TestExact:
    @pytest.mark.parametrize("name", EXACT)
    def test_adds_up(self, name: str, dataset: Dataset) -> None:
        model = EXACT[name]().fit(dataset)
        for user, item in (("u000", 100), ("u003", 101), ("u010", 117)):
            found = explain(model, dataset, user, item)
            assert found.is_exact
            total = found.contributions["contribution"].sum()
            assert total == pytest.approx(score(model, dataset, user, item), abs=1e-5)
            assert of_kind(found, HISTORY_ITEM)["contribution"].abs().max() > 1e-4

    @pytest.mark.parametrize("name", EXACT)
    def test_tells_the_score_without_an_item(self, name: str, plain: Dataset) -> None:
        """The parts of the others stay, but for the divisor of the history."""
        model = EXACT[name]().fit(plain)
        power = {"GFCF": 0.0, "DSSM, user ids": 1.0}.get(name.partition(",")[0] if "GFCF" in name else name, 0.5)
        for user, item in (("u000", 100), ("u003", 112)):
            found = explain(model, plain, user, item)
            history, rest = of_kind(found, HISTORY_ITEM), of_kind(found, REST)["contribution"].item()
            total, n = history["contribution"].sum(), len(history)
            for row in history.itertuples():
                expected = rest + (total - row.contribution) * (n / (n - 1)) ** power
                assert score(model, without(plain, user, row.name), user, item) == pytest.approx(expected, abs=1e-5)

    def test_item_features_get_half_of_their_products(self, dataset: Dataset) -> None:
        model = EXACT["DSSM"]().fit(dataset)
        found = explain(model, dataset, "u003", 101)
        module, schema = model._fitted.module, model._fitted.schema.item_features
        place = np.flatnonzero(dataset.user_id_map.external_ids == "u003")[0]
        vector = model.get_vectors(dataset)[0][place, :-1]
        genre = module.item_features.categories[schema.values.index(("genre", "c1"))].detach().numpy()
        table = of_kind(found, ITEM_FEATURE).set_index("name")
        assert table.loc["genre", "contribution"] == pytest.approx(vector @ genre / 2, abs=1e-6)
        assert table.loc["genre", "value"] == "c1"

    @pytest.mark.parametrize("name", NOT_EXACT)
    def test_says_where_it_is_not(self, name: str, dataset: Dataset) -> None:
        assert not explain(NOT_EXACT[name]().fit(dataset), dataset, "u003", 101).is_exact

    def test_history_that_is_empty(self, dataset: Dataset) -> None:
        model = EXACT["DSSM"]().fit(dataset)
        found = explain(model, dataset, "u040", 101)
        assert of_kind(found, HISTORY_ITEM).empty
        assert not of_kind(found, USER_FEATURE).empty
        assert found.contributions["contribution"].sum() == pytest.approx(score(model, dataset, "u040", 101), abs=1e-5)


class TestLeaveOneOut:
    MODELS: ClassVar[dict[str, Callable[[], Any]]] = {
        "MultVAE": lambda: make_model("MultVAEModel"),
        "MultVAE, weights": lambda: make_model("MultVAEModel", use_weights=True),
        "UserKNN": lambda: make_model("UserKNNModel"),
        "DSSM, GRU": lambda: DSSMModel(epochs=2, n_factors=8, history_encoder="gru"),
        "DLRM": lambda: make_model("DLRMModel", history_encoder="mean"),
    }

    @pytest.mark.parametrize("name", MODELS)
    @pytest.mark.parametrize("max_entries", [1 << 22, 20])
    def test_is_the_score_without_the_row(
        self, name: str, max_entries: int, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(explanation, "_MAX_ENTRIES", max_entries)
        model = self.MODELS[name]().fit(dataset)
        found = explain(model, dataset, "u003", 101)
        assert not found.is_exact
        history = of_kind(found, HISTORY_ITEM)
        assert len(history) == 8
        assert history["contribution"].abs().max() > 1e-5
        for row in history.itertuples():
            expected = score(model, without(dataset, "u003", row.name), "u003", 101)
            assert found.score - row.contribution == pytest.approx(expected, abs=1e-5)

    def test_is_the_score_without_the_feature(self, frames: Any) -> None:
        dataset = frames.dataset()
        model = NOT_EXACT["tower"]().fit(dataset)
        found = explain(model, dataset, "u018", 104)
        checked = set()
        for kind, user_side in ((USER_FEATURE, True), (ITEM_FEATURE, False)):
            table, key = (frames.user_features, "u018") if user_side else (frames.item_features, 104)
            for row in of_kind(found, kind).itertuples():
                is_row = (table["id"] == key) & (table["feature"] == row.name) & (table["value"] == row.value)
                assert is_row.any()
                rest = table[~is_row]
                changed = replace(frames, **{"user_features" if user_side else "item_features": rest}).dataset()
                expected = score(model, changed, "u018", 104)
                assert found.score - row.contribution == pytest.approx(expected, abs=1e-5)
                checked.add((row.name, row.value))
        names = [name for name, _ in checked]
        assert set(names) == {"group", "hobby", "age", "genre", "price"}
        assert names.count("hobby") == 2  # one of two values left out: the other one counts for the field

    def test_dense_features_have_their_raw_values(self, make_frames: Callable[..., Any]) -> None:
        frames = make_frames(features="dense")
        dataset = frames.dataset()
        found = explain(DSSMModel(**DOT).fit(dataset), dataset, "u003", 101)
        table = of_kind(found, USER_FEATURE).set_index("name")
        raw = frames.user_features.set_index("id").loc["u003"]
        assert table["value"].to_dict() == pytest.approx(raw.to_dict(), rel=1e-5)


class TestWords:
    def make(self, *rows: tuple[str, Any, Any, float]) -> Explanation:
        table = pd.DataFrame(rows, columns=["kind", "name", "value", "contribution"])
        return Explanation("ann", "<b>", table["contribution"].sum(), True, table)

    def test_sentence(self) -> None:
        found = self.make(
            (HISTORY_ITEM, 4, 1.0, 0.5),
            (REST, "ids", None, 0.4),
            (HISTORY_ITEM, 5, 1.0, -0.25),
            (USER_FEATURE, "age", 30.0, 0.2),
            (ITEM_FEATURE, "genre", "war", 0.1),
            (HISTORY_ITEM, 6, 1.0, 0.05),
            (HISTORY_ITEM, 7, 1.0, -0.01),
        )
        assert found.sentence() == (
            "Item <b> scores 0.99 for user ann, mostly by history item 4 (+0.5), user feature age = 30 (+0.2) and item "
            "feature genre = war (+0.1); history item 5 (-0.25) speaks most against it."
        )
        assert "Item &lt;b&gt; scores" in found._repr_html_()

    def test_with_one_side_only(self) -> None:
        one = self.make((REST, "ids", None, 1.0), (HISTORY_ITEM, 4, 1.0, 0.5))
        assert one.sentence() == "Item <b> scores 1.5 for user ann, mostly by history item 4 (+0.5)."
        against = self.make((REST, "ids", None, 1.0), (HISTORY_ITEM, 4, 1.0, -0.5))
        assert against.sentence() == "Item <b> scores 0.5 for user ann; history item 4 (-0.5) speaks most against it."
        nothing = self.make((REST, "ids", None, 1.0), (HISTORY_ITEM, 4, 1.0, 1e-9))
        assert nothing.sentence() == "Item <b> scores 1 for user ann, which comes from ids alone."

    def test_popularity(self, dataset: Dataset) -> None:
        model = make_model("MultVAEModel").fit(dataset)
        found = explain(model, dataset, "u040", 101)
        n = int((dataset.get_raw_interactions()[Columns.Item] == 101).sum())
        assert found.score == n
        assert found.sentence() == f"Item 101 scores {n} for user u040, which comes from popularity alone."


class TestBadInput:
    def test_model(self, dataset: Dataset) -> None:
        with pytest.raises(NotFittedError):
            explain(make_model("GFCFModel"), dataset, "u003", 101)
        with pytest.raises(TypeError, match="rectools_neural, got EASEModel"):
            explain(EASEModel(), dataset, "u003", 101)
        with pytest.raises(TypeError, match="got DataFrame"):
            explain(make_model("GFCFModel"), dataset.get_raw_interactions(), "u003", 101)

    def test_ids(self, dataset: Dataset) -> None:
        for name in ("GFCFModel", "DSSMModel"):
            model = make_model(name).fit(dataset)
            with pytest.raises(ValueError, match="User 'ann' is not in `dataset`"):
                explain(model, dataset, "ann", 101)
            with pytest.raises(ValueError, match=r"[iI]tem 9999 "):
                explain(model, dataset, "u003", 9999)

    def test_warm_item(self, dataset: Dataset) -> None:
        """Features alone are enough for models that go by them."""
        model = EXACT["DSSM"]().fit(dataset)
        assert explain(model, dataset, "u003", 125).contributions["contribution"].sum() == pytest.approx(
            score(model, dataset, "u003", 125), abs=1e-5
        )
        with pytest.raises(ValueError, match="GFCFModel was not fitted on item 125"):
            explain(make_model("GFCFModel").fit(dataset), dataset, "u003", 125)

    def test_context(self, frames: Any) -> None:
        table = frames.interactions.assign(hour=np.arange(len(frames.interactions)) % 24)
        dataset = Dataset.construct(table, keep_extra_cols=True)
        target = {"name": "label", "threshold": 2}
        model = DLRMModel(epochs=1, n_factors=4, top_hidden=(4,), target=target, context_numeric=("hour",))
        with pytest.raises(ValueError, match=r"context \['hour'\]"):
            explain(model.fit(dataset), dataset, "u003", 101)
