"""Rows embedded by an engine in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from embedder.engine import Engine
from embedder.errors import FetchFailed, ImageTooLarge
from embedder.result import Result
from embedder.settings import Settings


def settings_from(words: Mapping[str, str], *, concurrency: int, workers: int = 1) -> Settings:
    """The service's, but for one process that nobody else's requests wait for, of `workers` on this machine.

    `words` is an environment. Raises SettingError.
    """
    settings = Settings.from_environ({**words, "EMBEDDER_WORKERS": str(workers)})
    return replace(settings, max_in_flight_images=max(settings.max_urls, concurrency))


class LocalEmbedder:
    def __init__(self, engine: Engine, *, is_files: bool, base: Path = Path()) -> None:
        """`base` is where paths begin that are not absolute."""
        self._engine = engine
        self._is_files = is_files
        self._base = base

    async def embed(self, source: str) -> Result:
        if not self._is_files:
            return (await self._engine.embed([source]))[0]
        try:
            data = await asyncio.to_thread(self._read, self._base / source)
        except ImageTooLarge as error:
            return Result(error=error)
        except OSError as error:
            return Result(error=FetchFailed(f"the file can't be read: {error.strerror or error}"))
        return (await self._engine.embed([data]))[0]

    def _read(self, path: Path) -> bytes:
        limit = self._engine.settings.max_image_bytes
        with path.open("rb") as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise ImageTooLarge(limit_bytes=limit, actual_bytes=path.stat().st_size)
        return data
