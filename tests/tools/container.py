"""`make test-container`: builds the image twice, runs it as a user would, and measures it.

The Bento is a fresh one of untrained weights, fp32 and int8. Each figure is printed with its limit; the tool
ends with 1 if one is over it. It takes minutes, a package index, and docker or podman. Where no registry
answers, it makes a base image from Debian's archive (`debian_base.py`).
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import requests
from numpy.typing import NDArray

from scripts.containerize import find_engine
from tests.answers import Held, with_length
from tests.origin import Origin
from tests.pictures import data_url
from tests.server import BENTOML, ROOT, Server, free_port, is_ready, plain_environ, until
from tests.tools import debian_base
from tests.tools.engines import ENGINES, Container, Engine, EngineError, File

IMAGE = "image-embedder:test-container"
AGAIN = "image-embedder:test-container-again"
PHOTO = (ROOT / "samples" / "chelsea.jpg").read_bytes()
PHOTO_URL = data_url(PHOTO)

MAX_MB_BEYOND_BASE = 350.0
MAX_READY_S = 4.0
MAX_WORKER_MB = 350.0
MAX_HEALED_S = 15.0
MAX_DIFFERENCE = 1e-5
"""Between two components of one embedding, in the container and outside, on one machine."""
METRICS = "/tmp/bentoml/prometheus_multiproc_dir"  # noqa: S108 - of the container
LEFT_BEHIND = "counter_1.db"
STARTS = 3
STOPPED_AFTER_S = 0.5
IN_WORK = 10
CLIENTS = 4

# Not wanted in the image. A compiler and git are an intruder's first tools.
TOOLS = re.compile(
    r".*/s?bin/(([a-z0-9_]+-)*(gcc|g\+\+|cc|c\+\+|cpp|clang|ld|as|make|git|uv|uvx)(-[0-9.]+)?)"
)
PACKAGES = re.compile(
    r".*/site-packages/(torch|torchvision|onnx|onnxscript|pip|uv|setuptools|pytest|scipy)/.*"
)
CACHES = re.compile(r".*/(\.cache|pip-[^/]*|uv-[^/]*)/.*|/root/..*|/var/(cache|lib/apt/lists)/..*")

# Run inside. Worker by number: its resident memory, in bytes.
WORKERS = """
import json, os
found = {}
for pid in filter(str.isdigit, {*os.listdir("/proc")} - {str(os.getpid())}):
    try:
        command, status = open(f"/proc/{pid}/cmdline").read(), open(f"/proc/{pid}/status").read()
    except OSError:  # it ended meanwhile
        continue
    if "_bentoml_impl.worker.service" in command:
        found[pid] = 1024 * int(status.split("VmRSS:")[1].split()[0])
print(json.dumps(found))
"""
ASK = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=60)
connection.request("POST", "/embed", sys.stdin.read(), {"Content-Type": "application/json"})
answer = connection.getresponse()
print(answer.status, answer.read().decode())
"""


