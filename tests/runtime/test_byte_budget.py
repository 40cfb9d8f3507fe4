"""Bytes of bodies and downloads: counted as they arrive, and given back however the work ends."""

from __future__ import annotations

import pytest

from embedder.errors import Overloaded
from embedder.runtime.byte_budget import ByteBudget


def test_bytes_up_to_the_limit_are_held_and_one_more_is_refused() -> None:
    budget = ByteBudget(100)
    with budget.lease() as one, budget.lease() as other:
        one.add(60)
        other.add(40)
        with pytest.raises(Overloaded, match=r"hold 0\.0001 MB and the limit is 0\.0001 MB"):
            other.add(1)
        assert budget.total_bytes == 100


def test_bytes_come_back_however_the_work_ends() -> None:
    budget = ByteBudget(100)
    with budget.lease() as lease:
        lease.add(30)
    with budget.lease() as lease:
        lease.add(50)
        with pytest.raises(Overloaded):
            lease.add(51)
    assert budget.total_bytes == 0
