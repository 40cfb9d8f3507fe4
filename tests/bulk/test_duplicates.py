"""Groups of near copies, and the page and table that show them."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import tracemalloc
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bulk.duplicates import BLOCK, Member, groups, members, page, section
from bulk.index import Index, Searchable
from bulk.pictures import THUMBNAIL
from bulk.vectors import Loaded, Stored
from tests.bulk.conftest import Catalogue
from tests.bulk.folders import (
    Vectors,
    assert_refused,
    clustered,
    command,
    environ,
    normalised,
    row,
    write,
)
from tests.origin import Origin


def expected(vectors: Vectors, threshold: float) -> list[list[int]]:
    """The components by the definition: all cosines in float64, and a walk from each row. Largest first."""
    vectors64 = vectors.astype(np.float64)
    close = vectors64 @ vectors64.T >= threshold
    seen = np.zeros(len(vectors), bool)
    found = []
    for start in range(len(vectors)):
        group, waiting = [], [] if seen[start] else [start]
        seen[start] = True
        while waiting:
            group.append(waiting.pop())
            for other in np.flatnonzero(close[group[-1]] & ~seen).tolist():
                seen[other] = True
                waiting.append(other)
        if len(group) > 1:
            found.append(sorted(group))
    return sorted(found, key=lambda group: (-len(group), group[0]))


def found_in(path: Path, vectors: Vectors, threshold: float) -> list[list[int]]:
    write(path, [row(n, vector) for n, vector in enumerate(vectors)], dimension=vectors.shape[1])
    stored = Stored.of(path)
    return [group.tolist() for group in groups(stored, Loaded(stored), threshold)]


def test_groups_are_the_components_of_the_definition(tmp_path: Path) -> None:
    vectors = clustered(2 * BLOCK + 100, 16, clusters=700, spread=0.12)
    wanted = expected(vectors, 0.99)
    assert len(wanted) > 100
    assert found_in(tmp_path, vectors, 0.99) == wanted


@pytest.mark.parametrize("order", ["along", "back", "mixed"])
def test_a_chain_is_one_group_though_its_ends_are_far_apart(tmp_path: Path, order: str) -> None:
    """5,000 rows on a third of a circle, each a little farther: the longest way that joining can have to go."""
    angles = np.linspace(0, 2 * np.pi / 3, 5000)
    if order == "back":
        angles = angles[::-1]
    elif order == "mixed":
        angles = np.random.default_rng(0).permutation(angles)
    vectors = normalised(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    step = np.cos(1.5 * (2 * np.pi / 3) / 4999)  # the next one is within, the one after it is not
    assert 1 - step > 1e-7
    assert found_in(tmp_path, vectors, float(step)) == [list(range(5000))]


def test_a_picture_is_a_copy_of_itself_at_a_threshold_of_one(tmp_path: Path) -> None:
    vectors = clustered(500, 512, clusters=500, spread=1)[np.arange(500) % 250]
    assert found_in(tmp_path, vectors, 1.0) == expected(vectors, 1 - 1e-6)


def test_rows_of_equal_files_are_one_group_and_said_to_be_exact(tmp_path: Path) -> None:
    vectors = clustered(4, 8, clusters=4, spread=1)
    vectors[2] = vectors[0]
    rows = [
        row(0, vectors[0], sha256="aa"),
        row(1, vectors[1], sha256="bb"),
        row(2, vectors[2], sha256="cc"),
        row(
            3, vectors[3], sha256="aa", duplicate_of="00000"
        ),  # as only a search that misses some has it apart
    ]
    stored = Stored.of(write(tmp_path, rows, dimension=8))
    loaded = Loaded(stored)
    (group,) = groups(stored, loaded, 0.9999)
    assert [(each.id, each.exact) for each in members(loaded, group)] == [
        ("00000", False),
        ("00002", False),
        ("00003", True),
    ]


def test_an_index_finds_planted_copies_and_equal_files(tmp_path: Path) -> None:
    vectors = clustered(3000, 64, clusters=3000, spread=1)
    random = np.random.default_rng(1)
    vectors[2000:2500] = normalised(vectors[:500] + 0.003 * random.standard_normal((500, 64)))
    wanted = expected(vectors, 0.99)
    assert len(wanted) == 500
    # 120 rows of one file: more than the neighbours that are asked for.
    vectors[2600:2720] = vectors[2600]
    wanted = expected(vectors, 0.99)
    shared = {"sha256": "ff"}
    rows = [row(n, vector, **(shared if 2600 <= n < 2720 else {})) for n, vector in enumerate(vectors)]
    stored = Stored.of(write(tmp_path, rows, dimension=64))
    index: Searchable = Index.of(stored, lambda text: None)
    found = [group.tolist() for group in groups(stored, index, 0.99)]
    assert found[0] == list(range(2600, 2720))
    assert [group for group in found if group not in wanted] == []
    assert len(found) >= 0.99 * len(wanted)
    scores = [each.score for each in members(index, np.array(found[1]))]
    one, other = found[1]
    assert scores == pytest.approx([1, float(vectors[one] @ vectors[other])], abs=1e-6)


def test_comparing_holds_two_blocks_whatever_the_rows(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        vectors = clustered(rows, 8, clusters=rows, spread=1)
        path = tmp_path / str(rows)
        write(path, [row(n, vector) for n, vector in enumerate(vectors)], dimension=8)
        stored = Stored.of(path)
        loaded = Loaded(stored)
        tracemalloc.start()
        groups(stored, loaded, 0.999999)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak(6 * BLOCK) < 1.1 * peak(3 * BLOCK)


class Page(HTMLParser):
    """What a browser finds: elements with their attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "'&quot;</style></ol><!--",
    "&lt;b&gt;",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_ids_urls_and_reasons_of_strangers_are_text(text: str) -> None:
    rows: list[tuple[Member, bytes | str]] = [
        (Member(text, f"https://x.example/{text}", 1.0, False), text),
        (Member(text, f"javascript:alert(1)//{text}", 0.98, True), b"\xff\xd8"),
        (Member(text, f"JavaScript:alert(1)//https://{text}", 0.98, True), b"\xff\xd8"),
        (Member(text, f" javascript:{text}", 0.98, True), b"\xff\xd8"),
        (Member(text, f"data:text/html,{text}", 0.98, True), b"\xff\xd8"),
        (Member(text, None, 0.98, True), b"\xff\xd8"),
    ]
    found = Page("".join(page(f"title {text}", [section(1, 9, rows)])))
    assert {tag for tag, _ in found.elements} == set(
        [
            "html",
            "meta",
            "title",
            "style",
            "h1",
            "p",
            "section",
            "h2",
            "ol",
            "li",
            "span",
            "b",
            "bdi",
            "br",
            "a",
            "img",
        ]
    )
    attributes = {name for _, each in found.elements for name in each}
    assert attributes == {
        "lang",
        "charset",
        "http-equiv",
        "content",
        "name",
        "class",
        "alt",
        "src",
        "rel",
        "href",
    }
    assert [each["href"] for each in found.all("a")] == [f"https://x.example/{text}"]
    assert {each["src"] for each in found.all("img")} == {"data:image/jpeg;base64,/9g="}
    assert found.texts.count(text) == len(rows) + 1  # each id, and the reason
    assert f"title {text}" in found.texts
    assert f"data:text/html,{text}" in found.texts
    assert "and 3 more" in found.texts


