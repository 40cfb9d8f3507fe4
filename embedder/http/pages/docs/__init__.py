"""`/docs`, also `/`: the OpenAPI page. Swagger UI as BentoML packs it, on a page that is this service's own.

BentoML's page has its own name, logo and tag manager, and hides the document's title.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from starlette.routing import Route

from embedder.http.bentoml_private import swagger_ui
from embedder.http.pages import files
from embedder.http.pages.files import Content, content

PATH = "/docs"

_FOLDER = Path(__file__).parent
# A reader's browser talks to this service alone. Swagger UI's stylesheet has its icons as data: URLs.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@cache
def _contents() -> Mapping[str, Content]:
    """Every file of the page that is ours, by its path."""
    page = content(_FOLDER / "index.html")
    return {
        **dict.fromkeys((PATH, "/"), page),
        **{f"{PATH}/{name}": content(_FOLDER / name) for name in ("page.css", "page.js")},
        f"{PATH}/icon.svg": content(_FOLDER.parent / "icon.svg"),
    }


def paths() -> list[str]:
    """Every path of the page, with Swagger UI's files."""
    return [*_contents(), f"{PATH}/", *swagger_ui()]


def routes() -> list[Route]:
    """Without Swagger UI's files: BentoML serves those."""
    return [*files.routes(_contents(), _POLICY), files.without_slash(PATH)]
