"""A request on its way through the engine, and its answer on the way back.

    HTTP body ─► dialect.parse, pipeline ─► pixels ─► batcher, encoder ─► dialect.render ─► HTTP answer
                                 └──────── outcomes: one for each source ───────┘

So a failure is a value from the moment it happens until it is rendered, and only pixels share a batch. A request of
many images is done in here, in windows, and has none left for the batcher.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from time import perf_counter
from types import new_class
from typing import Any, ClassVar

import bentoml
import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from embedder.engine import Engine, Result
from embedder.errors import EmbedderError, InternalError, ModelMismatch, Overloaded, bare
from embedder.http.bentoml_private import Submit
from embedder.http.body import Body
from embedder.http.dialects import Dialect, Query
from embedder.http.exchange import Exchange
from embedder.images.decoders import MAX_LARGE_WAITING
from embedder.model.encoder import Embeddings, Pixels
from embedder.pipeline import DecodedImage, Outcome
from embedder.runtime.byte_budget import Lease

logger = logging.getLogger(__name__)

MODEL_HEADER = "X-Embedding-Model"
FINGERPRINT_HEADER = "X-Embedding-Fingerprint"
EXPECT_HEADER = "X-Expect-Model"

AT_ONCE = 64
"""A request of more images goes through in windows."""
_NUMBER_BYTES = 16
"""Of an embedding that waits for its answer to be read: a float32, and up to 12 characters."""
MAX_JSON_VALUES = 131_072
"""Of a body, and 64 more for each image: commas stand in URLs too, and clients add fields of their own."""


def api(engine: Engine, name: str, *dialects: Dialect) -> Any:  # Any: BentoML's SDK ships no types
    """BentoML's method of that name, which encodes what is asked for in `dialects`, all of one path."""

    async def encode(self: object, pixels: Pixels) -> Embeddings:
        return await engine.encode(pixels)

    encode.__name__ = name
    return bentoml.api(**route(engine, *dialects))(encode)


def route(engine: Engine, *dialects: Dialect) -> dict[str, Any]:  # Any: BentoML's SDK ships no types
    """The arguments of `@bentoml.api` for a method that encodes what `dialects`, all of one path, are asked for."""
    return {
        "route": dialects[0].paths[0],
        "batchable": True,
        "max_batch_size": engine.settings.max_batch_size,
        "input_spec": _spec(dialects, dialects[0].request_model),
        "output_spec": _spec(dialects, dialects[0].response_model),
    }


def _spec(dialects: Sequence[Dialect], model: type[Any]) -> type[Any]:  # Any: as above
    """`model` as BentoML takes it. The gate and the endpoints find the dialects in it."""
    namespace = {
        "__module__": model.__module__,
        "__doc__": model.__doc__,
        "__annotations__": {"dialects": ClassVar[Sequence[Dialect]]},
        "dialects": dialects,
    }
    return new_class(
        model.__name__, (model, bentoml.IODescriptor), exec_body=lambda body: body.update(namespace)
    )


async def respond(engine: Engine, request: Request, submit: Submit) -> Response:
    """The answer to `request`. `submit` is given its pixels, and gives float32 (k, dimension) for k of them."""
    exchange = Exchange.of(request.scope)
    try:
        received = await receive(request, exchange, engine)
        exchange.decoded_s = perf_counter()
        embeddings = await submit(_stacked(_images(received.outcomes), engine))
        return _answer(exchange, received, _results(received.outcomes, embeddings, engine), engine)
    except EmbedderError as error:
        return exchange.error_response(bare(error))
    except MemoryError:  # what other requests hold is about to be freed
        return exchange.error_response(Overloaded("there is no memory for the request now"))
    except Exception:  # a bug, or the network failed for the whole batch
        logger.exception("a request failed in a way that was not foreseen")
        return exchange.error_response(InternalError())


@dataclass(frozen=True)
class Received:
    """A request whose images are decoded."""

    dialect: Dialect
    options: Any  # Any: the dialect's own, from `parse` to `render`
    outcomes: Sequence[Outcome]
    """One for each source."""


async def receive(request: Request, exchange: Exchange, engine: Engine) -> Received:
    """Reads `request`, fetches and decodes what it asks for. Raises an EmbedderError for the request as a whole."""
    with engine.byte_budget.lease() as lease:
        dialect, query = await _asked_for(exchange, request, lease, engine)
        # Not the query: with it a `data:` URL would be kept, and not counted, until the answer is written.
        return Received(dialect, query.options, await _outcomes(exchange, query, engine))


def _answer(exchange: Exchange, received: Received, results: Sequence[Result], engine: Engine) -> Response:
    response = received.dialect.render(received.options, results)
    exchange.answered = True
    response.headers[MODEL_HEADER] = engine.spec.tag
    response.headers[FINGERPRINT_HEADER] = engine.spec.fingerprint
    if len(results) <= AT_ONCE:
        response.headers["Server-Timing"] = exchange.server_timing(results)
    return response


async def _outcomes(exchange: Exchange, query: Query, engine: Engine) -> list[Outcome]:
    if len(query.sources) > AT_ONCE:
        return await _in_windows(exchange, query, engine)
    exchange.resources.enter_context(engine.pipeline.places(len(query.sources)))
    # So that one request alone is never refused for want of turns.
    turns = asyncio.Semaphore(MAX_LARGE_WAITING) if len(query.sources) > MAX_LARGE_WAITING else None
    return await engine.pipeline.outcomes(query.sources, hashed=query.hashed, decoding=turns)


async def _asked_for(
    exchange: Exchange, request: Request, lease: Lease, engine: Engine
) -> tuple[Dialect, Query]:
    """What the body asks for. What else is in it is out of memory by now."""
    settings = engine.settings
    _check_model(request.headers.get(EXPECT_HEADER), engine)
    most = max(settings.max_urls, settings.max_inputs)
    body = Body(
        request,
        lease,
        max_bytes=settings.max_body_bytes,
        max_json_values=MAX_JSON_VALUES + 64 * most,
        max_file_bytes=settings.max_image_bytes,
        max_files=settings.max_urls,
    )
    dialect = await exchange.spoken(body)
    query = await dialect.parse(body)
    _check_model(query.model, engine)
    # One character beyond ASCII makes each of a text take up to four bytes.
    texts = (source for source in query.sources if isinstance(source, str))
    lease.add(3 * sum(len(text) for text in texts if not text.isascii()))
    return dialect, query


def _check_model(expected: str | None, engine: Engine) -> None:
    spec = engine.spec
    if expected is not None and expected not in (spec.fingerprint, spec.tag):
        raise ModelMismatch(expected=expected, served=f"{spec.tag}, fingerprint {spec.fingerprint}")


async def _in_windows(exchange: Exchange, query: Query, engine: Engine) -> list[Outcome]:
    """The results, up to the first error where that fails the request.

    The time for a request begins anew with each AT_ONCE of them.
    """
    engine.pipeline.check_room(1)
    # Its places are free again before its answer is read, which some clients never do.
    answer = exchange.resources.enter_context(engine.byte_budget.lease())
    answer.add(len(query.sources) * engine.spec.dimension * _NUMBER_BYTES)
    results: list[Outcome] = []
    async with aclosing(engine.stream(query.sources, hashed=query.hashed, shared=True)) as stream:
        async for result in stream:
            results.append(result)
            if result.error is not None and query.all_or_nothing:
                break
            if len(results) % AT_ONCE == 0:
                exchange.more_time()
    return results


def _images(outcomes: Sequence[Outcome]) -> list[DecodedImage]:
    """What is to be encoded: each image once, in order."""
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
