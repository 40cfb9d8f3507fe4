"""How much memory there is, and how much of it the process may map."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.server import ROOT

# What a process may map

TRIES = """
import mmap, resource, sys
from embedder.runtime.memory import mappable_bytes

for limit, gigabytes in zip(sys.argv[1::2], sys.argv[2::2]):
    bytes = int(float(gigabytes) * 1e9)
    resource.setrlimit(getattr(resource, limit), (bytes, bytes))
left = mappable_bytes()
print(left)
for share in (0.95, 1.05):
    try:
        mmap.mmap(-1, int(share * left), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as error:
        print(error.strerror)
    else:
        print("mapped")
"""


@pytest.mark.parametrize(
    "limits",
    [
        ("RLIMIT_AS", "2"),
        ("RLIMIT_DATA", "2"),
        ("RLIMIT_AS", "2", "RLIMIT_DATA", "1"),
        ("RLIMIT_AS", "1", "RLIMIT_DATA", "2"),
    ],
)
def test_what_may_be_mapped_can_be_and_more_can_not(limits: tuple[str, ...]) -> None:
    left, *tried = run(TRIES, *limits)
    assert tried == ["mapped", "Cannot allocate memory"]
    assert 0 < int(left) < min(map(int, limits[1::2])) * 10**9


def test_what_is_mapped_already_does_not_count() -> None:
    program = """
import mmap, resource
from embedder.runtime.memory import mappable_bytes

resource.setrlimit(resource.RLIMIT_AS, (4 * 10**9, 4 * 10**9))
before = mappable_bytes()
held = mmap.mmap(-1, 10**9, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # and never touched
print(before - mappable_bytes())
"""
    (difference,) = run(program)
    assert int(difference) == pytest.approx(10**9, rel=0.01)


def test_more_than_is_allowed_being_mapped_leaves_nothing() -> None:
    program = """
import resource
from embedder.runtime.memory import mappable_bytes

resource.setrlimit(resource.RLIMIT_AS, (1, 1))
print(mappable_bytes())
"""
    assert run(program) == ["0"]


def test_without_a_limit_there_is_no_number() -> None:
    assert run("from embedder.runtime.memory import mappable_bytes; print(mappable_bytes())") == ["None"]


def run(program: str, *arguments: str) -> list[str]:
    """The lines that `program` prints, in a process of its own: a limit can't be taken back."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()
