"""`/playground` in a real browser: what it shows, and what it does with all that people and services give it."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from axe_playwright_python.sync_playwright import Axe
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Browser, Route

from tests import pictures
from tests.answers import Held, with_length
from tests.browser import Visit, needs_chromium, visit
from tests.conftest import Serving
from tests.origin import Origin
from tests.server import KEYS, ROOT, Server, plain_environ, until

pytestmark = needs_chromium

SAMPLES = {file.name: file.read_bytes() for file in sorted((ROOT / "samples").glob("*.jpg"))}
NAMES = list(SAMPLES)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
WIDE, NARROW = {"width": 1300, "height": 900}, {"width": 390, "height": 844}
NEAREST = 5
# As scripts/save_model.py does, but for making the network.
SAVE_UNTRAINED = """
import bentoml, shutil
old = bentoml.models.get("resnet18:latest")
with bentoml.models.create("resnet18", metadata={**old.info.metadata, "trained": False}) as new:
    shutil.copytree(old.path, new.path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("model.yaml"))
"""


@pytest.fixture
def here(browser: Browser, server: Server) -> Iterator[Visit]:
    """The page, in English, before anything was given to it."""
    with visit(browser, f"{server.url}/playground", viewport=WIDE, locale="en-GB") as here:
        yield here


@pytest.fixture(scope="module")
def shown(browser: Browser, server: Server) -> Iterator[Visit]:
    """The page with the sample pictures, dropped, in a window so high that all of it is drawn."""
    window = {"width": 1300, "height": 6000}
    with visit(browser, f"{server.url}/playground", viewport=window, locale="en-GB") as shown:
        shown.drop(SAMPLES)
        shown.wait_for_vectors(len(SAMPLES))
        yield shown


@pytest.fixture(scope="module")
def cosines(server: Server) -> NDArray[np.float64]:
    """Of each sample with each, from vectors that this test asked for itself."""
    files = [("files", data) for data in SAMPLES.values()]
    answer = requests.post(f"{server.url}/embed_batch", files=files, timeout=60).json()
    vectors = np.array(answer["embeddings"], np.float64)
    return np.asarray(vectors @ vectors.T)


def order(shown: Visit) -> list[int]:
    """The samples' indices in the order in which their vectors came, which the matrix has."""
    labels = shown.page.locator("#map .point").evaluate_all("points => points.map((point) => point.title)")
    return [NAMES.index(label) for label in labels]


# What it shows


def test_each_picture_has_its_nearest_in_order_with_their_cosines(
    shown: Visit, cosines: NDArray[np.float64]
) -> None:
    for row, name in enumerate(NAMES):
        item = shown.page.locator("#rows > li").nth(row)
        assert item.locator(".name").inner_text() == name
        labels = item.locator(".near button").evaluate_all("all => all.map((one) => one.ariaLabel)")
        parts = [re.fullmatch(r"(.+), cosine (\S+)", label) for label in labels]
        found = [(NAMES.index(part[1]), float(part[2])) for part in parts if part]
        assert len(found) == NEAREST
        for index, cosine in found:
            assert cosine == pytest.approx(cosines[row, index], abs=1e-3)
        others = np.sort(np.delete(cosines[row], row))[::-1]
        assert [cosine for _, cosine in found] == pytest.approx(others[:NEAREST].tolist(), abs=1e-3)


def test_thumbnails_are_the_pictures(shown: Visit) -> None:
    images = shown.page.locator("#rows .self img")
    assert images.count() == len(SAMPLES)
    sizes = images.evaluate_all("all => all.map((one) => [one.naturalWidth, one.naturalHeight])")
    for data, (width, height) in zip(SAMPLES.values(), sizes, strict=True):
        with Image.open(io.BytesIO(data)) as original:
            scale = min(1, 320 / max(original.size))
            expected = [round(side * scale) for side in original.size]
        assert [width, height] == pytest.approx(expected, abs=1)


