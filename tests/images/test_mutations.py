"""Damaged images, thousands of them: pixels or a documented error, never anything else."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from embedder.images import decoders
from tests import pictures
from tests.images import mutations
from tests.images.mutations import COMBINATIONS, format_of, mutated
from tests.images.test_decoders import outcome, started, status
from tests.server import ROOT, Server, plain_environ

ROUNDS = 22
COUNT = ROUNDS * COMBINATIONS
MAX_GROWTH_KB = 30_000  # malloc keeps 16 MB at most for later
DOCUMENTED = {"unsupported_format", "too_many_pixels", "bad_image"}


def test_there_are_10_000_of_them_and_of_every_sample_and_kind_as_many() -> None:
    assert COUNT >= 10_000
    counts = Counter((one.sample, one.kind) for one in map(mutated, range(2 * COMBINATIONS)))
    assert counts.keys() == {(sample, kind) for sample in pictures.samples() for kind in mutations.KINDS}
    assert set(counts.values()) == {2}


def test_each_kind_of_damage_changes_most_files() -> None:
    same = Counter(
        one.kind for one in map(mutated, range(COMBINATIONS)) if one.data == pictures.samples()[one.sample]
    )
    assert all(count < len(pictures.samples()) / 3 for count in same.values()), same


def test_a_number_gives_the_same_file_in_every_process(tmp_path: Path) -> None:
    number = 5 * COMBINATIONS + 123
    command = [sys.executable, "-m", "tests.images.mutations", str(number), "--save", str(tmp_path / "file")]
    subprocess.run(command, cwd=ROOT, env=plain_environ(), check=True)
    saved = hashlib.sha256((tmp_path / "file").read_bytes())
    assert saved.hexdigest() == hashlib.sha256(mutated(number).data).hexdigest()


@pytest.mark.anyio
@pytest.mark.parametrize("part", range(4))
async def test_they_give_pixels_or_a_documented_error_and_cost_no_child_its_life(part: int) -> None:
    registry = CollectorRegistry()
    outcomes: Counter[str] = Counter()
    async with started(program=decoders.PROGRAM, registry=registry) as made:
        before: dict[int, int] = {}
        for first in range(part, COUNT, 4 * 64):
            batch = [mutated(number) for number in range(first, min(first + 4 * 64, COUNT), 4)]
            for one, said in zip(
                batch, await asyncio.gather(*(outcome(made, one.data) for one in batch)), strict=True
            ):
                code = said.partition(":")[0]
                assert code in DOCUMENTED or code.isupper(), f"{one}: {said}"
                assert "ended the process" not in said, f"{one}: {said}"
                outcomes[
                    f"{format_of(pictures.samples()[one.sample])} {'pixels' if code.isupper() else code}"
                ] += 1
            before = before or {process: int(status(process, "VmRSS")) for process in made.process_ids}
        assert set(made.process_ids) == set(before)
        assert all(int(status(process, "VmRSS")) < MAX_GROWTH_KB + rss for process, rss in before.items())
    # Damage that nothing survives, or that everything does, would prove nothing.
    for format in ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF", "ICO"):
        for kind in ("pixels", "bad_image"):
            assert outcomes.get(f"{format} {kind}", 0) >= 10, outcomes


def test_the_service_answers_each_of_hundreds_and_its_workers_live(server: Server) -> None:
    workers = server.workers()
    outcomes: Counter[str] = Counter()
    step = len(pictures.samples())
    for first in range(COUNT, COUNT + 2 * COMBINATIONS, step):
        batch = [mutated(number) for number in range(first, first + step)]
        urls = [pictures.data_url(one.data, "") for one in batch]
        answer = server.post("/embed_batch", {"urls": urls})
        assert answer.status_code == 200, f"{batch[0]} to {batch[-1]}: {answer.text[:500]}"
        errors = {error["index"]: error["code"] for error in answer.json()["errors"]}
        for index, (one, embedding) in enumerate(zip(batch, answer.json()["embeddings"], strict=True)):
            outcomes[errors.get(index, "embedding")] += 1
            if index in errors:
                assert errors[index] in DOCUMENTED, str(one)
                assert embedding is None, str(one)
            else:
                assert np.shape(embedding) == (512,), str(one)
                assert np.linalg.norm(embedding) == pytest.approx(1, abs=1e-5), str(one)
    assert outcomes["embedding"] >= 50
    assert outcomes["bad_image"] >= 50
    assert workers
    assert server.workers() == workers
