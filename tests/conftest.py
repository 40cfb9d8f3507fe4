"""What several test files share: one set of weights, one model store, one origin, one running service."""

from __future__ import annotations

import fcntl
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.origin import Origin
from tests.server import KEYS, ROOT, Server

Reference = Callable[[bytes], NDArray[np.float32]]
Serving = Callable[..., Server]
# Those that take longest, with `--no-loadscope-reorder`, so that no worker is left alone with one at the end. The
# first of them makes the model that others wait for; the second needs none.
FIRST = ("test_save_model.py", "test_decoders.py", "test_faults.py", "test_commands.py", "test_bento.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights, the `bentoml` that they were saved into by users' own command, and what that said.

    It takes most of a minute, so xdist's workers have it in common.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "saved"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "stdout").exists():
            from tests.weights import save_model, save_pth  # here: torch takes seconds to import

            (folder / "temporary").mkdir(exist_ok=True)
            pth = save_pth(folder / "discriminating.pth")
            said = save_model(folder / "bentoml", pth, "int8", TMPDIR=str(folder / "temporary"))
            (folder / "stderr").write_text(said.stderr)
            (folder / "stdout").write_text(said.stdout)
    return folder


@pytest.fixture(scope="session")
def weights_file(saved: Path) -> Path:
    """Weights that tell photos apart, in torchvision's layout."""
    return saved / "discriminating.pth"


@pytest.fixture(scope="session")
def reference(weights_file: Path) -> Reference:
    """The service that this one replaces, with `weights_file`: image bytes → float32 (512,)."""
    import torch
    from torchvision import models, transforms

    network = models.resnet18()
    network.load_state_dict(torch.load(weights_file, weights_only=True))
    body = torch.nn.Sequential(*list(network.children())[:-1]).eval()
    recipe = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
        ]
    )

    def embed(data: bytes) -> NDArray[np.float32]:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        with torch.no_grad():
            embedding: NDArray[np.float32] = body(recipe(image).unsqueeze(0)).squeeze().numpy()
        return np.asarray(embedding / np.linalg.norm(embedding))

    return embed


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, saved: Path) -> Path:
    """A BENTOML_HOME whose only model, fp32 and int8, was saved from `weights_file` by users' own command."""
    home = tmp_path_factory.mktemp("bentoml")
    shutil.copytree(saved / "bentoml" / "models", home / "models", copy_function=os.link)
    (home / "bentos").mkdir()
    return home


@pytest.fixture(scope="session")
def origin() -> Iterator[Origin]:
    with Origin() as origin:
        yield origin


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, store: Path, origin: Origin) -> Iterator[Server]:
    """The service, which may fetch from `origin` and from the ports that a URL may always name."""
    environ = {
        "BENTOML_HOME": str(store),
        "EMBEDDER_ALLOWED_NETWORKS": "127.0.0.0/8",
        "EMBEDDER_ALLOWED_PORTS": f"80,443,{origin.port}",
        "EMBEDDER_FETCH_TIMEOUT_S": "2",
        "EMBEDDER_CACHE_ENTRIES": "0",  # every image goes the whole way
    }
    with Server(tmp_path_factory.mktemp("server") / "log", environ) as server:
        yield server
        # Of all that the tests' clients sent, nothing was a surprise.
        assert "Traceback" not in server.log.read_text()


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory, store: Path, origin: Origin) -> Serving:
    """Starts a service of one worker, which may fetch from `origin` and waits long for it, with more settings."""

    def serve(target: str = ".", **settings: str) -> Server:
        environ = {
            "BENTOML_HOME": str(store),
            "EMBEDDER_ALLOWED_NETWORKS": "127.0.0.0/8",
            "EMBEDDER_ALLOWED_PORTS": str(origin.port),
            "EMBEDDER_FETCH_TIMEOUT_S": "40",
            "EMBEDDER_WORKERS": "1",
            **settings,
        }
        return Server(tmp_path_factory.mktemp("server") / "log", environ, target=target)

    return serve


@pytest.fixture(scope="session")
def locked(serving: Serving) -> Iterator[Server]:
    """One worker, of int8, that takes KEYS and waits long for images. `/metrics` is open."""
    settings = {
        "EMBEDDER_API_KEYS": ",".join(KEYS),
        "EMBEDDER_OPEN_ROUTES": "metrics",
        "EMBEDDER_PRECISION": "int8",
    }
    with serving(**settings) as server:
        yield server
        assert "Traceback" not in server.log.read_text()
        assert "Exception" not in server.log.read_text()


@pytest.fixture(scope="session")
def photo_url(origin: Origin, photo: bytes) -> str:
    """Where `origin` has `photo`."""
    origin.serve("/photo.jpg", photo)
    return origin.url("/photo.jpg")


@pytest.fixture(scope="session")
def photo() -> bytes:
    """The sample photo of the repository: a JPEG, 451 x 300."""
    return (ROOT / "samples" / "chelsea.jpg").read_bytes()


@pytest.fixture(autouse=True, scope="session")
def _no_tracking() -> None:
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
