"""The published evaluation protocols: how each cuts its data, what it leaves out of the ranking, how it measures.

Every table of results has its own split and its own metric definitions, so numbers compare only inside one protocol.
A new protocol is one more `Protocol` in `PROTOCOLS`.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import attr
import numpy as np
import numpy.typing as npt
import pandas as pd
from rectools import Columns
from rectools.dataset import Dataset, Interactions
from rectools.models.base import ModelBase

from rectools_neural.datasets import _default_places

Hits = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]
PerUser = npt.NDArray[np.float64]

#: Pairs of users and items that are ranked at once where everything has to be ranked.
RANKED_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class Cut:
    """
    One evaluation: what a model learns from and what it is asked.

    Attributes
    ----------
    train : Dataset
        Interactions with weight 1, and the features of all users and items. Its pairs are never ranked again.
    test : pd.DataFrame
        Columns `user_id`, `item_id`: the relevant pairs. Each of its users has interactions in `train`, or in
        `histories` where there are any.
    hidden : pd.DataFrame, optional
        Columns `user_id`, `item_id`: pairs outside `train` that the ranking leaves out as well.
    histories : Dataset, optional
        `train` and the known interactions of the users that are asked, where these are no part of it: what models
        recommend from. Users and items have the same internal ids as in `train`. Its pairs are never ranked again.
    candidates : pd.DataFrame, optional
        Columns `user_id`, `item_id`: the only pairs that are ranked, those of `test` among them.
    """

    train: Dataset
    test: pd.DataFrame
    hidden: pd.DataFrame | None = None
    histories: Dataset | None = None
    candidates: pd.DataFrame | None = None

    def recommend(self, model: ModelBase[Any], k: int) -> pd.DataFrame:
        """
        Rank the items of `train` for the users of `test`.

        Parameters
        ----------
        model : ModelBase
            Model fitted on `train`.
        k : int
            Length of the lists.

        Returns
        -------
        pd.DataFrame
            Columns `user_id`, `item_id`, `score`, `rank`; at most `k` rows a user.
        """
        if self.candidates is not None:
            return self._rank_candidates(model, self.candidates, k)
        hot = np.unique(self.train.get_raw_interactions()[Columns.Item])
        reserve = 0 if self.hidden is None else int(self.hidden[Columns.User].value_counts().max())
        reco: pd.DataFrame = model.recommend(
            users=np.unique(self.test[Columns.User]),
            dataset=self.train if self.histories is None else self.histories,
            k=k + reserve,
            filter_viewed=True,
            # Models with features rank items of which they have seen nothing else: the protocols do not. Some models
            # take several times as long with a list of items, so there is none without need.
            items_to_recommend=hot if hot.size < self.train.item_id_map.size else None,
        )
        return reco if self.hidden is None else _without(reco, self.hidden, k)

    def _rank_candidates(self, model: ModelBase[Any], candidates: pd.DataFrame, k: int) -> pd.DataFrame:
        """Let the model rank everything, a few users at a time, and keep the candidates: any model can be asked so."""
        hot = np.unique(self.train.get_raw_interactions()[Columns.Item])
        users = np.unique(self.test[Columns.User])
        parts = []
        for chunk in np.array_split(users, math.ceil(users.size * hot.size / RANKED_AT_ONCE)):
            reco: pd.DataFrame = model.recommend(
                users=chunk,
                dataset=self.train,
                k=hot.size,
                filter_viewed=False,
                items_to_recommend=hot if hot.size < self.train.item_id_map.size else None,
            )
            parts.append(_first(reco.merge(candidates, on=Columns.UserItem), k))
        return pd.concat(parts, ignore_index=True)


def _without(reco: pd.DataFrame, hidden: pd.DataFrame, k: int) -> pd.DataFrame:
    """Drop the hidden pairs, close the gaps in the ranks and keep the first `k` of each user."""
    marked = reco.merge(hidden, on=Columns.UserItem, how="left", indicator=True)
    return _first(marked[marked["_merge"] == "left_only"].drop(columns="_merge"), k)


def _first(reco: pd.DataFrame, k: int) -> pd.DataFrame:
    """Close the gaps in the ranks and keep the first `k` of each user."""
    closed = reco.assign(**{Columns.Rank: reco.groupby(Columns.User).cumcount() + 1})
    first: pd.DataFrame = closed[closed[Columns.Rank] <= k]
    return first.reset_index(drop=True)


# ---- splits ----------------------------------------------------------------------------------------------------------


def _column(dataset: Dataset, name: str) -> pd.Series:
    interactions = dataset.interactions.df
    if name not in interactions:
        raise ValueError(
            f"The interactions have no column '{name}', which the protocol needs; "
            "build the dataset with Dataset.construct(..., keep_extra_cols=True)."
        )
    column: pd.Series = interactions[name]
    return column


def _binary(dataset: Dataset) -> Dataset:
    return attr.evolve(dataset, interactions=Interactions(dataset.interactions.df.assign(**{Columns.Weight: 1.0})))


def _liked(dataset: Dataset, lowest: float = 3) -> Dataset:
    """Keep the interactions with at least this rating."""
    return dataset.filter_interactions(np.flatnonzero(_column(dataset, "rating") >= lowest))


def _cut(
    dataset: Dataset,
    train: pd.Series,
    test: pd.Series,
    *,
    hidden: pd.Series | None = None,
    drop_cold_items: bool = False,
) -> Cut:
    """Cut by row masks; relevant pairs of users without train rows go, and those of items without if asked."""
    pairs = dataset.get_raw_interactions()[Columns.UserItem]
    train_rows, test_rows = train.to_numpy(), test.to_numpy()
    learnt, asked = pairs[train_rows], pairs[test_rows]
    asked = asked[asked[Columns.User].isin(learnt[Columns.User])]
    if drop_cold_items:
        asked = asked[asked[Columns.Item].isin(learnt[Columns.Item])]
    return Cut(
        train=_binary(dataset.filter_interactions(np.flatnonzero(train_rows))),
        test=asked.reset_index(drop=True),
        hidden=None if hidden is None else pairs[hidden.to_numpy()].reset_index(drop=True),
    )


def _place_in_group(keys: npt.NDArray[np.float64], groups: pd.Series) -> pd.Series:
    """1-based place of each row among the rows of its group, by ascending key."""
    return pd.Series(keys, index=groups.index).groupby(groups).rank(method="first").astype(int)


def _one_stream(items: pd.Series, seed: int) -> npt.NDArray[np.float64]:
    """Keys of the present `python_stratified_split`: one stream of random numbers over all rows."""
    return np.random.RandomState(seed).rand(len(items))


def _restarted_per_item(items: pd.Series, seed: int) -> npt.NDArray[np.float64]:
    """Keys of `python_stratified_split` before it was vectorised: the seed starts anew for every item."""
    keys = np.empty(len(items))
    for rows in items.groupby(items).indices.values():
        keys[rows[np.random.RandomState(seed).permutation(len(rows))]] = np.arange(len(rows))
    return keys


def split_by_item(
    dataset: Dataset, seed: int, shuffle: Callable[[pd.Series, int], npt.NDArray[np.float64]] = _one_stream
) -> Cut:
    """
    Cut each item's interactions 3:1 at random.

    The random numbers and the rounding are those of `python_stratified_split(filter_by="item", ratio=0.75)` in
    microsoft/recommenders: on the same rows in the same order both cut alike.

    Parameters
    ----------
    dataset : Dataset
        Interactions in the order of the published file.
    seed : int
        Seed of the shuffle.
    shuffle : Callable
        (item of each row, seed) to the keys that order the rows of an item.

    Returns
    -------
    Cut
        About 75 % of the rows in the train part.
    """
    items = dataset.interactions.df[Columns.Item]
    in_train = _place_in_group(shuffle(items, seed), items) <= (0.75 * items.map(items.value_counts())).round()
    return _cut(dataset, in_train, ~in_train)


def split_by_time(dataset: Dataset) -> Cut:
    """
    Hold out the last fifth of the timeline, as RePlay's `TimeSplitter(0.2)` without cold users and items.

    Parameters
    ----------
    dataset : Dataset
        Interactions with their times; rows as late as the first held-out one are held out too.

    Returns
    -------
    Cut
        The test part has only users and items of the train part.
    """
    times = dataset.interactions.df[Columns.Datetime]
    start = times.sort_values().iloc[int(len(times) * (1 - 0.2))]
    return _cut(dataset, times < start, times >= start, drop_cold_items=True)


def parts_per_user(users: pd.Series, ratios: Sequence[float], seed: int) -> pd.Series:
    """
    Deal each user's rows to parts at random, with the part sizes of RecBole's `split_by_ratio`.

    Parts after the first are rounded down, but get one row where that would leave them empty and the first part can
    spare one.

    Parameters
    ----------
    users : pd.Series
        User of each row.
    ratios : Sequence[float]
        Shares of the parts, sum 1.
    seed : int
        Seed of the shuffle.

    Returns
    -------
    pd.Series
        Part number of each row, from 0.
    """
    codes, _ = pd.factorize(users)
    totals = np.bincount(codes)
    sizes = np.floor(np.outer(totals, ratios)).astype(int)
    sizes[:, 0] = totals - sizes[:, 1:].sum(axis=1)
    for part in range(len(ratios) - 1, 0, -1):
        lends = (sizes[:, 0] > 1) & (ratios[part] * totals < 1)
        sizes[lends, part] += 1
        sizes[lends, 0] -= 1
    place = _place_in_group(np.random.default_rng(seed).random(len(users)), users).to_numpy()
    ends = sizes.cumsum(axis=1)[:, :-1]
    return pd.Series((place[:, None] > ends[codes]).sum(axis=1), index=users.index)


def _split_tenths(dataset: Dataset, seed: int, *, validate: bool) -> Cut:
    """8:1:1 per user; the train part is the same for the validation tenth and the test tenth."""
    dataset = _liked(dataset)
    part = parts_per_user(dataset.interactions.df[Columns.User], (0.8, 0.1, 0.1), seed)
    if validate:
        return _cut(dataset, part == 0, part == 1)
    return _cut(dataset, part == 0, part == 2, hidden=part == 1)


def hold_out_users(dataset: Dataset, seed: int, *, n_users: int, validate: bool) -> Cut:
    """
    Hold out whole users, as Liang et al. 2018: the model learns from the others and meets these when it is asked.

    Ratings of 4 and 5 count, of users with at least five. Three quarters of the rows of a held-out user are the history
    to recommend from, the rest is the truth; both have only items of the train part.

    Parameters
    ----------
    dataset : Dataset
        Interactions with ratings.
    seed : int
        Chooses the users and deals their rows.
    n_users : int
        How many users are held out for validation, and as many again for the test.
    validate : bool
        Whether to ask the validation users; neither choice sees the users of the other.

    Returns
    -------
    Cut
        The train part is the same for both choices.

    Raises
    ------
    ValueError
        If no users are left to learn from.
    """
    dataset = _liked(dataset, 4)
    rows_of_user = dataset.interactions.df.groupby(Columns.User)[Columns.User].transform("size")
    dataset = dataset.filter_interactions(np.flatnonzero(rows_of_user >= 5))
    pairs = dataset.get_raw_interactions()[Columns.UserItem]
    users = np.random.default_rng(seed).permutation(np.unique(pairs[Columns.User]))
    if users.size <= 2 * n_users:
        raise ValueError(
            f"{users.size} users have five ratings of 4 or 5: too few to hold out {n_users} for validation, "
            f"{n_users} for the test, and learn from the others"
        )
    asked = users[:n_users] if validate else users[n_users : 2 * n_users]
    is_learnt = pairs[Columns.User].isin(users[2 * n_users :])
    can_be_asked = pairs[Columns.User].isin(asked) & pairs[Columns.Item].isin(pairs.loc[is_learnt, Columns.Item])
    learnt, foldable = np.flatnonzero(is_learnt), np.flatnonzero(can_be_asked)
    is_truth = parts_per_user(pairs.iloc[foldable][Columns.User], (0.75, 0.25), seed).to_numpy() == 1
    # Some models go by internal ids. They follow the order of the rows: with those of the train part first, its users
    # and items have the same ids with the histories and without.
    histories = _binary(dataset.filter_interactions(np.concatenate([learnt, foldable[~is_truth]])))
    return Cut(
        train=attr.evolve(histories, interactions=Interactions(histories.interactions.df.head(learnt.size).copy())),
        test=pairs.iloc[foldable[is_truth]].reset_index(drop=True),
        histories=histories,
    )


@dataclass(frozen=True)
class LeaveOneOut:
    """
    Published test rows and negatives, by numbers: users and items count from 0 in order of their first rows.

    Attributes
    ----------
    positives : np.ndarray
        User and item of each test row, shape (n_rows, 2).
    negatives : np.ndarray
        User and item of each pair that the test item is ranked among, shape (n_pairs, 2).
    """

    positives: npt.NDArray[np.int64]
    negatives: npt.NDArray[np.int64]


def read_leave_one_out(places: Sequence[Path], folder: str, name: str) -> LeaveOneOut:
    """
    Read the test files of He et al. 2017.

    Parameters
    ----------
    places : Sequence of Path
        Where the folder may be, in order.
    folder : str
        Name of the folder.
    name : str
        Of the data in the names of the files.

    Returns
    -------
    LeaveOneOut
        Their content.

    Raises
    ------
    FileNotFoundError
        If no place has the files.
    ValueError
        If they are not what they should be.
    """
    for place in places:
        rating, negative = (place / folder / f"{name}.test.{what}" for what in ("rating", "negative"))
        if rating.is_file() and negative.is_file():
            break
    else:
        raise FileNotFoundError(
            f"The files {name}.test.rating and {name}.test.negative are in none of "
            f"{', '.join(str(place / folder) for place in places)}, and this benchmark does not download them: put "
            "there those of the folder Data of https://github.com/hexiangnan/neural_collaborative_filtering."
        )
    try:
        positives = pd.read_csv(rating, sep="\t", header=None, usecols=[0, 1], dtype=np.int64).to_numpy()
        # A line has its pair as "(user,item)" and then its negatives.
        lists = pd.read_csv(negative, sep="\t", header=None, index_col=0, dtype={0: str}).astype(np.int64)
        users = lists.index.str.strip("()").str.split(",").str[0].astype(np.int64)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{rating} or {negative} is broken: {error}. Restore the original files.") from error
    return LeaveOneOut(positives, np.column_stack([np.repeat(users, lists.shape[1]), lists.to_numpy().ravel()]))


def leave_one_out(dataset: Dataset, published: LeaveOneOut) -> Cut:
    """
    Hold out the published rows, each to be ranked among its user's published negatives.

    A negative that is the test item itself counts once, as in the published evaluation: of MovieLens-1M 156 are.

    Parameters
    ----------
    dataset : Dataset
        Interactions in the order of the original file, which the published numbers follow.
    published : LeaveOneOut
        Test rows and negatives.

    Returns
    -------
    Cut
        The train part has all other rows.

    Raises
    ------
    ValueError
        If the published rows are not rows of the dataset.
    """
    raw = dataset.get_raw_interactions()
    (users, user_ids), (items, item_ids) = (pd.factorize(raw[column]) for column in Columns.UserItem)
    is_test = pd.Series(users * item_ids.size + items, index=raw.index).isin(published.positives @ [item_ids.size, 1])
    pairs = np.concatenate([published.positives, published.negatives])
    if (pairs >= [user_ids.size, item_ids.size]).any() or is_test.sum() != len(published.positives):
        raise ValueError(
            f"of the {len(published.positives)} published test rows, {is_test.sum()} are interactions of the data: the "
            "rows of the data must be those of the original file in their order"
        )
    candidates = pd.DataFrame({Columns.User: user_ids[pairs[:, 0]], Columns.Item: item_ids[pairs[:, 1]]})
    return dataclasses.replace(_cut(dataset, ~is_test, is_test), candidates=candidates.drop_duplicates())


def hold_out_last(dataset: Dataset, seed: int, *, n_negatives: int) -> Cut:
    """
    Hold out the last row of each user that has more than one, to be ranked among random items without interaction.

    Parameters
    ----------
    dataset : Dataset
        Interactions with their times; of a user's rows at the last moment the last one is held out.
    seed : int
        Draws the negatives.
    n_negatives : int
        How many of them a user gets, each another; fewer where there are no more.

    Returns
    -------
    Cut
        The train part has all other rows.
    """
    raw = dataset.get_raw_interactions()
    order = raw.sort_values(Columns.Datetime, kind="stable")
    last = order[order.duplicated(Columns.User, keep="first")].drop_duplicates(Columns.User, keep="last")
    items = np.unique(raw[Columns.Item])
    rng = np.random.default_rng(seed)
    candidates = [last[Columns.UserItem]]
    seen = raw.groupby(Columns.User)[Columns.Item].agg(set)
    for user in last[Columns.User]:
        unseen = items[~np.isin(items, list(seen[user]))]
        drawn = rng.choice(unseen, min(n_negatives, unseen.size), replace=False)
        candidates.append(pd.DataFrame({Columns.User: user, Columns.Item: drawn}))
    is_last = pd.Series(raw.index.isin(last.index), index=raw.index)
    return dataclasses.replace(_cut(dataset, ~is_last, is_last), candidates=pd.concat(candidates, ignore_index=True))


def _published_cut(dataset: Dataset) -> Cut:
    return leave_one_out(dataset, read_leave_one_out(_default_places(), "ncf-ml-1m", "ml-1m"))


def _split_given(dataset: Dataset) -> Cut:
    is_test = _column(dataset, "split") == "test"
    return _cut(dataset, ~is_test, is_test)


def _split_tenth_of_train(dataset: Dataset, seed: int) -> Cut:
    train = _split_given(dataset).train
    part = parts_per_user(train.interactions.df[Columns.User], (0.9, 0.1), seed)
    return _cut(train, part == 0, part == 1)


# ---- metrics ---------------------------------------------------------------------------------------------------------


def hit_matrix(reco: pd.DataFrame, test: pd.DataFrame, k: int) -> tuple[Hits, Counts]:
    """
    Mark the hits at each rank.

    Parameters
    ----------
    reco : pd.DataFrame
        Columns `user_id`, `item_id`, `rank` (from 1).
    test : pd.DataFrame
        Columns `user_id`, `item_id`: the relevant pairs, each once.
    k : int
        Number of ranks looked at.

    Returns
    -------
    tuple
        Hits of shape (n_users, k) and the number of relevant items of each user, shape (n_users,). The users are those
        of `test` in ascending order; one without recommendations has no hits.
    """
    users, n_relevant = np.unique(test[Columns.User], return_counts=True)
    found = reco.loc[reco[Columns.Rank] <= k, [*Columns.UserItem, Columns.Rank]].merge(test, on=Columns.UserItem)
    hits = np.zeros((users.size, k), dtype=bool)
    hits[np.searchsorted(users, found[Columns.User]), found[Columns.Rank] - 1] = True
    return hits, n_relevant


def recall(hits: Hits, n_relevant: Counts) -> PerUser:
    """Share of the user's relevant items that were hit."""
    return np.asarray(hits.sum(axis=1) / n_relevant)


