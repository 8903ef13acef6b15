"""Models as folders of plain files: exact in a new process, written whole, read with suspicion."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
from models.contract import CASES, global_state, hot_users, make_model, with_other_id_types
from pandas.testing import assert_frame_equal
from rectools import Columns
from rectools.dataset import Dataset, DenseFeatures, IdMap, SparseFeatures
from rectools.exceptions import NotFittedError
from scipy import sparse

import rectools_neural
from rectools_neural import DLRMModel, DSSMModel, GFCFModel, UserKNNModel, from_pretrained, pretrained
from rectools_neural.data.reader import Items, Users
from rectools_neural.models.base import NeuralModelBase
from rectools_neural.models.two_sided import TwoSidedModel
from rectools_neural.pretrained import Saved, _ids_from_parquet, _ids_to_parquet, load_all
from rectools_neural.registry import MODELS

FILES = {"config.json", "state.json", "weights.safetensors", "user_ids.parquet", "item_ids.parquet"}
USER_FILES = {"known_user_ids.parquet", "users.safetensors"}
CONTEXT: dict[str, Any] = {"context_numeric": ("hour",), "context_categorical": ("place",)}
CONTEXT_MODEL = {"epochs": 1, "n_factors": 4, "top_hidden": (4,), "target": {"name": "label", "threshold": 2}}


def answers(model: Any, dataset: Dataset, serves_items: bool) -> dict[str, pd.DataFrame]:
    """All that a model says of a dataset, by the kind of question."""
    hot = hot_users(dataset)
    others = np.setdiff1d(dataset.user_id_map.external_ids, hot)
    users = pd.Series([*hot, *others, -1 if hot.dtype.kind == "i" else "nobody"], dtype=hot.dtype).to_numpy()
    items = np.sort(dataset.get_raw_interactions()[Columns.Item].unique())[:6]
    pairs = pd.DataFrame({Columns.User: np.repeat(hot[:4], len(items)), Columns.Item: np.tile(items, 4)})
    asked = {}
    if getattr(model, "context_numeric", ()):
        rng = np.random.default_rng(0)
        asked["context"] = situations(users, rng)
        pairs = pairs.assign(hour=rng.integers(24, size=len(pairs)), place="home")
    whitelist = np.sort(dataset.item_id_map.external_ids)
    found = {
        "users": model.recommend(users, dataset, 10, True, on_unsupported_targets="ignore", **asked),
        "whitelist": model.recommend(hot, dataset, 50, False, items_to_recommend=whitelist, **asked),
        "pairs": model.predict_pairs(pairs, dataset),
    }
    if serves_items:
        found["items"] = model.recommend_to_items(items, dataset, 8)
    if isinstance(model, TwoSidedModel):
        found |= {f"vectors {side}": pd.DataFrame(v) for side, v in enumerate(model.get_vectors(dataset))}
    return found


def situations(users: Any, rng: np.random.Generator) -> pd.DataFrame:
    hours = rng.integers(24, size=len(users)).astype(float)
    return pd.DataFrame({Columns.User: users, "hour": hours, "place": rng.choice(["home", "moon"], len(users))})


def assert_same_answers(actual: dict[str, pd.DataFrame], expected: dict[str, pd.DataFrame]) -> None:
    assert actual.keys() == expected.keys()
    for question, frame in expected.items():
        assert len(frame)
        assert_frame_equal(actual[question], frame, check_exact=True)


def weighted(frames: Any) -> Any:
    weights = np.random.default_rng(0).uniform(0.5, 5, len(frames.interactions))
    return replace(frames, interactions=frames.interactions.assign(**{Columns.Weight: weights}))


def with_context(frames: Any) -> Dataset:
    rng = np.random.default_rng(1)
    table = frames.interactions
    hours = np.where(rng.random(len(table)) < 0.2, np.nan, rng.integers(24, size=len(table)))
    table = table.assign(hour=hours, place=rng.choice(["home", "work"], len(table)))
    return Dataset.construct(
        table, frames.user_features, ["group", "hobby"], False, frames.item_features, ["genre"], keep_extra_cols=True
    )


@pytest.fixture(scope="module")
def frames(make_frames: Callable[..., Any]) -> Any:
    return weighted(make_frames(n_users=24, n_items=16, n_per_user=6, n_warm=2))


@pytest.fixture(scope="module")
def dataset(frames: Any) -> Dataset:
    return frames.dataset()


@pytest.fixture(scope="module")
def datasets(frames: Any, make_frames: Callable[..., Any]) -> dict[str, Dataset]:
    dense = weighted(make_frames(n_users=24, n_items=16, n_per_user=6, n_warm=2, features="dense"))
    return {
        "sparse": frames.dataset(),
        "other ids": with_other_id_types(frames).dataset(),
        "dense": dense.dataset(),
        "none": weighted(make_frames(n_users=24, n_items=16, n_per_user=6, features=None)).dataset(),
        "context": with_context(frames),
    }


Fitted = dict[str, tuple[Any, str]]


@pytest.fixture(scope="module")
def fitted(datasets: dict[str, Dataset]) -> Fitted:
    """Models with the name of the dataset that each was fitted on, by a name for the pair."""
    models = {f"{name}-{of}": (make_model(name), of) for name in MODELS for of in ("sparse", "dense", "none")}
    models |= {f"{name}-rich": (make_model(name, "rich"), "other ids") for name in MODELS}
    for encoder in ("mean", "gru", "transformer"):
        models[f"DSSMModel-{encoder}"] = make_model("DSSMModel", history_encoder=encoder), "sparse"
        models[f"DLRMModel-{encoder}"] = make_model("DLRMModel", history_encoder=encoder), "other ids"
    tower = {"name": "mlp", "hidden": [5], "normalisation": "batch"}
    models["DSSMModel-batch"] = make_model("DSSMModel", user_tower=tower), "sparse"
    models["DLRMModel-weights"] = DLRMModel(**CONTEXT_MODEL), "sparse"
    models["DLRMModel-context"] = DLRMModel(**CONTEXT_MODEL, **CONTEXT), "context"
    models["UserKNNModel-cosine"] = UserKNNModel(similarity="cosine"), "sparse"
    return {key: (model.fit(datasets[of]), of) for key, (model, of) in models.items()}


def serves_items(key: str) -> bool:
    return CASES[key.split("-")[0]].serves_items


@pytest.fixture
def folder(tmp_path: Path, fitted: Fitted) -> Path:
    """A saved model with features."""
    fitted["DSSMModel-sparse"][0].save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def sign(folder: Path) -> None:
    """Make the sizes and checksums those of the files, as an attacker would."""
    index = json.loads((folder / "config.json").read_text())
    for name in set(os.listdir(folder)) - {"config.json"}:
        data = (folder / name).read_bytes()
        index["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "config.json").write_text(json.dumps(index))


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file, and sign."""
    data = json.loads(path.read_text())
    changed = change(data)
    path.write_text(json.dumps(data if changed is None else changed))
    sign(path.parent)


