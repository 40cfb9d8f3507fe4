"""Starting and stopping the service: what a bad start says, and that leaving drops nothing."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from tests.answers import Held, with_length
from tests.origin import Origin
from tests.server import BENTOML, ROOT, Server, free_port, plain_environ, until


def test_a_model_that_this_project_did_not_save_stops_the_start(tmp_path: Path) -> None:
    environ = {**plain_environ(), "BENTOML_HOME": str(tmp_path)}
    create = "import bentoml\nwith bentoml.models.create('resnet18'): pass"
    subprocess.run([sys.executable, "-c", create], env=environ, check=True)
    done = subprocess.run(
        [BENTOML, "serve"], cwd=ROOT, env=environ, text=True, capture_output=True, timeout=60
    )
    assert done.returncode != 0
    assert "was not saved by scripts/save_model.py" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def environ(store: Path, origin: Origin) -> dict[str, str]:
    return {
        "BENTOML_HOME": str(store),
        "EMBEDDER_ALLOWED_NETWORKS": "127.0.0.0/8",
        "EMBEDDER_ALLOWED_PORTS": str(origin.port),
        "EMBEDDER_FETCH_TIMEOUT_S": "40",
        "EMBEDDER_WORKERS": "2",
    }


def has_started(server: Server) -> bool:
    """Both workers have: the server is ready when one of them is."""
    return server.log.read_text().count("Completed async startup hook: start") == 2


def have_ended(processes: Iterable[int]) -> bool:
    return not any(Path(f"/proc/{process}").exists() for process in processes)


def test_sigterm_fails_readiness_first_answers_what_is_in_work_and_ends_with_status_0(
    tmp_path: Path, environ: dict[str, str], origin: Origin, photo: bytes
) -> None:
    slow = Held(with_length(photo))
    origin.raw("/slow.jpg", slow)
    with Server(tmp_path / "log", environ) as server, ThreadPoolExecutor(10) as clients:
        until(lambda: has_started(server))
        processes = server.children()
        # A connection from before: the listening socket may close while we look.
        with requests.Session() as session:
            assert session.get(server.url + "/health", timeout=60).status_code == 200
            urls = [origin.url(f"/slow.jpg?{n}") for n in range(10)]  # the same one would be fetched once
            waiting = [clients.submit(server.post, "/embed", {"url": url}) for url in urls]
            for _ in urls:
                assert slow.arrived.acquire(timeout=60)
            server.process.send_signal(signal.SIGTERM)
            until(lambda: session.get(server.url + "/health", timeout=60).status_code == 503)
            assert session.get(server.url + "/health", timeout=60).json() == {"status": "draining"}
            assert session.get(server.url + "/readyz", timeout=60).status_code == 503
        slow.release()
        assert [answer.result().status_code for answer in waiting] == [200] * 10
        assert server.process.wait(60) == 0
        until(lambda: have_ended(processes))


def test_workers_leave_when_their_parent_is_killed_and_answer_what_is_in_work(
    tmp_path: Path, environ: dict[str, str], origin: Origin, photo: bytes
) -> None:
    slow = Held(with_length(photo))
    origin.raw("/parent.jpg", slow)
    with Server(tmp_path / "log", environ) as server, ThreadPoolExecutor(1) as client:
        until(lambda: has_started(server))
        workers = server.workers()
        waiting = client.submit(server.post, "/embed", {"url": origin.url("/parent.jpg")})
        assert slow.arrived.acquire(timeout=60)
        server.process.kill()
        until(lambda: nobody_accepts(server.port))
        slow.release()
        assert waiting.result().status_code == 200
        until(lambda: have_ended(workers))


def nobody_accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


# An answer that is more than buffers hold, and a shutdown that does not wait long for it to be read.
STUBBORN = """
import sys
import uvicorn
from embedder.runtime.shutdown import Shutdown

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        Shutdown(limit_s=0.5, grace_s=0.1).install()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(64_000_000)})

uvicorn.run(app, port=int(sys.argv[1]))
"""


def test_a_client_that_does_not_read_its_answer_does_not_keep_a_worker_from_leaving() -> None:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", STUBBORN, str(port)], cwd=ROOT)
    try:
        client = socket.socket()
        until(lambda: client.connect_ex(("127.0.0.1", port)) == 0)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        client.recv(1)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        client.close()
    finally:
        process.kill()
        process.wait()
