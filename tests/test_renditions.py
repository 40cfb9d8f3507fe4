"""Smaller pictures from a CDN, through the engine: when they are embedded, and when the original is."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image
from prometheus_client import CollectorRegistry

from embedder.engine import Engine
from embedder.errors import BadImage, FetchFailed, StartError
from embedder.metrics.measures import Metrics
from embedder.result import Result
from embedder.settings import Settings
from tests.bentoml_store import read_from
from tests.cdn import Cloudinary
from tests.conftest import Serving
from tests.pictures import encoded, photo

pytestmark = pytest.mark.anyio

OURS = "c_limit,w_1024,h_1024,f_jpg,q_90"


@pytest.fixture(scope="module", autouse=True)
def _store(store: Path) -> Iterator[None]:
    with read_from(store):
        yield


@pytest.fixture
def cdn() -> Iterator[Cloudinary]:
    with Cloudinary() as cdn:
        yield cdn


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@asynccontextmanager
async def started(
    cdn: Cloudinary, registry: CollectorRegistry, *, renditions: tuple[str, ...] = ("cloudinary@127.0.0.1",)
) -> AsyncIterator[Engine]:
    settings = Settings(
        allowed_networks=(ip_network("127.0.0.0/8"),),
        allowed_ports=frozenset({80, cdn.port}),
        fetch_timeout_s=30,
        renditions=renditions,
    )
    async with Engine(settings, metrics=Metrics(registry)) as engine:
        yield engine


def jpeg(width: int, height: int) -> bytes:
    return encoded(photo(width, height), "JPEG", quality=92)


def counted(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(f"embedder_{name}_total", labels)


async def one(engine: Engine, url: str) -> Result:
    (result,) = await engine.embed([url])
    return result


def cosine(one: Result, other: Result) -> float:
    assert one.embedding is not None
    assert other.embedding is not None
    return float(one.embedding @ other.embedding)


async def test_the_smaller_picture_is_embedded_and_the_vector_hardly_moves(
    cdn: Cloudinary, registry: CollectorRegistry
) -> None:
    file = jpeg(4000, 3000)
    url = cdn.put("shop/shoes/red.v2.jpg", file)
    async with started(cdn, registry, renditions=()) as engine:
        original = await one(engine, url)
        fingerprint = engine.spec.fingerprint
    async with started(cdn, registry := CollectorRegistry()) as engine:
        small = await one(engine, url)
        assert engine.spec.fingerprint != fingerprint
    assert cdn.paths == [
        "/demo/image/upload/v1/shop/shoes/red.v2.jpg",
        f"/demo/image/upload/{OURS}/v1/shop/shoes/red.v2.jpg",
    ]
    assert (original.rendition, original.width, original.bytes) == (False, 4000, len(file))
    assert (small.rendition, small.width, small.height) == (True, 1024, 768)
    assert small.bytes is not None
    assert small.bytes < len(file) / 3
    assert cosine(original, small) > 0.99
    assert counted(registry, "renditions") == 1
    assert counted(registry, "rendition_bytes_saved") == len(file) - small.bytes


async def test_what_the_url_makes_of_the_picture_stays(cdn: Cloudinary, registry: CollectorRegistry) -> None:
    cdn.put("a/b.jpg", jpeg(3000, 2000))
    url = cdn.url("/demo/image/upload/c_crop,w_1500,h_1500/v9/a/b.jpg")
    async with started(cdn, registry, renditions=()) as engine:
        original = await one(engine, url)
    async with started(cdn, CollectorRegistry()) as engine:
        small = await one(engine, url)
    assert (small.rendition, small.width, small.height) == (True, 1024, 1024)
    assert cosine(original, small) > 0.99


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429])
async def test_a_cloud_that_refuses_is_asked_once_and_its_originals_are_embedded(
    status: int, cdn: Cloudinary, registry: CollectorRegistry
) -> None:
    cdn.refuses = status
    urls = [cdn.put(name, jpeg(1500 + 100 * n, 1200)) for n, name in enumerate(["a", "b"])]
    async with started(cdn, registry) as engine:
        results = [await one(engine, url) for url in urls]
    assert [(result.error, result.rendition, result.width) for result in results] == [
        (None, False, 1500),
        (None, False, 1600),
    ]
    assert cdn.paths == [
        f"/demo/image/upload/{OURS}/v1/a",
        "/demo/image/upload/v1/a",
        "/demo/image/upload/v1/b",
    ]
    assert counted(registry, "rendition_fallbacks", reason="refused") == 1
    assert counted(registry, "renditions") == 0


@pytest.mark.parametrize("sent", [b"<html>quota exceeded</html>", jpeg(900, 900)[:20_000], b""])
async def test_an_answer_that_is_no_whole_picture_is_a_refusal(
    sent: bytes, cdn: Cloudinary, registry: CollectorRegistry
) -> None:
    cdn.sends = sent
    urls = [cdn.put(name, jpeg(1500, 1200)) for name in ("a", "b")]
    async with started(cdn, registry) as engine:
        results = [await one(engine, url) for url in urls]
    assert [(result.error, result.rendition) for result in results] == [(None, False)] * 2
    assert len(cdn.requests) == 3
    assert counted(registry, "rendition_fallbacks", reason="undecodable") == 1


async def test_a_picture_that_is_not_there_says_nothing_of_its_cloud(
    cdn: Cloudinary, registry: CollectorRegistry
) -> None:
    there = cdn.put("there", jpeg(1500, 1200))
    broken = cdn.put("broken", b"\xff\xd8\xff and no more")
    cdn.sends = None
    async with started(cdn, registry) as engine:
        gone = await one(engine, cdn.url("/demo/image/upload/v1/gone"))
        cdn.sends = b"no picture"
        bad = await one(engine, broken)
        cdn.sends = None
        found = await one(engine, there)
    assert isinstance(gone.error, FetchFailed)
    assert gone.error.http_status == 404
    assert isinstance(bad.error, BadImage)
    assert found.rendition


async def test_a_server_error_is_the_pictures_and_no_second_request_is_made(
    cdn: Cloudinary, registry: CollectorRegistry
) -> None:
    cdn.refuses = 500
    url = cdn.put("a", jpeg(1500, 1200))
    async with started(cdn, registry) as engine:
        result = await one(engine, url)
    assert isinstance(result.error, FetchFailed)
    assert result.error.http_status == 500
    assert len(cdn.requests) == 1


async def test_of_a_long_and_narrow_picture_the_original_is_embedded(
    cdn: Cloudinary, registry: CollectorRegistry
) -> None:
    wide = cdn.put("wide", jpeg(3000, 900))
    small = cdn.put("small", jpeg(900, 270))
    async with started(cdn, registry) as engine:
        results = [await one(engine, url) for url in (wide, small)]
    assert [(result.rendition, result.width) for result in results] == [(False, 3000), (True, 900)]
    assert counted(registry, "rendition_fallbacks", reason="small") == 1


async def test_the_same_bytes_from_elsewhere_are_no_rendition(
    cdn: Cloudinary, registry: CollectorRegistry
) -> None:
    url = cdn.put("a", jpeg(2000, 1500))
    async with started(cdn, registry) as engine:
        small = await one(engine, url)
        made = io.BytesIO()
        image = Image.open(io.BytesIO(cdn.pictures["a"])).convert("RGB")
        image.thumbnail((1024, 1024), Image.Resampling.LANCZOS)
        image.save(made, "JPEG", quality=90)
        (uploaded,) = await engine.embed([made.getvalue()])
    assert uploaded.sha256 == small.sha256  # so its embedding was known
    assert (small.rendition, uploaded.rendition) == (True, False)
    assert np.array_equal(small.embedding, uploaded.embedding)  # type: ignore[arg-type]


async def test_an_address_that_is_refused_is_refused_for_its_rendition_too(
    cdn: Cloudinary, registry: CollectorRegistry
) -> None:
    settings = Settings(allowed_ports=frozenset({cdn.port}), renditions=("cloudinary@127.0.0.1",))
    url = cdn.put("a", jpeg(2000, 1500))
    async with Engine(settings, metrics=Metrics(registry)) as engine:
        result = await one(engine, url)
    assert result.error is not None
    assert result.error.code == "url_not_allowed"
    assert cdn.requests == []


async def test_a_cdn_that_is_none_stops_the_start() -> None:
    engine = Engine(Settings(renditions=("cloudinery",)))
    with pytest.raises(StartError, match="EMBEDDER_RENDITIONS names 'cloudinery'; known are cloudflare, "):
        engine.check()


def test_http_clients_are_told_which_pictures_were_smaller_ones(serving: Serving, cdn: Cloudinary) -> None:
    urls = [cdn.put("wide", jpeg(2000, 1500)), cdn.put("long", jpeg(3000, 900))]
    settings = {"EMBEDDER_RENDITIONS": "cloudinary@127.0.0.1", "EMBEDDER_ALLOWED_PORTS": str(cdn.port)}
    with serving(**settings) as server:
        answers = [requests.post(f"{server.url}/embed", json={"url": url}, timeout=60) for url in urls]
        batch = requests.post(f"{server.url}/embed_batch", json={"urls": urls, "details": True}, timeout=60)
        assert server.metric("embedder_renditions_total") == 2
    assert [answer.headers.get("X-Image-Rendition") for answer in answers] == ["true", None]
    assert [answer.headers["X-Image-Size"] for answer in answers] == ["1024x768", "3000x900"]
    assert [image.get("rendition") for image in batch.json()["images"]] == [True, None]
