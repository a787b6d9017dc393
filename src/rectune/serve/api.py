"""The routes of the service, and its OpenAPI document."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import Body, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.security import APIKeyHeader, HTTPBearer
from starlette.exceptions import HTTPException

from rectune.errors import ConfigError, DataError, RectuneError
from rectune.measure.classification import probability
from rectune.serve.reading import Going, Question, TooLarge
from rectune.serve.refusal import Refused
from rectune.serve.schema import (
    RECOMMEND_EXAMPLES,
    RERANK_EXAMPLES,
    SCORE_EXAMPLES,
    Problem,
    RecommendRequest,
    RecommendResponse,
    Reloaded,
    ReloadRequest,
    RerankRequest,
    RerankResponse,
    ScoreRequest,
    ScoreResponse,
)
from rectune.serve.service import Answered, Service, Serving
from rectune.version import __version__

_ABOUT = """Says how likely a person is to like items, given what they did.

`/v1/rerank` takes what the rerank APIs of Cohere, Jina and vLLM take: `query` holds the history, one event a line,
`documents` the candidates; `relevance_score` is P(like). Everything that a request says is data, never a command."""
_PROBLEMS = {
    400: "Not JSON", 401: "No valid API key", 403: "Called by another machine's name", 408: "The body came too slowly",
    413: "Too large", 422: "Something in the request cannot be used", 429: "Too much to do: come again",
    503: "Stopping, or the model failed", 504: "Not answered in time",
}  # fmt: skip


def _json(told: Any, status: int = 200, **headers: str) -> Response:
    return Response(json.dumps(told, allow_nan=False), status, headers, "application/json")


def _problem(request: Request, status: int, line: str, **headers: str) -> Response:
    return _json({"id": request.state.id, "message": line}, status, **headers)


def _line(error: RequestValidationError) -> str:
    """The first thing that is wrong, where it stands and what it is; not what was given there."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return f"the body is not JSON: {first.get('ctx', {}).get('error', 'it cannot be read')}"
    place = ".".join(str(part) for part in first["loc"][1:])
    said = str(first["msg"]).removeprefix("Value error, ")
    more = f" (and {len(error.errors()) - 1} more)" if len(error.errors()) > 1 else ""
    if first["type"] == "model_attributes_type":
        return "the body is no JSON object; send one, with Content-Type: application/json"
    return f"{place}: {said}{more}" if place else f"{said}{more}"


def _status(error: Exception) -> int:
    if isinstance(error, Refused):
        return error.status
    if isinstance(error, TooLarge):
        return 413
    return 422 if isinstance(error, (DataError, ConfigError)) else 503


def _gone(request: Request) -> Callable[[], Any]:
    """Returns when the client hangs up."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return gone


def _told(request: Request, answers: Sequence[Answered]) -> dict[str, int]:
    """Add to the journal's line what the answers took; their usage."""
    tokens = sum(each.tokens for each in answers)
    waited = max((each.waited for each in answers), default=0.0)
    request.state.told.update(
        candidates=sum(len(each.odds) for each in answers), tokens=tokens, waited_ms=round(1000 * waited, 1)
    )
    return {"prompt_tokens": tokens, "total_tokens": tokens}


