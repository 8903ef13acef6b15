"""The service: recommendations of a saved model over HTTP."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import schemas
from .batcher import Batcher, OverloadedError
from .engine import Engine, Explained, QueryError, Ranked, Recommend, Similar, Subject
from .limits import BodyLimit
from .metrics import OTHER, Metrics
from .reloading import Reloader
from .schemas import RefusedError, refuse

_logger = logging.getLogger(__name__)
_MAX_SIZE = 128  # queries that are answered at once
_MAX_WAITING = 2048  # queries
_DESCRIPTION = """
Recommendations of a saved model. An answer names the version of the model that gave all of it; a new model takes the
place of the old one while the service runs.

A user is known by `user_id`, or told by a `history`, `features` or both. Ids are whole numbers or texts, as in the data
of the fit: `7` is another id than `"7"`. Every error has the body `{"detail": [{"loc": [...], "msg": "...", "type":
"..."}]}`, where `loc` leads to the fault.
"""
_ERRORS = {
    404: "There is no such user.",
    413: "The body is too large.",
    415: "The body is not announced as application/json.",
    422: "The request can't be answered as it is.",
    503: "Too many requests wait, or the service is about to stop; ask again after `Retry-After` seconds.",
}

M = TypeVar("M", bound=BaseModel)


def create_app(
    folder: str | os.PathLike[str],
    *,
    ann: bool = False,
    reload_interval: float = 5.0,
    max_k: int = 1000,
    max_batch: int = 100,
    max_body_mb: float = 1.0,
) -> FastAPI:
    """
    Make the service of a folder, as an ASGI application.

    Parameters
    ----------
    folder : path
        What `save_pretrained` has written, best with its option `dataset`, which brings the users.
    ann : bool, default False
        Build an index of the items, for very large catalogues.
    reload_interval : float, default 5
        Seconds between two looks at the folder; a new model is loaded and takes the place of the old one. 0 for never.
    max_k : int, default 1000
        Items that one may ask for.
    max_batch : int, default 100
        Requests in a call of /recommend/batch.
    max_body_mb : float, default 1
        Size of the largest body of a request, in megabytes.

    Returns
    -------
    FastAPI
        For any ASGI server, such as uvicorn. Each process that runs it has the model once.

    Raises
    ------
    FileNotFoundError, ValueError, TypeError
        If the folder can't be loaded, or an option makes no sense.

    Examples
    --------
    >>> import uvicorn
    >>> from rectools_neural.serving import create_app
    >>> uvicorn.run(create_app("models/dssm"))  # doctest: +SKIP
    """
    for name, value, least in (
        ("reload_interval", reload_interval, 0),
        ("max_k", max_k, 1),
        ("max_batch", max_batch, 1),
        ("max_body_mb", max_body_mb, 1e-3),
    ):
        if not (math.isfinite(value) and value >= least):
            raise ValueError(f"`{name}` is {value}: it must be a finite number of at least {least}")
    metrics = Metrics()
    service = _Service(Reloader(folder, ann, reload_interval, metrics), metrics, max_batch)
    app = FastAPI(
        title="rectools-neural",
        version=version("rectools-neural"),
        description=_DESCRIPTION,
        lifespan=service.lifespan,
        redirect_slashes=False,
    )
    app.router.route_class = _PlainRoute
    requests = schemas.Requests.within(max_k, max_batch)
    _add_questions(app, service, requests)
    _add_state(app, service)
    app.add_exception_handler(HTTPException, _refuse_http)
    app.add_middleware(BodyLimit, max_bytes=int(max_body_mb * 2**20))
    app.add_middleware(_Guard, metrics=metrics)
    app.openapi = partial(_describe, app, requests)  # type: ignore[method-assign]
    return app


class _Service:
    """What the endpoints share."""

    def __init__(self, reloader: Reloader, metrics: Metrics, max_batch: int) -> None:
        self.reloader, self.metrics, self.is_open = reloader, metrics, False
        self._batcher: Batcher[Engine] = Batcher(
            lambda: reloader.loaded.engine, _answer, _MAX_SIZE, max(_MAX_WAITING, 4 * max_batch), metrics.batch.observe
        )

    @asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """Run beside the server."""
        self._batcher.start()
        self.reloader.start()
        self.is_open = True
        try:
            yield
        finally:
            self.is_open = False
            await self._batcher.close()
            await asyncio.to_thread(self.reloader.stop)

    async def ask(self, kind: str, queries: Sequence[Any], places: Sequence[tuple[str | int, ...]]) -> tuple[str, Any]:
        """Have queries answered, and refuse the request at the first that can't be; `places` are theirs in the body."""
        try:
            engine, answers = await self._batcher.ask(kind, queries)
        except OverloadedError as error:
            raise refuse(503, ("server",), str(error), "unavailable", {"Retry-After": "1"}) from None
        for answer, place in zip(answers, places, strict=True):
            if isinstance(answer, QueryError):
                status, fault = (404, "unknown_user") if answer.is_unknown_user else (422, "value_error")
                raise refuse(status, ("body", *place, *answer.field), str(answer), fault)
        return engine.version, answers


