"""One server serves one model, whatever is saved meanwhile and whoever of its workers ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.pictures import data_url
from tests.server import Server, plain_environ, until


def models(server: Server, photo: bytes, connections: int) -> set[tuple[str, str]]:
    """What made the embeddings that are asked for on as many connections: any worker may accept each."""
    answers = [server.post("/embed", {"url": data_url(photo)}) for _ in range(connections)]
    headers = [answer.headers for answer in answers]
    return {(each["X-Embedding-Model"], each["X-Embedding-Fingerprint"]) for each in headers}


# As scripts/save_model.py does, but for making the network: another version, and the latest from now on.
SAVE_AGAIN = """
import bentoml, shutil
old = bentoml.models.get("resnet18:latest")
with bentoml.models.create("resnet18", metadata=dict(old.info.metadata)) as new:
    shutil.copytree(old.path, new.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("model.yaml"))
assert bentoml.models.get("resnet18:latest").tag == new.tag != old.tag
"""


def test_a_worker_that_is_replaced_after_another_model_was_saved_serves_what_the_others_serve(
    tmp_path: Path, store: Path, photo: bytes
) -> None:
    home = shutil.copytree(store, tmp_path / "bentoml", symlinks=True)
    environ = {"BENTOML_HOME": str(home), "EMBEDDER_WORKERS": "2"}
    with Server(tmp_path / "log", environ) as server:

        def started() -> int:
            return server.log.read_text().count("Completed async startup hook: start")

        until(lambda: started() == 2)
        (model,) = models(server, photo, 20)
        saving = {**plain_environ(), "BENTOML_HOME": str(home)}
        subprocess.run([sys.executable, "-c", SAVE_AGAIN], env=saving, check=True)
        victim, other = sorted(server.workers())
        os.kill(victim, signal.SIGKILL)
        until(lambda: started() == 3)
        # The new worker alone, and then both.
        os.kill(other, signal.SIGSTOP)
        try:
            assert models(server, photo, 5) == {model}
        finally:
            os.kill(other, signal.SIGCONT)
        assert models(server, photo, 20) == {model}
