"""The server: OpenAI's API over models in any format, and the page."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qformats.chatting.answer import Answer, Piece
from qformats.chatting.answer import Request as Asked
from qformats.chatting.loaded import ChatModel
from qformats.errors import QFormatsError
from qformats.serving.failures import ApiError, as_api_error
from qformats.serving.replies import ChatReply, CompletionReply, Reply, speeds, usage
from qformats.serving.schema import ChatRequest, CompletionRequest, Sampled
from qformats.version import __version__

__all__ = ["Limits", "make_app"]

_PAGE = {"/": "index.html", "/page.css": "page.css", "/page.js": "page.js"}
_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}
_SAFE = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_Body = TypeVar("_Body", bound=Sampled)


@dataclass(frozen=True)
class Limits:
    """What one request may ask for.

    Attributes
    ----------
    body_bytes : int
        Of its body.
    tokens : int or None
        Of an answer; requests for more get so many. ``None`` for as many as the context has room for.
    prompts : int
        Answers of one request.
    """

    body_bytes: int = 4 << 20
    tokens: int | None = None
    prompts: int = 64


def make_app(
    models: Mapping[str, ChatModel],
    *,
    api_key: str | None = None,
    hosts: frozenset[str] | None = None,
    origins: Sequence[str] = (),
    limits: Limits | None = None,
) -> FastAPI:
    """The application that a server runs.

    Parameters
    ----------
    models : mapping of str to ChatModel
        By the names that clients know them by.
    api_key : str, optional
        Clients must send it as ``Authorization: Bearer KEY``.
    hosts : frozenset of str, optional
        Names that the server may be called by; a page of another name that leads here is not its business. ``None`` for
        any.
    origins : sequence of str
        Origins of other web pages that may call it from a browser.
    limits : Limits, optional
        What one request may ask for.
    """
    server = _Server(models, api_key, hosts, origins, limits or Limits())
    app = FastAPI(title="qformats", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    for kind in (ApiError, HTTPException, QFormatsError, ValidationError, Exception):
        app.add_exception_handler(kind, _failed)
    app.add_middleware(_Guard, admit=server.admit)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )
    for path in _PAGE:
        app.add_api_route(path, server.page, methods=["GET"])
    app.add_api_route("/health", server.health, methods=["GET"])
    app.add_api_route("/v1/models", server.list_models, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", server.one_model, methods=["GET"])
    app.add_api_route("/v1/chat/completions", server.chat, methods=["POST"], response_model=None)
    app.add_api_route("/v1/completions", server.complete, methods=["POST"], response_model=None)
    return app


async def _failed(_request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        told = {404: "there is nothing at this address", 405: "this address does not take this method"}
        error = ApiError(error.status_code, told.get(error.status_code, str(error.detail)))
    found = as_api_error(error)
    return JSONResponse(found.body, found.status, {**_SAFE, **found.headers})


class _Guard:
    """Lets in who may come in, and has browsers keep to what the page needs."""

    def __init__(self, app: ASGIApp, admit: Callable[[Request], None]) -> None:
        self._app, self._admit = app, admit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            self._admit(Request(scope))
        except ApiError as error:
            await (await _failed(Request(scope), error))(scope, receive, send)
            return

        async def safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_SAFE)
            await send(message)

        await self._app(scope, receive, safely)


class _Server:
    """Answers requests of HTTP."""

    def __init__(
        self,
        models: Mapping[str, ChatModel],
        api_key: str | None,
        hosts: frozenset[str] | None,
        origins: Sequence[str],
        limits: Limits,
    ) -> None:
        self._models, self._key, self._hosts = dict(models), api_key, hosts
        self._origins, self._limits = frozenset(origins), limits

    def admit(self, request: Request) -> None:
        """Let in who may come in; raises what the others are told."""
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
        if self._hosts is not None and host not in self._hosts:
            raise ApiError(403, f"this server is not called {host!r}", code="host")
        # A page of someone else's may send requests from the browser of whoever runs this server.
        origin = request.headers.get("origin")
        if origin and origin not in self._origins and urlsplit(origin).netloc != request.headers.get("host"):
            raise ApiError(403, f"pages from {origin} may not call this server", code="origin")
        if self._key is not None and request.url.path.startswith("/v1/"):
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self._key.encode()):
                told = "an API key is needed: Authorization: Bearer KEY"
                raise ApiError(401, told, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

    # What there is.

    async def page(self, request: Request) -> Response:
        """The page, its style and its script."""
        name = _PAGE[request.url.path]
        content = (files("qformats.serving") / "page" / name).read_bytes()
        return Response(content, media_type=_TYPES[name.rpartition(".")[2]])

    async def health(self) -> dict[str, str]:
        """Whether the server answers."""
        return {"status": "ok"}

    async def list_models(self) -> dict[str, Any]:
        """All models."""
        return {"object": "list", "data": [self._described(name) for name in self._models]}

    async def one_model(self, name: str) -> dict[str, Any]:
        """One of the models."""
        self._model(name)
        return self._described(name)

    def _described(self, name: str) -> dict[str, Any]:
        model = self._models[name]
        facts = model.facts
        about = {
            "formats": {format: {"tensors": n, "bytes": size} for format, (n, size) in facts.formats.items()},
            "chat": model.prompts.can_chat,
            "context": model.context,
            "bytes": facts.nbytes,
            "cache_bytes": facts.cache_nbytes,
            "process_bytes": facts.process_nbytes,
            "device": facts.device,
            "load_seconds": facts.load_seconds,
            "active": model.engine.active,
            "waiting": model.engine.waiting,
            "batches": model.engine.batches,
        }
        return {"id": name, "object": "model", "created": 0, "owned_by": "qformats", "qformats": about}

    def _model(self, name: str) -> ChatModel:
        if name not in self._models:
            known = ", ".join(self._models)
            raise ApiError(404, f"there is no model {name!r}; there are {known}", "model", "model_not_found")
        return self._models[name]

    # What is asked for.

    async def chat(self, request: Request) -> Response:
        """``/v1/chat/completions``."""
        body = await self._body(request, ChatRequest)
        model = self._model(body.model)
        messages = [message.plain() for message in body.messages]
        # A template runs in a process of its own, which this thread must not wait for.
        ids = await asyncio.to_thread(model.prompts.chat, messages, body.chat_template_kwargs)
        asked = self._asked(model, body, ids, body.most, body.likeliest, turn=True)
        return await self._reply(request, model, body, [asked] * body.choices, 1, ChatReply(body.model))

    async def complete(self, request: Request) -> Response:
        """``/v1/completions``."""
        body = await self._body(request, CompletionRequest)
        model = self._model(body.model)
        prompts = body.prompts
        asked, before = [], []
        for prompt in prompts:
            ids = await asyncio.to_thread(model.prompts.text, prompt) if isinstance(prompt, str) else prompt
            self._check_ids(model, ids)
            asked += [self._asked(model, body, ids, body.most, body.likeliest)] * body.choices
            text = prompt if isinstance(prompt, str) else model.engine.tokenizer.decode(prompt)
            before += [text] * body.choices
        reply = CompletionReply(body.model, before if body.echo else ())
        return await self._reply(request, model, body, asked, len(prompts), reply)

    def _check_ids(self, model: ChatModel, ids: Sequence[int]) -> None:
        known = model.source.config.get("vocab_size")
        if not ids or not all(0 <= each and (known is None or each < known) for each in ids):
            raise ApiError(
                400, "prompt: there are ids that the model has no tokens for", "prompt", "invalid_value"
            )

    def _asked(
        self,
        model: ChatModel,
        body: Sampled,
        ids: Sequence[int],
        most: int | None,
        likeliest: int | None,
        turn: bool = False,
    ) -> Asked:
        limit = self._limits.tokens
        if limit is not None:
            most = limit if most is None else min(most, limit)
        sampling = model.sampling(**body.sampling())
        return model.request(
            ids, most=most, sampling=sampling, stops=body.stops, logprobs=likeliest, turn=turn
        )

    async def _body(self, request: Request, kind: type[_Body]) -> _Body:
        """Read a request's body, which may be so long and no longer."""
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise ApiError(415, "the body must be JSON: Content-Type: application/json")
        content = b""
        async for part in request.stream():
            content += part
            if len(content) > self._limits.body_bytes:
                raise ApiError(
                    413, f"the body is larger than {self._limits.body_bytes} bytes", code="too_large"
                )
        return kind.model_validate_json(content)

    async def _reply(
        self,
        request: Request,
        model: ChatModel,
        body: Sampled,
        asked: list[Asked],
        prompts: int,
        reply: Reply,
    ) -> Response:
        if len(asked) > self._limits.prompts:
            raise ApiError(
                400, f"more than {self._limits.prompts} answers are asked for", "n", "invalid_value"
            )
        run = _Run(model, asked)
        run.begin()
        if body.stream:
            events = _events(run, reply, body.with_usage, prompts)
            return StreamingResponse(events, media_type="text/event-stream")
        answers: list[list[Piece]] = [[] for _ in asked]
        watching = asyncio.ensure_future(_gone(request))
        try:
            async for index, piece in run.pieces(watching):
                answers[index].append(piece)
        finally:
            watching.cancel()
            run.cancel()
        timings = [pieces[-1].timings for pieces in answers if pieces and pieces[-1].timings]
        return JSONResponse(reply.whole(answers, usage(timings, prompts)))