def test_the_page_allows_itself_its_own_style_and_nothing_else() -> None:
    found = Page("".join(page("none", [])))
    (policy,) = [each["content"] for each in found.all("meta") if each.get("http-equiv")]
    assert policy is not None
    (style,) = [text for text in found.texts if "font:" in text]
    hashed = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert set(policy.split("; ")) == {
        "default-src 'none'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        f"style-src 'sha256-{hashed}'",
    }


def test_the_command_writes_groups_with_thumbnails_and_a_table(
    catalogue: Catalogue, store: Path, origin: Origin, tmp_path: Path
) -> None:
    report, table = tmp_path / "duplicates.html", tmp_path / "duplicates.csv"
    cosines = catalogue.vectors.astype(np.float64) @ catalogue.vectors[0]
    threshold = 0.97
    (group,) = expected(catalogue.vectors, threshold)
    assert {0, 3} <= set(group)
    origin.serve("/catalogue/3.png", b"", status=404)  # it was embedded, and is gone
    done = command(
        *(
            "find_duplicates",
            catalogue.path,
            "--threshold",
            str(threshold),
            "--report",
            report,
            "--csv",
            table,
        ),
        env=environ(store, origin),
    )
    assert (done.returncode, done.stderr) == (0, "find_duplicates: comparing 5 rows\n")
    assert done.stdout.splitlines() == [
        f"1 groups with {len(group)} rows of 5, compared exactly",
        f"report: {report}, all rows: {table}",
    ]
    with table.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["group"], line["id"], line["url"], line["exact_copy"]) for line in lines] == [
        ("1", f"{n:05d}", catalogue.urls[n], "true" if n == 3 else "false") for n in group
    ]
    assert [float(line["score"]) for line in lines] == pytest.approx([cosines[n] for n in group], abs=2e-6)

    found = Page(report.read_text())
    shown = found.all("img")
    assert len(shown) == len(group) - 1
    for number, each in zip([n for n in group if n != 3], shown, strict=True):
        source = each["src"] or ""
        image = Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))))
        assert (image.format, image.size) == ("JPEG", (THUMBNAIL, THUMBNAIL))
        wanted = Image.fromarray(catalogue.pixels[number]).resize((THUMBNAIL, THUMBNAIL))
        assert np.abs(np.asarray(image).astype(int) - np.asarray(wanted)).mean() < 8  # JPEG's own loss
    assert any("404" in text for text in found.texts)
    assert [each["href"] for each in found.all("a")] == [catalogue.urls[n] for n in group]