class _PlainRoute(APIRoute):
    """A route that calls its endpoint: these read the request on their own, in a fraction of FastAPI's time."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint


# ---------------------------------------------------------------------- questions


def _add_questions(app: FastAPI, service: _Service, requests: schemas.Requests) -> None:
    @_post(app, "/recommend", requests.recommend, schemas.RecommendAnswer)
    async def recommend(request: Request) -> Response:
        """Recommend items to a user."""
        query = _to_recommend(await _read(request, requests.recommend))
        model, answers = await service.ask("recommend", [query], [()])
        return _json({"model": model, **_ranked(answers[0])})

    @_post(app, "/recommend/batch", requests.batch, schemas.BatchAnswer)
    async def recommend_batch(request: Request) -> Response:
        """Recommend items to many users, all with the same model."""
        queries = [_to_recommend(one) for one in (await _read(request, requests.batch)).requests]
        places = [("requests", position) for position in range(len(queries))]
        model, answers = await service.ask("recommend", queries, places)
        return _json({"model": model, "answers": [_ranked(answer) for answer in answers]})

    @_post(app, "/similar", requests.similar, schemas.SimilarAnswer)
    async def similar(request: Request) -> Response:
        """Find items that are like an item."""
        asked = await _read(request, requests.similar)
        model, answers = await service.ask("similar", [Similar(asked.item_id, asked.k, asked.items)], [()])
        return _json({"model": model, "items": _items(answers[0])})

    @_post(app, "/score", requests.score, schemas.ScoreAnswer)
    async def score(request: Request) -> Response:
        """Score pairs of a user and an item."""
        pairs = [(pair.user_id, pair.item_id) for pair in (await _read(request, requests.score)).pairs]
        model, answers = await service.ask("score", [pairs], [("pairs",)])
        return _json({"model": model, "scores": answers[0]})

    @_post(app, "/explain", requests.explain, schemas.ExplainAnswer)
    async def explain(request: Request) -> Response:
        """Tell what a score is due to."""
        asked = await _read(request, requests.explain)
        model, answers = await service.ask("explain", [(_to_subject(asked), asked.item_id)], [()])
        told: Explained = answers[0]
        return _json({"model": model, **vars(told)})


def _post(
    app: FastAPI, path: str, request: type[BaseModel], answer: type[BaseModel]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register an endpoint, and describe its body."""
    body = {"required": True, "content": {"application/json": {"schema": _reference(request)}}}
    return app.post(
        path,
        response_model=answer,
        response_class=Response,
        responses={
            200: {"content": {"application/json": {"schema": _reference(answer)}}},
            **{status: {"model": schemas.Problems, "description": about} for status, about in _ERRORS.items()},
        },
        openapi_extra={"requestBody": body},
    )


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


async def _read(request: Request, model: type[M]) -> M:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise refuse(
            415, ("header", "content-type"), "Send JSON, with `Content-Type: application/json`", "content_type"
        )
    try:
        return model.model_validate_json(await request.body())
    except ValidationError as error:
        raise schemas.refuse_invalid(error) from None


