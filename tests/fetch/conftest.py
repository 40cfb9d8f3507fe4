"""What the tests of downloads share."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from embedder.metrics.measures import Metrics
from tests.answers import CAT, DOG
from tests.fetch.certificates import Certificates, make_certificates
from tests.origin import Origin


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def origin() -> Iterator[Origin]:
    with Origin() as origin:
        origin.serve("/cat.jpg", CAT)
        origin.serve("/dog.png", DOG)
        yield origin


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture(autouse=True)
def _nothing_is_logged_above_debug(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [r.getMessage() for r in caplog.get_records("call") if r.levelno > logging.DEBUG] == []