async def _gone(request: Request) -> None:
    """Wait until the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _Run:
    """Answers of one request, from the thread of the model to this one."""

    def __init__(self, model: ChatModel, asked: Sequence[Asked]) -> None:
        self._model, self._asked = model, asked
        self._arriving: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self._answers: list[Answer] = []

    def begin(self) -> None:
        """Ask for all of them, or for none."""
        loop = asyncio.get_running_loop()

        def sink(index: int) -> Callable[[Piece], None]:
            return lambda piece: _told(loop, self._arriving, (index, piece))

        try:
            for index, asked in enumerate(self._asked):
                self._answers.append(self._model.engine.submit(asked, sink(index)))
        except Exception:
            self.cancel()
            raise

    async def pieces(
        self, until: asyncio.Future[None] | None = None
    ) -> AsyncGenerator[tuple[int, Piece], None]:
        """Pieces as they come, each with the number of its answer; ends early when `until` is done."""
        left = len(self._answers)
        while left:
            getting = asyncio.ensure_future(self._arriving.get())
            waited: list[asyncio.Future[Any]] = [getting, *([until] if until else [])]
            try:
                await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    raise ApiError(499, "the client has gone")
            finally:
                getting.cancel()
            index, piece = getting.result()
            if piece.error is not None:
                raise as_api_error(piece.error) from piece.error
            if piece.finish == "cancelled":
                raise ApiError(503, "the server is shutting down", None, "shutting_down")
            left -= bool(piece.finish)
            yield index, piece

    def cancel(self) -> None:
        """End what has not ended."""
        for answer in self._answers:
            answer.cancel()


def _told(loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[Any], item: object) -> None:
    # The loop may have ended, together with whoever waited for it.
    if not loop.is_closed():
        loop.call_soon_threadsafe(queue.put_nowait, item)


async def _events(run: _Run, reply: Reply, with_usage: bool, prompts: int) -> AsyncIterator[str]:
    """Server-sent events of a stream; a client that goes away ends it here."""
    timings, opened = {}, set()
    nothing = {"usage": None} if with_usage else {}
    try:
        async with aclosing(run.pieces()) as pieces:
            async for index, piece in pieces:
                if index not in opened:
                    opened.add(index)
                    first = reply.opening(index)
                    if first is not None:
                        yield _event(reply.chunk([first], **nothing))
                more: dict[str, Any] = {}
                if piece.timings is not None:
                    timings[index] = piece.timings
                    more["timings"] = speeds(piece.timings)
                yield _event(reply.chunk([reply.part(index, piece)], **nothing, **more))
        if with_usage:
            numbers = usage([timings[index] for index in sorted(timings)], prompts)
            yield _event(reply.chunk([], usage=numbers))
    except Exception as error:
        # The status has been sent: what goes wrong later is an event.
        yield _event(as_api_error(error).body)
    finally:
        run.cancel()
    yield "data: [DONE]\n\n"


def _event(data: object) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
