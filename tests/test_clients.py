"""Clients that people have, against the running service: `docs/clients.md`, and what is not in it.

Each runs in a process of its own, as its users run it: importing some of them emits warnings, which are errors here.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE

import numpy as np
import pytest
import requests

from tests import pictures
from tests.answers import Held, with_length
from tests.conftest import Reference, Serving
from tests.origin import Origin
from tests.pictures import data_url
from tests.server import KEYS, ROOT, Server, plain_environ

PAGE = (ROOT / "docs" / "clients.md").read_text()
EXAMPLES = {
    title: re.findall(r"```(?:python|sh)\n(.*?)```", text, re.DOTALL)
    for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
}


@pytest.fixture(scope="module")
def urls(origin: Origin, photo: bytes) -> tuple[str, str]:
    """What stands for the examples' two URLs."""
    origin.serve("/sample.jpg", photo)
    origin.serve("/cat.jpg", pictures.encoded(pictures.photo(400, 300), "JPEG"))
    return origin.url("/sample.jpg"), origin.url("/cat.jpg")


def run(code: str, server: Server, urls: tuple[str, str], folder: Path, *arguments: str) -> str:
    """What the example prints."""
    code = code.replace("http://localhost:8000", server.url).replace("/tmp/pictures", str(folder))  # noqa: S108
    for name, url in zip(("sample", "cat"), urls, strict=True):
        code = code.replace(f"https://res.cloudinary.com/demo/image/upload/{name}.jpg", url)
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(
        command, cwd=folder, env={**plain_environ(), "HOME": str(folder)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("title", "prints"),
    [
        ("OpenAI's SDK", "512 {tag}\n"),
        ("LangChain", "512\n"),
        ("Chroma", "[['2']]\n"),
        ("LanceDB", "{cat}\n"),
        ("BentoML's client", "512\n"),
    ],
)
def test_the_examples_run(
    server: Server, urls: tuple[str, str], tmp_path: Path, title: str, prints: str
) -> None:
    (code,) = EXAMPLES[title]
    tag = server.get("/info").json()["model"]["tag"]
    assert run(code, server, urls, tmp_path) == prints.format(tag=tag, cat=urls[1])


def test_every_example_is_run() -> None:
    assert {title for title, blocks in EXAMPLES.items() if blocks} == {
        *("curl", "OpenAI's SDK", "LangChain", "Chroma", "LanceDB", "BentoML's client")
    }


def test_curl_sends_files(server: Server, photo: bytes, reference: Reference) -> None:
    (commands,) = EXAMPLES["curl"]
    done = subprocess.run(
        ["bash", "-ec", commands.replace("http://localhost:8000", server.url)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    form, bare, batch = map(json.loads, re.findall(r"\{.*?\}(?=\{\"emb|$)", done.stdout, re.DOTALL))
    assert form == bare
    assert np.array(form["embedding"]) @ reference(photo) >= 0.9999
    assert batch["embeddings"] == [form["embedding"], None]


OPENAI = """
import asyncio, json, sys
import numpy as np
from openai import AsyncOpenAI, BadRequestError, ConflictError, OpenAI

server, good, bad, fingerprint = sys.argv[1:]
client = OpenAI(base_url=f"{server}/v1", api_key="unused", max_retries=0)
plain = client.embeddings.create(model="x", input=good).data[0].embedding  # it asks for base64 by itself
floats = client.embeddings.create(model="x", input=[good] * 2, encoding_format="float")
assert [item.index for item in floats.data] == [0, 1]
assert np.array_equal(np.float32(plain), np.float32(floats.data[1].embedding))
assert floats.usage.total_tokens == 2


async def embed():
    async with AsyncOpenAI(base_url=f"{server}/v1", api_key="unused") as client:
        return (await client.embeddings.create(model="x", input=good)).data[0].embedding


assert np.array_equal(np.float32(asyncio.run(embed())), np.float32(plain))
try:
    client.embeddings.create(model="x", input=[good, bad])
except BadRequestError as error:
    assert (error.param, error.code, error.status_code) == ("input[1]", "url_not_allowed", 400), error
    assert "is not public" in str(error)
nulls = client.embeddings.create(model="x", input=[good, bad], encoding_format="float", extra_body={"errors": "null"})
assert nulls.data[1].embedding is None
assert nulls.errors[0]["code"] == "url_not_allowed"
assert client.embeddings.create(model="x", input=good, extra_headers={"X-Expect-Model": fingerprint}).data
try:
    client.embeddings.create(model="x", input=good, extra_headers={"X-Expect-Model": "another"})
except ConflictError as error:
    assert error.code == "model_mismatch"
(model,) = client.models.list()
assert client.models.retrieve(model.id) == model
print(json.dumps(plain))
"""


def test_openais_sdk_in_all_its_ways(
    server: Server, urls: tuple[str, str], tmp_path: Path, photo: bytes, reference: Reference
) -> None:
    fingerprint = server.get("/info").json()["fingerprint"]
    arguments = (server.url, urls[0], "http://10.0.0.1/x.jpg", fingerprint)
    embedding = json.loads(run(OPENAI, server, urls, tmp_path, *arguments))
    assert np.array(embedding) @ reference(photo) >= 0.9999


@pytest.fixture(scope="module")
def narrow(serving: Serving) -> Iterator[Server]:
    """One worker that has one image in work, takes a key, and may be called by pages of two origins."""
    settings = {
        "EMBEDDER_API_KEYS": KEYS[0],
        "EMBEDDER_CORS_ORIGINS": "https://shop.example,https://other.example:8443",
        "EMBEDDER_MAX_IN_FLIGHT_IMAGES": "1",
        "EMBEDDER_MAX_URLS": "1",
    }
    with serving(**settings) as server:
        yield server


RETRYING = """
import sys
from openai import AuthenticationError, OpenAI, RateLimitError

server, key, url = sys.argv[1:]
try:
    OpenAI(base_url=f"{server}/v1", api_key="wrong").embeddings.create(model="x", input=url)
except AuthenticationError as error:
    assert error.code == "unauthorized"
client = OpenAI(base_url=f"{server}/v1", api_key=key, max_retries=0)
try:
    client.embeddings.create(model="x", input=url)
except RateLimitError as error:
    assert error.response.headers["Retry-After"] == "1"
    print(error.code, flush=True)
sys.stdin.readline()  # there is room from now on, and a little later
print(len(client.with_options(max_retries=20).embeddings.create(model="x", input=url).data[0].embedding))
"""


def test_openais_sdk_tries_again_when_it_is_told_to(narrow: Server, photo: bytes, origin: Origin) -> None:
    held = Held(with_length(photo))
    origin.raw("/held.jpg", held)
    with ThreadPoolExecutor(1) as thread:
        body = {"url": origin.url("/held.jpg")}
        first = thread.submit(narrow.post, "/embed", body, headers={"X-API-Key": KEYS[0]})
        assert held.arrived.acquire(timeout=60)
        command = [sys.executable, "-W", "ignore", "-c", RETRYING, narrow.url, KEYS[0], data_url(photo)]
        with subprocess.Popen(command, env=plain_environ(), text=True, stdin=PIPE, stdout=PIPE) as client:
            assert client.stdout is not None and client.stdin is not None  # noqa: PT018
            assert client.stdout.readline() == "overloaded\n"
            client.stdin.write("\n")
            client.stdin.flush()
            held.release()
            assert client.stdout.readline() == "512\n"
        assert client.returncode == 0
        assert first.result().status_code == 200


def test_pages_of_the_origins_that_are_named_may_call_it(narrow: Server, photo: bytes) -> None:
    site = {"Origin": "https://shop.example"}
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type,x-api-key,x-expect-model,x-stainless-os",
    }
    for path in ("/embed", "/v1/embeddings"):
        preflight = requests.options(
            narrow.url + path, headers={**site, **asked}
        )  # without a key, as browsers send it
        assert preflight.status_code == 200
        assert preflight.headers["Access-Control-Allow-Origin"] == "https://shop.example"
        assert preflight.headers["Access-Control-Allow-Headers"] == asked["Access-Control-Request-Headers"]
    answer = narrow.post("/embed", {"url": data_url(photo)}, headers={**site, "X-API-Key": KEYS[0]})
    assert answer.status_code == 200
    assert answer.headers["Access-Control-Allow-Origin"] == "https://shop.example"
    assert "X-Embedding-Fingerprint" in answer.headers["Access-Control-Expose-Headers"]
    # Also that it lacks a key may be read.
    refused = narrow.post("/embed", {"url": data_url(photo)}, headers=site)
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (
        401,
        "https://shop.example",
    )
    other = {"Origin": "https://evil.example"}
    assert requests.options(f"{narrow.url}/embed", headers={**other, **asked}).status_code == 400
    assert "Access-Control-Allow-Origin" not in narrow.post("/embed", {}, headers=other).headers


def test_without_origins_no_page_may(server: Server) -> None:
    asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    assert requests.options(f"{server.url}/embed", headers=asked).status_code == 405
    assert "Access-Control-Allow-Origin" not in server.post("/embed", {}, headers=asked).headers


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"url": "x"}),
        ("/embed", {"inputs": "x"}),
        ("/embed_batch", {"urls": ["x"]}),
        ("/v1/embeddings", {"input": "x"}),
        ("/vectors", {"image": "x"}),
        ("/vectorize", {"images": ["x"]}),
    ],
)
def test_another_model_than_the_one_expected_is_409_in_every_dialect(
    server: Server, photo: bytes, path: str, body: dict[str, object]
) -> None:
    body = json.loads(json.dumps(body).replace('"x"', json.dumps(data_url(photo))))
    info = server.get("/info").json()
    for right in (info["fingerprint"], info["model"]["tag"]):
        assert server.post(path, body, headers={"X-Expect-Model": right}).status_code == 200
        assert server.post(path, {**body, "expect_model": right}).status_code == 200
    for answer in (
        server.post(path, body, headers={"X-Expect-Model": "0123456789ab"}),
        server.post(path, {**body, "expect_model": "0123456789ab"}),
    ):
        assert answer.status_code == 409
        for part in ("model_mismatch", "0123456789ab", info["fingerprint"], info["model"]["tag"]):
            assert part in answer.text


