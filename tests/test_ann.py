from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from rectools.dataset import Dataset
from rectools.exceptions import NotFittedError
from scipy import sparse

pytest.importorskip("faiss", reason="faiss is not installed: pip install rectools-neural[ann]")

import faiss

import rectools_neural
from rectools_neural.ann import ItemIndex
from rectools_neural.models.two_sided import TwoSidedModel
from rectools_neural.registry import MODELS

N, DIM, K = 3000, 8, 10
SIMILARITIES = ("dot", "cosine", "euclidean")
TWO_SIDED = ["DAEModel", "MultDAEModel", "MultVAEModel", "RecVAEModel", "DSSMModel", "LightGCNModel"]


def clustered(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(30, DIM))
    points = centres[rng.integers(0, 30, n)] + 0.5 * rng.normal(size=(n, DIM))
    return (points * rng.lognormal(0, 0.3, (n, 1))).astype(np.float32)


ITEMS, QUERIES = clustered(N, 1), clustered(60, 2)
IDS = np.random.default_rng(3).permutation(10 * N)[:N]


def make_model(name: str, **options: Any) -> TwoSidedModel[Any]:
    return getattr(rectools_neural, name)(epochs=3, n_factors=8, **options)


def all_scores(queries: np.ndarray, items: np.ndarray, similarity: str) -> np.ndarray:
    a, b = queries.astype(float), items.astype(float)
    if similarity == "euclidean":
        return -np.sqrt(((a[:, None] - b[None]) ** 2).sum(axis=2))
    if similarity == "cosine":
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return a @ b.T


@pytest.fixture(scope="module", params=SIMILARITIES)
def index(request: pytest.FixtureRequest) -> ItemIndex:
    return ItemIndex.build(ITEMS, IDS, request.param, queries=clustered(200, 4))


def assert_nearly_best(
    index: ItemIndex, scores: np.ndarray, found: tuple[list[np.ndarray], list[np.ndarray]], k: int, recall: float
) -> None:
    """Compare with all scores, in which what must not be found is -inf."""
    places = {name: place for place, name in enumerate(index.ids.tolist())}
    shares = []
    for row, ids, values in zip(scores, *found, strict=True):
        columns = np.array([places[name] for name in ids.tolist()], int)
        expected = np.argsort(-row, kind="stable")[: min(k, np.isfinite(row).sum())]
        assert len(columns) == len(values) == len(expected) == len(set(columns))
        assert np.isfinite(row[columns]).all()
        assert (np.diff(values) <= 0).all()
        np.testing.assert_allclose(values, row[columns], atol=1e-4)
        shares += [np.isin(expected, columns).mean()] if len(expected) else []
    assert np.mean(shares) >= recall


