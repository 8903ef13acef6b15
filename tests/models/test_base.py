"""What all models share: constructor, validation, partial fits, trainers. DSSM stands for any neural family here."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from contract import assert_same, hot_users, interactions, is_own_group, items_of, own_share, recommend, with_rows
from pandas.testing import assert_frame_equal
from pydantic import PositiveInt, ValidationError
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.loggers import CSVLogger
from rectools import Columns
from rectools.dataset import Dataset
from rectools.exceptions import NotFittedError
from rectools.metrics import MAP, MRR, NDCG, HitRate, Recall
from rectools.models import model_from_config

from rectools_neural import DSSMModel
from rectools_neural.config import TripletLoss, ValidationConfig
from rectools_neural.models.base import hold_out
from rectools_neural.models.pack import PackModel, PackModelConfig

# Constant, so that epochs can be counted by their effect.
CONSTANT = {"name": "adam", "schedule": "none"}
OPTIONS: dict[str, Any] = {
    "epochs": 3,
    "n_factors": 8,
    "batch_size": 16,
    "learning_rate": 0.02,
    "loss": "bpr",
    "optimizer": CONSTANT,
}


def make(**options: Any) -> DSSMModel:
    return DSSMModel(**{**OPTIONS, **options})


@pytest.fixture(scope="module")
def frames(make_frames: Callable[..., Any]) -> Any:
    return make_frames(n_warm=2)


@pytest.fixture(scope="module")
def dataset(frames: Any) -> Dataset:
    return frames.dataset()


@pytest.fixture(scope="module")
def plain(make_frames: Callable[..., Any]) -> Any:
    """Without features."""
    return make_frames(features=None)


@pytest.fixture(scope="module")
def parts(plain: Any) -> tuple[Dataset, Dataset]:
    """A quarter of the rows held out."""
    held = np.random.default_rng(0).random(len(plain.interactions)) < 0.25
    return Dataset.construct(plain.interactions[~held]), Dataset.construct(plain.interactions[held])


class OwnConfig(PackModelConfig):
    size: PositiveInt = 3
    loss: TripletLoss | None = None


class OwnModel(PackModel[OwnConfig]):
    """A user's own model on the base of the pack."""

    config_class = OwnConfig


class TestConstructor:
    def test_options_come_from_the_config(self) -> None:
        model = OwnModel(size=5, verbose=2)
        assert (model.size, model.loss, model.verbose, model.is_fitted) == (5, None, 2, False)
        assert set(inspect.signature(OwnModel).parameters) == {"size", "loss", "verbose"}
        assert inspect.signature(OwnModel).parameters["size"].default == 3

    def test_own_models_keep_their_path(self) -> None:
        """Only models of the pack have a short public name."""
        config = OwnModel(size=5).get_config(simple_types=True)
        assert config == {"cls": f"{__name__}.OwnModel", "verbose": 0, "size": 5, "loss": None}
        assert model_from_config(config).get_config() == OwnModel(size=5).get_config()

        class DSSMModel(OwnModel):
            """Of the same name as one of the pack."""

        assert DSSMModel().get_config(simple_types=True)["cls"].startswith(__name__)

    def test_config_of_another_model_is_refused(self) -> None:
        with pytest.raises(TypeError, match="`DSSMModel` is used, but config is for `OwnModel`"):
            DSSMModel.from_config({"cls": OwnModel})

    @pytest.mark.parametrize(
        "options", [{}, {"n_factors": 7}, {"loss": "bpr"}, {"loss": {"name": "triplet", "margin": 0.3}}, {"seed": 3}]
    )
    def test_repr_is_the_call(self, options: dict[str, Any]) -> None:
        model = DSSMModel(**options)
        assert eval(repr(model), {"DSSMModel": DSSMModel}).get_config() == model.get_config()

    def test_defaults_are_not_shared(self) -> None:
        assert DSSMModel().optimizer is not DSSMModel().optimizer

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("epochs", 0),
            ("batch_size", 0),
            ("learning_rate", 0),
            ("learning_rate", "fast"),
            ("seed", -1),
            ("precision", "float8"),
            ("device", 0),
            ("get_trainer_func_kwargs", 3),
            ("get_trainer_func", 3),
        ],
    )
    def test_bad_values_name_the_option(self, option: str, value: Any) -> None:
        with pytest.raises(ValidationError, match=option):
            make(**{option: value})

    def test_unknown_trainer_function_names_the_option(self) -> None:
        with pytest.raises(ValueError, match="get_trainer_func"):
            make(get_trainer_func="no_such_module.make_trainer")


