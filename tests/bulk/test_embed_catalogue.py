"""The command, on a real catalogue, with the real model: what it writes, and that it goes on from wherever it was."""

from __future__ import annotations

import asyncio
import csv
import json
import random
import shlex
import signal
import subprocess
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from bulk.folder import RESULTS
from embedder.engine import Engine
from embedder.settings import Settings
from tests.bentoml_store import read_from
from tests.bulk.catalogues import COLUMNS, Row, command, embed, environ, parts, write_csv, write_parquet
from tests.disk import fill, mounted
from tests.origin import Origin
from tests.server import ROOT, Server, until

COUNT = 300


@pytest.fixture(scope="module")
def words(store: Path, origin: Origin) -> dict[str, str]:
    return environ(store, origin)


@pytest.fixture(scope="module")
def whole(
    shop_csv: Path, words: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The vectors of `shop_csv`, made without interruption, and what was said."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    done = embed(words, shop_csv, "--out", folder, "--shard-rows", "70", "--progress", "json")
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.fixture(scope="module")
def vectors(store: Path, origin: Origin, shop: list[Row]) -> dict[str, np.ndarray]:
    """By the row's id, what an engine makes of the file."""
    settings = Settings(
        precision="int8",
        allowed_networks=(ip_network("127.0.0.0/8"),),
        allowed_ports=frozenset({80, origin.port}),
    )

    async def made() -> dict[str, np.ndarray]:
        files = {row.sku: row.file for row in shop if row.file is not None}
        async with Engine(settings) as engine:
            results = await engine.embed(files.values())
        return {sku: r.embedding for sku, r in zip(files, results, strict=True) if r.embedding is not None}

    with read_from(store):
        return asyncio.run(made())


def test_each_row_is_there_in_order_with_what_was_to_become_of_it(
    whole: tuple[Path, object],
    shop: list[Row],
    vectors: dict[str, np.ndarray],
) -> None:
    table = parts(whole[0])
    assert table["id"].to_pylist() == [row.sku for row in shop]
    assert table["url"].to_pylist() == [row.image_url for row in shop]
    for name in ("price", "title"):
        assert table[name].to_pylist() == [getattr(row, name) for row in shop]
    assert table["error_code"].to_pylist() == [row.failure for row in shop]
    assert table["http_status"].to_pylist() == [row.http_status for row in shop]
    assert table["status"].to_pylist() == ["failed" if row.failure else "success" for row in shop]
    assert table["duplicate_of"].to_pylist() == [row.same_as for row in shop]
    for row, embedding in zip(shop, table["embedding"].to_pylist(), strict=True):
        if row.failure:
            assert embedding is None
        else:
            assert np.array_equal(np.array(embedding, np.float32), vectors[row.sku]), row
    sizes = [None if row.file is None else len(row.file) for row in shop]
    assert table["bytes"].to_pylist() == sizes
    assert set(table["format"].to_pylist()) == {"JPEG", None}
    assert set(table["width"].to_pylist()) == {120, None}
    assert {row.failure for row in shop} == {
        None,
        "fetch_failed",
        "fetch_timeout",
        "bad_image",
        "url_not_allowed",
    }
    assert sum(row.same_as is not None for row in shop) > 10


def test_parts_have_the_documented_columns_and_say_whose_vectors_they_are(whole: tuple[Path, object]) -> None:
    folder, _ = whole
    files = sorted(folder.glob("part-*.parquet"))
    assert [pq.read_metadata(file).num_rows for file in files] == [70, 70, 70, 70, 20]
    for file in files:
        schema = pq.read_schema(file)
        assert schema.names == [*COLUMNS[2:], *(field.name for field in RESULTS)]
        for field in RESULTS:
            assert schema.field(field.name).type == field.type
        said = {key.decode(): value.decode() for key, value in schema.metadata.items()}
        assert said["embedder.model"] == pq.read_table(file)["model"][0].as_py()
        assert (said["embedder.precision"], said["embedder.dimension"]) == ("int8", "512")
        assert len(said["embedder.fingerprint"]) == 12


def test_it_says_what_it_found_each_part_and_three_lines_at_the_end(
    whole: tuple[Path, subprocess.CompletedProcess[str]], shop: list[Row]
) -> None:
    folder, done = whole
    lines = done.stderr.splitlines()
    assert lines[0] == "URLs are in the column 'image_url', ids are the column 'sku', kept is price, title"
    said = [json.loads(line) for line in lines if line.startswith("{")]
    assert sorted(line["part"] for line in said) == [0, 1, 2, 3, 4]
    assert sum(line["rows"] for line in said) == COUNT
    failed = sum(row.failure is not None for row in shop)
    assert lines[-3].startswith(f"{COUNT - failed} of {COUNT} rows have a vector, of resnet18:")
    assert lines[-2].startswith(f"{failed} failed: fetch_failed ")
    assert str(folder / "errors.csv") in lines[-2]
    assert done.stdout == ""
    search = shlex.split(lines[-1].removeprefix("search: "))
    assert search[1:] == ["scripts/search.py", str(folder), "--image", "URL-OR-FILE"]
    subprocess.run([search[0], "-c", "import pyarrow"], cwd=ROOT, check=True)  # the same environment


def test_what_failed_is_in_errors_csv_and_counted_in_the_summary(
    whole: tuple[Path, object], shop: list[Row]
) -> None:
    folder, _ = whole
    with (folder / "errors.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    wanted = [row for row in shop if row.failure]
    assert [(row["id"], row["url"], row["error_code"]) for row in found] == [
        (row.sku, row.image_url, row.failure) for row in wanted
    ]
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["rows"], summary["failed"]) == (COUNT, len(wanted))
    assert summary["success"] == COUNT - len(wanted)
    assert sum(summary["errors"].values()) == len(wanted)
    counted = [json.loads(file.read_text()) for file in sorted(folder.glob("part-*.json"))]
    assert sum(part["success"] for part in counted) == summary["success"]


def test_each_url_was_fetched_once(
    origin: Origin, shop: list[Row], words: dict[str, str], tmp_path: Path
) -> None:
    before = len(origin.requests)
    done = embed(
        words, write_csv(tmp_path / "shop.csv", shop), "--out", tmp_path / "out", "--progress", "none"
    )
    assert done.returncode == 0, done.stderr
    asked = [request.path for request in origin.requests[before:]]
    assert len(asked) == len(set(asked))
    assert len(asked) == len({row.image_url for row in shop if row.image_url.startswith(origin.url("/"))})


def _asked(origin: Origin, count: int, process: subprocess.Popen[Any]) -> Callable[[], bool]:
    """Whether it was asked so often, or the process that asks has ended. Any: of text, or of bytes."""
    return lambda: len(origin.requests) >= count or process.poll() is not None


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_killed_five_times_and_started_again_it_equals_the_run_that_was_not(
    kind: str,
    whole: tuple[Path, object],
    shop: list[Row],
    words: dict[str, str],
    origin: Origin,
    tmp_path: Path,
) -> None:
    catalogue = (write_csv if kind == "csv" else write_parquet)(tmp_path / f"shop.{kind}", shop)
    folder = tmp_path / "out"
    chance = random.Random(kind)
    line = command(catalogue, "--out", folder, "--shard-rows", "70", "--progress", "none")
    for _ in range(5):
        more = chance.randrange(5, 120)
        with subprocess.Popen(line, env=words, stderr=subprocess.DEVNULL) as process:
            until(_asked(origin, len(origin.requests) + more, process))
            process.kill()
    done = embed(words, catalogue, "--out", folder, "--shard-rows", "70")
    assert done.returncode == 0, done.stderr
    assert parts(folder).equals(parts(whole[0]))
    assert not list(folder.rglob(".*.tmp"))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_when_what_is_in_work_is_written_and_nothing_is_fetched_twice(
    signum: signal.Signals,
    whole: tuple[Path, object],
    shop: list[Row],
    shop_csv: Path,
    words: dict[str, str],
    origin: Origin,
    tmp_path: Path,
) -> None:
    before = len(origin.requests)
    line = command(shop_csv, "--out", tmp_path / "out", "--shard-rows", "70", "--progress", "none")
    with subprocess.Popen(line, env=words, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: len(origin.requests) - before > 100)
        process.send_signal(signum)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on" in said.splitlines()[-1]
    done = embed(words, shop_csv, "--out", tmp_path / "out", "--shard-rows", "70")
    assert done.returncode == 0, done.stderr
    assert parts(tmp_path / "out").equals(parts(whole[0]))
    asked = [request.path for request in origin.requests[before:]]
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"EMBEDDER_PRECISION": "fp32"}, "is of another model: embedder.fingerprint was "),
        (
            {"EMBEDDER_MAX_IMAGE_BYTES": "1000"},
            "is of another settings: max_image_bytes was 20000000 and is 1000",
        ),
        (["--limit", "10"], "is of another catalogue: limit was None and is 10"),
        (["--keep", "none"], "is of another choice of columns: kept was ['price', 'title'] and is []"),
        (["--shard-rows", "10"], "is of another --shard-rows: it was 70 and is 10"),
    ],
)
def test_another_job_is_refused_in_one_line_and_changes_nothing(
    more: dict[str, str] | list[str],
    says: str,
    whole: tuple[Path, object],
    shop_csv: Path,
    words: dict[str, str],
) -> None:
    folder, _ = whole
    before = {file: file.stat().st_mtime_ns for file in folder.glob("*part*")}
    environ, options = (words | more, []) if isinstance(more, dict) else (words, more)
    done = embed(environ, shop_csv, "--out", folder, "--shard-rows", "70", *options)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2  # what was found, and this
    assert says in done.stderr.splitlines()[-1]
    assert {file: file.stat().st_mtime_ns for file in folder.glob("*part*")} == before


