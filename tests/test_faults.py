"""What a server does when its parts are damaged, killed, stopped or starved, and when time jumps."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path

import pytest
import requests
from PIL import Image

from embedder.http.gate import Routes
from embedder.http.pages import docs
from embedder.http.uvicorn_private import MAX_WAITING
from tests import networks, pictures
from tests.answers import hang
from tests.disk import fill, mounted
from tests.origin import Origin
from tests.server import BENTOML, ROOT, Server, assert_error, free_port, is_ready, plain_environ, until
from tests.traffic import post

CLIENTS = 6


@pytest.fixture(scope="module")
def environ(store: Path, origin: Origin, photo: bytes) -> dict[str, str]:
    origin.serve("/photo.jpg", photo)
    return {
        "BENTOML_HOME": str(store),
        "EMBEDDER_WORKERS": "2",
        "EMBEDDER_ALLOWED_NETWORKS": "127.0.0.0/8",
        "EMBEDDER_ALLOWED_PORTS": str(origin.port),
    }


class Clients:
    """Some that ask without a pause, each on a connection of its own, until the block is left."""

    def __init__(self, server: Server, url: str) -> None:
        self.right = 0
        self.failed: list[str] = []
        self._server = server
        self._url = url
        self._end = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        self.get_more()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def get_more(self) -> None:
        """Until each has got another right answer, on average more than one."""
        before = self.right
        until(lambda: self.right > before + 2 * CLIENTS)

    def _ask(self) -> None:
        session = requests.Session()
        number = 0
        while not self._end.is_set():
            number += 1
            try:
                answer = session.post(
                    f"{self._server.url}/embed",
                    json={"url": f"{self._url}?{id(session)}.{number}"},
                    timeout=30,
                )
                failure = None if answer.status_code == 200 else f"{answer.status_code} {answer.text}"
            except requests.RequestException as error:
                failure = repr(error)
            with self._lock:
                if failure is None:
                    self.right += 1
                else:
                    self.failed.append(failure)


def starts(server: Server) -> int:
    """How many workers have come so far that they serve."""
    return server.log.read_text().count("Completed async startup hook: start")


@contextmanager
def stopped(process: int) -> Iterator[None]:
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, environ: dict[str, str]) -> Iterator[Server]:
    """Two workers that have both come, and keep no embeddings."""
    environ = {**environ, "EMBEDDER_CACHE_ENTRIES": "0"}
    with Server(tmp_path_factory.mktemp("pair") / "log", environ) as server:
        until(lambda: starts(server) == 2)  # it is ready when one of them is
        yield server


def test_a_killed_worker_costs_what_it_had_in_work_and_is_replaced(pair: Server, origin: Origin) -> None:
    before, victim = starts(pair), min(pair.workers())
    with Clients(pair, origin.url("/photo.jpg")) as clients:
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(pair.workers()) == 2 and victim not in pair.workers(), 15)
        until(lambda: starts(pair) == before + 1)
        clients.get_more()
    assert len(clients.failed) <= CLIENTS
    assert pair.get("/health").json() == {"status": "healthy"}


def test_killing_every_decoder_costs_the_pictures_they_hold_and_each_is_replaced(
    pair: Server, origin: Origin
) -> None:
    workers, before = pair.workers(), pair.decoders()
    assert len(before) >= 2 * len(workers)
    with Clients(pair, origin.url("/photo.jpg")) as clients:
        clients.get_more()
        for decoder in before:
            os.kill(decoder, signal.SIGKILL)
        until(lambda: len(pair.decoders() - before) == len(before))
        clients.get_more()
    assert len(clients.failed) <= len(before)
    assert all(failure.startswith("422") and "ended the process" in failure for failure in clients.failed)
    assert pair.workers() == workers
    assert pair.get("/health").json() == {"status": "healthy"}


def test_while_a_worker_is_stopped_the_other_answers(pair: Server, origin: Origin) -> None:
    with stopped(min(pair.workers())):
        for path in ("/health", "/livez", "/readyz"):
            assert pair.get(path).status_code == 200
        for number in range(10):
            answer = pair.post("/embed", {"url": origin.url(f"/photo.jpg?{number}")})
            assert answer.status_code == 200
    assert pair.get("/health").status_code == 200


def test_what_a_client_asked_for_ends_when_it_goes_away(
    tmp_path: Path, environ: dict[str, str], origin: Origin
) -> None:
    origin.raw("/hang.jpg", hang)
    environ = {**environ, "EMBEDDER_FETCH_TIMEOUT_S": "40", "EMBEDDER_MAX_IN_FLIGHT_IMAGES": "64"}
    # One worker: the server is ready when the first of several is, and the others still open files.
    with Server(tmp_path / "log", {**environ, "EMBEDDER_WORKERS": "1"}) as server:
        _go_away(server, origin)
        before = server.descriptors()
        _go_away(server, origin)
        # Each of 40 would leave one or two. A worker opens three files in its first seconds.
        until(lambda: server.descriptors() <= before + 3)
        assert "Traceback" not in server.log.read_text()
        urls = [origin.url(f"/photo.jpg?{number}") for number in range(64)]
        assert server.post("/embed_batch", {"urls": urls}).status_code == 200  # every place is free


def _go_away(server: Server, origin: Origin) -> None:
    """Clients that ask for what an origin does not send, and leave, and what they asked for with them."""
    others, clients = origin.connections.open, []
    for number in range(40):
        clients.append(socket.create_connection(("127.0.0.1", server.port)))
        clients[-1].sendall(post("/embed", {"url": origin.url(f"/hang.jpg?{number}")}))
    until(lambda: origin.connections.open >= 40)
    for client in clients:
        client.close()
    until(lambda: origin.connections.open <= others)


@pytest.mark.parametrize(
    "signals",
    [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT,), (signal.SIGQUIT,)],
    ids=["twice", "sigint", "sigquit"],
)
def test_whatever_ends_the_server_leaves_no_process_and_no_file(
    tmp_path: Path, environ: dict[str, str], signals: tuple[signal.Signals, ...]
) -> None:
    with Server(tmp_path / "log", {**environ, "EMBEDDER_WORKERS": "1"}) as server:
        processes = server.children()
        for number in signals:
            server.process.send_signal(number)
            until(lambda: not is_ready(server.port))  # two signals at once are one
        assert server.process.wait(20) == 0
        until(lambda: not any(Path(f"/proc/{process}").exists() for process in processes))
    assert "Traceback" not in server.log.read_text()


# Clients that do not read


def unread(server: Server, requests: bytes) -> socket.socket:
    """A client that has sent `requests`, and reads nothing of their answers."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", server.port))
    client.settimeout(2)
    with suppress(TimeoutError):  # nor does the server take more of them, then
        client.sendall(requests)
    return client


