"""Files of a page for people, from memory: nothing is read from disk while requests wait."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TypeAlias

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Content: TypeAlias = tuple[bytes, str]
"""A file's bytes and its media type."""

MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".jpg": "image/jpeg",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
"""Those that a page may have, by the end of their names."""


def content(file: Path) -> Content:
    return file.read_bytes(), MEDIA_TYPES[file.suffix]


def routes(contents: Mapping[str, Content], policy: str) -> list[Route]:
    """One for each path of `contents`. `policy` is the Content-Security-Policy of all of them."""
    return [Route(path, partial(_view, *each, policy)) for path, each in contents.items()]


def without_slash(path: str) -> Route:
    """From `path` with a slash behind it to `path`: below a slash the page's relative links would lead astray."""

    async def view(_: Request) -> Response:
        # Relative: only a proxy knows the public name.
        return Response(status_code=308, headers={"Location": f"..{path}"})

    return Route(f"{path}/", view)


async def _view(content: bytes, media_type: str, policy: str, request: Request) -> Response:
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        # A browser asks each time whether its copy is still the one: two versions of the files never meet.
        "Cache-Control": "no-cache",
        "ETag": etag,
    }
    # A proxy that compresses makes a strong tag a weak one.
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")}
    if etag in known:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=media_type)