def make_app(service: Service, has_keys: bool) -> FastAPI:
    """The application.

    Args:
        service: answers.
        has_keys: whether the guard asks for a key; without one there is no `/v1/reload`.
    """
    # For the document only: the guard has looked at the keys before anything comes here.
    schemes = (HTTPBearer(auto_error=False), APIKeyHeader(name="X-API-Key", auto_error=False))
    keyed = [Depends(scheme) for scheme in schemes] if has_keys else []
    app = FastAPI(
        title="rectune", version=__version__, description=_ABOUT,
        # Its pages take scripts from other hosts; the document itself is at /openapi.json.
        docs_url=None, redoc_url=None,
        responses={status: {"model": Problem, "description": what} for status, what in _PROBLEMS.items()},
    )  # fmt: skip

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        return _problem(request, 400 if error.errors()[0]["type"] == "json_invalid" else 422, _line(error))

    @app.exception_handler(HTTPException)
    async def _refused(request: Request, error: HTTPException) -> Response:
        line = {404: "no such path; /openapi.json lists them", 405: "no such method here; /openapi.json lists them"}
        headers = dict(error.headers or {})
        return _problem(request, error.status_code, line.get(error.status_code, str(error.detail)), **headers)

    @app.exception_handler(Refused)
    @app.exception_handler(RectuneError)
    async def _unanswered(request: Request, error: Exception) -> Response:
        after = error.after if isinstance(error, Refused) else None
        headers = {} if after is None else {"retry-after": str(after)}
        if _status(error) == 503:
            service.journal.failed("scoring", error, id=request.state.id)
        return _problem(request, _status(error), " ".join(str(error).split()), **headers)

    @app.exception_handler(Exception)
    async def _failed(request: Request, _error: Exception) -> Response:
        return _problem(request, 500, "the service failed at this request; its journal says where")

    async def rerank(
        request: Request,
        body: Annotated[RerankRequest, Body(openapi_examples=RERANK_EXAMPLES)],
    ) -> Response:
        serving, (question,), _, (answer,) = await service.answer(
            lambda serving, going: (serving.reader.rerank(body, going), None), _gone(request)
        )
        return _json(_reranked(request, body, serving, question, answer))

    for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
        app.post(
            path, summary="Rank candidates for one person", response_model=RerankResponse,
            include_in_schema=path == "/v1/rerank", dependencies=keyed,
        )(rerank)  # fmt: skip

    @app.post(
        "/v1/score", summary="P(like) of candidates, or of pairs", response_model=ScoreResponse, dependencies=keyed
    )
    async def score(
        request: Request,
        body: Annotated[ScoreRequest, Body(openapi_examples=SCORE_EXAMPLES)],
    ) -> Response:
        serving, _, _, answers = await service.answer(
            lambda serving, going: (serving.reader.score(body, going), None), _gone(request)
        )
        odds = np.concatenate([answer.odds for answer in answers])
        data = [
            {"index": at, "object": "score", "score": score, "log_odds": each}
            for at, (score, each) in enumerate(zip(probability(odds).tolist(), odds.tolist(), strict=True))
        ]
        usage = _told(request, answers)
        return _json(
            {"id": f"score-{request.state.id}", "object": "list", "model": serving.name, "data": data, "usage": usage}
        )

    @app.post(
        "/v1/recommend", summary="Items for a user of the dataset", response_model=RecommendResponse, dependencies=keyed
    )
    async def recommend(
        request: Request,
        body: Annotated[RecommendRequest, Body(openapi_examples=RECOMMEND_EXAMPLES)],
    ) -> Response:
        def read(serving: Serving, _going: Going) -> tuple[list[Question], str]:
            question, found = serving.reader.recommend(body)
            return [question], found.by

        serving, (question,), retriever, (answer,) = await service.answer(read, _gone(request))
        scores = probability(answer.odds).tolist()
        results = [
            {
                "rank": rank, "item_id": question.names[at].item_id, "title": question.names[at].title,
                "score": scores[at], "log_odds": float(answer.odds[at]), "retriever_rank": at + 1,
            }
            for rank, at in enumerate(_order(answer)[: body.k], start=1)
        ]  # fmt: skip
        return _json(
            {
                "id": f"recommend-{request.state.id}", "model": serving.name, "retriever": retriever,
                "results": results, "usage": _told(request, [answer]),
            }
        )  # fmt: skip

    if has_keys:

        @app.post(
            "/v1/reload", summary="Serve what lies in the run folder now", response_model=Reloaded, dependencies=keyed
        )
        async def reload(_body: Annotated[ReloadRequest, Body()]) -> Response:
            serving, seconds = await asyncio.to_thread(service.reload)
            return _json({"model": serving.name, "adapter": serving.adapter, "seconds": round(seconds, 2)})

    @app.get("/health", summary="Whether the process is there", responses={200: {"model": dict[str, str]}})
    async def health() -> Response:
        return _json({"status": "ok"})

    @app.get("/ready", summary="Whether requests are answered", responses={200: {"model": dict[str, str]}})
    async def ready() -> Response:
        if service.draining:
            return _json({"status": "stopping"}, 503, **{"retry-after": "5"})
        return _json({"status": "ready", "model": service.serving.name, "adapter": service.serving.adapter[:12]})

    @app.get("/metrics", summary="Counts for Prometheus", response_class=Response, dependencies=keyed)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _order(answer: Answered) -> list[int]:
    """Places of candidates, best first; those with equal scores keep their order."""
    found: list[int] = np.argsort(-answer.odds, kind="stable").tolist()
    return found


def _reranked(
    request: Request, body: RerankRequest, serving: Serving, question: Question, answer: Answered
) -> dict[str, Any]:
    scores = probability(answer.odds).tolist()
    results = []
    for at in _order(answer)[: body.top_n or None]:
        result: dict[str, Any] = {"index": at, "relevance_score": scores[at]}
        if body.return_documents:
            name = question.names[at]
            result["document"] = {"text": name.title, "item_id": name.item_id}
        results.append(result)
    usage = _told(request, [answer])
    return {
        "id": f"rerank-{request.state.id}", "model": serving.name, "results": results, "usage": usage,
        "meta": {"api_version": {"version": "1"}, "billed_units": {"search_units": 1}},
    }  # fmt: skip
