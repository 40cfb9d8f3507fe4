"""What hostile origins can do to the running service: each costs its own request, and nothing stays.

The other tests in this folder have the same answers against the fetcher alone, and ask for every sentence.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image

from tests.answers import (
    BUSYWORK,
    CAT,
    ENDLESS_BODIES,
    ENDLESS_HEADS,
    HANGS,
    HEADER_FLOODS,
    NOT_HTTP,
    OK,
    Flood,
    hang,
    says,
    with_length,
)
from tests.conftest import Reference
from tests.origin import Handler, Origin
from tests.server import Server, until

FETCH_TIMEOUT_S = 1
PLACES = 8
# An answer is on its way a moment before its place is free: two places more than there are clients, and one
# for a good image beside them.
CLIENTS = PLACES - 3

FAILED = frozenset({"fetch_failed"})
LATE = frozenset({"fetch_timeout"})
ENDLESS = FAILED | LATE


def redirect(path: str) -> bytes:
    return b"HTTP/1.1 302 Found\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % path.encode()


GZIP_BOMB = gzip.compress(bytes(50_000_000), 9)

CASES: dict[str, dict[str, tuple[Handler, frozenset[str]]]] = {
    "not-http": {name: (handler, FAILED) for name, handler in NOT_HTTP.items()},
    "header-floods": {name: (says(head + CAT, then=hang), FAILED) for name, head in HEADER_FLOODS.items()},
    # So many 103 are too many before they are too late.
    "hangs-and-drips": {
        name: (handler, FAILED if name == "dripping 103" else LATE) for name, handler in HANGS.items()
    },
    "endless-heads": {name: (Flood(*parts), ENDLESS) for name, parts in ENDLESS_HEADS.items()},
    "endless-bodies": {
        name: (Flood(*parts), frozenset({"image_too_large"})) for name, parts in ENDLESS_BODIES.items()
    },
    "busywork": {name: (Flood(*parts), ENDLESS | {"image_too_large"}) for name, parts in BUSYWORK.items()},
    "encodings": {
        "gzip bomb": (
            says(OK + b"Content-Encoding: gzip\r\n\r\n" + GZIP_BOMB),
            frozenset({"unsupported_format"}),
        ),
        "gzip bomb in a picture": (
            says(OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(CAT + bytes(50_000_000), 9)),
            frozenset({"image_too_large"}),
        ),
        "gzip bomb that is not announced": (
            says(OK + b"\r\n" + GZIP_BOMB),
            frozenset({"unsupported_format"}),
        ),
    },
    "redirects": {
        "without end": (says(redirect("?again")), FAILED),
        "slow": (says(b"", every_s=0.4, then=says(redirect("/redirects/slow"))), LATE),
        "with a body without end": (
            Flood(b"HTTP/1.1 302 Found\r\nLocation: ?again\r\n\r\n", bytes(65536)),
            FAILED,
        ),
        "to a forbidden address": (says(redirect("http://169.254.169.254/latest/meta-data")), FAILED),
    },
}


@dataclass(frozen=True)
class Scene:
    server: Server
    hostile: Origin
    good_url: str
    descriptors: int
    """Of the server, before anything hostile."""

    def post(self, url: str) -> requests.Response:
        return self.server.post("/embed", {"url": url})


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory, store: Path, photo: bytes) -> Iterator[Scene]:
    with ExitStack() as stack:
        hostile, kind = stack.enter_context(Origin()), stack.enter_context(Origin())
        kind.raw("/photo.jpg", says(with_length(photo)))
        environ = {
            "BENTOML_HOME": str(store),
            "EMBEDDER_WORKERS": "1",  # so that its places are the places
            "EMBEDDER_MAX_IN_FLIGHT_IMAGES": str(PLACES),
            "EMBEDDER_MAX_URLS": str(PLACES),
            "EMBEDDER_FETCH_TIMEOUT_S": str(FETCH_TIMEOUT_S),
            "EMBEDDER_MAX_IMAGE_BYTES": "1000000",
            "EMBEDDER_ALLOWED_NETWORKS": "127.0.0.0/8",
            "EMBEDDER_ALLOWED_PORTS": f"{hostile.port},{kind.port}",
            "EMBEDDER_CACHE_ENTRIES": "0",
        }
        server = stack.enter_context(Server(tmp_path_factory.mktemp("hostile") / "log", environ))
        good_url = kind.url("/photo.jpg")
        for _ in range(2):
            assert all_places_are_free(server, good_url)
        (worker,) = server.workers()
        until(lambda: not server.client_ports(worker) and not kind.connections.open)
        yield Scene(server, hostile, good_url, server.descriptors())
        assert "Traceback" not in server.log.read_text()


def all_places_are_free(server: Server, good_url: str) -> bool:
    answer = server.post("/embed_batch", {"urls": [f"{good_url}?{n}" for n in range(PLACES)]})
    assert answer.status_code in (200, 429), answer.text
    return answer.status_code == 200 and answer.json()["errors"] == []


@pytest.fixture(autouse=True)
def _nothing_stays(scene: Scene) -> Iterator[None]:
    yield
    until(lambda: scene.hostile.connections.open == 0)
    until(lambda: all_places_are_free(scene.server, scene.good_url))
    until(lambda: scene.server.descriptors() <= scene.descriptors)


@pytest.mark.parametrize("kind", CASES)
def test_each_ends_with_its_code_and_good_images_beside_them_do_not_notice(scene: Scene, kind: str) -> None:
    cases = CASES[kind]
    paths = [f"/{kind}/{name.replace(' ', '-')}" for name in cases]
    for path, (handler, _) in zip(paths, cases.values(), strict=True):
        scene.hostile.raw(path, handler)
    urls = [scene.hostile.url(path) for path in paths]
    with ThreadPoolExecutor(CLIENTS + 1) as clients:
        waiting = clients.map(scene.post, urls)
        for number in range(3):
            assert scene.post(f"{scene.good_url}?{number}").status_code == 200
        answers = dict(zip(cases, waiting, strict=True))
    for name, answer in answers.items():
        assert answer.json().get("code", "none") in cases[name][1], (name, answer.text)


def test_a_second_answer_on_the_wire_answers_nobody(scene: Scene, photo: bytes, reference: Reference) -> None:
    file = io.BytesIO()
    Image.new("RGB", (300, 300), (200, 30, 90)).save(file, "PNG")
    other = file.getvalue()
    scene.hostile.raw("/twice", says(with_length(photo) + with_length(other), then=hang))
    scene.hostile.raw("/later", says(with_length(photo), with_length(other), every_s=0.1, then=hang))
    scene.hostile.raw("/good", says(with_length(photo)))
    assert reference(photo) @ reference(other) < 0.99
    for path in ("/twice", "/good", "/later", "/good"):
        answer = scene.post(scene.hostile.url(path))
        assert answer.status_code == 200
        assert np.array(answer.json()["embedding"]) @ reference(photo) >= 0.9999
        # Until the second answer has come. On a connection that carries the next request already it would be
        # that one's: nobody could tell it from an answer to it, and it is the same server's.
        until(lambda: scene.hostile.connections.open == 0)
