"""Baselines that no RecTools config can describe."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Trainer
from rectools.models import DSSMModel


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