def test_the_heat_map_has_the_colour_of_each_cosine(shown: Visit, cosines: NDArray[np.float64]) -> None:
    n, places = len(SAMPLES), order(shown)
    read = "canvas => [...canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data]"
    pixels = np.array(shown.page.locator("#heat").evaluate(read)).reshape(n, n, 4)[..., :3]
    ends = "field => ['low', 'high'].map((end) => getComputedStyle(field).getPropertyValue(`--heat-${end}`))"
    low, high = (
        np.array([int(end.strip()[at : at + 2], 16) for at in (1, 3, 5)])
        for end in shown.page.locator("#matrix").evaluate(ends)
    )
    assert shown.page.inner_text("#heat-high") == "1.000"
    lowest = float(shown.page.inner_text("#heat-low"))
    assert lowest == pytest.approx(np.floor(cosines.min() * 100) / 100)
    shares = (cosines[np.ix_(places, places)] - lowest) / (1 - lowest)
    expected = low + shares.clip(0, 1)[..., np.newaxis] * (high - low)
    assert np.abs(pixels - expected).max() <= 2


def test_the_map_is_the_first_two_principal_components(shown: Visit, cosines: NDArray[np.float64]) -> None:
    places = order(shown)
    read = "all => all.map((one) => ['left', 'top'].map((side) => +one.style.getPropertyValue(`--${side}`)))"
    points = np.array(shown.page.locator("#map .point").evaluate_all(read))
    n = len(places)
    centring = np.eye(n) - 1 / n
    variances, directions = np.linalg.eigh(centring @ cosines[np.ix_(places, places)] @ centring)
    components = directions[:, -2:][:, ::-1] * np.sqrt(variances[-2:][::-1])
    expected = components / np.ptp(components, axis=0).max()
    for axis in (0, 1):
        ours = points[:, axis] - points[:, axis].mean()
        assert min(np.abs(ours - sign * expected[:, axis]).max() for sign in (1, -1)) <= 0.01
    share = f"{100 * variances[-2:].sum() / variances.sum():.0f}%"
    assert share in shown.page.inner_text("#map-hint")
    # And no picture hangs over the map's edge.
    edges = shown.page.locator("#map").bounding_box()
    assert edges is not None
    for point in shown.page.locator("#map .point").all():
        box = point.bounding_box()
        assert box is not None
        assert edges["x"] <= box["x"] <= box["x"] + box["width"] <= edges["x"] + edges["width"]
        assert edges["y"] <= box["y"] <= box["y"] + box["height"] <= edges["y"] + edges["height"]


def components(cosines: NDArray[np.float64], threshold: float) -> list[set[str]]:
    """Groups of names: linked by cosines of `threshold` or more."""
    groups: list[set[int]] = []
    for index in range(len(NAMES)):
        linked = [group for group in groups if any(cosines[index, other] >= threshold for other in group)]
        groups = [group for group in groups if group not in linked] + [{index}.union(*linked)]
    return [{NAMES[index] for index in group} for group in groups if len(group) > 1]


def test_the_slider_sets_which_pictures_are_near_copies(shown: Visit, cosines: NDArray[np.float64]) -> None:
    highest = np.sort(np.unique(cosines[~np.eye(len(NAMES), dtype=bool)].round(6)))
    asked = [0.5, *np.floor(highest[[5, -5, -2]] / 0.005) * 0.005, 1]
    seen = set()
    for threshold in asked:
        if np.abs(highest - threshold).min() < 1e-5:  # by float32 it may be either
            continue
        shown.page.fill("#threshold", f"{threshold:.3f}")
        shown.settle()
        assert shown.page.inner_text("#threshold-value") == f"{threshold:.3f}"
        lists = shown.page.locator("#groups > li").all()
        names = [item.locator("button").evaluate_all("all => all.map((one) => one.title)") for item in lists]
        expected = components(cosines, threshold)
        assert sorted(map(sorted, names)) == sorted(map(sorted, expected))
        copies = shown.page.locator("#rows > li").nth(0).locator(".near .copy").count()
        nearest = np.sort(np.delete(cosines[0], 0))[::-1][:NEAREST]
        assert copies == int((nearest >= threshold).sum())
        seen.add(len(expected))
    assert len(seen) >= 2  # the slider made a difference


def test_it_tells_the_model_and_the_time_of_each_stage(shown: Visit, server: Server) -> None:
    info = server.get("/info").json()
    said = shown.page.inner_text("#model")
    for fact in (info["model"]["tag"], info["fingerprint"], str(info["dimension"]), info["precision"]):
        assert fact in said
    stages = shown.page.locator("#stages dt").all_inner_texts()
    assert stages == ["decode", "queue", "network", "in the service"]
    assert all(
        re.fullmatch(r"[0-9,]+ ms", text) for text in shown.page.locator("#stages dd").all_inner_texts()
    )


