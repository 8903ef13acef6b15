"""Several processes train one model together, on the CPU."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rectools import Columns
from rectools.dataset import Dataset
from rectools.metrics import NDCG

from rectools_neural import DLRMModel, DSSMModel, LightGCNModel, MultVAEModel, NCFModel, RecVAEModel
from rectools_neural.data.reader import DatasetReader, Items
from rectools_neural.data.sources import PairBatches, UserBatches

#: Fits each model in two processes; the first one saves it, each writes down what it ended with.
SCRIPT = """
import os, pickle, sys
from pathlib import Path

import torch
import rectools_neural

torch.set_num_threads(1)
folder = Path(sys.argv[1])
dataset = pickle.loads((folder / "data").read_bytes())
for name, options in pickle.loads((folder / "models").read_bytes()):
    model = getattr(rectools_neural, name)(**options).fit(dataset)
    weights = model._fitted.module.state_dict()
    rank = torch.distributed.get_rank()
    torch.save((weights, model.history.to_dict("list")), folder / f"{name}.{rank}")
    assert model.is_main_process == (rank == 0)
    if model.is_main_process:
        model.save(folder / f"{name}.model")
"""
MODELS: dict[str, dict[str, Any]] = {
    "DSSMModel": {"epochs": 15},
    "MultVAEModel": {"epochs": 25, "learning_rate": 0.01},
    "NCFModel": {"epochs": 15, "validation": {"name": "random", "size": 0.2, "patience": 15}},
    "DLRMModel": {"epochs": 15, "loss": "bce"},
    "LightGCNModel": {"epochs": 15},
    "RecVAEModel": {"epochs": 10},
}
CLASSES: dict[str, Any] = {
    cls.__name__: cls for cls in (DSSMModel, MultVAEModel, NCFModel, DLRMModel, LightGCNModel, RecVAEModel)
}


def options_of(name: str, n_processes: int) -> dict[str, Any]:
    """Options of a model; the batches of all processes together are of one size."""
    options = {"n_factors": 16, "device": "cpu", **MODELS[name]}
    options["batch_size"] = (128 if name in ("LightGCNModel",) else 16) // n_processes
    return {**options, "devices": 2, "strategy": "ddp"} if n_processes == 2 else options


@pytest.fixture(scope="module")
def dataset(make_frames: Any) -> Dataset:
    return make_frames(n_users=80, n_per_user=10, features=None).dataset()


@pytest.fixture(scope="module")
def held_out(dataset: Dataset) -> tuple[Dataset, Any]:
    """A row of each user to judge by."""
    frame = dataset.get_raw_interactions()
    is_held = np.zeros(len(frame), bool)
    is_held[np.random.default_rng(0).permutation(len(frame))[:120]] = True
    return Dataset.construct(frame[~is_held]), frame[is_held]


def fit_in_two_processes(start: list[str], names: list[str], train: Dataset, folder: Path) -> None:
    (folder / "data").write_bytes(pickle.dumps(train))
    (folder / "models").write_bytes(pickle.dumps([(name, options_of(name, 2)) for name in names]))
    (folder / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *start, str(folder / "script.py"), str(folder)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    if not start:
        assert (done.stdout, done.stderr) == ("", "")
    assert "lightning_logs" not in os.listdir(folder)


@pytest.fixture(scope="module")
def fitted(held_out: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All models, by a script that Lightning starts once more for the second process."""
    folder = tmp_path_factory.mktemp("fitted")
    fit_in_two_processes([], list(MODELS), held_out[0], folder)
    return folder


def judge(model: Any, held_out: Any) -> float:
    train, test = held_out
    reco = model.recommend(np.unique(test[Columns.User]), train, k=5, filter_viewed=True)
    return float(NDCG(5, divide_by_achievable=True).calc(reco, test))


