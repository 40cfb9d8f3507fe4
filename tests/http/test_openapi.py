"""The OpenAPI document against the running service: schemathesis asks for all that it documents, and more."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from embedder.http.dialects.documents import EXAMPLE_URL as CDN_URL
from embedder.http.gate import ALWAYS_OPEN
from tests import pictures
from tests.origin import Origin
from tests.server import KEYS, ROOT, Server, plain_environ, until

# In both, or schemathesis would invent a bearer token beside the right key, and take the answer to that pair
# for an answer to the token.
KEYED = {"Authorization": f"Bearer {KEYS[0]}", "X-API-Key": KEYS[0]}
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


@pytest.fixture(scope="module")
def image_urls(tmp_path_factory: pytest.TempPathFactory, origin: Origin) -> Path:
    """A file of URLs that lead to images: of every kind, by http and within the URL."""
    urls = []
    for name, image in pictures.samples().items():
        origin.serve(f"/openapi/{name}", image)
        urls.append(origin.url(f"/openapi/{name}"))
    urls += [pictures.data_url(image, "") for image in pictures.samples().values()]
    file = tmp_path_factory.mktemp("openapi") / "image_urls"
    file.write_text("\n".join(urls))
    return file


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory, store: Path, origin: Origin) -> Iterator[Server]:
    """A service that takes KEYED, fetches from `origin`, and refuses any other URL before it looks up a name.

    It has a megabyte for what it is sent.
    """
    environ = {
        "BENTOML_HOME": str(store),
        "EMBEDDER_WORKERS": "1",
        "EMBEDDER_ALLOWED_HOSTS": "127.0.0.1",
        "EMBEDDER_ALLOWED_PORTS": str(origin.port),
        "EMBEDDER_ALLOWED_NETWORKS": "127.0.0.1/32",
        "EMBEDDER_MAX_BODY_BYTES": "500000",
        "EMBEDDER_MAX_IMAGE_BYTES": "1000000",
        "EMBEDDER_MAX_INPUTS": "8",  # so that one more fits into a body
        "EMBEDDER_MAX_IN_FLIGHT_BYTES": "1000000",
        "EMBEDDER_API_KEYS": KEYS[0],
    }
    with Server(tmp_path_factory.mktemp("documented") / "log", environ) as server:
        yield server


def test_the_service_does_what_its_document_says(
    documented: Server, image_urls: Path, origin: Origin, tmp_path: Path
) -> None:
    url = documented.url
    document = documented.get("/docs.json", headers=KEYED).json()
    command: list[str | Path] = [
        *(SCHEMATHESIS, "--no-color", "run", f"{url}/docs.json", "--url", url),
        # Two checks never come into play: nothing is created here, so that nothing can be missing or deleted.
        *("--checks", "all", "--mode", "all", "--phases", "examples,coverage,fuzzing,stateful"),
        *("--max-examples", "100", "--generation-deterministic"),  # which also keeps no database
        *(f"--header={name}: {value}" for name, value in KEYED.items()),
    ]
    environ = {
        **plain_environ(),
        "SCHEMATHESIS_HOOKS": "tests.http.openapi_hooks",
        "IMAGE_URLS": str(image_urls),
        "PYTHONPATH": str(ROOT),
    }
    asked_before = len(origin.requests)
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    # And it was not because nothing was asked.
    operations = sum(len(item) for item in document["paths"].values())
    assert f"Selected: {operations}/{operations}\n  Tested: {operations}\n" in done.stdout
    found = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert found is not None, done.stdout
    assert int(found[1]) == int(found[2]) >= 200
    assert len(origin.requests) - asked_before >= 20


def test_every_example_that_needs_no_network_succeeds_and_so_does_the_first(server: Server) -> None:
    paths = server.get("/docs.json").json()["paths"]
    for path, operation in [(path, item["post"]) for path, item in paths.items() if "post" in item]:
        content = operation["requestBody"]["content"]["application/json"]
        examples = [each["value"] for each in content.get("examples", {}).values()] or [content["example"]]
        assert CDN_URL not in str(examples[0])
        for example in examples:
            if CDN_URL not in str(example):
                assert server.post(path, example).status_code == 200


def test_operations_are_in_groups_that_are_explained_and_each_has_a_summary(server: Server) -> None:
    document = server.get("/docs.json").json()
    groups = [tag["name"] for tag in document["tags"] if tag["description"]]
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    assert all(operation["summary"] for operation in operations)
    assert {tag for operation in operations for tag in operation["tags"]} == set(groups)
    assert (
        document["paths"]["/v1/embeddings"]["post"]["tags"] == document["paths"]["/v1/models"]["get"]["tags"]
    )


def test_what_needs_a_key_says_so_and_what_needs_none_too(documented: Server, server: Server) -> None:
    for each, headers in ((documented, KEYED), (server, {})):
        for path, item in each.get("/docs.json", headers=headers).json()["paths"].items():
            for method, operation in item.items():
                locked = each is documented and path not in ALWAYS_OPEN
                assert ("401" in operation["responses"]) is locked, path
                assert ("security" in operation) is (each is documented and not locked), path
                without_a_key = requests.request(method, each.url + path)
                assert (without_a_key.status_code == 401) is locked, path


def test_an_image_that_the_others_left_no_memory_is_an_item_with_a_documented_code(
    documented: Server,
) -> None:
    def bytes_in_work() -> float:
        samples = documented.samples("embedder_in_flight_bytes", headers=KEYED)
        return sum(sample.value for sample in samples)

    fields = "".join(f"{name}: {value}\r\n" for name, value in KEYED.items())
    head = f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Length: 480000\r\n{fields}\r\n"
    with socket.create_connection(("127.0.0.1", documented.port)) as other:
        other.sendall(head.encode() + bytes(470_000))
        until(lambda: bytes_in_work() >= 470_000)
        # This body and what its two images carry are counted too: 0.45 MB, 0.01 MB and 0.44 MB.
        urls = [f"data:;base64,{'A' * size}" for size in (10_000, 440_000)]
        answer = documented.post("/embed_batch", {"urls": urls}, headers=KEYED)
    codes = [error["code"] for error in answer.json()["errors"]]
    assert (answer.status_code, codes) == (200, ["unsupported_format", "overloaded"])
    schemas = documented.get("/docs.json", headers=KEYED).json()["components"]["schemas"]
    assert set(codes) <= set(schemas["ItemError"]["properties"]["code"]["enum"])
