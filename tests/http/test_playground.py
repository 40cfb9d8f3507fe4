"""What `/playground` is over HTTP: files with strict headers, open to all, and not there when it is switched off."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from embedder.http.pages import playground
from tests.conftest import Serving
from tests.server import ROOT, Server, assert_error

FOLDER = ROOT / "embedder" / "http" / "pages" / "playground"
FILES = [path for path in playground.paths() if path != "/playground/"]
STRICT = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' blob:",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
)


@pytest.fixture(scope="module")
def without(serving: Serving) -> Iterator[Server]:
    with serving(EMBEDDER_PLAYGROUND="0") as server:
        yield server


@pytest.mark.parametrize("path", FILES)
def test_every_file_is_strict_and_asked_for_anew(server: Server, path: str) -> None:
    answer = server.get(path)
    assert answer.status_code == 200
    policy = answer.headers["Content-Security-Policy"].split("; ")
    assert set(policy) >= set(STRICT)
    assert not re.search("unsafe|\\*|http", answer.headers["Content-Security-Policy"])
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-cache"
    for tag in (answer.headers["ETag"], f'"another", W/{answer.headers["ETag"]}'):
        again = server.get(path, headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["ETag"] == answer.headers["ETag"]
    assert server.get(path, headers={"If-None-Match": '"another"'}).content == answer.content


def test_the_page_is_of_files_that_are_there_and_of_nothing_else(server: Server) -> None:
    for file in FOLDER.glob("*.js"):
        answer = server.get(f"/playground/{file.name}")
        assert answer.headers["Content-Type"].startswith("text/javascript")
        for imported in re.findall(r'from "\./([^"]+)"', answer.text):
            assert (FOLDER / imported).is_file()
    html = server.get("/playground").text
    assert not re.search("<script>|<style|style=|\\son[a-z]+=", html)
    for target in re.findall(r'(?:src|href)="([^"]+)"', html):
        assert server.get(f"/{target}").status_code == 200


def test_the_samples_are_those_of_the_repository_and_each_has_its_origin(server: Server) -> None:
    names = sorted(file.name for file in (ROOT / "samples").glob("*.jpg"))
    assert server.get("/playground/samples.json").json() == names
    assert 12 <= len(names) <= 16
    said = (ROOT / "samples" / "README.md").read_text()
    for name in names:
        file = server.get(f"/playground/samples/{name}")
        assert file.headers["Content-Type"] == "image/jpeg"
        assert file.content == (ROOT / "samples" / name).read_bytes()
        assert f"`{name}`" in said


def test_with_a_slash_behind_it_the_page_leads_to_where_its_links_work(server: Server) -> None:
    answer = server.get("/playground/", allow_redirects=False)
    assert answer.status_code == 308
    assert answer.headers["Location"] == "../playground"
    assert server.get("/playground/").url == f"{server.url}/playground"
    for path in (
        "/playground/index.html",
        "/playground/page.js.map",
        "/playground/../service.py",
        "/playground//",
    ):
        assert_error(server.get(path), 404, "not_found")


def test_it_is_open_where_keys_are_set(locked: Server) -> None:
    for path in FILES:
        assert locked.get(path).status_code == 200
    assert_error(locked.get("/info"), 401, "unauthorized")


def test_it_can_be_switched_off(without: Server) -> None:
    for path in (*FILES, "/playground/"):
        assert_error(without.get(path), 404, "not_found")
    assert without.get("/docs").status_code == 200
