"""A system behind HTTP: caption, answer, classify, embed, search, moments.

Owns the requests, their limits and their errors. Requests that wait are computed
together by `batching`; results come from `slit` and `search_index`. It needs FastAPI
and uvicorn (extra: serve). Audio is uploaded; no request names a file of this machine.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import functools
import io
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from espnet2_slit import __version__
from espnet2_slit.common.names import ROUTES
from espnet2_slit.data.audio import AudioError, probe
from espnet2_slit.inference.batching import Batcher, QueueFull
from espnet2_slit.inference.one_by_one import fault_of
from espnet2_slit.inference.requests import InferenceError
from espnet2_slit.inference.search_index import DEFAULT_NAME, SearchIndex
from espnet2_slit.inference.slit import SLIT
from espnet2_slit.inference.windows import MOMENT_WINDOWS_S

logger = logging.getLogger(__name__)

# What can be asked: {path: ({field: its JSON schema}, does it come with audio?)}.
TEXT = {"type": "string"}
TEXTS = {"type": "array", "items": TEXT}
WHOLE = {"type": "integer", "minimum": 1}
NUMBERS = {"type": "array", "items": {"type": "number", "exclusiveMinimum": 0}}
WRITING = {"num_beams": WHOLE, "max_new_tokens": WHOLE}
FIELDS: dict[str, dict[str, dict[str, Any]]] = {
    "caption": {"instruction": TEXT, "window_s": {"type": "number"}, **WRITING},
    "answer": {"question": TEXT, "candidates": TEXTS, **WRITING},
    "classify": {
        "labels": TEXTS,
        "route": {"enum": list(ROUTES)},
    },
    "embed": {"text": TEXT},
    "moments": {"text": TEXT, "top_k": WHOLE, "window_s": NUMBERS},
    "search": {
        "text": TEXT,
        "top_k": WHOLE,
        "rerank": {"type": "integer", "minimum": 0},
        "moments": {"type": "boolean"},
    },
}
NEEDED = {
    "answer": "question",
    "classify": "labels",
    "moments": "text",
    "search": "text",
}
SUMMARY = {
    "caption": "Describe audio",
    "answer": "Answer a question about audio",
    "classify": "Choose among labels",
    "embed": "Embed audio, or a text",
    "moments": "When something is heard",
    "search": "Search the folder that the server was started with",
}


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes:
        megabytes: of one request.
        audio_s: seconds of one upload.
        waiting: requests that may wait.
    """

    megabytes: float = 100.0
    audio_s: float = 3600.0
    waiting: int = 256


class RequestError(Exception):
    """A request that is not served: an HTTP status and what to do instead."""

    def __init__(self, status: int, detail: str):
        super().__init__(detail)
        self.status, self.detail = status, detail


# ------------------------------------------------------------------ what is computed


class Tasks:
    """What requests ask of a system, in batches.

    Args:
        slit: system.
        index: of a folder to search; None for none.
    """

    def __init__(self, slit: SLIT, index: SearchIndex | None = None):
        self.slit, self.index = slit, index

    def plan(
        self, task: str, values: dict[str, Any], path: str | None
    ) -> tuple[Hashable, Callable, Any]:
        """(kind, work, item) for the batcher; see `FIELDS` for the values."""
        item: Any = path
        if task == "answer":
            item = (path, values.pop("question"))
        elif task == "embed" and path is None:
            task, item = "embed_text", values.pop("text")
        elif task in ("moments", "search"):
            item = (path, values.pop("text"))
        fixed = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        kind = (task, tuple(sorted(fixed.items())))
        return kind, functools.partial(getattr(self, f"_{task}"), **fixed), item

    @staticmethod
    def _options(values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: values[name] for name in WRITING if name in values}

    def _caption(
        self,
        paths: Sequence[str],
        instruction: str | None = None,
        window_s: float | None = None,
        **writing: Any,
    ) -> list[dict]:
        found = self.slit.caption(
            list(paths),
            instruction=instruction,
            window_s=window_s,
            options=self._options(writing),
        )
        if window_s is None:
            return [{"caption": text} for text in found]
        return [{"captions": [asdict(one) for one in windows]} for windows in found]

    def _answer(
        self,
        pairs: Sequence[tuple[str, str]],
        candidates: Sequence[str] | None = None,
        **writing: Any,
    ) -> list[dict]:
        paths, questions = zip(*pairs, strict=True)
        found = self.slit.answer(
            list(paths),
            list(questions),
            candidates=candidates,
            options=self._options(writing),
        )
        return [{"answer": text} for text in found]

    def _classify(
        self, paths: Sequence[str], labels: Sequence[str], route: str | None = None
    ) -> list[dict]:
        default = "similarity" if self.slit.representation else "language_model"
        found = self.slit.classify(list(paths), labels, route=route or default)
        return [asdict(one) for one in found]

    def _embed(self, paths: Sequence[str]) -> list[dict]:
        return [{"audio": rows.tolist()} for rows in self.slit.embed_audio(list(paths))]

    def _embed_text(self, texts: Sequence[str]) -> list[dict]:
        return [{"text": row.tolist()} for row in self.slit.embed_text(list(texts))]

    def _moments(
        self,
        pairs: Sequence[tuple[str, str]],
        top_k: int = 10,
        window_s: Sequence[float] = MOMENT_WINDOWS_S,
    ) -> list[dict]:
        rows = [
            self.slit.moments(text, path, top_k=top_k, window_s=window_s)
            for path, text in pairs
        ]
        names = ("start_s", "end_s", "score")
        return [
            {"moments": [{n: getattr(hit, n) for n in names} for hit in hits]}
            for hits in rows
        ]

    def _search(self, pairs: Sequence[tuple[None, str]], **options: Any) -> list[dict]:
        if self.index is None:
            raise InferenceError(
                "this server searches no folder. Start it with --folder."
            )
        rows = []
        for _, text in pairs:
            hits = self.index.search(self.slit, text, **options)
            files = [os.path.relpath(str(hit.item), self.index.root) for hit in hits]
            names = ("score", "start_s", "end_s")
            rows.append(
                [
                    {"file": file, **{n: getattr(hit, n) for n in names}}
                    for file, hit in zip(files, hits, strict=True)
                ]
            )
        return [{"hits": hits} for hits in rows]