class TestHoldOut:
    ROWS = (  # user, item, day
        ("a", 1, 4),
        ("a", 2, 2),
        ("a", 3, 9),
        ("b", 1, 5),
        ("b", 2, 6),
        ("c", 3, 1),
        ("c", 1, 8),
        ("c", 2, 7),
        ("c", 4, 3),
        ("d", 4, 10),
    )

    def split(self, rows: Any = ROWS, **options: Any) -> tuple[set[Any], set[Any]]:
        frame = pd.DataFrame(rows, columns=[Columns.User, Columns.Item, "day"])
        frame[Columns.Datetime] = pd.Timestamp("2024-01-01") + pd.to_timedelta(frame.pop("day"), unit="D")
        dataset = Dataset.construct(frame.assign(**{Columns.Weight: 1.0}))
        part, held = hold_out(dataset, ValidationConfig(**options), seed=0)

        def triples(table: pd.DataFrame) -> set[Any]:
            days = (table[Columns.Datetime] - pd.Timestamp("2024-01-01")).dt.days
            return set(zip(table[Columns.User], table[Columns.Item], days, strict=True))

        return triples(part.get_raw_interactions()), triples(held)

    @pytest.mark.parametrize(("n", "days"), [(1, {9, 6, 8, 10}), (2, {9, 4, 6, 5, 8, 7, 10})])
    def test_last_rows_of_each_user(self, n: int, days: set[int]) -> None:
        train, held = self.split(name="last_n", size=n)
        assert {day for _, _, day in held} == days
        assert train == set(self.ROWS) - held

    @pytest.mark.parametrize(("size", "days"), [(0.1, {10}), (0.3, {8, 9, 10}), (0.5, {6, 7, 8, 9, 10})])
    def test_end_of_the_timeline(self, size: float, days: set[int]) -> None:
        train, held = self.split(name="time", size=size)
        assert {day for _, _, day in held} == days
        assert train == set(self.ROWS) - held

    def test_random_share(self, dataset: Dataset) -> None:
        raw = dataset.get_raw_interactions()
        splits = []
        for seed in (0, 0, 1):
            part, held = hold_out(dataset, ValidationConfig(name="random", size=0.25), seed)
            assert 0.15 < len(held) / len(raw) < 0.35
            both = pd.concat([part.get_raw_interactions(), held])
            assert_frame_equal(both.sort_values(both.columns.tolist(), ignore_index=True), _sorted(raw))
            splits.append(_sorted(held))
        assert_frame_equal(splits[0], splits[1])
        assert not splits[0].equals(splits[2])

    def test_features_stay(self, dataset: Dataset) -> None:
        part, _ = hold_out(dataset, ValidationConfig(name="random", size=0.25), 0)
        assert part.user_features.names == dataset.user_features.names
        assert part.item_features.names == dataset.item_features.names

    @pytest.mark.parametrize("options", [{"name": "random", "size": 0.4}, {"name": "last_n", "size": 1}])
    @pytest.mark.parametrize("rows", ["apart", "at one time", "repeated"])
    def test_order_of_rows_does_not_matter(self, options: dict[str, Any], rows: str) -> None:
        table = {
            "apart": self.ROWS,
            "at one time": tuple((user, item, 1) for user, item, _ in self.ROWS),
            "repeated": (*self.ROWS, *((user, item, day + 10) for user, item, day in self.ROWS)),
        }[rows]
        expected = self.split(table, **options)
        for seed in range(5):
            order = np.random.default_rng(seed).permutation(len(table))
            assert self.split([table[i] for i in order], **options) == expected

    @pytest.mark.parametrize(
        "options",
        [
            {"name": "last_n", "size": 4},
            {"name": "random", "size": 1e-9},
            {"name": "random", "size": 1 - 1e-9},
        ],
    )
    def test_nothing_left(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=rf"`{options['name']}` with size {options['size']}.*change `size`"):
            self.split(**options)


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    return table.sort_values(table.columns.tolist(), ignore_index=True)


