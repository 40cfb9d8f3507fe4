"""Pixels → embeddings: whatever goes together, whoever else computes, on however many threads."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embedder.model.encoder import Encoder
from embedder.model.spec import SAVED_AS
from tests.networks import network, spec


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (17, 224, 224, 3), np.uint8)


@pytest.fixture(scope="module", params=["fp32", "bf16", "int8"])
def precision(request: pytest.FixtureRequest) -> str:
    """Processors without bf16 compute it in fp32: what is tested here is the same."""
    return str(request.param)


@pytest.fixture(scope="module")
def onnx_file(store: Path, precision: str) -> Path:
    (file,) = store.glob(f"models/resnet18/*/{SAVED_AS.get(precision, precision)}.onnx")
    return file


@pytest.fixture(scope="module")
def encoder(onnx_file: Path, precision: str) -> Encoder:
    encoder = Encoder(replace(spec(), precision=precision), threads=1, threads_alone=2, batches=2)
    encoder.load(onnx_file)
    return encoder


@pytest.fixture(scope="module")
def atol(precision: str) -> float:
    """Of a number of an embedding, which is 0.04 on average. bf16 has 8 bits."""
    return 1e-3 if precision == "bf16" else 1e-6


@pytest.fixture(scope="module")
def one_by_one(encoder: Encoder, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.concatenate([encoder.encode(row[np.newaxis]) for row in pixels])


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 16, 17])
def test_each_row_is_the_same_in_any_batch(
    encoder: Encoder, pixels: NDArray[np.uint8], one_by_one: NDArray[np.float32], rows: int, atol: float
) -> None:
    embeddings = encoder.encode(pixels[:rows])
    assert embeddings.shape == (rows, 512)
    assert embeddings.dtype == np.float32
    np.testing.assert_allclose(embeddings, one_by_one[:rows], atol=atol)


def test_no_rows_give_no_embeddings(encoder: Encoder, pixels: NDArray[np.uint8]) -> None:
    assert encoder.encode(pixels[:0]).shape == (0, 512)


def test_an_image_that_is_alone_gets_the_same_embedding(
    encoder: Encoder, pixels: NDArray[np.uint8], one_by_one: NDArray[np.float32], atol: float
) -> None:
    np.testing.assert_allclose(encoder.encode(pixels[:1], alone=True), one_by_one[:1], atol=atol)


def test_threads_side_by_side_do_not_disturb_each_other(
    encoder: Encoder, pixels: NDArray[np.uint8], one_by_one: NDArray[np.float32], atol: float
) -> None:
    with ThreadPoolExecutor(4) as threads:
        results = threads.map(
            lambda row: encoder.encode(row[np.newaxis], alone=row[0, 0, 0] % 2 == 0), pixels
        )
        np.testing.assert_allclose(np.concatenate(list(results)), one_by_one, atol=atol)


def test_a_failure_makes_it_unhealthy_until_it_works_again(
    encoder: Encoder, pixels: NDArray[np.uint8]
) -> None:
    with pytest.raises(Exception, match=r"INVALID_ARGUMENT|shape"):
        encoder.encode(pixels[:, :100])
    assert not encoder.healthy
    encoder.encode(pixels[:1])
    assert encoder.healthy


# Prints what became of 8 rows and of 1, with each time a little more that may be mapped: in a process of its
# own, since all of it has the limit.
_WITH_LITTLE_MEMORY = """
import os, resource, sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
import numpy as np
from embedder.model.encoder import Encoder
from tests.networks import spec

encoder = Encoder(replace(spec(), precision=sys.argv[2]), threads=1, threads_alone=1)
encoder.load(Path(sys.argv[1]))
pixels = np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), np.uint8)
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
became = Counter()
for more in range(0, 60_000_000, 5_000_000):
    resource.setrlimit(resource.RLIMIT_AS, (mapped + more, resource.RLIM_INFINITY))
    for rows in (8, 1):
        try:
            encoder.encode(pixels[:rows])
            became["encoded"] += 1
        except Exception as error:
            became[type(error).__name__ if encoder.healthy else "unhealthy"] += 1
print(dict(became))
"""


def test_too_little_memory_is_no_failure_of_the_network(onnx_file: Path, precision: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WITH_LITTLE_MEMORY, str(onnx_file), precision],
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    became = ast.literal_eval(done.stdout)
    # OpenVINO takes none after it has loaded the network.
    assert became.keys() == ({"encoded"} if precision == "bf16" else {"encoded", "MemoryError"})
    assert sum(became.values()) == 2 * 12


def test_a_file_that_is_missing_or_damaged_is_an_error(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"no network")
    for path in (damaged, tmp_path / "missing.onnx"):
        with pytest.raises(Exception, match=r"(?i)load model"):
            Encoder(spec(), threads=1, threads_alone=1).load(path)


def test_a_network_that_gives_or_takes_something_else_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "tiny.onnx"
    file.write_bytes(network(dimension=7, crop=64))
    Encoder(spec(7, resize=72, crop=64), threads=1, threads_alone=1).load(file)
    with pytest.raises(ValueError, match=r"gives \(1, 7\) for an image, not \(1, 8\)"):
        Encoder(spec(8, resize=72, crop=64), threads=1, threads_alone=1).load(file)
    with pytest.raises(Exception, match=r"INVALID_ARGUMENT|shape"):
        Encoder(spec(7, resize=72, crop=72), threads=1, threads_alone=1).load(file)