class TestSearch:
    def test_finds_nearly_the_best(self, index: ItemIndex) -> None:
        assert 1 <= index._n_probed < index._lists.nlist
        scores = all_scores(QUERIES, ITEMS, index.similarity)
        assert_nearly_best(index, scores, index.search(QUERIES, K), K, 0.95)
        assert 0.95 <= index.recall <= 1

    def test_exact_finds_the_best(self) -> None:
        for similarity in SIMILARITIES:
            exact = ItemIndex.build(ITEMS, IDS, similarity, exact=True)
            scores = all_scores(QUERIES, ITEMS, similarity)
            assert_nearly_best(exact, scores, exact.search(QUERIES, K), K, 1.0)
            assert exact.recall == 1

    @pytest.mark.parametrize("share", [0.5, 0.02])
    @pytest.mark.parametrize("as_matrix", [True, False])
    def test_seen_and_whitelist(self, index: ItemIndex, share: float, as_matrix: bool) -> None:
        rng = np.random.default_rng(5)
        scores = all_scores(QUERIES, ITEMS, index.similarity)
        # The best 100 of every other query, so that the lists that are looked into hold little else.
        hidden = (np.argsort(np.argsort(-scores)) < 100) & (np.arange(len(scores)) % 2 == 0)[:, None]
        hidden[3], hidden[5] = True, np.arange(N) != 17
        allowed = rng.random(N) < share
        allowed[17] = True
        seen: Any = sparse.csr_matrix(hidden) if as_matrix else [[*IDS[row], -5] for row in hidden]
        found = index.search(QUERIES, K, seen, IDS[allowed])
        assert_nearly_best(index, np.where(hidden | ~allowed, -np.inf, scores), found, K, 0.9)
        assert found[0][3].tolist() == []
        assert found[0][5].tolist() == [IDS[17]]

    def test_those_who_come_short_are_ranked_exactly(self, index: ItemIndex) -> None:
        nearest = np.argsort(-all_scores(QUERIES[:2], ITEMS, index.similarity), axis=1)[:, : N - 5]
        found, _ = index.search(QUERIES[:2], 3, [IDS[of] for of in nearest])
        for row in range(2):
            assert len(found[row]) == 3
            assert not np.isin(found[row], IDS[nearest[row]]).any()

    def test_more_than_there_are(self, index: ItemIndex) -> None:
        ids, scores = index.search(QUERIES[:2], N + 5)
        assert [len(part) for part in (*ids, *scores)] == [N] * 4
        assert set(ids[0]) == set(IDS)

    def test_no_queries(self, index: ItemIndex) -> None:
        assert index.search(np.zeros((0, DIM)), K) == ([], [])
        assert index.search(np.zeros((0, DIM)), K, seen=[]) == ([], [])

    def test_chunks_change_nothing(self, index: ItemIndex, monkeypatch: pytest.MonkeyPatch) -> None:
        seen = [IDS[place : place + place * 3] for place in range(len(QUERIES))]
        whole = index.search(QUERIES, K, seen)
        monkeypatch.setattr("rectools_neural.ann._QUERIES_AT_ONCE", 7)
        monkeypatch.setattr("rectools_neural.ann._PAIRS_AT_ONCE", 5)
        for one, other in zip(index.search(QUERIES, K, seen)[0], whole[0], strict=True):
            assert one.tolist() == other.tolist()

    def test_empty_whitelist(self, index: ItemIndex) -> None:
        ids, scores = index.search(QUERIES[:2], K, whitelist=[])
        assert [len(part) for part in (*ids, *scores)] == [0] * 4

    def test_string_ids(self) -> None:
        index = ItemIndex.build(np.eye(3), np.array(["a", "b", "c"]), exact=True)
        ids, scores = index.search([[0.1, 0.3, 0.2], [1, 0.5, 0]], 2, [["b"], []], ["c", "b", "a"])
        assert [part.tolist() for part in ids] == [["c", "a"], ["a", "b"]]
        np.testing.assert_allclose(scores[0], [0.2, 0.1], rtol=1e-6)

    def test_one_item_and_zero_vectors(self) -> None:
        for similarity in SIMILARITIES:
            index = ItemIndex.build(np.zeros((1, 2)), [7], similarity)
            ids, scores = index.search(np.zeros((1, 2)), 2)
            assert (ids[0].tolist(), scores[0].tolist()) == ([7], [0.0])

    def test_items_that_are_all_the_same(self) -> None:
        index = ItemIndex.build(np.ones((500, 4)), np.arange(500))
        ids, scores = index.search(np.ones((3, 4)), 20)
        assert [len(set(part)) for part in ids] == [20] * 3
        assert all((part == 4).all() for part in scores)


