"""What every route has in common: BentoML awaits `from_http_request` before its batcher and
`to_http_response` after it, both in the request's own task.

    HTTP body ──► Request.from_http_request ──► pixels ──► batcher, encoder ──► Response.to_http_response
                  reads, parses, admits                                        joins, renders
                       └────────────── outcomes, in a context variable ─────────────┘

So a failure is a value from the moment it happens until it is rendered, and only pixels share a batch.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import new_class
from typing import Any, ClassVar, TypeVar, cast

import anyio
import bentoml
import numpy as np
import orjson
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from embedder import metrics
from embedder.cache import Embedding
from embedder.errors import (
    BodyTooLarge,
    EmbedderError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    Overloaded,
    ServiceError,
    Unauthorized,
    bare,
)
from embedder.fetch.urls import MAX_URL_CHARACTERS
from embedder.pipeline import Image, Intake, Outcome
from embedder.runtime.memory import HeldBytes, Hold

logger = logging.getLogger(__name__)

MODEL_HEADER = "X-Embedding-Model"
# A body that comes a byte at a time must not hold its request open for as long as it likes.
BODY_TIMEOUT_S = 15.0
_NO_PIXELS = np.empty((0, 224, 224, 3), dtype=np.uint8)


@dataclass(frozen=True)
class Wiring:
    """The parts that a route's wire formats work with."""

    intake: Intake
    held_bytes: HeldBytes
    max_body_bytes: int
    max_urls: int
    model_tag: Callable[[], str]


@dataclass(frozen=True)
class Admission:
    """What the request's body became: an outcome for each source, or the failure of the whole request."""

    outcomes: Sequence[Outcome] | EmbedderError
    pixels: NDArray[np.uint8]
    """Those of `images`: uint8 (k, 224, 224, 3), k may be 0."""

    # BentoML passes on the fields that an input names here, by attribute.
    model_fields: ClassVar[tuple[str, ...]] = ("pixels",)

    @classmethod
    def of(cls, outcomes: Sequence[Outcome] | EmbedderError) -> Admission:
        try:
            return cls(outcomes, _stacked(_images(outcomes)))
        except MemoryError:  # what other requests hold is about to come back
            return cls(Overloaded("there is no memory for the request now"), _NO_PIXELS)

    @property
    def images(self) -> list[Image]:
        """What is to be encoded: each image once, however many of the sources it is, in order."""
        return _images(self.outcomes)


def _images(outcomes: Sequence[Outcome] | EmbedderError) -> list[Image]:
    if isinstance(outcomes, EmbedderError):
        return []
    return list(dict.fromkeys(outcome for outcome in outcomes if isinstance(outcome, Image)))


def _stacked(images: Sequence[Image]) -> NDArray[np.uint8]:
    if len(images) == 1:
        return images[0].pixels[np.newaxis]  # a view, where stacking would copy
    return np.stack([image.pixels for image in images]) if images else _NO_PIXELS


_admission: ContextVar[Admission] = ContextVar("admission")


class RouteRequest(bentoml.IODescriptor):  # type: ignore[misc]  # BentoML's SDK ships no types
    """The body of a POST. Its fields are what BentoML documents and what its client sends."""

    wiring: ClassVar[Wiring]

    @classmethod
    @abstractmethod
    def sources(cls, body: dict[str, Any]) -> list[str]:  # Any: JSON
        """The sources that `body` names. Raises InvalidRequest."""

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> Admission:
        """Never raises: what goes wrong is kept for the answer."""
        admission = Admission.of(await cls._admit(request))
        _admission.set(admission)
        return admission

    @classmethod
    async def _admit(cls, request: Request) -> Sequence[Outcome] | EmbedderError:
        try:
            with cls.wiring.held_bytes.hold() as hold:
                # Without a name for the body: what else is in it takes memory until nothing holds it.
                sources = cls.sources(await _read_json(request, hold, cls.wiring))
                # One character beyond ASCII makes each of a text take up to four bytes.
                hold.add(3 * sum(len(source) for source in sources if not source.isascii()))
                return await cls.wiring.intake.admit(sources)
        except EmbedderError as error:
            return bare(error)
        except MemoryError:
            return Overloaded("there is no memory for the request now")
        except Exception:  # a bug: BentoML would answer in a shape that is not ours
            logger.exception("a request failed in a way that was not foreseen")
            return InternalError()


