from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from torch import nn

from rectools_neural.data.batches import FeatureSchema
from rectools_neural.data.features import EncodedFeatures
from rectools_neural.nn import pairs as pairs_module
from rectools_neural.nn.features import FieldEmbedding, IdEmbedding
from rectools_neural.nn.pairs import DotCross, PairNetwork, ProductCross, Side
from rectools_neural.nn.towers import ACTIVATIONS


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def make_side(n: int, n_direct: int, hidden: int, fields: tuple[int, int], seed: int) -> Side:
    return Side(
        normal(n, seed=seed),
        normal(n, n_direct, seed=seed + 1),
        normal(n, hidden, seed=seed + 2),
        normal(n, *fields, seed=seed + 3),
    )


def make_network(
    hidden: tuple[int, ...], cross: str | None, n_fields: tuple[int, int], dim: int, activation: str = "relu"
) -> PairNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layer: ProductCross | DotCross | None = None
        if cross == "product":
            layer = ProductCross(dim, hidden[0])
        elif cross == "dot":
            layer = DotCross(*n_fields, hidden[0], 0.5)
        return PairNetwork(hidden, layer, activation, dropout=0.0).double()


def one_by_one(network: PairNetwork, users: Side, items: Side) -> torch.Tensor:
    """Each pair by a call of its own."""
    scores = [
        network.pairs(users.take(slice(u, u + 1)), items.take(slice(i, i + 1)))
        for u in range(len(users))
        for i in range(len(items))
    ]
    return torch.cat(scores).view(len(users), len(items))


@st.composite
def networks(draw: st.DrawFn) -> tuple[PairNetwork, Side, Side]:
    hidden = tuple(draw(st.lists(st.integers(1, 6), max_size=3)))
    cross = draw(st.sampled_from([None, "product", "dot"])) if hidden else None
    n_fields = (draw(st.integers(1, 4)), draw(st.integers(1, 4))) if cross == "dot" else (1, 1)
    dim = draw(st.integers(1, 5))
    network = make_network(hidden, cross, n_fields, dim, draw(st.sampled_from(sorted(ACTIVATIONS))))
    n_direct, width = draw(st.integers(0, 4)), hidden[0] if hidden else 0
    users, items = (
        make_side(draw(st.integers(1, 6)), n_direct, width, (n, dim if cross else 0), seed)
        for n, seed in zip(n_fields, (10, 20), strict=True)
    )
    return network, users, items


class TestTable:
    @given(networks(), st.integers(1, 40))
    def test_equals_pairs(self, case: tuple[PairNetwork, Side, Side], at_once: int) -> None:
        network, users, items = case
        expected = one_by_one(network, users, items)
        torch.testing.assert_close(network.table(users, items), expected, rtol=0, atol=1e-9)
        with pytest.MonkeyPatch.context() as patch:
            torch.testing.assert_close(network.table_in_chunks(users, items), expected, rtol=0, atol=1e-9)
            patch.setattr(pairs_module, "_MAX_HIDDEN", at_once)
            torch.testing.assert_close(network.table_in_chunks(users, items), expected, rtol=0, atol=1e-9)

    @pytest.mark.parametrize("cross", [None, "product", "dot"])
    def test_in_single_precision(self, cross: str | None) -> None:
        fields = (3, 2) if cross == "dot" else (1, 1)
        network = make_network((16, 8), cross, fields, 12).float()
        users, items = (make_side(40, 5, 16, (n, 12), n).to(torch.float32) for n in fields)
        expected = network.pairs(
            users.take(torch.arange(40).repeat_interleave(40)), items.take(torch.arange(40).repeat(40))
        )
        torch.testing.assert_close(network.table(users, items).flatten(), expected, rtol=1e-5, atol=1e-4)

    # Few users, or users of many fields, are the side that is cheaper to multiply with the weights.
    @pytest.mark.parametrize(("n_user_fields", "by_users"), [(1, False), (2, True)])
    def test_chunks_bound_the_hidden_units(
        self, n_user_fields: int, by_users: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        network = make_network((4,), "dot", (n_user_fields, 3), 5)
        users, items = make_side(3, 2, 4, (n_user_fields, 5), 1), make_side(10, 2, 4, (3, 5), 2)
        sizes: list[tuple[int, ...]] = []
        network.rest[0].register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape)))
        monkeypatch.setattr(pairs_module, "_ITEMS_AT_ONCE", 4)
        monkeypatch.setattr(pairs_module, "_MAX_HIDDEN", 2 * 4 * 4)
        network.table_in_chunks(users, items)
        # Units by pairs: 2 users and 4 items at once, then what is left of either.
        by_items = [(4, 8), (4, 4), (4, 8), (4, 4), (4, 4), (4, 2)]
        assert sizes == (by_items[::2] + by_items[1::2] if by_users else by_items)

    def test_nobody_and_nothing(self) -> None:
        network = make_network((4,), "dot", (2, 3), 5)
        users, items = make_side(3, 2, 4, (2, 5), 1), make_side(10, 2, 4, (3, 5), 2)
        for some, others in ((users.take(slice(0)), items), (users, items.take(slice(0)))):
            assert network.table(some, others).shape == (len(some), len(others))
            assert network.table_in_chunks(some, others).shape == (len(some), len(others))