def test_without_a_model_the_groups_are_there_and_say_why_there_are_no_pictures(
    catalogue: Catalogue, origin: Origin, tmp_path: Path
) -> None:
    report = tmp_path / "duplicates.html"
    done = command("find_duplicates", catalogue.path, "--report", report, env=environ(tmp_path, origin))
    assert done.returncode == 0
    _, why = done.stderr.splitlines()
    assert why.startswith("find_duplicates: no thumbnails: there is no model")
    found = Page(report.read_text())
    assert found.all("img") == []
    assert any("python scripts/save_model.py" in text for text in found.texts)


def test_a_page_shows_so_many_groups_and_through_an_index_says_its_recall(
    catalogue: Catalogue, origin: Origin, tmp_path: Path
) -> None:
    vectors = clustered(40, 16, clusters=40, spread=1)[np.arange(40) % 20]
    path = write(tmp_path / "out", [row(n, v, url=None) for n, v in enumerate(vectors)], dimension=16)
    report = tmp_path / "duplicates.html"
    done = command(
        *("find_duplicates", path, "--report", report, "--limit-groups", "3", "--exact-rows", "39"),
        env=environ(tmp_path, origin),
    )
    assert done.returncode == 0
    assert done.stdout.startswith("20 groups with 40 rows of 40, compared through an index that finds ")
    assert ", each row with its 50 nearest\n" in done.stdout
    found = Page(report.read_text())
    assert len(found.all("section")) == 3
    assert any("The 3 largest groups follow." in text for text in found.texts)


def test_what_a_person_can_change_is_said_in_one_line_and_no_report_is_left(
    tmp_path: Path,
) -> None:
    vectors = clustered(3, 8, clusters=3, spread=1)
    path = write(tmp_path / "out", [row(n, vector) for n, vector in enumerate(vectors)], dimension=8)
    report = ("--report", tmp_path / "a.html")
    for threshold in ("0", "1.01", "nan", "x", "-1"):
        done = command("find_duplicates", path, f"--threshold={threshold}", *report)
        assert_refused(done, "find_duplicates", f"'{threshold}' is not a cosine")
    assert_refused(command("find_duplicates", path), "find_duplicates", "--report")
    assert_refused(
        command("find_duplicates", tmp_path / "none", *report), "find_duplicates", "is not a folder"
    )
    nowhere = command("find_duplicates", path, "--report", tmp_path / "none" / "a.html")
    assert_refused(nowhere, "find_duplicates", "can't be written")
    folder = command("find_duplicates", path, "--report", path)
    assert_refused(folder, "find_duplicates", "can't be written")
    assert sorted(os.listdir(tmp_path)) == ["out"]