class RouteResponse(bentoml.IODescriptor):  # type: ignore[misc]  # BentoML's SDK ships no types
    """The answer to a POST when it is 200. Its fields are what BentoML documents."""

    wiring: ClassVar[Wiring]

    @classmethod
    @abstractmethod
    def render(cls, results: Sequence[Embedding | EmbedderError]) -> object:
        """What becomes the JSON of a 200, from one result for each source, in order.

        Raises EmbedderError where the request as a whole gets an error.
        """

    @classmethod
    async def to_http_response(cls, obj: NDArray[np.float32], serde: object) -> Response:
        """The answer, from `obj`, float32 (k, 512): the embeddings of the admission's k images."""
        admission = _admission.get()
        encoded = dict(zip(admission.images, obj, strict=True))
        for image, embedding in encoded.items():
            cls.wiring.intake.remember(image, embedding)
        try:
            if isinstance(admission.outcomes, EmbedderError):
                raise admission.outcomes
            _count(admission.outcomes)
            content = cls.render(
                [
                    encoded[outcome] if isinstance(outcome, Image) else outcome
                    for outcome in admission.outcomes
                ]
            )
        except EmbedderError as error:
            return error_response(error)
        return json_response(content, headers={MODEL_HEADER: cls.wiring.model_tag()})


Spec = TypeVar("Spec", RouteRequest, RouteResponse)


def wired(spec: type[Spec], wiring: Wiring) -> type[Spec]:
    """`spec`, working with `wiring`. BentoML takes classes for its specs, not objects."""
    namespace = {"__module__": spec.__module__, "__doc__": spec.__doc__, "wiring": wiring}
    subclass = new_class(spec.__name__, (spec,), exec_body=lambda body: body.update(namespace))
    return cast("type[Spec]", subclass)  # new_class can't say that it subclasses its base


def json_response(content: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    # orjson writes float32 shortest, straight from numpy's memory.
    body = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def error_response(error: EmbedderError) -> Response:
    metrics.request_errors.labels(error.code).inc()
    headers: dict[str, str] = {}
    if isinstance(error, ServiceError) and error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.allowed)
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    return json_response({"error": str(error), "code": error.code}, status=error.status, headers=headers)


def _count(outcomes: Sequence[Outcome]) -> None:
    metrics.images.inc(len(outcomes))
    for outcome in outcomes:
        if isinstance(outcome, EmbedderError):
            metrics.image_errors.labels(outcome.code).inc()


async def _read_json(request: Request, hold: Hold, wiring: Wiring) -> dict[str, Any]:  # Any: JSON
    body = await _read_body(request, hold, wiring)
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise InvalidRequest(f"the body is not valid JSON: {exc}") from exc
    if not isinstance(content, dict):
        raise InvalidRequest("the body is not a JSON object")
    return content


async def _read_body(request: Request, hold: Hold, wiring: Wiring) -> bytes:
    declared = request.headers.get("Content-Length", "")
    if declared.isdecimal() and int(declared) > wiring.max_body_bytes:
        raise BodyTooLarge(limit_bytes=wiring.max_body_bytes, actual_bytes=int(declared))
    try:
        # Not asyncio.wait_for: until Python 3.12 it forgets a cancellation, of a client that leaves, which
        # comes as the body ends.
        with anyio.fail_after(BODY_TIMEOUT_S):
            return await _counted_body(request, hold, wiring)
    except TimeoutError:
        raise InvalidRequest(f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from None
    except ClientDisconnect:
        raise InvalidRequest("the client went away before its body was complete") from None


async def _counted_body(request: Request, hold: Hold, wiring: Wiring) -> bytes:
    # What is parsed takes up to 24 times the memory of its text: 32 MB of "[],[],[]" take 770 MB. Each value
    # is the first of an array or an object, or follows a comma; and only URLs have many of these characters.
    max_values = wiring.max_urls * MAX_URL_CHARACTERS
    chunks, length, values = list[bytes](), 0, 0
    async for chunk in request.stream():
        chunks.append(chunk)
        length += len(chunk)
        if length > wiring.max_body_bytes:
            raise BodyTooLarge(limit_bytes=wiring.max_body_bytes)
        values += sum(map(chunk.count, (b",", b"[", b"{")))
        if values > max_values:
            raise InvalidRequest(
                f"the body has over {max_values} commas and brackets, more than {wiring.max_urls} URLs have"
            )
        hold.add(len(chunk))
    return b"".join(chunks)