def test_answers_that_nobody_reads_keep_no_places(
    tmp_path: Path, environ: dict[str, str], origin: Origin
) -> None:
    batch = post("/embed_batch", {"urls": [origin.url("/photo.jpg")] * 64})
    with Server(tmp_path / "log", {**environ, "EMBEDDER_WORKERS": "1"}) as server:
        # As many as may wait: 6 MB of answers, which is more than a system keeps for who does not read.
        clients = [unread(server, (1 + MAX_WAITING) * batch) for _ in range(4)]
        until(lambda: server.metric("embedder_in_flight_images") == 256)  # all there are
        until(lambda: server.metric("embedder_in_flight_images") == 0)
        assert _is_right(server, origin)
        for client in clients:
            client.close()
        assert "Traceback" not in server.log.read_text()


def test_with_few_descriptors_what_can_be_answered_is_and_then_everything(
    tmp_path: Path, environ: dict[str, str], origin: Origin
) -> None:
    with Server(tmp_path / "log", environ, prefix=("prlimit", "--nofile=128:128")) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(400)]
        for _ in range(20):
            is_ready(server.port)  # or not: there may be nothing left to answer with
        for connection in idle:
            connection.close()
        until(lambda: _is_right(server, origin))
        assert len(server.workers()) == 2


def test_clients_and_downloads_leave_the_service_the_descriptors_that_it_needs(
    tmp_path: Path, environ: dict[str, str], origin: Origin, photo: bytes
) -> None:
    origin.raw("/hangs.jpg", hang)
    environ = {**environ, "EMBEDDER_WORKERS": "1", "EMBEDDER_FETCH_TIMEOUT_S": "5"}
    with Server(tmp_path / "log", environ, prefix=("prlimit", "--nofile=72:72")) as server:
        # Nothing was asked of it yet: it reads files and imports modules with the first requests.
        asking = [requests.Session() for _ in range(60)]
        answered = [session for session in asking if _status(session, f"{server.url}/livez") == 200]
        assert 8 < len(answered) < 60  # the others were cut off
        embed = partial(answered[0].post, f"{server.url}/embed", timeout=10)
        for _ in range(2):
            assert embed(json={"url": origin.url("/photo.jpg")}).status_code in (200, 429)
            assert embed(json={"url": pictures.data_url(photo)}).status_code == 200
            _assert_everything_is_answered(answered[0], server.url)
        for session in asking[1:]:
            session.close()
        until(lambda: embed(json={"url": origin.url("/photo.jpg")}).status_code == 200)

        urls = [origin.url(f"/hangs.jpg?{number}") for number in range(64)]
        with ThreadPoolExecutor(1) as other:
            batch = other.submit(server.post, "/embed_batch", {"urls": urls})
            until(lambda: origin.connections.open >= 8)
            _assert_everything_is_answered(answered[0], server.url)
            codes = [error["code"] for error in batch.result().json()["errors"]]
        assert set(codes) == {"overloaded", "fetch_timeout"}
        assert "Traceback" not in server.log.read_text()


