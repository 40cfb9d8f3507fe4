"""The one thing that lives inside BentoML's endpoint: it awaits `from_http_request` before its batcher and
`to_http_response` after it, both in the request's own task.

    HTTP body ─► from_http_request ─► pixels ─► batcher, encoder ─► to_http_response ─► HTTP answer
                 dialect.parse, pipeline                            dialect.render
                       └──────────────── outcomes, in the Exchange ──────────┘

So a failure is a value from the moment it happens until it is rendered, and only pixels share a batch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from types import new_class
from typing import Any, ClassVar

import bentoml
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from embedder.engine import Engine, Result
from embedder.errors import EmbedderError, InternalError, Overloaded, bare
from embedder.http.body import read_body
from embedder.http.dialects import Dialect, Query
from embedder.http.exchange import Exchange
from embedder.model.encoder import Embeddings, Pixels
from embedder.pipeline import DecodedImage, Outcome

logger = logging.getLogger(__name__)

MODEL_HEADER = "X-Embedding-Model"
FINGERPRINT_HEADER = "X-Embedding-Fingerprint"


@dataclass(frozen=True)
class _Arguments:
    """What BentoML calls the batched method with."""

    pixels: Pixels
    """uint8 (k, crop, crop, 3): each image once, however many of the sources it is; k may be 0."""

    # BentoML passes on the fields that an input names here, by attribute.
    model_fields: ClassVar[tuple[str, ...]] = ("pixels",)


def route(dialect: Dialect, engine: Engine) -> dict[str, Any]:  # Any: BentoML's SDK ships no types
    """The arguments of `@bentoml.api` for a method that encodes what `dialect` is asked for."""
    return {
        "route": dialect.path,
        "batchable": True,
        "max_batch_size": engine.settings.max_batch_size,
        "input_spec": _input_spec(dialect, engine),
        "output_spec": _output_spec(dialect, engine),
    }


def _input_spec(dialect: Dialect, engine: Engine) -> type[Any]:  # Any: as above
    async def from_http_request(cls: type, request: Request, serde: object) -> _Arguments:
        """Never raises: what goes wrong is kept for the answer."""
        exchange = Exchange.of(request.scope)
        exchange.outcomes = await _outcomes(exchange, request, dialect, engine)
        try:
            return _Arguments(_stacked(_images(exchange.outcomes), engine))
        except MemoryError:  # what other requests hold is about to be freed
            exchange.outcomes = Overloaded("there is no memory for the request now")
            return _Arguments(engine.encoder.no_pixels())

    return _spec(dialect, dialect.request_model, from_http_request=classmethod(from_http_request))


def _output_spec(dialect: Dialect, engine: Engine) -> type[Any]:  # Any: as above
    async def to_http_response(cls: type, embeddings: Embeddings, serde: object) -> Response:
        """The answer, from float32 (k, dimension): the embeddings of the request's k images."""
        exchange = Exchange.of(bentoml.Context().request.scope)
        try:
            if isinstance(exchange.outcomes, EmbedderError):
                raise exchange.outcomes
            results = _results(exchange.outcomes, embeddings, engine)
            reply = dialect.render(exchange.query, results)
        except EmbedderError as error:
            return exchange.error_response(error)
        except MemoryError:  # what other requests hold is about to be freed
            return exchange.error_response(Overloaded("there is no memory for the answer now"))
        response = exchange.response(reply)
        response.headers[MODEL_HEADER] = engine.spec.tag
        response.headers[FINGERPRINT_HEADER] = engine.spec.fingerprint
        return response

    return _spec(dialect, dialect.response_model, to_http_response=classmethod(to_http_response))


def _spec(dialect: Dialect, model: type[Any], **methods: object) -> type[Any]:  # Any: as above
    """`model` as a class of BentoML's that reads or writes bodies with `methods`. The gate finds the dialect in it."""
    namespace = {
        "__module__": model.__module__,
        "__doc__": model.__doc__,
        "__annotations__": {"dialect": ClassVar[Dialect]},
        "dialect": dialect,
        **methods,
    }
    return new_class(
        model.__name__, (model, bentoml.IODescriptor), exec_body=lambda body: body.update(namespace)
    )


async def _outcomes(
    exchange: Exchange, request: Request, dialect: Dialect, engine: Engine
) -> list[Outcome] | EmbedderError:
    try:
        with engine.byte_budget.lease() as lease:
            # Without a name for the body: what else is in it takes memory until nothing refers to it.
            query = dialect.parse(
                await read_body(request, lease, max_bytes=engine.settings.max_body_bytes), request.headers
            )
            # Without the sources: a `data:` URL would be kept, and not counted, until the answer is written.
            exchange.query = Query([], query.options)
            # One character beyond ASCII makes each of a text take up to four bytes.
            texts = (source for source in query.sources if isinstance(source, str))
            lease.add(3 * sum(len(text) for text in texts if not text.isascii()))
            exchange.resources.enter_context(engine.pipeline.places(len(query.sources)))
            return await engine.pipeline.outcomes(query.sources, hashed=query.hashed)
    except EmbedderError as error:
        return bare(error)
    except MemoryError:
        return Overloaded("there is no memory for the request now")
    except Exception:  # a bug: BentoML would answer in another shape
        logger.exception("a request failed in a way that was not foreseen")
        return InternalError()


def _images(outcomes: Sequence[Outcome] | EmbedderError) -> list[DecodedImage]:
    """What is to be encoded: each image once, in order."""
    if isinstance(outcomes, EmbedderError):
        return []
    return list(dict.fromkeys(outcome for outcome in outcomes if isinstance(outcome, DecodedImage)))


def _stacked(images: Sequence[DecodedImage], engine: Engine) -> Pixels:
    if len(images) == 1:
        return images[0].pixels[np.newaxis]  # a view, where stacking would copy
    return np.stack([image.pixels for image in images]) if images else engine.encoder.no_pixels()


def _results(outcomes: Sequence[Outcome], embeddings: Embeddings, engine: Engine) -> list[Result]:
    """A result for each outcome. They are counted, and new embeddings are kept."""
    images = _images(outcomes)
    encoded = dict(zip(images, embeddings, strict=True))
    for image, embedding in encoded.items():
        engine.pipeline.remember(image, embedding)
    results = [
        outcome.result(encoded[outcome]) if isinstance(outcome, DecodedImage) else outcome
        for outcome in outcomes
    ]
    engine.metrics.images.inc(len(results))
    for result in results:
        if result.error is not None:
            engine.metrics.image_errors.labels(result.error.code).inc()
    return results