class TestValidation:
    @pytest.mark.parametrize("name", ["random", "last_n", "time"])
    def test_plain_names(self, name: str, dataset: Dataset) -> None:
        model = make(validation=name).fit(dataset)
        assert model.history.filter(like="@").notna().to_numpy().all()

    @pytest.mark.parametrize(
        ("name", "metric"),
        [
            ("ndcg", NDCG(4, divide_by_achievable=True)),
            ("recall", Recall(4)),
            ("map", MAP(4)),
            ("mrr", MRR(4)),
            ("hit_rate", HitRate(4)),
        ],
    )
    def test_best_weights_are_restored(self, name: str, metric: Any, parts: tuple[Dataset, Dataset]) -> None:
        """The metric of the fitted model is the best of the history."""
        train, valid = parts
        model = make(epochs=30, validation={"metric": name, "k": 4, "patience": 2}, learning_rate=0.05)
        model.fit(train, dataset_valid=valid)
        values = model.history[f"{name}@4"]
        assert values.iloc[-1] < values.max() or values.nunique() > 1
        truth = valid.get_raw_interactions()
        truth = truth[truth[Columns.User].isin(hot_users(train))]
        assert metric.calc(recommend(model, train, truth[Columns.User].unique(), k=4), truth) == values.max()

    def test_patience(self, parts: tuple[Dataset, Dataset]) -> None:
        values = self._values(parts, epochs=40, patience=3)
        assert len(values) < 40
        assert len(values) == values.argmax() + 1 + 3

    def test_min_epochs(self, parts: tuple[Dataset, Dataset]) -> None:
        without = self._values(parts, epochs=40, patience=1)
        n = len(without) + 3
        values = self._values(parts, epochs=40, patience=1, min_epochs=n)
        assert values[: len(without)].tolist() == without.tolist()
        assert len(values) >= n

    def test_every(self, parts: tuple[Dataset, Dataset]) -> None:
        values = self._values(parts, epochs=7, patience=9, every=3)
        assert np.isfinite(values).tolist() == [False, False, True, False, False, True, True]

    @staticmethod
    def _values(parts: tuple[Dataset, Dataset], epochs: int, **options: Any) -> np.ndarray:
        model = make(epochs=epochs, learning_rate=0.05, validation={"k": 4, **options})
        return np.asarray(model.fit(parts[0], dataset_valid=parts[1]).history["ndcg@4"])

    def test_a_dataset_alone_is_enough(self, parts: tuple[Dataset, Dataset]) -> None:
        """All rows of the other one are trained on, and judging leaves no trace in the training."""
        model = make(epochs=2).fit(parts[0], dataset_valid=parts[1])
        (metric,) = model.history.filter(like="@").columns
        assert model.validation is None
        expected = make(epochs=1 + int(model.history[metric].argmax())).fit(parts[0])
        assert_frame_equal(recommend(model, parts[0]), recommend(expected, parts[0]))

    def test_held_out_rows_are_not_trained_on(self, plain: Any) -> None:
        dataset = plain.dataset()
        validation = ValidationConfig(name="random", size=0.3, k=4, patience=2)
        model = make(epochs=20, validation=validation, seed=5).fit(dataset)
        part, _ = hold_out(dataset, validation, 5)
        expected = make(epochs=1 + int(model.history["ndcg@4"].argmax()), seed=5).fit(part)
        assert_frame_equal(recommend(model, dataset), recommend(expected, dataset))

    def test_refit_on_all_rows(self, plain: Any) -> None:
        dataset = plain.dataset()
        model = make(epochs=20, validation={"size": 0.3, "k": 4, "patience": 2, "refit": True}).fit(dataset)
        is_refit = model.history["refit"].eq(True).to_numpy()
        best = 1 + int(model.history.loc[~is_refit, "ndcg@4"].argmax())
        assert best < (~is_refit).sum()
        assert model.history.loc[is_refit, "epoch"].tolist() == list(range(1, best + 1))
        assert_frame_equal(recommend(model, dataset), recommend(make(epochs=best).fit(dataset), dataset))

    def test_nothing_in_common(self, plain: Any, parts: tuple[Dataset, Dataset]) -> None:
        strangers = plain.interactions.assign(**{Columns.User: "x" + plain.interactions[Columns.User]})
        model = make()
        with pytest.raises(ValueError, match="No user and item of the validation part occurs in the training part"):
            model.fit(parts[0], dataset_valid=Dataset.construct(strangers))
        assert not model.is_fitted

    @pytest.mark.parametrize("wrong", ["frame", "empty"])
    def test_wrong_dataset(self, wrong: str, plain: Any, parts: tuple[Dataset, Dataset]) -> None:
        valid = plain.interactions if wrong == "frame" else parts[1].filter_interactions([])
        with pytest.raises((TypeError, ValueError), match="`dataset_valid`"):
            make().fit(parts[0], dataset_valid=valid)


