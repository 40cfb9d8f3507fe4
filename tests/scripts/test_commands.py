"""What a newcomer types: the set-up, `make serve`, and what they say when the machine is not right."""

from __future__ import annotations

import functools
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import pytest
import requests
from packaging.requirements import Requirement

from scripts import setup
from tests.server import ROOT, free_port, is_ready, plain_environ

# `make` works with the repository's own .venv: there, when the tests run as `make test` runs them.
in_own_venv = pytest.mark.skipif(
    Path(sys.prefix).resolve() != (ROOT / ".venv").resolve(), reason="not run by `make test`"
)
x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="elsewhere torch has no second build")


def test_an_old_python_is_refused_in_one_line() -> None:
    as_if = (
        "import runpy, sys; sys.version_info = (3, 10, 18); "
        f"runpy.run_path({str(ROOT / 'scripts' / 'setup.py')!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", as_if], capture_output=True, text=True)
    assert done.returncode == 1
    assert (
        done.stderr
        == "setup: Python 3.10.18 is too old, this needs 3.11 or newer: make PYTHON=python3.11 ...\n"
    )


PYPROJECT = """
[project]
dependencies = []
optional-dependencies.dev = ["one"]
optional-dependencies.export = ["torch==2.14.1; platform_machine == 'x86_64'", "two"]
"""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A package index on this machine, and its URL: `one`, `two`, and `torch` in two builds."""
    root = tmp_path_factory.mktemp("index")
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    for folder, name, version, tags in (
        ("simple", "one", "1", "py3-none-any"),
        ("simple", "two", "2", "py3-none-any"),
        ("simple", "torch", "2.14.1", "py3-none-any"),
        ("cpu", "torch", "2.14.1+cpu", f"{tag}-{tag}-linux_x86_64"),
    ):
        wheel(root / folder / name / f"{name}-{version}-{tags}.whl", name, version, tags)
    handler = functools.partial(QuietHandler, directory=str(root))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


def wheel(path: Path, name: str, version: str, tags: str) -> None:
    info = f"{name}-{version}.dist-info"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tags}\n")
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As much of a repository as the set-up reads. What serves is the package `one`."""
    folder = tmp_path_factory.mktemp("checkout")
    (folder / "scripts").mkdir()
    for name in ("setup.py", "torch_build.py"):
        shutil.copy(ROOT / "scripts" / name, folder / "scripts")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "requirements.lock").write_text("one==1\n")
    return folder


@pytest.fixture
def checkout(made_once: Path) -> Path:
    """That, with no level installed. An earlier test may have made its `.venv`, which takes seconds."""
    for package in (*wheels(made_once), made_once / ".venv" / "levels"):
        shutil.rmtree(package, ignore_errors=True)
    return made_once


def set_up(checkout: Path, index: str, *levels: str, **environ: str) -> subprocess.CompletedProcess[str]:
    environ = {
        "PATH": os.environ["PATH"],
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_CACHE_DIR": "1",
        "PIP_RETRIES": "1",
        "PIP_INDEX_URL": f"{index}/simple",
        **environ,
    }
    command: list[str | Path] = [sys.executable, checkout / "scripts" / "setup.py", *levels]
    return subprocess.run(command, env=environ, capture_output=True, text=True)


def wheels(checkout: Path) -> list[Path]:
    folders = (checkout / ".venv").glob("lib/python*/site-packages/*.dist-info")
    return [folder for folder in folders if folder.name.startswith(("one-", "two-", "torch-"))]


def installed(checkout: Path) -> dict[str, str]:
    return dict(folder.name.removesuffix(".dist-info").split("-") for folder in wheels(checkout))