def test_of_a_picture_at_a_url_it_shows_what_the_service_says_and_fetches_nothing(
    here: Visit, origin: Origin, photo: bytes
) -> None:
    origin.serve("/shop/cat%20one.jpg", photo)
    good, missing = origin.url("/shop/cat%20one.jpg"), origin.url("/missing.jpg")
    here.page.fill("#urls", f"{good}\n\n  {missing}\nnot a URL\nhttp://10.0.0.1/x.jpg\n")
    asked_before = len(origin.requests)
    here.page.click("#url-form button")
    here.wait_for_vectors(1)
    until(lambda: here.page.locator("#rows > [data-state=failed]").count() == 2)
    rows = here.page.locator("#rows > li")
    tile = rows.nth(0).locator(".tile").inner_text()
    for part in ("cat one.jpg", f"127.0.0.1:{origin.port}", "JPEG 451 \u00d7 300"):
        assert part in tile
    assert rows.nth(1).locator(".state").inner_text() == "the image's server answered 404 fetch_failed"
    assert rows.nth(2).locator(".state").inner_text() == "the address 10.0.0.1 is not public url_not_allowed"
    assert "1 line is no URL and was left out: not a URL" in here.page.inner_text("#said")
    assert here.page.input_value("#urls") == "not a URL"  # to be mended
    # One request, which was the service's: whom the browser asks, `visit` looks at.
    asked = origin.requests[asked_before:]
    assert [request.path for request in asked] == ["/shop/cat%20one.jpg", "/missing.jpg"]
    assert all("chrom" not in request.headers["user-agent"].lower() for request in asked)
    # Whoever has the file too sees it.
    here.drop({"mine.jpg": photo})
    here.wait_for_vectors(2)
    assert rows.nth(0).locator(".self img").count() == 1


def test_urls_and_pictures_within_urls_can_be_pasted_anywhere(
    here: Visit, photo_url: str, photo: bytes
) -> None:
    here.paste(f"{photo_url}\n{pictures.data_url(photo)}")
    here.wait_for_vectors(2)
    assert here.page.locator("#rows .name").all_inner_texts() == ["data-1.jpeg", "photo.jpg"]
    assert here.page.locator("#rows .cosine").all_inner_texts() == ["1.000", "1.000"]
    here.paste("neither a picture nor a URL")
    assert "is no URL" in here.page.inner_text("#said")


def test_a_link_leads_to_each_part_past_all_the_rows(here: Visit) -> None:
    here.drop(SAMPLES)
    here.wait_for_vectors(len(SAMPLES))
    links = here.page.locator("nav a").all()
    assert len(links) == 4
    for link in links:
        link.click()
        title = here.page.locator(link.get_attribute("href") or "")
        assert title.inner_text() == link.inner_text()
        assert title.evaluate("title => title.getBoundingClientRect().top < innerHeight")


# What it does with too much, and with what is hostile


def test_500_pictures_all_get_their_vectors_and_the_page_answers(here: Visit) -> None:
    dots = np.random.default_rng(0).integers(0, 256, (510, 4, 4, 3), np.uint8)
    files = {
        f"{number}.png": pictures.encoded(Image.fromarray(dots[number]).resize((256, 256)), "PNG")
        for number in range(510)
    }
    here.drop(files, "image/png")
    assert here.page.locator("#rows > li").count() == 500
    assert here.page.inner_text("#said") == "500 pictures at once are the limit: 10 were left out."
    here.wait_for_vectors(500, timeout_s=300)
    assert here.page.inner_text("#progress") == "500 of 500 pictures have their vectors."
    assert here.page.locator("#heat").evaluate("canvas => [canvas.width, canvas.height]") == [500, 500]
    assert here.page.locator("#map .point").count() == 500
    here.page.locator("#rows > li").nth(499).scroll_into_view_if_needed()
    until(lambda: here.page.locator("#rows > li").nth(499).locator(".near li").count() == NEAREST)
    counted = here.page.inner_text("#copies-count")
    here.page.fill("#threshold", "1" if "500" in counted else "0.5")
    here.settle()
    assert here.page.inner_text("#copies-count") != counted


