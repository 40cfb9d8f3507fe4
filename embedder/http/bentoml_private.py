"""Everything of BentoML's that is not its public API, as in BentoML 1.4.39. Importing it checks that it is there.

CorkDispatcher              replaced while an application is made: a lone request takes 16 ms, not 222
ServiceAppFactory           its batchers, batch sizes and headers, for endpoints that do without the rest of its own
Service.to_asgi, .apis,     the gate around the application; the whole OpenAPI document
  .openapi_spec
user_middleware,            BentoML's deadline runs the request in another task: the gate has one that reaches it
  TimeoutMiddleware
OpenTelemetryMiddleware     dropped where no exporter is set: its spans would go nowhere
BentoMLContainer            whether tracing is on; who reads the metrics of all workers; a Bento's own model
static_content              Swagger UI, for the OpenAPI page
PROMETHEUS_MULTIPROC_DIR    the folder that BentoML's workers have for their metrics, empty when they start
"""

from __future__ import annotations

import inspect
import os
import struct
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

from _bentoml_impl.server import app as bentoml_app
from _bentoml_sdk import Service
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml._internal.context import server_context
from bentoml._internal.server.http.traffic import TimeoutMiddleware
from bentoml.exceptions import BentoMLConfigException, ServiceUnavailable
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from embedder.errors import Draining, Overloaded
from embedder.http.dialects import Dialect, Json
from embedder.model.batching import Array, Batcher, Infer, Lane, together

Submit: TypeAlias = Callable[[Array], Awaitable[Array]]
"""A request's rows → as many results. Raises Overloaded, Draining, or what the network raised for the whole batch."""
Respond: TypeAlias = Callable[[Request, Submit], Awaitable[Response]]

_SWAGGER_UI = ("swagger-ui.css", "swagger-ui-bundle.js")
_ASSETS = resources.files("bentoml._internal.server").joinpath("static_content")


def _check() -> None:
    """Raises BentoMLConfigException where BentoML is not as this file knows it."""
    made_with = {"max_latency_in_ms", "max_batch_size", "fallback", "get_batch_size", "batch_dim"}
    dispatcher = getattr(bentoml_app, "CorkDispatcher", None)
    factory = getattr(bentoml_app, "ServiceAppFactory", None)
    in_factory = ("api_endpoint_wrapper", "adaptive_batch_size_hist", "_add_response_headers")
    known = (
        dispatcher is not None
        and set(inspect.signature(dispatcher.__init__).parameters) >= made_with
        and all(hasattr(factory, name) for name in in_factory)
        and {"dispatchers", "_service_instance", "enable_metrics"}
        <= set(inspect.unwrap(factory.__init__).__code__.co_names)  # type: ignore[misc]
        and all(hasattr(Service, name) for name in ("to_asgi", "openapi_spec", "apis"))
        and all(hasattr(BentoMLContainer, name) for name in ("config", "metrics_client", "model_aliases"))
        and hasattr(Starlette(), "user_middleware")
        and all(_ASSETS.joinpath(name).is_file() for name in _SWAGGER_UI)
    )
    if not known:
        raise _unknown()


def _unknown() -> BentoMLConfigException:
    return BentoMLConfigException(
        "this BentoML is not as embedder/http/bentoml_private.py knows it: install requirements.lock"
    )


_check()


def packed_model() -> str | None:
    """The tag of the model that a Bento was built with, while it is loaded; None outside of Bentos."""
    tags: list[str] = [*BentoMLContainer.model_aliases.get().values()]
    return tags[0] if len(tags) == 1 else None


class GatedService(Service):  # type: ignore[misc]  # BentoML's SDK ships no types
    """BentoML's service, whose answers, application and document are made by three functions. Subclasses set them."""

    respond: Respond
    """The answer to a request for one of the APIs that have dialects."""

    @staticmethod
    def gated(app: Starlette, dialects: list[Dialect]) -> ASGIApp:
        """The application to serve around BentoML's `app`."""
        raise NotImplementedError

    @staticmethod
    def document(base: Json, dialects: list[Dialect]) -> Json:
        """The OpenAPI document in place of BentoML's `base`."""
        raise NotImplementedError

    lane: Lane | None = None
    """Where batches run that don't wait for company; None leaves BentoML's own batcher."""

    @property
    def dialects(self) -> list[Dialect]:
        """Those of the service's APIs, in their order."""
        specs = [api.input_spec for api in self.apis.values() if hasattr(api.input_spec, "dialects")]
        return [dialect for spec in specs for dialect in spec.dialects]

    @cached_property  # 10 ms to make, and nothing limits how many ask at once
    def openapi_spec(self) -> Json:
        return self.document(super().openapi_spec.asdict(), self.dialects)

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        with _eager_batching(self.lane):
            app: Starlette = super().to_asgi(is_main)
        unwanted: list[object] = [TimeoutMiddleware]
        if BentoMLContainer.config.tracing.exporter_type.get() is None:
            unwanted.append(OpenTelemetryMiddleware)
        app.user_middleware = [m for m in app.user_middleware if m.cls not in unwanted]
        app.router.routes[:0] = [*self._endpoints(app)]
        reader = BentoMLContainer.metrics_client.get()
        reader.generate_latest = read_again(reader.generate_latest)  # type: ignore[method-assign]
        return self.gated(app, self.dialects)

    def _endpoints(self, app: Starlette) -> Iterator[Route]:
        """In place of BentoML's own, which are behind them from now on, for the APIs that have dialects."""
        for name, method in self.apis.items():
            if hasattr(method.input_spec, "dialects"):
                (stock,) = (route for route in app.routes if isinstance(route, Route) and route.name == name)
                endpoint = _Endpoint(name, method.func, _factory(stock), self.respond)
                yield Route(stock.path, endpoint, methods=["POST"], name=name)


