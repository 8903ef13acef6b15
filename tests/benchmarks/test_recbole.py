from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rectools import Columns
from rectools.dataset import Dataset

from benchmarks.data import Fold
from benchmarks.recbole import (
    OURS,
    PAIRS,
    THEIRS,
    Run,
    Settings,
    compare,
    describe_run,
    fit_ours,
    fit_recbole,
    main,
    read_lists,
    screen_table,
    write_atomic_files,
)

SETTINGS = Settings(epochs=3, batch_size=16, pair_epochs=2, pair_batch_size=50, n_factors=8, threads=1)


def make_pairs(pairs: list[tuple[int, int]]) -> pd.DataFrame:
    return pd.DataFrame(pairs, columns=Columns.UserItem).assign(weight=1.0, datetime="2020-01-01")


@pytest.fixture
def fold() -> Fold:
    """Thirty users with six train items and two test items each; ids start at 100 and 1000."""
    rng = np.random.default_rng(0)
    rows = [(user, 1000 + item) for user in range(100, 130) for item in rng.permutation(20)[:8]]
    train = make_pairs([row for place, row in enumerate(rows) if place % 8 < 6])
    return Fold(0, 0, Dataset.construct(train), make_pairs([row for n, row in enumerate(rows) if n % 8 >= 6]), "")


def test_atomic_files(tmp_path: Path) -> None:
    train, test = make_pairs([(7, 30), (7, 10), (5, 30)]), make_pairs([(5, 10)])
    parts = write_atomic_files(tmp_path, "some", train, test)
    files = {path.name: path.read_text() for path in (tmp_path / "some").iterdir()}
    assert sorted(files) == sorted(f"some.{part}.inter" for part in parts)
    header = "user_id:token\titem_id:token\n"
    assert [files[f"some.{part}.inter"] for part in parts] == [
        f"{header}7\t30\n7\t10\n5\t30\n",
        f"{header}5\t10\n",
        f"{header}5\t10\n",
    ]


def test_lists_get_the_ids_of_the_data() -> None:
    reco = read_lists(np.array([5, 7]), [["30", "10"], ["20", "30"]], np.array([10, 20, 30]))
    assert reco[Columns.UserItem].values.tolist() == [[5, 30], [5, 10], [7, 20], [7, 30]]
    assert reco[Columns.Rank].tolist() == [1, 2, 1, 2]
    assert reco[Columns.Item].dtype == np.int64


def test_both_sides_get_the_same_sizes() -> None:
    autoencoder, graph = PAIRS["MultDAEModel"], PAIRS["LightGCNModel"]
    ours = {"cls": "MultDAEModel", "epochs": 3, "batch_size": 16, "n_factors": 8, "seed": 1}
    assert SETTINGS.our_config(autoencoder, 1) == ours | {"hidden": [600]}
    assert SETTINGS.our_config(graph, 1) == ours | {"cls": "LightGCNModel", "epochs": 2, "batch_size": 50}
    neumf = SETTINGS.our_config(PAIRS["NCFModel"], 1)
    # Each of RecBole's 50 rows is a positive or a negative.
    assert {name: neumf[name] for name in ("epochs", "batch_size", "n_factors")} == {
        "epochs": 2, "batch_size": 25, "n_factors": 8
    }  # fmt: skip
    for pair, expected in (
        (autoencoder, {"epochs": 3, "train_batch_size": 16, "latent_dimension": 8}),
        (PAIRS["RecVAEModel"], {"epochs": 3, "train_batch_size": 16, "latent_dimension": 8}),
        # Half of RecBole's number are means.
        (PAIRS["MultVAEModel"], {"epochs": 3, "train_batch_size": 16, "latent_dimension": 16}),
        (graph, {"epochs": 2, "train_batch_size": 50, "embedding_size": 8}),
        (
            PAIRS["NCFModel"],
            {"epochs": 2, "train_batch_size": 50, "mf_embedding_size": 8, "mlp_embedding_size": 8},
        ),
    ):
        config = SETTINGS.their_config(pair, 1)
        assert config == expected | {"seed": 1, "use_gpu": False, "show_progress": False}