def test_levels_are_installed_when_they_are_wanted_and_stay(checkout: Path, index: str) -> None:
    assert set_up(checkout, index, "serve").returncode == 0
    assert installed(checkout) == {"one": "1"}
    again = set_up(checkout, index, "serve")
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")

    exported = set_up(checkout, index, "export")
    assert "setup: installing torch from the package index" in exported.stdout
    assert "(pip is configured with index-url; " in exported.stdout
    assert installed(checkout) == {"one": "1", "two": "2", "torch": "2.14.1"}
    assert set_up(checkout, index, "serve").stdout == ""
    assert installed(checkout) == {"one": "1", "two": "2", "torch": "2.14.1"}


@x86_64
def test_torch_for_the_cpu_is_taken_where_its_index_answers(checkout: Path, index: str) -> None:
    done = set_up(checkout, index, "export", TORCH_INDEX_URL=f"{index}/cpu")
    assert done.returncode == 0, done.stderr
    assert f"setup: installing torch==2.14.1+cpu from {index}/cpu, a download of 0 MB\n" in done.stdout
    assert installed(checkout) == {"one": "1", "two": "2", "torch": "2.14.1+cpu"}


@x86_64
@pytest.mark.parametrize(
    ("torch_index", "why"),
    [
        ("{index}/none", "{index}/none/torch/ answers 404"),
        ("{index}/simple", "{index}/simple/torch/ has no torch 2.14.1+cpu for Python cp"),
        ("http://127.0.0.1:{free_port}", "http://127.0.0.1:{free_port}/torch/ does not answer: "),
    ],
)
def test_torch_comes_from_the_package_index_where_its_own_has_none(
    checkout: Path, index: str, torch_index: str, why: str
) -> None:
    names = {"index": index, "free_port": free_port()}
    done = set_up(checkout, index, "export", TORCH_INDEX_URL=torch_index.format(**names))
    assert done.returncode == 0, done.stderr
    assert "setup: installing torch from the package index, a download of 3 GB, 6 GB on disk" in done.stdout
    assert f"({why.format(**names)}" in done.stdout
    assert installed(checkout)["torch"] == "2.14.1"


def test_a_half_made_venv_is_made_anew_and_a_failed_level_is_not_taken_for_done(
    checkout: Path, index: str
) -> None:
    shutil.rmtree(checkout / ".venv", ignore_errors=True)
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").write_text("broken")
    offline = set_up(checkout, f"http://127.0.0.1:{free_port()}", "serve")
    assert offline.returncode == 1
    assert "setup: .venv is half-made, or was made elsewhere: making it anew\n" in offline.stdout
    assert offline.stderr == (
        "setup: could not install the level serve: the package index does not answer; "
        "run it again when it does\n"
    )
    online = set_up(checkout, index, "serve")
    assert online.returncode == 0, online.stderr
    assert "making" not in online.stdout  # what the first try made works
    assert installed(checkout) == {"one": "1"}


def test_a_level_that_is_not_there_is_refused_in_one_line(checkout: Path, index: str) -> None:
    done = set_up(checkout, index, "sevre")
    assert done.stderr == "setup: no such level: sevre; there are serve, dev, export\n"


@in_own_venv
def test_what_serves_has_the_versions_of_the_lock_whatever_is_installed_beside_it() -> None:
    locked = [Requirement(pin) for pin in setup.pins((ROOT / "requirements.lock").read_text())]
    assert len(locked) > 50
    here = [each for each in locked if each.marker is None or each.marker.evaluate()]
    assert [each for each in here if metadata.version(each.name) not in each.specifier] == []


