"""The Bento: refused untrained, carries only what serves, runs in a clean environment with its own model."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Reference
from tests.pictures import data_url
from tests.server import BENTOML, ROOT, Server, plain_environ


def run(*command: str | Path, home: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**plain_environ(), "BENTOML_HOME": str(home), **environ},
        text=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def bento(store: Path) -> Path:
    """The folder of a Bento that was just built."""
    built = run(BENTOML, "build", home=store)
    assert built.returncode == 0, built.stderr
    version = (store / "bentos" / "image_embedder" / "latest").read_text().strip()
    assert f"image_embedder:{version}" in built.stdout + built.stderr
    return store / "bentos" / "image_embedder" / version


@pytest.fixture(scope="module")
def clean_environment_begun(bento: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[Path]]:
    folder = tmp_path_factory.mktemp("clean") / "venv"

    def make() -> Path:
        venv.create(folder, with_pip=True)
        requirements = bento / "env" / "python" / "requirements.txt"
        # Only what is imported is compiled, then: compiling everything takes a minute.
        pip = (folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-compile")
        subprocess.run([*pip, "-r", requirements], check=True)
        return folder

    with ThreadPoolExecutor(1) as beside:
        yield beside.submit(make)


@pytest.fixture(scope="module")
def clean_environment(clean_environment_begun: Future[Path]) -> Path:
    """A virtual environment with the Bento's requirements and nothing else."""
    return clean_environment_begun.result()


# As scripts/save_model.py does, but for making the network.
SAVE_UNTRAINED = """
import bentoml, shutil
old = bentoml.models.get("resnet18:latest")
with bentoml.models.create("resnet18", metadata={**old.info.metadata, "trained": False}) as new:
    shutil.copytree(old.path, new.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("model.yaml"))
bentoml.models.delete(old.tag)
"""


@pytest.fixture(scope="module")
def untrained(store: Path, tmp_path_factory: pytest.TempPathFactory, clean_environment_begun: object) -> Path:
    """A BENTOML_HOME whose only model is untrained, and newer than that of `store`."""
    home = tmp_path_factory.mktemp("untrained")
    shutil.copytree(store / "models", home / "models")
    saved = run(sys.executable, "-c", SAVE_UNTRAINED, home=home)
    assert saved.returncode == 0, saved.stderr
    return home


def test_a_bento_of_untrained_weights_is_refused_unless_told(untrained: Path) -> None:
    refused = run(BENTOML, "build", home=untrained)
    assert refused.returncode != 0
    assert "untrained" in refused.stderr
    assert "ALLOW_UNTRAINED=1 bentoml build" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (untrained / "bentos" / "image_embedder").exists()
    assert run(BENTOML, "build", home=untrained, ALLOW_UNTRAINED="1").returncode == 0


def test_it_carries_what_serves_and_nothing_else(bento: Path) -> None:
    packed = {str(path.relative_to(bento / "src")) for path in (bento / "src").rglob("*") if path.is_file()}
    code = [path for path in (ROOT / "embedder").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    serving = {str(path.relative_to(ROOT)) for path in (*code, *(ROOT / "samples").glob("*.jpg"))}
    assert packed == serving | {
        "service.py",
        "requirements.lock",
        "bentofile.yaml",
        "deploy/entrypoint.sh",
        "deploy/healthcheck.py",
    }


def test_its_requirements_are_all_pinned_with_hashes_and_without_torch(bento: Path) -> None:
    text = (bento / "src" / "requirements.lock").read_text().replace("\\\n", "")
    lines = (line.strip() for line in text.splitlines())
    requirements = [line for line in lines if line and not line.startswith("#")]
    assert len(requirements) > 50
    assert [line for line in requirements if "==" not in line or "--hash=sha256:" not in line] == []
    assert [
        line for line in requirements if line.startswith(("torch", "pytest", "mypy", "ruff", "onnx="))
    ] == []


def stages(dockerfile: str) -> list[list[str]]:
    """Instructions by stage, each one a line; what comes before the first stage is the first of them."""
    text = dockerfile.replace("\\\n", " ")
    instructions = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found: list[list[str]] = [[]]
    for instruction in instructions:
        if instruction.startswith("FROM "):
            found.append([])
        found[-1].append(instruction)
    return found


@pytest.mark.parametrize("buildkit", [True, False])
def test_its_image_is_what_was_installed_on_a_slim_base_and_nothing_else(
    bento: Path, store: Path, buildkit: bool
) -> None:
    dockerfile = store / f"Dockerfile-{buildkit}"
    render = (
        "from bentoml.container import get_containerfile; "
        f"get_containerfile('image_embedder:{bento.name}', {str(dockerfile)!r}, enable_buildkit={buildkit})"
    )
    subprocess.run(
        [sys.executable, "-c", render],
        cwd=tempfile.gettempdir(),  # see scripts/containerize.py
        env={**plain_environ(), "BENTOML_HOME": str(store)},
        check=True,
    )
    before, building, image = stages(dockerfile.read_text())
    assert before == ["ARG BASE_IMAGE=python:3.11-slim"]
    assert image[0] == "FROM ${BASE_IMAGE}"
    installing = next(line for line in building if "pip" in line)
    assert "--require-hashes" in installing
    assert ("--mount=type=cache" in installing) == buildkit
    assert [line for line in image if line.startswith("COPY") and "--from=environment" not in line] == []
    assert [line for line in image if re.search(r"apt|pip |uv |chown|BENTOML_CONTAINERIZED", line)] == []
    assert "ENV BENTOML_DO_NOT_TRACK=True" in image
    assert "EXPOSE 8000" in image
    assert [line for line in image if line.startswith("USER")] == ["USER 1034:1034"]
    (check,) = (line for line in image if line.startswith("HEALTHCHECK"))
    (entry,) = (line for line in image if line.startswith("ENTRYPOINT"))
    for command in (check.partition("CMD ")[2], entry.partition(" ")[2]):
        file = json.loads(command)[-1].removeprefix("/home/bentoml/bento/")
        assert (bento / file).is_file()


def test_it_serves_its_own_model_from_a_clean_environment(
    bento: Path,
    store: Path,
    untrained: Path,
    clean_environment: Path,
    tmp_path: Path,
    photo: bytes,
    reference: Reference,
) -> None:
    # The model that a Bento brings with it is the one it serves, not the latest that is there.
    exported = tmp_path / "image_embedder.tar"  # not compressed, which would take half a minute
    assert run(BENTOML, "export", f"image_embedder:{bento.name}", exported, home=store).returncode == 0
    assert run(BENTOML, "import", exported, home=untrained).returncode == 0
    latest = (untrained / "models" / "resnet18" / "latest").read_text().strip()
    assert latest not in (bento / "bento.yaml").read_text()
    environ = {"BENTOML_HOME": str(untrained), "PYTHONPATH": ""}
    target = f"image_embedder:{bento.name}"
    bentoml = clean_environment / "bin" / "bentoml"
    with Server(tmp_path / "log", environ, target=target, bentoml=bentoml, cwd=tmp_path) as server:
        url = data_url(photo)
        answer = server.post("/embed", {"url": url})
        assert np.array(answer.json()["embedding"]) @ reference(photo) >= 0.9999
        assert server.get("/info").json()["model"]["weights"] == "discriminating.pth"
        assert "playground/page.js" in server.get("/playground").text
        assert server.get("/playground/samples/chelsea.jpg").content == photo
