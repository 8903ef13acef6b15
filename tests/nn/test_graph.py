from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from rectools_neural.nn.graph import BipartiteGraph

# Items of each user; the last user and the last item have no edges.
LISTS = [[0, 3], [1], [0, 1, 2, 4], [4, 0], [2], []]
N_ITEMS, DIM = 6, 5


def make(lists: list[list[int]] = LISTS, n_items: int = N_ITEMS) -> BipartiteGraph:
    items = torch.tensor([item for part in lists for item in part])
    return BipartiteGraph(items, torch.tensor([len(part) for part in lists]), n_items)


def adjacency(lists: list[list[int]] = LISTS, n_items: int = N_ITEMS, kept: np.ndarray | None = None) -> torch.Tensor:
    """Dense normalised adjacency matrix of all nodes, from its definition; `kept` are weights of the edges."""
    n = len(lists) + n_items
    ones, matrix = np.zeros((n, n)), np.zeros((n, n))
    edges = [(user, len(lists) + item) for user, part in enumerate(lists) for item in part]
    for place, (user, item) in enumerate(edges):
        ones[user, item] = ones[item, user] = 1
        matrix[user, item] = matrix[item, user] = 1 if kept is None else kept[place]
    degrees = np.maximum(ones.sum(axis=1), 1)
    return torch.from_numpy(matrix / np.sqrt(np.outer(degrees, degrees)))


def table(seed: int = 0, n: int = len(LISTS) + N_ITEMS) -> torch.Tensor:
    return torch.randn(n, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_lists(n_users: int, n_items: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.permutation(n_items)[: rng.integers(1, n_items)].tolist() for _ in range(n_users)]


class TestForward:
    def test_is_the_product_with_the_normalised_adjacency(self) -> None:
        torch.testing.assert_close(make().double()(table()), adjacency() @ table(), rtol=0, atol=1e-6)

    def test_powers_of_a_larger_graph(self) -> None:
        lists = random_lists(40, 30)
        graph, dense = make(lists, 30), adjacency(lists, 30)
        actual, expected = table(n=70).float(), table(n=70)
        for _ in range(4):
            actual, expected = graph(actual), dense @ expected
            torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5)

    def test_nodes_without_edges_get_nothing(self) -> None:
        result = make()(table().float())
        assert result[[5, 11]].tolist() == [[0.0] * DIM] * 2
        assert (result.abs().sum(dim=1) > 0).sum() == 10

    def test_bfloat16_under_autocast(self) -> None:
        """The sums are of bfloat16, vectors and gradients are not."""
        weight = table().float().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            result = make()(weight)
        assert result.dtype == torch.float32
        exact = adjacency() @ table()
        torch.testing.assert_close(result.double(), exact, rtol=0.02, atol=0.02)
        assert not torch.allclose(result.double(), exact, atol=1e-5)
        (gradient,) = torch.autograd.grad((result * table(1)).sum(), weight)
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient.double(), adjacency() @ table(1), rtol=0.02, atol=0.02)


class TestBackward:
    @pytest.mark.parametrize("share", [0.0, 0.4])
    def test_gradcheck(self, share: float) -> None:
        graph = make().double()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            weights = graph.drop_edges(share)
        assert torch.autograd.gradcheck(lambda x: graph(graph(x, weights), weights), table().requires_grad_())

    def test_equals_that_of_the_dense_product(self) -> None:
        lists = random_lists(20, 30)
        graph, dense = make(lists, 30).double(), adjacency(lists, 30)
        one, other = (table(n=50).requires_grad_() for _ in range(2))
        graph(graph(one)).sin().sum().backward()
        (dense @ (dense @ other)).sin().sum().backward()
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-6)

    def test_gradient_that_is_not_contiguous(self) -> None:
        weight = table().requires_grad_()
        make().double()(weight).sum().backward()
        torch.testing.assert_close(weight.grad, adjacency() @ torch.ones_like(table()), rtol=0, atol=1e-6)


class TestDroppedEdges:
    def test_nothing_by_default(self) -> None:
        assert make().drop_edges(0.0) is None

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
    def test_share(self, share: float) -> None:
        graph = make([list(range(100))] * 100, 100)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            weights, others = graph.drop_edges(share), graph.drop_edges(share)
        assert weights is not None
        assert others is not None
        assert not torch.equal(weights, others)
        n = 10_000
        assert abs(int((weights[:n] == 0).sum()) - n * share) <= 4 * (n * share * (1 - share)) ** 0.5
        assert weights[weights > 0].unique().tolist() == pytest.approx([1 / (1 - share)])

    def test_both_directions_of_an_edge(self) -> None:
        """The kept edges alone, in both directions, with the scale of the whole graph."""
        graph = make().double()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            weights = graph.drop_edges(0.5)
        assert weights is not None
        kept = weights[: len(weights) // 2].numpy()
        assert 0 < (kept > 0).sum() < len(kept)
        torch.testing.assert_close(graph(table(), weights), adjacency(kept=kept) @ table(), rtol=0, atol=1e-6)

    def test_expected_sum_stays(self) -> None:
        graph, vectors = make(), table().float()
        with torch.random.fork_rng():
            torch.manual_seed(2)
            samples = torch.stack([graph(vectors, graph.drop_edges(0.3)) for _ in range(3000)])
        error = samples.std(dim=0) / len(samples) ** 0.5
        assert ((samples.mean(dim=0) - graph(vectors)).abs() <= 5 * error + 1e-6).all()


class TestState:
    def test_nothing_is_saved_and_all_moves(self) -> None:
        holder = nn.Module()
        holder.graph = make()
        assert holder.state_dict() == {}
        assert list(holder.parameters()) == []
        assert {buffer.device.type for buffer in holder.to("meta").buffers()} == {"meta"}

    def test_memory_grows_with_edges_and_nodes(self) -> None:
        def size(n_users: int, n_items: int, length: int) -> int:
            buffers = make([list(range(length))] * n_users, n_items).buffers()
            return sum(buffer.numel() * buffer.element_size() for buffer in buffers)

        assert size(1000, 1000, 5) <= 24 * 5_000 + 16 * 2_000
