"""EfficientNet-Lite0 as users have it: saved by its name, served, packed, written and searched in bulk."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.photos import photo
from tests.pictures import data_url, encoded
from tests.server import BENTOML, ROOT, Server, plain_environ

DIMENSION = 1280
LATEST = "efficientnet_lite0:latest"


def run(home: Path, *command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**plain_environ(), "BENTOML_HOME": str(home), **environ},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BENTOML_HOME whose only model it is, saved by users' own command."""
    home = tmp_path_factory.mktemp("lite0")
    (home / "bentos").mkdir()
    command = (sys.executable, "scripts/save_model.py", "--architecture", "efficientnet_lite0")
    said = run(home, *command).stdout
    assert f"\nEMBEDDER_MODEL={LATEST} selects it\n" in said
    assert "\nits weights are under apache-2.0\n" in said
    again = run(home, *command, "--if-missing").stdout
    assert again.startswith(f"{LATEST} has the pretrained weights already\nEMBEDDER_MODEL=")
    return home


@pytest.fixture(scope="module")
def server(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    environ = {"BENTOML_HOME": str(home), "EMBEDDER_MODEL": LATEST, "EMBEDDER_WORKERS": "1"}
    with Server(tmp_path_factory.mktemp("server") / "log", environ) as server:
        yield server


def crops(name: str) -> list[Image.Image]:
    """Two of one photo, of which each has what the other has not."""
    whole = photo(name)
    width, height = whole.width * 4 // 5, whole.height * 4 // 5
    left, top = whole.width - width, whole.height - height
    return [whole.crop((0, 0, width, height)), whole.crop((left, top, whole.width, whole.height))]


def test_its_vectors_have_1280_numbers_and_mean_something(server: Server) -> None:
    images = [crop for name in ("chelsea.png", "coffee.png", "rocket.jpg") for crop in crops(name)]
    urls = [data_url(encoded(image, "JPEG")) for image in images]
    answer = server.post("/embed_batch", {"urls": urls}).json()
    vectors = np.array(answer["embeddings"])
    assert vectors.shape == (len(urls), DIMENSION)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    assert cosines.argmax(axis=1).tolist() == [1, 0, 3, 2, 5, 4]


def test_info_and_the_openapi_document_say_what_it_is(server: Server) -> None:
    info = server.get("/info").json()
    model = info["model"]
    assert (info["dimension"], model["architecture"]) == (DIMENSION, "efficientnet_lite0")
    assert (model["trained"], model["licence"], model["weights"]) == (True, "apache-2.0", "pretrained")
    schemas = server.get("/docs.json").json()["components"]["schemas"]
    embedding = schemas["EmbedResponse"]["properties"]["embedding"]
    assert (embedding["minItems"], embedding["maxItems"]) == (DIMENSION, DIMENSION)


def test_a_catalogue_is_written_and_searched_with_it(home: Path, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("chelsea.png", "coffee.png", "rocket.jpg"):
        crops(name)[0].save(pictures / f"{Path(name).stem}.png")
    (pictures / "broken.png").write_bytes(encoded(photo("coffee.png"), "PNG")[:5000])
    query = tmp_path / "query.png"
    crops("coffee.png")[1].save(query)
    command = ("scripts/embed_catalogue.py", pictures, "--out", tmp_path / "vectors")
    said = run(home, sys.executable, *command, EMBEDDER_MODEL=LATEST).stderr
    again = said.partition("Again, what may pass: ")[2].splitlines()[0]
    run(home, "sh", "-c", again)  # as it is printed
    search = ("scripts/search.py", tmp_path / "vectors", "--image", query, "--json")
    nearest = json.loads(run(home, sys.executable, *search).stdout)["neighbours"][0]
    assert (nearest["id"], nearest["score"] > 0.5) == ("coffee.png", True)


def test_a_bento_of_it_serves_it_without_being_told(home: Path, tmp_path: Path) -> None:
    run(home, BENTOML, "build", EMBEDDER_MODEL=LATEST)
    version = (home / "bentos" / "image_embedder" / "latest").read_text().strip()
    environ = {"BENTOML_HOME": str(home), "EMBEDDER_WORKERS": "1"}
    with Server(tmp_path / "log", environ, target=f"image_embedder:{version}", cwd=tmp_path) as server:
        answer = server.post("/embed", {"url": data_url(encoded(photo("coffee.png"), "JPEG"))})
        assert len(answer.json()["embedding"]) == DIMENSION
        assert answer.headers["X-Embedding-Model"].startswith("efficientnet_lite0:")
