"""What `tune` searches by default: the options that matter most, in ranges that are usual in the field."""

from __future__ import annotations

from typing import Any

_LEARNING_RATE = {"low": 5e-4, "high": 5e-3, "log": True}
_DROPOUT = {"low": 0.1, "high": 0.7}
_SHARED = {"choices": [True, False]}

#: Model -> option, with a dot where it is nested -> values. The number of epochs follows from the data and the batch
#: size and is left alone.
SPACES: dict[str, dict[str, dict[str, Any]]] = {
    "DAEModel": {
        "n_factors": {"choices": [128, 256, 512]},
        "loss": {"choices": ["squared", "softmax"]},
        "history_dropout": _DROPOUT,
        "learning_rate": _LEARNING_RATE,
        "share_item_embedding": _SHARED,
    },
    "DLRMModel": {
        "n_factors": {"choices": [16, 32, 64, 128]},
        "learning_rate": {"low": 5e-4, "high": 1e-2, "log": True},
        "optimizer.name": {"choices": ["adamw"]},
        "optimizer.l2": {"low": 0.1, "high": 10.0, "log": True},
        "dropout": {"low": 0.0, "high": 0.5},
    },
    "DSSMModel": {
        "n_factors": {"choices": [64, 128, 256]},
        "loss": {"choices": ["squared", "sampled_softmax"]},
        "history_dropout": _DROPOUT,
        "learning_rate": _LEARNING_RATE,
        "share_item_embedding": _SHARED,
    },
    "GFCFModel": {
        "n_factors": {"low": 8, "high": 256, "log": True},
        "alpha": {"low": 0.1, "high": 3.0, "log": True},
        "user_exponent": {"low": 0.1, "high": 0.7},
        "item_exponent": {"low": 0.1, "high": 0.7},
    },
    "LightGCNModel": {
        "n_factors": {"choices": [32, 64, 128]},
        "n_layers": {"low": 1, "high": 4},
        "learning_rate": {"low": 1e-3, "high": 3e-2, "log": True},
        "embedding_l2": {"low": 1e-5, "high": 1e-1, "log": True},
    },
    "MultDAEModel": {
        "n_factors": {"choices": [128, 256, 512]},
        "history_dropout": _DROPOUT,
        "learning_rate": _LEARNING_RATE,
        "temperature": {"low": 0.05, "high": 0.5, "log": True},
    },
    "MultVAEModel": {
        "n_factors": {"choices": [64, 128, 256]},
        "loss": {"choices": ["squared", "softmax"]},
        "history_dropout": _DROPOUT,
        "learning_rate": _LEARNING_RATE,
        "beta": {"low": 0.01, "high": 0.5, "log": True},
    },
    "NCFModel": {
        "architecture": {"choices": ["gmf", "neumf"]},
        "n_factors": {"choices": [16, 32, 64, 128]},
        "learning_rate": {"low": 5e-4, "high": 1e-2, "log": True},
        "optimizer.name": {"choices": ["adamw"]},
        "optimizer.l2": {"low": 0.1, "high": 10.0, "log": True},
    },
    "RecVAEModel": {
        "n_factors": {"choices": [64, 128, 256]},
        "history_dropout": _DROPOUT,
        "learning_rate": _LEARNING_RATE,
        "gamma": {"low": 5e-4, "high": 5e-2, "log": True},
    },
    "UserKNNModel": {
        "similarity": {"choices": ["cosine", "tfidf", "bm25"]},
        "n_neighbors": {"low": 20, "high": 500, "log": True},
        "k1": {"low": 1.0, "high": 200.0, "log": True},
        "b": {"low": 0.0, "high": 1.0},
    },
}
