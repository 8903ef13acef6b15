"""Whatever its own description allows or does not allow, the service answers as the description says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from models.contract import make_model
from rectools import Columns
from rectools.dataset import Dataset

from rectools_neural.serving import create_app

schemathesis = pytest.importorskip("schemathesis", reason="pip install schemathesis")

from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: E402

QUESTIONS = ["/recommend", "/recommend/batch", "/similar", "/score", "/explain"]


@pytest.fixture(scope="module")
def description(make_frames: Callable[..., Any], save: Callable[..., Path]) -> Any:
    """The description of a service that knows the ids and features of its own examples."""
    rows = make_frames(n_users=24, n_items=16, n_per_user=6).interactions
    users, items = rows[Columns.User].str[1:].astype(int), (rows[Columns.Item] - 99) * 10
    features = [(user, "age", 20 + user) for user in range(24)]
    features += [(user, "genres", ["drama", "comedy"][user % 2]) for user in range(24)]
    flat = pd.DataFrame(features, columns=["id", "feature", "value"])
    rows = rows.assign(**{Columns.User: users, Columns.Item: items})
    dataset = Dataset.construct(rows, flat, ["genres"], False)
    model = make_model("DSSMModel")
    model.fit(dataset)
    return schemathesis.openapi.from_asgi("/openapi.json", create_app(save(model, dataset), max_k=20, max_batch=5))


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", QUESTIONS)
def test_made_up_requests(description: Any, path: str, mode: Any) -> None:
    @given(case=description[path]["POST"].as_strategy(generation_mode=mode))
    @settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def check(case: Any) -> None:
        # A request may be of the described form and name an item that the model does not know.
        response = case.call_and_validate(excluded_checks=[positive_data_acceptance])
        assert response.status_code < 500

    check()


@pytest.mark.parametrize("path", QUESTIONS)
def test_the_examples_are_answered(description: Any, path: str) -> None:
    name = description[path]["POST"].definition.raw["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    examples = description.raw_schema["components"]["schemas"][name.rsplit("/", 1)[1]]["examples"]
    for body in examples:
        response = description[path]["POST"].Case(body=body, media_type="application/json").call_and_validate()
        assert response.status_code == 200


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics"])
def test_the_state_is_as_described(description: Any, path: str) -> None:
    assert description[path]["GET"].Case().call_and_validate().status_code == 200
