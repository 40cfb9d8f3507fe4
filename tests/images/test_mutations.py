"""Damaged images, thousands of them: pixels or a documented error, never anything else."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests import pictures
from tests.images import mutations
from tests.images.mutations import COMBINATIONS, mutated
from tests.server import ROOT, Server, plain_environ

ROUNDS, CHILDREN = 40, 4
COUNT = ROUNDS * COMBINATIONS
FOR_EACH_CHILD = COUNT // CHILDREN
MAX_GROWTH_MB = 20.0
DOCUMENTED = {"unsupported_format", "too_many_pixels", "bad_image"}


def run_mutations(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`python -m tests.images.mutations` in a process of its own, where a warning is an error."""
    command = [sys.executable, "-W", "error", "-m", "tests.images.mutations", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=plain_environ(), capture_output=True, text=True)


def test_there_are_10_000_of_them_and_of_every_sample_and_kind_as_many() -> None:
    assert COUNT >= 10_000
    assert FOR_EACH_CHILD * CHILDREN == COUNT
    counts = Counter((one.sample, one.kind) for one in map(mutated, range(2 * COMBINATIONS)))
    assert counts.keys() == {(sample, kind) for sample in pictures.samples() for kind in mutations.KINDS}
    assert set(counts.values()) == {2}


def test_each_kind_of_damage_changes_most_files() -> None:
    same = Counter(
        one.kind for one in map(mutated, range(COMBINATIONS)) if one.data == pictures.samples()[one.sample]
    )
    assert all(count < len(pictures.samples()) / 3 for count in same.values()), same


@pytest.mark.parametrize("number", [0, 5 * COMBINATIONS + 123])
def test_a_number_gives_the_same_file_in_every_process(tmp_path: Path, number: int) -> None:
    run_mutations(str(number), "--save", tmp_path / "file")
    saved = hashlib.sha256((tmp_path / "file").read_bytes())
    assert saved.hexdigest() == hashlib.sha256(mutated(number).data).hexdigest()


# In processes of their own: one that crashes is a failed test that names the file, not the end of the tests.
@pytest.mark.parametrize("first", range(0, COUNT, FOR_EACH_CHILD))
def test_they_give_pixels_or_a_documented_error_and_leave_no_memory_behind(first: int) -> None:
    done = run_mutations(str(first), str(first + FOR_EACH_CHILD))
    *numbers, report = done.stdout.splitlines() or [""]
    if done.returncode:
        number = report.partition(":")[0]
        pytest.fail(
            f"the process ended with {done.returncode} at mutation {report}; "
            f"to see it again: python -m tests.images.mutations {number} --save {number}.image\n"
            f"{done.stderr[-5000:]}"
        )
    assert done.stderr == ""
    assert len(numbers) == FOR_EACH_CHILD
    found = json.loads(report)
    assert found["growth_mb"] < MAX_GROWTH_MB
    # Damage that nothing survives, or that everything does, would prove nothing.
    for format in ("JPEG", "PNG", "WEBP", "GIF"):
        for outcome in ("pixels", "BadImage"):
            assert found["outcomes"].get(f"{format} {outcome}", 0) >= 20, found["outcomes"]
    assert sum(found["outcomes"].values()) == FOR_EACH_CHILD


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