class TestPairs:
    def test_by_hand(self) -> None:
        """Biases, dot product, first layer of the sides and the cross, then the perceptron."""
        network = make_network((3, 2), "product", (1, 1), 4, "tanh")
        users, items = make_side(5, 2, 3, (1, 4), 1), make_side(5, 2, 3, (1, 4), 2)
        first, second = (layer for layer in network.rest if isinstance(layer, nn.Linear))
        assert isinstance(network.cross, ProductCross)
        for n, actual in enumerate(network.pairs(users, items)):
            hidden = users.first[n] + items.first[n] + network.cross.weight @ (users.fields[n, 0] * items.fields[n, 0])
            hidden = first.weight @ torch.tanh(hidden) + first.bias
            top = second.weight[0] @ torch.tanh(hidden) + second.bias[0]
            expected = users.bias[n] + items.bias[n] + users.direct[n] @ items.direct[n] + top
            torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)

    def test_product_cross(self) -> None:
        cross = ProductCross(4, 3).double()
        weight = cross.weight.detach()
        users, items = normal(5, 1, 4), normal(5, 1, 4, seed=1)
        for n, actual in enumerate(cross.pairs(users, items).detach()):
            for unit in range(3):
                expected = sum(float(weight[unit, d] * users[n, 0, d] * items[n, 0, d]) for d in range(4))
                assert float(actual[unit]) == pytest.approx(expected, abs=1e-12)

    def test_dot_cross(self) -> None:
        cross = DotCross(2, 3, 4, 0.5).double()
        weight = cross.weight.detach()
        users, items = normal(5, 2, 6), normal(5, 3, 6, seed=1)
        for n, actual in enumerate(cross.pairs(users, items).detach()):
            for unit in range(4):
                expected = 0.0
                for a in range(2):
                    for b in range(3):
                        expected += float(weight[unit, a, b] * (users[n, a] @ items[n, b]))
                assert float(actual[unit]) == pytest.approx(expected, abs=1e-12)

    def test_dropout_is_for_training(self) -> None:
        network = PairNetwork((8, 4), None, "relu", dropout=0.5).double()
        users, items = make_side(3, 2, 8, (1, 0), 1), make_side(6, 2, 8, (1, 0), 2)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            assert not torch.allclose(network.table(users, items), network.table(users, items))
        assert torch.equal(network.eval().table(users, items), network.table(users, items))

    def test_sides(self) -> None:
        side = make_side(6, 2, 3, (2, 4), 1)
        for part in (side.take(torch.tensor([1, 2])), side.take(slice(1, 3))):
            assert len(part) == 2
            for name in ("bias", "direct", "first", "fields"):
                assert torch.equal(getattr(part, name), getattr(side, name)[1:3])
        assert {tensor.dtype for tensor in vars(side.to(torch.bfloat16)).values()} == {torch.bfloat16}


