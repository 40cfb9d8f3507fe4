"""The processes that decode: what a file can't do there, what becomes of it, and whose turn it is."""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry

from embedder.errors import EmbedderError, Overloaded, StartError, TooManyPixels, UnsupportedFormat
from embedder.images import decoders
from embedder.images.decoders import Decoders, File, Room
from embedder.images.formats import ON, Format, named
from embedder.metrics.measures import Metrics
from embedder.model.spec import Preprocessing
from tests import pictures
from tests.images.hostile_child import ordered
from tests.images.reference import assert_close, pixels_of, recipe
from tests.pictures import encoded
from tests.server import ROOT

pytestmark = pytest.mark.anyio

HOSTILE = "from tests.images.hostile_child import main"


@asynccontextmanager
async def started(
    *,
    count: int = 2,
    memory_bytes: int = 1_200_000_000,
    timeout_s: float = 60,
    program: str = HOSTILE,
    formats: Collection[Format] = ON,
    registry: CollectorRegistry | None = None,
) -> AsyncIterator[Decoders]:
    made = Decoders(
        Preprocessing(256, 224),
        room=Room(count, memory_bytes, timeout_s, max_pixels=50_000_000),
        formats=formats,
        max_file_bytes=20_000_000,
        metrics=Metrics(registry),
        program=program,
    )
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def outcome(made: Decoders, file: bytes) -> str:
    try:
        return (await made.decode(File(file))).format
    except EmbedderError as error:
        return f"{error.code}: {error}"


async def all_there(made: Decoders) -> None:
    """Returns when there are as many children as there ought to be."""
    async with asyncio.timeout(60):
        while len(made.process_ids) < made.room.count:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)


def status(process: int, name: str) -> str:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{name}:"))


@pytest.mark.parametrize("name", pictures.samples())
async def test_a_child_decodes_as_this_process_does(name: str) -> None:
    async with started(count=1, program=decoders.PROGRAM) as made:
        found = await made.decode(File(pictures.samples()[name]))
    assert np.array_equal(found.pixels, pixels_of(pictures.samples()[name]))
    assert (found.width, found.height) == ((64, 64) if name == "jpeg_ycck" else (96, 96))


ENCODED = """
import sys
from tests.pictures import encoded, photo
if sys.argv[1] == "HEIC":
    import pillow_heif
    pillow_heif.register_heif_opener()
    file = encoded(photo(300, 260), "HEIF", quality=-1, chroma=444)
else:
    import pillow_jxl
    file = encoded(photo(300, 260), "JXL", lossless=True)
sys.stdout.buffer.write(file)
"""


