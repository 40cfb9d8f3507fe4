"""The engine: sources in, results out, with the real network and a real origin, without any server."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import numpy as np
import pytest
from bentoml.exceptions import BentoMLException

from embedder.engine import Engine, Source
from embedder.errors import BadImage, FetchFailed, InvalidRequest, URLNotAllowed
from embedder.settings import Settings
from tests.bentoml_store import read_from
from tests.origin import Origin
from tests.pictures import data_url
from tests.server import ROOT, plain_environ

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module", autouse=True)
def _store(store: Path) -> Iterator[None]:
    with read_from(store):
        yield


@pytest.fixture
def settings(origin: Origin) -> Settings:
    return Settings(
        allowed_networks=(ip_network("127.0.0.0/8"),),
        allowed_ports=frozenset({80, origin.port}),
        fetch_timeout_s=5,
        max_batch_size=4,
    )


@pytest.fixture
async def engine(settings: Settings) -> AsyncIterator[Engine]:
    async with Engine(settings) as engine:
        yield engine


async def test_urls_and_bytes_in_any_mix_give_results_in_their_order(
    engine: Engine, origin: Origin, photo: bytes
) -> None:
    origin.serve("/photo.jpg", photo)
    origin.serve("/none.jpg", b"", status=404)
    results = await engine.embed(
        [
            origin.url("/photo.jpg"),
            b"\xff\xd8\xff no image",
            origin.url("/none.jpg"),
            photo,
            "ftp://x/",
            data_url(photo),
        ]
    )
    embeddings = [results[index].embedding for index in (0, 3, 5)]
    for embedding in embeddings:
        assert embedding is not None
        assert embedding.shape == (engine.spec.dimension,)
        assert embedding.dtype == np.float32
        assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-6)
        assert embedding @ embeddings[0] == pytest.approx(1, abs=1e-6)  # type: ignore[operator]
    assert [type(results[index].error) for index in (1, 2, 4)] == [BadImage, FetchFailed, URLNotAllowed]
    for index in (0, 3, 5):
        result = results[index]
        assert (result.error, result.width, result.height, result.format) == (None, 451, 300, "JPEG")
        assert (result.bytes, result.sha256) == (len(photo), hashlib.sha256(photo).hexdigest())
    assert results[0].timings.keys() >= {"fetch"}


async def test_a_result_says_what_took_its_time(settings: Settings, photo: bytes) -> None:
    async with Engine(replace(settings, cache_entries=0)) as engine:
        (result,) = await engine.embed([photo])
    assert result.timings.keys() == {"decode_queue", "decode", "encode"}
    assert all(seconds >= 0 for seconds in result.timings.values())


async def test_any_number_of_sources_is_read_no_further_ahead_than_may_be_in_work(
    settings: Settings, origin: Origin, photo: bytes
) -> None:
    """1,000 sources through 8 places: none is refused, and the source is asked for the next one when there is room."""
    origin.serve("/photo.jpg", photo)
    given = finished = furthest = 0

    def sources() -> Iterator[Source]:
        nonlocal given, furthest
        for number in range(1000):
            given += 1
            furthest = max(furthest, given - finished)
            yield photo if number % 2 else origin.url("/photo.jpg")

    async with Engine(replace(settings, max_in_flight_images=8, max_urls=8)) as engine:
        async for result in engine.stream(sources()):
            assert result.error is None
            finished += 1
    assert (given, finished) == (1000, 1000)
    assert furthest <= 8 + 1


async def test_bytes_in_work_stay_within_their_budget(settings: Settings, photo: bytes) -> None:
    """Twenty files of a megabyte with a budget for two: all are embedded, and no more than two are ever held."""
    files = [photo + bytes([n]) * (1_000_000 - len(photo)) for n in range(20)]
    small = replace(settings, max_body_bytes=1000, max_image_bytes=1_000_000, max_in_flight_bytes=2_000_000)
    async with Engine(small) as engine:
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, engine.byte_budget.total_bytes)
                await asyncio.sleep(0)

        watching = asyncio.create_task(watch())
        results = await engine.embed(files)
        watching.cancel()
    assert [result.error for result in results] == [None] * 20
    assert 0 < most <= 2_000_000


async def test_two_who_embed_at_once_wait_for_each_other_and_are_refused_nothing(
    settings: Settings, photo: bytes
) -> None:
    async with Engine(replace(settings, max_in_flight_images=2, max_urls=2)) as engine:
        both = await asyncio.gather(engine.embed([photo] * 20), engine.embed([photo] * 20))
    assert [result.error for results in both for result in results] == [None] * 40


async def test_leaving_early_ends_what_is_under_way(engine: Engine, origin: Origin, photo: bytes) -> None:
    origin.serve("/photo.jpg", photo)
    stream = engine.stream([photo] + [origin.url("/photo.jpg")] * 50)
    async for _ in stream:
        break
    await stream.aclose()
    assert engine.pipeline.in_flight_images == 0
    assert engine.byte_budget.total_bytes == 0


async def test_what_is_no_source_is_an_error_and_the_next_one_is_not(engine: Engine, photo: bytes) -> None:
    nothing, result = await engine.embed([None, photo])  # type: ignore[list-item]  # as a table's column has it
    assert isinstance(nothing.error, InvalidRequest)
    assert result.error is None


async def test_a_network_that_failed_is_tried_again_until_it_works(engine: Engine) -> None:
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        await engine.encode(np.zeros((1, 8, 8, 3), dtype=np.uint8))
    assert not engine.healthy
    async with asyncio.timeout(20):
        while not engine.healthy:  # noqa: ASYNC110 - it is tried once a second
            await asyncio.sleep(0.05)


async def test_a_model_that_is_not_there_is_said_with_the_command_that_makes_it() -> None:
    with pytest.raises(BentoMLException, match=r"no model nothing:latest .* python scripts/save_model\.py"):
        await Engine(Settings(model="nothing:latest")).start()


def test_it_runs_without_a_server_in_a_few_lines(store: Path, photo: bytes, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(photo)
    program = """
import asyncio, sys
from embedder.engine import Engine
from embedder.settings import Settings

async def main():
    async with Engine(Settings()) as engine:
        (result,) = await engine.embed([open(sys.argv[1], "rb").read()])
        print(engine.spec.tag.partition(":")[0], engine.spec.fingerprint, len(result.embedding), result.format)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", program, str(tmp_path / "cat.jpg")],
        cwd=ROOT,
        env={**plain_environ(), "BENTOML_HOME": str(store), "EMBEDDER_PORT": "nonsense"},  # nobody reads it
        capture_output=True,
        text=True,
        check=True,
    )
    name, fingerprint, dimension, format = done.stdout.split()
    assert (name, dimension, format) == ("resnet18", "512", "JPEG")
    assert len(fingerprint) == 12
    assert int(fingerprint, 16) >= 0
    assert os.environ.get("EMBEDDER_PORT") != "nonsense"
