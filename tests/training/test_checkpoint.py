"""A killed fit goes on from the last finished epoch, and ends as if nothing had happened."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pandas.testing import assert_frame_equal
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset

from rectools_neural import DSSMModel, MultVAEModel, model_from_config
from rectools_neural.training import loop
from rectools_neural.training.checkpoint import Checkpoints

VALIDATION = {"name": "random", "size": 0.2, "patience": 2}
#: Steps after which each is killed, always in the middle of an epoch: of 5 or, with two parts in turns, of 20 steps.
KILLED = {
    "plain": ({"cls": "DSSMModel"}, 13),
    "schedule by epochs": ({"cls": "DSSMModel", "optimizer": {"schedule": "step"}}, 18),
    "plateau": ({"cls": "NCFModel", "optimizer": {"schedule": "plateau"}, "dropout": 0.3}, 13),
    "annealing and validation": ({"cls": "MultVAEModel", "validation": VALIDATION}, 13),
    "refit after the validation": ({"cls": "DSSMModel", "validation": {**VALIDATION, "refit": True}}, 33),
    "updates in turns": ({"cls": "RecVAEModel"}, 47),
    "graph": ({"cls": "LightGCNModel", "edge_dropout": 0.2, "loss": "bpr"}, 13),
    "pre-training": ({"cls": "NCFModel", "pretraining": {"alpha": 0.5}}, 42),
}


class Kill(Callback):
    """Kill the process after so many steps, over all runs of a fit."""

    steps_left = 0

    def on_train_batch_end(self, *args: Any) -> None:
        Kill.steps_left -= 1
        if Kill.steps_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def killed_trainer(**options: Any) -> Trainer:
    return Trainer(**{**options, "callbacks": [*options["callbacks"], Kill()]})


def make(config: dict[str, Any], **options: Any) -> Any:
    size = {"batch_size": 64} if config["cls"] == "LightGCNModel" else {"batch_size": 8}
    return model_from_config({"epochs": 6, "device": "cpu", **size, **config, **options})


def state(model: Any) -> tuple[dict[str, torch.Tensor], Any]:
    return model._fitted.module.state_dict(), model.history.drop(columns="seconds")


def assert_equal(model: Any, expected: Any) -> None:
    (weights, history), (expected_weights, expected_history) = state(model), state(expected)
    assert weights.keys() == expected_weights.keys()
    assert all(torch.equal(tensor, expected_weights[name]) for name, tensor in weights.items())
    assert_frame_equal(history, expected_history)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A forked process has no other, and the number of threads changes the last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def dataset(make_frames: Any) -> Dataset:
    return make_frames().dataset()


def fit_and_be_killed(config: dict[str, Any], dataset: Dataset, folder: Path, steps: int) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            Kill.steps_left = steps
            make(config, get_trainer_func=killed_trainer).fit(dataset, checkpoint_dir=folder)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize("case", KILLED)
def test_ends_as_if_nothing_had_happened(case: str, dataset: Dataset, tmp_path: Path) -> None:
    config, steps = KILLED[case]
    folder = tmp_path / "checkpoint"
    fit_and_be_killed(config, dataset, folder, steps)
    assert list(folder.iterdir())
    counted: list[int] = []

    class Count(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            counted.append(1)

    def counting_trainer(**options: Any) -> Trainer:
        return Trainer(**{**options, "callbacks": [*options["callbacks"], Count()]})

    uninterrupted = make(config, get_trainer_func=counting_trainer).fit(dataset)
    n_steps = len(counted)
    resumed = make(config, get_trainer_func=counting_trainer).fit(dataset, checkpoint_dir=folder)
    assert_equal(resumed, uninterrupted)
    # It did go on from there: of what came before the kill, only the unfinished epoch was repeated.
    assert len(counted) - n_steps < n_steps - steps + (21 if config["cls"] == "RecVAEModel" else 6)
    assert not folder.exists()


def test_rows_that_have_missed_steps(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "_LARGE", 0.1)
    config = {"cls": "DLRMModel", "loss": "bce", "batch_size": 32}
    fit_and_be_killed(config, dataset, tmp_path, 40)
    assert list(tmp_path.iterdir())
    assert_equal(make(config).fit(dataset, checkpoint_dir=tmp_path), make(config).fit(dataset))


def test_a_second_kill(dataset: Dataset, tmp_path: Path) -> None:
    config = {"cls": "DSSMModel"}
    fit_and_be_killed(config, dataset, tmp_path, 7)
    fit_and_be_killed(config, dataset, tmp_path, 12)
    assert_equal(make(config).fit(dataset, checkpoint_dir=tmp_path), make(config).fit(dataset))


def test_a_kill_of_the_whole_process(dataset: Dataset, tmp_path: Path) -> None:
    """From nothing but the files: the second process knows nothing of the first."""
    code = (
        "import sys; sys.path[:0] = sys.argv[1].split(':')\n"
        "import torch; torch.set_num_threads(1)\n"
        "import pickle, test_checkpoint as test\n"
        "dataset = pickle.load(open(sys.argv[2], 'rb'))\n"
        "test.Kill.steps_left = int(sys.argv[3])\n"
        "make = test.make({'cls': 'MultVAEModel'}, get_trainer_func=test.killed_trainer)\n"
        "make.fit(dataset, checkpoint_dir=sys.argv[4]).save(sys.argv[5])\n"
    )
    (tmp_path / "data").write_bytes(pickle.dumps(dataset))
    root = Path(__file__).parents[2]
    arguments = [f"{Path(__file__).parent}:{root}", tmp_path / "data", "13", tmp_path / "folder", tmp_path / "model"]
    run = [sys.executable, "-c", code, *map(str, arguments)]
    assert subprocess.run(run, check=False).returncode == -signal.SIGKILL
    assert not (tmp_path / "model").exists()
    run[5] = "0"
    assert subprocess.run(run, check=False).returncode == 0
    assert_equal(MultVAEModel.load(tmp_path / "model"), make({"cls": "MultVAEModel"}).fit(dataset))


@pytest.mark.parametrize(
    "other",
    [{"epochs": 5}, {"n_factors": 8}, {"seed": 1}, {"validation": VALIDATION}],
    ids=lambda other: next(iter(other)),
)
def test_other_options_are_refused(other: dict[str, Any], dataset: Dataset, tmp_path: Path) -> None:
    fit_and_be_killed({"cls": "DSSMModel"}, dataset, tmp_path, 13)
    with pytest.raises(ValueError, match=rf"`checkpoint_dir` {tmp_path} holds the training of a model with other"):
        make({"cls": "DSSMModel"}, **other).fit(dataset, checkpoint_dir=tmp_path)
    assert (tmp_path / "run-1.ckpt").exists()


def test_other_data_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    fit_and_be_killed({"cls": "DSSMModel"}, dataset, tmp_path, 13)
    fewer = Dataset.construct(dataset.get_raw_interactions().iloc[1:])
    renamed = Dataset.construct(dataset.get_raw_interactions().replace({Columns.Item: {100: 999}}))
    for changed in (fewer, renamed):
        with pytest.raises(ValueError, match="other options or data"):
            make({"cls": "DSSMModel"}).fit(changed, checkpoint_dir=tmp_path)


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 half of one"])
def test_broken_files_are_refused(content: bytes, dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "run-1.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"run-1.ckpt is no checkpoint that can be read: delete it"):
        DSSMModel(n_factors=8).fit(dataset, checkpoint_dir=tmp_path)
    assert (tmp_path / "run-1.ckpt").read_bytes() == content


def test_other_files_of_the_folder_stay(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    make({"cls": "DSSMModel"}, epochs=2).fit(dataset, checkpoint_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_write_that_fails_leaves_the_former_state(tmp_path: Path) -> None:
    checkpoint = Checkpoints(tmp_path).next_run("one")
    checkpoint.write(lambda path: torch.save({"fingerprint": "one", "number": 1}, path))

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        checkpoint.write(fail)
    assert checkpoint.read() == {"fingerprint": "one", "number": 1}