def edit_arrays(
    folder: Path, change: Callable[[dict[str, np.ndarray]], Any], name: str = "weights.safetensors"
) -> None:
    arrays = safetensors.numpy.load((folder / name).read_bytes())
    change(arrays)
    (folder / name).write_bytes(safetensors.numpy.save(arrays))
    sign(folder)


def ranking_of(saved: Saved, positions: np.ndarray, k: int) -> pd.DataFrame:
    """What a program recommends to some of the stored users that has nothing but the folder."""
    assert saved.users is not None
    assert saved.user_ids is not None
    reader = saved.model._fitted.reader
    items = Items(np.arange(len(reader.item_ids)), reader.item_features)
    subjects, rows, scores = saved.model._rank_all(saved.users.take(positions), items, k, None)
    found = {Columns.User: saved.user_ids[positions[subjects]], Columns.Item: reader.item_ids[rows]}
    return pd.DataFrame({**found, Columns.Score: scores})


class TestRoundTrip:
    def test_a_new_process_gives_the_same(self, fitted: Fitted, datasets: dict[str, Dataset], tmp_path: Path) -> None:
        expected = {}
        for key, (model, of) in fitted.items():
            expected[key] = answers(model, datasets[of], serves_items(key))
            if key == "DSSMModel-rich":
                with pytest.warns(UserWarning, match="`get_trainer_func`, `get_trainer_func_kwargs` are not saved"):
                    model.save_pretrained(tmp_path / key)
            else:
                model.save_pretrained(tmp_path / key)
        asked = {key: (of, serves_items(key)) for key, (_, of) in fitted.items()}
        (tmp_path / "data").write_bytes(pickle.dumps((datasets, asked)))
        code = (
            "import pickle\n"
            "from pathlib import Path\n"
            "from rectools_neural import from_pretrained\n"
            "from test_pretrained import answers\n"
            "datasets, asked = pickle.loads(Path('data').read_bytes())\n"
            "found = {k: answers(from_pretrained(k), datasets[of], items) for k, (of, items) in asked.items()}\n"
            "Path('found').write_bytes(pickle.dumps(found))\n"
        )
        tests = Path(__file__).parent
        paths = [str(Path(rectools_neural.__file__).parents[1]), str(tests), str(tests / "models")]
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONHASHSEED": "17"},
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        found = pickle.loads((tmp_path / "found").read_bytes())
        for key in fitted:
            assert_same_answers(found[key], expected[key])

    def test_options_and_history(self, fitted: Fitted, tmp_path: Path) -> None:
        for key, (model, _) in fitted.items():
            if key == "DSSMModel-rich":  # see test_options_of_the_trainer_are_not_saved
                continue
            model.save_pretrained(tmp_path / "model")
            loaded: Any = from_pretrained(tmp_path / "model")
            assert type(loaded) is type(model)
            assert loaded.is_fitted
            assert loaded.get_config() == model.get_config()
            assert loaded.fitted_config == model.fitted_config
            if isinstance(model, NeuralModelBase):
                assert_frame_equal(loaded.history, model.history)
            assert {file.name for file in (tmp_path / "model").iterdir()} == FILES

    @pytest.mark.parametrize("name", [n for n in MODELS if issubclass(getattr(rectools_neural, n), NeuralModelBase)])
    def test_training_goes_on(self, name: str, frames: Any, tmp_path: Path) -> None:
        rows = frames.interactions
        first, later = (replace(frames, interactions=part).dataset() for part in (rows[:100], rows))
        model: Any = make_model(name).fit(first)
        model.save_pretrained(tmp_path / "model")
        loaded: Any = from_pretrained(tmp_path / "model")
        for other in (model, loaded):
            other.fit_partial(later, epochs=2)
        assert_same_answers(answers(loaded, later, True), answers(model, later, True))
        loaded.save_pretrained(tmp_path / "model")
        again = from_pretrained(tmp_path / "model")
        assert_same_answers(answers(again, later, True), answers(model, later, True))

    def test_values_of_features_keep_their_types(self, tmp_path: Path) -> None:
        values = ["a", "1", 1, 2**40, 2.5, -0.0, float("inf"), True, np.str_("b"), np.int64(7), np.float32(0.1)]
        values += [np.float64(0.2), np.uint8(9), np.bool_(False), np.float32("-inf"), "\u00e9\u2028"]
        names = [(name, value) for name in ("one", 2) for value in values if not (value is True and name == 2)]
        users = IdMap(np.arange(8))
        items = IdMap(np.arange(len(names)))
        table = pd.DataFrame(
            {
                Columns.User: np.repeat(np.arange(8), 4),
                Columns.Item: np.arange(32) % len(names),
                Columns.Weight: 1.0,
                Columns.Datetime: pd.Timestamp("2024-01-01"),
            }
        )
        features = SparseFeatures(sparse.eye(len(names), format="csr", dtype=np.float32), tuple(names))
        interactions = Dataset.construct(table).interactions
        dataset = Dataset(users, items, interactions, item_features=features)
        model = make_model("DSSMModel").fit(dataset)
        model.save_pretrained(tmp_path / "model")
        schemas = [m._fitted.reader.item_encoder.schema for m in (model, from_pretrained(tmp_path / "model"))]
        described = [
            [(type(part), repr(part)) for pair in (*s.values, (*s.fields, *s.numeric)) for part in pair]
            for s in schemas
        ]
        assert described[0] == described[1]
        assert len(schemas[0].values) > 25

    def test_names_of_dense_features_keep_their_types(self, tmp_path: Path, dataset: Dataset) -> None:
        size = dataset.user_id_map.size
        numbers = np.random.default_rng(0).normal(size=(size, 2)).astype(np.float32)
        features = DenseFeatures(np.hstack([numbers, np.ones((size, 1), np.float32)]), (1, "1", "constant"))
        other = Dataset(dataset.user_id_map, dataset.item_id_map, dataset.interactions, features)
        model = make_model("DSSMModel").fit(other)
        model.save_pretrained(tmp_path / "model")
        loaded = from_pretrained(tmp_path / "model")
        assert loaded._fitted.reader.user_encoder.schema.numeric == (1, "1", "constant")
        assert_same_answers(answers(loaded, other, True), answers(model, other, True))

    def test_a_value_that_no_file_holds(self, frames: Any, tmp_path: Path) -> None:
        table = frames.user_features.assign(value=[(value,) for value in frames.user_features["value"]])
        table = table[table["feature"] == "group"]
        dataset = Dataset.construct(frames.interactions, table, ["group"])
        with pytest.raises(ValueError, match=r"value \('g0',\) of the type tuple"):
            make_model("DSSMModel").fit(dataset).save_pretrained(tmp_path / "model")
        assert not any(tmp_path.iterdir())