def test_another_catalogue_is_refused_unless_it_may_overwrite(
    shop: list[Row], words: dict[str, str], tmp_path: Path
) -> None:
    catalogue = write_csv(tmp_path / "shop.csv", shop[:20])
    assert embed(words, catalogue, "--out", tmp_path / "out").returncode == 0
    write_csv(catalogue, shop[20:30])
    refused = embed(words, catalogue, "--out", tmp_path / "out")
    assert refused.returncode == 2
    assert "is of another catalogue" in refused.stderr
    assert embed(words, catalogue, "--out", tmp_path / "out", "--overwrite").returncode == 0
    assert parts(tmp_path / "out")["id"].to_pylist() == [row.sku for row in shop[20:30]]


def test_rows_whose_cause_may_pass_are_repeated_in_place(
    origin: Origin, shop: list[Row], words: dict[str, str], tmp_path: Path
) -> None:
    good = [row for row in shop if row.file is not None and row.same_as is None][:6]
    file = good[0].file
    assert file is not None
    late = [Row(f"late-{n}", origin.url(f"/late/{n}.jpg"), "1", "late") for n in range(3)]
    again = Row("again", late[0].image_url, "1", "late")
    made = [good[0], late[0], good[1], late[1], late[2], again, *good[2:]]
    origin.serve("/late/0.jpg", b"", status=500)
    origin.serve("/late/1.jpg", b"", status=404)
    origin.serve("/late/2.jpg", b"", status=503)
    catalogue, folder = write_csv(tmp_path / "shop.csv", made), tmp_path / "out"

    def status() -> list[int]:
        return [200 if status is None else status for status in parts(folder)["http_status"].to_pylist()]

    line = (catalogue, "--out", folder, "--shard-rows", "4", "--progress", "none")
    assert embed(words, *line).returncode == 0
    assert status() == [200, 500, 200, 404, 503, 500, 200, 200, 200, 200]
    for path in ("/late/0.jpg", "/late/1.jpg", "/late/2.jpg"):
        origin.serve(path, file)
    assert embed(words, *line, "--retry-failed").returncode == 0
    assert status() == [200, 200, 200, 404, 200, 200, 200, 200, 200, 200]
    assert parts(folder)["duplicate_of"].to_pylist()[5] == good[0].sku
    assert embed(words, *line, "--retry-failed", "fetch_failed").returncode == 0
    assert status() == [200] * 10
    assert parts(folder)["id"].to_pylist() == [row.sku for row in made]
    assert (folder / "errors.csv").read_text().count("\n") == 1


