"""The store that BentoML reads in this process, which it looks up when it is asked for it first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def read_from(store: Path) -> Iterator[None]:
    from bentoml._internal.configuration.containers import BentoMLContainer

    before = BentoMLContainer.bentoml_home.get()
    BentoMLContainer.bentoml_home.set(str(store))
    try:
        yield
    finally:
        BentoMLContainer.bentoml_home.set(before)