def _status(session: requests.Session, url: str) -> int | None:
    try:
        return session.get(url, timeout=5).status_code
    except requests.RequestException:
        return None


def _assert_everything_is_answered(session: requests.Session, url: str) -> None:
    for path, methods in Routes([], docs.paths()).methods().items():
        if "GET" in methods:
            answer = session.get(url + path, timeout=10)
            assert (path, answer.status_code) in ((path, 200), (path, 204))
            assert answer.content or answer.status_code == 204
    assert "embedder_images_total" in session.get(f"{url}/metrics", timeout=10).text


def _is_right(server: Server, origin: Origin) -> bool:
    try:
        return server.post("/embed", {"url": origin.url("/photo.jpg")}).status_code == 200
    except requests.RequestException:
        return False


# A network that fails

FAILING = """
from pathlib import Path
import onnxruntime

class Session(onnxruntime.InferenceSession):
    def run(self, *arguments):
        if Path("failing").exists():
            raise RuntimeError("CUDA error: unknown")
        return super().run(*arguments)

onnxruntime.InferenceSession = Session
from service import ImageEmbedder
"""


def test_a_network_that_works_again_is_ready_again_without_being_asked_for_embeddings(
    tmp_path: Path, environ: dict[str, str], origin: Origin
) -> None:
    (tmp_path / "failing_service.py").write_text(FAILING)
    environ = {**environ, "PYTHONPATH": str(ROOT), "EMBEDDER_WORKERS": "1", "ORT_DISABLE_TELEMETRY": "1"}
    target = "failing_service:ImageEmbedder"
    with Server(tmp_path / "log", environ, target=target, cwd=tmp_path) as server:
        (tmp_path / "failing").touch()
        assert server.post("/embed", {"url": origin.url("/photo.jpg")}).status_code == 500
        assert server.get("/health").json() == {"status": "unhealthy"}
        assert server.get("/readyz").status_code == 503
        assert server.get("/livez").status_code == 200
        (tmp_path / "failing").unlink()
        # Who asks for embeddings is sent to others as long as it is not ready.
        until(lambda: is_ready(server.port))
        assert _is_right(server, origin)


# A start that must fail