# --------------------------------------------------------------- what a request says


def read_values(task: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request, checked; a form's values are strings or lists of them.

    Args:
        task: a key of FIELDS.
        given: fields without the audio.

    Raises:
        RequestError: an unknown field, one that is missing or of another type.
    """
    fields = FIELDS[task]
    unknown = sorted(set(given) - set(fields))
    if unknown:
        raise RequestError(422, f"unknown {', '.join(unknown)}. Known: {_list(fields)}")
    values = {}
    for name, value in given.items():
        if value is not None:
            values[name] = _value(name, fields[name], value)
    if task in NEEDED and NEEDED[task] not in values:
        raise RequestError(422, f"{NEEDED[task]}: expected a value, found none")
    return values


def _list(names: Any) -> str:
    return ", ".join(names) or "none"


def _value(name: str, schema: dict[str, Any], value: Any) -> Any:
    """A value of the type that its schema says."""
    kind = schema.get("type", "enum")
    try:
        if kind == "array":
            rows = value if isinstance(value, list) else [value]
            return [_value(name, schema["items"], row) for row in rows]
        if kind == "boolean":
            return {"true": True, "false": False}[str(value).lower()]
        if kind in ("integer", "number"):
            number = int(value) if kind == "integer" else float(value)
            if isinstance(value, bool) or number < schema.get("minimum", 0):
                raise ValueError
            return number
        if not isinstance(value, str) or value not in schema.get("enum", [value]):
            raise ValueError
        return value
    except (ValueError, KeyError, TypeError, OverflowError):
        wanted = f"one of {_list(schema['enum'])}" if "enum" in schema else kind
        least = f" of at least {schema['minimum']}" if "minimum" in schema else ""
        raise RequestError(
            422, f"{name}: expected {wanted}{least}, found {value!r}"
        ) from None


async def read_request(
    request: Any, task: str, folder: str
) -> tuple[dict[str, Any], str, str]:
    """A request's fields and its audio, kept in a file of its own.

    Args:
        request: starlette's; a form with a file, or JSON.
        task: a key of FIELDS.
        folder: where uploads are kept.

    Returns:
        (fields, path of the audio or "", what the client calls it).

    Raises:
        RequestError: neither of the two forms, or a value that cannot be read.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if kind == "application/json":
        try:
            given = await request.json()
        except ValueError as error:
            raise RequestError(422, f"the body is no JSON: {error}") from error
        if not isinstance(given, dict):
            raise RequestError(422, "expected a JSON object of fields")
        name, audio = str(given.pop("filename", "audio")), given.pop("audio", None)
        path = "" if audio is None else _keep(folder, name, _decoded(audio))
        return given, path, name
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise RequestError(
            415,
            "expected multipart/form-data with the audio as the file `audio`, or"
            f" application/json with it in base64; found {kind or 'no content type'}",
        )
    from starlette.exceptions import HTTPException

    try:
        return await _read_form(request, folder)
    except (HTTPException, ValueError) as error:
        said = getattr(error, "detail", error)
        raise RequestError(422, f"the body is no {kind} ({said})") from error


async def _read_form(request: Any, folder: str) -> tuple[dict[str, Any], str, str]:
    async with request.form(max_files=1) as form:
        given, path, name = {}, "", "audio"
        for field in form:
            values = form.getlist(field)
            if field != "audio":
                given[field] = values if len(values) > 1 else values[0]
            elif isinstance(values[0], str):
                raise RequestError(422, "audio: expected a file, found a text")
            else:
                name = values[0].filename or "audio"
                path = await asyncio.to_thread(_keep, folder, name, values[0].file)
    return given, path, name


def _decoded(audio: Any) -> BinaryIO:
    try:
        return io.BytesIO(base64.b64decode(audio, validate=True))
    except (binascii.Error, TypeError, ValueError) as error:
        raise RequestError(
            422, f"audio: expected the bytes of an audio file in base64 ({error})"
        ) from error


def _keep(folder: str, name: str, audio: BinaryIO) -> str:
    # The suffix may be needed to read it; nothing else of a client's name is used.
    suffix = "".join(c for c in Path(name).suffix if c.isalnum() or c == ".")[:8]
    with tempfile.NamedTemporaryFile(dir=folder, suffix=suffix, delete=False) as file:
        shutil.copyfileobj(audio, file)
        return file.name


# ------------------------------------------------------------------------ the server


class BodyLimit:
    """Ends a request whose body is larger than allowed, before it is kept.

    Args:
        app: ASGI application.
        megabytes: of one body.
    """

    def __init__(self, app: Any, megabytes: float):
        self.app, self.megabytes = app, megabytes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        seen = 0

        async def counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.megabytes * 1e6:
                raise RequestError(
                    413,
                    f"expected at most {self.megabytes:g} MB in a request. Cut the"
                    " audio, or send it as FLAC or Ogg.",
                )
            return message

        return await self.app(scope, counted, send)


class Service:
    """What the routes share: a system, its limits, and while it runs a queue.

    Args:
        slit: system.
        folder: audio to search, indexed in its own `.slit_index`; None for none.
        token: that requests must bear; "": none needed.
        limits: what is taken.

    Raises:
        InferenceError: a folder to search with a system that cannot search.
    """

    def __init__(
        self, slit: SLIT, folder: str | os.PathLike | None, token: str, limits: Limits
    ):
        self.slit, self.token, self.limits = slit, token, limits
        index = None
        if folder:
            index = SearchIndex(Path(folder).expanduser() / DEFAULT_NAME)
            index.update(slit, folder)
        self.tasks = Tasks(slit, index)
        self.batcher: Any = None
        self.uploads = ""

    @contextlib.asynccontextmanager
    async def run(self, app: Any) -> AsyncIterator[None]:
        """From the first request to the last: `lifespan` of the application."""
        with tempfile.TemporaryDirectory(prefix="slit_serve_") as self.uploads:
            self.batcher = Batcher(self.slit.batch_size, self.limits.waiting)
            app.state.batcher = self.batcher
            yield
            await asyncio.to_thread(self.batcher.close)

    async def health(self) -> dict[str, Any]:
        """Whether it is at work, and how many wait."""
        return {"status": "ok", "waiting": len(self.batcher)}

    async def version(self) -> dict[str, Any]:
        """What serves."""
        parts = {
            "representation": self.slit.representation,
            "generator": self.slit.generator,
        }
        models = {name: part.options.model for name, part in parts.items() if part}
        limits = asdict(self.limits)
        return {"version": __version__, "models": models, "limits": limits}

    async def answer(self, request: Any, task: str) -> Any:
        """The result of a request, as JSON has it.

        Raises:
            RequestError: it is not served.
        """
        _authorise(request, self.token)
        path, name = "", "audio"
        try:
            given, path, name = await read_request(request, task, self.uploads)
            values = read_values(task, given)
            await asyncio.to_thread(_check_audio, task, values, path, name, self.limits)
            plan = self.tasks.plan(task, values, path or None)
            return await asyncio.wrap_future(self.batcher.submit(*plan))
        except QueueFull as error:
            raise RequestError(
                429,
                f"{self.limits.waiting} requests are waiting. Come again in a second.",
            ) from error
        except (AudioError, InferenceError, ValueError) as error:
            fault = fault_of(name, error) if path else str(error)
            raise RequestError(422, fault.replace(path or name, name)) from error
        except (RequestError, asyncio.CancelledError):
            raise
        except Exception as error:
            logger.exception("%s failed", task)
            raise RequestError(
                500, "the server could not do this; its log says why"
            ) from error
        finally:
            if path:
                Path(path).unlink(missing_ok=True)


def build_app(
    slit: SLIT,
    folder: str | os.PathLike | None = None,
    token: str = "",
    limits: Limits | None = None,
) -> Any:
    """The FastAPI application of a `Service`, whose arguments these are.

    Raises:
        ImportError: FastAPI is not installed.
        InferenceError: a folder to search with a system that cannot search.
    """
    try:
        from fastapi import FastAPI, Request
        from fastapi.responses import JSONResponse
    except ImportError as error:
        raise ImportError(
            "slit serve needs FastAPI and uvicorn, which are not installed."
            " Run: python -m pip install 'espnet2_slit[serve]'"
        ) from error
    limits = limits or Limits()
    service = Service(slit, folder, token, limits)
    app = FastAPI(title="SLIT", version=__version__, lifespan=service.run)
    app.add_middleware(BodyLimit, megabytes=limits.megabytes)

    async def refuse(request: Any, error: Any) -> Any:
        headers = {"Retry-After": "1"} if error.status == 429 else None
        content = {"detail": error.detail}
        return JSONResponse(content, status_code=error.status, headers=headers)

    async def serve(request: Any, task: str) -> Any:
        return JSONResponse(await service.answer(request, task))

    app.add_exception_handler(RequestError, refuse)
    app.get("/health", summary="Whether the server is at work")(service.health)
    app.get("/version", summary="What serves")(service.version)
    for task in FIELDS:
        app.add_api_route(
            f"/{task}",
            _only_request(serve, task, Request),
            methods=["POST"],
            summary=SUMMARY[task],
            openapi_extra={"requestBody": _body(task)},
            responses={s: {"description": d} for s, d in REFUSALS.items()},
        )
    return app


REFUSALS: dict[int | str, str] = {
    401: "No token, or another one.",
    413: "The body is too large.",
    415: "Neither a form nor JSON.",
    422: "A field or the audio cannot be used; `detail` says what to do.",
    429: "Too many requests wait.",
}


def _only_request(serve: Any, task: str, request_type: Any) -> Any:
    """An endpoint of one task, whose only parameter is the request."""

    async def endpoint(request: Any) -> Any:
        return await serve(request, task)

    endpoint.__annotations__ = {"request": request_type}
    endpoint.__name__ = task
    return endpoint


def _body(task: str) -> dict[str, Any]:
    """What OpenAPI says of a request's body, as a form and as JSON."""
    fields = dict(FIELDS[task])
    required = [NEEDED[task]] if task in NEEDED else []
    content = {}
    for kind, audio in (
        ("multipart/form-data", {"type": "string", "format": "binary"}),
        ("application/json", {"type": "string", "description": "file in base64"}),
    ):
        properties = fields if task == "search" else {"audio": audio, **fields}
        needs = required + (["audio"] if task not in ("search", "embed") else [])
        schema = {"type": "object", "properties": properties, "required": needs}
        content[kind] = {"schema": schema}
    return {"required": True, "content": content}


def _authorise(request: Any, token: str) -> None:
    given = request.headers.get("authorization", "")
    if token and not secrets.compare_digest(given.encode(), f"Bearer {token}".encode()):
        raise RequestError(401, "expected the header Authorization: Bearer TOKEN")


def _check_audio(
    task: str, values: dict[str, Any], path: str, name: str, limits: Limits
) -> None:
    """Raises where a task lacks audio, or has it and should not, or too much."""
    if task == "search" or (task == "embed" and "text" in values):
        if path:
            raise RequestError(422, f"{task} of a text takes no audio, found {name}")
        return
    if not path:
        raise RequestError(422, "audio: expected a file, found none")
    duration_s = probe(path).duration_s
    if duration_s > limits.audio_s:
        raise RequestError(
            413,
            f"{name}: lasts {duration_s:.1f} s, this server takes {limits.audio_s:g} s."
            " Cut it.",
        )


def run(
    slit: SLIT,
    folder: str | os.PathLike | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str = "",
    limits: Limits | None = None,
) -> None:
    """Serve until the process is told to end; what waits then is still computed.

    Args:
        slit: system.
        folder: audio to search.
        host: address to serve on.
        port: of it.
        token: that requests must bear.
        limits: what is taken.
    """
    app = build_app(slit, folder, token, limits)
    import uvicorn

    uvicorn.run(app, host=host, port=port, log_level="warning")
