"""The image's HEALTHCHECK: ends with 0 when `/health` answers 200, with 1 when it does not, or not in time.

It runs every few seconds, so it is a socket and no HTTP client, which takes longer to import than this takes.
"""

from __future__ import annotations

import os
import socket
import sys

TIMEOUT_S = 3.0


def main() -> int:
    # In the order in which they decide where the server listens: BentoML's entry point takes PORT first.
    ports = [os.environ.get(name, "").strip() for name in ("PORT", "BENTOML_PORT", "EMBEDDER_PORT")]
    port = next(filter(None, ports), "8000")
    try:
        with socket.create_connection(("127.0.0.1", int(port)), TIMEOUT_S) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = connection.recv(100)
    except (OSError, ValueError) as error:
        print(f"port {port}: {error}")
        return 1
    print(answer.partition(b"\r\n")[0].decode("latin-1"))
    return 0 if answer.split(maxsplit=2)[1:2] == [b"200"] else 1


if __name__ == "__main__":
    sys.exit(main())
