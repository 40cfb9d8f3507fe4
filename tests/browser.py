"""A real browser for tests: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.server import until

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")
# It asks its maker for nothing.
_OPTIONS = (
    *("--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--no-first-run",
)
_DROP = """
files => {
    const transfer = new DataTransfer();
    for (const [name, type, base64] of files) {
        const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
        transfer.items.add(new File([bytes], name, { type }));
    }
    document.querySelector("main").dispatchEvent(
        new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
}
"""
_PASTE = """
text => {
    const clipboardData = new DataTransfer();
    clipboardData.setData("text/plain", text);
    const paste = new ClipboardEvent("paste", { clipboardData, bubbles: true, cancelable: true });
    document.activeElement.dispatchEvent(paste);
}
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_OPTIONS))
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Visit:
    """A page that is open, and what the browser said of it."""

    page: Page
    requested: list[str] = field(default_factory=list)
    """Every URL that the browser asked for."""
    complaints: list[str] = field(default_factory=list)
    """Errors of scripts and of the policy. That a request was refused is none: tests make that happen."""

    def drop(self, files: Mapping[str, bytes], media_type: str = "image/jpeg") -> None:
        self.page.evaluate(
            _DROP, [[name, media_type, base64.b64encode(data).decode()] for name, data in files.items()]
        )

    def paste(self, text: str) -> None:
        self.page.evaluate(_PASTE, text)

    def wait_for_vectors(self, count: int, timeout_s: float = 120) -> None:
        rows = self.page.locator("#rows > [data-state=done]")
        until(lambda: rows.count() == count, timeout_s)
        self.settle()

    def settle(self) -> None:
        """Waits until the page has drawn what it knows: it says so by `data-drawn`."""
        until(lambda: self.page.evaluate("document.body.dataset.drawn") == "all")


@contextmanager
def visit(browser: Browser, url: str, **context: Any) -> Iterator[Visit]:  # Any: Playwright's own options
    """Opens `url` in a context of its own. Afterwards: nothing was asked for elsewhere, nothing was complained of."""
    with browser.new_context(**context) as fresh:
        page = fresh.new_page()
        visit = Visit(page)
        page.on("request", lambda request: visit.requested.append(request.url))
        page.on("pageerror", lambda error: visit.complaints.append(str(error)))

        def note(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
                visit.complaints.append(message.text)

        page.on("console", note)
        page.goto(url)
        yield visit
        origin = "/".join(url.split("/")[:3])
        own = (f"{origin}/", f"blob:{origin}/")
        assert [each for each in visit.requested if not each.startswith(own)] == []
        assert visit.complaints == []