@pytest.fixture
def own_store(tmp_path: Path, store: Path) -> Path:
    """A copy of `store`, to be damaged. Files are shared until they are replaced."""
    home = tmp_path / "store"
    shutil.copytree(store / "models", home / "models", copy_function=os.link)
    return home


def replace(file: Path, content: bytes) -> None:
    file.unlink()  # not the file that the copy has in common with the store
    file.write_bytes(content)


def cut_short(file: Path) -> None:
    replace(file, file.read_bytes()[:-100_000])


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1  # in the weights: it loads, and embeds otherwise
    replace(file, bytes(content))


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a flipped bit": (flip_a_bit, "fp32.onnx is damaged: it is not what was saved"),
    "gone": (Path.unlink, "fp32.onnx can't be read: No such file or directory"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_network_ends_the_command_with_one_line_and_nothing_is_left(
    tmp_path: Path, own_store: Path, case: str
) -> None:
    damage, reason = DAMAGE[case]
    (network,) = own_store.glob("models/resnet18/*/fp32.onnx")
    damage(network)
    said = failed_start(tmp_path, {"BENTOML_HOME": str(own_store)})
    assert said[-1].startswith("Error: ")
    assert f"resnet18:{network.parent.name} can't be served: " in said[-1]
    assert reason in said[-1]
    assert said[-1].endswith("save it again: python scripts/save_model.py")
    assert not [line for line in said if "Traceback" in line]


def test_a_network_that_was_saved_damaged_ends_the_command_too(tmp_path: Path, own_store: Path) -> None:
    (network,) = own_store.glob("models/resnet18/*/fp32.onnx")
    cut_short(network)
    model = network.parent / "model.yaml"
    # As a model that was saved before sums were kept.
    lines = [line for line in model.read_text().splitlines(keepends=True) if "  sha256: " not in line]
    assert len(lines) == len(model.read_text().splitlines()) - 2
    replace(model, "".join(lines).encode())
    said = failed_start(tmp_path, {"BENTOML_HOME": str(own_store)})
    assert "can't be served: " in said[-1]
    assert "fp32.onnx failed" in said[-1]  # what ONNX Runtime says
    assert not [line for line in said if "Traceback" in line]


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("BENTOML_HOME", "{}/none", "there is no model resnet18:latest"),
        (
            "EMBEDDER_MAX_URLS",
            "many",
            "EMBEDDER_MAX_URLS='many' can't be used: it takes a whole number, 1 to",
        ),
    ],
)
def test_no_model_and_a_bad_setting_end_the_command_and_nothing_is_left(
    tmp_path: Path, store: Path, variable: str, value: str, reason: str
) -> None:
    said = failed_start(tmp_path, {"BENTOML_HOME": str(store), variable: value.format(tmp_path)})
    assert said[-1].startswith("Error: ")
    assert reason in said[-1]
    assert ("python scripts/save_model.py" in said[-1]) is (variable == "BENTOML_HOME")
    assert not [line for line in said if "Traceback" in line]


def test_a_model_of_another_preprocessing_version_ends_the_command_and_nothing_is_left(
    tmp_path: Path,
) -> None:
    home = networks.save(tmp_path / "store", networks.metadata(version=2))
    said = failed_start(tmp_path, {"BENTOML_HOME": str(home), "EMBEDDER_MODEL": "tiny:1"})
    assert said[-1].startswith("Error: ")
    assert said[-1].endswith(
        "tiny:1 can't be served: its preprocessing has version 2, this code knows version 1; "
        "save it again: python scripts/save_model.py --architecture tiny"
    )
    assert not [line for line in said if "Traceback" in line]


def failed_start(folder: Path, environ: dict[str, str], prefix: tuple[str, ...] = ()) -> list[str]:
    """What `bentoml serve` says when it ends by itself, which it must; meanwhile it is never ready."""
    port = free_port()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*prefix, BENTOML, "serve"],
            cwd=ROOT,
            env={**plain_environ(), "EMBEDDER_PORT": str(port), **environ},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + 60
    try:
        while process.poll() is None:
            assert time.monotonic() < deadline, (folder / "log").read_text()
            with suppress(requests.RequestException):
                assert not requests.get(f"http://127.0.0.1:{port}/readyz", timeout=1).ok
            time.sleep(0.05)
        assert process.returncode > 0
        until(lambda: not in_session(process.pid))
    finally:
        for member in in_session(process.pid):
            os.kill(member, signal.SIGKILL)
        process.wait()
    return (folder / "log").read_text().splitlines()