def achievable_recall(hits: Hits, n_relevant: Counts) -> PerUser:
    """Hits over the most that there could be: min(k, relevant)."""
    return np.asarray(hits.sum(axis=1) / np.minimum(n_relevant, hits.shape[1]))


def precision(hits: Hits, _n_relevant: Counts) -> PerUser:
    """Hits over k, however short the list."""
    return np.asarray(hits.mean(axis=1))


def hit_rate(hits: Hits, _n_relevant: Counts) -> PerUser:
    """1 for a user with a hit, else 0."""
    return np.asarray(hits.any(axis=1), dtype=float)


def reciprocal_rank(hits: Hits, _n_relevant: Counts) -> PerUser:
    """1 over the rank of the first hit, 0 without a hit."""
    return np.asarray(hits.any(axis=1) / (hits.argmax(axis=1) + 1))


def average_precision(hits: Hits, n_relevant: Counts) -> PerUser:
    """Precision at the ranks of the hits, summed, over ALL relevant items of the user."""
    precisions = hits.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    return np.asarray((hits * precisions).sum(axis=1) / n_relevant)


def ndcg(hits: Hits, n_relevant: Counts) -> PerUser:
    """Binary DCG over the DCG of min(k, relevant) hits at the top."""
    k = hits.shape[1]
    discounts = 1 / np.log2(np.arange(2, k + 2))
    ideal = discounts.cumsum()[np.minimum(n_relevant, k) - 1]
    return np.asarray(hits @ discounts / ideal)


