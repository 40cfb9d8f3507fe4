"""scripts/search.py, as a person runs it: the real network, the real fetcher, a folder of real vectors."""

from __future__ import annotations

import asyncio
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bulk.folder import provenance
from bulk.pictures import CAPTION, COLUMNS, MARGIN, sheet
from embedder.engine import Engine
from embedder.errors import BadImage, EmbedderError, FetchFailed
from embedder.settings import Settings
from tests.bulk.conftest import Catalogue
from tests.bulk.folders import assert_refused, command, environ, interrupted, row, write
from tests.origin import Origin
from tests.pictures import encoded


def expected(catalogue: Catalogue, query: int) -> list[tuple[str, str, float]]:
    """Id, URL and cosine of all rows with a vector, nearest first, by the definition."""
    vectors = catalogue.vectors.astype(np.float64)
    cosines = vectors @ vectors[query]
    order = sorted(range(len(cosines)), key=lambda n: (-cosines[n], n))
    return [(f"{n:05d}", catalogue.urls[n], float(cosines[n])) for n in order]


def test_json_has_the_neighbours_of_a_url_as_a_calculation_gives_them(
    catalogue: Catalogue, store: Path, origin: Origin
) -> None:
    done = command(
        "search", catalogue.path, "--image", catalogue.urls[1], "--json", env=environ(store, origin)
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    found = said.pop("neighbours")
    assert said == {
        "image": catalogue.urls[1],
        "model": catalogue.spec.tag,
        "fingerprint": catalogue.spec.fingerprint,
        "rows": 5,
        "recall": None,
        "sheet": None,
    }
    nearest = expected(catalogue, 1)
    assert [each["rank"] for each in found] == [1, 2, 3, 4, 5]
    assert [(each["id"], each["url"]) for each in found] == [each[:2] for each in nearest]
    np.testing.assert_allclose([each["score"] for each in found], [each[2] for each in nearest], atol=2e-6)


def test_a_file_is_found_with_its_twin_and_the_sheet_shows_both(
    catalogue: Catalogue, store: Path, origin: Origin, tmp_path: Path
) -> None:
    file, drawn = tmp_path / "query.png", tmp_path / "found.png"
    Image.fromarray(np.pad(catalogue.pixels[0], ((16, 16), (16, 16), (0, 0)), "edge")).save(file)
    origin.serve("/catalogue/1.png", b"", status=404)  # it was embedded, and is gone
    done = command(
        *("search", catalogue.path, "--image", file, "--top", "4", "--sheet", drawn),
        env=environ(store, origin),
    )
    assert (done.returncode, done.stderr) == (0, "")
    *lines, compared, pictures = done.stdout.splitlines()
    nearest = expected(catalogue, 0)[:4]
    assert [line.split()[0] for line in lines] == ["1", "2", "3", "4"]
    # Its edge is another, its middle the same, which is all that the network sees.
    assert [tuple(line.split()[2:]) for line in lines] == [each[:2] for each in nearest]
    assert [float(line.split()[1]) for line in lines] == pytest.approx(
        [each[2] for each in nearest], abs=1e-4
    )
    assert (compared, pictures) == ("of 5 rows, compared exactly", f"pictures: {drawn}")

    assert drawn.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    image = np.asarray(Image.open(drawn))
    assert image.shape == (224 + CAPTION + 2 * MARGIN, 5 * (224 + MARGIN) + MARGIN, 3)
    places = [image[MARGIN : MARGIN + 224, MARGIN + n * 232 : MARGIN + n * 232 + 224] for n in range(5)]
    np.testing.assert_array_equal(places[0], catalogue.pixels[0])
    for place, (identity, _, _) in zip(places[1:], nearest, strict=True):
        if identity == "00001":
            assert place[-1].tolist() == [[211, 211, 211]] * 224  # grey, with the reason above
            assert (place[:60] < 100).any()
        else:
            np.testing.assert_array_equal(place, catalogue.pixels[int(identity)])
    captions = image[MARGIN + 224 : -MARGIN]
    assert (captions < 100).any()


def test_a_folder_of_int8_is_searched_with_int8(
    int8_catalogue: Catalogue, store: Path, origin: Origin
) -> None:
    assert int8_catalogue.spec.precision == "int8"
    env = {**environ(store, origin), "EMBEDDER_PRECISION": "fp32"}
    done = command("search", int8_catalogue.path, "--image", int8_catalogue.urls[2], "--json", env=env)
    said = json.loads(done.stdout)
    assert said["fingerprint"] == int8_catalogue.spec.fingerprint
    assert (said["neighbours"][0]["id"], said["neighbours"][0]["score"]) == (
        "00002",
        pytest.approx(1, abs=1e-5),
    )


def test_through_an_index_the_recall_is_said(catalogue: Catalogue, store: Path, origin: Origin) -> None:
    options = ("search", catalogue.path, "--image", catalogue.urls[2], "--exact-rows", "4")
    done = command(*options, env=environ(store, origin))
    assert done.returncode == 0
    assert done.stderr == f"search: building the index of 5 rows in {catalogue.path / '_index.lance'}\n"
    *lines, compared = done.stdout.splitlines()
    assert lines[0].split()[2] == "00002"
    assert compared == (
        "of 5 rows, compared through an index that finds 100.00% of the 10 nearest "
        "(measured with up to 100 of the rows)"
    )
    again = command(*options, "--json", env=environ(store, origin))
    assert (again.stderr, json.loads(again.stdout)["recall"]) == ("", 1.0)


def test_vectors_of_another_model_are_refused_in_one_line_with_both_fingerprints(
    catalogue: Catalogue, store: Path, origin: Origin, tmp_path: Path
) -> None:
    other = write(tmp_path / "other", [row(0, catalogue.vectors[0])], dimension=512)
    done = command("search", other, "--image", catalogue.urls[0], env=environ(store, origin))
    assert_refused(done, "search", "0123456789ab", catalogue.spec.fingerprint, catalogue.spec.tag)


def test_what_a_person_can_change_is_said_in_one_line(
    catalogue: Catalogue, store: Path, origin: Origin, tmp_path: Path
) -> None:
    env = environ(store, origin)
    image = ("--image", catalogue.urls[0])
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff no image")
    assert_refused(command("search", tmp_path / "none", *image), "search", "none is not a folder")
    assert_refused(command("search", catalogue.path), "search", "--image")
    assert_refused(
        command("search", catalogue.path, *image, "--top", "0"), "search", "'0' is not a whole number"
    )
    for place, words in (
        (tmp_path / "none.jpg", "there is no file"),
        (broken, "can't be embedded"),
        (origin.url("/catalogue/gone.png"), "404"),
        ("http://10.0.0.1/a.jpg", "10.0.0.1"),
    ):
        assert_refused(command("search", catalogue.path, "--image", place, env=env), "search", str(words))
    for sheet_at in (tmp_path, tmp_path / "none" / "a.png"):
        unwritable = command("search", catalogue.path, *image, "--sheet", sheet_at)
        assert_refused(unwritable, "search", "can't be written")
    misspelt = command("search", catalogue.path, *image, env={**env, "EMBEDDER_MAX_IMAGE_BYTE": "1"})
    assert_refused(misspelt, "search", "EMBEDDER_MAX_IMAGE_BYTE")
    empty = command("search", catalogue.path, *image, env={**env, "BENTOML_HOME": str(tmp_path)})
    assert_refused(empty, "search", "python scripts/save_model.py")


def test_what_a_terminal_would_obey_is_escaped(
    catalogue: Catalogue, store: Path, origin: Origin, tmp_path: Path
) -> None:
    hostile = row(0, catalogue.vectors[0], id="\x1b[2Jred\nrow", url="https://x.example/\x9b31m\u202etxt")
    said = {**provenance(catalogue.spec), "embedder.model": "gone:gone"}
    other = write(tmp_path / "other", [hostile], dimension=512, said=said)
    done = command("search", other, "--image", catalogue.urls[0], env=environ(store, origin))
    first, _ = done.stdout.splitlines()
    assert first == "  1  1.0000  \\x1b[2Jred\\nrow  https://x.example/\\x9b31m\\u202etxt"
    assert (
        json.loads(
            command(
                "search", other, "--image", catalogue.urls[0], "--json", env=environ(store, origin)
            ).stdout
        )["neighbours"][0]["id"]
        == hostile["id"]
    )


def test_ctrl_c_ends_it_with_130_and_one_line(catalogue: Catalogue, store: Path, origin: Origin) -> None:
    readable, writable = os.pipe()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        os.write(writable, b"!")
        await reader.read()

    origin.raw("/catalogue/hang.png", hang)
    try:
        ended = interrupted(
            *("search", catalogue.path, "--image", origin.url("/catalogue/hang.png")),
            env={**environ(store, origin), "EMBEDDER_FETCH_TIMEOUT_S": "40"},
            when=readable,
        )
    finally:
        os.close(readable)
        os.close(writable)
    assert ended == (130, "search: interrupted\n")


def test_a_sheet_has_as_many_rows_as_it_takes_and_writes_what_it_can_of_any_text() -> None:
    picture = np.full((32, 32, 3), 77, np.uint8)
    error: EmbedderError = FetchFailed("a reason\nof two lines " * 20)
    texts = ["", "x" * 10_000, "\x00\x1b\n", "名前 🖼", "a b"]
    cells = [(picture if number % 2 else error, text, text) for number, text in enumerate(texts * 2)]
    image = np.asarray(Image.open(io.BytesIO(sheet([*cells, cells[1]], 32))))
    down = 3
    assert image.shape == (down * (32 + CAPTION + MARGIN) + MARGIN, COLUMNS * (32 + MARGIN) + MARGIN, 3)
    last = image[2 * (32 + CAPTION + MARGIN) + MARGIN :][:32, MARGIN:][:, :32]
    np.testing.assert_array_equal(last, picture)
    assert (image[:, -MARGIN:] == 255).all()  # nothing is written beyond a picture's width


@pytest.mark.anyio
async def test_pixels_come_in_order_with_errors_in_their_places(catalogue: Catalogue, origin: Origin) -> None:
    file = encoded(Image.new("RGB", (256, 256), (200, 30, 90)), "PNG")
    sources = [file, b"\xff\xd8\xff no image", *[file] * 40]
    async with Engine(Settings(cache_entries=0, max_in_flight_images=8, max_urls=8)) as engine:
        pixels = await engine.pixels(sources)
        assert engine.pipeline.in_flight_images == 0
    assert isinstance(pixels.pop(1), BadImage)
    assert len(pixels) == 41
    for each in pixels:
        assert not isinstance(each, EmbedderError)
        assert each.dtype == np.uint8
        np.testing.assert_array_equal(each, catalogue.pixels[4])


@pytest.mark.anyio
async def test_an_engine_that_keeps_embeddings_makes_no_pixels(bento_store: None) -> None:
    with pytest.raises(ValueError, match="cache_entries=0"):
        await Engine(Settings()).pixels([b""])
