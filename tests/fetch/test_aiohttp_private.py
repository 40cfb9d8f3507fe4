"""A release of aiohttp without a private name that downloads depend on stops the start in one sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

IMPORT = "\nimport embedder.fetch.fetcher"
DRIFT = {
    "TCPConnector._wrap_create_connection": "del aiohttp.TCPConnector._wrap_create_connection",
    "TCPConnector._release": "aiohttp.BaseConnector._release = lambda self, connection: None",
    "ResponseHandler.set_response_params": "del ResponseHandler.set_response_params",
    "BaseConnector._conns": "aiohttp.BaseConnector.__init__ = lambda self: None",
    "ResponseHandler._payload": "ResponseHandler.__init__ = lambda self, loop: None",
    "HttpResponseParser.feed_eof": "aiohttp.http.HttpResponseParser = type('HttpResponseParser', (), {})",
}


@pytest.mark.parametrize("name", DRIFT)
def test_a_private_name_that_is_gone_stops_the_import(name: str) -> None:
    code = f"import aiohttp; from aiohttp.client_proto import ResponseHandler\n{DRIFT[name]}{IMPORT}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    *_, last = done.stderr.splitlines()
    assert last.startswith("ImportError: aiohttp ")
    assert name in last
