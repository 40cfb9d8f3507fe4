"""A real nginx for tests, with the repository's configuration and as little in it replaced as can be.

with Proxy(tmp_path, f"127.0.0.1:{server.port}") as proxy:
    requests.get(proxy.url + "/health")
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from types import TracebackType

from tests.server import ROOT, free_port, until

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
CONFIGURATION = ROOT / "deploy" / "nginx.conf"

# Where nginx keeps bodies and answers that it can't hold in memory; by default in folders that are root's.
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class Proxy:
    """nginx before `upstreams`, on a free port of every loopback address, while the `with` block runs."""

    def __init__(self, folder: Path, *upstreams: str, **directives: str) -> None:
        """`directives` are values that replace the configuration's, like `client_body_timeout="1s"`."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.access_log = folder / "access.log"
        self.configuration = folder / "nginx.conf"
        text = CONFIGURATION.read_text()
        for name, value in directives.items():
            text = replaced(text, rf"^( *{name} +)[^#;]+;", rf"\g<1>{value};")
        for pattern, replacement in {
            r"^ *server embedder:8000;": "".join(f"server {address};" for address in upstreams),
            r"^ *listen 80 default_server;": f"listen {self.port} default_server;",
            r"^error_log \S+": f"error_log {folder / 'error.log'}",
            r"^ *access_log \S+": f"access_log {self.access_log}",
            r"^http {$": "http {" + "".join(f"{name}_temp_path {folder / name};" for name in _TEMPORARY),
        }.items():
            text = replaced(text, pattern, replacement)
        self.configuration.write_text(text)
        user = "user root;" if os.geteuid() == 0 else ""  # who may enter pytest's folders
        self._options = (
            *("-e", "stderr", "-c", str(self.configuration)),
            *("-g", f"daemon off; pid {folder / 'nginx.pid'}; {user}"),
        )

    def check(self) -> str:
        """What `nginx -t` says of the configuration."""
        assert NGINX is not None
        done = subprocess.run([NGINX, "-t", *self._options], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    def __enter__(self) -> Proxy:
        assert NGINX is not None
        self._process = subprocess.Popen([NGINX, *self._options])
        until(self._accepts)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(20)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def _accepts(self) -> bool:
        assert self._process.poll() is None, "nginx ended"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def replaced(text: str, pattern: str, replacement: str) -> str:
    """`text` with the one place that `pattern` finds replaced. A test of another file proves nothing."""
    text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
    assert count == 1, f"{pattern} is {count} times in {CONFIGURATION.name}"
    return text
