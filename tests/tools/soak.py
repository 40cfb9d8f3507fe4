"""`make soak MINUTES=30`: a server under good and hostile traffic, and which resources it keeps.

Prints memory, descriptors, threads, files and latency over time. Ends with 1 when an answer is undocumented or
missing, when an image gets another embedding than before the traffic, when more than 1 % of the good images
get none, when a process of the server was replaced, when memory grows by 1 MB a minute or more after the first
fifth of the run, or when an idle server has more descriptors, threads or files after the traffic than before.
"""

from __future__ import annotations

import argparse
import collections
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import requests
from numpy.typing import NDArray

from tests import pictures
from tests.answers import OK, hang, reset, says, with_length
from tests.origin import Origin
from tests.server import Server
from tests.traffic import go_away
from tests.weights import save_pth, saved_model

Embedding: TypeAlias = NDArray[np.float32]

CLIENTS = 12
SAMPLE_EVERY_S = 5.0
WARM_UP = 0.2
MAX_MEMORY_SLOPE_MB_MIN = 1.0
MAX_SHED = 0.01
"""Of good images: twelve clients are no overload."""
FIRST_S = 10.0
"""Of traffic, before the first sample: what is opened once is open then."""
IDLE_S = 35.0
"""After traffic: connections that were not used for 15 s are closed."""

DOCUMENTED: Mapping[int, set[str | None]] = {
    200: {None},
    400: {"invalid_request", "text_not_supported"},
    404: {"not_found"},
    405: {"method_not_allowed"},
    413: {"body_too_large"},
    415: {"unsupported_media_type"},
    422: {"url_not_allowed", "image_too_large", "too_many_pixels", "unsupported_format", "bad_image"},
    424: {"fetch_failed", "fetch_timeout"},
    429: {"overloaded"},
}


@dataclass(frozen=True)
class Sample:
    """The server at one moment."""

    minute: float
    memory_mb: float
    """Resident, of all processes together, decoders too."""
    descriptors: int
    threads: int
    files: int
    p50_ms: float
    """Of good images that were posted one by one since the sample before."""
    p99_ms: float
    answers: int


@dataclass
class Seen:
    """What the clients saw."""

    good_ms: list[float] = field(default_factory=list)
    good: int = 0
    shed: int = 0
    """Good images that were answered with 429."""
    answers: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: collections.Counter[str] = field(default_factory=collections.Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, answer: requests.Response) -> Any:  # Any: JSON
        """The content of `answer`, which is counted, and must be a documented one."""
        content = answer.json() if answer.headers.get("Content-Type") == "application/json" else {}
        error = content.get("error") if isinstance(content, dict) else None
        code = error.get("code") if isinstance(error, dict) else content.get("code") if error else None
        with self.lock:
            self.answers[f"{answer.status_code} {code or ''}".strip()] += 1
        if code not in DOCUMENTED.get(answer.status_code, set()):
            self.complain(f"{answer.status_code} {answer.text[:100]}")
        return content

    def complain(self, what: str) -> None:
        with self.lock:
            self.wrong[what] += 1


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.tools.soak", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--minutes", type=float, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Origin() as origin:
        images = _furnish(origin)
        temporary = Path(folder) / "tmp"
        temporary.mkdir()
        environ = {
            "BENTOML_HOME": str(saved_model(Path(folder) / "store", save_pth(Path(folder) / "weights.pth"))),
            "EMBEDDER_ALLOWED_NETWORKS": "127.0.0.1/32",
            "EMBEDDER_ALLOWED_PORTS": str(origin.port),
            "EMBEDDER_FETCH_TIMEOUT_S": "3",
            "EMBEDDER_CACHE_ENTRIES": "200",
            "TMPDIR": str(temporary),
        }
        with Server(Path(folder) / "log", environ) as server:
            folders = (temporary, server.log.with_suffix(".home"))
            samples, seen = _run(server, origin, images, options.minutes, folders)
    for line in _table(samples):
        print(line)
    print("answers:", dict(seen.answers.most_common()))
    failures = [*_growth(samples), *(f"{count} x {what}" for what, count in seen.wrong.items())]
    for failure in failures:
        print(f"soak: {failure}")
    print("soak:", "failed" if failures else "passed")
    return bool(failures)