@pytest.mark.parametrize("name", MODELS)
def test_all_processes_end_with_one_model(name: str, fitted: Path) -> None:
    (weights, history), (other_weights, other_history) = (torch.load(fitted / f"{name}.{rank}") for rank in range(2))
    assert all(torch.equal(tensor, other_weights[key]) for key, tensor in weights.items())
    history, other_history = ({**h, "seconds": None} for h in (history, other_history))
    assert json.dumps(history) == json.dumps(other_history)


@pytest.mark.parametrize("name", MODELS)
def test_quality_is_that_of_one_process(name: str, fitted: Path, held_out: Any) -> None:
    alone = [judge(CLASSES[name](**options_of(name, 1), seed=seed).fit(held_out[0]), held_out) for seed in range(4)]
    together = judge(CLASSES[name].load(fitted / f"{name}.model"), held_out)
    spread = max(4 * float(np.std(alone, ddof=1)), 0.03)
    assert abs(together - np.mean(alone)) < spread, (together, alone)


def test_torchrun_ends_with_the_same(fitted: Path, held_out: Any, tmp_path: Path) -> None:
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    fit_in_two_processes(start, ["DSSMModel"], held_out[0], tmp_path)
    expected, (weights, _) = torch.load(fitted / "DSSMModel.0")[0], torch.load(tmp_path / "DSSMModel.1")
    assert all(torch.equal(tensor, weights[key]) for key, tensor in expected.items())


def test_processes_of_a_notebook(held_out: Any) -> None:
    """They are forked, and the weights and the history come back to the one that called."""
    code = (
        "import pickle, sys, torch\n"
        "from rectools_neural import DSSMModel\n"
        "torch.set_num_threads(1)\n"
        "dataset = pickle.load(sys.stdin.buffer)\n"
        "options = dict(n_factors=8, epochs=4, batch_size=16, device='cpu')\n"
        "options['validation'] = {'name': 'random', 'size': 0.2, 'patience': 9}\n"
        "model = DSSMModel(**options, devices=2, strategy='ddp_notebook').fit(dataset)\n"
        "best = model.history['ndcg@10'].max()\n"
        "print(len(model.history), model._fitted.module.training, 0 < best <= 1, torch.distributed.is_initialized())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(held_out[0]), env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split() == ["4", "False", "True", "False"]


class TestBatches:
    """Two processes with batches of 8 see together what one process sees with batches of 16."""

    @pytest.fixture(params=[UserBatches, PairBatches])
    def make(self, request: pytest.FixtureRequest, dataset: Dataset) -> Any:
        reader = DatasetReader.fit(dataset)
        items = Items(np.arange(len(reader.item_ids)), reader.item_features)
        users = reader.training_users(dataset)

        def make(batch_size: int, rank: int, world_size: int, **options: Any) -> Any:
            batches = request.param(users, items, batch_size, torch.Generator().manual_seed(3), **options)
            batches.share(rank, world_size)
            return batches

        return make

    def test_union_is_the_batch_of_one_process(self, make: Any) -> None:
        together, one, other = make(16, 0, 1), make(8, 0, 2), make(8, 1, 2)
        assert len(together) == len(one) == len(other)
        for _ in range(3):
            epochs = [list(batches) for batches in (together, one, other)]
            assert len({len(epoch) for epoch in epochs}) == 1
            for whole, first, second in zip(*epochs, strict=True):
                assert pairs_of(whole) == sorted(pairs_of(first) + pairs_of(second))
                assert abs(len(first.users) - len(second.users)) <= 8

    def test_what_is_drawn_is_not_the_same(self, make: Any) -> None:
        one, other = (make(8, rank, 2, entity_dropout=0.5) for rank in range(2))
        dropped = [[batch.users.rows.lt(0).tolist()[:4] for batch in batches] for batches in (one, other)]
        assert dropped[0] != dropped[1]


def pairs_of(batch: Any) -> list[tuple[int, int]]:
    items = batch.targets if batch.items.rows is None else batch.items.rows[batch.targets]
    return sorted(zip(batch.users.rows[batch.rows].tolist(), items.tolist(), strict=True))