def mean_over_users(
    definitions: Mapping[str, Callable[[Hits, Counts], PerUser]], reco: pd.DataFrame, cut: Cut, k: int
) -> dict[str, float]:
    """
    Average metrics over the users of the test part.

    Parameters
    ----------
    definitions : Mapping
        Metric name to function of the hits (n_users, k) and the numbers of relevant items (n_users,).
    reco : pd.DataFrame
        Columns `user_id`, `item_id`, `rank`.
    cut : Cut
        The cut that was asked.
    k : int
        Length of the lists.

    Returns
    -------
    dict
        "name@k" to mean.
    """
    hits, n_relevant = hit_matrix(reco, cut.test, k)
    return {f"{name}@{k}": float(metric(hits, n_relevant).mean()) for name, metric in definitions.items()}


def held_out_user_metrics(reco: pd.DataFrame, cut: Cut, k: int) -> dict[str, float]:
    """
    Average nDCG and recall over min(k, relevant) at k, and at the shorter lists that papers also look at.

    Parameters
    ----------
    reco : pd.DataFrame
        Columns `user_id`, `item_id`, `rank`.
    cut : Cut
        The cut that was asked.
    k : int
        Length of the lists.

    Returns
    -------
    dict
        NDCG@k, Recall@k, Recall@20 and NDCG@10.
    """
    at_k = mean_over_users({"NDCG": ndcg, "Recall": achievable_recall}, reco, cut, k)
    return {
        **at_k,
        **mean_over_users({"Recall": achievable_recall}, reco, cut, 20),
        **mean_over_users({"NDCG": ndcg}, reco, cut, 10),
    }


