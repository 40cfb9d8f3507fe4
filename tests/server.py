"""A real server for tests: `bentoml serve` as a user starts it, in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import requests
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

ROOT = Path(__file__).resolve().parent.parent
BENTOML = Path(sys.executable).with_name("bentoml")
START_TIMEOUT_S = 60.0
KEYS = ("the-key-until-tomorrow", "the-key-from-today-on")
"""What the `locked` service takes: one key is about to be withdrawn."""
_LISTENING = "0A"  # in /proc/net/tcp
_PORT_LOST = "zmq.error.ZMQError: Address already in use"
"""BentoML finds two free ports for its supervisor, lets them go, and binds them a moment later. Among the
tests' many connections one is taken in between now and then: whoever runs it again gets others."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Server:
    """`bentoml serve TARGET` with `environ` added to a plain environment, while the `with` block runs."""

    def __init__(
        self,
        log: Path,
        environ: Mapping[str, str],
        *,
        target: str = ".",
        bentoml: Path = BENTOML,
        cwd: Path = ROOT,
        prefix: Sequence[str] = (),
    ) -> None:
        """`prefix` is a command that runs the server's, under other limits say."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self._command = [*prefix, str(bentoml), "serve", target]
        # BentoML empties the folder for metrics below its home when it starts: a server that shared its
        # home with another would take that one's metrics away.
        home = log.with_suffix(".home")
        for name in ("models", "bentos"):
            (home / name).parent.mkdir(exist_ok=True)
            (home / name).symlink_to(Path(environ["BENTOML_HOME"]) / name)
        self._environ = {
            **plain_environ(),
            "EMBEDDER_PORT": str(self.port),
            **environ,
            "BENTOML_HOME": str(home),
        }
        self._cwd = cwd

    def __enter__(self) -> Server:
        for starts_left in (2, 1, 0):
            self._start()
            try:
                self._wait_until_ready()
                break
            except BaseException as error:
                self.kill()
                if not starts_left or _PORT_LOST not in str(error):
                    raise
        return self

    def _start(self) -> None:
        with self.log.open("wb") as log:
            # A session of its own: stopping it must not depend on this process's terminal.
            self.process = subprocess.Popen(
                self._command,
                cwd=self._cwd,
                env=self._environ,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        finally:
            self.kill()

    def kill(self) -> None:
        """End every process of the server's, whatever state it is in."""
        if self.process.poll() is None:
            for process in (self.process.pid, *self.children()):
                os.kill(process, signal.SIGKILL)
            self.process.wait()

    def children(self) -> list[int]:
        """The server's own processes below the first, while that runs."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def workers(self) -> set[int]:
        """Those of them that serve."""
        return {child for child in self.children() if b"_bentoml_impl.worker.service" in _command(child)}

    def decoders(self) -> set[int]:
        """The processes that decode for them."""
        decoders: set[int] = set()
        for worker in self.workers():
            for thread in Path(f"/proc/{worker}/task").iterdir():
                with suppress(FileNotFoundError, ProcessLookupError):  # a thread that just ended
                    decoders.update(map(int, thread.joinpath("children").read_text().split()))
        return decoders

    def descriptors(self) -> int:
        """How many files and sockets all its processes below the first have open, decoders too."""
        return sum(self._of_each(lambda process: len(list(Path(f"/proc/{process}/fd").iterdir()))).values())

    def resident_bytes(self) -> dict[int, int]:
        """The memory of each process below the first, decoders too."""
        page = os.sysconf("SC_PAGE_SIZE")
        return self._of_each(
            lambda process: int(Path(f"/proc/{process}/statm").read_text().split()[1]) * page
        )

    def _of_each(self, figure: Callable[[int], int]) -> dict[int, int]:
        figures = {}
        for process in {*self.children(), *self.decoders()}:
            with suppress(FileNotFoundError, ProcessLookupError):  # a decoder that was just ended
                figures[process] = figure(process)
        return figures

    def client_ports(self, worker: int) -> set[int]:
        """The clients' ports of the connections that `worker` has accepted."""
        opened = set()
        for descriptor in Path(f"/proc/{worker}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                opened.add(os.readlink(descriptor))
        # proc(5): number, local and remote address, state, 5 fields more, inode; all but that hexadecimal.
        rows = [row.split() for row in Path(f"/proc/{worker}/net/tcp").read_text().splitlines()[1:]]
        own = f":{self.port:04X}"
        return {
            int(row[2].partition(":")[2], 16)
            for row in rows
            if row[1].endswith(own) and row[3] != _LISTENING and f"socket:[{row[9]}]" in opened
        }

    def post(self, path: str, body: object, **options: object) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=300, **options)  # type: ignore[arg-type]

    def get(self, path: str, **options: object) -> requests.Response:
        return requests.get(self.url + path, timeout=300, **options)  # type: ignore[arg-type]

    def samples(self, name: str, **options: object) -> list[Sample]:
        """Those of `/metrics` with that name; `options` are `get`'s."""
        families = text_string_to_metric_families(self.get("/metrics", **options).text)
        return [sample for family in families for sample in family.samples if sample.name == name]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples with that name and those labels, over all workers and routes."""
        return sum(sample.value for sample in self.samples(name) if labels.items() <= sample.labels.items())

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}: {self.log.read_text()}")
            if is_ready(self.port):
                return
            time.sleep(0.05)
        raise RuntimeError(f"the server was not ready after {START_TIMEOUT_S} s: {self.log.read_text()}")


def _command(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return b""


def assert_error(answer: requests.Response, status: int, code: str) -> None:
    """`answer` is an error with that status and code, in the shape that all have."""
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json().keys() == {"error", "code"}
    assert answer.json()["code"] == code


def is_ready(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/readyz", timeout=1).ok
    except (requests.ConnectionError, requests.Timeout):  # or its socket is open, and nobody there yet
        return False


def until(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    """Waits until `condition` holds. Fails when it does not: the limit is for that, and asserts no speed."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def plain_environ() -> dict[str, str]:
    """This process's environment without any setting of the service's, of BentoML's or of make's."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("EMBEDDER_", "BENTOML_", "MAKE", "MFLAGS")) and name != "ALLOW_UNTRAINED"
    }
    return {**kept, "BENTOML_DO_NOT_TRACK": "True"}
