"""What the tests of commands on a folder share: one folder that the real engine made, of pictures on an origin."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from bulk.folder import provenance
from embedder.engine import Engine
from embedder.model.spec import ModelSpec
from embedder.result import Result
from embedder.settings import Settings
from tests.bentoml_store import read_from
from tests.bulk.catalogues import Row, rows, write_csv
from tests.bulk.folders import Vectors, row, write
from tests.origin import Origin
from tests.pictures import encoded, noise, photo


@dataclass(frozen=True)
class Catalogue:
    """Six rows: 0 to 3 pictures on the origin, of which 3 has the bytes of 0; 4 a local file; 5 without a picture."""

    path: Path
    urls: list[str]
    vectors: Vectors
    """float32 (5, dimension)."""
    pixels: list[NDArray[np.uint8]]
    """What the network sees of each: the middle of 256 x 256, which resizing leaves as they are."""
    spec: ModelSpec


@pytest.fixture(scope="module")
def shop(request: pytest.FixtureRequest, origin: Origin) -> list[Row]:
    """A catalogue of as many rows as the module's COUNT says."""
    return rows(origin, request.module.COUNT)


@pytest.fixture(scope="module")
def shop_csv(shop: list[Row], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_csv(tmp_path_factory.mktemp("shop") / "shop.csv", shop)


@pytest.fixture
def bento_store(store: Path) -> Iterator[None]:
    """BentoML in this process reads `store`."""
    with read_from(store):
        yield


def made(path: Path, origin: Origin, precision: str) -> Catalogue:
    """The catalogue in `path`, embedded in this process, as `bento_store` has it."""
    images = [
        photo(256, 256),
        photo(300, 256).crop((20, 0, 276, 256)),
        Image.fromarray(noise(256, 256).astype(np.uint8)),
        photo(256, 256),
        Image.new("RGB", (256, 256), (200, 30, 90)),
    ]
    files = [encoded(image, "PNG") for image in images]
    urls = []
    for number, file in enumerate(files[:4]):
        origin.serve(f"/catalogue/{number}.png", file)
        urls.append(origin.url(f"/catalogue/{number}.png"))
    path.mkdir()
    local = path / "red.png"
    local.write_bytes(files[4])
    urls += [str(local), origin.url("/catalogue/gone.png")]

    async def embed() -> tuple[list[Result], ModelSpec]:
        settings = Settings(
            allowed_networks=(ip_network("127.0.0.0/8"),),
            allowed_ports=frozenset({origin.port}),
            precision=precision,
        )
        async with Engine(settings) as engine:
            return await engine.embed(files), engine.spec

    results, spec = asyncio.run(embed())
    table = []
    for number, (url, result) in enumerate(zip(urls, [*results, None], strict=True)):
        vector = result.embedding if result else None
        values = {"sha256": result.sha256, "duplicate_of": "00000" if number == 3 else None} if result else {}
        table.append(row(number, vector, url=url, **values))
    write(path / "out", table, dimension=spec.dimension, per_part=4, said=provenance(spec))
    vectors = np.array([result.embedding for result in results])
    pixels = [np.asarray(image)[16:240, 16:240] for image in images]
    return Catalogue(path / "out", urls, vectors, pixels, spec)


@pytest.fixture
def catalogue(tmp_path: Path, bento_store: None, origin: Origin) -> Catalogue:
    return made(tmp_path / "catalogue", origin, "fp32")


@pytest.fixture
def int8_catalogue(tmp_path: Path, bento_store: None, origin: Origin) -> Catalogue:
    return made(tmp_path / "catalogue", origin, "int8")