def replay_metrics(reco: pd.DataFrame, cut: Cut, k: int) -> dict[str, float]:
    """
    Let RePlay's own `Experiment` compute hit rate, MAP over min(k, relevant), MRR, NDCG and coverage.

    Parameters
    ----------
    reco : pd.DataFrame
        Columns `user_id`, `item_id`, `rank`.
    cut : Cut
        The cut that was asked; coverage counts the items of its train part.
    k : int
        Length of the lists.

    Returns
    -------
    dict
        RePlay's metric names to values.
    """
    # Only one protocol needs RePlay, whose import takes seconds.
    from replay.metrics import MAP, MRR, NDCG, Coverage, Experiment, HitRate

    experiment = Experiment(
        [HitRate(k), MAP(k), MRR(k), NDCG(k), Coverage(k)],
        ground_truth=cut.test,
        train=cut.train.get_raw_interactions()[Columns.UserItem],
        query_column=Columns.User,
        item_column=Columns.Item,
        rating_column=Columns.Score,
    )
    with warnings.catch_warnings():
        # Users of the train part whom the test part does not ask are no mistake.
        warnings.filterwarnings("ignore", message=".*queries that are not presented in recommendations")
        # RePlay reorders equal scores by item id; the rank keeps the model's own order.
        experiment.add_result("model", reco.assign(**{Columns.Score: -reco[Columns.Rank].astype(float)}))
    return {str(name): float(value) for name, value in experiment.results.loc["model"].items()}