@pytest.mark.parametrize("path", ["pairs", "table", "table_in_chunks"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("cross", [None, "product", "dot"])
def test_gradients(cross: str | None, activation: str, path: str) -> None:
    """By finite differences, with respect to the sides and all weights."""
    fields = (2, 3) if cross == "dot" else (1, 1)
    network = make_network((3, 2), cross, fields, 4, activation)
    names = list(dict(network.named_parameters()))
    sides = [make_side(3, 2, 3, (n, 4), seed) for n, seed in zip(fields, (30, 40), strict=True)]
    inputs = [tensor.requires_grad_() for side in sides for tensor in vars(side).values()]

    def value(*tensors: torch.Tensor) -> torch.Tensor:
        class Path(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def forward(self) -> torch.Tensor:
                result: torch.Tensor = getattr(self.network, path)(Side(*tensors[:4]), Side(*tensors[4:8]))
                return result

        weights = {f"network.{name}": tensor for name, tensor in zip(names, tensors[8:], strict=True)}
        result: torch.Tensor = torch.func.functional_call(Path(), weights, ())
        return result

    weights = [parameter.detach().clone().requires_grad_() for parameter in network.parameters()]
    if cross is None:  # fields are not used
        inputs[3], inputs[7] = inputs[3].detach(), inputs[7].detach()
    assert torch.autograd.gradcheck(value, [*inputs, *weights])


# ---------------------------------------------------------------------- embeddings

# Two fields, of three and two values, and two numbers.
SCHEMA = FeatureSchema(
    fields=("colour", "genre"),
    values=(("colour", "blue"), ("colour", "red"), ("genre", "a"), ("genre", "b"), ("genre", "c")),
    numeric=("price", "year"),
)
# Weights of the values, and of the missing value of each field: several genres, no colour, nothing at all.
WEIGHTS: list[list[float]] = [
    [1, 0, 0.25, 0, 0.75, 0, 0],
    [0, 0, 0, 1, 0, 1, 0],
    [0, 0, 0, 0, 0, 1, 1],
    [0.5, 0.5, 0, 0, 1, 0, 0],
]
FIELD_OF = [0, 0, 1, 1, 1, 0, 1]


def encoded(schema: FeatureSchema = SCHEMA) -> EncodedFeatures:
    weights = np.array(WEIGHTS, np.float32)[:, : schema.n_categories]
    numbers = np.random.default_rng(0).normal(size=(4, len(schema.numeric))).astype(np.float32)
    return EncodedFeatures(schema, sparse.csr_matrix(weights), numbers)


class TestFieldEmbedding:
    @pytest.mark.parametrize("bottom_hidden", [(), (5,), (6, 3)])
    def test_equals_a_loop(self, bottom_hidden: tuple[int, ...]) -> None:
        embedding = FieldEmbedding(SCHEMA, 3, bottom_hidden, "tanh").double()
        features = encoded()
        assert embedding.n_vectors == 3
        assert embedding.categories is not None
        assert isinstance(embedding.bottom, nn.Sequential)
        actual = embedding(features.batch())
        assert actual.shape == (4, 3, 3)
        for entity, weights in enumerate(WEIGHTS):
            for field in range(2):
                expected = torch.zeros(3, dtype=torch.float64)
                for category, weight in enumerate(weights):
                    if FIELD_OF[category] == field:
                        expected = expected + weight * embedding.categories[category]
                torch.testing.assert_close(actual[entity, field], expected, rtol=0, atol=1e-7)
            vector = torch.from_numpy(features.numeric[entity]).double()
            for layer in embedding.bottom:
                vector = layer.weight @ vector + layer.bias if isinstance(layer, nn.Linear) else torch.tanh(vector)
            torch.testing.assert_close(actual[entity, 2], vector, rtol=0, atol=1e-7)

    def test_gradients(self) -> None:
        embedding = FieldEmbedding(SCHEMA, 3, (4,), "tanh").double()
        batch, names = encoded().batch(), list(dict(embedding.named_parameters()))
        batch.weights, batch.numeric = batch.weights.double(), batch.numeric.double()

        def value(*tensors: torch.Tensor) -> torch.Tensor:
            weights = dict(zip(names, tensors, strict=True))
            result: torch.Tensor = torch.func.functional_call(embedding, weights, (batch,))
            return result

        assert torch.autograd.gradcheck(value, [p.detach().clone().requires_grad_() for p in embedding.parameters()])

    @pytest.mark.parametrize(
        ("schema", "n_vectors"),
        [(FeatureSchema(), 0), (FeatureSchema(numeric=("price",)), 1), (FeatureSchema(fields=("colour",)), 1)],
        ids=["nothing", "numbers", "a field without values"],
    )
    def test_parts(self, schema: FeatureSchema, n_vectors: int) -> None:
        embedding = FieldEmbedding(schema, 3, (), "relu")
        assert embedding.n_vectors == n_vectors
        assert embedding(EncodedFeatures.missing(schema, 4).batch()).shape == (4, n_vectors, 3)
        assert embedding(EncodedFeatures.missing(schema, 0).batch()).shape == (0, n_vectors, 3)


def test_ids() -> None:
    embedding = IdEmbedding(4, 3)
    is_unknown = torch.tensor([[False], [True], [False]])
    expected: list[Any] = [embedding.known[2], embedding.unknown[0], embedding.known[0]]
    torch.testing.assert_close(embedding(torch.tensor([2, 3, 0]), is_unknown), torch.stack(expected))
    everything = embedding(None, torch.tensor([[False], [False], [True], [False]]))
    rows = [embedding.known[0], embedding.known[1], embedding.unknown[0], embedding.known[3]]
    torch.testing.assert_close(everything, torch.stack(rows))
    everything[2].sum().backward()
    assert embedding.known.grad is not None
    assert embedding.known.grad.abs().sum() == 0
