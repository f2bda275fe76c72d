"""The FastAPI app of a service: its routes, and what OpenAPI says of them."""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, create_model
from starlette.exceptions import HTTPException

from credit_client.service.answers import (
    ANSWERS,
    Language,
    Rejected,
    Stamp,
    answers,
    reasons_given,
)
from credit_client.service.coalesce import BusyError, EngineError
from credit_client.service.opened import explains
from credit_client.service.reading import Reader, split
from credit_client.service.refusals import Refusal, because, problems_of, refuse
from credit_client.service.schema import read_fields
from credit_client.service.serving import Serving
from credit_common.record import Record

VERSION = "1"
PIECE = 32
"""Rows of a batch that are read before other requests have their turn."""

_ABOUT = """Scores records by a release of a federation, at the holder: nothing leaves this machine.

A record is read as `credit-client score` reads a row of a shard, and gets the same score. A field
that may be missing may be null or left out; what a contract clips or counts as missing is clipped
or counted as missing here; what it rejects is refused with 422, by field and reason. A field that
is not scored (an identifier, the label, a protected attribute) is refused too."""
_REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "The body cannot be read"},
    401: {"model": Refusal, "description": "No valid token"},
    408: {"model": Refusal, "description": "The body came too late"},
    413: {"model": Refusal, "description": "The body is too large"},
    415: {"model": Refusal, "description": "The body is not said to be JSON"},
    422: {"model": Refusal, "description": "Fields that are refused, and why; never their values"},
    429: {"model": Refusal, "description": "Too many requests of this client; see Retry-After"},
    503: {"model": Refusal, "description": "Too much waits, or the end is near; see Retry-After"},
}


class Up(BaseModel):
    """Whether the service is up."""

    status: Literal["ok", "draining"]


class Model(BaseModel):
    """What scores."""

    release: str = Field(description="SHA-256 of the release")
    federation: str
    contract: str = Field(description="SHA-256 of the contract")
    epsilon: float | None = Field(description="that the release's users are promised, at delta")
    delta: float
    created: str
    engine: str = Field(description="torch, onnx or int8")
    calibrated: bool = Field(description="whether the holder has calibrated it")
    task: str
    fields: list[str]


def make_app(serving: Serving) -> FastAPI:
    """The app that scores by what `serving` holds; its contract stays the same for good."""
    reader = serving.reader
    contract = reader.contract
    answer = ANSWERS[contract.task.kind]
    most = len(read_fields(contract)) if explains(contract) else 0
    asked = _asked(most)
    one = create_model("Score", __base__=(answer, Stamp))
    row = create_model("RowScore", __base__=answer, index=(int, ...))
    many = create_model(
        "Scores",
        __base__=Stamp,
        scores=(list[row], ...),  # type: ignore[valid-type]
        rejects=(list[Rejected], ...),
    )
    batch = _batch(serving.settings.max_batch)

    app = FastAPI(
        title=f"Scores of {contract.federation.name}",
        version=VERSION,
        description=_ABOUT,
        docs_url="/docs" if serving.settings.docs else None,
        redoc_url=None,
    )
    _explain_refusals(app)

    @app.post("/v1/score", response_model=one, responses=_REFUSALS, summary="Score one record")
    async def score(
        request: Request,
        record: reader.model,  # type: ignore[name-defined]  # made from the contract
        asked: Annotated[asked, Query()],  # type: ignore[valid-type]
    ) -> Any:
        id_ = request.state.request_id
        read = reader.record(record)
        if not isinstance(read, Record):
            serving.figures.rows.labels("refused").inc()
            return refuse(422, read, id_)
        told = await _told(serving, [read], asked)
        serving.figures.rows.labels("scored").inc()
        return {**told.pop("rows")[0], **told, "request_id": id_}

    @app.post("/v1/scores", response_model=many, responses=_REFUSALS, summary="Score a batch")
    async def scores(
        request: Request,
        batch: batch,  # type: ignore[valid-type]
        asked: Annotated[asked, Query()],  # type: ignore[valid-type]
    ) -> Any:
        """Rows that are refused are listed with index, field and reason; the others are scored."""
        records, refused = split(await _read(reader, batch.records))  # type: ignore[attr-defined]
        told = await _told(serving, [record for _, record in records], asked)
        serving.figures.rows.labels("scored").inc(len(records))
        serving.figures.rows.labels("refused").inc(len({index for index, _ in refused}))
        rows = told.pop("rows")
        return {
            **told,
            "request_id": request.state.request_id,
            "scores": [
                {"index": index, **own} for (index, _), own in zip(records, rows, strict=True)
            ],
            "rejects": [{"index": index, **problem.model_dump()} for index, problem in refused],
        }

    @app.get("/v1/model", response_model=Model, responses=_some(401, 408, 413, 429))
    async def model() -> Any:
        opened = serving.opened
        return {
            "release": opened.release.digest,
            "federation": contract.federation.name,
            "contract": opened.release.contract.digest,
            "epsilon": opened.release.facts.epsilon,
            "delta": contract.privacy.delta,
            "created": opened.release.facts.created,
            "engine": opened.engine.name,
            "calibrated": opened.calibration is not None,
            "task": contract.task.kind,
            "fields": [field.name for field in read_fields(contract)],
        }

    @app.get("/healthz", response_model=Up, responses=_some(408, 413))
    async def healthz() -> Any:
        """Whether the process answers; no token is needed."""
        return {"status": "ok"}

    @app.get(
        "/readyz",
        response_model=Up,
        responses={**_some(408, 413), 503: {"model": Up, "description": "It is about to end"}},
    )
    async def readyz() -> Any:
        """Whether requests should come here; no token is needed."""
        if serving.draining():
            return JSONResponse({"status": "draining"}, 503)
        return {"status": "ok"}

    text = {"content": {"text/plain": {"schema": {"type": "string"}}}}

    # A response class of its own would stand for the refusals too, which are JSON.
    @app.get(
        "/metrics", response_class=Response, responses={200: text, **_some(401, 408, 413, 429)}
    )
    async def metrics() -> Response:
        """All workers' figures, for Prometheus."""
        return Response(serving.figures.text(), media_type="text/plain; version=0.0.4")

    _describe(app, guarded=serving.settings.token_file is not None)
    return app


