"""Baselines that no RecTools config can describe."""

from __future__ import annotations

from typing import Any

import numpy as np
from pytorch_lightning import Trainer
from rectools.dataset import Dataset
from rectools.models import DSSMModel, EASEModel, ImplicitALSWrapperModel


class PlainALSModel(ImplicitALSWrapperModel):
    """RecTools' iALS without features: it makes them dense, which takes hours where they have many values."""

    def _fit(self, dataset: Dataset) -> None:
        super()._fit(_without_features(dataset))

    def _custom_transform_dataset_u2i(
        self, dataset: Dataset, users: Any, on_unsupported_targets: Any, context: Any = None
    ) -> Dataset:
        return _without_features(dataset)

    def _custom_transform_dataset_i2i(
        self, dataset: Dataset, target_items: Any, on_unsupported_targets: Any
    ) -> Dataset:
        return _without_features(dataset)


class PaperEASEModel(EASEModel):
    """
    EASE with the weights of the paper (Steck 2019), which divide by the diagonal entry of the item that is scored.

    RecTools 0.19 ranks by their transpose, which divides by that of the item in the history.
    """

    def _fit(self, dataset: Dataset) -> None:  # type: ignore[override]
        super()._fit(dataset)
        self.weight: np.ndarray = np.ascontiguousarray(self.weight.T)


def _without_features(dataset: Dataset) -> Dataset:
    return Dataset(dataset.user_id_map, dataset.item_id_map, dataset.interactions)


def rectools_dssm(**params: Any) -> DSSMModel:
    """
    Build RecTools' own DSSM so that it prints nothing and leaves no files behind.

    Parameters
    ----------
    **params
        Arguments of ``rectools.models.DSSMModel``, for example ``n_factors``, ``max_epochs``, ``batch_size``.

    Returns
    -------
    DSSMModel
        The model, not fitted.
    """
    model = DSSMModel(loggers=False, **params)
    # The constructor has no way to switch off checkpoints and the progress bar: only the trainer itself has.
    model._trainer = Trainer(
        max_epochs=model.max_epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return model