def test_an_answer_for_up_to_64_images_says_how_long_it_took(
    server: Server, photo: bytes, photo_url: str
) -> None:
    def timing(answer: requests.Response) -> dict[str, float]:
        found = answer.headers["Server-Timing"].split(", ")
        return {name: float(duration) for name, duration in (part.split(";dur=") for part in found)}

    fetched = timing(server.post("/embed", {"url": photo_url}))
    assert list(fetched) == ["fetch", "decode", "queue", "encode", "total"]
    assert sum(fetched.values()) - fetched["total"] <= fetched["total"] + 0.5  # each is rounded to 0.1 ms
    carried = server.post("/v1/embeddings", {"input": data_url(photo)})
    assert list(timing(carried)) == ["decode", "queue", "encode", "total"]
    several = timing(server.post("/embed_batch", {"urls": [f"{photo_url}?{n}" for n in range(64)]}))
    assert list(several) == ["fetch", "decode", "queue", "encode", "total"]
    # Of stages that images go through side by side, none is longer than the whole.
    assert max(several.values()) <= several["total"] + 0.1
    refused = timing(server.post("/embed_batch", {"urls": ["http://10.0.0.1/"]}))
    assert list(refused) == ["queue", "total"]
    for answer in (
        server.post("/v1/embeddings", {"input": [data_url(photo)] * 65}),  # which goes through in windows
        server.post("/embed", {"url": "http://10.0.0.1/"}),
    ):
        assert "Server-Timing" not in answer.headers
