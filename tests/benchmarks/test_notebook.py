from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rectools import Columns

from benchmarks import notebook
from benchmarks.notebook import (
    N_NEGATIVES,
    NUMBERS,
    Catalogue,
    K,
    PlainDLRM,
    Samples,
    Sizes,
    as_dataset,
    check_lists,
    main,
    make_catalogue,
    our_config,
    rank_in_loop,
    run,
    train_in_loop,
    with_weights_of,
)
from rectools_neural import model_from_config
from rectools_neural.registry import MODELS

TINY = Sizes(30, 200, 12, 15, 40, 5, positives=400, looped_users=6, looped_positives=100)
has_dlrm = pytest.mark.skipif("DLRMModel" not in MODELS, reason="there is no DLRMModel")


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return make_catalogue(TINY, [])


def test_catalogue_has_the_promised_sizes(catalogue: Catalogue) -> None:
    assert not catalogue.has_real_artists
    for values, n in zip(catalogue.fields.T, TINY.fields.values(), strict=True):
        assert np.array_equal(np.unique(values), np.arange(n))
    assert len(np.unique(catalogue.positives, axis=0)) == 400
    for values, n in zip(catalogue.positives.T, (30, 200), strict=True):
        assert np.array_equal(np.unique(values), np.arange(n))
    assert make_catalogue(TINY, []).positives.tolist() == catalogue.positives.tolist()


def test_real_artists(tmp_path: Path) -> None:
    (tmp_path / "botify-2022").mkdir()
    names = [f"somebody {track % 7}" for track in range(200)]
    rows = [f"{name},title,{track}" for track, name in enumerate(names)]
    (tmp_path / "botify-2022" / "tracks.csv").write_text("\n".join(["artist,title,track", *rows]))
    catalogue = make_catalogue(TINY, [tmp_path / "elsewhere", tmp_path])
    assert catalogue.has_real_artists
    assert catalogue.fields[:, 1].tolist() == [track % 7 for track in range(200)]
    # A catalogue of another size is of another course.
    assert not make_catalogue(dataclasses.replace(TINY, tracks=199), [tmp_path]).has_real_artists


def test_dataset_has_the_features_of_the_catalogue(catalogue: Catalogue) -> None:
    dataset = as_dataset(catalogue)
    assert np.array_equal(dataset.get_raw_interactions()[Columns.UserItem], catalogue.positives)
    names, values = dataset.item_features.names, dataset.item_features.get_sparse().toarray()
    for row, track in enumerate(dataset.item_id_map.external_ids):
        assert values[row, : len(NUMBERS)] == pytest.approx(catalogue.numbers[track])
        found = [names[column] for column in np.flatnonzero(values[row, len(NUMBERS) :]) + len(NUMBERS)]
        assert found == list(zip(TINY.fields, catalogue.fields[track], strict=True))


def test_plain_network_by_hand() -> None:
    torch.manual_seed(0)
    network = PlainDLRM([3, 4, 5])
    categories, numbers = torch.tensor([[2, 0, 4]]), torch.tensor([[0.5, -1.0]])
    values = [table.weight[value] for table, value in zip(network.tables, categories[0], strict=True)]
    bottom = network.bottom(numbers)[0]
    vectors = [*(value[:-1] for value in values), bottom]
    products = [vectors[i] @ vectors[j] for i in range(4) for j in range(i + 1, 4)]
    expected = network.top(torch.cat([bottom, torch.stack(products)])) + network.linear(numbers[0])
    expected = expected + sum(value[-1] for value in values)
    assert network(categories, numbers).tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_loop_ranks_by_the_scores_of_the_network(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    network = PlainDLRM([30, 200, *TINY.fields.values()])
    scores, lists = rank_in_loop(network, catalogue, [3, 17])
    for user, own, tracks in zip((3, 17), scores, lists, strict=True):
        row = torch.tensor([[user, 123, *catalogue.fields[123]]])
        score = network(row, torch.from_numpy(catalogue.numbers[[123]])).item()
        assert own[123] == pytest.approx(score, abs=1e-4)
        assert tracks.tolist() == np.argsort(-own)[:K].tolist()
    monkeypatch.setattr(notebook, "SCORED_AT_ONCE", 7)
    np.testing.assert_allclose(rank_in_loop(network, catalogue, [3, 17])[0], scores, atol=1e-4)


def test_samples(catalogue: Catalogue) -> None:
    samples = Samples(catalogue, catalogue.positives[:10])
    rows = [samples[index] for index in range(len(samples))]
    assert len(rows) == 10 * (1 + N_NEGATIVES)
    assert [label.item() for *_, label in rows] == [1.0] * 10 + [0.0] * 10 * N_NEGATIVES
    users = [categories[0].item() for categories, *_ in rows]
    assert users == [*catalogue.positives[:10, 0], *catalogue.positives[:10, 0].repeat(N_NEGATIVES)]
    categories, numbers, _ = rows[4]
    track = catalogue.positives[4, 1]
    assert categories.tolist()[1:] == [track, *catalogue.fields[track]]
    assert numbers.tolist() == pytest.approx(catalogue.numbers[track].tolist())


def test_time_of_the_loop_is_that_of_all_positives(catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter([10.0, 12.0])
    monkeypatch.setattr(notebook.time, "perf_counter", lambda: next(ticks))
    assert train_in_loop(catalogue, TINY) == 2.0 * 400 / 100


def test_lists_are_checked_up_to_ties() -> None:
    scores = np.array([[3.0, 1.0, 2.0, 2.0 + 1e-6, 0.0]])
    check_lists(scores, np.array([[0, 2]]))
    check_lists(scores, np.array([[0, 3]]))
    for wrong in ([0, 1], [2, 0], [0, 0], [3, 3]):
        with pytest.raises(RuntimeError, match="are not the best ones"):
            check_lists(scores, np.array([wrong]))


@has_dlrm
def test_both_sides_have_the_same_scores(catalogue: Catalogue) -> None:
    dataset = as_dataset(catalogue)
    model = model_from_config(our_config(epochs=2)).fit(dataset)
    scores, _ = rank_in_loop(with_weights_of(model, TINY), catalogue, [4, 25])
    assert scores.std() > 1e-3
    reco = model.recommend([4, 25], dataset, k=200, filter_viewed=False)
    for user, own in zip((4, 25), scores, strict=True):
        ours = reco[reco[Columns.User] == user].set_index(Columns.Item)[Columns.Score].sort_index()
        difference = ours.to_numpy() - own
        assert difference == pytest.approx(np.full(200, difference.mean()), abs=1e-5)


@has_dlrm
def test_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebook, "_default_places", lambda: [])
    result = run(TINY, 2)
    json.dumps(result)
    assert list(result["parts"]) == ["rank", "train"]
    for part in result["parts"].values():
        for measured in part:
            assert len(measured["values"]) == 2
            assert min(measured["values"]) > 0


def test_wrong_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--repeats", "0"])
    assert "--repeats must be at least 1, got 0" in capsys.readouterr().err
