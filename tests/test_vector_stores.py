"""A catalogue's vectors in real stores: `docs/vector-stores.md`, and what its sentences say of them.

Each example runs word for word in a process of its own, on a folder that `bulk.folder` wrote, and has to find what
numpy finds.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from ast import literal_eval
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from bulk.files import write_json
from bulk.folder import ERRORS, FAILED, MANIFEST, RESULTS, SUCCESS, SUMMARY, Folder, provenance, schema
from embedder.model.spec import ModelSpec, Preprocessing
from tests.server import ROOT, plain_environ

PAGE = (ROOT / "docs" / "vector-stores.md").read_text()
SECTIONS = dict(re.findall(r"^##+ (.*?)\n(.*?)(?=^##|\Z)", PAGE, re.DOTALL | re.MULTILINE))
EXAMPLES = {
    title: found
    for title, text in SECTIONS.items()
    if (found := re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL))
}
READERS = ("pyarrow", "pandas", "polars", "DuckDB", "Daft")
STORES = (
    "Qdrant",
    "LanceDB",
    "Chroma",
    "Milvus",
    "DuckDB",
    "sqlite-vec",
)  # and pgvector, which needs a server
NOT_RUN = ("Weaviate", "OpenSearch", "Elasticsearch")

SPEC = ModelSpec(
    *("resnet18:x", "resnet18", 512, Preprocessing(256, 224), "fp32", True, "5" * 64, "model.onnx", None)
)
PART = 200
"""Rows in a part: there are three, and the last is shorter."""


class Catalogue:
    """40 groups of 13 pictures, and 20 rows that failed, in three parts of `folder`/vectors."""

    def __init__(self, folder: Path) -> None:
        self.home = folder
        self.folder = Folder(folder / "vectors")
        self.folder.path.mkdir()
        random = np.random.default_rng(7)
        # Each member of a group is 0.1 of a standard deviation farther from its middle than the one before: which ten
        # are nearest is no matter of rounding.
        away = 0.1 * np.arange(13)[:, None]
        vectors = random.normal(size=(40, 1, 512)) + away * random.normal(size=(40, 13, 512))
        vectors = vectors.reshape(-1, 512) / np.linalg.norm(vectors, axis=2).reshape(-1, 1)
        rows = len(vectors) + 20
        failed = set(
            random.choice(np.arange(8, rows), 20, replace=False).tolist()
        )  # not 007, which is asked for
        of_rows = iter(random.permutation(vectors).astype(np.float32))
        self.vectors: dict[str, NDArray[np.float32] | None] = {
            f"{row:03}": None if row in failed else next(of_rows) for row in range(rows)
        }
        for number, first in enumerate(range(0, rows, PART)):
            self._write(number, list(self.vectors)[first : first + PART])
        # A reader has to leave these alone.
        write_json(self.folder.path / MANIFEST, {})
        write_json(self.folder.path / SUMMARY, {})
        (self.folder.path / ERRORS).write_text("id\n")

    def _write(self, number: int, ids: list[str]) -> None:
        rows = []
        for id in ids:
            good = self.vectors[id] is not None
            rows.append(
                {
                    "title": f"Picture {id}",
                    "id": id,
                    "url": f"https://shop.example/{id}.jpg",
                    "embedding": self.vectors[id],
                    "status": SUCCESS if good else FAILED,
                    "error_code": None if good else "fetch_failed",
                    "embedded_at": datetime(2026, 11, 30, tzinfo=UTC) if good else None,
                    "model": SPEC.tag,
                }
            )
        kept = [pa.field("title", pa.string())]
        self.folder.write(number, pa.Table.from_pylist(rows, schema=schema(kept, provenance(SPEC))))
        write_json(self.folder.stats(number), {})

    def query(self) -> NDArray[np.float32]:
        """Of 007, as in the examples."""
        query = self.vectors["007"]
        assert query is not None
        return query

    def nearest(self) -> list[str]:
        """By numpy, in float64: the ten nearest to 007."""
        found = {id: vector.astype(float) for id, vector in self.vectors.items() if vector is not None}
        cosines = np.array(list(found.values())) @ found["007"]
        order = np.argsort(-cosines)
        assert np.all(-np.diff(cosines[order[:11]]) > 1e-4)  # a thousand times float32's rounding
        return [list(found)[row] for row in order[:10]]


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    return Catalogue(tmp_path_factory.mktemp("catalogue"))


def run(code: str, catalogue: Catalogue, folder: Path) -> list[str]:
    """The lines that `code` prints, in `folder`, where the catalogue is `vectors`."""
    (folder / "vectors").symlink_to(catalogue.folder.path)
    environ = {
        **plain_environ(),
        "HOME": str(folder),
        "DO_NOT_TRACK": "true",  # Daft's
        "ANONYMIZED_TELEMETRY": "False",  # Chroma's
    }
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def python(title: str) -> str:
    code: str
    (code,) = (code for language, code in EXAMPLES[title] if language == "python")
    return code


BEFORE = python("With pyarrow") + python("Exact search")
"""What a store's example goes on after."""