def test_of_10000_urls_500_are_taken_and_that_is_said(here: Visit) -> None:
    here.page.focus("#urls")
    here.paste("\n".join(f"http://10.0.0.1/{number}.jpg" for number in range(10_000)))
    assert here.page.inner_text("#said") == "500 pictures at once are the limit: 9,500 were left out."
    until(lambda: here.page.locator("#rows > [data-state=failed]").count() == 500)
    here.page.click("#clear")
    assert here.page.locator("#rows > li").count() == 0
    here.drop(dict(list(SAMPLES.items())[:2]))
    here.wait_for_vectors(2)


def test_names_and_sentences_are_text_and_what_is_no_picture_is_told_in_the_apis_words(
    here: Visit, server: Server, photo: bytes
) -> None:
    files = {
        "<img src=x onerror=alert(1)>.svg": SVG,
        "cut.jpg": photo[:5000],
        "notes.txt": b"nothing to see",
        "huge.png": pictures.encoded(Image.new("1", (10_000, 10_000)), "PNG"),
        "empty.jpg": b"",
    }
    here.drop(files, "image/svg+xml")
    until(lambda: here.page.locator("#rows > [data-state=failed]").count() == len(files))
    sent = [("files", (f"{index}", data)) for index, data in enumerate(files.values())]
    answer = requests.post(f"{server.url}/embed_batch", files=sent, timeout=60).json()
    said = [f"{error['error']} {error['code']}" for error in answer["errors"]]
    assert here.page.locator("#rows .state").all_inner_texts() == said
    assert "100000000 pixels" in said[3]
    assert here.page.locator("#rows .name").all_inner_texts() == list(files)
    assert here.page.locator("#rows img").count() == 0  # nor was the huge one decoded here
    assert here.page.locator("#results .pair-shown img").count() == 0


def test_files_over_the_limits_are_refused_without_being_sent(
    browser: Browser, serving: Serving, photo: bytes
) -> None:
    limits = {"EMBEDDER_MAX_IMAGE_BYTES": "20000", "EMBEDDER_MAX_BODY_BYTES": "60000"}
    with serving(**limits) as server:
        declared = {"Content-Type": "image/jpeg"}
        answer = requests.post(f"{server.url}/embed", data=photo, headers=declared, timeout=60).json()
        with visit(browser, f"{server.url}/playground", locale="en-GB") as here:
            small = {name: data for name, data in SAMPLES.items() if len(data) <= 20_000}
            assert len(photo) > 20_000 < sum(map(len, small.values()))
            here.drop({"large.jpg": photo, **small})
            here.wait_for_vectors(len(small))  # in bodies that are small enough
            state = here.page.locator("#rows > li").nth(0).locator(".state").inner_text()
            assert state == f"{answer['error']} {answer['code']}"


# What it does when the service does not


def test_a_service_with_keys_is_asked_with_one_that_stays_in_the_tab(
    browser: Browser, locked: Server
) -> None:
    with visit(browser, f"{locked.url}/playground", locale="en-GB") as here:
        here.drop(dict(list(SAMPLES.items())[:2]))
        here.page.wait_for_selector("#key-form:not([hidden])")
        for wrong in ("the-key-of-yesterday", "ключ"):
            here.page.fill("#key", wrong)
            here.page.keyboard.press("Enter")
            until(lambda: here.page.inner_text("#key-error") == "The service does not take this key.")
        here.page.fill("#key", KEYS[0])
        here.page.keyboard.press("Enter")
        here.wait_for_vectors(2)  # what was dropped before is not lost
        assert not here.page.is_visible("#key-form")
        for language in ("curl", "python", "javascript"):
            here.page.click(f"[data-code={language}]")
            code = here.page.inner_text("#code")
            assert "YOUR_KEY" in code
            assert KEYS[0] not in code
        assert here.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        here.page.reload()
        here.page.wait_for_selector("#model:not([hidden])")  # the tab still has it
        here.page.click("#samples")
        here.wait_for_vectors(len(SAMPLES))
        here.page.click("#forget")
        here.page.wait_for_selector("#key-form:not([hidden])")
    with visit(browser, f"{locked.url}/playground") as another:
        another.page.wait_for_selector("#key-form:not([hidden])")