def test_our_side(fold: Fold) -> None:
    users = np.unique(fold.test[Columns.User])
    found = fit_ours(SETTINGS.our_config(PAIRS["MultVAEModel"], 0), fold.train, users)
    assert len(found.epoch_seconds) == 3
    assert min(*found.epoch_seconds, found.recommend_seconds) > 0
    assert found.reco[Columns.User].value_counts().to_dict() == dict.fromkeys(users, 10)
    assert found.reco.merge(fold.train.get_raw_interactions(), on=Columns.UserItem).empty


def test_their_side_needs_their_environment(fold: Fold) -> None:
    # Not this project's module of the same name, which stands beside the script that is run.
    with pytest.raises(RuntimeError, match=r"recbole_worker failed:(.|\n)*No module named 'recbole'"):
        fit_recbole(Path(sys.executable), "MultiVAE", {}, fold, 1)


def test_run_is_summed_up() -> None:
    # User 1 finds the first of two, user 2 nothing.
    test = make_pairs([(1, 10), (1, 20), (2, 10)])
    reco = read_lists(np.array([1, 2]), [["10", "30"], ["20", "30"]], np.array([10, 20, 30]))
    found = describe_run(Run([5.0, 1.0, 2.0], 0.5, reco), test)
    ideal = 1 + 1 / np.log2(3)
    assert found == {"epoch_seconds": 2.0, "recommend_seconds": 0.5, "ndcg@10": pytest.approx(1 / ideal / 2)}


def row(model: str, side: str, seed: int, epoch: float, rank: float, ndcg: float) -> dict[str, Any]:
    values = {"epoch_seconds": epoch, "recommend_seconds": rank, "ndcg@10": ndcg}
    return {"model": model, "side": side, "seed": seed, **values}


COMPARISON = [
    {
        "model": "b",
        # The repetitions are compared one by one: 9/3, 2/1 and 40/2.
        "epoch_seconds": {OURS: 2.0, THEIRS: 9.0, "times_as_fast": 3.0},
        "recommend_seconds": {OURS: 0.5, THEIRS: 0.25, "times_as_fast": 0.5},
        "ndcg@10": {OURS: pytest.approx(0.4), THEIRS: pytest.approx(0.3)},
    },
    {
        "model": "a",
        "epoch_seconds": {OURS: 1.0, THEIRS: 1.5, "times_as_fast": 1.5},
        "recommend_seconds": {OURS: 1.0, THEIRS: 1.0, "times_as_fast": 1.0},
        "ndcg@10": {OURS: 0.25, THEIRS: 0.5},
    },
]
ROWS = [
    row("b", THEIRS, 0, 9.0, 0.25, 0.2),
    row("b", OURS, 0, 3.0, 0.5, 0.4),
    row("b", OURS, 1, 1.0, 0.5, 0.3),
    row("b", THEIRS, 1, 2.0, 0.25, 0.3),
    row("b", THEIRS, 2, 40.0, 0.25, 0.4),
    row("b", OURS, 2, 2.0, 0.5, 0.5),
    row("a", THEIRS, 0, 1.5, 1.0, 0.5),
    row("a", OURS, 0, 1.0, 1.0, 0.25),
]


def test_comparison_by_hand() -> None:
    assert compare(ROWS) == COMPARISON


def test_screen_table() -> None:
    header, first, second = (line.split() for line in screen_table(compare(ROWS)).splitlines())
    assert " ".join(header) == (
        "model epoch s, ours epoch s, RecBole epoch, times as fast rank s, ours rank s, RecBole rank, times as fast "
        "ndcg@10, ours ndcg@10, RecBole"
    )
    assert first == ["b", "2", "9", "3", "0.5", "0.25", "0.5", "0.4000", "0.3000"]
    assert second == ["a", "1", "1.5", "1.5", "1", "1", "1", "0.2500", "0.5000"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["MultVAEModle"], "unknown model `MultVAEModle`; did you mean `MultVAEModel`?"),
        (["--pair-batch-size", "0"], "--pair-batch-size must be at least 1, got 0"),
        (["MultVAEModel", "--environment", "{folder}"], "is not empty and no environment of this benchmark"),
    ],
)
def test_wrong_arguments(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").touch()
    output = tmp_path / "out" / "recbole.json"
    with pytest.raises(SystemExit):
        main([*(argument.format(folder=tmp_path) for argument in arguments), "--output", str(output)])
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_every_option_is_a_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for field in dataclasses.fields(Settings):
        assert f"--{field.name.replace('_', '-')}" in shown