@pytest.mark.parametrize("reader", READERS)
def test_each_reader_finds_what_numpy_finds(catalogue: Catalogue, tmp_path: Path, reader: str) -> None:
    code = python(f"With {reader}") + python("Exact search") + "print(vectors.dtype, vectors.shape, ids)"
    nearest, read = run(code, catalogue, tmp_path)
    assert literal_eval(nearest) == catalogue.nearest()
    good = [id for id, vector in catalogue.vectors.items() if vector is not None]
    assert read == f"float32 ({len(good)}, 512) {good}"


@pytest.mark.parametrize("store", STORES)
def test_each_store_finds_what_numpy_finds(catalogue: Catalogue, tmp_path: Path, store: str) -> None:
    exact, found = run(BEFORE + python(store), catalogue, tmp_path)
    assert literal_eval(found) == literal_eval(exact) == catalogue.nearest()


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of pgserver's PostgreSQL, which has pgvector, on a socket in a folder of the tests' own.

    PostgreSQL refuses to run as root. As root, pgserver would add a user to the machine and open all folders above
    its data and its package for that user. In a user namespace root has another number, and keeps its own files.
    """
    folder = tmp_path_factory.mktemp("postgres")
    data = folder / "data"
    package = find_spec("pgserver")  # importing it makes folders in /run
    assert package is not None
    assert package.origin is not None
    programs = Path(package.origin).parent / "pginstall" / "bin"
    prefix = ["unshare", "--user", "--map-user=1000", "--map-group=1000"] if os.geteuid() == 0 else []
    if prefix and (
        not shutil.which("unshare") or subprocess.run([*prefix, "true"], capture_output=True).returncode
    ):
        pytest.skip("as root, PostgreSQL needs user namespaces")
    control = [*prefix, str(programs / "pg_ctl"), "-w", "-s", "-D", str(data)]
    make = [*prefix, str(programs / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "--no-sync"]
    subprocess.run([*make, "-E", "UTF8", "--no-locale"], check=True, stdout=subprocess.DEVNULL)
    options = f"-k '{folder}' -c listen_addresses=''"
    subprocess.run([*control, "-l", str(folder / "log"), "-o", options, "start"], check=True)
    yield f"postgresql://postgres@/postgres?host={folder}"
    subprocess.run([*control, "-m", "immediate", "stop"], check=True)


def test_pgvector_finds_what_numpy_finds_by_its_index_too(
    catalogue: Catalogue, tmp_path: Path, postgres: str
) -> None:
    code = python("pgvector").replace("postgresql://postgres@localhost/postgres", postgres)
    exact, found = run(BEFORE + code, catalogue, tmp_path)
    assert literal_eval(found) == literal_eval(exact) == catalogue.nearest()
    nearest = "SELECT id FROM pictures ORDER BY embedding <=> %s::vector LIMIT 100"
    query = [str(catalogue.query().tolist())]
    with psycopg.connect(postgres) as db:
        assert "Seq Scan on pictures" in str(db.execute(f"EXPLAIN {nearest}", query).fetchall())
        db.execute("SET enable_seqscan = off")
        assert "Index Scan using pictures_embedding_idx" in str(
            db.execute(f"EXPLAIN {nearest}", query).fetchall()
        )
        by_index = [id for (id,) in db.execute(nearest, query).fetchall()]
    assert by_index[:10] == catalogue.nearest()
    assert len(by_index) == 40  # hnsw.ef_search, of the 100 that were asked for


def test_ids_stay_text_and_failures_null(catalogue: Catalogue) -> None:
    parts = [catalogue.folder.read(number) for number in catalogue.folder.done()]
    assert [part.num_rows for part in parts] == [200, 200, 140]
    table = pa.concat_tables(parts)
    assert table["id"].to_pylist() == list(catalogue.vectors)
    assert table["title"][7].as_py() == "Picture 007"
    for row in table.select(["id", "embedding", "status", "error_code"]).to_pylist():
        vector = catalogue.vectors[row["id"]]
        if vector is None:
            assert (row["embedding"], row["status"], row["error_code"]) == (None, "failed", "fetch_failed")
        else:
            assert row["embedding"] == vector.tolist()
            assert (row["status"], row["error_code"]) == ("success", None)
    assert table["embedding"].null_count == len(catalogue.vectors) - 520


def test_each_part_says_what_its_vectors_are_of(catalogue: Catalogue, tmp_path: Path) -> None:
    named = re.search(r"^The others are .*$", PAGE, re.MULTILINE)
    assert named is not None
    others = re.findall(r"`(?:embedder)?(\.\w+)`", named[0])
    names = {"embedder.fingerprint", "embedder.model", *(f"embedder{name}" for name in others)}
    for number in catalogue.folder.done():
        metadata = pq.read_schema(catalogue.folder.part(number)).metadata
        assert metadata[b"embedder.fingerprint"].decode() == SPEC.fingerprint
        assert {name.decode() for name in metadata} == names
    assert run(python("The columns"), catalogue, tmp_path) == [f"{SPEC.fingerprint} {SPEC.tag}"]


def test_the_table_of_columns_is_the_schema() -> None:
    rows = re.findall(r"^\| (`.*?`) \| `(.*?)` \| (.*?) \|", SECTIONS["The columns"], re.MULTILINE)
    told = [
        (name, kind, null == "never") for names, kind, null in rows for name in re.findall(r"`(\w+)`", names)
    ]
    kinds = {pa.list_(pa.float32()): "list<float32>"}
    assert told == [
        (field.name, kinds.get(field.type, str(field.type)), not field.nullable) for field in RESULTS
    ]


def test_the_versions_are_those_that_run_here() -> None:
    told = re.findall(r"([a-z][\w-]*)(?:\[\w+\])?==([\d.]+)", PAGE)
    assert len(set(told)) == 15
    assert set(told) == {(name, version(name)) for name, _ in told}


class Recorder(BaseHTTPRequestHandler):
    """Answers 200 to everything, and keeps what came in its server's `requests`."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        lines = body.splitlines() if "ndjson" in self.headers["Content-Type"] else [body]
        self.server.requests.append((self.command, self.path, *map(json.loads, lines)))  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    do_POST = do_PUT = _answer

    def log_message(self, format: str, *args: object) -> None:
        pass