def in_session(leader: int) -> list[int]:
    """The processes of the session that `leader` has begun."""
    members = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended meanwhile
            # Behind the name in parentheses: state, parent, group, session.
            state, _, _, session = (process / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(session) == leader and state != "Z":
                members.append(int(process.name))
    return members


# A full disk


def test_a_full_disk_keeps_nobody_from_being_served_where_metrics_are_in_memory(
    tmp_path: Path, environ: dict[str, str], origin: Origin
) -> None:
    disk = tmp_path / "disk"
    with ExitStack() as mounts:
        mounts.enter_context(
            mounted(disk, megabytes=3)
        )  # for everything: log, temporary files, BentoML's home
        (disk / "tmp").mkdir()
        environ = {**environ, "TMPDIR": str(disk / "tmp"), "EMBEDDER_CACHE_ENTRIES": "0"}
        server = Server(disk / "log", environ)
        metrics = server.log.with_suffix(".home") / "prometheus_multiproc_dir"
        mounts.enter_context(mounted(metrics, megabytes=50))
        filling = fill(disk)
        with server:
            workers = server.workers()
            assert len(workers) == 2
            for number in range(1, 7):
                ask_for_everything(server, origin)
                assert server.metric("embedder_images_total") == 4 * number  # four images each time
                if number == 2:
                    filling.unlink()
                if number == 4:
                    fill(disk)
            assert server.workers() == workers
            assert_healthy(server)


def ask_for_everything(server: Server, origin: Origin) -> None:
    """Every route and many answers, each on a connection of its own, so that all workers get some."""
    for path in ("/docs.json", "/info", "/health", "/livez", "/readyz", "/schema.json"):
        assert server.get(path).status_code == 200
    for path in docs.paths():
        assert server.get(path).status_code == 200
    for path, one in (("/embed", lambda url: {"url": url}), ("/embed_batch", lambda url: {"urls": [url]})):
        assert server.post(path, one(origin.url("/photo.jpg"))).status_code == 200
        assert server.post(path, {}).status_code == 400
        answer = requests.post(server.url + path, data=b"x", headers={"Content-Type": "text/plain"})
        assert answer.status_code == 415
    assert server.post("/embed", {"url": "ftp://x"}).status_code == 422
    assert server.post("/embed", {"url": origin.url("/none")}).status_code == 424


def assert_healthy(server: Server) -> None:
    for path in ("/livez", "/readyz", "/health"):
        assert server.get(path).status_code == 200


# Little memory


def test_where_little_can_be_mapped_workers_serve(
    tmp_path: Path, environ: dict[str, str], origin: Origin
) -> None:
    limit = 500_000_000
    (tmp_path / "first").mkdir()
    said = failed_start(tmp_path / "first", environ, prefix=("prlimit", f"--as={limit}"))
    assert not [line for line in said if "Traceback" in line]
    found = re.search(r"may map ([\d.]+) MB more and a worker takes ([\d.]+) MB: raise its limit", said[-1])
    assert found is not None, said[-1]
    # So much more is enough, and is no more than that.
    least = limit + int(1e6 * (float(found[2]) - float(found[1]))) + 5_000_000
    large = pictures.photo(4000, 3000).convert("RGBA")
    origin.serve("/large.png", pictures.encoded(large, "PNG", compress_level=1))
    origin.serve("/huge.png", pictures.encoded(Image.new("L", (7000, 7000)), "PNG"))

    def answer(number: int) -> tuple[int, str]:
        body = {"url": origin.url(f"/{'huge' if number % 4 == 0 else 'large'}.png?{number}")}
        answer = server.post("/embed", body)
        return answer.status_code, answer.json().get("code", "")

    environ = {**environ, "EMBEDDER_CACHE_ENTRIES": "0"}
    with Server(tmp_path / "log", environ, prefix=("prlimit", f"--as={least}")) as server:
        workers = server.workers()
        with Clients(server, origin.url("/photo.jpg")) as neighbours, ThreadPoolExecutor(8) as others:
            answers = set(others.map(answer, range(12)))
            assert server.get("/readyz").status_code == 200  # too little memory is no failure of the network
            right = neighbours.right
            until(lambda: neighbours.right > right + 2 * CLIENTS)
        # Of what may be mapped decoding has a share: a large picture may take more.
        assert answers <= {(200, ""), (422, "bad_image"), (424, "fetch_failed"), (429, "overloaded")}
        assert [failure for failure in neighbours.failed if not failure.startswith(("429", "424"))] == []
        assert server.workers() == workers
        assert_healthy(server)
        until(lambda: _is_right(server, origin))


def test_a_batch_that_there_is_no_memory_for_is_told_so(
    tmp_path: Path, environ: dict[str, str], origin: Origin
) -> None:
    urls = [origin.url(f"/photo.jpg?{number}") for number in range(64)]
    environ = {
        **environ,
        "EMBEDDER_WORKERS": "1",
        "EMBEDDER_PRECISION": "int8",
        "EMBEDDER_CACHE_ENTRIES": "0",
    }
    with Server(tmp_path / "log", environ) as server:
        assert _is_right(server, origin)
        (worker,) = server.workers()
        mapped = int(Path(f"/proc/{worker}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.prlimit(worker, resource.RLIMIT_AS, (mapped + 6_000_000, resource.RLIM_INFINITY))
        for _ in range(8):
            answer = server.post("/embed_batch", {"urls": urls})
            if answer.status_code != 200:  # sometimes there is room for it in what the worker once had
                assert_error(answer, 429, "overloaded")
            assert server.get("/readyz").status_code == 200  # too little memory is no failure of the network
        resource.prlimit(worker, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert server.post("/embed_batch", {"urls": urls}).json()["errors"] == []
        assert server.workers() == {worker}


# Time

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


@pytest.mark.skipif(
    FAKETIME is None, reason="libfaketime is not installed (Debian: apt-get install libfaketime)"
)
def test_a_wall_clock_that_jumps_changes_nothing(
    tmp_path: Path, environ: dict[str, str], origin: Origin
) -> None:
    clock = tmp_path / "clock"
    set_clock(clock, 0)
    faked = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # as the kernel does when the clock is set
        "DONT_FAKE_MONOTONIC": "1",  # the same, to older versions
    }
    origin.raw("/hang", hang)
    environ = {**environ, **faked, "EMBEDDER_FETCH_TIMEOUT_S": "2"}
    with Server(tmp_path / "log", environ) as server, ThreadPoolExecutor(1) as other:
        workers = server.workers()
        with Clients(server, origin.url("/photo.jpg")) as clients:
            for hours in (6, -6):
                hanging = other.submit(server.post, "/embed", {"url": origin.url(f"/hang?{hours}")})
                set_clock(clock, hours)
                until(partial(is_ahead, server, hours))
                assert_error(hanging.result(), 424, "fetch_timeout")
                clients.get_more()
        assert clients.failed == []
        assert server.workers() == workers
        assert_healthy(server)


def set_clock(file: Path, hours: int) -> None:
    """What servers with `file` take the time to be: so many hours from what it is."""
    new = file.with_suffix(".new")
    new.write_text(f"{3600 * hours:+d}")
    new.replace(file)


def is_ahead(server: Server, hours: int) -> bool:
    said = parsedate_to_datetime(server.get("/livez").headers["Date"])
    return round((said.timestamp() - time.time()) / 3600) == hours


def test_nothing_depends_on_the_wall_clock() -> None:
    root = Path(__file__).parent.parent
    for file in [root / "service.py", *(root / "embedder").rglob("*.py")]:
        assert "time.time(" not in file.read_text(), file
        assert "datetime.now" not in file.read_text(), file