def test_a_busy_service_is_asked_again_when_it_says(
    browser: Browser, serving: Serving, origin: Origin, photo: bytes
) -> None:
    held = Held(with_length(photo))
    origin.raw("/busy.jpg", held)
    one = {"EMBEDDER_MAX_IN_FLIGHT_IMAGES": "1", "EMBEDDER_MAX_URLS": "1"}
    with serving(**one) as server, visit(browser, f"{server.url}/playground", locale="en-GB") as here:
        here.paste(origin.url("/busy.jpg"))
        assert held.arrived.acquire(timeout=60)
        here.drop(dict(list(SAMPLES.items())[:3]))
        until(lambda: "the service is busy: again in 1 s" in here.page.inner_text("#progress"))
        assert here.page.locator("#rows > [data-state=failed]").count() == 0
        held.release()
        here.wait_for_vectors(4)


def broken_off(route: Route) -> None:
    route.fulfill(status=200, content_type="application/json", body='{"embeddings": [[0.5, 0.')


def failing(route: Route) -> None:
    answer = {"error": "something broke; the log has the details", "code": "internal_error"}
    route.fulfill(status=500, content_type="application/json", body=json.dumps(answer))


def reset(route: Route) -> None:
    route.abort("connectionreset")


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        (failing, "something broke; the log has the details internal_error"),
        (broken_off, "The service's answer broke off, or can't be read."),
        (reset, "The service does not answer."),
    ],
)
def test_what_fails_is_told_on_its_pictures_and_tried_again_when_asked(
    here: Visit, fails: Any, said: str
) -> None:
    here.page.route("**/embed_batch", fails)
    files = dict(list(SAMPLES.items())[:3])
    here.drop(files)
    until(lambda: here.page.locator("#rows > [data-state=failed]").count() == 3)
    assert here.page.locator("#rows .state").all_inner_texts() == [said] * 3
    here.settle()
    assert here.page.locator("#rows .self img").count() == 3
    here.page.unroute("**/embed_batch")
    here.page.click("#retry")
    here.wait_for_vectors(3)
    assert here.page.inner_text("#progress") == "3 of 3 pictures have their vectors."


def test_a_service_that_is_gone_is_said_to_be(browser: Browser, serving: Serving) -> None:
    with serving() as server, visit(browser, f"{server.url}/playground", locale="en-GB") as here:
        here.page.wait_for_selector("#model:not([hidden])")
        server.kill()
        here.drop(dict(list(SAMPLES.items())[:2]))
        until(lambda: here.page.locator("#rows > [data-state=failed]").count() == 2)
        assert here.page.locator("#rows .state").all_inner_texts() == ["The service does not answer."] * 2
        here.page.click("#samples")
        until(lambda: here.page.inner_text("#said") == "The service does not answer.")


def test_vectors_of_two_models_are_never_compared(here: Visit, server: Server) -> None:
    """For a while the page believes that another model is served: so it is when that changes under it."""
    info = server.get("/info").json()

    def another(route: Route) -> None:
        route.fulfill(json={**info, "fingerprint": "0123456789ab"})

    here.drop(dict(list(SAMPLES.items())[:2]))
    here.paste("http://10.0.0.1/x.jpg")
    here.wait_for_vectors(2)
    here.page.wait_for_selector("#retry:not([hidden])")
    here.page.route("**/info", another)
    here.page.click("#retry")
    until(lambda: here.page.locator("#rows > [data-state=failed]").count() == 3)
    here.settle()
    for state in here.page.locator("#rows .state").all_inner_texts():
        assert "0123456789ab" in state
        assert info["fingerprint"] in state
        assert state.endswith("model_mismatch")
    assert here.page.locator("#rows .near li").count() == 0
    here.page.unroute("**/info")
    here.page.click("#retry")
    here.wait_for_vectors(2)
    assert info["fingerprint"] in here.page.inner_text("#model")
    assert here.page.locator("#rows .near li").count() == 2


