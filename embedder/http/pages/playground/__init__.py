"""`/playground`: a page that shows what vectors say of pictures. It is files; all else is in the browser.

GET /playground            index.html, which loads /playground/page.css, page.js and what that imports
GET /playground/samples/   sample pictures, from `samples/` of this repository; /playground/samples.json names them
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PATH = "/playground"

_FOLDER = Path(__file__).parent
_SAMPLES = Path(__file__).parents[4] / "samples"
_MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".jpg": "image/jpeg",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    # The page talks to this service alone, and shows pictures that it made itself. Text can't become markup.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # A browser asks each time whether its copy is still the one: two versions of the files never meet.
    "Cache-Control": "no-cache",
}


@cache  # 0.4 MB; nothing is read from disk while requests wait
def _responses() -> Mapping[str, tuple[bytes, str]]:
    """Every file of the page, by its path: its content and media type."""
    files = {f"{PATH}/{file.name}": file for file in _FOLDER.iterdir() if file.suffix in _MEDIA_TYPES}
    files[PATH] = files.pop(f"{PATH}/index.html")
    samples = {f"{PATH}/samples/{file.name}": file for file in sorted(_SAMPLES.glob("*.jpg"))}
    names = orjson.dumps([path.removeprefix(f"{PATH}/samples/") for path in samples])
    return {
        **{
            path: (file.read_bytes(), _MEDIA_TYPES[file.suffix])
            for path, file in {**files, **samples}.items()
        },
        f"{PATH}/samples.json": (names, "application/json"),
    }


def paths() -> list[str]:
    """Every path of the page. With a slash behind it the page's own leads to the one without."""
    return [*_responses(), f"{PATH}/"]


def routes() -> list[Route]:
    async def view(content: bytes, media_type: str, request: Request) -> Response:
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        headers = {**_HEADERS, "ETag": etag}
        # A proxy that compresses makes a strong tag a weak one.
        known = {
            tag.strip().removeprefix("W/") for tag in request.headers.get("If-None-Match", "").split(",")
        }
        if etag in known:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)

    async def without_slash(_: Request) -> Response:
        # Below a slash the page's relative links would lead astray. Relative: only a proxy knows the public name.
        return Response(status_code=308, headers={"Location": f"..{PATH}"})

    return [
        *(Route(path, partial(view, *response)) for path, response in _responses().items()),
        Route(f"{PATH}/", without_slash),
    ]
