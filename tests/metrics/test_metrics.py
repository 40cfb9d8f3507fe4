"""`/metrics` of the running service: what it counts is what happened."""

from __future__ import annotations

import mmap
import os
import signal
import struct
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import requests
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from embedder import errors
from embedder.http.bentoml_private import read_again
from embedder.metrics.measures import FETCH_FAILURES
from embedder.runtime.memory import resident_memory_bytes
from tests import pictures
from tests.answers import Held, says, with_length
from tests.origin import Origin
from tests.pictures import data_url
from tests.server import Server, until
from tests.test_errors import CONTRACT

STAGES = ("fetch", "decode_queue", "decode", "queue", "encode")
STAGE = "embedder_stage_duration_seconds"


def counts(server: Server) -> dict[str, float]:
    """How often each stage was passed."""
    return {sample.labels["stage"]: sample.value for sample in server.samples(f"{STAGE}_count")}


def passed(server: Server, do: Callable[[], object]) -> dict[str, float]:
    """How often each stage is passed while `do` runs."""
    before = counts(server)
    do()
    return {stage: count - before[stage] for stage, count in counts(server).items()}


def by_code(server: Server, name: str) -> dict[str, float]:
    return {sample.labels["code"]: sample.value for sample in server.samples(name)}


def counted(server: Server, name: str, do: Callable[[], object]) -> dict[str, float]:
    """By how much each code's count grows while `do` runs, of those that do."""
    before = by_code(server, name)
    do()
    return {
        code: count - before[code] for code, count in by_code(server, name).items() if count != before[code]
    }


@pytest.fixture(scope="module", autouse=True)
def _bad_images(origin: Origin, photo: bytes) -> None:
    header = struct.pack(">IIBBBBB", 10, 10, 8, pictures.RGB, 0, 0, 0)
    origin.serve("/cut-short.jpg", photo[: len(photo) // 2])
    origin.serve("/empty.png", pictures.png_of_parts(header, b"", zlib.compress(b"")))  # has no pixels


# Stages


def test_each_request_passes_each_stage_once(server: Server, photo_url: str) -> None:
    def ask() -> None:
        for _ in range(7):
            assert server.post("/embed", {"url": photo_url}).status_code == 200

    images, batches = server.metric("embedder_images_total"), server.metric("embedder_batch_size_count")
    assert passed(server, ask) == dict.fromkeys(STAGES, 7)
    assert server.metric("embedder_images_total") == images + 7
    assert server.metric("embedder_batch_size_count") == batches + 7


def test_each_image_of_a_batch_is_fetched_and_decoded_and_the_network_sees_them_together(
    server: Server, photo_url: str
) -> None:
    def ask() -> None:
        answer = server.post("/embed_batch", {"urls": [f"{photo_url}?{number}" for number in range(20)]})
        assert answer.json()["errors"] == []

    images, sizes = server.metric("embedder_images_total"), server.metric("embedder_batch_size_sum")
    grown = passed(server, ask)
    assert [grown[stage] for stage in ("fetch", "decode_queue", "decode")] == [20, 20, 20]
    # One batch, or one for each core.
    assert 1 <= grown["queue"] == grown["encode"] < 20
    assert server.metric("embedder_images_total") == images + 20
    assert server.metric("embedder_batch_size_sum") == sizes + 20


@pytest.mark.parametrize(
    ("source", "stages"),
    [
        ("data:", ("decode_queue", "decode", "queue", "encode")),  # nothing to fetch
        ("/empty.png", ("fetch", "decode_queue", "decode")),  # fails where it is decoded
        ("/cut-short.jpg", ("fetch", "decode_queue", "decode")),
        ("/not-there.jpg", ("fetch",)),  # a fetch that fails is one
        ("http://[::1]/", ()),  # not dialled
    ],
)
def test_a_stage_that_is_not_reached_is_not_counted(
    server: Server, origin: Origin, photo: bytes, photo_url: str, source: str, stages: tuple[str, ...]
) -> None:
    url = data_url(photo) if source == "data:" else origin.url(source) if source[0] == "/" else source
    grown = passed(server, lambda: server.post("/embed", {"url": url}))
    assert grown == {stage: float(stage in stages) for stage in STAGES}


def test_an_origin_that_waits_shows_in_the_fetch_stage_in_seconds(
    server: Server, origin: Origin, photo: bytes
) -> None:
    def fetches(within_s: str) -> float:
        return server.metric(f"{STAGE}_bucket", stage="fetch", le=within_s)

    origin.raw("/late.jpg", says(b"", with_length(photo), every_s=0.6))
    before = fetches("0.5"), fetches("40.0")
    assert server.post("/embed", {"url": origin.url("/late.jpg")}).status_code == 200
    assert (fetches("0.5"), fetches("40.0")) == (before[0], before[1] + 1)


# Errors


@pytest.mark.parametrize("name", ["embedder_request_errors_total", "embedder_image_errors_total"])
def test_every_code_is_there_before_it_happens(server: Server, name: str) -> None:
    assert by_code(server, name).keys() == CONTRACT.keys()


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("POST", "/embed", {"url": 5}, errors.InvalidRequest.code),
        ("POST", "/embed_batch", {"urls": ["x"] * 65}, errors.InvalidRequest.code),
        ("POST", "/nothing", {}, errors.NotFound.code),
        ("GET", "/embed", None, errors.MethodNotAllowed.code),
    ],
)
def test_a_request_that_fails_as_a_whole_is_counted_by_its_code_and_no_image_is(
    server: Server, method: str, path: str, body: object, code: str
) -> None:
    def ask() -> None:
        answer = requests.request(method, server.url + path, json=body, timeout=60)
        assert answer.json()["code"] == code

    images, failed = server.metric("embedder_images_total"), server.metric("embedder_image_errors_total")
    assert counted(server, "embedder_request_errors_total", ask) == {code: 1}
    assert server.metric("embedder_images_total") == images
    assert server.metric("embedder_image_errors_total") == failed