class TestIds:
    @pytest.mark.parametrize(
        "ids",
        [
            np.array([3, 1, 2], np.uint8),
            np.array([-3, 2**40]),
            np.array([2**64 - 1], np.uint64),
            np.array([0.5, -0.5], np.float32),
            np.array(["b", "", "\u00e9"], dtype=object),
            np.array([5, 2**50], dtype=object),
            np.array([0.5, 2.0], dtype=object),
            np.array([b"a", b"\x00"], dtype=object),
        ],
    )
    def test_types(self, ids: np.ndarray) -> None:
        found = _ids_from_parquet(_ids_to_parquet(ids, "user"), ids.dtype.name)
        assert found.dtype == ids.dtype
        assert [type(value) for value in found] == [type(value) for value in ids]
        assert found.tolist() == ids.tolist()

    def test_fixed_width_strings(self) -> None:
        found = _ids_from_parquet(_ids_to_parquet(np.array(["a", "bcd"]), "user"), "object")
        assert found.tolist() == ["a", "bcd"]

    def test_many(self) -> None:
        """More than a chunk of the file."""
        ids = np.array([f"user {number}" for number in range(1_100_000)], dtype=object)
        assert (_ids_from_parquet(_ids_to_parquet(ids, "user"), "object") == ids).all()

    @pytest.mark.parametrize(
        ("users", "message"),
        [
            (["a", 1], r"user ids are of the types \['int', 'str'\].*as strings"),
            ([("a",), ("b",)], r"types \['tuple'\]"),
            ([True, False], r"type bool|types \['bool'\]"),
            ([2**70, 1], "can't hold the user ids"),
            (["\ud800", "b"], "can't hold the user ids"),
            ([pd.Timestamp("2024-01-01"), pd.Timestamp("2024-01-02")], "type datetime64"),
        ],
    )
    def test_what_parquet_does_not_hold(self, users: list[Any], message: str, tmp_path: Path) -> None:
        table = pd.DataFrame({Columns.User: pd.Series(users * 2), Columns.Item: [1, 2, 3, 4]})
        table[Columns.Weight], table[Columns.Datetime] = 1.0, pd.Timestamp("2024-01-01")
        model = UserKNNModel().fit(Dataset.construct(table))
        with pytest.raises(ValueError, match=message):
            model.save_pretrained(tmp_path / "model")
        assert not any(tmp_path.iterdir())

    @pytest.mark.parametrize("ids", [np.arange(50), np.array([f"u{n}" for n in range(50)], dtype=object)])
    def test_damaged_files(self, ids: np.ndarray) -> None:
        """Whatever is damaged, and signed anew: the process lives on."""
        data, rng, n_read = _ids_to_parquet(ids, "user"), random.Random(0), 0
        for _ in range(2000):
            damaged = bytearray(data)
            for place in rng.sample(range(len(data)), rng.choice([1, 2, 4])):
                damaged[place] = rng.choice([0, 127, 128, 255, damaged[place] ^ 1 << rng.randrange(8)])
            with contextlib.suppress(Exception):
                n_read += len(np.unique(_ids_from_parquet(bytes(damaged), ids.dtype.name))) == len(ids)
        assert 0 < n_read < 2000


