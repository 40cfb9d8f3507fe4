"""A network with another dimension, crop and interpolation is served by what its metadata say, and by nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from embedder.model.spec import ModelSpec
from tests import networks, pictures
from tests.server import Server, assert_error

SPEC = ModelSpec.from_metadata("tiny:1", networks.metadata(), precision="fp32")


@pytest.fixture(scope="module", params=["eager", "bentoml"])
def tiny(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Server]:
    """The service with that network, batched by either batcher."""
    home = networks.save(tmp_path_factory.mktemp("tiny") / "home", networks.metadata())
    environ = {
        "BENTOML_HOME": str(home),
        "EMBEDDER_MODEL": "tiny:1",
        "EMBEDDER_WORKERS": "1",
        "EMBEDDER_BATCHING": request.param,
    }
    with Server(tmp_path_factory.mktemp("tiny") / "log", environ) as server:
        yield server


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    """Upright and lossless, so that nothing but the geometry and the network decides."""
    noise = Image.fromarray(
        pictures.noise(300, 200).astype(np.uint8)
    )  # tells filters apart, where files hardly do
    images = pictures.photo(451, 300), pictures.photo(300, 451), noise
    return [pictures.encoded(image, "PNG") for image in images]


def embeddings(server: Server, files: list[bytes]) -> NDArray[np.float32]:
    answer = server.post("/embed_batch", {"urls": [pictures.data_url(file, "image/png") for file in files]})
    assert answer.json()["errors"] == []
    return np.array(answer.json()["embeddings"], dtype=np.float32)


def test_embeddings_are_those_of_its_own_pixels(tiny: Server, files: list[bytes]) -> None:
    found = embeddings(tiny, files)
    assert found.shape == (len(files), 7)
    right = np.stack([networks.reference(file) for file in files])
    assert np.sum(found * right, axis=1) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("other", [{"interpolation": "bilinear"}, {"resize": 82}, {"resize": 64}])
def test_the_reference_tells_another_interpolation_and_another_size_apart(
    files: list[bytes], other: dict[str, str]
) -> None:
    cosines = [networks.reference(file) @ networks.reference(file, **other) for file in files]  # type: ignore[arg-type, operator]
    assert min(cosines) < 0.98


def test_one_image_gives_seven_numbers_and_both_headers(tiny: Server, files: list[bytes]) -> None:
    answer = tiny.post("/embed", {"url": pictures.data_url(files[0], "image/png")})
    assert np.array(answer.json()["embedding"]) @ networks.reference(files[0]) == pytest.approx(1, abs=1e-3)
    assert len(answer.json()["embedding"]) == 7
    assert answer.headers["X-Embedding-Model"] == "tiny:1"
    assert answer.headers["X-Embedding-Fingerprint"] == SPEC.fingerprint


def test_without_an_image_to_encode_each_route_gives_its_errors(tiny: Server) -> None:
    bad = pictures.data_url(b"no image", "image/png")
    assert_error(tiny.post("/embed", {"url": bad}), 422, "unsupported_format")
    answer = tiny.post("/embed_batch", {"urls": [bad, "ftp://x"]}).json()
    assert answer["embeddings"] == [None, None]
    assert [error["code"] for error in answer["errors"]] == ["unsupported_format", "url_not_allowed"]


def test_info_and_the_openapi_document_say_what_it_is(tiny: Server) -> None:
    info = tiny.get("/info").json()
    assert (info["dimension"], info["fingerprint"]) == (7, SPEC.fingerprint)
    assert info["model"]["preprocessing"] == networks.metadata()["preprocessing"]
    schemas = tiny.get("/docs.json").json()["components"]["schemas"]
    embedding = schemas["EmbedResponse"]["properties"]["embedding"]
    assert (embedding["minItems"], embedding["maxItems"]) == (7, 7)
