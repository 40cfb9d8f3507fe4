"""The rooms of docs/architecture.md: who may import whom, and that importing does nothing."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import ROOT

# From the ground up. A room imports itself and those before it.
ORDER = [
    "errors",
    "runtime",
    "settings",
    "metrics",
    "model",
    "images",
    "fetch",
    "result",
    "cache",
    "pipeline",
    "engine",
    "http",
]

# Each library's private or heavy side is known to one place.
OWNERS = {
    "onnxruntime": {"embedder/model/onnx_runtime.py"},
    "openvino": {"embedder/model/openvino_runtime.py"},
    "aiodns": {"embedder/fetch/names.py"},
    "aiohappyeyeballs": {"embedder/fetch/dialling.py"},
    "aiohttp": set(),
    "httptools": {"embedder/fetch/response.py", "embedder/http/uvicorn_private.py"},
    "PIL": {"embedder/images/"},
    "uvicorn": {"embedder/http/uvicorn_private.py"},
    "_bentoml_impl": {"embedder/http/bentoml_private.py"},
    "_bentoml_sdk": {"embedder/http/bentoml_private.py"},
    "bentoml._internal": {"embedder/http/bentoml_private.py"},
    "bentoml": {"embedder/http/", "embedder/model/store.py"},
    "prometheus_client": {"embedder/metrics/"},
    "torch": set(),
    "torchvision": set(),
}
FILES = sorted((ROOT / "embedder").rglob("*.py"))

# What `bulk/` knows of the service: the engine, what it takes and what it gives.
OF_THE_ENGINE = {
    "__version__",
    "engine",
    "errors",
    "model.spec",
    "pipeline",
    "result",
    "runtime.cpu",
    "settings",
}


def imports(file: Path) -> Iterator[str]:
    """Every module that `file` imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "embedder" and len(parts) > 1 and parts[1] in ORDER else None


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_nothing_imports_upwards_or_what_another_place_owns(file: Path) -> None:
    name = str(file.relative_to(ROOT))
    own = room(name.removesuffix(".py").replace("/", "."))
    for module in imports(file):
        imported = room(module)
        if own and imported:
            assert ORDER.index(imported) <= ORDER.index(own), f"{name} imports {module}"
        for library, owners in OWNERS.items():
            if module == library or module.startswith(f"{library}."):
                assert any(name.startswith(owner) for owner in owners), f"{name} imports {module}"
        assert not module.startswith(("service", "models.", "scripts.", "tests.")), f"{name} imports {module}"


@pytest.mark.parametrize("file", sorted((ROOT / "bulk").glob("*.py")), ids=lambda file: file.name)
def test_bulk_stands_on_the_engine_alone(file: Path) -> None:
    for module in imports(file):
        if module.startswith("embedder."):
            name = module.removeprefix("embedder.")
            assert any(name == known or name.startswith(f"{known}.") for known in OF_THE_ENGINE), module
        assert not module.startswith(("service", "models.", "scripts.", "tests.", "torch")), module


def test_every_room_is_in_the_order() -> None:
    rooms = {path.name.removesuffix(".py") for path in (ROOT / "embedder").iterdir()} - {
        "__init__",
        "__pycache__",
    }
    assert rooms == set(ORDER)


# What is looked at before and after everything is imported, with the libraries there already.
_PROGRAM = """
import importlib, json, os, pkgutil, resource, signal, socket, sys, threading
import aiodns, bentoml, httptools, PIL.Image, PIL.ImageFile, PIL.GifImagePlugin, PIL.JpegImagePlugin, PIL.PngImagePlugin
import PIL.WebPImagePlugin, prometheus_client, prometheus_client.values, uvicorn.config, yaml
import _bentoml_impl.server.app, _bentoml_sdk

def attributes(*modules):
    return {f"{m.__name__}.{name}": repr(value) for m in modules for name, value in vars(m).items()
            if not name.startswith("__")}

def state():
    return {
        "environment": dict(os.environ),
        "libraries": attributes(PIL.Image, PIL.ImageFile, PIL.ImageFile.ImageFile, prometheus_client.values,
                                uvicorn.config, aiodns, httptools, _bentoml_impl.server.app, _bentoml_sdk),
        "metrics": sorted(prometheus_client.REGISTRY._names_to_collectors),
        "yaml": sorted(map(repr, yaml.Dumper.yaml_representers)),
        "signals": {s.name: repr(signal.getsignal(s)) for s in signal.valid_signals() if hasattr(s, "name")},
        "limits": [resource.getrlimit(limit) for limit in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE)],
        "timeout": socket.getdefaulttimeout(),
        "threads": threading.active_count(),
    }

before = state()
import embedder
for module in pkgutil.walk_packages(embedder.__path__, "embedder."):
    importlib.import_module(module.name)
after = state()
print(json.dumps([name for name in before if before[name] != after[name]]
                 + [name for name in before["libraries"] if before["libraries"][name] != after["libraries"][name]]))
"""


def test_importing_everything_changes_nothing_in_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == []
