"""Weights from the Hub: kept, checked by the hash that it names them by, and one line when they can't be had."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.server import ROOT, free_port

REPOSITORY = "timm/tiny.in1k"
CONTENT = bytes(range(256))

# In a process of its own: the Hub's library reads where the Hub is when it is imported.
PROGRAM = """
import json, sys
from models import WeightsError
from models.hub import hub_file

try:
    weights, path, content = hub_file(sys.argv[1], None)
except WeightsError as exc:
    print(json.dumps([type(exc).__name__, str(exc)]))
else:
    print(json.dumps([weights.source, weights.sha256, str(path), content.hex()]))
"""


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as a download asks for: a large file is named by its sha256."""

    def do_HEAD(self) -> None:
        found = self.path == f"/{REPOSITORY}/resolve/main/model.safetensors"
        self.send_response(200 if found else 404)
        if found:
            self.send_header("ETag", f'"{hashlib.sha256(CONTENT).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
        else:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", str(len(CONTENT) if found else 0))
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        if self.path == f"/{REPOSITORY}/resolve/main/model.safetensors":
            self.wfile.write(CONTENT)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def download(endpoint: str, home: Path, repository: str = REPOSITORY) -> list[object]:
    environ = {
        **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", PROGRAM, repository]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said: list[object] = json.loads(done.stdout.splitlines()[-1])
    return said


def test_a_download_is_kept_and_a_damaged_one_is_named(endpoint: str, tmp_path: Path) -> None:
    source, sha256, path, content = download(endpoint, tmp_path)
    assert (source, sha256) == (f"{endpoint}/{REPOSITORY}", hashlib.sha256(CONTENT).hexdigest())
    assert content == CONTENT.hex()
    nobody = f"http://127.0.0.1:{free_port()}"
    assert download(nobody, tmp_path)[1:] == [sha256, path, content]  # from the cache
    blob = Path(str(path)).resolve()
    blob.write_bytes(CONTENT[:-1])
    kind, said = download(nobody, tmp_path)
    assert kind == "WeightsError"
    assert str(said).startswith(f"{path} is damaged, its sha256 is ")


def test_a_repository_that_is_not_there_and_a_hub_that_does_not_answer_are_failed_downloads(
    endpoint: str, tmp_path: Path
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    for where, repository in ((endpoint, "timm/none"), (nobody, REPOSITORY)):
        kind, said = download(where, tmp_path, repository)
        assert kind == "DownloadFailed"
        assert str(said).startswith(f"{where}/{repository}")
        assert " can't be downloaded: " in str(said)
        assert "\n" not in str(said)