# ---- protocols -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Protocol:
    """
    A published way to evaluate.

    Attributes
    ----------
    name : str
        Short name, as in the configuration and the result files.
    title : str
        Data, split and origin in words.
    dataset : str
        Name for `rectools_neural.load_dataset`.
    k : int
        Length of the recommendation lists.
    split : Callable
        (dataset, seed) to the cut whose numbers are published.
    validation : Callable
        (dataset, seed) to a cut inside the train part of `split`, made alike: the only one to choose settings on.
    metrics : Callable
        (recommendations, cut, k) to metric values by name.
    definitions : str
        Whose metric definitions these are, in words.
    main_metric : str
        The metric that orders tables.
    """

    name: str
    title: str
    dataset: str
    k: int
    split: Callable[[Dataset, int], Cut]
    validation: Callable[[Dataset, int], Cut]
    metrics: Callable[[pd.DataFrame, Cut, int], dict[str, float]]
    definitions: str
    main_metric: str


_RECOMMENDERS_METRICS = {"MAP": average_precision, "NDCG": ndcg, "Precision": precision, "Recall": recall}
_RECBOLE_METRICS = {
    "Recall": recall,
    "MRR": reciprocal_rank,
    "NDCG": ndcg,
    "HitRate": hit_rate,
    "Precision": precision,
}
_LIGHTGCN_METRICS = {"Recall": recall, "NDCG": ndcg}