@pytest.mark.parametrize("name", ["HEIC", "JXL"])
async def test_formats_of_other_packages_are_decoded_where_they_are_on(name: str, photo: bytes) -> None:
    # In another process, because these packages change what Pillow's `open` knows.
    command = [sys.executable, "-W", "ignore", "-c", ENCODED, name]
    file = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout  # noqa: ASYNC221
    async with started(program=decoders.PROGRAM, formats=named([name, "JPEG"])) as made:
        found = await made.decode(File(file))
        assert (found.format, found.width, found.height) == (name, 300, 260)
        assert_close(found.pixels, recipe(pictures.photo(300, 260)), mean=0.6)
        assert (
            await outcome(made, file[: len(file) // 2])
            == f"bad_image: the {name} can't be decoded: damaged or cut short"
        )
        assert await outcome(made, photo) == "JPEG"
    async with started(program=decoders.PROGRAM) as made:
        assert (await outcome(made, file)).startswith(
            f"unsupported_format: this is a {name} file; taken are JPEG,"
        )


async def test_a_child_has_nothing_to_lose() -> None:
    os.environ["A_SECRET"] = "secret"  # noqa: S105
    try:
        async with started(program=decoders.PROGRAM) as made:
            for process in made.process_ids:
                place = Path(f"/proc/{process}")
                assert place.joinpath("environ").read_bytes() == b""
                assert os.readlink(place / "cwd") == "/"
                # The socket, the memory that is shared, and /dev/null.
                kinds = sorted(os.readlink(each).partition(":")[0] for each in place.joinpath("fd").iterdir())
                assert kinds == ["/dev/null", "/memfd", "socket"]
                limits = place.joinpath("limits").read_text()
                for limit in ("Max core file size", "Max file size", "Max open files", "Max processes"):
                    line = next(line for line in limits.splitlines() if line.startswith(limit))
                    assert line.removeprefix(limit).split()[:2] == ["0", "0"]
                assert int(status(process, "VmRSS")) < 40_000
                assert status(process, "NoNewPrivs") == "1"
                if platform.machine() in ("x86_64", "aarch64"):
                    assert status(process, "Seccomp") == "2"
    finally:
        del os.environ["A_SECRET"]


FORBIDDEN = (
    *("fork", "exec", "start a thread", "open a file", "write a file", "list a folder"),
    *("open a socket", "connect a pair", "kill its parent", "copy a descriptor"),
)


@pytest.mark.parametrize("action", FORBIDDEN)
async def test_a_codec_can_do_nothing_but_decode(action: str, photo: bytes) -> None:
    async with started() as made:
        before = made.process_ids
        said = await outcome(made, ordered(action))
        assert said in {
            f"bad_image: {action}: {error}" for error in ("PermissionError", "OSError", "RuntimeError")
        }
        assert await outcome(made, photo) == "JPEG"
        assert made.process_ids == before


@pytest.mark.parametrize(
    ("action", "says"),
    [
        ("crash", "decoding the image ended the process that did it"),
        ("exit", "decoding the image ended the process that did it"),
        ("answer nonsense", "decoding the image ended the process that did it"),
        ("answer half", "decoding the image ended the process that did it"),
        ("answer a list", "decoding the image ended the process that did it"),
        ("answer a huge size", "decoding the image ended the process that did it"),
        ("loop", "decoding the image took longer than 0.5 s"),
        ("wait", "decoding the image took longer than 0.5 s"),
        ("take all memory", "decoding the image takes more than 900 MB of memory"),
        ("recurse", "recurse: RecursionError"),
    ],
)
async def test_what_a_codec_does_costs_its_picture_and_no_other(action: str, says: str, photo: bytes) -> None:
    async with started(timeout_s=0.5 if "longer" in says else 60) as made:
        files = [photo, ordered(action), photo, photo, photo]
        said = await asyncio.gather(*(outcome(made, file) for file in files))
        assert said == ["JPEG", f"bad_image: {says}", "JPEG", "JPEG", "JPEG"]
        await all_there(made)
        assert await outcome(made, photo) == "JPEG"


async def test_a_small_picture_that_costs_seconds_is_stopped_long_before_the_time_is_up(photo: bytes) -> None:
    async with started(count=1) as made:
        said = await outcome(made, ordered("loop"))
        assert said == "bad_image: decoding the image took longer than 3 s of processor time"
        await all_there(made)
        assert await outcome(made, photo) == "JPEG"


async def test_twenty_in_a_row_cost_nobody_else_anything(photo: bytes) -> None:
    registry = CollectorRegistry()
    async with started(registry=registry) as made:

        async def attack() -> list[str]:
            return [await outcome(made, ordered("crash")) for _ in range(20)]

        attacked = asyncio.create_task(attack())
        others = 0
        while not attacked.done():
            assert await outcome(made, photo) == "JPEG"
            others += 1
        assert {said.partition(":")[0] for said in await attacked} == {"bad_image"}
        assert others
        assert registry.get_sample_value("embedder_decoders_lost_total", {"cause": "death"}) == 20
        await all_there(made)


async def test_killing_every_child_fails_the_pictures_they_hold_and_no_other(photo: bytes) -> None:
    async with started() as made:
        held = [asyncio.create_task(outcome(made, ordered("wait"))) for _ in range(2)]
        waiting = [asyncio.create_task(outcome(made, photo)) for _ in range(20)]
        await asyncio.sleep(0)
        before = made.process_ids
        for process in before:
            os.kill(process, signal.SIGKILL)
        assert set(await asyncio.gather(*held)) == {
            "bad_image: decoding the image ended the process that did it"
        }
        assert set(await asyncio.gather(*waiting)) == {"JPEG"}
        await all_there(made)
        assert not set(before) & set(made.process_ids)


async def test_a_child_that_dies_idle_is_replaced(photo: bytes) -> None:
    async with started() as made:
        before = made.process_ids
        for process in before:
            os.kill(process, signal.SIGKILL)
        async with asyncio.timeout(60):
            while set(before) & set(made.process_ids):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
        await all_there(made)
        assert await outcome(made, photo) == "JPEG"


LARGE = 6_000
"""The side of a picture that is large where decoding may take 1.2 GB."""


async def test_small_pictures_go_past_large_ones(photo: bytes) -> None:
    async with started() as made:
        large = [asyncio.create_task(outcome(made, ordered("wait", side=LARGE))) for _ in range(3)]
        await asyncio.sleep(0)
        assert [await outcome(made, photo) for _ in range(5)] == ["JPEG"] * 5
        assert not any(task.done() for task in large)
        (holder,) = [child for child in made._children if child.turn is not None]
        os.kill(holder.process.pid, signal.SIGKILL)
        done, left = await asyncio.wait(large, return_when=asyncio.FIRST_COMPLETED)
        assert (len(done), len(left)) == (1, 2)
        assert await outcome(made, photo) == "JPEG"
        for task in left:
            task.cancel()


async def test_where_there_is_one_child_small_and_large_pictures_take_turns() -> None:
    async with started(count=1) as made:
        order: list[str] = []

        async def note(name: str, file: bytes) -> None:
            await outcome(made, file)
            order.append(name)

        large, small = encoded(Image.new("L", (8_000, 6_250)), "PNG"), pictures.samples()["png"]
        room = Room(1, 900_000_000, 60, 50_000_000)
        assert room.is_large(8_000 * 6_250)
        made.room = room
        await asyncio.gather(
            *(note(f"large {n}", large) for n in range(2)), *(note(f"small {n}", small) for n in range(2))
        )
    assert order == ["large 0", "small 0", "large 1", "small 1"]


async def test_too_many_large_pictures_are_refused_at_once() -> None:
    async with started() as made:
        large = [
            asyncio.create_task(outcome(made, ordered("wait", side=LARGE)))
            for _ in range(1 + decoders.MAX_LARGE_WAITING)
        ]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded, match=f"{decoders.MAX_LARGE_WAITING} large images wait"):
            await made.decode(File(ordered("wait", side=LARGE)))
        for task in large:
            task.cancel()


async def test_a_picture_that_is_given_up_is_not_decoded_and_not_kept(photo: bytes) -> None:
    async with started(count=1) as made:
        held = asyncio.create_task(outcome(made, ordered("wait")))
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(outcome(made, photo)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[1].cancel()
        os.kill(made.process_ids[0], signal.SIGKILL)
        assert (await held).startswith("bad_image")
        assert [await task for task in (waiting[0], waiting[2])] == ["JPEG"] * 2
        assert made.process_ids


async def test_memory_that_is_too_little_for_a_small_picture_may_do_as_a_large_one() -> None:
    grey = encoded(Image.new("L", (3_000, 3_000)), "TIFF")  # 9 MB
    async with started(memory_bytes=1_200_000_000) as made:
        made.room = Room(2, 64_000_000, 60, 50_000_000)
        # 16 MB for a small one; by its header it is one, where this is small enough
        assert not Room(2, 1_200_000_000, 60, 50_000_000).is_large(9_000_000)
        made.room = _Generous(2, 100_000_000, 60, 50_000_000)
        assert not made.room.is_large(9_000_000)
        assert await outcome(made, grey) == "TIFF"


class _Generous(Room):
    """Takes every picture for a small one."""

    def is_large(self, pixels: int) -> bool:
        return False

    @property
    def small_bytes(self) -> int:
        return 5_000_000


async def test_what_is_no_picture_or_too_large_a_one_never_gets_to_a_child() -> None:
    async with started(count=1) as made:
        held = asyncio.create_task(outcome(made, ordered("wait")))
        await asyncio.sleep(0)
        with pytest.raises(TooManyPixels, match="8000 x 8000, 64000000 pixels; the limit is 50000000"):
            await made.decode(File(ordered("wait", side=8_000)))
        with pytest.raises(UnsupportedFormat, match="the server sent a web page; taken are JPEG, PNG,"):
            await made.decode(File(b"<!doctype html>"))
        held.cancel()


async def test_a_file_is_let_go_when_it_is_in_a_childs_memory(photo: bytes) -> None:
    async with started() as made:
        file = File(photo)
        await made.decode(file)
    assert file.data == b""


async def test_a_child_that_can_not_start_stops_the_start_in_one_line() -> None:
    with pytest.raises(StartError, match=r"a decoding process can't be started: .*nothing_like_it"):
        async with started(program="from nothing_like_it import main"):
            pass


ORPHANS = """
import asyncio, sys
from tests.images.test_decoders import File, ordered, started

async def main():
    async with started() as made:
        held = asyncio.create_task(made.decode(File(ordered("loop"))))
        await asyncio.sleep(0)
        print(*made.process_ids, flush=True)
        await held

asyncio.run(main())
"""


async def test_children_end_with_the_process_that_started_them() -> None:
    parent = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", ORPHANS], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    children = [int(word) for word in parent.stdout.readline().split()]
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert len(children) == 2
    async with asyncio.timeout(60):
        while any(Path(f"/proc/{child}").exists() for child in children):  # noqa: ASYNC110, ASYNC240 - nothing tells
            await asyncio.sleep(0.05)
