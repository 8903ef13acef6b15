"""
The side of `benchmarks.recbole` that runs in RecBole's own environment: trains one model there and ranks with it.

It is run as a file, ``python -I recbole_worker.py REQUEST RESULT``, and imports nothing of this project. Both files are
JSON; what they hold is said in `benchmarks.recbole.run_recbole`.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch


def main() -> None:
    """Read the request, train, rank and write the result."""
    request, result = map(Path, sys.argv[1:])
    # RecBole reads the command line of the process for settings of its own.
    del sys.argv[1:]
    result.write_text(json.dumps(_measure(**json.loads(request.read_text(encoding="utf-8")))), encoding="utf-8")


def _measure(
    model: str, dataset: str, config: dict[str, Any], users: list[str], k: int, threads: int
) -> dict[str, Any]:
    from recbole.config import Config  # type: ignore[import-not-found]
    from recbole.data import create_dataset, data_preparation  # type: ignore[import-not-found]
    from recbole.utils import get_model, get_trainer, init_seed  # type: ignore[import-not-found]
    from recbole.utils.case_study import full_sort_topk  # type: ignore[import-not-found]

    torch.set_num_threads(threads)
    settings = Config(model=model, dataset=dataset, config_dict=config)
    init_seed(settings["seed"], settings["reproducibility"])
    data = create_dataset(settings)
    train, _, test = data_preparation(settings, data)
    module = get_model(model)(settings, train.dataset)
    trainer = get_trainer(settings["MODEL_TYPE"], model)(settings, module)
    epoch_seconds: list[float] = []
    train_epoch = trainer._train_epoch

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        loss = train_epoch(*args, **kwargs)
        epoch_seconds.append(time.perf_counter() - started)
        return loss

    trainer._train_epoch = timed
    trainer.fit(train, saved=False, verbose=False)

    rows = data.token2id(data.uid_field, users)
    started = time.perf_counter()
    _, items = full_sort_topk(rows, module, test, k)
    recommend_seconds = time.perf_counter() - started
    return {
        "epoch_seconds": epoch_seconds,
        "recommend_seconds": recommend_seconds,
        "items": data.id2token(data.iid_field, items.numpy()).tolist(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in ("recbole", "torch", "numpy", "scipy", "pandas")},
        },
    }


if __name__ == "__main__":
    main()