class TestHistory:
    def test_columns(self, dataset: Dataset) -> None:
        history = make(epochs=4).fit(dataset).history
        assert history.columns.tolist() == ["epoch", "loss", "learning_rate", "seconds"]
        assert history["epoch"].tolist() == [1, 2, 3, 4]
        assert history["loss"].iloc[-1] < history["loss"].iloc[0]
        assert (history["learning_rate"] == 0.02).all()
        assert (history["seconds"] > 0).all()

    def test_is_that_of_the_last_fit(self, dataset: Dataset) -> None:
        model = make(epochs=4).fit(dataset)
        expected = model.history["loss"].tolist()
        assert model.fit(dataset).history["loss"].tolist() == expected


class TestOptimizers:
    @pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "adagrad"])
    def test_plain_names(self, name: str, dataset: Dataset) -> None:
        rate = 1.0 if name == "sgd" else 0.05
        losses = make(epochs=12, optimizer=name, learning_rate=rate).fit(dataset).history["loss"]
        assert losses.iloc[-1] < 0.95 * losses.iloc[0]

    @pytest.mark.parametrize("schedule", ["none", "step", "plateau", "cosine", "warmup"])
    def test_plain_names_of_schedules(self, schedule: str, dataset: Dataset) -> None:
        model = make(epochs=12, optimizer={"schedule": schedule}).fit(dataset)
        assert model.history["loss"].iloc[-1] < model.history["loss"].iloc[0]
        if schedule in ("none", "warmup"):
            assert model.history["learning_rate"].iloc[-1] == 0.02
        if schedule in ("step", "cosine"):
            assert model.history["learning_rate"].iloc[-1] < 0.02

    @pytest.mark.parametrize("penalty", ["l1", "l2"])
    def test_penalties_shrink_the_vectors(self, penalty: str, dataset: Dataset) -> None:
        free, held = (make(optimizer={**CONSTANT, penalty: weight}).fit(dataset) for weight in (0.0, 1.0))
        norm = np.linalg.norm(free.get_vectors(dataset)[1])
        assert np.linalg.norm(held.get_vectors(dataset)[1]) < 0.9 * norm


class TestSeed:
    def test_other_seeds_give_other_models(self, dataset: Dataset) -> None:
        one, other = (recommend(make(seed=seed).fit(dataset), dataset) for seed in (0, 1))
        assert not one.equals(other)

    def test_state_of_the_caller_does_not_matter(self, dataset: Dataset) -> None:
        frames = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            np.random.seed(seed)
            frames.append(recommend(make().fit(dataset), dataset))
        assert_frame_equal(frames[0], frames[1])