def test_an_image_that_fails_alone_is_an_image_and_a_request_that_failed(
    server: Server, origin: Origin, photo_url: str
) -> None:
    def ask() -> None:
        assert server.post("/embed", {"url": origin.url("/cut-short.jpg")}).status_code == 422

    assert counted(server, "embedder_image_errors_total", ask) == {"bad_image": 1}
    assert counted(server, "embedder_request_errors_total", ask) == {"bad_image": 1}


def test_a_download_that_fails_is_counted_by_its_reason(server: Server, origin: Origin) -> None:
    def by_reason() -> dict[str, float]:
        samples = server.samples("embedder_fetch_failures_total")
        return {sample.labels["reason"]: sample.value for sample in samples}

    before = by_reason()
    assert before.keys() == set(FETCH_FAILURES)
    assert server.post("/embed", {"url": origin.url("/not-there.jpg")}).status_code == 424
    assert by_reason() == {**before, "status": before["status"] + 1}


def test_images_that_fail_in_a_batch_are_counted_by_their_codes_and_the_request_is_none_that_failed(
    server: Server, origin: Origin, photo_url: str
) -> None:
    bad = [origin.url("/cut-short.jpg"), "http://[::1]/", "ftp://x/", origin.url("/not-there.jpg")]

    def ask() -> None:
        answer = server.post("/embed_batch", {"urls": [photo_url, *bad]})
        assert len(answer.json()["errors"]) == 4

    images, failed = server.metric("embedder_images_total"), server.metric("embedder_request_errors_total")
    assert counted(server, "embedder_image_errors_total", ask) == {
        "bad_image": 1,
        "url_not_allowed": 2,
        "fetch_failed": 1,
    }
    assert server.metric("embedder_images_total") == images + 5
    assert server.metric("embedder_request_errors_total") == failed


# Gauges


def half_sent(photo: bytes) -> Held:
    """Sends the first bytes of a download, and the rest when it is released."""
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(photo)
    return Held(photo[10_000:], before=head + photo[:10_000])


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory, store: Path, origin: Origin) -> Iterator[Server]:
    """A service that waits for its origins longer than a test takes."""
    environ = {
        "BENTOML_HOME": str(store),
        "EMBEDDER_WORKERS": "2",
        "EMBEDDER_ALLOWED_NETWORKS": "127.0.0.0/8",
        "EMBEDDER_ALLOWED_PORTS": str(origin.port),
        "EMBEDDER_FETCH_TIMEOUT_S": "40",
    }
    with Server(tmp_path_factory.mktemp("metrics") / "log", environ) as server:
        yield server