class TestSaving:
    @pytest.mark.parametrize("name", MODELS)
    def test_not_fitted(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(NotFittedError):
            make_model(name).save_pretrained(tmp_path / "model")
        assert not any(tmp_path.iterdir())

    def test_over_an_earlier_model(self, fitted: Fitted, dataset: Dataset, tmp_path: Path) -> None:
        for key in ("DSSMModel-sparse", "GFCFModel-sparse"):
            fitted[key][0].save_pretrained(str(tmp_path / "a" / "model"))
            loaded = from_pretrained(str(tmp_path / "a" / "model"))
            assert_same_answers(answers(loaded, dataset, True), answers(fitted[key][0], dataset, True))
        assert os.listdir(tmp_path / "a") == ["model"]

    def test_the_same_model_gives_the_same_files(self, fitted: Fitted, tmp_path: Path) -> None:
        for name in "ab":
            fitted["DSSMModel-sparse"][0].save_pretrained(tmp_path / name)
        for file in FILES:
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()

    def test_the_config_makes_the_same_model(self, folder: Path, fitted: Fitted) -> None:
        config = json.loads((folder / "config.json").read_text())
        assert config["config"]["cls"] == "rectools_neural.DSSMModel"
        model = rectools_neural.model_from_config(config["config"])
        assert model.get_config() == fitted["DSSMModel-sparse"][0].get_config()
        assert config["packages"]["rectools-neural"] == rectools_neural.__version__

    def test_files_of_the_user_stay(self, fitted: Fitted, folder: Path, tmp_path: Path) -> None:
        model = fitted["GFCFModel-sparse"][0]
        (folder / "notes.txt").write_text("mine")
        (tmp_path / "file").write_text("mine")
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "config.json").write_text('{"format": 1, "model_type": "bert"}')
        (tmp_path / "nested" / "weights.safetensors").mkdir(parents=True)
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        for name in ("model", "file", "other", "nested"):
            with pytest.raises(FileExistsError, match=f"{name} exists and is no folder of a saved model"):
                model.save_pretrained(tmp_path / name)
        assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert sorted(os.listdir(tmp_path)) == ["file", "model", "nested", "other"]

    def test_an_empty_folder_and_a_link(self, fitted: Fitted, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "link").symlink_to("empty")
        for _ in range(2):
            fitted["GFCFModel-sparse"][0].save_pretrained(tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert isinstance(from_pretrained(tmp_path / "empty"), GFCFModel)
        assert sorted(os.listdir(tmp_path)) == ["empty", "link"]

    @pytest.mark.parametrize("step", [1, 2, 3, 4])
    @pytest.mark.parametrize("function", ["rename", "fsync"])
    @pytest.mark.parametrize("exists", [True, False])
    def test_a_crash_leaves_the_old_model(
        self, function: str, step: int, exists: bool, fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = tmp_path / "model"
        if exists:
            fitted["DSSMModel-sparse"][0].save_pretrained(path)
        original, calls = getattr(os, function), []

        def fail(*args: Any) -> Any:
            calls.append(args)
            if len(calls) == step:
                raise OSError("the disk is full")
            return original(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail)
            try:
                fitted["GFCFModel-sparse"][0].save_pretrained(path)
            except OSError as error:
                assert str(error) == "the disk is full"  # noqa: PT017  # not each step is reached
                expected = DSSMModel
            else:
                assert len(calls) < step
                expected = GFCFModel
        if exists or expected is GFCFModel:
            assert isinstance(from_pretrained(path), expected)
            assert os.listdir(tmp_path) == ["model"]
        else:
            assert os.listdir(tmp_path) == []

    def test_killed_between_the_last_steps(self, folder: Path, fitted: Fitted) -> None:
        """The old folder was moved away already, and the new one is not there yet."""
        os.rename(folder, folder.with_name(".model.old"))
        assert isinstance(from_pretrained(folder), DSSMModel)
        fitted["GFCFModel-sparse"][0].save_pretrained(folder)
        assert isinstance(from_pretrained(folder), GFCFModel)
        assert os.listdir(folder.parent) == ["model"]

    def test_weights_that_are_not_finite(self, dataset: Dataset, tmp_path: Path) -> None:
        model = make_model("MultDAEModel").fit(dataset)
        next(model._fitted.module.parameters()).data[0] = np.nan
        with pytest.raises(ValueError, match=r"`module\..*not finite.*fit it again"):
            model.save_pretrained(tmp_path / "model")

    def test_models_of_others(self, dataset: Dataset, tmp_path: Path) -> None:
        class OwnModel(UserKNNModel):
            pass

        with pytest.raises(ValueError, match="OwnModel is none of the models of rectools_neural"):
            OwnModel().fit(dataset).save_pretrained(tmp_path / "model")

    def test_options_of_the_trainer_are_not_saved(self, dataset: Dataset, tmp_path: Path) -> None:
        class Callback:
            pass

        model = make_model("DSSMModel", get_trainer_func_kwargs={"max_steps": 2}).fit(dataset)
        model.get_trainer_func_kwargs = {"callbacks": [Callback()]}
        with pytest.warns(UserWarning, match="set them again as attributes"):
            model.save_pretrained(tmp_path / "model")
        loaded: Any = from_pretrained(tmp_path / "model")
        assert loaded.get_trainer_func_kwargs is None
        assert loaded.fitted_config.get_trainer_func_kwargs is None


def assert_same_users(actual: Users, expected: Users) -> None:
    pairs = [(actual.rows, expected.rows)]
    pairs += [(getattr(actual.histories, n), getattr(expected.histories, n)) for n in ("indptr", "items", "weights")]
    matrices = actual.features.categories, expected.features.categories
    pairs += [tuple(getattr(matrix, name) for matrix in matrices) for name in ("indptr", "indices", "data")]
    pairs.append((actual.features.numeric, expected.features.numeric))
    for found, wanted in pairs:
        if wanted is None:
            assert found is None
        else:
            assert (found.dtype, found.shape, found.tobytes()) == (wanted.dtype, wanted.shape, wanted.tobytes())
    assert actual.histories.n_items == expected.histories.n_items
    assert actual.features.schema == expected.features.schema


def users_of(model: Any, dataset: Dataset) -> Users:
    reader = model._fitted.reader
    users: Users = reader.users(reader.align(dataset), np.arange(dataset.user_id_map.size))
    return users


class TestUsers:
    @pytest.mark.filterwarnings("ignore:The options:UserWarning")
    @pytest.mark.parametrize("name", MODELS)
    def test_round_trip(self, name: str, fitted: Fitted, datasets: dict[str, Dataset], tmp_path: Path) -> None:
        for kind in ("sparse", "dense", "rich"):
            model, of = fitted[f"{name}-{kind}"]
            dataset = datasets[of]
            model.save_pretrained(tmp_path / kind, dataset)
            assert {file.name for file in (tmp_path / kind).iterdir()} == FILES | USER_FILES
            saved = load_all(tmp_path / kind)
            assert saved.user_ids is not None
            assert saved.users is not None
            assert saved.user_ids.dtype == dataset.user_id_map.external_ids.dtype
            assert saved.user_ids.tolist() == dataset.user_id_map.external_ids.tolist()
            assert_same_users(saved.users, users_of(model, dataset))
            hot = np.arange(dataset.user_id_map.size) < dataset.n_hot_users
            for of_group in [hot, ~hot] if model.recommends_for_warm else [hot]:
                positions = np.flatnonzero(of_group)
                expected = model.recommend(saved.user_ids[positions], dataset, 7, filter_viewed=False)
                found = ranking_of(saved, positions, 7)
                assert_frame_equal(found, expected.drop(columns=Columns.Rank), check_exact=True)

    def test_others_than_those_of_the_fit(self, fitted: Fitted, make_frames: Any, tmp_path: Path) -> None:
        """New users, fewer of the old ones, items that the model doesn't know, and ids of another type."""
        model = fitted["UserKNNModel-none"][0]
        table = make_frames(n_users=30, n_items=40, features=None).interactions.query("user_id > 'u015'")
        dataset = Dataset.construct(table)
        model.save_pretrained(tmp_path / "model", dataset)
        saved = load_all(tmp_path / "model")
        assert saved.users is not None
        assert sorted(saved.users.rows) == [-1] * 6 + list(range(16, 24))
        assert_same_users(saved.users, users_of(model, dataset))
        codes = table.assign(**{Columns.User: table[Columns.User].str[1:].astype(np.int32)})
        model.save_pretrained(tmp_path / "model", Dataset.construct(codes))
        saved = load_all(tmp_path / "model")
        assert saved.users is not None
        assert saved.user_ids is not None
        assert saved.user_ids.dtype == np.int32
        assert (saved.users.rows == -1).all()

    def test_a_folder_without_users(self, fitted: Fitted, dataset: Dataset, folder: Path) -> None:
        saved = load_all(folder)
        assert isinstance(saved.model, DSSMModel)
        assert (saved.user_ids, saved.users) == (None, None)
        checksum = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
        assert saved.version == checksum[:12]
        fitted["DSSMModel-sparse"][0].save_pretrained(folder, dataset)
        assert isinstance(from_pretrained(folder), DSSMModel)
        assert load_all(folder).version != saved.version
        fitted["DSSMModel-sparse"][0].save_pretrained(folder)
        assert {file.name for file in folder.iterdir()} == FILES
        assert load_all(folder).version == saved.version
        # As folders were before they could hold users.
        edit(folder / "state.json", lambda state: {k: v for k, v in state.items() if k != "known_user_id_type"})
        assert load_all(folder).users is None

    def test_datasets_that_do_not_fit(
        self, fitted: Fitted, datasets: dict[str, Dataset], frames: Any, folder: Path
    ) -> None:
        before = (folder / "config.json").read_bytes()
        model = fitted["DSSMModel-sparse"][0]
        with pytest.raises(TypeError, match=r"`dataset` must be a rectools\.dataset\.Dataset, got DataFrame"):
            model.save_pretrained(folder, frames.interactions)
        with pytest.raises(ValueError, match="`dataset` has no interactions"):
            model.save_pretrained(folder, replace(frames, interactions=frames.interactions[:0]).dataset())
        with pytest.raises(ValueError, match="features are dense, but the model was fitted with sparse"):
            model.save_pretrained(folder, datasets["dense"])
        with pytest.raises(ValueError, match="goes by the context of a recommendation, which stored users don't have"):
            fitted["DLRMModel-context"][0].save_pretrained(folder, datasets["context"])
        assert os.listdir(folder.parent) == ["model"]
        assert (folder / "config.json").read_bytes() == before

    def test_numbers_that_are_too_large(self, fitted: Fitted, frames: Any, tmp_path: Path) -> None:
        rows = frames.interactions
        rows = pd.concat([rows, rows]).assign(**{Columns.Weight: 1e308})
        with pytest.raises(ValueError, match="`dataset` has weights of interactions that are too large"):
            fitted["UserKNNModel-none"][0].save_pretrained(tmp_path / "model", Dataset.construct(rows))

        def with_ages(factor: float) -> Dataset:
            ages = frames.user_features.query("feature == 'age'")
            ages = ages.assign(value=ages["value"].astype(float) * factor)
            return Dataset.construct(frames.interactions, ages)

        model = make_model("DSSMModel").fit(with_ages(1e-4))
        with (
            np.errstate(over="ignore"),
            pytest.raises(ValueError, match="`dataset` has numeric user features that are too large"),
        ):
            model.save_pretrained(tmp_path / "model", with_ages(1e36))
        assert not any(tmp_path.iterdir())


class TestReplacedWhileLoading:
    @pytest.mark.parametrize("n_read", range(1, 9))
    @pytest.mark.parametrize("n_saves", [1, 2])
    def test_at_each_file(
        self,
        n_read: int,
        n_saves: int,
        fitted: Fitted,
        dataset: Dataset,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Once, and twice, after which config.json is the same again."""
        states = [("DSSMModel-sparse", dataset), ("GFCFModel-sparse", None)]
        fitted["DSSMModel-sparse"][0].save_pretrained(folder, dataset)
        original, calls = pretrained._read, []

        def read(path: Path, size: int) -> bytes:
            calls.append(path)
            if len(calls) == n_read:
                for key, of in [*states[1:], *states[:1]][:n_saves]:
                    fitted[key][0].save_pretrained(folder, of)
            return original(path, size)

        monkeypatch.setattr(pretrained, "_read", read)
        saved = load_all(folder)
        assert len(calls) >= 6
        assert isinstance(saved.model, DSSMModel if saved.users is not None else GFCFModel)

    def test_again_and_again(self, fitted: Fitted, dataset: Dataset, folder: Path) -> None:
        states = [("DSSMModel-sparse", dataset), ("GFCFModel-sparse", None)]
        is_over = threading.Event()

        def replace_often() -> None:
            while not is_over.is_set():
                for key, of in states:
                    fitted[key][0].save_pretrained(folder, of)

        fitted["DSSMModel-sparse"][0].save_pretrained(folder, dataset)
        thread, found = threading.Thread(target=replace_often), set()
        thread.start()
        try:
            for _ in range(60):
                saved = load_all(folder)
                found.add((type(saved.model), saved.users is not None, saved.version))
        finally:
            is_over.set()
            thread.join()
        assert {parts[:2] for parts in found} == {(DSSMModel, True), (GFCFModel, False)}
        assert len(found) == 2
        assert os.listdir(folder.parent) == ["model"]

    def test_damage_is_not_tried_again(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (folder / "state.json").write_bytes(b"x" * (folder / "state.json").stat().st_size)
        calls, original = [], pretrained._read
        monkeypatch.setattr(pretrained, "_read", lambda path, size: calls.append(path.name) or original(path, size))
        with pytest.raises(ValueError, match=r"state\.json is damaged"):
            load_all(folder)
        assert calls == ["config.json", "state.json"]


class TestLoading:
    def test_nothing_global_changes(self, folder: Path) -> None:
        from_pretrained(folder)
        before = global_state()
        from_pretrained(folder)
        assert global_state() == before

    def test_missing(self, folder: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
            from_pretrained(folder / "nowhere")
        with pytest.raises(ValueError, match=r"config\.json is a file, not a folder"):
            from_pretrained(folder / "config.json")
        for name in FILES:
            data = (folder / name).read_bytes()
            (folder / name).unlink()
            with pytest.raises(FileNotFoundError, match=name):
                from_pretrained(folder)
            (folder / name).write_bytes(data)
        assert from_pretrained(folder).is_fitted

    def test_other_versions(self, folder: Path) -> None:
        def change(index: Any) -> None:
            index["format"] = 2
            index["packages"]["rectools-neural"] = "7.0"
            index["unknown"] = 1

        edit(folder / "config.json", change)
        with pytest.raises(ValueError, match=r"config\.json is of version 2 .*7\.0 has written.*reads version 1"):
            from_pretrained(folder)

    def test_too_large(self, folder: Path) -> None:
        """Not a byte is read: it would take minutes."""
        for name in FILES:
            data = (folder / name).read_bytes()
            os.truncate(folder / name, 50 << 30)
            with pytest.raises(ValueError, match=rf"{name} has {50 << 30} bytes"):
                from_pretrained(folder)
            (folder / name).write_bytes(data)

    def test_a_pipe(self, folder: Path) -> None:
        (folder / "state.json").unlink()
        os.mkfifo(folder / "state.json")
        with pytest.raises(ValueError, match=r"state\.json is no regular file"):
            from_pretrained(folder)

    @pytest.mark.parametrize("cls", ["DSSMModel", "rectools_neural.DSSMModel"])
    def test_names(self, cls: str, folder: Path) -> None:
        edit(folder / "config.json", lambda index: index["config"].update(cls=cls))
        assert isinstance(from_pretrained(folder), DSSMModel)


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of a function in a module that leaves a trace as soon as it is imported."""
    (tmp_path / "code").mkdir()
    trace = tmp_path / "code" / "trace"
    (tmp_path / "code" / "trap_of_the_tests.py").write_text(
        f"open({str(trace)!r}, 'w').close()\ndef run(*args, **kwargs):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "code")
    yield "trap_of_the_tests.run"
    assert not trace.exists()


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


class TestAttacks:
    """Folders with the right checksums."""

    @pytest.mark.parametrize(
        "change",
        [
            lambda index, trap: index["config"].update(get_trainer_func=trap),
            lambda index, trap: index["fitted_config"].update(get_trainer_func=trap),
            lambda index, trap: index["fitted_config"].update(get_trainer_func_kwargs={"callbacks": [trap]}),
            lambda index, trap: index["config"].update(cls=trap),
            lambda index, trap: index["config"].update(cls=trap.removesuffix(".run")),
            lambda index, trap: index["fitted_config"].update(cls=trap),
            lambda index, trap: index["config"].pop("cls"),
            lambda index, trap: index["config"].update(cls="rectools.models.EASEModel"),
            lambda index, trap: index["config"].update(cls="rectools_neural.load_dataset"),
        ],
    )
    def test_no_code_is_imported(self, change: Any, trap: str, folder: Path) -> None:
        def apply(index: Any) -> None:
            change(index, trap)

        edit(folder / "config.json", apply)
        with pytest.raises(ValueError, match=r"config\.json is damaged or was changed"):
            from_pretrained(folder)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda i: i["fitted_config"].update(n_factors=10**12), "must be float32 of shape"),
            (lambda i: i["fitted_config"].update(n_factors=10**30), "damaged"),
            (lambda i: i["fitted_config"].update(history_encoder={"name": "gru", "n_layers": 10**9}), "1000 at most"),
            (lambda i: i["fitted_config"].update(history_encoder={"name": "gru", "n_layers": "1e9"}), "1000 at most"),
            (lambda i: i["fitted_config"].update(similarity=None), "leaves options open"),
            (lambda i: i["fitted_config"].update(similarity="manhattan"), "similarity"),
            (lambda i: i["config"].update(device="toaster"), "toaster"),
            (lambda i: i["files"]["state.json"].update(size=-1), "size"),
            (lambda i: i["files"]["state.json"].update(sha256="../secret"), "sha256"),
            (lambda i: i["files"].update({"../secret": i["files"]["state.json"]}), "must name"),
            (lambda i: i["files"].pop("state.json"), "must name"),
            (lambda i: [i], "damaged"),
            (lambda i: i.update(format="1"), "format"),
        ],
    )
    def test_config(self, change: Any, message: str, folder: Path) -> None:
        path = folder / "config.json"
        index = json.loads(path.read_text())
        changed = change(index)
        path.write_text(json.dumps(changed if isinstance(changed, list) else index))
        with pytest.raises(ValueError, match=message):
            from_pretrained(folder)

    @pytest.mark.parametrize("name", ["config.json", "state.json"])
    @pytest.mark.parametrize(
        "text", ["", "{", "\x00", nested(30_000), '{"a":' * 10_000, "[" + "9" * 60_000 + "]", "null"]
    )
    def test_json(self, name: str, text: str, folder: Path) -> None:
        (folder / name).write_text(text)
        if name == "state.json":
            sign(folder)
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            from_pretrained(folder)

    @pytest.mark.parametrize(
        "change",
        [
            lambda s: s["item_features"]["values"].append(["genre", "other"]),
            lambda s: s["item_features"]["values"].append(["other", "c0"]),
            lambda s: s["item_features"]["values"].append(s["item_features"]["values"][0]),
            lambda s: s["item_features"].update(kind="none"),
            lambda s: s["item_features"].update(kind="dense"),
            lambda s: s["item_features"].update(numeric=[]),
            lambda s: s["item_features"].update(numeric=[{"type": "__import__", "value": "os"}]),
            lambda s: s["item_features"].update(numeric=[{"type": "int8", "value": "x"}]),
            lambda s: s["item_features"].update(numeric=[["price"]]),
            lambda s: s.update(user_id_type="int64"),
            lambda s: s.update(item_id_type="object,object"),
            lambda s: s.update(item_id_type="int32"),
            lambda s: s.update(context=s["user_features"]),
            lambda s: s["reading"].update(context_numeric=["hour"]),
            lambda s: s["reading"].update(features=1),
            lambda s: s["history"].update(loss=[[1]]),
            lambda s: s["history"].update(loss=[1.0]),
            lambda s: s.pop("history"),
            lambda s: s.update(more=1),
        ],
    )
    def test_state(self, change: Any, folder: Path) -> None:
        def apply(state: Any) -> None:
            change(state)

        edit(folder / "state.json", apply)
        with pytest.raises(ValueError, match="is damaged or was changed"):
            from_pretrained(folder)

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("module.item_ids", lambda a: a[:-1], "must be float32 of shape"),
            ("module.item_ids", lambda a: a.astype(np.float64), "must be float32"),
            ("module.item_ids", lambda a: a * np.inf, "not finite"),
            ("module.item_ids", lambda a: a.ravel(), "shape"),
            ("module.item_ids", lambda a: None, "is missing"),
            ("module.other", lambda a: np.zeros(3), "unknown arrays"),
            ("reader.popularity", lambda a: -a, "negative"),
            ("reader.item_features.std", lambda a: a * 0, "not finite"),
            ("reader.item_features.categories.indices", lambda a: a + 9, "columns outside"),
            ("reader.item_features.categories.indices", lambda a: a - 1, "columns outside"),
            ("reader.item_features.categories.indices", lambda a: a[:-1], "shape"),
            ("reader.item_features.categories.indptr", lambda a: a[::-1].copy(), "rows"),
            ("reader.item_features.categories.indptr", lambda a: a * 2, "rows"),
            ("reader.item_features.categories.indptr", lambda a: np.append(a, a[-1:]), "shape"),
            ("n_interactions", lambda a: np.array(-5), "leaves options open"),
        ],
    )
    def test_arrays(self, name: str, change: Any, message: str, folder: Path) -> None:
        def apply(arrays: dict[str, np.ndarray]) -> None:
            changed = change(arrays.pop(name, None))
            if changed is not None:
                arrays[name] = changed

        edit_arrays(folder, apply)
        with pytest.raises(ValueError, match=rf"weights\.safetensors is damaged or was changed.*{message}"):
            from_pretrained(folder)

    @pytest.mark.parametrize(
        ("key", "name", "change"),
        [
            ("UserKNNModel-sparse", "inverted.indices", lambda a: a + 2**30),
            ("UserKNNModel-sparse", "inverted.indices", lambda a: a - 2**30),
            ("UserKNNModel-sparse", "inverted.indptr", lambda a: a * -1),
            ("UserKNNModel-sparse", "inverted.data", lambda a: a.astype(np.float32)),
            ("UserKNNModel-sparse", "idf", lambda a: a[1:]),
            ("UserKNNModel-sparse", "mean_length", np.zeros_like),
            ("UserKNNModel-sparse", "mean_length", lambda a: a.reshape(1)),
            ("GFCFModel-sparse", "interactions.indices", lambda a: a + 2**30),
            ("GFCFModel-sparse", "low_pass", lambda a: a[0]),
            ("GFCFModel-sparse", "item_scale", lambda a: a * 0),
        ],
    )
    def test_arrays_of_other_models(self, key: str, name: str, change: Any, fitted: Fitted, tmp_path: Path) -> None:
        fitted[key][0].save_pretrained(tmp_path / "model")
        edit_arrays(tmp_path / "model", lambda arrays: arrays.update({name: change(arrays[name])}))
        with pytest.raises(ValueError, match=rf"weights\.safetensors is damaged or was changed.*{name}"):
            from_pretrained(tmp_path / "model")

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("histories.indices", lambda a: a + 15, "columns outside 0 to 15"),
            ("histories.indices", lambda a: a - 1, "columns outside"),
            ("histories.indices", lambda a: a.astype(np.int32), "must be int64"),
            ("histories.indices", lambda a: a[:-1], "doesn't divide"),
            ("histories.indices", lambda a: None, "is missing"),
            ("histories.indptr", lambda a: a[:-1], "shape"),
            ("histories.indptr", lambda a: a[::-1].copy(), "rows"),
            ("histories.indptr", lambda a: np.array([0, 2**63 - 1, -2, *a[3:]]), "rows"),
            ("histories.indptr", lambda a: a + 1, "rows"),
            ("histories.weights", lambda a: a * np.nan, "not finite"),
            ("histories.weights", lambda a: -a, "not positive"),
            ("histories.weights", lambda a: a[1:], "shape"),
            ("histories.weights", lambda a: None, "is missing"),
            ("features.categories.data", lambda a: a * np.inf, "not finite"),
            ("features.categories.indices", lambda a: a + 9, "columns outside"),
            ("features.categories.indptr", lambda a: a[1:], "shape"),
            ("features.numbers", lambda a: a.astype(np.float64), "must be float32"),
            ("features.numbers", lambda a: a * np.nan, "not finite"),
            ("features.numbers", lambda a: a[:, :0], "shape"),
            ("rows", lambda a: np.arange(26), "unknown arrays"),
        ],
    )
    def test_users(self, name: str, change: Any, message: str, fitted: Fitted, datasets: Any, tmp_path: Path) -> None:
        def apply(arrays: dict[str, np.ndarray]) -> None:
            changed = change(arrays.pop(name, None))
            if changed is not None:
                arrays[name] = changed

        model, of = fitted["DLRMModel-weights"]
        model.save_pretrained(tmp_path / "model", datasets[of])
        edit_arrays(tmp_path / "model", apply, "users.safetensors")
        with pytest.raises(ValueError, match=rf"users\.safetensors is damaged or was changed.*{message}"):
            from_pretrained(tmp_path / "model")

    def test_users_in_part(self, fitted: Fitted, dataset: Dataset, folder: Path) -> None:
        fitted["DSSMModel-sparse"][0].save_pretrained(folder, dataset)
        shutil.copytree(folder, folder.with_name("other"))
        ids = np.array(["a"] * 26, dtype=object)
        (folder / "known_user_ids.parquet").write_bytes(_ids_to_parquet(ids, "user"))
        sign(folder)
        with pytest.raises(ValueError, match=r"known_user_ids\.parquet is damaged.*there twice"):
            from_pretrained(folder)
        (folder / "known_user_ids.parquet").write_bytes(_ids_to_parquet(np.arange(26).astype(str), "user"))
        edit(folder / "state.json", lambda state: state.pop("known_user_id_type") and None)
        with pytest.raises(ValueError, match=r"state\.json is damaged.*`known_user_id_type` must be there if"):
            from_pretrained(folder)
        for name in USER_FILES:
            path = shutil.copytree(folder.with_name("other"), folder.with_name(f"without {name}"))
            index = json.loads((path / "config.json").read_text())
            (path / name).unlink()
            with pytest.raises(FileNotFoundError, match=name):
                from_pretrained(path)
            del index["files"][name]
            (path / "config.json").write_text(json.dumps(index))
            with pytest.raises(ValueError, match=r"and known_user_ids\.parquet and users\.safetensors or neither"):
                from_pretrained(path)

    @pytest.mark.parametrize(
        "header",
        [
            {"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]}},
            {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
            {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
            {"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}},
            {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
            {"a": {"dtype": "F32", "shape": [0] * 1000, "data_offsets": [0, 0]}},
        ],
    )
    @pytest.mark.parametrize("length", [None, 2**63, 2**64 - 1, 10**8])
    def test_header_of_the_weights(self, header: Any, length: int | None, folder: Path) -> None:
        text = json.dumps(header).encode()
        data = (len(text) if length is None else length).to_bytes(8, "little") + text + b"\x00" * 4
        (folder / "weights.safetensors").write_bytes(data)
        sign(folder)
        with pytest.raises(ValueError, match=r"weights\.safetensors is damaged"):
            from_pretrained(folder)

    @pytest.mark.parametrize(
        ("values", "kind", "nullable", "options"),
        [
            (["x" * 100_000] * 24, pa.string(), False, {"compression": "none"}),
            (["x" * 1000] * 100_000, pa.string(), False, {"compression": "zstd"}),
            ([7] * 100_000, pa.int64(), False, {"compression": "none"}),
            ([None] * 100_000, pa.string(), True, {"compression": "none"}),
            ([["a"]] * 24, pa.list_(pa.string()), False, {"compression": "none"}),
            ([f"{n}" for n in range(24)], pa.string(), False, {"compression": "none", "store_schema": True}),
        ],
    )
    def test_ids(self, values: Any, kind: Any, nullable: bool, options: Any, folder: Path) -> None:
        table = pa.table([pa.array(values, kind)], pa.schema([pa.field("id", kind, nullable=nullable)]))
        pq.write_table(table, folder / "user_ids.parquet", **{"store_schema": False, **options})
        sign(folder)
        with pytest.raises(ValueError, match=r"user_ids\.parquet is damaged"):
            from_pretrained(folder)

    def test_the_module_names_nothing_that_runs_code(self) -> None:
        path = Path(rectools_neural.__file__).with_name("pretrained.py")
        tree = ast.parse(path.read_text())
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not names & {"pickle", "eval", "exec", "compile", "__import__", "torch", "joblib", "allow_pickle"}
        assert "import_object" not in names


_FUZZED = ("DSSMModel-rich", "DLRMModel-context", "MultVAEModel-sparse", "GFCFModel-sparse", "UserKNNModel-rich")


class TestDamage:
    """1 000 damaged folders: each gives one of two errors, or, where all was signed anew, maybe a model."""

    @pytest.fixture(scope="class")
    def folders(
        self, fitted: Fitted, datasets: dict[str, Dataset], tmp_path_factory: pytest.TempPathFactory
    ) -> dict[str, Path]:
        root = tmp_path_factory.mktemp("models")
        for key in _FUZZED:
            model = pickle.loads(pickle.dumps(fitted[key][0]))
            model.get_trainer_func = model.get_trainer_func_kwargs = None
            with_users = key != "DLRMModel-context"
            model.save_pretrained(root / key, datasets[fitted[key][1]] if with_users else None)
        return {key: root / key for key in _FUZZED}

    @pytest.mark.parametrize("seed", range(10))
    def test_without_the_checksums(self, seed: int, folders: dict[str, Path], tmp_path: Path) -> None:
        rng = random.Random(seed)
        for number in range(60):
            key = rng.choice(_FUZZED)
            path = shutil.copytree(folders[key], tmp_path / f"{number}")
            other = folders[rng.choice([name for name in _FUZZED if name != key])]
            kind = damage(path, other, rng)
            error = FileNotFoundError if kind == "delete" else ValueError
            with pytest.raises(error) as caught:
                from_pretrained(path)
            assert type(caught.value) is error, kind
            assert str(path) in str(caught.value)

    @pytest.mark.parametrize("seed", range(10))
    def test_signed(
        self, seed: int, folders: dict[str, Path], fitted: Fitted, datasets: Any, tmp_path: Path, trap: str
    ) -> None:
        rng = random.Random(100 + seed)
        for number in range(40):
            key = rng.choice(_FUZZED)
            path = shutil.copytree(folders[key], tmp_path / f"{number}")
            if rng.random() < 0.6:
                edit_at_random(path / rng.choice(["config.json", "state.json"]), rng, trap)
            else:
                damage(path, folders[rng.choice(_FUZZED)], rng, sparse_sizes=False)
            if set(os.listdir(path)) >= FILES:
                # Not where config.json itself is damaged beyond that.
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    sign(path)
            try:
                saved = load_all(path)
            except (FileNotFoundError, ValueError) as error:
                assert type(error) in (FileNotFoundError, ValueError)  # noqa: PT017
                assert str(path) in str(error)  # noqa: PT017
                continue
            assert saved.model.is_fitted
            if saved.users is not None:
                with np.errstate(all="ignore"):
                    ranking_of(saved, np.arange(len(saved.users)), 5)
            # ValueError: what it was fitted on is no longer what the dataset has.
            with np.errstate(all="ignore"), contextlib.suppress(ValueError):
                answers(saved.model, datasets[fitted[key][1]], False)


def damage(path: Path, other: Path, rng: random.Random, sparse_sizes: bool = True) -> str:
    """Damage a folder in one way; `other` is the folder of another model."""
    kinds = ["flip", "truncate", "append", "delete", "swap", "exchange", *(["oversize"] if sparse_sizes else [])]
    names = sorted(os.listdir(path))
    kind, name = rng.choice(kinds), rng.choice(names)
    if kind == "exchange":  # ids of another model may be the same ones
        name = rng.choice(["state.json", "weights.safetensors", "config.json"])
    file = path / name
    data = bytearray(file.read_bytes())
    if kind == "flip":
        if name == "config.json":  # white space and versions of packages may be anything
            name, file = "state.json", path / "state.json"
            data = bytearray(file.read_bytes())
        for place in rng.sample(range(len(data)), rng.choice([1, 3, 20])):
            data[place] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
    elif kind == "truncate":
        os.truncate(file, rng.randrange(len(data) - 1))
    elif kind == "append":
        file.write_bytes(data + rng.randbytes(rng.choice([1, 100, 100_000])))
    elif kind == "delete":
        file.unlink()
    elif kind == "swap":
        second = path / rng.choice([other for other in names if other != name])
        file.write_bytes(second.read_bytes())
        second.write_bytes(data)
    elif kind == "exchange":
        shutil.copy(other / name, file)
    else:
        os.truncate(file, rng.choice([50 << 30, 1 << 40]))
    return kind


def edit_at_random(path: Path, rng: random.Random, trap: str) -> None:
    """Change, drop or add some values of a JSON file, wherever they are."""
    data = json.loads(path.read_text())
    for _ in range(rng.choice([1, 1, 2, 5])):
        place: Any = data
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.8:
                place = place[key]
                continue
            values = [None, True, -1, 0, 1, 2, 3, 10**6, 2**63, 10**40, 0.5, float("nan"), float("inf"), "", "0", trap]
            values += [
                "uniform",
                "dense",
                "int64",
                "squared",
                [],
                {},
                [1],
                ["a", "a"],
                {"name": "gru"},
                {"type": "int8"},
            ]
            if rng.random() < 0.15:
                del place[key]
            else:
                place[key] = rng.choice(values)
            break
    path.write_text(json.dumps(data))