class TestFitPartial:
    def test_first_call_is_a_fit(self, dataset: Dataset) -> None:
        expected = recommend(make().fit(dataset), dataset, k=100)
        assert_frame_equal(recommend(make().fit_partial(dataset), dataset, k=100), expected)

    def test_goes_on(self, dataset: Dataset) -> None:
        model = make(epochs=2).fit(dataset)
        first = model.history["loss"].tolist()
        model.fit_partial(dataset)
        second = model.history["loss"].tolist()
        assert len(first) == len(second) == 2
        assert first[0] > first[1] > second[0] > second[1]

    def test_fit_starts_anew(self, dataset: Dataset) -> None:
        expected = recommend(make().fit(dataset), dataset)
        assert_frame_equal(recommend(make().fit_partial(dataset).fit_partial(dataset).fit(dataset), dataset), expected)

    def test_number_of_epochs(self, dataset: Dataset) -> None:
        model = make(epochs=3)
        assert [len(model.fit_partial(dataset, epochs=n).history) for n in (1, 2, None, 1)] == [1, 2, 3, 1]
        assert model.epochs == 3
        assert model.get_config()["epochs"] == 3
        for epochs in (0, -1):
            with pytest.raises(ValueError, match="`epochs` must be at least 1"):
                model.fit_partial(dataset, epochs=epochs)

    def test_chosen_options_stay(self, dataset: Dataset) -> None:
        """Else the weights would not fit the module."""
        model = DSSMModel(epochs=1, n_factors=8).fit(dataset)
        before = model.fitted_config
        model.fit_partial(dataset.filter_interactions(np.arange(10), keep_features_for_removed_entities=True))
        after = model.fitted_config
        assert {name: getattr(after, name) for name in ("loss", "similarity", "n_factors")} == {
            name: getattr(before, name) for name in ("loss", "similarity", "n_factors")
        }

    def test_new_users_and_items(self, make_frames: Callable[..., Any]) -> None:
        """With rows of their own, and the old ones stay, though the new dataset holds none of them."""
        frames = make_frames(features=None)
        table = frames.interactions
        is_new = table[Columns.User].ge("u030")
        new = table[is_new].copy()
        new[Columns.Item] += (new[Columns.Item] < 104) * 100  # 200 to 203 in the place of 100 to 103
        old_set, new_set = Dataset.construct(table[~is_new]), Dataset.construct(new)
        assert {200, 201} <= set(new[Columns.Item])
        model = make(epochs=20, use_user_ids=True).fit(old_set)
        users, items = ["u000", "u001"], [100, 101, 102, 103]
        assert not set(recommend(model, new_set, k=100, filter_viewed=False)[Columns.Item]) & {200, 201, 202, 203}
        before = recommend(model, old_set, users, k=100, filter_viewed=False)
        model.fit_partial(new_set)
        after = recommend(model, old_set, users, k=100, filter_viewed=False)
        everything = set(table[Columns.Item]) | set(new[Columns.Item])
        assert set(before[Columns.Item]) == set(table.loc[~is_new, Columns.Item])
        assert set(after[Columns.Item]) == everything
        assert set(items) <= set(after[Columns.Item])
        assert own_share(model, new_set, k=2) > 0.8

    def test_old_rows_keep_their_weights(self, plain: Any) -> None:
        """By id, though new ones come before them in the order of ids. With a rate of almost zero nothing moves."""
        model = make(use_user_ids=True, learning_rate=1e-12, user_tower="mlp", item_tower="residual")
        dataset = plain.dataset()
        model.fit(dataset)
        users, items = model.get_vectors(dataset)
        rows = [("a_new", 99), ("a_new", 100), ("u000", 98), ("z_new", 300)]
        later = with_rows(plain, rows).dataset()
        model.fit_partial(later)
        new_users, new_items = model.get_vectors(dataset)
        np.testing.assert_allclose(new_users, users, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(new_items, items, rtol=1e-4, atol=1e-7)
        new_rows = model.get_vectors(later)[1][later.item_id_map.convert_to_internal([98, 99, 300])]
        assert np.linalg.norm(new_rows[:, :-1], axis=1).min() > 0

    def test_features_of_new_items(self, frames: Any) -> None:
        model = make(epochs=20, learning_rate=0.05).fit(frames.dataset())
        later = with_rows(frames, [("u001", 901), ("u003", 901), ("u000", 902)], {901: 101, 902: 100}).dataset()
        model.fit_partial(later)
        assert {901, 902} <= set(recommend(model, later, k=100)[Columns.Item])
        assert own_share(model, later) > 0.8

    def test_other_features_are_refused(self, dataset: Dataset, plain: Any) -> None:
        model = make().fit(dataset)
        expected = recommend(model, dataset)
        with pytest.raises(ValueError, match="features are none, but the model was fitted with sparse ones"):
            model.fit_partial(plain.dataset())
        assert_frame_equal(recommend(model, dataset), expected)

    @pytest.mark.parametrize("options", [{}, {"user_tower": {"name": "mlp", "normalisation": "batch"}}])
    def test_after_loading(self, options: dict[str, Any], dataset: Dataset) -> None:
        model = make(**options).fit(dataset)
        loaded = pickle.loads(model.dumps())
        expected = recommend(model.fit_partial(dataset), dataset, k=100)
        assert_frame_equal(recommend(loaded.fit_partial(dataset), dataset, k=100), expected)

    def test_a_saved_model_is_not_touched(self, dataset: Dataset) -> None:
        model = make().fit(dataset)
        saved, expected = model.dumps(), recommend(model, dataset)
        model.fit_partial(dataset)
        assert not recommend(model, dataset).equals(expected)
        assert_frame_equal(recommend(DSSMModel.loads(saved), dataset), expected)

    def test_with_validation(self, dataset: Dataset) -> None:
        model = make(validation={"size": 0.2, "refit": True}).fit(dataset)
        losses = model.history["loss"].tolist()
        model.fit_partial(dataset)
        assert model.history["loss"].iloc[0] < losses[0]
        assert model.history["refit"].eq(True).any()


class TestFailures:
    @pytest.mark.parametrize("method", ["fit", "fit_partial"])
    def test_failure_in_training_leaves_the_model(self, method: str, dataset: Dataset) -> None:
        model = make(get_trainer_func=failing_trainer)
        with pytest.raises(RuntimeError, match="out of luck"):
            getattr(model, method)(dataset)
        assert not model.is_fitted
        assert not hasattr(model, "history")
        with pytest.raises(NotFittedError):
            recommend(model, dataset)
        model.get_trainer_func = None
        model.fit(dataset)
        history, expected = model.history, recommend(model, dataset, k=100)
        model.get_trainer_func = failing_trainer
        with pytest.raises(RuntimeError, match="out of luck"):
            getattr(model, method)(dataset)
        assert model.is_fitted
        assert model.history is history
        assert_frame_equal(recommend(model, dataset, k=100), expected)

    @pytest.mark.parametrize("method", ["fit", "fit_partial"])
    def test_bad_data_leave_the_model(self, method: str, frames: Any) -> None:
        dataset = frames.dataset()
        model = make().fit(dataset)
        expected = recommend(model, dataset, k=100)
        empty = dataset.filter_interactions([], keep_features_for_removed_entities=True)
        with pytest.raises(ValueError, match="`dataset` has no interactions"):
            getattr(model, method)(empty)
        assert_frame_equal(recommend(model, dataset, k=100), expected)

    def test_loss_that_is_no_number(self, dataset: Dataset) -> None:
        model = make(learning_rate=1e30, loss="squared", optimizer="sgd")
        with pytest.raises(FloatingPointError, match="lower `learning_rate`"):
            model.fit(dataset)
        assert not model.is_fitted

    @pytest.mark.parametrize("device", ["cup", "cuda"])
    def test_unknown_device_names_the_option(self, device: str, dataset: Dataset) -> None:
        if device == "cuda" and torch.cuda.is_available():
            pytest.skip("has one")
        with pytest.raises(ValueError, match="`device`"):
            make(device=device).fit(dataset)


class TestPrecisionAndDevice:
    @pytest.mark.parametrize("precision", ["float64", "bfloat16"])
    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"user_tower": "mlp", "item_tower": "mlp", "similarity": "cosine"},
            {"history_encoder": "attention", "item_tower": "mlp", "similarity": "euclidean", "negatives": "in_batch"},
            {"history_encoder": "transformer", "item_tower": "mlp", "loss": "sampled_softmax"},
            {"history_encoder": "gru", "user_tower": "mlp", "loss": "softmax", "similarity": "dot"},
            {"user_tower": "mlp", "loss": "squared", "similarity": "dot"},
        ],
    )
    def test_trains(self, precision: str, options: dict[str, Any], dataset: Dataset) -> None:
        model = make(**{"epochs": 8, "precision": precision, "validation": "random", **options}).fit(dataset)
        assert model.history["loss"].iloc[-1] < model.history["loss"].iloc[0]
        reco = recommend(model, dataset)
        assert reco[Columns.Score].dtype == np.float32
        assert len(reco) == 200
        assert {vectors.dtype for vectors in model.get_vectors(dataset)} == {np.dtype(np.float32)}
        assert torch.get_default_dtype() == torch.float32

    def test_float64_is_near_float32(self, dataset: Dataset) -> None:
        single, double = (make(epochs=2, precision=name).fit(dataset) for name in ("float32", "float64"))
        assert double.history["loss"].tolist() == pytest.approx(single.history["loss"].tolist(), rel=1e-4)
        assert_same(recommend(double, dataset, k=1), recommend(single, dataset, k=1))

    def test_cpu(self, dataset: Dataset) -> None:
        model = make(device="cpu").fit(dataset)
        assert len(recommend(model, dataset)) == 200
        if not torch.cuda.is_available():
            assert_frame_equal(recommend(model, dataset), recommend(make(device="auto").fit(dataset), dataset))


