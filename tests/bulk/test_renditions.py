"""A catalogue of smaller pictures: its rows say so, and a search asks the CDN as the catalogue did."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.bulk.catalogues import embed, environ
from tests.bulk.folders import command
from tests.cdn import Cloudinary
from tests.pictures import encoded, photo


def test_rows_say_which_pictures_were_smaller_and_search_asks_for_them_too(
    store: Path, tmp_path: Path
) -> None:
    with Cloudinary() as cdn:
        urls = [
            cdn.put("photo", encoded(photo(2400, 1800), "JPEG")),
            cdn.put("long", encoded(photo(3000, 900), "JPEG")),
            cdn.url("/demo/image/upload/v1/gone"),
        ]
        (tmp_path / "urls.txt").write_text("\n".join(urls))
        words = environ(store, cdn, EMBEDDER_FETCH_TIMEOUT_S="30")
        switched_on = words | {"EMBEDDER_RENDITIONS": "cloudinary@127.0.0.1"}
        done = embed(switched_on, tmp_path / "urls.txt", "--out", tmp_path / "out")
        assert done.returncode == 0, done.stderr
        table = pq.read_table(tmp_path / "out" / "part-00000.parquet")
        assert table["rendition"].to_pylist() == [True, False, None]
        assert table["width"].to_pylist() == [1024, 3000, None]
        asked = len(cdn.requests)
        found = command("search", tmp_path / "out", "--image", urls[0], "--json", env=words)
        assert found.returncode == 0, found.stderr
        first = json.loads(found.stdout)["neighbours"][0]
        assert (first["url"], first["score"]) == (urls[0], pytest.approx(1, abs=1e-6))
        assert [request.path for request in cdn.requests[asked:]] == [cdn.requests[0].path]
