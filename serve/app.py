"""The routes of the HTTP service; see `eao.serve.schemas` for what they take and give."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi import Path as PathParameter
from fastapi import Query as QueryParameter
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, Response

import eao
from eao.errors import EaoError
from eao.retrieval.clips import Floats
from eao.serve.access import COOKIE
from eao.serve.frame import Frame
from eao.serve.logs import log
from eao.serve.metrics import CONTENT_TYPE
from eao.serve.problems import REASON, Problem, declare, from_eao, problem_reply, validation_problem
from eao.serve.schemas import Embeddings, ErrorReply, Facets, Health, Key, Query, SearchResult, Texts
from eao.serve.service import Service
from eao.serve.videos import CACHING, matches, open_file, video_response

PAGE = Path(__file__).parent / "page"
_MONTH = 30 * 24 * 3600
_OPEN = ("/", "/health", "/session")
_TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
_FILE_ID = Annotated[str, PathParameter(max_length=100, description="Of a file, as a search gives it.")]


def create_app(service: Service) -> Frame:
    """The service as an ASGI application.

    Args:
        service: that does the work; it is entered by whoever runs the application.
    """
    app = FastAPI(
        title="eao serve",
        version=eao.__version__,
        description="Search videos by words, by video and by sound; embeddings.",
        docs_url=None,  # its assets lie elsewhere
        redoc_url=None,
    )
    page = page_files(PAGE)
    frame = Frame(app, service.settings, service.metrics, {*_OPEN, *page})
    _answer_errors(app)
    _add_state(app, service, frame)
    _add_searching(app, service)
    _add_videos(app, service)
    _add_page(app, page)
    return frame


def page_files(folder: Path) -> dict[str, Path]:
    """The files of the page by their path in the service; `index.html` is that of a folder as well."""
    found = {f"/{path.relative_to(folder).as_posix()}": path for path in folder.rglob("*") if path.is_file()}
    return found | ({"/": found["/index.html"]} if "/index.html" in found else {})


def _answer_errors(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        if isinstance(error, Problem):
            request.scope[REASON] = error.reason
        return problem_reply(error)

    @app.exception_handler(EaoError)
    async def eao_error(request: Request, error: EaoError) -> Response:
        problem = from_eao(error)
        if problem.status_code == 503:
            log.error(error.message)
        return await http_error(request, problem)

    @app.exception_handler(RequestValidationError)
    async def request_error(_: Request, error: RequestValidationError) -> Response:
        return problem_reply(validation_problem(error.errors()))

    @app.exception_handler(ValidationError)
    async def validation_error(_: Request, error: ValidationError) -> Response:
        return problem_reply(validation_problem(error.errors()))

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> Response:
        return problem_reply(Problem(500, "something went wrong here", "the log of the service says more"))


def _add_state(app: FastAPI, service: Service, frame: Frame) -> None:
    @app.get("/health", responses={503: {"model": Health | ErrorReply}, 400: {"model": ErrorReply}})
    async def health(response: Response) -> Health:
        """Whether the service answers; 503 while it finishes what it has accepted before it ends."""
        listing = await service.listing()
        if frame.draining:
            response.status_code = 503
            response.headers["Retry-After"] = "5"
        return Health(
            status="draining" if frame.draining else "ok",
            clips=listing.clips,
            files=len(listing.files),
            encoders=list(service.embedder.encoders),
            model=service.embedder.model_hash,
        )

    @app.get("/facets", responses=declare())
    async def facets() -> Facets:
        """What a search can be narrowed to."""
        listing = await service.listing()
        return await asyncio.to_thread(listing.facets, service.index.encoders, service.settings.max_upload)

    @app.post("/session", status_code=204, responses=declare(408, 413, 422))
    async def log_in(key: Key, request: Request) -> Response:
        """Exchange the API key for a cookie, so that pictures and videos of the page can be loaded."""
        if service.settings.api_key and not frame.access.is_key(key.key):
            raise Problem(401, "this is not the API key", "ask whoever runs the service")
        response = Response(status_code=204)
        if service.settings.api_key:
            response.set_cookie(
                COOKIE,
                frame.access.session,
                max_age=_MONTH,
                httponly=True,
                samesite="strict",
                secure=request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https",
            )
        return response

    @app.delete("/session", status_code=204, responses=declare())
    async def log_out() -> Response:
        """Forget the cookie."""
        response = Response(status_code=204)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict")
        return response

    @app.get("/metrics", response_class=Response, responses=declare() | {200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Counters for Prometheus."""
        return Response(await asyncio.to_thread(service.metrics.render), headers={"Content-Type": CONTENT_TYPE})