class CountEpochs(Callback):
    counts: list[int] = []  # noqa: RUF012

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        self.counts.append(trainer.current_epoch)


def make_trainer(**options: Any) -> Trainer:
    """What a user writes: own callbacks and an own logger on top of the arguments of the pack."""
    logger = CSVLogger(options["default_root_dir"], name="log")
    return Trainer(**{**options, "callbacks": [*options["callbacks"], CountEpochs()], "logger": logger})


class Fails(Callback):
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 4:
            raise RuntimeError("out of luck")


def failing_trainer(**options: Any) -> Trainer:
    return Trainer(**{**options, "callbacks": [*options["callbacks"], Fails()]})


class TestTrainer:
    @pytest.mark.parametrize("form", ["function", "path"])
    def test_own_callback_and_logger(self, form: str, dataset: Dataset, tmp_path: Path) -> None:
        CountEpochs.counts.clear()
        path = f"{__name__}.make_trainer"
        model = make(
            get_trainer_func=make_trainer if form == "function" else path,
            get_trainer_func_kwargs={"default_root_dir": str(tmp_path)},
            validation={"size": 0.2, "k": 4},
        )
        assert model.get_config(simple_types=True)["get_trainer_func"] == path
        assert DSSMModel.from_params(model.get_params(simple_types=True)).get_trainer_func is make_trainer
        model.fit(dataset)
        assert CountEpochs.counts == [0, 1, 2]
        (log,) = tmp_path.glob("log/*/metrics.csv")
        logged = pd.read_csv(log)
        assert logged["loss"].dropna().tolist() == pytest.approx(model.history["loss"].tolist(), rel=1e-3)
        assert logged["ndcg@4"].dropna().tolist() == pytest.approx(model.history["ndcg@4"].tolist(), rel=1e-3)
        without = make(validation={"size": 0.2, "k": 4}).fit(dataset)
        assert_frame_equal(recommend(model, dataset), recommend(without, dataset))
        assert b"pytorch_lightning" not in model.dumps()

    def test_arguments_of_the_trainer(self, dataset: Dataset) -> None:
        model = make(epochs=5, get_trainer_func_kwargs={"max_epochs": 2}).fit(dataset)
        assert len(model.history) == 2
        # 40 users in batches of 16 are 3 steps an epoch.
        model = make(epochs=5, get_trainer_func_kwargs={"max_steps": 6}).fit(dataset)
        assert len(model.history) == 2
        assert model.get_trainer_func_kwargs == {"max_steps": 6}


