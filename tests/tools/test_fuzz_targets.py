"""What `make fuzz` begins with, so that its targets are known to work where the fuzzer is not installed."""

from __future__ import annotations

import pytest

from tests.tools.fuzz_targets import TARGETS, Target


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_every_seed_passes(target: Target) -> None:
    for seed in target.seeds.values():
        assert len(seed) <= target.max_bytes
        target.run(seed)
        target.run(seed[: len(seed) // 2])
    target.run(b"")
    target.run(bytes(range(256)))


def test_the_time_is_shared_out() -> None:
    assert sum(target.share for target in TARGETS.values()) == pytest.approx(1)