def test_setting_up_again_does_nothing() -> None:
    done = subprocess.run(["make", "setup"], cwd=ROOT, env=plain_environ(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# `make serve` with stand-ins for what it starts: each writes how it was called.
SAVE_MODEL = """
import pathlib, sys
pathlib.Path("saved").open("a").write(" ".join(sys.argv[1:]) + "\\n")
if {needs_torch} and not pathlib.Path("torch").exists():
    sys.exit("save_model: torch is not installed; `make setup` installs what is needed")
"""
SETUP = "import pathlib, sys; pathlib.Path('torch').write_text(' '.join(sys.argv[1:]))"
BENTOML = '#!/bin/sh\necho "serves $EMBEDDER_MODEL in $EMBEDDER_PRECISION on $EMBEDDER_PORT"\n'


@pytest.fixture
def fake_checkout(tmp_path: Path) -> Path:
    for name in ("serve.py", "ensure_model.py"):
        (tmp_path / "scripts").mkdir(exist_ok=True)
        shutil.copy(ROOT / "scripts" / name, tmp_path / "scripts")
    (tmp_path / "models").mkdir()
    for name in ("__init__.py", "architectures.py", "download.py"):
        shutil.copy(ROOT / "models" / name, tmp_path / "models")
    (tmp_path / "scripts" / "save_model.py").write_text(SAVE_MODEL.format(needs_torch=True))
    (tmp_path / "scripts" / "setup.py").write_text(SETUP)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "bin" / "bentoml").write_text(BENTOML)
    (tmp_path / "bin" / "bentoml").chmod(0o755)
    return tmp_path


def serve(folder: Path, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    python, port = folder / "bin" / "python", str(free_port())
    command: list[str | Path] = [python, "scripts/serve.py", "--port", port, *options]
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)


SAVING = "--if-missing --architecture {} --weights pretrained --precision fp32 --fallback-untrained\n"


def test_what_makes_models_is_installed_when_a_model_must_be_made(fake_checkout: Path) -> None:
    done = serve(fake_checkout)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no error of the first try
    assert (fake_checkout / "saved").read_text() == 2 * SAVING.format("resnet18")
    assert (fake_checkout / "torch").read_text() == "export"
    assert "\nserves resnet18:latest in fp32 on " in done.stdout


def test_nothing_is_installed_where_the_model_is_saved_already(fake_checkout: Path) -> None:
    (fake_checkout / "scripts" / "save_model.py").write_text(SAVE_MODEL.format(needs_torch=False))
    assert serve(fake_checkout).returncode == 0
    assert (fake_checkout / "saved").read_text() == SAVING.format("resnet18")
    assert not (fake_checkout / "torch").exists()


def test_another_architecture_is_saved_and_served_under_its_own_name(fake_checkout: Path) -> None:
    done = serve(fake_checkout, "--architecture", "timm/test_vit.r160_in1k")
    assert done.returncode == 0, done.stderr
    assert (fake_checkout / "saved").read_text() == 2 * SAVING.format("timm/test_vit.r160_in1k")
    assert "\nserves timm-test_vit.r160_in1k:latest in fp32 on " in done.stdout


def test_the_model_that_the_environment_names_is_served_and_none_is_saved(fake_checkout: Path) -> None:
    done = serve(fake_checkout, EMBEDDER_MODEL="resnet18:v7", EMBEDDER_PRECISION="int8")
    assert done.returncode == 0, done.stderr
    assert "serve: serving resnet18:v7, as EMBEDDER_MODEL says, in int8, on port " in done.stdout
    assert "\nserves resnet18:v7 in int8 on " in done.stdout
    assert not (fake_checkout / "saved").exists()


def test_without_torch_a_saved_model_is_found_and_a_missing_one_says_what_to_install(
    store: Path, weights_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('No module named torch', name='torch')")
    environ = {**plain_environ(), "BENTOML_HOME": str(store), "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "scripts/save_model.py", "--if-missing", "--weights"]
    for weights, status, said in ((str(weights_file), 0, ""), ("untrained", 1, "torch is not installed")):
        done = subprocess.run([*command, weights], cwd=ROOT, env=environ, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert said in done.stderr


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.mark.parametrize("port", ["taken", "0", "65536"])
def test_a_port_that_cannot_be_used_is_said_in_one_line(taken_port: int, port: str) -> None:
    port = str(taken_port) if port == "taken" else port
    done = subprocess.run(
        [sys.executable, "scripts/serve.py", "--port", port], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"serve: port {port} ")
    assert len(done.stderr.splitlines()) == 1


def test_without_an_engine_for_containers_the_image_is_refused_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "containerize.py"],
        env={**plain_environ(), "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("container: none of docker, podman, buildah works here: ")
    assert len(done.stderr.splitlines()) == 1


def containerize(folder: Path, *options: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """With stand-ins for docker, which builds nothing, and for bentoml, which prints its arguments."""
    for name, script in (("docker", "exit 0"), ("bentoml", 'printf "<%s>" "$@"')):
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / "bin" / name).chmod(0o755)
    command = [str(folder / "bin" / "python"), str(ROOT / "scripts" / "containerize.py"), *options]
    environ = {"PATH": f"{folder / 'bin'}:/usr/bin:/bin", **environ}
    return subprocess.run(command, env=environ, capture_output=True, text=True)


def test_an_image_is_built_with_the_machines_index_proxy_and_certificates(fake_checkout: Path) -> None:
    bundle = fake_checkout / "bundle.pem"
    bundle.touch()
    index, proxy = "https://packages.example.com/simple", "http://proxy.example.com:3128"
    environ = {"PIP_INDEX_URL": index, "HTTPS_PROXY": proxy}
    done = containerize(fake_checkout, "--certificates", str(bundle), "--options", "no-cache", **environ)
    assert done.returncode == 0, done.stderr
    for option in (
        "no-cache",
        f"secret=id=certificates,src={bundle}",
        f"build-arg=PIP_INDEX_URL={index}",
        f"build-arg=HTTPS_PROXY={proxy}",
    ):
        assert f"<--opt><{option}>" in done.stdout


def test_extras_are_what_pyproject_says_they_are(fake_checkout: Path) -> None:
    done = containerize(fake_checkout, "--extras", "bf16 jxl")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (bf16,), (jxl,) = (project["optional-dependencies"][extra] for extra in ("bf16", "jxl"))
    assert f"<--opt><build-arg=EXTRAS={bf16} {jxl}>" in done.stdout
    assert containerize(fake_checkout, "--extras", "heif").stderr.startswith(
        "container: there is no extra 'heif'; "
    )


def test_a_bundle_of_certificates_that_is_not_there_is_said_in_one_line(fake_checkout: Path) -> None:
    done = containerize(fake_checkout, "--certificates", "/none.pem")
    assert done.returncode == 1
    assert done.stderr == "container: there is no bundle of certificates /none.pem: set CERTIFICATES\n"


@in_own_venv
def test_make_serve_serves_and_serves_again(tmp_path: Path, photo_request: str) -> None:
    environ = {**plain_environ(), "BENTOML_HOME": str(tmp_path), "EMBEDDER_WORKERS": "1"}
    for round_ in ("first", "second"):
        port = free_port()
        command = ["make", "serve", f"PORT={port}", "WEIGHTS=untrained"]
        with (tmp_path / f"{round_}.log").open("wb") as log:
            started = time.monotonic()
            process = subprocess.Popen(
                command, cwd=ROOT, env=environ, stdout=log, stderr=log, start_new_session=True
            )
        try:
            while not is_ready(port):
                assert process.poll() is None, (tmp_path / f"{round_}.log").read_text()
                assert time.monotonic() - started < 120
                time.sleep(0.05)
            answer = requests.post(
                f"http://127.0.0.1:{port}/embed",
                data=photo_request,
                headers={"Content-Type": "application/json"},
                timeout=60,
            )
            assert len(answer.json()["embedding"]) == 512
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


@pytest.fixture
def photo_request() -> str:
    """The body that the README's first curl sends, made as it says."""
    command = """echo '{"url": "data:image/jpeg;base64,'$(base64 < samples/chelsea.jpg | tr -d '\\n')'"}'"""
    return subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
