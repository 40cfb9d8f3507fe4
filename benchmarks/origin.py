"""Where the photos come from: nginx, which costs next to nothing, and a port where each takes five seconds.

nginx gives files straight from the page cache. The slow path needs no delay of nginx's, which has none: it
passes requests on to a socket that accepts connections and never answers, gives up after those seconds, and
serves the photo in place of the error.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

from benchmarks.processes import Processes, free_port

SLOW_S = 5

_CONFIGURATION = """
daemon off;
{user}
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    open_file_cache max=1000;
    keepalive_requests 1000000;
    keepalive_timeout 600s;
    types {{ image/jpeg jpg; }}
    client_body_temp_path {folder}/nginx-body;
    proxy_temp_path {folder}/nginx-proxy;
    fastcgi_temp_path {folder}/nginx-fastcgi;
    uwsgi_temp_path {folder}/nginx-uwsgi;
    scgi_temp_path {folder}/nginx-scgi;
    server {{
        listen 127.0.0.1:{port};
        root {photos};
    }}
    server {{
        listen 127.0.0.1:{slow_port};
        root {photos};
        location / {{
            proxy_pass http://127.0.0.1:{silent_port};
            proxy_read_timeout {slow_s}s;
            error_page 504 = @photo;
        }}
        location @photo {{ }}
    }}
}}
"""


class Origin:
    """Serves the folder `photos` while the `with` block runs; its files lie in `folder`."""

    def __init__(self, photos: Path, folder: Path, *, slow_s: int = SLOW_S) -> None:
        self.port, self.slow_port = free_port(), free_port()
        self._slow_s = slow_s
        self._photos = photos
        self._folder = folder

    def prefix(self, size: str, *, slow: bool = False) -> str:
        """What the URLs of the photos of that size begin with."""
        return f"http://127.0.0.1:{self.slow_port if slow else self.port}/{size}/"

    def __enter__(self) -> Origin:
        # The kernel accepts for it: connections wait in its backlog until nginx gives them up.
        self._silent = socket.create_server(("127.0.0.1", 0), backlog=4096)
        configuration = self._folder / "nginx.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                user="user root;" if os.geteuid() == 0 else "",  # who may read the photos, wherever they are
                folder=self._folder,
                photos=self._photos,
                port=self.port,
                slow_port=self.slow_port,
                silent_port=self._silent.getsockname()[1],
                slow_s=self._slow_s,
            )
        )
        nginx = subprocess.Popen(["nginx", "-c", str(configuration), "-e", "stderr"], start_new_session=True)
        self.processes = Processes(nginx)
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return self
            except ConnectionRefusedError:
                time.sleep(0.05)
        self.processes.stop()
        raise RuntimeError("nginx did not start: see above")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.processes.stop()
        self._silent.close()