def memory_by_worker(server: Server) -> dict[int, float]:
    return {
        int(sample.labels["pid"]): sample.value for sample in server.samples("embedder_resident_memory_bytes")
    }


def test_the_memory_of_each_worker_is_what_the_system_says(two_workers: Server) -> None:
    until(lambda: all(memory_by_worker(two_workers).values()))
    memory = memory_by_worker(two_workers)
    assert memory.keys() == two_workers.workers()
    for worker, resident in memory.items():
        pages = int(Path(f"/proc/{worker}/statm").read_text().split()[1])
        assert resident == pytest.approx(pages * os.sysconf("SC_PAGE_SIZE"), rel=0.1)


def test_what_is_in_work_is_counted_over_all_workers_and_given_back(
    two_workers: Server, origin: Origin, photo: bytes
) -> None:
    gate = half_sent(photo)
    origin.raw("/in-work.jpg", gate)
    urls = [origin.url(f"/in-work.jpg?{number}") for number in range(12)]
    with ThreadPoolExecutor(12) as clients:
        answers = clients.map(lambda url: two_workers.post("/embed", {"url": url}).status_code, urls)
        try:
            until(lambda: two_workers.metric("embedder_in_flight_images") == 12)
            # The first bytes of each download are there, and the bodies of the requests are read and gone.
            until(lambda: two_workers.metric("embedder_in_flight_bytes") >= 12 * 10_000)
            assert two_workers.metric("embedder_in_flight_bytes") < 12 * 11_000
        finally:
            gate.release()
        assert set(answers) == {200}
    until(lambda: two_workers.metric("embedder_in_flight_images") == 0)
    until(lambda: two_workers.metric("embedder_in_flight_bytes") == 0)


def test_what_a_killed_worker_had_in_work_is_not_counted_on(
    two_workers: Server, origin: Origin, photo: bytes
) -> None:
    gate = half_sent(photo)
    origin.raw("/left-behind.jpg", gate)
    urls = [origin.url(f"/left-behind.jpg?{number}") for number in range(12)]
    victim, other = sorted(two_workers.workers())

    def ask(url: str) -> None:
        with suppress(requests.ConnectionError):  # which is the victim's end
            two_workers.post("/embed", {"url": url})

    # Only the victim takes connections meanwhile.
    os.kill(other, signal.SIGSTOP)
    with ThreadPoolExecutor(12) as clients:
        try:
            for url in urls:
                clients.submit(ask, url)
            until(lambda: two_workers.metric("embedder_in_flight_images") == 12)
            os.kill(victim, signal.SIGKILL)
        finally:
            os.kill(other, signal.SIGCONT)
            gate.release()
    until(lambda: victim not in memory_by_worker(two_workers))
    until(lambda: two_workers.metric("embedder_in_flight_images") == 0)
    until(lambda: memory_by_worker(two_workers).keys() == two_workers.workers())
    assert len(two_workers.workers()) == 2


def test_this_process_has_resident_memory() -> None:
    without_block = resident_memory_bytes()
    with mmap.mmap(-1, 50_000_000) as block:  # straight from the system, and back to it when it is closed
        for page in range(0, len(block), mmap.PAGESIZE):
            block[page] = 1
        with_block = resident_memory_bytes()
    assert with_block - without_block > 40_000_000
    assert with_block - resident_memory_bytes() > 40_000_000


def test_a_file_that_a_worker_is_making_does_not_fail_who_asks(tmp_path: Path) -> None:
    file = tmp_path / "gauge_all_7.db"
    file.touch()  # prometheus_client makes it, then gives it its size

    def read() -> bytes:
        registry = CollectorRegistry()
        MultiProcessCollector(registry, str(tmp_path))  # type: ignore[no-untyped-call]
        try:
            return generate_latest(registry)
        except struct.error:
            file.write_bytes(bytes(mmap.PAGESIZE))
            raise

    assert read_again(read)() == b""
