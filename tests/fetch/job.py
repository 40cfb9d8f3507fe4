"""Fetches in a process of their own: for a network namespace, and for certificate authorities, which are read
once per process.

Run as a program, this file fetches what the JSON in its first argument says (`Job`) and prints the outcomes.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from embedder.errors import StartError
from tests.answers import CAT
from tests.fetch.fetching import CAME, fetching, outcome
from tests.origin import Origin

CAT_CAME = ("bytes", *CAME[1:])


@dataclass
class Job:
    uvloop: bool
    urls: list[str]
    """Fetched one after the other; "{port}" is the canaries', here and in `proxy`."""
    ports: list[int] = field(default_factory=list)
    networks: list[str] = field(default_factory=list)
    names: dict[str, list[str]] = field(default_factory=dict)
    canaries: list[str] = field(default_factory=list)
    """Addresses to serve /cat.jpg at."""
    proxy: str = ""
    cancelled_when_connected: bool = False
    """Cancel each fetch in the iteration of the event loop in which its connection is made."""


@dataclass
class JobResult:
    outcomes: list[tuple[str, str, str]]
    """The error's class, code and text; or "bytes" and what there is of them."""
    canary_connections: int


def run_job(job: Job, *, within: Sequence[str] = (), authority: Path | None = None) -> JobResult:
    done = subprocess.run(
        [*within, sys.executable, "-W", "error", "-m", "tests.fetch.job", json.dumps(asdict(job))],
        cwd=Path(__file__).parents[2],
        env={**os.environ, **({"SSL_CERT_FILE": str(authority)} if authority else {})},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    return JobResult([tuple(item) for item in result["outcomes"]], result["canary_connections"])


# A network of its own, where the commands of `$1` are run first.
_NAMESPACE = ["unshare", "--map-root-user", "--net", "sh", "-ec", 'eval "$1"; shift; exec "$@"', "sh"]


@functools.cache
def _why_no_namespace() -> str | None:
    try:
        tried = subprocess.run(
            [*_NAMESPACE, "ip link set lo up", "true"], capture_output=True, text=True, timeout=30
        )
    except FileNotFoundError as exc:
        return str(exc)
    return None if tried.returncode == 0 else tried.stderr.strip()


def run_in_namespace(job: Job, commands: str) -> JobResult:
    if reason := _why_no_namespace():
        pytest.skip(f"no network namespace here: {reason}")
    return run_job(job, within=[*_NAMESPACE, f"ip link set lo up; {commands}"])


def _cancel_when_connected(loop: asyncio.AbstractEventLoop, fetch: asyncio.Future[Any]) -> None:
    create_connection = loop.create_connection

    async def create(factory: Callable[[], asyncio.Protocol], **options: Any) -> Any:
        def cancelling() -> asyncio.Protocol:
            protocol = factory()
            made = protocol.connection_made

            def connection_made(transport: asyncio.BaseTransport) -> None:
                made(transport)
                fetch.cancel()

            protocol.connection_made = connection_made  # type: ignore[method-assign]  # of this one only
            return protocol

        return await create_connection(cancelling, **options)

    loop.create_connection = create  # type: ignore[assignment]  # in a process of its own: it is for good


async def _work(job: Job) -> JobResult:
    with contextlib.ExitStack() as stack:
        canaries: list[Origin] = []
        for host in job.canaries:
            port = canaries[0].port if canaries else 0
            canaries.append(stack.enter_context(Origin(host=host, port=port)))
            canaries[-1].serve("/cat.jpg", CAT)
        outcomes = []
        canary_port = str(canaries[0].port if canaries else 0)
        networks = [ip_network(network) for network in job.networks]
        try:
            proxy = job.proxy.replace("{port}", canary_port)
            async with fetching(
                *canaries, ports=job.ports, networks=networks, names=job.names, proxy=proxy
            ) as fetcher:
                for url in job.urls:
                    url = url.replace("{port}", canary_port)
                    fetch = asyncio.ensure_future(outcome(fetcher.fetch(url)))
                    if job.cancelled_when_connected:
                        _cancel_when_connected(asyncio.get_running_loop(), fetch)
                    try:
                        kind, code, text = await fetch
                    except asyncio.CancelledError:
                        kind, code, text = asyncio.CancelledError, "", ""
                    outcomes.append((kind.__name__, code, text))
        except StartError as exc:
            outcomes.append((type(exc).__name__, "", str(exc)))
        return JobResult(outcomes, sum(canary.connections.accepted for canary in canaries))


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    if job.uvloop:
        import uvloop

        result = uvloop.run(_work(job))
    else:
        result = asyncio.run(_work(job))
    json.dump(asdict(result), sys.stdout)


if __name__ == "__main__":
    main()
