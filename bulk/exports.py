"""What is made beside the parts, for tools that read something else."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bulk.errors import JobError
from bulk.files import replaced
from bulk.folder import SUCCESS, Folder


def _successes(folder: Folder) -> Iterator[pa.Table]:
    for number in folder.done():
        table = folder.read(number)
        yield table.filter(pc.equal(table["status"], SUCCESS))


def write_npy(folder: Folder, dimension: int) -> None:
    """clip-retrieval's layout: img_emb/img_emb_0.npy, float32 (rows, dimension), and metadata/metadata_0.parquet.

    Rows that have a vector, in order; `autofaiss build_index` and `clip-retrieval index` take the folder.
    """
    rows = sum(folder.read_stats(number).success for number in folder.done())
    files = folder.path / "img_emb" / "img_emb_0.npy", folder.path / "metadata" / "metadata_0.parquet"
    for file in files:
        file.parent.mkdir(exist_ok=True)
    with replaced(files[0]) as numbers, replaced(files[1]) as others:
        # `replaced` gives it a name that does not end with .npy.
        vectors = np.lib.format.open_memmap(numbers, "w+", np.float32, (rows, dimension))
        writer: pq.ParquetWriter | None = None
        first = 0
        for table in _successes(folder):
            flat = table["embedding"].combine_chunks().flatten().to_numpy()
            vectors[first : first + len(table)] = flat.reshape(-1, dimension)
            first += len(table)
            table = table.drop_columns(["embedding"])
            writer = writer or pq.ParquetWriter(others, table.schema, compression="zstd")
            writer.write_table(table)
        vectors.flush()
        if writer is not None:
            writer.close()


def write_lance(folder: Folder, dimension: int) -> None:
    """embeddings.lance: rows that have a vector, which is a fixed_size_list there."""
    try:
        import lance
    except ImportError as error:
        raise JobError("--format lance takes pylance: python scripts/setup.py lance") from error
    vector = pa.list_(pa.float32(), dimension)
    target, beside = folder.path / "embeddings.lance", folder.path / ".embeddings.lance.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    mode = "create"
    for table in _successes(folder):
        index = table.schema.get_field_index("embedding")
        lance.write_dataset(
            table.set_column(index, "embedding", table["embedding"].cast(vector)), str(beside), mode=mode
        )
        mode = "append"
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)


EXPORTS: dict[str, Callable[[Folder, int], None]] = {"npy": write_npy, "lance": write_lance}
"""Takes the folder, and how many numbers a vector has."""