def requests_of(title: str, catalogue: Catalogue, folder: Path) -> list[tuple[Any, ...]]:  # Any: JSON
    """What the section's commands send, as method, path and JSON of the lines.

    They were not run against the store: this says that they are whole, and what is in them.
    """
    files = "".join(code for language, code in EXAMPLES[title] if language == "python")
    files = files or python("OpenSearch")  # Elasticsearch's are the same
    run(BEFORE + files, catalogue, folder)
    (commands,) = (code for language, code in EXAMPLES[title] if language == "sh")
    numbers = ", ".join(map(repr, catalogue.query().tolist()))
    commands = commands.replace("0.0508, 0.0429, ...", numbers)
    with ThreadingHTTPServer(("127.0.0.1", 0), Recorder) as server:
        server.requests = []  # type: ignore[attr-defined]
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            commands = re.sub(r"http://localhost:\d+", f"http://127.0.0.1:{server.server_port}", commands)
            subprocess.run(["bash", "-euc", commands], cwd=folder, env=plain_environ(), check=True)
        finally:
            server.shutdown()
            thread.join()
    return list(server.requests)  # type: ignore[attr-defined]


def good(catalogue: Catalogue) -> dict[str, list[float]]:
    return {id: vector.tolist() for id, vector in catalogue.vectors.items() if vector is not None}


def test_weaviates_requests_are_whole(catalogue: Catalogue, tmp_path: Path) -> None:
    made, filled, asked = requests_of("Weaviate", catalogue, tmp_path)
    assert made[:2] == ("POST", "/v1/schema")
    assert made[2]["vectorIndexConfig"] == {"distance": "cosine"}
    assert filled[:2] == ("POST", "/v1/batch/objects")
    objects = filled[2]["objects"]
    assert {each["properties"]["sku"]: each["vector"] for each in objects} == good(catalogue)
    assert {each["id"] for each in objects} == {str(uuid5(NAMESPACE_URL, id)) for id in good(catalogue)}
    assert asked[:2] == ("POST", "/v1/graphql")
    numbers = re.search(r"nearVector: \{vector: (\[.*?\])\}", asked[2]["query"])
    assert numbers is not None
    assert json.loads(numbers[1]) == catalogue.query().tolist()


@pytest.mark.parametrize("store", ["OpenSearch", "Elasticsearch"])
def test_bulk_requests_are_whole(catalogue: Catalogue, tmp_path: Path, store: str) -> None:
    made, filled, asked = requests_of(store, catalogue, tmp_path)
    assert made[:2] == ("PUT", "/pictures")
    (field,) = made[2]["mappings"]["properties"]
    assert filled[:2] == ("POST", "/pictures/_bulk")
    ids = [action["index"]["_id"] for action in filled[2::2]]
    assert dict(zip(ids, (row[field] for row in filled[3::2]), strict=True)) == good(catalogue)
    assert asked[:2] == ("POST", "/pictures/_search")
    if store == "OpenSearch":
        assert asked[2]["query"]["knn"][field]["vector"] == catalogue.query().tolist()
    else:
        assert asked[2]["knn"]["field"] == field
        assert asked[2]["knn"]["query_vector"] == catalogue.query().tolist()


def test_every_example_is_run() -> None:
    run_here = {"The columns", "Exact search", "pgvector", *STORES, *(f"With {reader}" for reader in READERS)}
    assert EXAMPLES.keys() == run_here | set(NOT_RUN)
    assert all([language for language, _ in EXAMPLES[title]] == ["python"] for title in run_here)
    # Spark's has no language, because it is a line of a program that has `spark` already.
    assert PAGE.count("```") == 2 * sum(map(len, EXAMPLES.values())) + 2
    not_run = {title for title, text in SECTIONS.items() if "Not run here" in text}
    assert not_run == {*NOT_RUN, "With Spark"}
