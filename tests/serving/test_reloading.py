"""A new folder takes the place of the old one while requests are answered; a broken one changes nothing."""

from __future__ import annotations

import logging
import shutil
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models.contract import hot_users
from rectools import Columns
from rectools.dataset import Dataset

from rectools_neural import GFCFModel, UserKNNModel
from rectools_neural.serving import create_app
from rectools_neural.serving.metrics import Metrics
from rectools_neural.serving.reloading import Reloader

Answers = dict[str, list[Any]]
ANSWERS, RELOAD = "rectools-neural-answers", "rectools-neural-reload"  # threads


@pytest.fixture(scope="module")
def dataset(make_dataset: Callable[..., Dataset]) -> Dataset:
    return make_dataset(n_users=20, features=None)


@pytest.fixture(scope="module")
def models(dataset: Dataset) -> list[Any]:
    """Two models that answer most users differently."""
    found: list[Any] = [GFCFModel(n_factors=3), UserKNNModel(n_neighbors=5)]
    for model in found:
        model.fit(dataset)
    return found


@pytest.fixture
def folder(tmp_path: Path, models: list[Any], dataset: Dataset) -> Path:
    models[0].save_pretrained(tmp_path / "model", dataset)
    return tmp_path / "model"


@pytest.fixture
def reloader(folder: Path) -> Reloader:
    return Reloader(folder, ann=False, interval=0, metrics=Metrics())


def wait_for(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def expected(model: Any, dataset: Dataset) -> Answers:
    reco = model.recommend(hot_users(dataset), dataset, 5, True)
    return {user: rows[Columns.Item].tolist() for user, rows in reco.groupby(Columns.User)}


def test_each_answer_is_of_the_model_that_it_names(
    folder: Path, models: list[Any], dataset: Dataset, open_client: Any
) -> None:
    answers = {type(model).__name__: expected(model, dataset) for model in models}
    users = [user for user, items in answers["GFCFModel"].items() if answers["UserKNNModel"][user] != items]
    assert len(users) > 10
    names: dict[str, str] = {}
    seen: list[tuple[str, str, list[Any]]] = []
    stop = threading.Event()

    with open_client(create_app(folder, reload_interval=0.01)) as client:

        def ask(seed: int) -> None:
            rng = np.random.default_rng(seed)
            while not stop.is_set():
                some = [str(user) for user in rng.choice(users, 3)]
                answer = client.ask("/recommend/batch", {"requests": [{"user_id": user, "k": 5} for user in some]})
                for user, found in zip(some, answer["answers"], strict=True):
                    seen.append((answer["model"], user, [item["item_id"] for item in found["items"]]))

        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for turn in range(8):
            model = models[turn % 2]
            if turn:
                model.save_pretrained(folder, dataset)
            wait_for(lambda model=model: client.get("/ready").json()["class"] == type(model).__name__)  # type: ignore[misc]
            names[client.get("/ready").json()["model"]] = type(model).__name__
            enough = len(seen) + 30
            wait_for(lambda enough=enough: len(seen) > enough)  # type: ignore[misc]
        stop.set()
        for thread in threads:
            thread.join()
        assert client.get("/ready").json()["last_swap_error"] is None
        assert "rectools_neural_swaps_total 7.0" in client.get("/metrics").text
        assert "rectools_neural_failed_swaps_total 0.0" in client.get("/metrics").text

    assert len(names) == 2
    assert {version for version, _, _ in seen} == names.keys()
    for version, user, items in seen:
        assert items == answers[names[version]][user]


@pytest.mark.parametrize("damage", ["weights", "config", "gone"])
def test_a_broken_folder_changes_nothing(
    folder: Path, models: list[Any], dataset: Dataset, open_client: Any, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    with open_client(create_app(folder, reload_interval=0.01)) as client:
        before = client.get("/ready").json()
        answer = client.ask("/recommend", {"user_id": "u000"})
        with caplog.at_level(logging.WARNING):
            if damage == "gone":
                shutil.rmtree(folder)
            else:
                name = {"weights": "weights.safetensors", "config": "config.json"}[damage]
                (folder / "new").write_bytes(b"{}")
                (folder / "new").replace(folder / name)
            wait_for(lambda: client.get("/ready").json()["last_swap_error"] is not None)
        told = client.get("/ready").json()
        assert told.pop("last_swap_error") in caplog.text
        assert told.items() <= before.items()
        assert client.ask("/recommend", {"user_id": "u000"}) == answer
        assert "rectools_neural_swaps_total 0.0" in client.get("/metrics").text
        shutil.rmtree(folder, ignore_errors=True)
        models[1].save_pretrained(folder, dataset)
        wait_for(lambda: client.get("/ready").json()["class"] == "UserKNNModel")
        assert client.get("/ready").json()["last_swap_error"] is None


def test_a_failure_is_told_once(reloader: Reloader, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "state.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            reloader.look()
    assert len(caplog.records) == 1


def test_a_folder_that_is_copied_file_by_file_is_taken_in_the_end(
    reloader: Reloader, folder: Path, models: list[Any], dataset: Dataset, tmp_path: Path
) -> None:
    models[1].save_pretrained(tmp_path / "other", dataset)
    for path in sorted((tmp_path / "other").iterdir()):  # the config, which lists the others, is the first one
        assert reloader.loaded.engine.model_name == "GFCFModel"
        shutil.copy(path, folder / path.name)
        reloader.look()
    assert reloader.loaded.engine.model_name == "UserKNNModel"
    assert reloader.error is None


def test_a_folder_that_stays_is_not_loaded_again(reloader: Reloader) -> None:
    loaded = reloader.loaded
    reloader.look()
    assert reloader.loaded is loaded


def test_the_old_model_is_freed(reloader: Reloader, folder: Path, models: list[Any], dataset: Dataset) -> None:
    old = weakref.ref(reloader.loaded.engine)
    models[1].save_pretrained(folder, dataset)
    reloader.look()
    assert reloader.loaded.engine.model_name == "UserKNNModel"
    assert old() is None  # at once, not when garbage is collected


def test_it_need_not_look(folder: Path, models: list[Any], dataset: Dataset, open_client: Any) -> None:
    with open_client(create_app(folder, reload_interval=0)) as client:
        models[1].save_pretrained(folder, dataset)
        assert RELOAD not in {thread.name for thread in threading.enumerate()}
        assert client.get("/ready").json()["class"] == "GFCFModel"


def test_an_application_leaves_no_thread_behind(folder: Path, open_client: Any) -> None:
    before = set(threading.enumerate())
    with open_client(create_app(folder, reload_interval=0.01)) as client:
        client.ask("/recommend", {"user_id": "u000"})
        assert len({thread.name for thread in set(threading.enumerate()) - before} & {ANSWERS, RELOAD}) == 2
    assert not {thread.name for thread in threading.enumerate()} & {ANSWERS, RELOAD}
