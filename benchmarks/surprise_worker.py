"""
The side of `benchmarks.ratings` that runs in scikit-surprise's own environment: trains its SVD there and predicts.

It is run as a file, ``python -I surprise_worker.py REQUEST RESULT``, and imports nothing of this project. Both files
are JSON; what they hold is said in `benchmarks.ratings.SurpriseSVD`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """Read the request, train, predict and write the scores."""
    request, result = map(Path, sys.argv[1:])
    result.write_text(json.dumps(_predict(**json.loads(request.read_text(encoding="utf-8")))), encoding="utf-8")


def _predict(train: str, pairs: str, scale: list[float], seed: int) -> list[float]:
    from surprise import SVD, Dataset, Reader  # type: ignore[import-not-found]

    reader = Reader(line_format="user item rating", sep=",", rating_scale=tuple(scale))
    model = SVD(random_state=seed).fit(Dataset.load_from_file(train, reader).build_full_trainset())
    lines = Path(pairs).read_text(encoding="utf-8").splitlines()
    return [float(model.predict(*line.split(",")).est) for line in lines]


if __name__ == "__main__":
    main()