def _add_searching(app: FastAPI, service: Service) -> None:
    @app.get("/search", responses=declare(404, 422))
    async def search(query: Annotated[Query, QueryParameter()]) -> SearchResult:
        """Search with words, or for more like a clip."""
        return await service.search(query)

    @app.post("/search", responses=declare(404, 408, 413, 415, 422), openapi_extra=_form_body(_SEARCH_FORM))
    async def search_with_file(request: Request) -> SearchResult:
        """Search with a video or a sound, alone or together with words."""
        _check_type(request, "multipart/form-data")
        async with service.uploads.form(request) as form:
            return await service.search(Query.model_validate(form.fields), form)

    @app.post(
        "/embed",
        response_model=Embeddings,
        responses=declare(408, 413, 415, 422),
        openapi_extra=_form_body(_EMBED_FORM, Texts.model_json_schema()),
    )
    async def embed(request: Request) -> Response:
        """Embed sentences, or a video, a sound, or both, alone or together with words."""
        if _check_type(request, "application/json", "multipart/form-data") == "application/json":
            texts = Texts.model_validate_json(await request.body())
            encoder, vectors = await service.embed_texts(texts.text)
        else:
            async with service.uploads.form(request) as form:
                encoder, vectors = await service.embed_form(form)
        # Thousands of numbers a row: written in a thread, so that the others need not wait.
        content = await asyncio.to_thread(_write_embeddings, encoder, service.embedder.model_hash, vectors)
        return Response(content, media_type="application/json")


def _add_videos(app: FastAPI, service: Service) -> None:
    whole = {"content": {"application/octet-stream": {}, "video/*": {}}, "description": "The file."}
    statuses: dict[int | str, dict[str, Any]] = {
        200: whole,
        206: whole | {"description": "A range of the file."},
        304: {"description": "It is the one that `If-None-Match` names, or older than `If-Modified-Since`."},
    }

    async def video(file_id: _FILE_ID, request: Request) -> Response:
        """An indexed file, whole or in a range."""
        file = (await service.listing()).file(file_id)
        handle, status = await asyncio.to_thread(open_file, file)
        return video_response(request.method, request.headers, file, handle, status)

    path = "/videos/{file_id}"
    answers = declare(404, 416, 422) | statuses
    app.get(path, response_class=Response, responses=answers, operation_id="get_video")(video)
    app.head(path, response_class=Response, responses=answers, operation_id="head_video")(video)

    @app.get(
        "/videos/{file_id}/thumbnail",
        response_class=Response,
        responses=declare(404, 422)
        | {200: {"content": {"image/jpeg": {}}}, 304: {"description": "It is the one that `If-None-Match` names."}},
    )
    async def thumbnail(
        file_id: _FILE_ID,
        request: Request,
        at: Annotated[float, QueryParameter(ge=0, le=1e9, allow_inf_nan=False, description="Seconds.")] = 0.0,
        width: Annotated[int, QueryParameter(ge=16, le=2000, description="Pixels.")] = 320,
    ) -> Response:
        """A picture of an indexed file."""
        file = (await service.listing()).file(file_id)
        try:
            wanted = await service.thumbnails.find(file, at, width)
            headers = {"ETag": wanted.etag, "Cache-Control": CACHING}
            if matches(request.headers.get("if-none-match", ""), wanted.etag):
                return Response(status_code=304, headers=headers)
            picture = await service.thumbnails.get(wanted)
        except EaoError as error:
            message = error.message.replace(file.path, file.name)
            raise Problem(404, f"there is no picture of {file.name}: {message}", error.hint) from None
        return Response(picture, media_type="image/jpeg", headers=headers)


def _add_page(app: FastAPI, files: Mapping[str, Path]) -> None:
    def add(path: str, file: Path) -> None:
        async def static() -> Response:
            return FileResponse(file, media_type=_TYPES.get(file.suffix), headers={"Cache-Control": "no-cache"})

        app.get(path, include_in_schema=False)(static)

    for path, file in files.items():
        add(path, file)


def _check_type(request: Request, *taken: str) -> str:
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if given not in taken:
        raise Problem(415, f"a body of type {given[:80]!r} is not taken", f"send {' or '.join(taken)}")
    return given


def _write_embeddings(encoder: str, model: str, vectors: Floats) -> bytes:
    rows = np.asarray(vectors, np.float64).tolist()
    return json.dumps({"encoder": encoder, "model": model, "embeddings": rows}).encode()


def _form_body(form: dict[str, Any], texts: dict[str, Any] | None = None) -> dict[str, Any]:
    """The body of a route that reads it by itself, for the OpenAPI."""
    content = {"multipart/form-data": {"schema": form}}
    if texts is not None:
        content["application/json"] = {"schema": texts}
    return {"requestBody": {"required": True, "content": content}}


_BINARY = {"type": "string", "format": "binary"}
_SEARCH_FORM = {
    "type": "object",
    "properties": {"file": _BINARY} | Query.model_json_schema()["properties"],
}
_EMBED_FORM = {
    "type": "object",
    "properties": {"video": _BINARY, "audio": _BINARY, "text": {"type": "string", "maxLength": 1000}},
}