# The seed of the published cut; a run's seed changes the model alone.
_RECOMMENDERS_SEED = 42
# That of the validation negatives, for the same reason.
_NEGATIVES_SEED = 0


def _recommenders(name: str, title: str, split: Callable[[Dataset, int], Cut]) -> Protocol:
    return Protocol(
        name=name,
        title=f"MovieLens-100k, all ratings positive, 3:1 per item as {title}",
        dataset="ml-100k",
        k=10,
        split=lambda dataset, _seed: split(dataset, _RECOMMENDERS_SEED),
        validation=lambda dataset, seed: split(split(dataset, _RECOMMENDERS_SEED).train, seed),
        metrics=partial(mean_over_users, _RECOMMENDERS_METRICS),
        definitions="as microsoft/recommenders: MAP and recall over all test items, "
        "binary nDCG with ideal over min(k, test items)",
        main_metric="NDCG@10",
    )


def _official_lightgcn(name: str, title: str, dataset: str) -> Protocol:
    return Protocol(
        name=name,
        title=f"{title}, official LightGCN split",
        dataset=dataset,
        k=20,
        split=lambda dataset, _seed: _split_given(dataset),
        validation=_split_tenth_of_train,
        metrics=partial(mean_over_users, _LIGHTGCN_METRICS),
        definitions="as LightGCN: recall over all test items, binary nDCG with ideal over min(k, test items)",
        main_metric="Recall@20",
    )


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        _recommenders("P1", "microsoft/recommenders cuts now", split_by_item),
        # The published rows were measured on this cut: its SAR reproduces theirs to six digits.
        _recommenders(
            "P1N",
            "microsoft/recommenders cut when it published its table",
            partial(split_by_item, shuffle=_restarted_per_item),
        ),
        Protocol(
            name="P2",
            title="MovieLens-1M, ratings >= 3, last 20 % of the timeline without cold users and items (RePlay)",
            dataset="ml-1m",
            k=10,
            split=lambda dataset, _seed: split_by_time(_liked(dataset)),
            validation=lambda dataset, _seed: split_by_time(split_by_time(_liked(dataset)).train),
            metrics=replay_metrics,
            definitions="RePlay Experiment: MAP over min(k, test items), "
            "binary nDCG with ideal over min(k, test items)",
            main_metric="NDCG@10",
        ),
        Protocol(
            name="P3",
            title="MovieLens-1M, ratings >= 3, random 8:1:1 per user, "
            "validation items hidden from the test ranking (RecBole-GNN)",
            dataset="ml-1m",
            k=10,
            split=partial(_split_tenths, validate=False),
            validation=partial(_split_tenths, validate=True),
            metrics=partial(mean_over_users, _RECBOLE_METRICS),
            definitions="as RecBole: recall over all test items, precision over k, "
            "binary nDCG with ideal over min(k, test items)",
            main_metric="NDCG@10",
        ),
        Protocol(
            name="P4",
            title="MovieLens-1M, all ratings positive, the last one of each user ranked among 99 published negatives "
            "(He et al. 2017)",
            dataset="ml-1m",
            k=10,
            split=lambda dataset, _seed: _published_cut(dataset),
            validation=lambda dataset, _seed: hold_out_last(
                _published_cut(dataset).train, _NEGATIVES_SEED, n_negatives=99
            ),
            metrics=partial(mean_over_users, {"HitRate": hit_rate, "NDCG": ndcg}),
            definitions="as He et al. 2017: one test item among 99 sampled ones; not comparable with full rankings",
            main_metric="HitRate@10",
        ),
        Protocol(
            name="P5",
            title="MovieLens-1M, ratings > 3.5 of users with five of them, 600 users held out whole, "
            "asked with three quarters of their rows (after Liang et al. 2018)",
            dataset="ml-1m",
            k=100,
            split=partial(hold_out_users, n_users=600, validate=False),
            validation=partial(hold_out_users, n_users=600, validate=True),
            metrics=held_out_user_metrics,
            definitions="as Liang et al. 2018: recall over min(k, test items), "
            "binary nDCG with ideal over min(k, test items)",
            main_metric="NDCG@100",
        ),
        _official_lightgcn("P6", "Gowalla", "gowalla"),
        _official_lightgcn("P6Y", "Yelp2018", "yelp2018"),
    )
}
