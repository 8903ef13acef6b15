"""Figures: what they hold is checked, not how they look."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("plotly", reason="plotly is not installed")
pytest.importorskip("umap", reason="umap-learn is not installed")

from models.contract import global_state, make_model
from rectools import Columns
from rectools.dataset import Dataset
from rectools.exceptions import NotFittedError

from rectools_neural import DSSMModel, GFCFModel, LightGCNModel
from rectools_neural.analysis import (
    embedding_map,
    feature_labels,
    neighbour_accuracy,
    save_figure,
    similarity_distributions,
    training_curves,
)


@pytest.fixture(scope="module")
def frames(make_frames: Callable[..., Any]) -> Any:
    return make_frames(n_warm=2)


@pytest.fixture(scope="module")
def dataset(frames: Any) -> Dataset:
    return frames.dataset()


@pytest.fixture(scope="module")
def model(dataset: Dataset) -> Any:
    return make_model("DSSMModel", "good").fit(dataset)


def pair_scores(model: Any, dataset: Dataset, pairs: pd.DataFrame) -> np.ndarray:
    return model.predict_pairs(pairs[Columns.UserItem], dataset)[Columns.Score].to_numpy()


def same(one: Any, other: Any) -> bool:
    parts = [(a.name, a.x.tolist(), list(a.y) if a.type != "histogram" else None) for a in one.data]
    return parts == [(b.name, b.x.tolist(), list(b.y) if b.type != "histogram" else None) for b in other.data]


class TestSimilarityDistributions:
    @pytest.mark.parametrize("similarity", ["dot", "euclidean"])
    def test_scores(self, similarity: str, dataset: Dataset) -> None:
        model = DSSMModel(epochs=2, n_factors=4, loss="bpr", similarity=similarity).fit(dataset)
        figure = similarity_distributions(model, dataset)
        interacted, others = figure.data
        pairs = dataset.get_raw_interactions()
        assert np.sort(interacted.x) == pytest.approx(np.sort(pair_scores(model, dataset, pairs)), abs=1e-5)
        table = pd.MultiIndex.from_product(
            [pairs[Columns.User].unique(), pairs[Columns.Item].unique()], names=Columns.UserItem
        )
        free = table.difference(pd.MultiIndex.from_frame(pairs[Columns.UserItem])).to_frame(index=False)
        possible = pair_scores(model, dataset, free)
        assert len(others.x) == len(interacted.x)
        assert np.abs(np.subtract.outer(others.x, possible)).min(axis=1).max() < 1e-5

    def test_a_trained_model_tells_them_apart(self, frames: Any) -> None:
        held = frames.interactions.groupby(Columns.User).tail(1)
        train = replace(frames, interactions=frames.interactions.drop(held.index)).dataset()
        model = make_model("DSSMModel", "good").fit(train)
        unknown = pd.DataFrame({Columns.User: ["ann"], Columns.Item: [100]})
        figure = similarity_distributions(model, train, pd.concat([held, unknown]))
        assert [trace.name for trace in figure.data] == ["interacted", "not interacted"] * 2
        means = [trace.x.mean() for trace in figure.data]
        assert means[0] > means[1] + 1
        sizes = [len(trace.x) for trace in figure.data]
        assert sizes == [len(train.interactions.df)] * 2 + [len(held)] * 2
        assert [note.text for note in figure.layout.annotations] == ["train", "test"]

    def test_sample(self, model: Any, dataset: Dataset) -> None:
        before = global_state()
        figure = similarity_distributions(model, dataset, dataset, n_pairs=50, seed=1)
        assert global_state() == before
        assert [len(trace.x) for trace in figure.data] == [50] * 4
        assert same(figure, similarity_distributions(model, dataset, dataset, n_pairs=50, seed=1))
        assert not same(figure, similarity_distributions(model, dataset, dataset, n_pairs=50, seed=2))

    def test_users_who_have_everything_have_no_other_pairs(self) -> None:
        rows = [(user, item) for user in "abc" for item in range(4 if user == "a" else 2)]
        table = pd.DataFrame(rows, columns=Columns.UserItem).assign(weight=1.0, datetime="2024-01-01")
        dataset = Dataset.construct(table)
        model = DSSMModel(epochs=1, n_factors=4).fit(dataset)
        interacted, others = similarity_distributions(model, dataset).data
        assert len(interacted.x) == 8
        assert len(others.x) == 4

    def test_bad_input(self, model: Any, dataset: Dataset) -> None:
        with pytest.raises(ValueError, match=r"GFCFModel has no vectors.*these have: .*DSSMModel.*LightGCNModel"):
            similarity_distributions(GFCFModel().fit(dataset), dataset)
        with pytest.raises(NotFittedError):
            similarity_distributions(DSSMModel(), dataset)
        with pytest.raises(ValueError, match="`n_pairs` must be at least 1"):
            similarity_distributions(model, dataset, n_pairs=0)
        with pytest.raises(ValueError, match=r"`test` lacks the columns \['user_id'\]"):
            similarity_distributions(model, dataset, pd.DataFrame({Columns.Item: [100]}))
        with pytest.raises(ValueError, match="`test` has no interactions of users and items of `train`"):
            similarity_distributions(model, dataset, pd.DataFrame({Columns.User: ["ann"], Columns.Item: [100]}))


class TestEmbeddingMap:
    def test_points_are_the_principal_components(self, model: Any, dataset: Dataset) -> None:
        titles = {100: "Alien", 101: "Brazil"}
        (trace,) = embedding_map(model, dataset, titles=titles).data
        vectors = model.get_vectors(dataset)[1][:, :-1].astype(float)
        points = np.stack([trace.x, trace.y], axis=1)
        centred = vectors - vectors.mean(axis=0)
        values, axes = np.linalg.eigh(centred.T @ centred)
        for place in (0, 1):
            expected = centred @ axes[:, -1 - place]
            assert np.abs(points[:, place]) == pytest.approx(np.abs(expected), abs=1e-4)
        assert points.var(axis=0).sum() == pytest.approx(values[-2:].sum() / len(vectors), rel=1e-4)
        ids = dataset.item_id_map.external_ids.tolist()
        assert list(trace.text) == [titles.get(id_, str(id_)) for id_ in ids]

    def test_colours(self, model: Any, dataset: Dataset, frames: Any) -> None:
        figure = embedding_map(model, dataset, color="genre")
        assert {trace.name: len(trace.x) for trace in figure.data} == {"c0": 13, "c1": 13}
        assert all(int(id_) % 2 == int(trace.name[1]) for trace in figure.data for id_ in trace.text)
        # What has been learnt shows: the genres don't overlap.
        means = [np.array([trace.x.mean(), trace.y.mean()]) for trace in figure.data]
        spread = max(np.hypot(trace.x.std(), trace.y.std()) for trace in figure.data)
        assert np.linalg.norm(means[0] - means[1]) > 2 * spread
        numbers, missing = embedding_map(model, dataset, "users", color="age").data
        ages = frames.user_features.query("feature == 'age'").set_index("id")["value"]
        assert dict(zip(numbers.text, numbers.marker.color, strict=True)) == pytest.approx(ages.to_dict())
        assert missing.name == "missing"
        assert set(missing.text) == set(dataset.user_id_map.external_ids) - set(ages.index)

    @pytest.mark.parametrize("n_values", [27, 28, 40])
    def test_each_value_has_a_look_of_its_own(self, n_values: int) -> None:
        rows = [("u", item) for item in range(40)] + [("v", item) for item in range(20)]
        table = pd.DataFrame(rows, columns=Columns.UserItem).assign(weight=1.0, datetime="2024-01-01")
        values = pd.DataFrame(
            {"id": range(40), "feature": "maker", "value": [f"m{i % n_values:02}" for i in range(40)]}
        )
        dataset = Dataset.construct(table, item_features_df=values, cat_item_features=["maker"])
        traces = embedding_map(DSSMModel(epochs=1, n_factors=4).fit(dataset), dataset, color="maker").data
        assert len({(trace.marker.symbol, trace.marker.color) for trace in traces}) == len(traces) == 27
        assert sum(len(trace.x) for trace in traces) == 40
        assert [trace.name for trace in traces][:2] == ["m00", "m01"]
        assert traces[-1].name == ("m26" if n_values == 27 else "others")

    @pytest.mark.parametrize("method", ["pca", "tsne", "umap"])
    def test_reproducible(self, method: Any, model: Any, dataset: Dataset) -> None:
        n_threads = torch.get_num_threads()
        first = embedding_map(model, dataset, method=method, seed=3)  # loads what it needs
        assert torch.get_num_threads() == n_threads
        before = global_state()
        assert same(first, embedding_map(model, dataset, method=method, seed=3))
        assert global_state() == before
        assert np.isfinite(first.data[0].x).all()
        assert len(np.unique(first.data[0].x)) == 26
        assert len(embedding_map(model, dataset, method=method, n_max=3).data[0].x) == 3

    def test_sample(self, model: Any, dataset: Dataset) -> None:
        figures = [embedding_map(model, dataset, n_max=10, seed=seed) for seed in (0, 0, 1)]
        assert len(set(figures[0].data[0].text)) == 10
        assert same(figures[0], figures[1])
        assert not same(figures[0], figures[2])

    def test_only_what_the_model_knows(self, dataset: Dataset) -> None:
        model = LightGCNModel(epochs=1, n_factors=1).fit(dataset)  # one dimension is enough
        (trace,) = embedding_map(model, dataset).data
        assert "124" not in trace.text
        assert len(trace.text) == 24
        assert not np.any(trace.y)
        assert len(embedding_map(model, dataset, "users").data[0].text) == 40

    def test_bad_input(self, model: Any, dataset: Dataset, make_dataset: Callable[..., Dataset]) -> None:
        with pytest.raises(ValueError, match="GFCFModel has no vectors"):
            embedding_map(GFCFModel().fit(dataset), dataset)
        with pytest.raises(ValueError, match="no feature `gener`; did you mean `genre`"):
            embedding_map(model, dataset, color="gener")
        with pytest.raises(ValueError, match="no features of items"):
            embedding_map(model, make_dataset(features=None), color="genre")
        with pytest.raises(ValueError, match="Unknown `method` `tsnee`; did you mean `tsne`"):
            embedding_map(model, dataset, method="tsnee")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="Unknown `side` `item`; did you mean `items`"):
            embedding_map(model, dataset, "item")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="needs 3 items at least, but there are 2"):
            embedding_map(model, dataset, n_max=2)


class TestFeatureLabels:
    def test_rarest_value(self) -> None:
        table = pd.DataFrame([("u", item) for item in range(4)], columns=Columns.UserItem)
        table = table.assign(weight=1.0, datetime="2024-01-01")
        rows = [(0, "drama"), (1, "drama"), (1, "war"), (2, "drama"), (2, "war"), (2, "noir")]
        features = pd.DataFrame(rows, columns=["id", "value"]).assign(feature="genre")
        dataset = Dataset.construct(table, item_features_df=features, cat_item_features=["genre"])
        found = dict(zip(dataset.item_id_map.external_ids, feature_labels(dataset, "items", "genre"), strict=True))
        assert found == {0: "drama", 1: "war", 2: "noir", 3: None}

    def test_dense(self, make_frames: Callable[..., Any]) -> None:
        frames = make_frames(features="dense")
        dataset = frames.dataset()
        found = pd.Series(feature_labels(dataset, "users", "age"), dataset.user_id_map.external_ids)
        assert found.to_dict() == pytest.approx(frames.user_features.set_index("id")["age"].to_dict())


class TestNeighbourAccuracy:
    VECTORS = np.array([[1, 0], [1, 0.1], [1, 0.2], [0, 1], [0.1, 1], [0.25, 1]], float)

    def test_known_answers(self) -> None:
        assert neighbour_accuracy(self.VECTORS, list("aaabbb"), k=2) == 1
        assert neighbour_accuracy(self.VECTORS * [[1], [9], [1], [9], [1], [1]], list("aaabbb"), k=2) == 1
        assert neighbour_accuracy(self.VECTORS, list("ababab"), k=1) == 0
        assert neighbour_accuracy(self.VECTORS, ["a", "a", "a", "b", "b", None], k=3) == pytest.approx(3 / 5)

    def test_ties_go_to_the_nearest(self) -> None:
        angles = np.deg2rad([0, 1, 3, 40, 42, 45])
        vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        # Neighbours of each: (1, 2), (0, 2), (1, 0), (4, 5), (3, 5), (4, 3), the nearest first.
        labels = ["a", "a", "b", "b", "c", "c"]
        assert neighbour_accuracy(vectors, labels, k=2) == pytest.approx(3 / 6)

    def test_random_labels(self) -> None:
        rng = np.random.default_rng(0)
        found = neighbour_accuracy(rng.normal(size=(9000, 4)), rng.integers(0, 4, 9000))
        assert found == pytest.approx(0.25, abs=0.03)

    def test_bad_input(self) -> None:
        with pytest.raises(ValueError, match="6 `vectors` and 5 `labels`"):
            neighbour_accuracy(self.VECTORS, list("aaabb"))
        with pytest.raises(ValueError, match="6 entities have a label, but 10 neighbours of each need 11"):
            neighbour_accuracy(self.VECTORS, list("aaabbb"))
        with pytest.raises(ValueError, match="`k` must be at least 1"):
            neighbour_accuracy(self.VECTORS, list("aaabbb"), k=0)


class TestTrainingCurves:
    def test_one_model(self, model: Any) -> None:
        (trace,) = training_curves(model).data
        assert trace.name == "DSSMModel"
        assert trace.x.tolist() == model.history["epoch"].tolist()
        assert trace.y.tolist() == model.history["loss"].tolist()

    def test_several(self, dataset: Dataset) -> None:
        validation = {"name": "random", "metric": "recall", "k": 5, "refit": True}
        one = make_model("DSSMModel", validation=validation).fit(dataset)
        other = make_model("DSSMModel").fit(dataset)
        figure = training_curves({"watched": one, "plain": other})
        assert [note.text for note in figure.layout.annotations] == ["loss", "recall@5"]
        assert [(trace.name, trace.xaxis) for trace in figure.data] == [
            ("watched", "x"),
            ("watched, refit", "x"),
            ("watched", "x2"),
            ("plain", "x"),
        ]
        assert list(figure.data[2].y) == one.history["recall@5"].dropna().tolist()
        names = {trace.name for trace in training_curves([one, other]).data}
        assert names == {"DSSMModel 1", "DSSMModel 1, refit", "DSSMModel 2"}

    def test_bad_input(self, dataset: Dataset) -> None:
        with pytest.raises(ValueError, match="GFCFModel is not trained in epochs"):
            training_curves(GFCFModel().fit(dataset))
        with pytest.raises(NotFittedError):
            training_curves(DSSMModel())
        with pytest.raises(ValueError, match="`models` is empty"):
            training_curves([])


class TestSaveFigure:
    def test_page(self, model: Any, tmp_path: Path) -> None:
        target = tmp_path / "map.html"
        target.write_text("old")
        save_figure(training_curves(model), target)
        text = target.read_text(encoding="utf-8")
        assert text.startswith("<!DOCTYPE html>")
        assert '<meta name="viewport"' in text
        assert text.rstrip().endswith("</html>")
        assert "<script src=" not in text
        assert list(tmp_path.iterdir()) == [target]
        save_figure(training_curves(model), target)
        assert target.read_text(encoding="utf-8") == text

    def test_image(self, model: Any, tmp_path: Path) -> None:
        """A whole image, or a word on what is missing and no file."""
        target = tmp_path / "map.png"
        try:
            save_figure(training_curves(model), target)
        except RuntimeError as error:
            assert "kaleido" in str(error)  # noqa: PT017
            assert ".html" in str(error)  # noqa: PT017
            assert not list(tmp_path.iterdir())
        else:
            assert target.read_bytes().startswith(b"\x89PNG")
            assert list(tmp_path.iterdir()) == [target]

    def test_nothing_is_left_where_writing_fails(
        self, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(self: Path, target: Path) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(Path, "replace", fail)
        (tmp_path / "map.html").write_text("old")
        with pytest.raises(OSError, match="disk full"):
            save_figure(training_curves(model), tmp_path / "map.html")
        assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]

    def test_bad_input(self, model: Any, tmp_path: Path) -> None:
        figure = training_curves(model)
        with pytest.raises(ValueError, match=r"must end in \.html or \.png"):
            save_figure(figure, tmp_path / "map.svg")
        with pytest.raises(FileNotFoundError, match="no folder"):
            save_figure(figure, tmp_path / "nowhere" / "map.html")


def test_says_what_to_install(model: Any, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(ImportError, match=r"needs `plotly`.*pip install rectools-neural\[analysis\]"):
        embedding_map(model, dataset)