def test_a_file_that_is_gone_before_it_was_sent_is_said_to_be_unreadable(
    browser: Browser, locked: Server, tmp_path: Path, photo: bytes
) -> None:
    gone, kept = tmp_path / "gone.jpg", tmp_path / "kept.jpg"
    for file in (gone, kept):
        file.write_bytes(photo)
    with visit(browser, f"{locked.url}/playground", locale="en-GB") as here:
        here.page.set_input_files("#files", [gone, kept])
        here.page.wait_for_selector("#key-form:not([hidden])")
        gone.unlink()
        here.page.fill("#key", KEYS[0])
        here.page.keyboard.press("Enter")
        here.wait_for_vectors(1)
        assert here.page.locator("#rows .state").all_inner_texts() == ["The file can't be read.", ""]


def test_an_untrained_model_is_said_in_large_letters(
    browser: Browser, store: Path, serving: Serving, tmp_path: Path
) -> None:
    home = shutil.copytree(store, tmp_path / "untrained", symlinks=True)
    saving = {**plain_environ(), "BENTOML_HOME": str(home)}
    subprocess.run([sys.executable, "-c", SAVE_UNTRAINED], env=saving, check=True, capture_output=True)
    size = "one => parseFloat(getComputedStyle(one).fontSize)"
    with (
        serving(BENTOML_HOME=str(home)) as server,
        visit(browser, f"{server.url}/playground", locale="en-GB") as here,
    ):
        here.page.wait_for_selector("#untrained:not([hidden])")
        large = here.page.locator("#untrained strong").evaluate(size)
        assert large >= 1.5 * here.page.locator("body").evaluate(size)
        assert "This model is untrained." in here.page.inner_text("#untrained")


# For everybody


def test_everything_is_done_with_the_keyboard_alone(here: Visit) -> None:
    keyboard = here.page.keyboard

    def tab_to(selector: str) -> None:
        for _ in range(200):
            if here.page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
            keyboard.press("Tab")
        raise AssertionError(f"the tabulator key does not lead to {selector}")

    tab_to("#choose")
    tab_to("#samples")
    keyboard.press("Enter")
    here.wait_for_vectors(len(SAMPLES))
    tab_to("#rows .neighbour")
    name = here.page.evaluate("document.activeElement.title")
    keyboard.press("Enter")
    assert here.page.evaluate("document.activeElement.querySelector('.name').textContent") == name
    tab_to("#threshold")
    before = here.page.inner_text("#threshold-value")
    keyboard.press("ArrowLeft")
    here.settle()
    assert float(here.page.inner_text("#threshold-value")) == pytest.approx(float(before) - 0.005)
    tab_to("#map .point")
    first = here.page.evaluate("document.activeElement.title")
    places = []
    for key in ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown") * 3:
        keyboard.press(key)
        places.append(here.page.evaluate("document.activeElement.title"))
    assert set(places) - {first}
    assert set(places) <= set(NAMES)
    tab_to("#matrix")
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):  # the first shows where it is
        keyboard.press(key)
    assert re.fullmatch(r".+\.jpg and .+\.jpg: 1\.000", here.page.inner_text("#matrix-pair"))
    tab_to("[data-code=python]")
    keyboard.press("Space")
    assert here.page.inner_text("#code").startswith("import requests")
    tab_to("#copy")


def test_it_speaks_french_to_a_french_browser(browser: Browser, server: Server) -> None:
    with visit(browser, f"{server.url}/playground", locale="fr-CA", viewport=WIDE) as here:
        here.drop(dict(list(SAMPLES.items())[:2]))
        here.paste("http://10.0.0.1/x.jpg")
        here.wait_for_vectors(2)
        until(lambda: here.page.locator("#rows > [data-state=failed]").count() == 1)
        assert here.page.evaluate("document.documentElement.lang") == "fr"
        assert here.page.inner_text("#choose") == "Choisir des images"
        assert here.page.inner_text("#progress") == "2 images sur 3 ont leur vecteur, 1 en échec."
        assert re.fullmatch(r"0,\d{3}", here.page.locator("#rows .cosine").first.inner_text())
        # The API's words are English, and said to be.
        assert here.page.locator("#rows .bad").get_attribute("lang") == "en"
        english = (ROOT / "embedder/http/pages/playground/index.html").read_text()
        for text in re.findall(r'data-word="\w+"[^>]*>([^<]{12,})<', english):
            assert text not in here.page.inner_text("body")