class TestBuild:
    def test_same_seed_same_index(self) -> None:
        first, second = (ItemIndex.build(ITEMS, IDS, seed=3) for _ in range(2))
        other = ItemIndex.build(ITEMS, IDS, seed=4)
        bits = [faiss.serialize_index(index._lists).tobytes() for index in (first, second, other)]
        assert bits[0] == bits[1] != bits[2]
        assert first.recall == second.recall
        for one, two in zip(first.search(QUERIES, K)[1], second.search(QUERIES, K)[1], strict=True):
            assert one.tobytes() == two.tobytes()

    def test_global_state_stays(self) -> None:
        earlier = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(2)
        state = np.random.get_state()[1].copy()
        try:
            index = ItemIndex.build(ITEMS, IDS)
            index.search(QUERIES, K)
            index.add(clustered(1, 8), [-1])
            index.remove([-1])
            assert faiss.omp_get_max_threads() == 2
        finally:
            faiss.omp_set_num_threads(earlier)
        assert (np.random.get_state()[1] == state).all()

    def test_recall_is_a_trade(self) -> None:
        rough = ItemIndex.build(ITEMS, IDS, target_recall=0.3, queries=QUERIES)
        fine = ItemIndex.build(ITEMS, IDS, target_recall=1.0, queries=QUERIES)
        assert rough._n_probed < fine._n_probed
        assert rough.recall < fine.recall

    def test_arguments_may_change_later(self) -> None:
        vectors = np.eye(2, dtype=np.float32)
        index = ItemIndex.build(vectors, [1, 2], exact=True)
        vectors[:] = 5
        assert index.search([[1, 0]], 2)[1][0].tolist() == [1, 0]

    def test_verbose(self, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
        with caplog.at_level(logging.INFO, "rectools_neural.ann"):
            ItemIndex.build(ITEMS, IDS)
            assert not caplog.records
            index = ItemIndex.build(ITEMS, IDS, verbose=1)
        assert f"recall@10 {index.recall:.4f}" in caplog.text
        assert capfd.readouterr() == ("", "")

    @pytest.mark.parametrize(
        ("options", "problem"),
        [
            ({"vectors": [[1.0, np.nan], [0, 0], [0, np.inf]]}, "row 0 and 1 more have NaN"),
            ({"vectors": [1.0, 2, 3]}, "two dimensions"),
            ({"vectors": np.zeros((0, 2)), "ids": []}, "`vectors` are empty"),
            ({"vectors": [["a"], ["b"], ["c"]]}, "array of numbers"),
            ({"ids": [1, 2]}, "3 `vectors` and 2 `ids`"),
            ({"ids": [1, 2, 2]}, r"ids twice, such as \[2\]"),
            ({"ids": [1, "b", 3]}, "all be integers or all be strings"),
            ({"ids": [1.5, 2, 3]}, "all be integers or all be strings"),
            ({"ids": "abc"}, "must be a list"),
            ({"similarity": "cosin"}, "did you mean `cosine`"),
            ({"target_recall": 0}, "`target_recall` must be above 0"),
            ({"threads": 0}, "`threads` must be at least 1"),
            ({"queries": [[1, 2, 3]]}, "`queries` must have 2 columns"),
            ({"queries": np.zeros((0, 2))}, "`queries` are empty"),
        ],
    )
    def test_bad_input(self, options: dict[str, Any], problem: str) -> None:
        with pytest.raises((ValueError, TypeError), match=problem):
            ItemIndex.build(**{"vectors": np.ones((3, 2)), "ids": [1, 2, 3], **options})

    @pytest.mark.parametrize(
        ("arguments", "problem"),
        [
            ({"k": 0}, "`k` must be at least 1"),
            ({"k": 2.5}, "`k` must be an integer"),
            ({"queries": [[1, 2, 3]]}, "`queries` must have 2 columns"),
            ({"queries": [[1, np.nan]]}, "must be finite"),
            ({"queries": [1, 2]}, "two dimensions"),
            ({"seen": [[1], [2]]}, "each of the 1 queries, got 2"),
            ({"seen": sparse.csr_matrix((1, 2))}, r"shape \(1, 3\), got \(1, 2\)"),
            ({"whitelist": [1, 9]}, r"`whitelist` has 1 ids that are not in the index, such as \[9\]"),
        ],
    )
    def test_bad_search(self, arguments: dict[str, Any], problem: str) -> None:
        index = ItemIndex.build(np.ones((3, 2)), [1, 2, 3])
        with pytest.raises((ValueError, TypeError), match=problem):
            index.search(**{"queries": [[1, 2]], "k": 1, **arguments})

    def test_says_what_to_install(self) -> None:
        code = "import sys; sys.modules['faiss'] = None; import rectools_neural; import rectools_neural.ann"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "pip install rectools-neural[ann]" in done.stderr.splitlines()[-1]


class TestChange:
    @pytest.mark.parametrize("n_first", [500, 2500])
    def test_add(self, index: ItemIndex, n_first: int) -> None:
        grown = ItemIndex.build(ITEMS[:n_first], IDS[:n_first], index.similarity)
        for start in range(n_first, N, 250):
            grown.add(ITEMS[start : start + 250], IDS[start : start + 250])
        assert grown.ids.tolist() == IDS.tolist()
        scores = all_scores(QUERIES, ITEMS, index.similarity)
        assert_nearly_best(grown, scores, grown.search(QUERIES, K), K, 0.9)

    def test_a_longer_vector_than_all_before_is_found(self) -> None:
        index = ItemIndex.build(ITEMS, IDS)
        longest = 20 * QUERIES[:1] / np.linalg.norm(QUERIES[:1]) * np.linalg.norm(ITEMS, axis=1).max()
        index.add(longest, [-1])
        assert index.search(QUERIES[:1], 1)[0][0].tolist() == [-1]

    def test_an_addition_that_fails_changes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        index = ItemIndex.build(ITEMS[:500], IDS[:500])
        before = dict(index.__dict__)

        def fail(*args: Any) -> None:
            raise MemoryError

        monkeypatch.setattr(faiss, "index_factory", fail)
        with pytest.raises(MemoryError):
            index.add(ITEMS[500:], IDS[500:])
        assert index.__dict__ == before

    @pytest.mark.parametrize("exact", [True, False])
    def test_remove_and_add_again(self, index: ItemIndex, exact: bool) -> None:
        changed = ItemIndex.build(ITEMS, IDS, index.similarity, exact)
        changed.remove(IDS[500:1500])
        kept = np.r_[0:500, 1500:N]
        assert changed.ids.tolist() == IDS[kept].tolist()
        allowed = np.arange(len(kept)) % 2 == 0
        scores = all_scores(QUERIES, ITEMS[kept], index.similarity)
        found = changed.search(QUERIES, K, whitelist=IDS[kept][allowed])
        assert_nearly_best(changed, np.where(allowed, scores, -np.inf), found, K, 0.9)
        changed.add(ITEMS[500:1500], IDS[500:1500])
        scores = all_scores(QUERIES, ITEMS[np.r_[kept, 500:1500]], index.similarity)
        assert_nearly_best(changed, scores, changed.search(QUERIES, K), K, 0.9)

    def test_empty_and_filled_again(self) -> None:
        index = ItemIndex.build(ITEMS, IDS)
        index.remove(IDS)
        assert len(index) == 0
        with pytest.raises(ValueError, match="The index is empty"):
            index.search(QUERIES, K)
        index.add(ITEMS[:5], list("abcde"))
        assert set(index.search(QUERIES[:1], K)[0][0]) == set("abcde")

    def test_bad_changes_change_nothing(self) -> None:
        index = ItemIndex.build(np.eye(3), [1, 2, 3])
        for vectors, ids, problem in (
            (np.ones((1, 2)), [4], "must have 3 columns"),
            ([[1, 2, np.nan]], [4], "must be finite"),
            (np.ones((2, 3)), [4, 3], r"`ids` \[3\] are in the index already"),
            (np.ones((2, 3)), [4, 4], "ids twice"),
            (np.ones((1, 3)), ["a"], "of type object"),
        ):
            with pytest.raises((ValueError, TypeError), match=problem):
                index.add(vectors, ids)
        with pytest.raises(ValueError, match=r"2 ids that are not in the index, such as \[8, 9\]"):
            index.remove([1, 8, 9])
        with pytest.raises(ValueError, match="ids twice"):
            index.remove([1, 1])
        index.add(np.zeros((0, 3)), [])
        index.remove([])
        assert index.ids.tolist() == [1, 2, 3]
        assert index._lists.ntotal == len(index._vectors) == 3


class TestFiles:
    @pytest.mark.parametrize("exact", [True, False])
    @pytest.mark.parametrize("as_strings", [True, False])
    def test_load_gives_the_same_index(self, tmp_path: Path, exact: bool, as_strings: bool) -> None:
        ids = np.array([f"ü{name}" for name in IDS]) if as_strings else IDS
        index = ItemIndex.build(ITEMS, ids, "euclidean", exact)
        index.remove(ids[:10])
        index.save(tmp_path / "deep" / "index")
        index.save(tmp_path / "deep" / "index")
        assert [path.name for path in (tmp_path / "deep").iterdir()] == ["index"]
        loaded = ItemIndex.load(tmp_path / "deep" / "index")
        assert (loaded.ids.tolist(), loaded.recall) == (index.ids.tolist(), index.recall)
        for changed in (index, loaded):
            changed.add(ITEMS[:5], ids[:5])
        for one, other in zip(index.search(QUERIES, K), loaded.search(QUERIES, K), strict=True):
            assert [part.tolist() for part in one] == [part.tolist() for part in other]

    @pytest.mark.parametrize("name", ["index.json", "arrays.npz", "ids.json", "lists.faiss"])
    @pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
    def test_broken(self, tmp_path: Path, name: str, damage: str) -> None:
        folder = tmp_path / "index"
        ItemIndex.build(ITEMS[:100], IDS[:100]).save(folder)
        content = (folder / name).read_bytes()
        if damage == "missing":
            (folder / name).unlink()
        elif damage == "cut":
            (folder / name).write_bytes(content[: len(content) // 2])
        else:
            place = content.index(b"dot") if name == "index.json" else len(content) // 2
            (folder / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError, match=name):
            ItemIndex.load(folder)

    def test_other_format(self, tmp_path: Path) -> None:
        for content in ("[]", "{}", "1"):
            (tmp_path / "index.json").write_text(content)
            with pytest.raises(ValueError, match="is broken"):
                ItemIndex.load(tmp_path)

    def test_other_folders_are_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("precious")
        index = ItemIndex.build(np.eye(3), [1, 2, 3])
        with pytest.raises(ValueError, match="is no index"):
            index.save(tmp_path / "mine")
        index.save(tmp_path / "index")
        (tmp_path / "index" / "thesis.txt").write_text("precious")
        with pytest.raises(ValueError, match=r"also has \['thesis\.txt'\], which would be lost"):
            index.save(tmp_path / "index")
        for name in ("mine", "index"):
            assert (tmp_path / name / "thesis.txt").read_text() == "precious"

    def test_killed_between_the_last_steps(self, tmp_path: Path) -> None:
        """The old folder was moved away already, and the new one is not there yet."""
        ItemIndex.build(np.eye(3), [1, 2, 3]).save(tmp_path / "index")
        (tmp_path / "index").rename(tmp_path / ".index.old")
        assert ItemIndex.load(tmp_path / "index").ids.tolist() == [1, 2, 3]
        ItemIndex.build(np.eye(3), [4, 5, 6]).save(tmp_path / "index")
        assert ItemIndex.load(tmp_path / "index").ids.tolist() == [4, 5, 6]
        assert os.listdir(tmp_path) == ["index"]

    def test_a_failure_leaves_the_earlier_index(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        index = ItemIndex.build(np.eye(3), [1, 2, 3])
        index.save(tmp_path / "index")
        before = {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()}

        def full(*args: Any, **options: Any) -> None:
            raise OSError("No space left on device")

        monkeypatch.setattr(np, "savez", full)
        with pytest.raises(OSError, match="No space left"):
            index.save(tmp_path / "index")
        assert [path.name for path in tmp_path.iterdir()] == ["index"]
        assert {path.name: path.read_bytes() for path in (tmp_path / "index").iterdir()} == before

    def test_no_pickle(self, tmp_path: Path) -> None:
        ItemIndex.build(np.eye(3), ["a", "b", "c"]).save(tmp_path / "index")
        assert json.loads((tmp_path / "index" / "ids.json").read_text()) == ["a", "b", "c"]
        with np.load(tmp_path / "index" / "arrays.npz", allow_pickle=False) as arrays:
            assert all(arrays[name].dtype != object for name in arrays)


class TestModels:
    @pytest.fixture(scope="class")
    def data(self, make_frames: Callable[..., Any]) -> tuple[Dataset, Dataset]:
        frames = make_frames(n_users=60, n_items=200, n_per_user=12, n_warm=3)
        return frames.dataset(), frames.shuffled(1).dataset()

    @pytest.fixture(scope="class", params=[*TWO_SIDED, "euclidean", "cosine"])
    def model(self, request: pytest.FixtureRequest, data: tuple[Dataset, Dataset]) -> TwoSidedModel[Any]:
        if request.param in TWO_SIDED:
            return make_model(request.param).fit(data[0])
        return make_model("DSSMModel", loss="sampled_softmax", similarity=request.param).fit(data[0])

    @pytest.mark.parametrize("filter_viewed", [True, False])
    def test_exact_gives_the_rows_of_the_model(
        self, model: TwoSidedModel[Any], data: tuple[Dataset, Dataset], filter_viewed: bool
    ) -> None:
        index = ItemIndex.from_model(model, data[0], exact=True)
        for dataset in data:
            users = [*dataset.user_id_map.external_ids[:50]]
            users += ["nobody"] if model.recommends_for_cold else []
            users = [name for name in users if model.recommends_for_warm or not name >= "u060"]
            expected = model.recommend(users, dataset, 7, filter_viewed)
            assert_frame_equal(index.recommend(model, dataset, users, 7, filter_viewed), expected)

    def test_index_gives_nearly_the_rows(self, model: TwoSidedModel[Any], data: tuple[Dataset, Dataset]) -> None:
        index = ItemIndex.from_model(model, data[0])
        users = data[0].user_id_map.external_ids[:60]
        expected = model.recommend(users, data[0], 5, True)
        reco = index.recommend(model, data[0], users, 5)
        assert len(reco) == len(expected)
        assert len(reco.merge(expected, on=["user_id", "item_id"])) >= 0.9 * len(expected)
        seen = data[0].get_raw_interactions()[["user_id", "item_id"]]
        assert reco.merge(seen).empty
        assert index.recall >= 0.9

    def test_items_come_and_go(self, data: tuple[Dataset, Dataset]) -> None:
        model = make_model("DSSMModel").fit(data[0])
        index = ItemIndex.from_model(model, data[0], exact=True)
        warm = np.setdiff1d(data[0].item_id_map.external_ids, index.ids)
        assert len(warm)
        gone = index.ids[::2]
        index.remove(gone)
        index.add(model.get_vectors(data[0])[1][data[0].item_id_map.convert_to_internal(warm)], warm)
        users = data[0].user_id_map.external_ids
        for filter_viewed in (True, False):
            expected = model.recommend(users, data[0], 9, filter_viewed, items_to_recommend=index.ids)
            assert_frame_equal(index.recommend(model, data[0], users, 9, filter_viewed), expected)

    def test_the_model_stays_as_it_is(self, data: tuple[Dataset, Dataset]) -> None:
        model = make_model("DSSMModel").fit(data[0])
        before = dict(model.__dict__)
        ItemIndex.from_model(model, data[0]).recommend(model, data[0], ["u001"], 3)
        assert model.__dict__ == before

    @pytest.mark.parametrize("name", sorted(set(MODELS) - set(TWO_SIDED)))
    def test_models_without_vectors(self, data: tuple[Dataset, Dataset], name: str) -> None:
        index = ItemIndex.build(np.eye(3), [1, 2, 3])
        model = getattr(rectools_neural, name)()
        for call in (
            lambda: ItemIndex.from_model(model, data[0]),
            lambda: index.recommend(model, data[0], ["u001"], 3),
        ):
            with pytest.raises(TypeError, match=f"{name} does not score by vectors.* exact scores"):
                call()

    def test_bad_input(self, data: tuple[Dataset, Dataset]) -> None:
        with pytest.raises(NotFittedError):
            ItemIndex.from_model(make_model("DSSMModel"), data[0])
        model = make_model("DSSMModel").fit(data[0])
        index = ItemIndex.from_model(model, data[0])
        with pytest.raises(TypeError, match="`dataset` must be"):
            ItemIndex.from_model(model, pd.DataFrame())
        with pytest.raises(ValueError, match="scores by"):
            ItemIndex.build(np.eye(3), [1, 2, 3], "cosine").recommend(model, data[0], ["u001"], 3)
        with pytest.raises(ValueError, match="no item that the model knows"):
            ItemIndex.build(np.eye(3), [1, 2, 3], index.similarity).recommend(model, data[0], ["u001"], 3)
        with pytest.raises(ValueError, match="vectors of"):
            ItemIndex.build(np.eye(3), [100, 101, 102], index.similarity).recommend(model, data[0], ["u001"], 3)
        with pytest.raises(ValueError, match="k"):
            index.recommend(model, data[0], ["u001"], 0)
