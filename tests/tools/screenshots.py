"""Pictures of the playground with real vectors, for the README and to look at.

python -m tests.tools.screenshots                  writes docs/playground.png
python -m tests.tools.screenshots --all FOLDER     and every state of the page, light and dark, wide and narrow

The network is EfficientNet-Lite0, whose trained weights come from the package index.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, FloatRect

from tests import pictures
from tests.browser import Visit, chromium, visit
from tests.server import ROOT, Server, plain_environ, until

PICTURE = ROOT / "docs" / "playground.png"
WIDE, NARROW = {"width": 1300, "height": 900}, {"width": 390, "height": 844}
SAMPLES = len(list((ROOT / "samples").glob("*.jpg")))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--all", type=Path, metavar="FOLDER", help="write every state of the page there too")
    parser.add_argument(
        "--home", type=Path, help="a BENTOML_HOME with efficientnet_lite0; otherwise it is made"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        home = options.home or Path(temporary) / "bentoml"
        if options.home is None:
            save = (sys.executable, "scripts/save_model.py", "--architecture", "efficientnet_lite0")
            environ = {**plain_environ(), "BENTOML_HOME": str(home)}
            subprocess.run(save, cwd=ROOT, env=environ, check=True)
        (home / "bentos").mkdir(exist_ok=True)
        environ = {"BENTOML_HOME": str(home), "EMBEDDER_MODEL": "efficientnet_lite0:latest"}
        with Server(Path(temporary) / "log", environ) as server, chromium() as browser:
            of_the_readme(browser, server)
            if options.all:
                options.all.mkdir(parents=True, exist_ok=True)
                every_state(browser, server, options.all)


def of_the_readme(browser: Browser, server: Server) -> None:
    with visit(browser, f"{server.url}/playground", viewport=WIDE, locale="en-GB") as here:
        here.page.click("#samples")
        here.wait_for_vectors(SAMPLES)
        whole(here, PICTURE, below="#rows > :nth-child(6)")


def every_state(browser: Browser, server: Server, folder: Path) -> None:
    for scheme in ("light", "dark"):
        for name, size in (("wide", WIDE), ("narrow", NARROW)):
            look: dict[str, Any] = {"viewport": size, "color_scheme": scheme, "locale": "en-GB"}
            with visit(browser, f"{server.url}/playground", **look) as here:
                here.page.wait_for_selector("#model:not([hidden])")
                whole(here, folder / f"empty-{name}-{scheme}.png")
                here.page.click("#samples")
                here.wait_for_vectors(SAMPLES)
                here.page.focus("#matrix")
                for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
                    here.page.keyboard.press(key)
                whole(here, folder / f"samples-{name}-{scheme}.png")
            with visit(browser, f"{server.url}/playground", **{**look, "locale": "fr-FR"}) as here:
                failing(here)
                whole(here, folder / f"failures-{name}-{scheme}.png")


def whole(here: Visit, file: Path, *, below: str = "footer") -> None:
    """A picture of the page down to the element `below`: in a window so high, as the page draws what is on it."""
    size = here.page.viewport_size
    assert size is not None
    here.page.set_viewport_size({"width": size["width"], "height": 8000})
    until(lambda: here.page.locator(".rows [data-state=done]:not(:has(.near > li))").count() == 0)
    here.settle()
    end = here.page.locator(below).bounding_box()
    assert end is not None
    clip: FloatRect = {"x": 0, "y": 0, "width": size["width"], "height": end["y"] + end["height"] + 16}
    here.page.screenshot(path=file, clip=clip)


def failing(here: Visit) -> None:
    """Pictures that fail in several ways, and lines that are no URL."""
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    here.drop({"<b>drawing</b>.svg": svg}, "image/svg+xml")
    photo = pictures.encoded(pictures.photo(300, 400), "JPEG")
    here.drop({"a-very-long-name-" * 9 + ".jpg": photo, "astronaut.jpg": photo, "cut.jpg": photo[:3000]})
    here.page.fill(
        "#urls",
        "\n".join(
            [
                *("not a url", "http://10.0.0.1/private.jpg", "https://example.invalid/gone.jpg"),
                pictures.data_url(photo),
            ]
        ),
    )
    here.page.click("#url-form button")
    open_rows = here.page.locator("#rows > [data-state=waiting], #rows > [data-state=asked]")
    until(lambda: open_rows.count() == 0)


if __name__ == "__main__":
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    main()