class _Endpoint:
    """A batched API, as an ASGI application.

    BentoML's own looks at the method's signature, imports, and asks its configuration for each request: 0.3 of the
    4.1 ms that the event loop takes for an image of 39.
    """

    def __init__(
        self, name: str, encode: Callable[[Any, Array], Awaitable[Array]], factory: Any, respond: Respond
    ) -> None:
        self._name = name
        self._encode = encode
        self._factory = factory
        self._respond = respond
        self._batched = factory.dispatchers[name](self._infer)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._respond(Request(scope, receive, send), self._submit)
        self._factory._add_response_headers(response)
        await response(scope, receive, send)

    async def _submit(self, rows: Array) -> Array:
        try:
            results: Array = await self._batched(rows)
        except ServiceUnavailable as error:
            if isinstance(error.__cause__, Overloaded | Draining):
                raise error.__cause__ from None
            raise Overloaded(str(error)) from error
        return results

    async def _infer(self, requests: Sequence[Array]) -> Sequence[Array]:
        if self._factory.enable_metrics:
            self._batch_sizes.observe(len(requests))
        return await together(partial(self._encode, self._factory._service_instance), requests)

    @cached_property
    def _batch_sizes(self) -> Any:  # Any: BentoML's histogram
        return self._factory.adaptive_batch_size_hist.labels(
            runner_name=self._factory.service.name,
            worker_index=server_context.worker_index,
            method_name=self._name,
            service_version=server_context.bento_version,
            service_name=server_context.bento_name,
        )


def _factory(route: Route) -> Any:  # Any: a ServiceAppFactory, without types
    """What made the `route` of an API."""
    endpoint = route.endpoint
    maker = getattr(endpoint.func, "__self__", None) if isinstance(endpoint, partial) else None
    if not isinstance(maker, bentoml_app.ServiceAppFactory):
        raise _unknown()
    return maker


def within_cors(app: Starlette, outer: ASGIApp) -> ASGIApp:
    """`outer`, which serves `app`, within the CORS middleware that BentoML put into `app` where it is configured.

    So pages of other sites may read what `outer` answers by itself, and ask what they may without a key.
    """
    cors: object = CORSMiddleware
    for middleware in app.user_middleware:
        if middleware.cls is cors:
            app.user_middleware.remove(middleware)
            return CORSMiddleware(outer, **middleware.kwargs)  # type: ignore[arg-type]  # as BentoML gave them
    return outer


def metrics_folder() -> Path | None:
    """Where workers keep their metrics; None in a process that is no worker."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(folder) if folder else None


def read_again(read: Callable[[], bytes]) -> Callable[[], bytes]:
    """`read`, a few times if it meets a worker's file of metrics that is just made: that is empty for a moment."""

    def reading() -> bytes:
        for _ in range(9):
            with suppress(struct.error):  # what prometheus_client raises for an empty file
                return read()
        return read()

    return reading


def swagger_ui() -> list[str]:
    """The paths under which BentoML serves Swagger UI's files."""
    return [f"/static_content/{name}" for name in _SWAGGER_UI]


@contextmanager
def _eager_batching(lane: Lane | None) -> Iterator[None]:
    """While this lasts, BentoML's application is made with batchers that run on `lane`."""
    if lane is None:
        yield
        return

    def dispatcher(
        *, max_batch_size: int, max_latency_in_ms: int, **_: object
    ) -> Callable[[Infer], Callable[[Array], Awaitable[Array]]]:
        batcher = Batcher(lane, max_batch_size=max_batch_size, max_latency_s=max_latency_in_ms / 1000)

        def bind(infer: Infer) -> Callable[[Array], Awaitable[Array]]:
            submit = batcher(infer)

            async def submit_or_503(rows: Array) -> Array:
                try:
                    return await submit(rows)
                except (Overloaded, Draining) as error:
                    raise ServiceUnavailable(str(error)) from error  # all else is 500 and a traceback

            return submit_or_503

        return bind

    stock = bentoml_app.CorkDispatcher
    bentoml_app.CorkDispatcher = dispatcher
    try:
        yield
    finally:
        bentoml_app.CorkDispatcher = stock
