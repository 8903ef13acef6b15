"""
Speed of DLRMModel beside the loops of a course notebook, which scores pair by pair and trains row by row.

From the repository root: ``python -m benchmarks.notebook [--repeats N] [--output FILE]``. Users, tracks and values of
the fields are as many as the notebook's. The artists are those of the course's catalogue where the data folder has it
(``botify-2022``); everything else is generated: it serves to measure speed. Both sides rank with the same weights and
must make the same lists.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rectools import Columns
from rectools.dataset import Dataset, SparseFeatures
from rectools.dataset.features import DIRECT_FEATURE_VALUE
from scipy import sparse
from torch import nn
from torch.nn import functional as F
from torch.utils import data as torch_data

from benchmarks.files import write_atomically
from benchmarks.provenance import REPOSITORY, provenance
from benchmarks.speed import Measurement, screen_table
from rectools_neural import model_from_config
from rectools_neural.datasets import _default_places

OUTPUT = REPOSITORY / "benchmarks" / "results" / "notebook.json"

N_FACTORS = 16
BOTTOM = TOP = 16  # units of the only hidden layer
N_NEGATIVES = 4
ROWS_IN_BATCH = 256
LEARNING_RATE = 1e-3
SCORED_AT_ONCE = 4096  # pairs that the loop gives to its network
NUMBERS = ("length", "year")
K = 100
TOLERANCE = 1e-4  # of scores, for sums in another order


@dataclass(frozen=True)
class Sizes:
    """
    How much data.

    Parameters
    ----------
    users, tracks, artists, albums, titles, genres : int
        Values of the six categorical fields.
    positives : int
        Interactions to train on.
    looped_users, looped_positives : int
        What the loops get: their time grows in proportion.
    """

    users: int = 10_000
    tracks: int = 50_000
    artists: int = 11_512
    albums: int = 29_777
    titles: int = 39_602
    genres: int = 79
    positives: int = 130_000
    looped_users: int = 20
    looped_positives: int = 26_000

    @property
    def fields(self) -> dict[str, int]:
        """Values of each field of a track but the track itself, by name in the order in which our model has them."""
        return {"album": self.albums, "artist": self.artists, "genre": self.genres, "title": self.titles}


@dataclass(frozen=True)
class Catalogue:
    """
    Features of tracks, and who has listened to which.

    Parameters
    ----------
    fields : np.ndarray
        Value of each field, from 0, shape (n_tracks, n_fields).
    numbers : np.ndarray
        Standardised numbers, shape (n_tracks, n_numbers).
    positives : np.ndarray
        Users and tracks, distinct pairs, all users and all tracks among them, shape (n_positives, 2).
    has_real_artists : bool
        Whether the artists are those of the course.
    """

    fields: np.ndarray
    numbers: np.ndarray
    positives: np.ndarray
    has_real_artists: bool


def make_catalogue(sizes: Sizes, places: Sequence[Path]) -> Catalogue:
    """
    Generate what is not real.

    Parameters
    ----------
    sizes : Sizes
        How much.
    places : sequence of Path
        Where the course's catalogue may be.

    Returns
    -------
    Catalogue
        Always the same for the same sizes and files.
    """
    rng = np.random.default_rng(0)
    fields = np.column_stack([_every_value(rng, sizes.tracks, n) for n in sizes.fields.values()])
    files = [place / "botify-2022" / "tracks.csv" for place in places]
    artists = next((pd.read_csv(file)["artist"] for file in files if file.is_file()), pd.Series())
    is_real = len(artists) == sizes.tracks
    if is_real:
        fields[:, list(sizes.fields).index("artist")] = pd.factorize(artists)[0]
    numbers = rng.standard_normal((sizes.tracks, len(NUMBERS))).astype(np.float32)
    keys = _every_value(rng, sizes.tracks, sizes.users) * sizes.tracks + np.arange(sizes.tracks)
    while len(keys) < sizes.positives:
        more = rng.integers(sizes.users * sizes.tracks, size=sizes.positives - len(keys))
        keys = np.unique(np.concatenate([keys, more]))
    positives = np.column_stack(np.divmod(keys, sizes.tracks))
    return Catalogue(fields, (numbers - numbers.mean(axis=0)) / numbers.std(axis=0), positives, is_real)


def _every_value(rng: np.random.Generator, n: int, n_values: int) -> np.ndarray:
    """Draw values from 0, each at least once."""
    values = rng.integers(n_values, size=n)
    values[rng.permutation(n)[:n_values]] = np.arange(n_values)
    return values


def as_dataset(catalogue: Catalogue) -> Dataset:
    """
    Turn a catalogue into what our model takes.

    Parameters
    ----------
    catalogue : Catalogue
        The catalogue.

    Returns
    -------
    Dataset
        Its numbers are the external ids.
    """
    dataset = Dataset.construct(
        pd.DataFrame(catalogue.positives, columns=Columns.UserItem).assign(weight=1, datetime="2022-01-01")
    )
    rows = np.arange(len(catalogue.fields))
    names: list[tuple[str, Any]] = [(name, DIRECT_FEATURE_VALUE) for name in NUMBERS]
    parts = [sparse.csr_matrix(catalogue.numbers)]
    for name, values in zip(Sizes().fields, catalogue.fields.T, strict=True):
        names += [(name, value) for value in range(values.max() + 1)]
        parts.append(sparse.csr_matrix((np.ones(len(rows), np.float32), (rows, values))))
    features = SparseFeatures(sparse.hstack(parts, format="csr"), tuple(names))
    return Dataset(
        dataset.user_id_map,
        dataset.item_id_map,
        dataset.interactions,
        item_features=features.take(dataset.item_id_map.external_ids),
    )


# ---------------------------------------------------------------------- the notebook's side


class PlainDLRM(nn.Module):
    """
    The network as one writes it down: a table a field, a bottom perceptron, all dot products, a top perceptron.

    Parameters
    ----------
    sizes : sequence of int
        Values of each field; user and track come first.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        # The last number of a value is its own weight in the score.
        self.tables = nn.ModuleList(nn.Embedding(size, N_FACTORS + 1) for size in sizes)
        self.linear = nn.Linear(len(NUMBERS), 1)
        self.bottom = nn.Sequential(nn.Linear(len(NUMBERS), BOTTOM), nn.ReLU(), nn.Linear(BOTTOM, N_FACTORS), nn.ReLU())
        n_vectors = len(sizes) + 1
        self.one, self.other = torch.triu_indices(n_vectors, n_vectors, 1)
        self.top = nn.Sequential(nn.Linear(N_FACTORS + len(self.one), TOP), nn.ReLU(), nn.Linear(TOP, 1))

    def forward(self, categories: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        """Score pairs, from shapes (n, n_fields) and (n, n_numbers)."""
        values = torch.stack([table(categories[:, field]) for field, table in enumerate(self.tables)], dim=1)
        bottom = self.bottom(numbers)
        vectors = torch.cat([values[:, :, :-1], bottom.unsqueeze(1)], dim=1)
        products = torch.bmm(vectors, vectors.transpose(1, 2))[:, self.one, self.other]
        deep = self.top(torch.cat([bottom, products], dim=1)) + self.linear(numbers)
        scores: torch.Tensor = deep.squeeze(1) + values[:, :, -1].sum(dim=1)
        return scores


def with_weights_of(model: Any, sizes: Sizes) -> PlainDLRM:
    """
    Give a plain network the weights of our fitted model.

    Parameters
    ----------
    model : DLRMModel
        Fitted on the dataset of a catalogue.
    sizes : Sizes
        Of that catalogue.

    Returns
    -------
    PlainDLRM
        Its scores are those of the model, but for a constant.
    """
    ours, reader = model._fitted.module, model._fitted.reader
    plain: Any = PlainDLRM([sizes.users, sizes.tracks, *sizes.fields.values()])
    with torch.no_grad():
        for table, ids, side in zip(
            plain.tables, (reader.user_ids, reader.item_ids), (ours.users, ours.items), strict=False
        ):
            table.weight[torch.from_numpy(ids)] = torch.cat([side.ids.known, side.bias], dim=1)
        values = torch.cat([ours.items.features.categories, ours.items.linear.categories], dim=1)
        tables = dict(zip(sizes.fields, plain.tables[2:], strict=True))
        for row, (name, value) in enumerate(reader.item_encoder.schema.values):
            tables[name].weight[value] = values[row]
        plain.linear.weight.copy_(ours.items.linear.numeric.weight)
        plain.linear.bias.zero_()
        plain.bottom.load_state_dict(ours.items.features.bottom.state_dict())
        # The first layer sees the numbers, the products of the user with all the others, and those of the others.
        own = ours.first[1].weight
        cross = ours.network.cross.weight.squeeze(1)
        plain.top[0].weight.copy_(torch.cat([own[:, :N_FACTORS], cross, own[:, N_FACTORS:]], dim=1))
        plain.top[0].bias.copy_(ours.first_bias)
        plain.top[2].load_state_dict(ours.network.rest[1].state_dict())
    return plain  # type: ignore[no-any-return]


def rank_in_loop(network: PlainDLRM, catalogue: Catalogue, users: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """
    Rank as the notebook: a table of all pairs of a user, batch by batch through the network, sorted.

    Parameters
    ----------
    network : PlainDLRM
        The network.
    catalogue : Catalogue
        The tracks.
    users : sequence of int
        Whom to rank for.

    Returns
    -------
    tuple
        Scores of all tracks, shape (n_users, n_tracks), and the best tracks, shape (n_users, K).
    """
    columns = ["track", *Sizes().fields]
    tracks = pd.DataFrame(np.column_stack([np.arange(len(catalogue.fields)), catalogue.fields]), columns=columns)
    numbers = torch.from_numpy(catalogue.numbers)
    scores, best = [], []
    for user in users:
        rows = torch.from_numpy(tracks.assign(user=user)[["user", *columns]].to_numpy())
        with torch.no_grad():
            batches = zip(rows.split(SCORED_AT_ONCE), numbers.split(SCORED_AT_ONCE), strict=True)
            scores.append(torch.cat([network(*batch) for batch in batches]).numpy())
        best.append(np.argsort(-scores[-1])[:K])
    return np.array(scores), np.array(best)


class Samples(torch_data.Dataset[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]):
    """
    Positives and random negatives, one row at a time.

    Parameters
    ----------
    catalogue : Catalogue
        The tracks.
    positives : np.ndarray
        Users and tracks, shape (n_positives, 2).
    """

    def __init__(self, catalogue: Catalogue, positives: np.ndarray) -> None:
        rng = np.random.default_rng(0)
        negatives = positives.repeat(N_NEGATIVES, axis=0)
        negatives[:, 1] = rng.integers(len(catalogue.fields), size=len(negatives))
        self.pairs = np.concatenate([positives, negatives])
        self.labels = np.arange(len(self.pairs)) < len(positives)
        self.fields, self.numbers = catalogue.fields, catalogue.numbers

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        user, track = self.pairs[index]
        categories = torch.tensor([user, track, *self.fields[track]])
        return categories, torch.tensor(self.numbers[track]), torch.tensor(float(self.labels[index]))


def train_in_loop(catalogue: Catalogue, sizes: Sizes) -> float:
    """
    Train as the notebook: row by row from a data loader.

    Parameters
    ----------
    catalogue : Catalogue
        The data.
    sizes : Sizes
        How many positives the loop gets.

    Returns
    -------
    float
        Seconds of an epoch on all positives, extrapolated from those.
    """
    order = np.random.default_rng(0).permutation(len(catalogue.positives))[: sizes.looped_positives]
    samples = Samples(catalogue, catalogue.positives[order])
    network = PlainDLRM([sizes.users, sizes.tracks, *sizes.fields.values()])
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    loader = torch_data.DataLoader(samples, batch_size=ROWS_IN_BATCH, shuffle=True)
    started = time.perf_counter()
    for categories, numbers, labels in loader:
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(network(categories, numbers), labels).backward()
        optimizer.step()
    return (time.perf_counter() - started) * len(catalogue.positives) / len(order)


# ---------------------------------------------------------------------- the comparison


def our_config(epochs: int) -> dict[str, Any]:
    """Configure our model: the same network, and batches with as many rows."""
    return {
        "cls": "DLRMModel",
        "n_factors": N_FACTORS,
        "bottom_hidden": [BOTTOM],
        "top_hidden": [TOP],
        "interaction": "dot",
        "shortcut": False,  # the network of the notebook has none
        "loss": "bce",
        "negatives": {"name": "uniform", "n": N_NEGATIVES},
        "batch_size": ROWS_IN_BATCH // (1 + N_NEGATIVES),
        "learning_rate": LEARNING_RATE,
        "epochs": epochs,
        "seed": 0,
    }


def check_lists(scores: np.ndarray, lists: np.ndarray) -> None:
    """
    Make sure that lists are the best ones, up to ties.

    Parameters
    ----------
    scores : np.ndarray
        True scores of all tracks, shape (n_users, n_tracks).
    lists : np.ndarray
        Tracks, best first, shape (n_users, k).

    Raises
    ------
    RuntimeError
        If they are not.
    """
    best = -np.sort(-scores, axis=1)[:, : lists.shape[1]]
    worst = np.abs(np.take_along_axis(scores, lists, axis=1) - best).max()
    repeated = any(len(np.unique(tracks)) < len(tracks) for tracks in lists)
    if repeated or worst > TOLERANCE:
        raise RuntimeError(f"the lists of the model are not the best ones: off by up to {worst:.2g}")


def run(sizes: Sizes, repeats: int) -> dict[str, Any]:
    """
    Measure both sides in turn.

    Parameters
    ----------
    sizes : Sizes
        How much data.
    repeats : int
        How often everything is measured.

    Returns
    -------
    dict
        JSON-ready, as that of `benchmarks.speed.run`, and ``has_real_artists``.

    Raises
    ------
    RuntimeError
        If the two sides rank otherwise.
    """
    catalogue = make_catalogue(sizes, _default_places())
    dataset = as_dataset(catalogue)
    users = np.arange(sizes.users)
    asked = users[:: -(-sizes.users // sizes.looped_users)]
    names = ("our epoch", "their epoch", "our ranking", "their users")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(repeats):
        seconds["their epoch"].append(train_in_loop(catalogue, sizes))
        # The first epoch of a process also pays for what the libraries set up.
        model: Any = model_from_config(our_config(epochs=2)).fit(dataset)
        seconds["our epoch"].append(float(model.history["seconds"].iloc[-1]))
        network = with_weights_of(model, sizes)
        started = time.perf_counter()
        scores, _ = rank_in_loop(network, catalogue, asked.tolist())
        seconds["their users"].append((time.perf_counter() - started) / len(asked))
        started = time.perf_counter()
        reco = model.recommend(users, dataset, k=K, filter_viewed=False)
        seconds["our ranking"].append(time.perf_counter() - started)
        check_lists(scores, _lists(reco, asked))
        print({name: values[-1] for name, values in seconds.items()}, file=sys.stderr, flush=True)
    parts = {"rank": _ranking(seconds, sizes), "train": _training(seconds, sizes)}
    return {
        "provenance": provenance(),
        "threads": torch.get_num_threads(),
        "repeats": repeats,
        "sizes": vars(sizes),
        "has_real_artists": catalogue.has_real_artists,
        "parts": {part: [{**vars(m), "median": m.median} for m in found] for part, found in parts.items()},
    }


def _lists(reco: pd.DataFrame, users: np.ndarray) -> np.ndarray:
    wanted = reco[reco[Columns.User].isin(users)].sort_values([Columns.User, Columns.Rank])
    return wanted[Columns.Item].to_numpy().reshape(len(users), -1)


def _ranking(seconds: Mapping[str, list[float]], sizes: Sizes) -> list[Measurement]:
    name = f"top-{K} of {sizes.tracks:,} tracks"
    ours, theirs = seconds["our ranking"], [value * sizes.users for value in seconds["their users"]]
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return [
        Measurement(f"loop over pairs, {name}", "users a second", [1 / value for value in seconds["their users"]]),
        Measurement(f"DLRM, {name} for {sizes.users:,} users", "s", ours),
        Measurement("DLRM, ranking against the loop", "times as fast", ratios, "at least 100"),
    ]


def _training(seconds: Mapping[str, list[float]], sizes: Sizes) -> list[Measurement]:
    name = f"epoch of {sizes.positives:,} positives with {N_NEGATIVES} negatives each, {ROWS_IN_BATCH} rows a batch"
    ratios = [b / a for a, b in zip(seconds["our epoch"], seconds["their epoch"], strict=True)]
    return [
        Measurement(f"loop over rows, {name}, extrapolated", "s", seconds["their epoch"]),
        Measurement(f"DLRM, {name}", "s", seconds["our epoch"]),
        Measurement("DLRM, epoch against the loop", "times as fast", ratios, "at least 5"),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Arguments; those of the process by default.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.notebook", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--repeats", type=int, default=3, help="how often everything is measured (default: 3)")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="FILE", help="(default: %(default)s)")
    given = parser.parse_args(arguments)
    if given.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {given.repeats}")
    try:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        result = run(Sizes(), given.repeats)
        write_atomically(given.output, json.dumps(result, indent=1, allow_nan=False) + "\n")
    except (ValueError, RuntimeError, OSError) as error:
        parser.error(str(error))
    print(screen_table(result))


if __name__ == "__main__":
    main()