def _to_subject(asked: schemas.Subject) -> Subject:
    history = asked.history
    return Subject(
        asked.user_id,
        None
        if history is None
        else [
            (entry.item_id, entry.weight) if isinstance(entry, schemas.WeightedItem) else (entry, 1.0)
            for entry in history
        ],
        asked.features,
    )


def _to_recommend(asked: schemas.RecommendRequest) -> Recommend:
    return Recommend(_to_subject(asked), asked.k, asked.filter_seen, asked.items)


def _answer(engine: Engine, kind: str, queries: list[Any]) -> Sequence[Any]:
    if kind == "recommend":
        return engine.recommend(queries)
    if kind == "similar":
        return engine.similar(queries)
    if kind == "score":
        return [_or_error(engine.score, pairs) for pairs in queries]
    return [_or_error(engine.explain, *asked) for asked in queries]


def _or_error(function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except QueryError as error:
        return error


def _items(answer: Ranked) -> list[dict[str, Any]]:
    return [{"item_id": item, "score": score} for item, score in zip(answer.items, answer.scores, strict=True)]


def _ranked(answer: Ranked) -> dict[str, Any]:
    return {"items": _items(answer), "ignored": answer.ignored}


def _json(content: dict[str, Any], status: int = 200) -> Response:
    # JSON knows no NaN, such as the value of a part of a score that has none.
    return Response(to_json(content, inf_nan_mode="null"), status, media_type="application/json")


# ---------------------------------------------------------------------- state


def _add_state(app: FastAPI, service: _Service) -> None:
    @app.get("/health", response_model=schemas.Health)
    async def health(_: Request) -> Response:
        """Tell that the process is alive."""
        return _json({"status": "ok"})

    @app.get("/ready", response_model=schemas.Ready, responses={503: {"model": schemas.Problems}})
    async def ready(_: Request) -> Response:
        """Tell which model answers."""
        if not service.is_open:
            raise refuse(503, ("server",), "The service is about to stop", "unavailable", {"Retry-After": "1"})
        loaded = service.reloader.loaded
        return _json(
            {
                "model": loaded.engine.version,
                "class": loaded.engine.model_name,
                "n_users": loaded.engine.n_users,
                "n_items": loaded.engine.n_items,
                "loaded_at": loaded.at.strftime("%Y-%m-%dT%H:%M:%SZ"),
                "last_swap_error": service.reloader.error,
            }
        )

    @app.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics(_: Request) -> Response:
        """Give the figures of the service, for Prometheus."""
        return Response(service.metrics.to_text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _describe(app: FastAPI, requests: schemas.Requests) -> dict[str, Any]:
    """Describe the service, with the requests, which FastAPI does not see."""
    if app.openapi_schema is None:
        described = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        described["components"]["schemas"].update(requests.json_schemas())
        app.openapi_schema = described
    return app.openapi_schema


# ---------------------------------------------------------------------- errors


async def _refuse_http(_: Request, error: Exception) -> Response:
    """Give what the router refuses, such as unknown paths, the form of all errors."""
    assert isinstance(error, HTTPException)
    place = "method" if error.status_code == 405 else "path"
    raise RefusedError(
        error.status_code, [{"loc": [place], "msg": f"{error.detail}: see /docs", "type": "no_endpoint"}], error.headers
    )


class _Guard:
    """The outermost layer: counts requests, and gives all errors their form."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except ClientDisconnect:
            return
        except RefusedError as error:
            await _say(error, scope, receive, watch)
        except Exception:
            _logger.exception("A request of %s failed", getattr(scope.get("route"), "path", OTHER))
            if not status:
                fault = refuse(500, ("server",), "The service has a fault, which its log tells", "internal_error")
                await _say(fault, scope, receive, watch)
        finally:
            if status:
                path = getattr(scope.get("route"), "path", OTHER)
                self.metrics.observe(path, scope["method"], status, time.perf_counter() - started)


async def _say(refused: RefusedError, scope: Scope, receive: Receive, send: Send) -> None:
    response = _json({"detail": refused.detail}, refused.status)
    response.headers.update(refused.headers or {})
    await response(scope, receive, send)
