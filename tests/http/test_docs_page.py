"""The OpenAPI page in a real browser: what it says that this is, and that what it offers can be sent as it is."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import requests
from playwright.sync_api import Browser, Locator

from tests.browser import Visit, needs_chromium, visit
from tests.conftest import Serving
from tests.server import KEYS, ROOT, Server

pytestmark = needs_chromium

SAMPLE = ROOT / "samples" / "chelsea.jpg"
OTHER = ROOT / "samples" / "clock.jpg"
WIDE, NARROW = {"width": 1300, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture
def here(browser: Browser, server: Server) -> Iterator[Visit]:
    with visit(browser, f"{server.url}/docs", viewport=WIDE) as here:
        yield here


def operation(here: Visit, method: str, path: str) -> Locator:
    """That of the page, opened."""
    summary = here.page.locator(f'.opblock-{method}:has([data-path="{path}"])')
    summary.locator(".opblock-summary").click()
    summary.locator(".execute").wait_for()
    return summary


def execute(operation: Locator) -> int:
    """The status of the answer to what the page has filled in."""
    operation.locator(".execute").click()
    return int(operation.locator(".live-responses-table tbody .response-col_status").inner_text().split()[0])


def body(operation: Locator) -> dict[str, object]:
    answer: dict[str, object] = json.loads(
        operation.locator(".live-responses-table .response-col_description pre").first.inner_text()
    )
    return answer


@pytest.mark.parametrize("path", ["/docs", "/docs/", "/"])
@pytest.mark.parametrize("viewport", [WIDE, NARROW])
def test_it_says_what_this_service_is_and_fits_the_window(
    browser: Browser, server: Server, path: str, viewport: dict[str, int]
) -> None:
    with visit(browser, server.url + path, viewport=viewport) as here:
        heading = here.page.locator("h1, h2").first
        assert heading.inner_text().startswith("image-embedder")
        assert heading.is_visible()
        assert here.page.title() == "image-embedder: API"
        assert "BentoML" not in here.page.inner_text("body")
        operation(here, "post", "/embed")
        assert here.page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_each_operation_works_as_it_stands(here: Visit, server: Server) -> None:
    here.page.locator(".opblock").first.wait_for()
    for path, item in server.get("/docs.json").json()["paths"].items():
        for method in item:
            opened = operation(here, method, path)
            assert execute(opened) == 200, path
            opened.locator(".opblock-summary").click()


def test_files_are_picked_and_uploaded(here: Visit, server: Server) -> None:
    one = operation(here, "post", "/embed")
    one.locator(".opblock-section-request-body .content-type").select_option("multipart/form-data")
    one.locator("input[type=file]").set_input_files(SAMPLE)
    assert execute(one) == 200
    alone = requests.post(f"{server.url}/embed", files={"file": SAMPLE.read_bytes()}, timeout=60)
    assert body(one) == alone.json()
    one.locator(".opblock-summary").click()

    many = operation(here, "post", "/embed_batch")
    many.locator(".opblock-section-request-body .content-type").select_option("multipart/form-data")
    for place, file in enumerate((SAMPLE, OTHER)):
        many.locator(".json-schema-form-item-add").click()
        many.locator("input[type=file]").nth(place).set_input_files(file)
    assert execute(many) == 200
    files = [("files", file.read_bytes()) for file in (SAMPLE, OTHER)]
    together = requests.post(f"{server.url}/embed_batch", files=files, timeout=60)
    assert body(many) == together.json()
    # Swagger UI has a picker for a file in a list all the same.
    here.complaints.remove("Could not find component: JsonSchema_string_binary")


def test_a_key_that_is_given_to_the_page_is_sent(browser: Browser, serving: Serving) -> None:
    with (
        serving(EMBEDDER_API_KEYS=KEYS[0], EMBEDDER_OPEN_ROUTES="docs") as locked,
        visit(browser, f"{locked.url}/docs", viewport=WIDE) as here,
    ):
        opened = operation(here, "post", "/embed")
        assert execute(opened) == 401
        opened.locator(".btn-clear").click()
        here.page.locator(".auth-wrapper .authorize").first.click()
        form = here.page.locator(".auth-container").first
        form.locator("input").fill(KEYS[0])
        form.locator("button.authorize").click()
        here.page.locator(".modal-ux .btn-done").first.click()
        assert execute(opened) == 200


def test_its_policy_allows_this_service_alone_and_nothing_inline(server: Server) -> None:
    for path in ("/docs", "/", "/docs/page.js", "/docs/page.css", "/docs/icon.svg"):
        policy = server.get(path).headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert not any(word in policy for word in ("unsafe", "*", "http"))
