"""Rows embedded by services that run already: `--server http://a:8000 --server http://b:8000`.

Each row is a request of its own to `/embed_batch`, so that a slow one holds up nobody. It goes to the service with the
fewest under way.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import numpy as np

from bulk.errors import JobError
from embedder.errors import EmbedderError, FetchFailed
from embedder.result import Result

MAX_WAIT_S = 120.0
"""For services that are too busy, draining or away, before the job ends."""
_TIMEOUT_S = 75.0  # a service answers, or says that it can't, within 65 s


class _AsSaid(EmbedderError):
    """An error that a service answered. It has no status here, where nobody answers with it."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        super().__init__(text)


class ServerEmbedder:
    """Raises JobError, from `__aenter__` and `embed`, where no service answers or they have different models."""

    def __init__(self, urls: Sequence[str], *, key: str | None, is_files: bool) -> None:
        self._urls = [url.rstrip("/") for url in urls]
        self._headers = {"X-API-Key": key} if key else {}
        self._is_files = is_files
        self._under_way = dict.fromkeys(self._urls, 0)
        self._session: aiohttp.ClientSession
        self.said: Mapping[str, str]
        """As `folder.provenance`."""

    async def __aenter__(self) -> ServerEmbedder:
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        connector = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout, connector=connector)
        try:
            said = [await self._about(url) for url in self._urls]
        except BaseException:
            await self._session.close()
            raise
        for url, about in zip(self._urls, said, strict=True):
            if about["embedder.fingerprint"] != said[0]["embedder.fingerprint"]:
                await self._session.close()
                raise JobError(f"{url} and {self._urls[0]} serve different models")
        self.said = said[0]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def _about(self, url: str) -> dict[str, str]:
        try:
            async with self._session.get(f"{url}/info") as response:
                if response.status != 200:
                    raise JobError(f"{url}/info answers {response.status}: {await _sentence(response)}")
                info = await response.json()
            return {
                "embedder.model": info["model"]["tag"],
                "embedder.fingerprint": info["fingerprint"],
                "embedder.architecture": info["model"]["architecture"],
                "embedder.weights_sha256": info["model"]["weights_sha256"],
                "embedder.precision": info["precision"],
                "embedder.dimension": str(info["dimension"]),
                "embedder.normalized": "true",
                "embedder.trained": str(info["model"].get("trained", False)).lower(),
                "embedder.renditions": ",".join(info.get("renditions", ())),
                "embedder.version": info["version"],
            }
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
            raise JobError(
                f"{url} is no image-embedder that answers: {error or type(error).__name__}"
            ) from error

    async def embed(self, source: str) -> Result:
        try:
            data = await asyncio.to_thread(Path(source).read_bytes) if self._is_files else None
        except OSError as error:
            return Result(error=FetchFailed(f"the file can't be read: {error.strerror or error}"))
        waited_s = 0.0
        while True:
            url = min(self._urls, key=self._under_way.__getitem__)
            self._under_way[url] += 1
            try:
                outcome = await self._ask(url, _body(source, data))
            finally:
                self._under_way[url] -= 1
            if isinstance(outcome, Result):
                return outcome
            pause_s, why = outcome
            if waited_s >= MAX_WAIT_S:
                raise JobError(f"{url} does not embed for {MAX_WAIT_S:g} s: {why}")
            waited_s += pause_s
            await asyncio.sleep(pause_s)

    async def _ask(self, url: str, body: Mapping[str, Any]) -> Result | tuple[float, str]:
        """The result, or for how long to wait, and why. `body` is aiohttp's options."""
        headers = {"X-Expect-Model": self.said["embedder.fingerprint"]}
        try:
            async with self._session.post(f"{url}/embed_batch", headers=headers, **body) as response:
                if response.status in (429, 502, 503, 504):
                    told = response.headers.get("Retry-After", "")
                    return float(told) if re.fullmatch("[0-9]{1,3}", told) else 1.0, await _sentence(response)
                if response.status in (401, 403, 404, 409):
                    raise JobError(f"{url} answers {response.status}: {await _sentence(response)}")
                content = await response.json()
                if response.status != 200:
                    return Result(error=_AsSaid(content["code"], content["error"]))
                return _result(content)
        except (aiohttp.ClientError, TimeoutError) as error:
            return 1.0, f"{type(error).__name__}: {error}"
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise JobError(f"{url} answers what is not understood: {error!r}") from error


def _body(url: str, data: bytes | None) -> dict[str, Any]:  # Any: aiohttp's options
    """Of a request for the image at `url`, or for the file with these `data`."""
    if data is None:
        return {"json": {"urls": [url], "details": True}}
    form = aiohttp.FormData()
    form.add_field("files", data, filename="file")
    form.add_field("details", "true")
    return {"data": form}


def _result(content: Mapping[str, Any]) -> Result:  # Any: JSON
    if content["embeddings"][0] is None:
        error = content["errors"][0]
        answered = re.fullmatch(r"the image's server answered ([0-9]{3})", error["error"])
        if answered:
            return Result(error=FetchFailed(error["error"], http_status=int(answered[1])))
        return Result(error=_AsSaid(error["code"], error["error"]))
    image = content["images"][0]
    return Result(
        embedding=np.array(content["embeddings"][0], np.float32),
        **{name: image[name] for name in ("width", "height", "format", "bytes", "sha256")},
        rendition=image.get("rendition", False),
    )


async def _sentence(response: aiohttp.ClientResponse) -> str:
    text = await response.text(errors="replace")
    try:
        return str((await response.json(content_type=None))["error"])
    except (ValueError, KeyError, TypeError):
        return text[:200]
