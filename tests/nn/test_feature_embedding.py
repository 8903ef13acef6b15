from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse

from rectools_neural.data.batches import FeatureBatch, FeatureSchema
from rectools_neural.data.features import EncodedFeatures
from rectools_neural.nn.features import FeatureEmbedding

SCHEMA = FeatureSchema(
    fields=("colour", "genre"), values=(("colour", "red"), ("genre", "a"), ("genre", "b")), numeric=("price", "year")
)


@pytest.fixture
def features() -> FeatureBatch:
    # The first entity has two genres, the second one no category at all.
    return FeatureBatch(
        categories=torch.tensor([0, 1, 2]),
        weights=torch.tensor([1.0, 0.25, 0.75]),
        offsets=torch.tensor([0, 3]),
        numeric=torch.tensor([[2.0, -1.0], [0.0, 3.0]]),
    )


def test_sum_by_hand(features: FeatureBatch) -> None:
    embedding = FeatureEmbedding(SCHEMA, 4)
    assert embedding.categories is not None
    assert embedding.numeric is not None
    assert embedding.categories.shape == (5, 4)
    table, numeric = embedding.categories.detach(), embedding.numeric.weight.detach()
    expected = torch.stack(
        [
            table[0] + 0.25 * table[1] + 0.75 * table[2] + 2 * numeric[:, 0] - numeric[:, 1],
            3 * numeric[:, 1],
        ]
    )
    torch.testing.assert_close(embedding(features), expected, rtol=1e-5, atol=1e-6)


def test_equals_the_dense_product(features: FeatureBatch) -> None:
    rng = np.random.default_rng(0)
    weights = rng.random((3, 5)) * (rng.random((3, 5)) < 0.5)
    encoded = EncodedFeatures(
        SCHEMA, sparse.csr_matrix(weights.astype(np.float32)), rng.normal(size=(3, 2)).astype(np.float32)
    )
    embedding = FeatureEmbedding(SCHEMA, 6)
    assert embedding.categories is not None
    assert embedding.numeric is not None
    dense = torch.from_numpy(encoded.categories.toarray()) @ embedding.categories
    expected = dense + torch.from_numpy(encoded.numeric) @ embedding.numeric.weight.T
    torch.testing.assert_close(embedding(encoded.batch()), expected, rtol=1e-5, atol=1e-6)


def test_only_numbers() -> None:
    embedding = FeatureEmbedding(FeatureSchema(numeric=("price",)), 3)
    assert embedding.categories is None
    assert embedding.numeric is not None
    nothing = torch.zeros(0)
    batch = FeatureBatch(nothing.long(), nothing, torch.zeros(2, dtype=torch.int64), torch.tensor([[2.0], [0.0]]))
    torch.testing.assert_close(embedding(batch), torch.stack([2 * embedding.numeric.weight[:, 0], torch.zeros(3)]))


def test_only_categories() -> None:
    embedding = FeatureEmbedding(FeatureSchema(fields=("genre",), values=(("genre", "a"),)), 3)
    assert embedding.numeric is None
    assert embedding.categories is not None
    batch = FeatureBatch(torch.tensor([1, 0]), torch.ones(2), torch.tensor([0, 1]), torch.zeros(2, 0))
    torch.testing.assert_close(embedding(batch), embedding.categories.flip(0))


def test_no_features_give_zeros() -> None:
    schema = FeatureSchema()
    embedding = FeatureEmbedding(schema, 3)
    assert list(embedding.parameters()) == []
    assert torch.equal(embedding(EncodedFeatures.missing(schema, 4).batch()), torch.zeros(4, 3))


def test_gradients_reach_all_weights(features: FeatureBatch) -> None:
    embedding = FeatureEmbedding(SCHEMA, 4).double()
    features = FeatureBatch(features.categories, features.weights, features.offsets, features.numeric.double())
    embedding(features).sum().backward()
    assert embedding.categories is not None
    assert embedding.categories.grad is not None
    assert embedding.categories.grad[:, 0].tolist() == [1.0, 0.25, 0.75, 0.0, 0.0]
    assert embedding.numeric is not None
    assert embedding.numeric.weight.grad is not None
    assert embedding.numeric.weight.grad[0].tolist() == [2.0, 2.0]