class TestBatches:
    def test_last_batch_of_one_user(self, dataset: Dataset) -> None:
        """Batch normalisation can't train on it."""
        tower = {"name": "mlp", "normalisation": "batch"}
        model = make(batch_size=39, user_tower=tower).fit(dataset)
        assert len(recommend(model, dataset)) == 200

    @pytest.mark.parametrize("batch_size", [1, 7, 40, 1000])
    def test_any_size(self, batch_size: int, dataset: Dataset) -> None:
        model = make(epochs=1, batch_size=batch_size).fit(dataset)
        assert model.fitted_config.batch_size == batch_size
        assert len(recommend(model, dataset)) == 200


class TestSmallData:
    @pytest.mark.parametrize("loss", [None, "softmax", "sampled_softmax", "bpr", "bce", "triplet"])
    @pytest.mark.parametrize("rows", [[("a", 1)], [("a", 1), ("a", 2)], [("a", 1), ("b", 1)]])
    def test_hardly_any_rows(self, loss: str | None, rows: list[Any]) -> None:
        """Without a single negative, too."""
        frame = interactions(rows)
        dataset = Dataset.construct(frame)
        model = make(loss=loss, epochs=2).fit(dataset)
        reco = recommend(model, dataset, filter_viewed=False)
        assert np.isfinite(reco[Columns.Score]).all()
        assert len(reco) == frame[Columns.User].nunique() * frame[Columns.Item].nunique()
        assert recommend(model, dataset, ["a"], k=3).shape[0] == frame[Columns.Item].nunique() - len(
            frame[frame[Columns.User] == "a"]
        )

    def test_repeated_rows_count_once(self, plain: Any) -> None:
        """At the time of the last one."""
        table = plain.interactions
        earlier = table.assign(**{Columns.Datetime: table[Columns.Datetime] - pd.Timedelta(days=400)})
        repeated = replace(plain, interactions=pd.concat([table, earlier, table])).dataset()
        expected = recommend(make(history_encoder="gru").fit(plain.dataset()), plain.dataset(), k=100)
        assert_frame_equal(recommend(make(history_encoder="gru").fit(repeated), repeated, k=100), expected)

    def test_histories_of_all_items(self) -> None:
        """Nobody has a negative, and nothing is left to recommend."""
        rows = [(user, item) for user in "abc" for item in range(4)]
        dataset = Dataset.construct(interactions(rows))
        model = make().fit(dataset)
        assert recommend(model, dataset).empty
        assert len(recommend(model, dataset, filter_viewed=False, k=9)) == 12


def test_top_one_of_a_partially_fitted_model(plain: Any) -> None:
    """Day by day, each time with new rows only, the model learns as it would at once."""
    table = plain.interactions.sort_values(Columns.Datetime)
    model = make(epochs=15, learning_rate=0.05)
    for part in np.array_split(np.arange(len(table)), 3):
        model.fit_partial(Dataset.construct(table.iloc[part]))
    dataset = plain.dataset()
    best = recommend(model, dataset, k=1)
    assert is_own_group(best).mean() > 0.85
    assert not set(best.loc[best[Columns.User] == "u000", Columns.Item]) & set(items_of(plain, "u000"))
