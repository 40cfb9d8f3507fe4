"""`/playground`: a page that shows what vectors say of pictures. It is files; all else is in the browser.

GET /playground            index.html, which loads /playground/page.css, page.js and what that imports
GET /playground/samples/   sample pictures, from `samples/` of this repository; /playground/samples.json names them
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import orjson
from starlette.routing import Route

from embedder.http.pages import files
from embedder.http.pages.files import MEDIA_TYPES, Content, content

PATH = "/playground"

_FOLDER = Path(__file__).parent
_SAMPLES = Path(__file__).parents[4] / "samples"
# The page talks to this service alone, and shows pictures that it made itself. Text can't become markup.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


@cache  # 0.4 MB
def _contents() -> Mapping[str, Content]:
    """Every file of the page, by its path."""
    own = {f"{PATH}/{file.name}": file for file in _FOLDER.iterdir() if file.suffix in MEDIA_TYPES}
    own[PATH] = own.pop(f"{PATH}/index.html")
    own[f"{PATH}/icon.svg"] = _FOLDER.parent / "icon.svg"
    samples = {f"{PATH}/samples/{file.name}": file for file in sorted(_SAMPLES.glob("*.jpg"))}
    names = orjson.dumps([path.removeprefix(f"{PATH}/samples/") for path in samples])
    return {
        **{path: content(file) for path, file in {**own, **samples}.items()},
        f"{PATH}/samples.json": (names, "application/json"),
    }


def paths() -> list[str]:
    """Every path of the page. With a slash behind it the page's own leads to the one without."""
    return [*_contents(), f"{PATH}/"]


def routes() -> list[Route]:
    return [*files.routes(_contents(), _POLICY), files.without_slash(PATH)]