@dataclass
class Figures:
    """Prints what is measured, a figure a line, and remembers those over their limit."""

    failed: list[str] = field(default_factory=list)

    def note(self, what: str, value: object, bar: str, met: bool) -> None:
        print(f"{what:46} {value!s:>24}   {bar:28} {'pass' if met else 'FAIL'}", flush=True)
        if not met:
            self.failed.append(what)

    def at_most(self, what: str, value: float, bar: float, unit: str) -> None:
        self.note(what, f"{value:.3g} {unit}", f"at most {bar:g} {unit}", value <= bar)

    def none(self, what: str, found: list[str]) -> None:
        self.note(what, len(found), "none", not found)
        for one in found[:10]:
            print(f"    {one}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.tools.container", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--engine", default="", choices=("", *ENGINES), help="the first that works")
    parser.add_argument("--base-image", default="", help="a slim Python 3.11")
    parser.add_argument("--certificates", default="", help="a bundle, for the build")
    parser.add_argument("--options", default="", help="more for the engine's build command")
    parser.add_argument("--keep", action="store_true", help="leave the image there")
    options = parser.parse_args()
    engine = Engine(options.engine or find_engine(ENGINES))
    figures = Figures()
    built = []
    with tempfile.TemporaryDirectory() as temporary, Origin() as origin:
        folder = Path(temporary)
        home = folder / "bentoml"
        named = _make_bento(home)
        try:
            base = options.base_image or _base_image(engine, named, folder)
            engine.make_run(base, folder)
        except (EngineError, debian_base.DebianBaseError) as error:
            sys.exit(f"container: {error}")
        try:
            for image in (IMAGE, AGAIN):
                start_s = time.monotonic()
                more = "no-cache" if image == AGAIN else ""
                build = ("--base-image", base, "--certificates", options.certificates)
                _containerize(home, image, engine, *build, "--options", f"{options.options} {more}")
                built.append(image)
                figures.note(
                    "built with " + engine.name, f"{time.monotonic() - start_s:.0f} s", "no error", True
                )
            _check_files(figures, engine.files(base), engine.files(IMAGE), engine.files(AGAIN))
            _check_config(figures, engine)
            expected = {precision: _expected(home, precision) for precision in ("fp32", "int8")}
            _check_alone(figures, engine, expected["int8"])
            _check_starts(figures, engine)
            _check_serving(figures, engine, origin, expected["fp32"])
        finally:
            for image in [] if options.keep else built:
                engine.remove(image)
    print("container:", f"failed: {', '.join(figures.failed)}" if figures.failed else "passed")
    return bool(figures.failed)


def _base_image(engine: Engine, named: str, folder: Path) -> str:
    """`named`, or one from Debian's archive where no registry has it."""
    if engine.has(named):
        return named
    try:
        engine.pull(named)
    except EngineError as error:
        print(f"container: no registry has {named}: {error}", flush=True)
    else:
        return named
    if not engine.has(debian_base.IMAGE):
        print(f"container: making {debian_base.IMAGE} from Debian's archive ...", flush=True)
        start_s = time.monotonic()
        debian_base.make_debian_base(engine.name, folder)
        print(f"container: made it, {time.monotonic() - start_s:.0f} s", flush=True)
    print(f"container: the base is {debian_base.IMAGE}", flush=True)
    return debian_base.IMAGE


def _make_bento(home: Path) -> str:
    """Gives the base image that its Dockerfile names."""
    environ = {**plain_environ(), "BENTOML_HOME": str(home), "ALLOW_UNTRAINED": "1"}
    save = (sys.executable, "scripts/save_model.py", "--weights", "untrained", "--precision", "int8")
    for command in (save, (BENTOML, "build")):
        subprocess.run(command, cwd=ROOT, env=environ, check=True)
    bento = home / "bentos" / "image_embedder"
    version = (bento / "latest").read_text().strip()
    dockerfile = (bento / version / "env" / "docker" / "Dockerfile").read_text()
    found = re.search(r"^ARG BASE_IMAGE=(\S+)$", dockerfile, re.MULTILINE)
    assert found is not None
    return found[1]


def _containerize(home: Path, image: str, engine: Engine, *options: str) -> None:
    subprocess.run(
        [sys.executable, "scripts/containerize.py", "--image", image, "--engine", engine.name, *options],
        cwd=ROOT,
        # podman would keep the layers of the first stage, 0.8 GB, as an image without a name.
        env={**plain_environ(), "BENTOML_HOME": str(home), "BUILDAH_LAYERS": "false"},
        check=True,
    )


def _expected(home: Path, precision: str) -> NDArray[np.float64]:
    """The photo's embedding by the same model, served outside a container."""
    environ = {"BENTOML_HOME": str(home), "EMBEDDER_PRECISION": precision, "EMBEDDER_WORKERS": "1"}
    with Server(home / f"{precision}.log", environ) as server:
        return np.array(server.post("/embed", {"url": PHOTO_URL}).json()["embedding"])


def _check_files(
    figures: Figures, base: dict[str, File], image: dict[str, File], again: dict[str, File]
) -> None:
    added = {path: file for path, file in image.items() if base.get(path) != file}
    for what, files in (("base image", base), ("image", image)):
        size_mb = sum(file.bytes for file in files.values()) / 1e6
        figures.note(what, f"{size_mb:.0f} MB", "", True)
    beyond_mb = sum(file.bytes for file in added.values()) / 1e6
    figures.at_most("beyond the base", beyond_mb, MAX_MB_BEYOND_BASE, "MB")
    models = [path for path in added if "/bento/models/" in path and path.endswith(".onnx")]
    figures.note("models inside", len(models), "fp32 and int8", len(models) == 2)
    figures.none("compilers, git and uv", sorted(filter(TOOLS.fullmatch, image)))
    figures.none("torch and other packages that do not serve", sorted(filter(PACKAGES.fullmatch, added)))
    figures.none("caches", sorted(filter(CACHES.fullmatch, added)))
    privileged = [path for path, file in added.items() if file.kind == "file" and file.mode & 0o6000]
    figures.none("setuid and setgid files beyond the base", privileged)
    changeable = [path for path, file in added.items() if _may_be_changed(file)]
    figures.none("files that others than root may change", changeable)
    unreadable = [path for path, file in added.items() if file.kind == "file" and not file.mode & 0o004]
    figures.none("files that the user can't read", unreadable)
    differing = [path for path in image.keys() | again.keys() if image.get(path) != again.get(path)]
    figures.none("files that differ when built again", sorted(differing))


def _may_be_changed(file: File) -> bool:
    return file.owner != 0 or (file.kind != "link" and bool(file.mode & 0o022))


def _check_config(figures: Figures, engine: Engine) -> None:
    config = engine.config(IMAGE)
    user = config.user.partition(":")[0]
    figures.note("user", config.user, "a number, not 0", user.isdigit() and user != "0")
    figures.note("ports", ",".join(config.ports), "8000", config.ports == ("8000/tcp",))
    figures.note("health check", config.healthcheck[:1], "is there", bool(config.healthcheck))
    tracking = config.environ.get("BENTOML_DO_NOT_TRACK")
    figures.note("BENTOML_DO_NOT_TRACK", tracking, "True", tracking == "True")


def _check_alone(figures: Figures, engine: Engine, expected: NDArray[np.float64]) -> None:
    """Without settings (but the precision), without a network, with a file system that is read-only but /tmp."""
    with _container(engine, environ={"EMBEDDER_PRECISION": "int8"}, network=False) as container:
        container.start()
        healthcheck = engine.config(IMAGE).healthcheck
        until(lambda: container.run(*healthcheck).returncode == 0, 60)
        figures.note("health check without a network, port 8000", "healthy", "healthy", True)
        answer = _ask(container, PHOTO_URL)
        difference = float(np.abs(np.array(answer["embedding"]) - expected).max())
        figures.at_most("int8 embedding, to the same model outside", difference, MAX_DIFFERENCE, "")
        for url in (
            "http://127.0.0.1:8000/",
            "http://127.0.0.2/a.jpg",  # on loopback all: were one fetched after all, nothing would leave
            "http://[::1]/",
            "http://localhost/",
        ):
            code = _ask(container, url).get("code")
            figures.note(f"fetching {url}", code, "refused", code in ("url_not_allowed", "fetch_failed"))
        first = container.run("cat", "/proc/1/status").stdout
        real, effective = re.findall(r"^Uid:\s+(\d+)\s+(\d+)", first, re.MULTILINE)[0]
        figures.note("runs as", effective, "not root", "0" not in (real, effective))
        (capabilities,) = re.findall(r"^CapEff:\s+(\S+)", first, re.MULTILINE)
        figures.note("capabilities", capabilities, "none", int(capabilities, 16) == 0)
        written = container.run("touch", "/home/bentoml/bento/src/service.py")
        reason = written.stderr.strip().rpartition(": ")[2]
        figures.note("changing what it runs", reason, "refused", written.returncode != 0)
        container.terminate()
        status = container.wait(60)
        figures.note("status after SIGTERM", status, "0", status == 0)
        figures.none("tracebacks in the log", re.findall("Traceback.*", container.log()))


def _check_starts(figures: Figures, engine: Engine) -> None:
    """With a file system that can be written, started several times: what a start leaves, how long it takes."""
    port = free_port()
    seconds = []
    with _container(engine, environ={"EMBEDDER_PORT": str(port)}, network=True, read_only=False) as container:
        for _ in range(STARTS):
            start_s = time.monotonic()
            container.start()
            _until_ready(port)
            seconds.append(time.monotonic() - start_s)
            metrics = set(container.run("ls", METRICS).stdout.split())
            container.run("touch", f"{METRICS}/{LEFT_BEHIND}")
            container.terminate()
            container.wait(60)
        left = [name for name in metrics if name == LEFT_BEHIND]
        figures.none(f"files of the last start among {len(metrics)} for metrics", left)
        start_s = time.monotonic()
        container.start()
        time.sleep(STOPPED_AFTER_S)
        container.terminate()
        container.wait(60)
        figures.at_most("stopped while it starts: ended after", time.monotonic() - start_s, 10, "s")
        figures.none("files written outside /tmp", container.changed())
    figures.at_most(f"start to ready, median of {STARTS}", statistics.median(seconds), MAX_READY_S, "s")


def _check_serving(figures: Figures, engine: Engine, origin: Origin, expected: NDArray[np.float64]) -> None:
    port = free_port()
    environ = {
        "EMBEDDER_PORT": str(port),
        "EMBEDDER_WORKERS": "2",
        "EMBEDDER_ALLOWED_NETWORKS": "127.0.0.0/8",
        "EMBEDDER_ALLOWED_PORTS": str(origin.port),
        "EMBEDDER_CACHE_ENTRIES": "0",
    }
    origin.serve("/photo.jpg", PHOTO)
    with _container(engine, environ=environ, network=True) as container:
        container.start()
        _until_ready(port)
        answer = _post(port, origin.url("/photo.jpg")).json()
        difference = float(np.abs(np.array(answer["embedding"]) - expected).max())
        figures.at_most("fp32 embedding, to the same model outside", difference, MAX_DIFFERENCE, "")
        with ThreadPoolExecutor(CLIENTS) as pool:
            urls = [origin.url(f"/photo.jpg?{number}") for number in range(200)]
            statuses = {answer.status_code for answer in pool.map(lambda url: _post(port, url), urls)}
        figures.note("200 images", statuses, "{200}", statuses == {200})
        resident_mb = max(_workers(container).values()) / 1e6
        figures.at_most("resident, the larger worker", resident_mb, MAX_WORKER_MB, "MB")
        _check_kill(figures, container, port, origin)
        _check_drain(figures, container, port, origin)
        figures.none("tracebacks in the log", re.findall("Traceback.*", container.log()))


def _check_kill(figures: Figures, container: Container, port: int, origin: Origin) -> None:
    workers = _workers(container)
    victim = min(workers, key=int)
    before = _serving(container)
    container.run("python", "-c", f"import os; os.kill({victim}, 9)")
    start_s = time.monotonic()
    with suppress(AssertionError):  # which the figure tells
        until(lambda: _serving(container) > before and len(_workers(container)) == len(workers), 30)
    healed_s = time.monotonic() - start_s
    figures.at_most("a worker that was killed is replaced", healed_s, MAX_HEALED_S, "s")
    statuses = {_post(port, origin.url(f"/photo.jpg?{number}")).status_code for number in range(20)}
    figures.note("20 images after that", statuses, "{200}", statuses == {200})


def _check_drain(figures: Figures, container: Container, port: int, origin: Origin) -> None:
    """SIGTERM while images are being fetched, and while others keep asking."""
    slow = Held(with_length(PHOTO))
    for number in range(IN_WORK):
        origin.raw(f"/slow-{number}.jpg", slow)
    end = threading.Event()
    failed: list[str] = []
    stop_s = float("inf")

    def ask(client: int) -> None:
        number = 0
        while not end.is_set():
            number += 1
            asked_s = time.monotonic()
            try:
                answer = _post(port, origin.url(f"/photo.jpg?{client}.{number}"))
                failure = None if answer.status_code in (200, 503) else answer.text
            except requests.RequestException as error:
                # From a second after SIGTERM on nobody accepts connections.
                failure = None if asked_s > stop_s + 0.9 else repr(error)
            if failure is not None:
                failed.append(failure)

    with ThreadPoolExecutor(IN_WORK + CLIENTS) as pool:
        in_work = [pool.submit(_post, port, origin.url(f"/slow-{number}.jpg")) for number in range(IN_WORK)]
        for _ in in_work:
            assert slow.arrived.acquire(timeout=10)
        clients = [pool.submit(ask, number) for number in range(CLIENTS)]
        time.sleep(1)  # of load
        stop_s = time.monotonic()
        container.terminate()
        time.sleep(2)  # it is past its grace, and waits for what is in work
        slow.release()
        statuses = {answer.result().status_code for answer in in_work}
        end.set()
        status = container.wait(60)
        took_s = time.monotonic() - stop_s
        for client in clients:
            client.result()
    figures.note(f"{IN_WORK} in work at SIGTERM", statuses, "{200}", statuses == {200})
    figures.none("failures of others before it stopped accepting", failed)
    figures.note("status after SIGTERM under load", status, "0", status == 0)
    figures.at_most("drained after", took_s, 10, "s")


@contextmanager
def _container(
    engine: Engine, *, environ: dict[str, str], network: bool, read_only: bool = True
) -> Iterator[Container]:
    container = engine.container(IMAGE, environ=environ, network=network, read_only=read_only)
    try:
        yield container
    except BaseException:
        print(container.log())
        raise
    finally:
        container.remove()


def _until_ready(port: int) -> None:
    until(lambda: is_ready(port), 60)


def _post(port: int, url: str) -> requests.Response:
    return requests.post(f"http://127.0.0.1:{port}/embed", json={"url": url}, timeout=60)


def _ask(container: Container, url: str) -> dict[str, object]:
    """The answer of the service on port 8000, asked from inside its container."""
    done = container.run("python", "-c", ASK, stdin=json.dumps({"url": url}))
    assert done.returncode == 0, done.stderr
    _, _, body = done.stdout.partition(" ")
    answer: dict[str, object] = json.loads(body)
    return answer


def _workers(container: Container) -> dict[str, int]:
    found: dict[str, int] = json.loads(container.run("python", "-c", WORKERS).stdout)
    return found


def _serving(container: Container) -> int:
    """How many workers have finished their start."""
    return container.log().count("Completed async startup hook: start")


if __name__ == "__main__":
    sys.exit(main())
