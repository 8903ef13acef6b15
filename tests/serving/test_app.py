"""The service answers what the model would, refuses all else in one form, and stays what it was."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
from models.contract import hot_users, make_model
from rectools import Columns
from rectools.dataset import Dataset

from rectools_neural import explain
from rectools_neural.serving import app as app_module
from rectools_neural.serving import create_app
from rectools_neural.serving.engine import Engine

NAMES = ["DSSMModel", "MultVAEModel", "GFCFModel", "DLRMModel"]
JSON = {"Content-Type": "application/json"}


def plain(values: Any) -> list[Any]:
    return list(np.asarray(values).tolist())


def assert_ranked(answer: list[dict[str, Any]], expected: pd.DataFrame, column: str = Columns.Item) -> None:
    assert [one["item_id"] for one in answer] == plain(expected[column])
    np.testing.assert_allclose([one["score"] for one in answer], expected[Columns.Score], rtol=2e-4, atol=1e-5)


def recommend(served: Any, users: Sequence[Any], k: int = 10, filter_seen: bool = True, **options: Any) -> Any:
    return served.model.recommend(np.array(users), served.dataset, k, filter_seen, **options)


def with_user(dataset: Dataset, user: Any, items: Sequence[Any], weights: Sequence[float]) -> Dataset:
    """Add a user with a history to a dataset without features."""
    rows = {Columns.User: user, Columns.Item: items, Columns.Weight: weights, Columns.Datetime: pd.Timestamp("2030")}
    return Dataset.construct(pd.concat([dataset.get_raw_interactions(), pd.DataFrame(rows)]))


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize("name", NAMES)
def test_known_users_get_what_the_model_recommends(served: dict[str, Any], name: str) -> None:
    one = served[name]
    for filter_seen in (True, False):
        for user in hot_users(one.dataset)[:6]:
            body = {"user_id": plain([user])[0], "k": 7, "filter_seen": filter_seen}
            answer = one.client.ask("/recommend", body)
            assert answer.keys() == {"model", "items", "ignored"}
            assert answer["model"] == one.client.get("/ready").json()["model"]
            assert answer["ignored"] == []
            assert_ranked(answer["items"], recommend(one, [user], 7, filter_seen))


@pytest.mark.parametrize("name", ["MultVAEModel", "GFCFModel"])
def test_new_users_get_what_their_history_says(served: dict[str, Any], name: str) -> None:
    one = served[name]
    items = plain(np.sort(one.dataset.item_id_map.external_ids)[:4])
    kind = type(items[0])
    history = [items[0], {"item_id": items[2], "weight": 2.5}, {"item_id": items[3]}, kind(98765)]
    user = 777 if hot_users(one.dataset).dtype.kind == "i" else "someone"
    expected = with_user(one.dataset, user, [items[0], *items[2:]], [1, 2.5, 1])
    answer = one.client.ask("/recommend", {"history": history, "k": 5})
    assert answer["ignored"] == [kind(98765)]
    assert_ranked(answer["items"], one.model.recommend(np.array([user]), expected, 5, True))


def test_a_given_history_takes_the_place_of_the_stored_one(served: dict[str, Any]) -> None:
    one = served["GFCFModel"]
    first, other = plain(hot_users(one.dataset)[:2])
    rows = one.dataset.get_raw_interactions()
    history = plain(rows.loc[rows[Columns.User] == other, Columns.Item])
    answer = one.client.ask("/recommend", {"user_id": first, "history": history})
    assert_ranked(answer["items"], recommend(one, [other]))


def test_features_make_a_user(served: dict[str, Any], make_frames: Callable[..., Any]) -> None:
    one = served["DSSMModel"]
    told = {"group": "g1", "hobby": ["chess", "golf"], "age": 33}
    rows = [("someone", name, value) for name, values in told.items() for value in np.atleast_1d(values)]
    frames = make_frames(n_users=24, n_items=16, n_per_user=6)
    flat = pd.DataFrame(
        [(*row[:2], row[2] if row[1] != "age" else 33.0) for row in rows], columns=["id", "feature", "value"]
    )
    users = pd.concat([frames.user_features, flat])
    warm = Dataset.construct(
        frames.interactions, users, ["group", "hobby"], False, frames.item_features, ["genre"], False
    )
    answer = one.client.ask("/recommend", {"features": told, "k": 5})
    assert_ranked(answer["items"], one.model.recommend(np.array(["someone"]), warm, 5, True))
    assert one.client.ask("/recommend", {"features": {"group": "g0"}})["items"] != answer["items"]


@pytest.mark.parametrize("name", NAMES)
def test_a_whitelist_is_all_there_is(served: dict[str, Any], name: str) -> None:
    one = served[name]
    user = hot_users(one.dataset)[0]
    items = np.sort(one.dataset.item_id_map.external_ids)[::3]
    body = {"user_id": plain([user])[0], "items": plain(items), "k": 100}
    answer = one.client.ask("/recommend", body)["items"]
    assert 0 < len(answer) <= len(items)
    assert_ranked(answer, recommend(one, [user], 100, items_to_recommend=items))


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_requests(served: dict[str, Any], name: str) -> None:
    one = served[name]
    users = plain(hot_users(one.dataset)[:5])
    item = plain(one.dataset.item_id_map.external_ids)[0]
    bodies: list[dict[str, Any]] = [{"user_id": user, "k": k} for k, user in enumerate(users, 1)]
    if name != "DLRMModel":
        bodies.append({"history": [item], "k": 3})
    bodies.append({"user_id": users[0], "filter_seen": False, "items": [item]})
    answer = one.client.ask("/recommend/batch", {"requests": bodies})
    assert answer.keys() == {"model", "answers"}
    for found, body in zip(answer["answers"], bodies, strict=True):
        alone = one.client.ask("/recommend", body)
        assert found["ignored"] == alone["ignored"]
        assert [item["item_id"] for item in found["items"]] == [item["item_id"] for item in alone["items"]]
        scores = ([item["score"] for item in side["items"]] for side in (found, alone))
        np.testing.assert_allclose(*scores, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_similar_items_are_those_of_the_model(served: dict[str, Any], name: str) -> None:
    one = served[name]
    items = np.sort(one.dataset.item_id_map.external_ids)
    expected = one.model.recommend_to_items(items[:2], one.dataset, 4)
    for item in items[:2]:
        answer = one.client.ask("/similar", {"item_id": plain([item])[0], "k": 4})
        assert answer.keys() == {"model", "items"}
        assert_ranked(answer["items"], expected[expected[Columns.TargetItem] == item])
    some = plain(items[3:6])
    chosen = one.client.ask("/similar", {"item_id": plain(items)[0], "items": some})["items"]
    assert sorted(found["item_id"] for found in chosen) == some


@pytest.mark.parametrize("name", NAMES)
def test_pairs_are_scored_in_their_order(served: dict[str, Any], name: str) -> None:
    one = served[name]
    users, items = hot_users(one.dataset)[[2, 0, 2, 1]], np.sort(one.dataset.item_id_map.external_ids)[[1, 1, 0, 5]]
    pairs = pd.DataFrame({Columns.User: users, Columns.Item: items})
    answer = one.client.ask(
        "/score", {"pairs": [{"user_id": u, "item_id": i} for u, i in zip(plain(users), plain(items), strict=True)]}
    )
    expected = one.model.predict_pairs(pairs, one.dataset)[Columns.Score]
    np.testing.assert_allclose(answer["scores"], expected, rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["DSSMModel", "GFCFModel"])
def test_scores_are_explained(served: dict[str, Any], name: str) -> None:
    one = served[name]
    user, item = hot_users(one.dataset)[0], np.sort(one.dataset.item_id_map.external_ids)[3]
    answer = one.client.ask("/explain", {"user_id": plain([user])[0], "item_id": plain([item])[0]})
    expected = explain(one.model, one.dataset, user, item)
    assert answer["sentence"] == expected.sentence()
    assert answer["is_exact"] == expected.is_exact
    assert answer["score"] == pytest.approx(expected.score, rel=1e-4)
    assert [part["name"] for part in answer["contributions"]] == plain(expected.contributions["name"].astype(object))
    found = [part["contribution"] for part in answer["contributions"]]
    np.testing.assert_allclose(found, expected.contributions["contribution"], rtol=1e-3, atol=1e-5)
    assert one.client.ask("/explain", {"history": [plain([item])[0]], "item_id": plain([item])[0]})["contributions"]


# ---------------------------------------------------------------------- state


def test_it_tells_its_state(served: dict[str, Any]) -> None:
    one = served["DSSMModel"]
    assert one.client.get("/health").json() == {"status": "ok"}
    ready = one.client.get("/ready").json()
    assert (ready["class"], ready["n_users"], ready["n_items"]) == ("DSSMModel", 24, 16)
    assert pd.Timestamp(ready["loaded_at"]) <= pd.Timestamp.now("UTC")
    assert ready["last_swap_error"] is None
    assert one.client.get("/docs").status_code == 200


def test_it_is_not_ready_before_and_after_it_runs(served: dict[str, Any], open_client: Any) -> None:
    app = create_app(served["GFCFModel"].folder, reload_interval=0)

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return [await client.get("/ready"), await client.post("/recommend", json={"user_id": "u000"})]

    with open_client(app) as client:
        assert client.get("/ready").status_code == 200
    for response in asyncio.run(ask()):
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert response.json()["detail"][0]["type"] == "unavailable"


def test_metrics_count_and_have_no_label_of_the_client(served: dict[str, Any], open_client: Any) -> None:
    with open_client(create_app(served["GFCFModel"].folder)) as client:
        client.ask("/recommend", {"user_id": "u000"})
        client.ask("/recommend/batch", {"requests": [{"user_id": "u001"}] * 3})
        client.post("/recommend", {"user_id": "secret"})
        client.request("BREW", "/recommend")
        client.get("/secret/path?secret=1")
        response = client.get("/metrics")
        version = client.get("/ready").json()["model"]
    assert response.headers["content-type"].startswith("text/plain")
    lines = dict(line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#"))
    counts = {name: float(value) for name, value in lines.items() if name.startswith("rectools_neural_requests_total")}
    requests = 'rectools_neural_requests_total{{method="{}",path="{}",status="{}"}}'
    assert counts == {
        requests.format("POST", "/recommend", 200): 1,
        requests.format("POST", "/recommend/batch", 200): 1,
        requests.format("POST", "/recommend", 404): 1,
        requests.format("other", "/recommend", 405): 1,
        requests.format("GET", "other", 404): 1,
    }
    assert lines["rectools_neural_batch_queries_sum"] == "5.0"
    assert lines['rectools_neural_request_seconds_count{path="/recommend"}'] == "3.0"
    assert lines[f'rectools_neural_model_info{{class="GFCFModel",version="{version}"}}'] == "1.0"
    assert "secret" not in response.text


def test_the_requests_are_documented(served: dict[str, Any], open_client: Any) -> None:
    app = create_app(served["GFCFModel"].folder, max_k=17, max_batch=3)
    described = app.openapi()
    schemas = described["components"]["schemas"]
    assert schemas["RecommendRequest"]["properties"]["k"]["maximum"] == 17
    assert schemas["BatchRequest"]["properties"]["requests"]["maxItems"] == 3
    assert all(schemas[name]["examples"] for name in schemas if name.endswith("Request"))
    for path, methods in described["paths"].items():
        for operation in methods.values():
            assert operation["description"]
            assert path in ("/health", "/metrics") or "503" in operation["responses"]
    text = json.dumps(described)
    names = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert names <= schemas.keys()


# ---------------------------------------------------------------------- refusals

MANY = [100] * 100_001
BAD: dict[str, tuple[str, Any, int, list[Any]]] = {
    "no field": ("/recommend", {}, 422, ["body"]),
    "nothing but null": ("/recommend", {"user_id": None}, 422, ["body"]),
    "unknown user": ("/recommend", {"user_id": "zz"}, 404, ["body", "user_id"]),
    "the number of a user": ("/recommend", {"user_id": 0}, 404, ["body", "user_id"]),
    "bool as id": ("/recommend", {"user_id": True}, 422, ["body", "user_id"]),
    "float as id": ("/recommend", {"user_id": 1.0}, 422, ["body", "user_id"]),
    "id beyond 64 bits": ("/recommend", {"user_id": 2**63}, 422, ["body", "user_id"]),
    "long id": ("/recommend", {"user_id": "u" * 257}, 422, ["body", "user_id"]),
    "list as id": ("/recommend", {"user_id": ["u000"]}, 422, ["body", "user_id"]),
    "unknown field": ("/recommend", {"user_id": "u000", "kk": 1}, 422, ["body", "kk"]),
    "long unknown field": ("/recommend", {"user_id": "u000", "k" * 999: 1}, 422, ["body", "k" * 100]),
    "k of 0": ("/recommend", {"user_id": "u000", "k": 0}, 422, ["body", "k"]),
    "large k": ("/recommend", {"user_id": "u000", "k": 1001}, 422, ["body", "k"]),
    "k as text": ("/recommend", {"user_id": "u000", "k": "3"}, 422, ["body", "k"]),
    "k as bool": ("/recommend", {"user_id": "u000", "k": True}, 422, ["body", "k"]),
    "k as float": ("/recommend", {"user_id": "u000", "k": 3.0}, 422, ["body", "k"]),
    "filter_seen as number": ("/recommend", {"user_id": "u000", "filter_seen": 1}, 422, ["body", "filter_seen"]),
    "no history": ("/recommend", {"history": []}, 422, ["body", "history"]),
    "history as id": ("/recommend", {"history": 100}, 422, ["body", "history"]),
    "null in history": ("/recommend", {"history": [100, None]}, 422, ["body", "history", 1]),
    "weight of 0": ("/recommend", {"history": [{"item_id": 100, "weight": 0}]}, 422, ["body", "history", 0]),
    "weight below 0": ("/recommend", {"history": [{"item_id": 100, "weight": -1}]}, 422, ["body", "history", 0]),
    "weight as text": ("/recommend", {"history": [{"item_id": 100, "weight": "1"}]}, 422, ["body", "history", 0]),
    "entry without id": ("/recommend", {"history": [{"weight": 1}]}, 422, ["body", "history", 0]),
    "long history": ("/recommend", {"history": MANY[:10_001]}, 422, ["body", "history"]),
    "no features": ("/recommend", {"features": {}}, 422, ["body", "features"]),
    "unknown feature": ("/recommend", {"features": {"height": 1}}, 422, ["body", "features"]),
    "object as feature": ("/recommend", {"features": {"age": {}}}, 422, ["body", "features", "age"]),
    "no values of a feature": ("/recommend", {"features": {"hobby": []}}, 422, ["body", "features", "hobby"]),
    "text as number": ("/recommend", {"features": {"age": "old"}}, 422, ["body", "features"]),
    "huge number": ("/recommend", {"features": {"age": 1e300}}, 422, ["body", "features"]),
    "no whitelist": ("/recommend", {"user_id": "u000", "items": []}, 422, ["body", "items"]),
    "long whitelist": ("/recommend", {"user_id": "u000", "items": MANY}, 422, ["body", "items"]),
    "unknown in whitelist": ("/recommend", {"user_id": "u000", "items": [100, 3]}, 422, ["body", "items", 1]),
    "list": ("/recommend", [], 422, ["body"]),
    "null": ("/recommend", b"null", 422, ["body"]),
    "nothing": ("/recommend", b"", 422, ["body"]),
    "no JSON": ("/recommend", b"user_id=u000", 422, ["body"]),
    "half of JSON": ("/recommend", b'{"user_id": "u0', 422, ["body"]),
    "two bodies": ("/recommend", b'{"user_id": "u000"}{}', 422, ["body"]),
    "no UTF-8": ("/recommend", b'{"user_id": "\xff\xfe"}', 422, ["body"]),
    "UTF-16": ("/recommend", '{"user_id": "u000"}'.encode("utf-16"), 422, ["body"]),
    "lone surrogate": ("/recommend", b'{"user_id": "\\ud800"}', 422, ["body"]),
    "lone surrogate in a name": ("/recommend", b'{"user_id": "u000", "\\udfff": 1}', 422, ["body"]),
    "NaN as id": ("/recommend", b'{"user_id": NaN}', 422, ["body", "user_id"]),
    "NaN as k": ("/recommend", b'{"user_id": "u000", "k": NaN}', 422, ["body", "k"]),
    "NaN as weight": ("/recommend", b'{"history": [{"item_id": 100, "weight": NaN}]}', 422, ["body", "history", 0]),
    "infinite weight": ("/recommend", b'{"history": [{"item_id": 100, "weight": 1e999}]}', 422, ["body", "history", 0]),
    "NaN as feature": ("/recommend", b'{"features": {"age": NaN}}', 422, ["body", "features", "age"]),
    "infinite feature": ("/recommend", b'{"features": {"age": [-Infinity]}}', 422, ["body", "features", "age"]),
    "NaN in an unknown field": ("/recommend", b'{"user_id": "u000", "x": NaN}', 422, ["body", "x"]),
    "integer of 5 000 digits": ("/recommend", b'{"user_id": ' + b"9" * 5000 + b"}", 422, ["body"]),
    "feature of 400 digits": (
        "/recommend",
        b'{"features": {"age": ' + b"9" * 400 + b"}}",
        422,
        ["body", "features", "age"],
    ),
    "deep lists": ("/recommend", b"[" * 100_000, 422, ["body"]),
    "deep objects": ("/recommend", b'{"features":' * 50_000, 422, ["body"]),
    "no requests": ("/recommend/batch", {"requests": []}, 422, ["body", "requests"]),
    "many requests": ("/recommend/batch", {"requests": [{"user_id": "u000"}] * 101}, 422, ["body", "requests"]),
    "unknown user in a batch": (
        "/recommend/batch",
        {"requests": [{"user_id": "u000"}] * 3 + [{"user_id": "zz"}]},
        404,
        ["body", "requests", 3, "user_id"],
    ),
    "large k in a batch": (
        "/recommend/batch",
        {"requests": [{"user_id": "u000"}, {"user_id": "u000", "k": 1001}]},
        422,
        ["body", "requests", 1, "k"],
    ),
    "empty request in a batch": ("/recommend/batch", {"requests": [{}]}, 422, ["body", "requests", 0]),
    "unknown item": ("/similar", {"item_id": 3}, 422, ["body", "item_id"]),
    "no item": ("/similar", {}, 422, ["body", "item_id"]),
    "many similar": ("/similar", {"item_id": 100, "k": 1001}, 422, ["body", "k"]),
    "no pairs": ("/score", {"pairs": []}, 422, ["body", "pairs"]),
    "half a pair": ("/score", {"pairs": [{"user_id": "u000"}]}, 422, ["body", "pairs", 0, "item_id"]),
    "many pairs": ("/score", {"pairs": [{"user_id": 1, "item_id": 1}] * 10_001}, 422, ["body", "pairs"]),
    "unknown item of a pair": (
        "/score",
        {"pairs": [{"user_id": "u000", "item_id": 100}, {"user_id": "u000", "item_id": 3}]},
        422,
        ["body", "pairs", 1, "item_id"],
    ),
    "unknown user of a pair": (
        "/score",
        {"pairs": [{"user_id": 5, "item_id": 100}]},
        404,
        ["body", "pairs", 0, "user_id"],
    ),
    "explain without an item": ("/explain", {"user_id": "u000"}, 422, ["body", "item_id"]),
    "explain to nobody": ("/explain", {"item_id": 100}, 422, ["body"]),
    "explain to an unknown user": ("/explain", {"user_id": "zz", "item_id": 100}, 404, ["body", "user_id"]),
    "explain an unknown item": ("/explain", {"user_id": "u000", "item_id": 3}, 422, ["body", "item_id"]),
}


def assert_refused(response: httpx.Response, status: int, loc: list[Any] | None = None) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert len(response.content) < 10_000
    body = response.json()
    assert body.keys() == {"detail"}
    assert body["detail"]
    for problem in body["detail"]:
        assert problem.keys() == {"loc", "msg", "type"}
        assert problem["msg"]
        assert "Traceback" not in problem["msg"]
    assert loc is None or body["detail"][0]["loc"] == loc


@pytest.mark.parametrize("case", BAD)
def test_bad_bodies_are_refused(served: dict[str, Any], case: str) -> None:
    path, body, status, loc = BAD[case]
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = served["DSSMModel"].client.request("POST", path, content=content, headers=JSON)
    assert_refused(response, status, loc)


def test_many_faults_make_a_short_answer(served: dict[str, Any]) -> None:
    history = [None] * 9000
    response = served["DSSMModel"].client.post(
        "/recommend", {"history": history, **{f"field {n}": 1 for n in range(5000)}}
    )
    assert_refused(response, 422)
    assert len(response.json()["detail"]) == 20


def test_models_refuse_what_they_do_not_use(served: dict[str, Any]) -> None:
    assert_refused(served["GFCFModel"].client.post("/recommend", {"features": {"age": 1}}), 422, ["body", "features"])
    assert_refused(served["DLRMModel"].client.post("/recommend", {"history": ["i100"]}), 422, ["body", "history"])


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
def test_other_content_is_refused(served: dict[str, Any], kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    response = served["GFCFModel"].client.request("POST", "/recommend", content=b'{"user_id": "u000"}', headers=headers)
    assert_refused(response, 415, ["header", "content-type"])


def test_json_may_name_its_charset(served: dict[str, Any]) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    response = served["GFCFModel"].client.request("POST", "/recommend", content=b'{"user_id": "u000"}', headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize("path", ["/", "/recommend/", "/Recommend", "/recommend/batch/1", "/../etc/passwd", "/%00"])
def test_unknown_paths_are_refused(served: dict[str, Any], path: str) -> None:
    assert_refused(served["GFCFModel"].client.request("POST", path), 404, ["path"])


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/recommend"), ("DELETE", "/score"), ("POST", "/ready"), ("X", "/health")]
)
def test_other_methods_are_refused(served: dict[str, Any], method: str, path: str) -> None:
    response = served["GFCFModel"].client.request(method, path)
    assert_refused(response, 405, ["method"])
    assert response.headers["allow"] in ("GET", "POST")


def test_large_bodies_are_refused_before_they_have_come(served: dict[str, Any]) -> None:
    client = served["GFCFModel"].client
    sent = 0

    async def stream() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(100):
            sent += 2**20
            yield b" " * 2**20

    response = client.request("POST", "/recommend", content=stream(), headers=JSON)
    assert_refused(response, 413, ["body"])
    assert sent <= 3 * 2**20
    sent = 0
    response = client.request(
        "POST", "/recommend", content=stream(), headers={**JSON, "Content-Length": str(100 * 2**20)}
    )
    assert_refused(response, 413, ["body"])
    assert sent == 0
    response = client.request("POST", "/recommend", content=stream(), headers={**JSON, "Content-Length": "9" * 5000})
    assert_refused(response, 413, ["body"])


def test_the_largest_body_is_taken(served: dict[str, Any], open_client: Any) -> None:
    body = b'{"user_id": "u000"}'
    with open_client(create_app(served["GFCFModel"].folder, max_body_mb=0.001)) as client:
        limit = int(0.001 * 2**20)
        assert client.request("POST", "/recommend", content=body.ljust(limit), headers=JSON).status_code == 200
        assert_refused(client.request("POST", "/recommend", content=body.ljust(limit + 1), headers=JSON), 413, ["body"])


def test_a_fault_inside_is_told_to_the_log_alone(
    served: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("the secret of the service")

    client = served["GFCFModel"].client
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(Engine, "similar", fail)
        response = client.post("/similar", {"item_id": 100})
    assert_refused(response, 500, ["server"])
    assert "secret" not in response.text
    assert "the secret of the service" in caplog.text
    assert "Traceback" in caplog.text
    assert client.ask("/similar", {"item_id": 100})["items"]


def test_too_many_waiting_requests_are_sent_away(
    served: dict[str, Any], open_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "_MAX_WAITING", 4)
    gate, similar = threading.Event(), Engine.similar

    def wait(engine: Engine, queries: Any) -> Any:
        assert gate.wait(10)
        return similar(engine, queries)

    monkeypatch.setattr(Engine, "similar", wait)
    responses: list[httpx.Response] = []
    with open_client(create_app(served["GFCFModel"].folder, max_batch=1)) as client:
        threads = [
            threading.Thread(target=lambda: responses.append(client.post("/similar", {"item_id": 100})))
            for _ in range(10)
        ]
        for thread in threads:
            thread.start()
        while len(responses) < 6:
            assert client.get("/health").status_code == 200  # who only asks how it is need not wait
        gate.set()
        for thread in threads:
            thread.join()
        assert client.ask("/similar", {"item_id": 100})
    assert sorted(response.status_code for response in responses) == [200] * 4 + [503] * 6
    for response in responses:
        if response.status_code == 503:
            assert_refused(response, 503, ["server"])
            assert response.headers["retry-after"] == "1"


# ---------------------------------------------------------------------- the folder


def test_a_folder_that_can_not_be_loaded_is_refused_at_once(
    served: dict[str, Any], tmp_path: Path, save: Callable[..., Path]
) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        create_app(tmp_path / "nowhere")
    folder = save(served["GFCFModel"].model, served["GFCFModel"].dataset)
    (folder / "weights.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"weights\.safetensors"):
        create_app(folder)


@pytest.mark.parametrize(
    "options",
    [{"max_k": 0}, {"max_batch": 0}, {"reload_interval": -1}, {"max_body_mb": 0}, {"reload_interval": float("nan")}],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        create_app(tmp_path, **options)


def test_a_folder_without_users_serves_histories(
    make_dataset: Callable[..., Dataset], tmp_path: Path, open_client: Any
) -> None:
    dataset = make_dataset(n_users=20, features=None)
    model = make_model("GFCFModel")
    model.fit(dataset)
    model.save_pretrained(tmp_path / "model")
    with open_client(create_app(tmp_path / "model")) as client:
        assert client.get("/ready").json()["n_users"] == 0
        assert client.ask("/recommend", {"history": [100]})["items"]
        assert_refused(client.post("/recommend", {"user_id": "u000"}), 404, ["body", "user_id"])


def test_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    for name in ("app", "metrics", "reloading"):
        monkeypatch.delitem(sys.modules, f"rectools_neural.serving.{name}")
    import rectools_neural.serving

    with pytest.raises(ImportError, match=r"`prometheus_client`.*rectools-neural\[serve\]"):
        rectools_neural.serving.create_app  # noqa: B018
    with pytest.raises(AttributeError, match="nonsense"):
        rectools_neural.serving.nonsense  # noqa: B018