def _asked(most: int) -> type[BaseModel]:
    """Parameters of a request for scores."""
    return create_model(
        "Asked",
        __config__=ConfigDict(extra="forbid"),
        reasons=(int, Field(0, ge=0, le=most, description="fields that raise the risk most")),
        language=(Language, Field("en", description="of the reasons' texts")),
    )


def _batch(most: int) -> type[BaseModel]:
    """A batch's body. Its rows may be anything: each is refused or scored by itself."""
    schema: dict[str, Any] = {"anyOf": [{"$ref": "#/components/schemas/Record"}, {}]}
    rows = Field(min_length=1, max_length=most, json_schema_extra={"items": schema})
    return create_model(
        "Batch", __config__=ConfigDict(extra="forbid", strict=True), records=(list[Any], rows)
    )


async def _read(reader: Reader, rows: list[Any]) -> list[Any]:
    """Rows as they are read; a long batch lets other requests pass."""
    read: list[Any] = []
    for start in range(0, len(rows), PIECE):
        read += [reader.row(row) for row in rows[start : start + PIECE]]
        await asyncio.sleep(0)
    return read


async def _told(serving: Serving, records: list[Record], asked: Any) -> dict[str, Any]:
    """What each record is told, and by which release."""
    opened = serving.opened  # the same for the whole request, whatever is swapped meanwhile
    told: dict[str, Any] = {"release": opened.release.digest, "rows": []}
    if records:
        scores = await serving.coalescer.score(opened, records, asked.reasons)
        rows = answers(opened, scores.scores)
        for row, shares in zip(rows, scores.reasons, strict=True):
            row["reasons"] = reasons_given(opened.contract, shares, asked.language)
        told["rows"] = rows
    return told


def _explain_refusals(app: FastAPI) -> None:
    """Answers without success in our own words: FastAPI's hold what was sent."""

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        if isinstance(error.body, bytes) and error.body:  # was not read as JSON
            why = because("Content-Type must be application/json")
            return refuse(415, why, request.state.request_id)
        return refuse(422, problems_of(error.errors(), 1), request.state.request_id)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        reasons = {400: "the body cannot be read", 404: "no such path", 405: "no such method here"}
        reason = reasons.get(error.status_code, "refused")
        return refuse(error.status_code, because(reason), request.state.request_id, error.headers)

    async def busy(request: Request, error: Exception) -> Response:
        reason = "the model has failed" if isinstance(error, EngineError) else str(error)
        return refuse(503, because(reason), request.state.request_id, {"Retry-After": "1"})

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(BusyError, busy)
    app.add_exception_handler(EngineError, busy)


def _some(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: _REFUSALS[status] for status in statuses}


def _describe(app: FastAPI, *, guarded: bool) -> None:
    """OpenAPI that says where a token is needed."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            if guarded:
                bearer = {"type": "http", "scheme": "bearer"}
                made["components"]["securitySchemes"] = {"token": bearer}
                for path, methods in made["paths"].items():
                    for operation in methods.values():
                        if path not in ("/healthz", "/readyz"):
                            operation["security"] = [{"token": []}]
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