def test_both_languages_have_every_word() -> None:
    folder = ROOT / "embedder/http/pages/playground"
    english, french = re.findall(r"= \{\n(.*?)\n\};", (folder / "words.js").read_text(), re.DOTALL)[:2]
    keys = [set(re.findall(r"^  (\w+):", words, re.MULTILINE)) for words in (english, french)]
    assert keys[0] == keys[1]
    # What stands on the page before its script runs is the same English.
    for key, text in re.findall(r'data-word="(\w+)"[^>]*>([^<]+)<', (folder / "index.html").read_text()):
        assert re.search(rf'^  {key}:\s+"{re.escape(text)}",$', english, re.MULTILINE), key
    sources = "".join(file.read_text() for file in folder.glob("*.*"))
    used = set(re.findall(r'(?:\bword\(|data-word=|\bcode: )"(\w+)"', sources))
    assert used - {"image_too_large", "body_too_large"} <= keys[0]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_axe_finds_nothing_and_nothing_scrolls_sideways(
    browser: Browser, server: Server, locked: Server, scheme: str, size: dict[str, int]
) -> None:
    look: dict[str, Any] = {"color_scheme": scheme, "viewport": size, "locale": "en-GB"}

    def look_at(here: Visit) -> None:
        found = Axe().run(here.page)
        assert found.violations_count == 0, found.generate_report()
        assert here.page.evaluate("document.documentElement.scrollWidth") <= size["width"]

    with visit(browser, f"{locked.url}/playground", **look) as here:
        here.page.wait_for_selector("#key-form:not([hidden])")
        here.page.fill("#key", "wrong")
        here.page.keyboard.press("Enter")
        until(lambda: here.page.inner_text("#key-error") != "")
        look_at(here)
    with visit(browser, f"{server.url}/playground", **look) as here:
        here.page.wait_for_selector("#model:not([hidden])")
        look_at(here)
        here.paste("http://10.0.0.1/" + "a-long-name-" * 30 + ".jpg\nno URL " + "x" * 300)
        here.drop({"x" * 200 + ".jpg": SVG, **SAMPLES})
        here.wait_for_vectors(len(SAMPLES))
        here.page.locator("#matrix").hover()
        here.page.evaluate("document.querySelector('#untrained').hidden = false")
        look_at(here)


# The calls


def has_node_20() -> bool:
    """Whether there is one whose `openAsBlob` reads files, as Debian 12's does not."""
    if shutil.which("node") is None:
        return False
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    return int(version.removeprefix("v").partition(".")[0]) >= 20


def programs(here: Visit) -> dict[str, str]:
    found = {}
    for language in ("curl", "python", "javascript"):
        here.page.click(f"[data-code={language}]")
        found[language] = here.page.inner_text("#code")
    return found


@pytest.mark.parametrize("language", ["curl", "python", "javascript"])
@pytest.mark.parametrize("kind", ["files", "urls"])
def test_the_call_runs_as_it_is_shown(
    here: Visit, photo: bytes, photo_url: str, tmp_path: Path, language: str, kind: str
) -> None:
    if language == "javascript" and not has_node_20():
        pytest.skip("there is no node of version 20 or newer")
    if kind == "files":
        files = {"cat.jpg": photo, """it's; "a", $(b) \\ cat.jpg""": photo}
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        here.drop(files)
    else:
        here.paste(f"{photo_url}\n{photo_url}?it's=$HOME")
    here.wait_for_vectors(2)
    code = programs(here)[language]
    (tmp_path / "call.mjs").write_text(code)
    command = {
        "curl": ["bash", "-ec", code],
        "python": [sys.executable, "-W", "ignore", "-c", code],
        "javascript": ["node", "call.mjs"],
    }[language]
    done = subprocess.run(command, cwd=tmp_path, env=plain_environ(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if language == "curl":
        answer = json.loads(done.stdout)
        assert [len(vector) for vector in answer["embeddings"]] == [512, 512]
        assert [image["format"] for image in answer["images"]] == ["JPEG", "JPEG"]
    else:
        assert done.stdout.split() == ["512", "512"]


def test_the_call_can_be_copied(here: Visit, server: Server, photo: bytes) -> None:
    here.page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
    here.drop({"cat.jpg": photo})
    here.wait_for_vectors(1)
    here.page.click("#copy")
    until(lambda: here.page.inner_text("#copied") == "Copied.")
    assert here.page.evaluate("navigator.clipboard.readText()") == here.page.inner_text("#code")