def test_a_server_that_asks_to_be_left_alone_is_asked_again(
    origin: Origin, shop: list[Row], words: dict[str, str], tmp_path: Path
) -> None:
    file = next(row.file for row in shop if row.file is not None)
    refused: dict[str, int] = {}

    def busy(path: str) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            refused[path] = refused.get(path, 0) + 1
            if refused[path] < 3:
                writer.write(b"HTTP/1.1 429 Slow\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n")
            else:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(file), file))

        origin.raw(path, answer, keep_alive=True)

    for number in range(5):
        busy(f"/busy/{number}.jpg")
    made = [Row(str(n), origin.url(f"/busy/{n}.jpg"), "", "") for n in range(5)]

    async def never(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 429 Slow\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n")

    origin.raw("/busy/hour.jpg", never)
    made.append(Row("hour", origin.url("/busy/hour.jpg", host="localhost"), "", ""))
    done = embed(words, write_csv(tmp_path / "shop.csv", made), "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    table = parts(tmp_path / "out")
    assert table["status"].to_pylist() == ["success"] * 5 + ["failed"]
    assert table["http_status"].to_pylist()[5] == 429
    assert set(refused.values()) == {3}


def test_over_the_failure_rate_it_stops_with_3(origin: Origin, words: dict[str, str], tmp_path: Path) -> None:
    made = [Row(str(n), origin.url(f"/none/{n}.jpg"), "", "") for n in range(1500)]
    done = embed(
        words, write_csv(tmp_path / "shop.csv", made), "--out", tmp_path / "out", "--max-failure-rate", "0.5"
    )
    assert done.returncode == 3
    assert "over --max-failure-rate 0.5; fetch_failed " in done.stderr.splitlines()[-1]


def test_a_dry_run_says_what_all_would_take_and_keeps_nothing(
    shop_csv: Path, words: dict[str, str], tmp_path: Path
) -> None:
    done = embed(words, shop_csv, "--out", tmp_path / "out", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"dry run: nothing was kept. All {COUNT} rows would take about " in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_services_that_run_give_the_same_vectors(
    whole: tuple[Path, object],
    shop_csv: Path,
    store: Path,
    origin: Origin,
    words: dict[str, str],
    tmp_path: Path,
) -> None:
    serving = {
        name: value for name, value in words.items() if name.startswith("EMBEDDER_") or name == "BENTOML_HOME"
    } | {"EMBEDDER_WORKERS": "1", "EMBEDDER_API_KEYS": "the-first-key-of-two,the-second-key-of-two"}
    with Server(tmp_path / "log", serving) as server:
        line = (shop_csv, "--out", tmp_path / "out", "--shard-rows", "70", "--server", server.url)
        refused = embed(words, *line)
        assert refused.returncode == 2
        assert refused.stderr.splitlines()[-1].startswith(f"embed_catalogue: {server.url}/info answers 401")
        done = embed(
            words | {"EMBEDDER_API_KEYS": "the-second-key-of-two"}, *line, "--server", f"{server.url}/"
        )
        assert done.returncode == 0, done.stderr
    assert parts(tmp_path / "out").drop_columns(["error"]).equals(parts(whole[0]).drop_columns(["error"]))


@pytest.mark.parametrize("source", ["photos", "photos/**/*.jpg"])
def test_image_files_are_embedded_under_their_paths(
    source: str,
    shop: list[Row],
    vectors: dict[str, np.ndarray],
    words: dict[str, str],
    tmp_path: Path,
) -> None:
    good = [row for row in shop if row.file is not None and row.same_as is None][:5]
    for row in good:
        path = tmp_path / "photos" / row.sku[-1] / f"{row.sku}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(row.file or b"")
    (tmp_path / "photos" / "notes.doc").write_text("no picture")
    (tmp_path / "photos" / "broken.jpg").write_text("no picture")
    done = embed(words, source, "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = parts(tmp_path / "out")
    wanted = [*sorted(f"{row.sku[-1]}/{row.sku}.jpg" for row in good), "broken.jpg"]
    assert table["id"].to_pylist() == wanted
    found = dict(zip(table["id"].to_pylist(), table["embedding"].to_pylist(), strict=True))
    for row in good:
        assert np.array_equal(np.array(found[f"{row.sku[-1]}/{row.sku}.jpg"], np.float32), vectors[row.sku])
    assert dict(zip(table["id"].to_pylist(), table["error_code"].to_pylist(), strict=True))["broken.jpg"] == (
        "unsupported_format"
    )


@pytest.mark.parametrize("format", ["npy", "lance"])
def test_other_forms_have_the_rows_with_a_vector_in_order(
    format: str, shop: list[Row], words: dict[str, str], tmp_path: Path
) -> None:
    catalogue = write_csv(tmp_path / "shop.csv", shop[:40])
    done = embed(words, catalogue, "--out", tmp_path / "out", "--shard-rows", "15", "--format", format)
    assert done.returncode == 0, done.stderr
    table = parts(tmp_path / "out")
    good = table.filter(pc.equal(table["status"], "success"))
    wanted = np.array(good["embedding"].to_pylist(), np.float32)
    if format == "npy":
        found = np.load(tmp_path / "out" / "img_emb" / "img_emb_0.npy")
        other = pq.read_table(tmp_path / "out" / "metadata" / "metadata_0.parquet")
    else:
        import lance

        other = lance.dataset(str(tmp_path / "out" / "embeddings.lance")).to_table()
        found = np.array(other["embedding"].to_pylist(), np.float32)
    assert np.array_equal(found, wanted)
    assert other["id"].to_pylist() == good["id"].to_pylist()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["none.csv"], "none.csv is no file, no folder with files, and no pattern that fits any"),
        (["empty.csv"], "empty.csv can't be read: it is empty"),
        (["head.csv"], "head.csv has no rows"),
        (["two.csv", "--url-column", "image"], "two.csv has no column 'image' (--url-column); it has a, b"),
        (["two.csv"], "which column of two.csv has the URLs? it has the columns a, b; say --url-column NAME"),
        (["shop.csv", "--precision", "fp32"], "there is no model none:1 in BentoML's model store; make it: "),
    ],
)
def test_what_can_not_begin_is_one_line_and_2(
    arguments: list[str], says: str, words: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "head.csv").write_text("url\n")
    (tmp_path / "two.csv").write_text("a,b\n1,2\n")
    (tmp_path / "shop.csv").write_text("url\nhttps://example.org/a.jpg\n")
    done = embed(words | {"EMBEDDER_MODEL": "none:1"}, *arguments, "--out", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"embed_catalogue: {says}")
    assert "Traceback" not in done.stderr


def test_two_jobs_do_not_write_to_one_folder(words: dict[str, str], tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "out").mkdir()
    (tmp_path / "shop.csv").write_text("url\nhttps://example.org/a.jpg\n")
    with (tmp_path / "out" / "_lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = embed(words, "shop.csv", "--out", "out", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "embed_catalogue: another job is writing to out"


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    shop: list[Row], words: dict[str, str], origin: Origin, whole: tuple[Path, object], tmp_path: Path
) -> None:
    catalogue = write_csv(tmp_path / "shop.csv", [row for row in shop if row.file][:60])
    with mounted(tmp_path / "disk", megabytes=2):
        line = command(catalogue, "--out", tmp_path / "disk" / "out", "--progress", "none")
        with subprocess.Popen(line, env=words, stderr=subprocess.PIPE, text=True) as process:
            until(_asked(origin, len(origin.requests) + 5, process))
            filling = fill(tmp_path / "disk")
            _, said = process.communicate(timeout=300)
        assert process.returncode == 2
        wanted = "embed_catalogue: there is no space left; what was done is kept: the same command goes on"
        assert said.splitlines()[-1] == wanted
        filling.unlink()
        again = subprocess.run(line, env=words, capture_output=True, text=True, timeout=300)
        assert again.returncode == 0, again.stderr
        assert len(parts(tmp_path / "disk" / "out")) == 60


def test_no_space_for_the_vectors_is_said_before_anything_is_fetched(
    words: dict[str, str], origin: Origin, tmp_path: Path
) -> None:
    catalogue = write_csv(
        tmp_path / "shop.csv", [Row(str(n), origin.url("/x.jpg"), "", "") for n in range(2000)]
    )
    before = len(origin.requests)
    with mounted(tmp_path / "disk", megabytes=2):
        done = embed(words, catalogue, "--out", tmp_path / "disk" / "out")
        assert not list((tmp_path / "disk" / "out").glob("part-*"))
    assert done.returncode == 2
    assert "the vectors will take 0.0045 GB and " in done.stderr.splitlines()[-1]
    assert len(origin.requests) == before
