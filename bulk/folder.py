"""The folder that a catalogue becomes: vectors in Parquet files, and what is said of them.

    DIR/
    ├── part-00000.parquet …   a row for each row of the catalogue, in its order; its columns are RESULTS
    ├── part-00000.json …      how many of them failed, by code. A part is done when this is there
    ├── _manifest.json         the catalogue, the model and the settings that all of them are of
    ├── errors.csv             the rows that failed
    └── summary.json           all parts together

The columns of the catalogue that are kept come first, then these. Names beginning with "_" and "." are the job's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bulk.files import read_json, replaced, write_json
from embedder import __version__
from embedder.model.spec import ModelSpec

MANIFEST = "_manifest.json"
ERRORS = "errors.csv"
SUMMARY = "summary.json"

SUCCESS, FAILED = "success", "failed"
"""The values of `status`, img2dataset's."""
PENDING = "pending"
"""The `status` of a row whose URL an earlier row has, until all parts are done."""

RESULTS: tuple[pa.Field, ...] = (
    pa.field("id", pa.string(), nullable=False),
    pa.field("url", pa.string()),
    # Not fixed_size_list: no pyarrow before 26 reads one with nulls from Parquet, nor pandas by it. On the disk it is
    # the same.
    pa.field("embedding", pa.list_(pa.float32())),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error_code", pa.string()),
    pa.field("error", pa.string()),
    pa.field("http_status", pa.int16()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("format", pa.string()),
    pa.field("bytes", pa.int64()),
    pa.field("sha256", pa.string()),
    pa.field("rendition", pa.bool_()),
    pa.field("duplicate_of", pa.string()),
    pa.field("embedded_at", pa.timestamp("us", tz="UTC")),
    pa.field("model", pa.string(), nullable=False),
)

ROW_GROUP = 4096  # 8 MB of vectors of 512: what readers take at once


def provenance(spec: ModelSpec) -> dict[str, str]:
    """What a part's metadata say of its vectors; vectors of two fingerprints must not be compared."""
    return {
        "embedder.model": spec.tag,
        "embedder.fingerprint": spec.fingerprint,
        "embedder.architecture": spec.architecture,
        "embedder.weights_sha256": spec.weights_sha256,
        "embedder.precision": spec.precision,
        "embedder.dimension": str(spec.dimension),
        "embedder.normalized": "true",
        "embedder.trained": str(spec.trained).lower(),
        "embedder.renditions": ",".join(spec.renditions),
        "embedder.version": __version__,
    }


def schema(kept: Sequence[pa.Field], said: Mapping[str, str]) -> pa.Schema:
    """Of a part: the catalogue's columns that are `kept`, and RESULTS. `said` becomes its metadata.

    A kept column that is called as one of RESULTS gets `_input` behind its name.
    """
    taken = {field.name for field in RESULTS} | {field.name for field in kept}
    fields = []
    for field in kept:
        name = field.name
        while name in {result.name for result in RESULTS} or (name != field.name and name in taken):
            name += "_input"
        taken.add(name)
        fields.append(field.with_name(name).with_metadata(None))
    return pa.schema([*fields, *RESULTS], metadata=dict(said))


@dataclass(frozen=True)
class PartStats:
    """What is said of a part that is done."""

    part: int
    rows: int
    success: int
    errors: dict[str, int]
    """How many failed, by code."""
    bytes: int
    """Of the files that were embedded."""

    @classmethod
    def of(cls, part: int, table: pa.Table) -> PartStats:
        codes = pc.value_counts(table["error_code"].drop_null()).to_pylist()
        return cls(
            part=part,
            rows=len(table),
            success=table["status"].to_pylist().count(SUCCESS),
            errors={
                code["values"]: code["counts"] for code in sorted(codes, key=lambda code: code["values"])
            },
            bytes=pc.sum(table["bytes"]).as_py() or 0,
        )


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def part(self, number: int) -> Path:
        return self.path / f"part-{number:05d}.parquet"

    def stats(self, number: int) -> Path:
        return self.path / f"part-{number:05d}.json"

    def has(self, number: int) -> bool:
        """Whether the part is whole."""
        return self.stats(number).exists() and self.part(number).exists()

    def done(self) -> list[int]:
        """The numbers of the parts that are whole."""
        numbers = []
        for file in self.path.glob("part-*.json"):
            found = re.fullmatch(r"part-([0-9]{5,})\.json", file.name)
            if found and self.part(int(found[1])).exists():
                numbers.append(int(found[1]))
        return sorted(numbers)

    def write(self, number: int, table: pa.Table) -> PartStats:
        """The part, and then what is said of it: with that it is done."""
        write_table(self.part(number), table)
        stats = PartStats.of(number, table)
        write_json(self.stats(number), vars(stats))
        return stats

    def read_stats(self, number: int) -> PartStats:
        return PartStats(**read_json(self.stats(number)))

    def read(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        return pq.read_table(self.part(number), columns=columns, partitioning=None)

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The number of its part, and a piece of it, for all that is done, in order. A few MB at once."""
        for number in self.done():
            with pq.ParquetFile(self.part(number)) as file:
                for batch in file.iter_batches(ROW_GROUP, columns=list(columns)):
                    yield number, batch


def write_table(path: Path, table: pa.Table) -> None:
    """Atomically. zstd; vectors without a dictionary, which costs time and saves nothing."""
    with replaced(path) as beside:
        pq.write_table(
            table,
            beside,
            compression="zstd",
            row_group_size=ROW_GROUP,
            use_dictionary=[field.name for field in table.schema if pa.types.is_string(field.type)],
        )