def _run(
    server: Server, origin: Origin, images: Mapping[str, bytes], minutes: float, folders: Sequence[Path]
) -> tuple[list[Sample], Seen]:
    """Samples of the `server`, which writes below `folders`, and what its clients saw.

    The first and the last are of an idle server, the others of one under traffic.
    """
    seen = Seen()
    known = {image: _embedding(server, image) for image in images}
    start_s = time.monotonic()

    def sample() -> Sample:
        return _sample(server, seen, folders, (time.monotonic() - start_s) / 60)

    def clients(seconds: float) -> list[threading.Thread]:
        end_s = time.monotonic() + seconds
        threads = [
            threading.Thread(target=_Client(server, origin, images, known, seen, seed).run, args=(end_s,))
            for seed in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        return threads

    for client in clients(FIRST_S):
        client.join()
    time.sleep(IDLE_S)
    samples, processes = [sample()], server.children()
    under_way = clients(60 * minutes)
    while any(client.is_alive() for client in under_way):
        time.sleep(SAMPLE_EVERY_S)
        samples.append(sample())
    time.sleep(IDLE_S)
    samples.append(sample())
    if server.children() != processes:
        seen.complain("a process of the server's was replaced")
    if seen.shed > MAX_SHED * (seen.good + seen.shed) or not seen.good:
        seen.complain(f"{seen.shed} good images were refused with 429, {seen.good} were embedded")
    return samples, seen


def _embedding(server: Server, url: str) -> Embedding:
    answer = server.post("/embed", {"url": url})
    answer.raise_for_status()
    return np.array(answer.json()["embedding"], dtype=np.float32)


class _Client:
    """Sends one request after the other, each of a random kind."""

    def __init__(
        self,
        server: Server,
        origin: Origin,
        files: Mapping[str, bytes],
        known: Mapping[str, Embedding],
        seen: Seen,
        seed: int,
    ) -> None:
        self._server = server
        self._files = files
        self._known = known
        self._images = list(known)
        self._hostile = [origin.url(f"/hostile/{name}") for name in HOSTILE]
        # Loopback, but not allowed: were it fetched after all, nothing would leave this machine.
        self._hostile.append(origin.url("/good/0", host="127.0.0.2"))
        self._seen = seen
        self._chance = random.Random(seed)
        self._session = requests.Session()

    def run(self, end_s: float) -> None:
        kinds = {
            self._good: 60,
            self._upload: 8,
            self._batch: 4,
            self._openai: 4,
            self._bad: 25,
            self._body: 4,
            self._path: 1,
            self._go_away: 2,
        }
        while time.monotonic() < end_s:
            (ask,) = self._chance.choices(list(kinds), list(kinds.values()))
            try:
                ask()
            except Exception as exc:  # it would end this thread unseen
                self._seen.complain(f"{ask.__name__}: {exc!r}")

    def _good(self) -> None:
        image = self._chance.choice(self._images)
        begin_s = time.perf_counter()
        answer = self._post("/embed", json={"url": self._fresh(image)})
        ms = 1000 * (time.perf_counter() - begin_s)
        content = self._seen.note(answer)
        if answer.status_code == 200:
            with self._seen.lock:
                self._seen.good_ms.append(ms)
                self._seen.good += 1
            self._check(image, content["embedding"])
        elif answer.status_code == 429:
            with self._seen.lock:
                self._seen.shed += 1
        else:
            self._seen.complain(f"a good image got {answer.status_code} {answer.text[:100]}")

    def _upload(self) -> None:
        image = self._chance.choice(self._images)
        for content in self._answered("an upload", "/embed", files={"file": self._files[image]}):
            self._check(image, content["embedding"])

    def _batch(self) -> None:
        urls, fresh = self._urls()
        for content in self._answered("a batch", "/embed_batch", json={"urls": fresh}):
            self._check_all(urls, content["embeddings"])

    def _openai(self) -> None:
        urls, fresh = self._urls()
        body = {"input": fresh, "errors": "null"}
        for content in self._answered("OpenAI's", "/v1/embeddings", json=body):
            self._check_all(urls, [item["embedding"] for item in content["data"]])

    def _urls(self) -> tuple[list[str], list[str]]:
        """Good and hostile ones, and what to ask for."""
        urls = [self._chance.choice(self._images + self._hostile) for _ in range(8)]
        return urls, [self._fresh(url) if url in self._known else url for url in urls]

    def _answered(
        self, what: str, path: str, **options: Any
    ) -> Iterator[Any]:  # Any: requests' own, and JSON
        """The content of a 200, if that comes. Anything else but 429 is a complaint."""
        answer = self._post(path, **options)
        content = self._seen.note(answer)
        if answer.status_code == 200:
            yield content
        elif answer.status_code != 429:
            self._seen.complain(f"{what} got {answer.status_code} {answer.text[:100]}")

    def _check_all(self, urls: Sequence[str], embeddings: Sequence[list[float] | None]) -> None:
        for url, embedding in zip(urls, embeddings, strict=True):
            if url in self._known:
                self._check(url, embedding)
            elif embedding is not None:
                self._seen.complain(f"an embedding of {url}")

    def _check(self, image: str, embedding: list[float] | None) -> None:
        if embedding is None or not np.array(embedding, np.float32) @ self._known[image] >= 0.9999:
            self._seen.complain(f"{image} got another embedding, or none")

    def _bad(self) -> None:
        self._not_200(self._post("/embed", json={"url": self._chance.choice(self._hostile)}))

    def _body(self) -> None:
        self._not_200(self._post("/embed", **self._chance.choice(BODIES)))

    def _path(self) -> None:
        self._not_200(self._post(f"/{self._chance.random()}", json={}))

    def _not_200(self, answer: requests.Response) -> None:
        self._seen.note(answer)
        if answer.status_code == 200:
            self._seen.complain("200 for what is no image")

    def _go_away(self) -> None:
        go_away(self._server.port, self._fresh(self._chance.choice(self._images)))

    def _fresh(self, url: str) -> str:
        """A URL that nobody has asked for: one fetch each."""
        return f"{url}?{self._chance.random()}"

    def _post(self, path: str, **options: Any) -> requests.Response:  # Any: requests' own
        return self._session.post(self._server.url + path, timeout=90, **options)


BODIES: list[dict[str, object]] = [
    {"data": b"{", "headers": {"Content-Type": "application/json"}},
    {"data": b"[" * 100_000, "headers": {"Content-Type": "application/json"}},
    {"data": b"x", "headers": {"Content-Type": "text/plain"}},
    {"json": {"url": 5}},
    {"json": {"inputs": "a text"}},
    {"files": {"file": b"no image at all"}},
    {"data": b"--x", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
    {"json": {"url": pictures.data_url(b"no image at all", "")}},
]


HOSTILE = ("404", "hang", "drip", "reset", "text", "loop", *pictures.hostile())


def _furnish(origin: Origin) -> dict[str, bytes]:
    """Gives `origin` its files; returns the URLs of good images, and these."""
    good = {}
    kinds = ["640x480 JPEG", "1600x1067 JPEG", "500x700 PNG", "800x600 WEBP", "224x224 GIF", "4000x3000 JPEG"]
    for number, kind in enumerate(kinds):
        size, format = kind.split()
        width, height = map(int, size.split("x"))
        data = pictures.encoded(pictures.photo(width, height), format)
        origin.serve(f"/good/{number}", data)
        good[origin.url(f"/good/{number}")] = data
    for name, data in pictures.hostile().items():
        origin.serve(f"/hostile/{name}", data)
    origin.serve("/hostile/text", b"<html>" * 1000)
    origin.redirect("/hostile/loop", "/hostile/loop")

    origin.raw("/hostile/hang", hang)
    head = b"\xff\xd8\xff\xe0"
    origin.raw("/hostile/drip", says(OK + b"\r\n" + head, *[b"\0"] * 600, every_s=0.1))
    origin.raw("/hostile/reset", says(with_length(head, length=100_000), then=reset))
    return good


def _sample(server: Server, seen: Seen, folders: Sequence[Path], minute: float) -> Sample:
    with seen.lock:
        recent_ms, seen.good_ms = seen.good_ms, []
        answers = seen.answers.total()
    processes = [
        Path(f"/proc/{pid}") for pid in server.children()
    ]  # decoders, which may end, have one thread
    return Sample(
        minute=minute,
        memory_mb=sum(server.resident_bytes().values()) / 1e6,
        descriptors=server.descriptors(),
        threads=sum(len(list((process / "task").iterdir())) for process in processes),
        files=sum(len(list(_files(folder))) for folder in folders),
        p50_ms=float(np.percentile(recent_ms, 50)) if recent_ms else 0.0,
        p99_ms=float(np.percentile(recent_ms, 99)) if recent_ms else 0.0,
        answers=answers,
    )


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def _growth(samples: Sequence[Sample]) -> list[str]:
    """What grew although it must not, a sentence each."""
    before, *under_load, after = samples
    warm = under_load[int(WARM_UP * len(under_load)) :]
    failures = []
    if len(warm) > 2:
        slope = float(np.polyfit([s.minute for s in warm], [s.memory_mb for s in warm], 1)[0])
        print(f"memory: {slope:+.2f} MB a minute after the first {warm[0].minute:.1f} minutes")
        if slope >= MAX_MEMORY_SLOPE_MB_MIN:
            failures.append(f"memory grows by {slope:.2f} MB a minute")
    for name in ("descriptors", "threads", "files"):
        first, last = getattr(before, name), getattr(after, name)
        highest = max(getattr(sample, name) for sample in under_load)
        print(f"{name}: {first} before, at most {highest}, {last} afterwards")
        if last > first:
            failures.append(f"{name}: {first} before, {last} afterwards")
    return failures


def _table(samples: Sequence[Sample]) -> Iterator[str]:
    yield "minute  memory MB  descriptors  threads  files  p50 ms  p99 ms  answers"
    for sample in samples[:: max(1, len(samples) // 30)]:
        yield (
            f"{sample.minute:6.1f} {sample.memory_mb:10.0f} {sample.descriptors:12d} {sample.threads:8d} "
            f"{sample.files:6d} {sample.p50_ms:7.0f} {sample.p99_ms:7.0f} {sample.answers:8d}"
        )


if __name__ == "__main__":
    sys.exit(main())
